/**
 * Operators that are written with others when the quantizer reads a model (onnx/composites.ts), against ONNX Runtime on
 * the file as it was; and the INT7 file of each in ONNX Runtime, in our runtime and in the C library.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { Int7Model, LayerModel, type Pictures, searchScales, type Tensor } from '@facetrain/native';
import { build } from '../../../hack/lib/paths.mjs';
import { COMPOSITE_OPERATORS } from '../onnx/composites.ts';
import { withInputRange } from '../onnx/input-range.ts';
import { decodeModel, encodeModel } from '../onnx/proto.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, QUICK_SEARCH } from '../testing/graph-fixtures.ts';
import { largestDifference, noise, runOrt } from '../testing/onnx-oracles.ts';
import { modelFile } from './artifact-files.ts';
import { disposable } from './disposable.ts';
import { fold } from './fold.ts';
import { decodeInt7 } from './qdq.ts';

const SIDE = 8;
const CHANNELS = 6;

const integers = (...values: number[]): Tensor => ({
  dims: [values.length],
  data: BigInt64Array.from(values, BigInt),
});
const floats = (...values: number[]): Tensor => ({ dims: [values.length], data: Float32Array.from(values) });

interface Case {
  /** Operator set of the file. */
  opset?: number;
  /** What stands between two convolutions: of [1, 6, 8, 8]. */
  step: (b: GraphBuilder, x: string) => string;
  /** Channels of its output; absent: 6. */
  channels?: number;
}

const perChannel = (b: GraphBuilder, count = CHANNELS) => [b.values([count], 0.5, 2), b.values([count])];
const one = (op: string, attributes = {}, opset = 17): Case => ({
  opset,
  step: (b, x) => b.node(op, [x], attributes),
});
const scores = (op: string, attributes = {}): Case => ({
  step: (b, x) => {
    const vectors = b.gemm(b.flatten(x), CHANNELS * SIDE * SIDE, CHANNELS);
    return b.node('Reshape', [b.node(op, [vectors], attributes), integers(0, CHANNELS, 1, 1)]);
  },
});

const CASES: Record<string, Case> = {
  Celu: one('Celu', { alpha: 0.5 }),
  'Celu by default': one('Celu'),
  Gelu: one('Gelu', {}, 20),
  'Gelu by tanh': one('Gelu', { approximate: 'tanh' }, 20),
  Mish: one('Mish', {}, 18),
  Selu: one('Selu'),
  'Selu of other factors': one('Selu', { alpha: 1.5, gamma: 1.1 }),
  Softsign: one('Softsign'),
  LogSoftmax: scores('LogSoftmax', { axis: 1 }),
  'LpNormalization of channels': one('LpNormalization', { axis: 1 }),
  'LpNormalization by the sum': one('LpNormalization', { axis: 1, p: 1 }),
  ReduceL1: { step: (b, x) => b.node('Mul', [x, b.node('ReduceL1', [x], { axes: [1], keepdims: 1 })]) },
  'ReduceSumSquare of an operator set before 13': {
    opset: 11,
    step: (b, x) => b.node('Mul', [x, b.node('ReduceSumSquare', [x], { axes: [1], keepdims: 1 })]),
  },
  Mean: { step: (b, x) => b.node('Mean', [x, b.conv(x, CHANNELS, CHANNELS, 1), b.node('Tanh', [x])]) },
  InstanceNormalization: {
    step: (b, x) => b.node('InstanceNormalization', [x, ...perChannel(b)], { epsilon: 1e-3 }),
  },
  'GroupNormalization as PyTorch exports it': {
    step: (b, x) => {
      const groups = b.node('Reshape', [x, integers(0, 3, -1)]);
      const normal = b.node('InstanceNormalization', [groups, floats(1, 1, 1), floats(0, 0, 0)]);
      const [scale, bias] = perChannel(b).map(({ data }) => ({ dims: [CHANNELS, 1, 1], data })) as [Tensor, Tensor];
      const back = b.node('Reshape', [normal, integers(0, CHANNELS, SIDE, SIDE)]);
      return b.node('Add', [b.node('Mul', [back, scale]), bias]);
    },
  },
  'GroupNormalization with a scale for each group': {
    opset: 18,
    step: (b, x) => b.node('GroupNormalization', [x, ...perChannel(b, 3)], { num_groups: 3 }),
  },
  'GroupNormalization with a scale for each channel': {
    opset: 21,
    step: (b, x) => b.node('GroupNormalization', [x, ...perChannel(b)], { num_groups: 2 }),
  },
  SpaceToDepth: { channels: 4 * CHANNELS, step: (b, x) => b.node('SpaceToDepth', [x], { blocksize: 2 }) },
  'Tile of channels and rows': { channels: 2 * CHANNELS, step: (b, x) => b.node('Tile', [x, integers(1, 2, 3, 1)]) },
  'Upsample, its scales an attribute': one('Upsample', { mode: 'nearest', scales: [1, 1, 2, 2] }, 7),
  'Upsample, its scales an input': { opset: 9, step: (b, x) => b.node('Upsample', [x, floats(1, 1, 2, 3)]) },
  'Upsample between pixels': {
    opset: 9,
    step: (b, x) => b.node('Upsample', [x, floats(1, 1, 2, 2)], { mode: 'linear' }),
  },
  'Resize of operator set 10': { opset: 10, step: (b, x) => b.node('Resize', [x, floats(1, 1, 2, 2)]) },
};

