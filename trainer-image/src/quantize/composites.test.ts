/**
 * Operators that are written with others when the quantizer reads a model (onnx/composites.ts), against ONNX Runtime on
 * the file as it was; and the INT7 file of each in ONNX Runtime, in our runtime and in the C library.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Tensor } from '@facetrain/native';
import { COMPOSITE_OPERATORS } from '../onnx/composites.ts';
import { parseOnnx } from '../onnx/read.ts';
import type { GraphBuilder } from '../testing/graph-fixtures.ts';
import { CHANNELS, checkOperator, fileOf, type OperatorCase, SIDE } from '../testing/operator-cases.ts';
import { fold } from './fold.ts';

const integers = (...values: number[]): Tensor => ({
  dims: [values.length],
  data: BigInt64Array.from(values, BigInt),
});
const floats = (...values: number[]): Tensor => ({ dims: [values.length], data: Float32Array.from(values) });

const perChannel = (b: GraphBuilder, count = CHANNELS) => [b.values([count], 0.5, 2), b.values([count])];
const one = (op: string, attributes = {}, opset = 17): OperatorCase => ({
  opset,
  step: (b, x) => b.node(op, [x], attributes),
});
const scores = (op: string, attributes = {}): OperatorCase => ({
  step: (b, x) => {
    const vectors = b.gemm(b.flatten(x), CHANNELS * SIDE * SIDE, CHANNELS);
    return b.node('Reshape', [b.node(op, [vectors], attributes), integers(0, CHANNELS, 1, 1)]);
  },
});

const CASES: Record<string, OperatorCase> = {
  Celu: one('Celu', { alpha: 0.5 }),
  'Celu by default': one('Celu'),
  Gelu: one('Gelu', {}, 20),
  'Gelu by tanh': one('Gelu', { approximate: 'tanh' }, 20),
  Mish: one('Mish', {}, 18),
  Selu: one('Selu'),
  'Selu of other factors': one('Selu', { alpha: 1.5, gamma: 1.1 }),
  Softsign: one('Softsign'),
  LogSoftmax: scores('LogSoftmax', { axis: 1 }),
  'Softmax of an operator set before 13, over channels and pixels': {
    opset: 11,
    step: (b, x) => b.node('Mul', [b.node('Softmax', [x], { axis: 1 }), floats(50)]),
  },
  'Softmax of an operator set before 13, of which one axis is long': {
    opset: 11,
    step: (b, x) => b.node('Mul', [x, b.node('Softmax', [b.node('GlobalAveragePool', [x])], { axis: 1 })]),
  },
  ReduceLogSum: {
    step: (b, x) => b.node('Mul', [x, b.node('ReduceLogSum', [b.node('Exp', [x])], { axes: [1], keepdims: 1 })]),
  },
  'ReduceLogSumExp of operator set 18': {
    opset: 18,
    step: (b, x) => b.node('Mul', [x, b.node('ReduceLogSumExp', [x, integers(2, 3)], { keepdims: 1 })]),
  },
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
  'Conv along the channels, as in efficient channel attention': {
    step: (b, x) => {
      const row = b.node('Reshape', [b.node('GlobalAveragePool', [x]), integers(0, 1, CHANNELS)]);
      const mixed = b.node('Conv', [row, b.values([1, 1, 3])], { kernel_shape: [3], pads: [1, 1] });
      const gate = b.node('Reshape', [b.node('Sigmoid', [mixed]), integers(0, CHANNELS, 1, 1)]);
      return b.node('Mul', [x, gate]);
    },
  },
  ...Object.fromEntries(
    ['AveragePool', 'LpPool', 'MaxPool'].map((op): [string, OperatorCase] => [
      `${op} along one axis`,
      {
        step: (b, x) => {
          const rows = b.node('Reshape', [x, integers(0, CHANNELS, SIDE * SIDE)]);
          const pooled = b.node(op, [rows], { kernel_shape: [3], strides: [2], pads: [1, 0] });
          return b.node('Reshape', [pooled, integers(0, CHANNELS, 4, SIDE)]);
        },
      },
    ]),
  ),
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

for (const [name, given] of Object.entries(CASES)) test(name, () => checkOperator(given));

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
