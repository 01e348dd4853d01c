import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { fold } from '@facetrain/trainer/quantize/fold';
import { encodeInt7 } from '@facetrain/trainer/quantize/qdq';
import { GraphBuilder, plainScales } from '@facetrain/trainer/testing/graph-fixtures';
import { StatusLine } from '../terminal-output.ts';
import { facetrain } from '../testing/run-cli.ts';
import { type EmbedOptions, embed } from './embed.ts';

let folder: string;
let model: string;
let red: string;
let blue: string;

/** A BMP of 2 x 2 pixels of one color. */
function bitmap(color: [blue: number, green: number, red: number], side = 2): Uint8Array {
  const row = Math.ceil((3 * side) / 4) * 4;
  const file = Buffer.alloc(54 + row * side);
  file.write('BM');
  file.writeUInt32LE(file.length, 2);
  file.writeUInt32LE(54, 10);
  file.writeUInt32LE(40, 14);
  file.writeInt32LE(side, 18);
  file.writeInt32LE(side, 22);
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(24, 28);
  for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) file.set(color, 54 + y * row + 3 * x);
  return file;
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-embed-'));
  [model, red, blue] = ['model.onnx', 'red.bmp', 'blue.bmp'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  // The mean of each color.
  const graph = {
    input: { name: 'data', channels: 3, height: 2, width: 2 },
    output: { name: 'embedding', dim: 3 },
    nodes: [
      { name: 'pool', op: 'GlobalAveragePool', inputs: ['data'], outputs: ['pool'], attributes: {} },
      { name: 'embedding', op: 'Flatten', inputs: ['pool'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: {},
  };
  await writeFile(model, encodeOnnx(graph, { metadata: { 'facetrain.channelOrder': 'rgb' } }));
  await writeFile(red, bitmap([0, 0, 255]));
  await writeFile(blue, bitmap([255, 0, 0]));
});
after(() => rm(folder, { recursive: true }));

const run = (images: string[], options: Partial<EmbedOptions> = {}) =>
  embed(images, { model, threads: 1, device: 'cpu', ...options }, new StatusLine(), new AbortController().signal);

test('embed prints the numbers of each picture, and the cosine of pairs', async () => {
  const { json, text } = await run([red], { pairs: [red, blue, blue, blue] });
  assert.deepEqual(json.images, [{ image: red, outputs: [{ name: 'embedding', dims: [3], values: [1, -1, -1] }] }]);
  assert.deepEqual(
    json.pairs.map(({ images, cosine }) => [images, Math.round(1e6 * cosine) / 1e6]),
    [
      [[red, blue], -0.333333],
      [[blue, blue], 1],
    ],
  );
  assert.equal(text, `${red}\t1\t-1\t-1\n${red}\t${blue}\t-0.333333\n${blue}\t${blue}\t1.000000\n`);
});

test('embed writes a file for NumPy', async () => {
  const npy = join(folder, 'embeddings.npy');
  const { text } = await run([red, blue], { npy });
  assert.equal(text, `2 x 3 numbers in ${npy}\n`);
  const file = await readFile(npy);
  assert.equal(file.subarray(0, 8).toString('latin1'), '\x93NUMPY\x01\x00');
  const start = 10 + file.readUInt16LE(8);
  assert.equal(start % 64, 0);
  assert.match(
    file.subarray(10, start).toString('latin1'),
    /^\{'descr': '<f4', 'fortran_order': False, 'shape': \(2, 3\), \} *\n$/,
  );
  const values = Array.from({ length: 6 }, (_, i) => file.readFloatLE(start + 4 * i));
  assert.deepEqual(values, [1, -1, -1, -1, -1, 1]);
});

test('what a user gets wrong is said in words', async () => {
  const large = join(folder, 'large.bmp');
  await writeFile(large, bitmap([0, 0, 0], 3));
  const black = join(folder, 'black.bmp');
  await writeFile(black, bitmap([0, 0, 0]));
  const cases: [images: string[], options: Partial<EmbedOptions>, message: RegExp][] = [
    [[], {}, /^pictures: none; files to embed, or two to compare/],
    [[], { pairs: [red] }, /^--pairs: 1 picture; two for each pair/],
    [
      [join(folder, 'no.png')],
      {},
      /no\.png: no such file or directory \(ENOENT\); a picture of 2 x 2 \(JPEG, PNG, WebP or BMP\)/,
    ],
    [[model], {}, /^\S*model\.onnx: is /],
    [[large], {}, /^\S*large\.bmp: .*3 x 3.*2 x 2/],
    [[red], { runtime: 'int7' }, /an FP32 model; --runtime fp32/],
    [[], { pairs: [red, black], inputRange: '0..255' }, /^embedding of \S*black\.bmp: its length is 0;/],
    [[], { pairs: [red, blue], npy: join(folder, 'pairs.npy') }, /^--npy: no pictures but those of --pairs/],
    [
      [red],
      { npy: join(folder, 'no/such.npy') },
      /such\.npy: no such file or directory \(ENOENT\); a file that can be written/,
    ],
  ];
  for (const [images, options, message] of cases)
    await assert.rejects(run(images, options), (error: Error) => {
      assert.ok(error instanceof FacetrainError, String(error));
      assert.match(error.message, message);
      return true;
    });
});

test('embed prints all outputs of an FP32 model, and compares by one that is named', async () => {
  const several = join(folder, 'several.onnx');
  const graph = {
    input: { name: 'data', channels: 3, height: 2, width: 2 },
    output: { name: 'map', dim: 15 },
    outputs: [
      { name: 'map', dims: [3, 2, 2] },
      { name: 'embedding', dims: [3] },
    ],
    nodes: [
      { name: 'map', op: 'Relu', inputs: ['data'], outputs: ['map'], attributes: {} },
      { name: 'pool', op: 'GlobalAveragePool', inputs: ['data'], outputs: ['pool'], attributes: {} },
      { name: 'embedding', op: 'Flatten', inputs: ['pool'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: {},
  };
  await writeFile(several, encodeOnnx(graph, { metadata: { 'facetrain.channelOrder': 'rgb' } }));
  const { json } = await run([red], { model: several });
  assert.deepEqual(json.images[0]!.outputs, [
    { name: 'map', dims: [3, 2, 2], values: [1, 1, 1, 1, ...new Array<number>(8).fill(0)] },
    { name: 'embedding', dims: [3], values: [1, -1, -1] },
  ]);
  await assert.rejects(
    run([], { model: several, pairs: [red, blue] }),
    /--pairs: \S*several\.onnx has the outputs "map", "embedding"; the name of the one .*: --output NAME/,
  );
  const named = await run([], { model: several, pairs: [red, blue], output: 'embedding' });
  assert.equal(named.json.pairs[0]!.cosine.toFixed(6), '-0.333333');
});

test('embed reads an INT7 model as the C library does', async () => {
  const int7 = join(folder, 'model.int7.onnx');
  const write = async (graph: Graph, more: Record<string, string> = {}) => {
    const layers = fold(graph);
    const metadata = { 'facetrain.format': 'int7', 'facetrain.channelOrder': 'rgb', ...more };
    await writeFile(int7, encodeOnnx(encodeInt7(layers, plainScales(layers)), { metadata }));
  };
  const b = new GraphBuilder({ height: 2, width: 2 });
  const graph = b.graph(b.flatten(b.conv('data', 3, 4, 1)));
  await write(graph);
  const { json } = await run([red], { model: int7 });
  assert.equal(json.runtime, 'int7');
  assert.deepEqual(json.images[0]!.outputs[0]!.dims, [16]);
  await assert.rejects(
    run([red], { model: int7, inputRange: '0..255' }),
    /the range of the input of \S*model\.int7\.onnx: given for an INT7 model; none: the file says it/,
  );
  // What TypeScript's reader alone would take.
  await write(graph, { 'facetrain.format': 'other' });
  await assert.rejects(run([red], { model: int7 }), /model\.int7\.onnx: in another form; a model\.int7\.onnx of /);
});

test('facetrain embed is a command', async () => {
  const { code, stdout } = await facetrain('embed', '--model', model, '--device', 'cpu', '--json', red);
  assert.equal(code, 0);
  assert.deepEqual(JSON.parse(stdout).images[0].outputs[0].values, [1, -1, -1]);
});
