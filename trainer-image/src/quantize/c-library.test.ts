/** The C library (native/int7/facetrain_int7.h), through its example in C, on a file that we publish. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { Int7Model, type Pictures, type SearchResult, searchScales } from '@facetrain/native';
import { build } from '../../../hack/lib/paths.mjs';
import { withInputRange } from '../onnx/input-range.ts';
import { readOnnx } from '../onnx/read.ts';
import { MOBILEFACENET } from '../testing/onnx-oracles.ts';
import { modelFile } from './artifact-files.ts';
import { fold } from './fold.ts';

const embed = (...args: string[]) => promisify(execFile)(join(build, 'int7_embed'), args, { maxBuffer: 2 ** 24 });

let folder: string;
let quantized: SearchResult;
let file: Uint8Array;
let pictures: Pictures;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-c-library-'));
  const { graph } = withInputRange(await readOnnx(MOBILEFACENET), { subject: MOBILEFACENET });
  const { channels, height, width } = graph.input;
  const size = channels * height * width;
  const data = Uint8Array.from({ length: 2 * size }, (_, i) => (i * i * 31 + (i >> 5)) % 256);
  pictures = { data, count: 2, height, width, channelOrder: 'bgr' };
  quantized = await searchScales(fold(graph), pictures, {
    ...{ rounds: 0, candidates: 2, lower: 0.5, upper: 2, zeroPoints: true, equalize: true, biasCorrection: true },
    budget: 0.5,
    ...{ memoryBytes: 2 ** 30, temporaryDirectory: folder, computeThreads: 2 },
  });
  file = modelFile(quantized.graph, quantized.scales, { source: '', calibration: '', channelOrder: 'bgr' });
  await writeFile(join(folder, 'model.int7.onnx'), file);
  await writeFile(join(folder, 'pixels'), data.subarray(size));
});
after(() => rm(folder, { recursive: true }));

test('the example computes the embedding of the addon, bit for bit', async () => {
  const model = await Int7Model.open(quantized.graph, quantized.scales, { computeThreads: 1 });
  const expected = Array.from(await model.embed(pictures)).slice(512);
  await model.close();
  const { stdout } = await embed(join(folder, 'model.int7.onnx'), join(folder, 'pixels'));
  assert.deepEqual(stdout.trim().split('\n').map(Number).map(Math.fround), expected);
});

test('the example says which file is missing, and takes no file of another size', async () => {
  const model = join(folder, 'model.int7.onnx');
  await assert.rejects(embed(model, join(folder, 'none')), /none: No such file or directory/);
  const pixels = pictures.data.subarray(pictures.data.length / 2);
  const sizes = { shorter: pixels.subarray(1), longer: Buffer.concat([pixels, Buffer.of(0)]) };
  for (const [name, data] of Object.entries(sizes)) {
    await writeFile(join(folder, name), data);
    await assert.rejects(
      embed(model, join(folder, name)),
      new RegExp(`${name}: not 37632 bytes, but a raw picture is`),
    );
  }
});

test('a damaged file is refused with a message', async () => {
  const path = join(folder, 'damaged.onnx');
  await writeFile(path, file.subarray(0, file.length - 1000));
  await assert.rejects(embed(path, join(folder, 'pixels')), /embed: .*wanted/);
});
