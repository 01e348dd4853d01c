import assert from 'node:assert/strict';
import files, { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { writeSmallSet } from '@facetrain/trainer/testing/training-gang';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { StatusLine } from '../terminal-output.ts';
import { type QuantizeOptions, quantize } from './quantize.ts';

test('the model is read once, also for the order of its colors', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-quantize-'));
  t.after(() => rm(folder, { recursive: true }));
  const model = join(folder, 'model.onnx');
  const graph = {
    input: { name: 'data', channels: 3, height: 2, width: 2 },
    output: { name: 'embedding', dim: 3 },
    nodes: [
      { name: 'pool', op: 'GlobalAveragePool', inputs: ['data'], outputs: ['pool'], attributes: {} },
      { name: 'embedding', op: 'Flatten', inputs: ['pool'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: {},
  };
  await writeFile(model, encodeOnnx(graph));
  const read = t.mock.method(files, 'readFile');
  syncBuiltinESMExports();
  t.after(syncBuiltinESMExports);
  const options = {
    ...{ model, calibration: join(folder, 'none'), out: join(folder, 'int7'), images: 1, seed: 0, rounds: 0 },
    ...{ budget: 0, maxBadPictures: 0, strict: false, threads: 1, fresh: false },
  };
  // Refused after the model was loaded: there are no calibration pictures.
  await assert.rejects(quantize(options, new StatusLine(), new AbortController().signal), /none/);
  assert.equal(read.mock.calls.filter(({ arguments: [path] }) => path === model).length, 1);
});

/** A model of one convolution of 14 x 14 pixels. */
async function writeModel(file: string): Promise<void> {
  const weight = Float32Array.from({ length: 8 * 3 * 14 ** 2 }, (_, i) => Math.sin(i));
  const graph = {
    input: { name: 'data', channels: 3, height: 112, width: 112 },
    output: { name: 'embedding', dim: 8 * 8 ** 2 },
    nodes: [
      { name: 'conv', op: 'Conv', inputs: ['data', 'weight'], outputs: ['map'], attributes: { strides: [14, 14] } },
      { name: 'flat', op: 'Flatten', inputs: ['map'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: { weight: { dims: [8, 3, 14, 14], data: weight } },
  };
  await writeFile(file, encodeOnnx(graph));
}

test('bounds of the gate are judged: a model that misses one leaves its report alone', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-quantize-'));
  t.after(() => rm(folder, { recursive: true }));
  const [model, out] = [join(folder, 'model.onnx'), join(folder, 'int7')];
  await writeModel(model);
  const options = {
    ...{ model, calibration: exampleFaces, out, images: 2, seed: 0, rounds: 0 },
    ...{ budget: 0, maxBadPictures: 0, strict: false, threads: 1, fresh: false },
  };
  const run = (bounds: Partial<QuantizeOptions>) =>
    quantize({ ...options, ...bounds }, new StatusLine(), new AbortController().signal);

  await assert.rejects(run({ minMeanCosine: 1 }), { code: 'GateFailed', found: /less than minMeanCosine 1$/ });
  await assert.rejects(run({ minWorstCosine: 1 }), { code: 'GateFailed', found: /less than minWorstCosine 1$/ });
  assert.deepEqual((await readdir(out)).toSorted(), ['fences', 'rejected']);
  for (const bound of ['maxAccuracyDrop', 'maxTarDrop', 'maxGroupAccuracyDrop', 'maxGroupTarDrop'])
    await assert.rejects(run({ [bound]: 0.5 }), { subject: `gate.${bound}`, allowed: /--pairs/ });
  const pairs = [join(exampleFaces, 'lfw-small.bin')];
  await assert.rejects(run({ pairs, maxGroupAccuracyDrop: 0.5 }), { allowed: /--groups/ });

  const few = join(folder, 'few.bin');
  await writeSmallSet(few, 5);
  const { json, text } = await run({ pairs: [few], maxAccuracyDrop: 1, minMeanCosine: 0.5 });
  const { maxAccuracyDrop, minMeanCosine, passed } = json.gate;
  assert.deepEqual([maxAccuracyDrop, minMeanCosine, passed], [1, 0.5, true]);
  assert.match(text, /^ *Gate +passed$/m);
});

test('sets of one name in two folders are told apart', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-quantize-'));
  t.after(() => rm(folder, { recursive: true }));
  const model = join(folder, 'model.onnx');
  await writeModel(model);
  const few = join(folder, 'lfw-small.bin');
  await writeSmallSet(few, 5);
  const options = {
    ...{ model, calibration: exampleFaces, out: join(folder, 'int7'), images: 2, seed: 0, rounds: 0 },
    ...{ budget: 0, maxBadPictures: 0, strict: false, threads: 1, fresh: false },
    pairs: [few, join(exampleFaces, 'lfw-small.bin')],
  };
  const { json } = await quantize(options, new StatusLine(), new AbortController().signal);
  assert.deepEqual(
    json.evaluation.map(({ set, pairs }) => [set, pairs > 10]),
    [
      ['lfw-small', false],
      ['lfw-small_2', true],
    ],
  );
});
