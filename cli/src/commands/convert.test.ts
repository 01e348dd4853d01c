import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { searchScales } from '@facetrain/native';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { modelFile } from '@facetrain/trainer/quantize/artifact-files';
import { fold } from '@facetrain/trainer/quantize/fold';
import { convert } from './convert.ts';
import { inspect } from './inspect.ts';

test('an INT7 model becomes files for ncnn, and others are refused', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-convert-'));
  t.after(() => rm(folder, { recursive: true }));
  const weight = Float32Array.from({ length: 4 * 3 * 9 }, (_, i) => Math.sin(i));
  const input = { name: 'a picture', channels: 3, height: 3, width: 3 };
  const graph = {
    input: { ...input, mean: [127.5, 127.5, 127.5], std: [128, 128, 128] },
    output: { name: 'embedding', dim: 4 },
    nodes: [
      { name: 'conv', op: 'Conv', inputs: ['a picture', 'weight'], outputs: ['map'], attributes: {} },
      { name: 'flat', op: 'Flatten', inputs: ['map'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: { weight: { dims: [4, 3, 3, 3], data: weight } },
  };
  const data = Uint8Array.from({ length: 2 * 27 }, (_, i) => (i * 37) % 256);
  const pictures = { data, count: 2, height: 3, width: 3, channelOrder: 'bgr' as const };
  const found = await searchScales(fold(graph), pictures, {
    ...{ rounds: 0, candidates: 2, lower: 0.5, upper: 2, zeroPoints: true, equalize: false, biasCorrection: false },
    budget: 0,
    ...{ memoryBytes: 2 ** 28, temporaryDirectory: folder, computeThreads: 1 },
  });
  const file = { scale: [1, 1, 1], offset: [0, 0, 0], mean: [127.5, 127.5, 127.5], std: [128, 128, 128] };
  const written = { ...found.graph, input: { ...found.graph.input, file } };
  const origin = { source: '', calibration: '', channelOrder: 'bgr' as const };
  const model = join(folder, 'model.int7.onnx');
  await writeFile(model, modelFile(written, found.scales, origin));

  const out = join(folder, 'ncnn');
  const { json, text } = await convert({ model, to: 'ncnn', out });
  assert.deepEqual(json.input, {
    ...{ blob: 'a_picture', width: 3, height: 3, channels: 3, channelOrder: 'bgr' },
    ...{ mean: [127.5, 127.5, 127.5], norm: [1 / 128, 1 / 128, 1 / 128] },
  });
  assert.deepEqual((await readdir(out)).sort(), ['model.int7.ncnn.bin', 'model.int7.ncnn.param']);
  const lines = (await readFile(json.param, 'utf8')).trim().split('\n');
  assert.equal(lines[0], '7767517');
  assert.match(lines[2]!, /^Input a_picture 0 1 a_picture 0=3 1=3 2=3$/);
  assert.equal(lines.at(-1)!.split(' ')[5], json.outputs[0]);
  // Its type, 108 weights, four biases, four scales of weights and one of the input.
  assert.equal((await stat(json.bin)).size, 4 + 108 + 4 * (4 + 4 + 1));
  assert.match(text, /substract_mean_normalize\(\[127\.5,127\.5,127\.5\], \[0\.007812500,/);

  // The folder of an artifact has a second file, for TensorRT.
  await writeFile(join(folder, 'model.int7.trt.onnx'), modelFile(written, found.scales, origin, 'tensorrt'));
  assert.deepEqual((await convert({ model: folder, to: 'ncnn', out })).json, json);

  // What only ONNX Runtime computes of it is left out.
  const nodes = [{ name: 'last', opType: 'Mystery', input: ['embedding'], output: ['found'], attribute: [] }];
  const outputs = [{ name: 'found' }];
  const end = { nodes, initializers: [], names: new Set(['last', 'found']), opsets: { '': 17 }, outputs };
  const tail = { causes: [], operators: 'Mystery 1', file: { ...end, irVersion: 8, batch: null } };
  await writeFile(model, modelFile(written, found.scales, origin, 'onnxruntime', tail));
  const withoutTail = await convert({ model, to: 'ncnn', out });
  assert.deepEqual(withoutTail.json, { ...json, tail: 'Mystery 1' });
  assert.match(withoutTail.text, /Left out +Mystery 1: what the model has behind these/);
  assert.equal(((await inspect(model)).json as { tail?: string }).tail, 'Mystery 1');
  await assert.rejects(
    inspect(model, { output: 'found' }),
    /computes output "found" by operators that our runtime does not have \(Mystery 1\), for ONNX Runtime; one of the/,
  );

  const fp32 = join(folder, 'fp32.onnx');
  await writeFile(fp32, encodeOnnx(graph));
  await assert.rejects(convert({ model: fp32, to: 'ncnn', out }), /fp32\.onnx: an FP32 model; a model\.int7\.onnx /);
});
