/** Weights in files beside the model: read as those inside, and never from anywhere else. */
import assert from 'node:assert/strict';
import { link, mkdir, mkdtemp, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { type Entries, splitModel as split } from '../testing/external-data.ts';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { parseOnnx, readOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-external-'));
});
after(() => rm(folder, { recursive: true }));

function whole(): Uint8Array {
  const b = new GraphBuilder({ height: 4, width: 4 });
  return encodeOnnx(b.graph(b.gemm(b.flatten(b.prelu(b.conv('data', 3, 5, 3, { pad: 1 }), 5)), 80, 6)));
}

async function write(name: string, files: { model: Uint8Array; data?: Uint8Array; at?: string }): Promise<string> {
  const path = join(folder, name);
  await mkdir(join(path, 'sub'), { recursive: true });
  await writeFile(join(path, 'm.onnx'), files.model);
  if (files.data) await writeFile(join(path, files.at ?? 'm.onnx.data'), files.data);
  return join(path, 'm.onnx');
}

test('is the same model as with its weights inside', async () => {
  const expected = parseOnnx(whole(), 'whole.onnx').graph;
  const beside = await write('beside', split(whole(), 'm.onnx.data'));
  const { graph, file, externalFiles } = await readOnnx(beside);
  assert.deepEqual(graph, expected);
  assert.deepEqual([file, externalFiles], [beside, [`${beside}.data`]]);

  const below = await write('below', { ...split(whole(), './sub/w.bin'), at: 'sub/w.bin' });
  assert.deepEqual((await readOnnx(below)).graph, expected);
  // A folder with one model is that model.
  assert.deepEqual((await readOnnx(join(folder, 'beside'))).graph, expected);
  // Links inside the folder are as volumes of ConfigMaps have them.
  await rm(`${beside}.data`);
  await writeFile(join(folder, 'beside/sub/real'), split(whole(), '').data);
  await symlink('sub/real', `${beside}.data`);
  assert.deepEqual((await readOnnx(beside)).graph, expected);
});

test('offset and length may be left out', async () => {
  const b = new GraphBuilder({ height: 2, width: 2 });
  const bytes = encodeOnnx(b.graph(b.flatten(b.conv('data', 3, 4, 1, { bias: false }))));
  const { model, data } = split(bytes, 'm.onnx.data', (_, { location }) => ({ location: location! }));
  const path = await write('plain', { model, data: data.subarray(0, 48) });
  assert.deepEqual((await readOnnx(path)).graph, parseOnnx(bytes, 'whole.onnx').graph);
});

const REFUSED: Record<string, [(values: Entries) => Entries, RegExp]> = {
  'an absolute path': [(v) => ({ ...v, location: '/etc/passwd' }), /keeps its data at "\/etc\/passwd"; a path inside/],
  'a path out of the folder': [(v) => ({ ...v, location: '../beside/m.onnx.data' }), /without "\.\."/],
  'a path out of the folder and back': [(v) => ({ ...v, location: 'sub/../../x' }), /without "\.\."/],
  'a path of Windows': [(v) => ({ ...v, location: '..\\secret' }), /without "\.\."/],
  'a drive of Windows': [(v) => ({ ...v, location: 'C:\\secret' }), /a path inside the folder/],
  'no path': [({ offset }) => ({ offset: offset! }), /keeps its data at ""/],
  'a zero byte': [(v) => ({ ...v, location: 'm.onnx\0.data' }), /zero byte/],
  'a folder': [(v) => ({ ...v, location: 'sub' }), /which is no file/],
  'a link out of the folder': [(v) => ({ ...v, location: 'link' }), /a link to .*; a file inside/],
  'a missing file': [
    (v) => ({ ...v, location: 'gone.data' }),
    /gone\.data: no such file; the file that holds the weights/,
  ],
  'a negative offset': [(v) => ({ ...v, offset: -1 }), /has offset "-1"; a whole number/],
  'a length that is no number': [(v) => ({ ...v, length: '0x40' }), /has length "0x40"/],
  'an offset beyond the file': [(v) => ({ ...v, offset: 2 ** 40 }), /is at bytes 1099511627776 to/],
  'a length beyond the file': [(v) => ({ ...v, length: 2 ** 40 }), /is at bytes 0 to 1099511627776 of/],
  'a length that does not fit the dims': [(v) => ({ ...v, length: 8 }), /holds 8 bytes; \d+ elements of FLOAT/],
};

for (const [name, [change, message]] of Object.entries(REFUSED)) {
  test(`refuses ${name}`, async () => {
    const files = split(whole(), 'm.onnx.data', (_, values) => change(values));
    const path = await write('refused', files);
    await writeFile(join(folder, 'outside'), files.data);
    await symlink('../outside', join(folder, 'refused/link')).catch(() => {});
    await assert.rejects(readOnnx(path), (error: unknown) => {
      assert.ok(error instanceof FacetrainError, String(error));
      assert.match(error.message, message);
      return error.exitCode === 2;
    });
  });
}

test('refuses more than 2 GiB in all, before they are read', async () => {
  const files = split(whole(), 'm.onnx.data', (_, values) => ({ ...values, offset: 0, length: 2 ** 30 }));
  const path = await write('large', files);
  await truncate(`${path}.data`, 2 ** 30); // sparse
  await assert.rejects(readOnnx(path), /keeps more than \d+ bytes in other files; a model of less than 2 GiB/);
});

test('of the two files of an INT7 artifact, the one that is not for TensorRT is read', async () => {
  const path = await write('artifact', split(whole(), 'm.onnx.data'));
  const [model, forTensorRt] = ['model.int7.onnx', 'model.int7.trt.onnx'].map((name) => join(folder, 'artifact', name));
  await rename(path, forTensorRt!);
  assert.equal((await readOnnx(join(folder, 'artifact'))).file, forTensorRt);
  await link(forTensorRt!, model!);
  assert.equal((await readOnnx(join(folder, 'artifact'))).file, model);
});

test('a folder with several models, or none, is refused', async () => {
  await write('several', split(whole(), 'm.onnx.data'));
  await link(join(folder, 'several/m.onnx'), join(folder, 'several/b.onnx'));
  await assert.rejects(readOnnx(join(folder, 'several')), /a folder with b\.onnx, m\.onnx; an ONNX file, or a folder/);
  await assert.rejects(readOnnx(join(folder, 'several/sub')), /a folder without an \.onnx file/);
});

test('damaged references are refused, or read as the bytes that they name', async () => {
  const { model, data } = split(whole(), 'm.onnx.data');
  const path = await write('damaged', { model, data });
  let state = 99;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  // The references are where the text "m.onnx.data" is; offsets and lengths stand around it.
  const references = [
    ...Buffer.from(model)
      .toString('latin1')
      .matchAll(/m\.onnx\.data/g),
  ].map(({ index }) => index);
  const outcomes = { refused: 0, read: 0 };
  for (let i = 0; i < 300; i++) {
    const damaged = model.slice();
    for (let flips = 1 + random(2); flips > 0; flips--) {
      const at = references[random(references.length)]! - 20 + random(80);
      damaged[at] = random(2) ? random(256) : 48 + random(10);
    }
    await writeFile(path, damaged);
    try {
      await readOnnx(path);
      outcomes.read++;
    } catch (error) {
      if (!(error instanceof FacetrainError)) throw error;
      outcomes.refused++;
    }
  }
  assert.ok(outcomes.refused > 30 && outcomes.read > 5, JSON.stringify(outcomes));
});