/** A model of two convolutions with the step between them. */
function fileOf({ opset = 17, step, channels = CHANNELS }: Case): Uint8Array {
  const b = new GraphBuilder({ height: SIDE, width: SIDE });
  const x = b.node('Relu', [b.conv('data', 3, CHANNELS, 3, { pad: 1 })]);
  const map = b.node('GlobalAveragePool', [b.conv(step(b, x), channels, 5, 1)]);
  const graph = b.graph(b.flatten(map));
  const proto = decodeModel(encodeOnnx({ ...graph, output: { ...graph.output, dim: 5 } }));
  proto.opsetImport = [{ domain: '', version: opset }];
  return encodeModel(proto);
}

const COUNT = 4;
const AREA = SIDE * SIDE;
const PIXELS = Uint8Array.from(noise(COUNT * AREA * 3, 3), (value) => Math.round((value + 1) * 127));
const PICTURES: Pictures = { count: COUNT, height: SIDE, width: SIDE, channelOrder: 'rgb', data: PIXELS };
const VALUES = Array.from({ length: COUNT }, (_, picture) =>
  Float32Array.from(
    { length: 3 * AREA },
    (_, at) => PIXELS[(picture * AREA + (at % AREA)) * 3 + Math.floor(at / AREA)]! / 127.5 - 1,
  ),
);

async function inOrt(file: Uint8Array): Promise<Float32Array> {
  const results = await runOrt(file, ...VALUES);
  return Float32Array.from(results.flatMap(({ data }) => [...data]));
}

async function inCLibrary(file: Uint8Array): Promise<Float32Array> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-composites-'));
  try {
    const [model, pixels] = [join(folder, 'model.int7.onnx'), join(folder, 'pixels')];
    await writeFile(model, file);
    const rows = [];
    for (let picture = 0; picture < COUNT; picture++) {
      await writeFile(pixels, PIXELS.subarray(picture * AREA * 3, (picture + 1) * AREA * 3));
      const { stdout } = await promisify(execFile)(join(build, 'int7_embed'), [model, pixels]);
      rows.push(...stdout.trim().split('\n').map(Number));
    }
    return Float32Array.from(rows);
  } finally {
    await rm(folder, { recursive: true });
  }
}

const largest = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);

for (const [name, given] of Object.entries(CASES))
  test(name, async () => {
    const file = fileOf(given);
    const expected = await inOrt(file);
    const subject = 'model.onnx';
    const { graph } = withInputRange(parseOnnx(file, subject, { every: true }), { subject });
    const layers = fold(graph);
    await using fp32 = disposable(await LayerModel.open(layers, { computeThreads: 1 }));
    const found = await fp32.model.embed(PICTURES);
    assert.ok(largestDifference(found, expected) < 1e-4 * largest(expected), 'FP32 is that of ONNX Runtime');

    const { graph: equal, scales } = await searchScales(layers, PICTURES, QUICK_SEARCH);
    const written = modelFile(equal, scales, { source: '', calibration: '', channelOrder: 'rgb' });
    const decoded = decodeInt7(withInputRange(parseOnnx(written, subject, { every: true }), { subject }).graph);
    await using int7 = disposable(await Int7Model.open(decoded.layers, decoded.scales, { computeThreads: 1 }));
    const ours = await int7.model.embed(PICTURES);
    assert.deepEqual(await inCLibrary(written), ours, 'the C library computes the same, bit for bit');
    assert.ok(largestDifference(ours, expected) < 0.15 * largest(expected), 'INT7 is close to FP32');
    assert.ok(largestDifference(await inOrt(written), ours) < 0.1 * largest(expected), 'and ONNX Runtime to INT7');
  });

test('a function of single numbers is one layer, within which nothing is rounded', () => {
  for (const [name, opset] of Object.entries({ Celu: 17, Gelu: 20, Mish: 18, Selu: 17, Softsign: 17, Swish: 24 })) {
    const layers = fold(parseOnnx(fileOf(one(name, {}, opset)), 'm.onnx', { every: true }).graph).layers;
    assert.deepEqual(
      layers.map(({ kind }) => kind),
      ['conv', 'node', 'conv', 'pool'],
      name,
    );
    assert.ok(
      layers.some((layer) => layer.kind === 'node' && layer.steps.length > 1 && !layer.real),
      name,
    );
  }
});

test('every composite operator has a case', () => {
  const untested = COMPOSITE_OPERATORS.filter((op) => !Object.keys(CASES).some((name) => name.startsWith(op)));
  assert.deepEqual(untested, ['Swish'], 'Swish is of operator set 24, which ONNX Runtime 1.30 does not run');
});

test('a Tile that no Concat can be is refused', () => {
  for (const repeats of [integers(2, 1, 1, 1), integers(1, 100, 1, 1)])
    assert.throws(
      () => parseOnnx(fileOf({ step: (b, x) => b.node('Tile', [x, repeats]) }), 'm.onnx', { every: true }),
      /\(Tile\) has other repeats/,
    );
});
