/**
 * Operators that stay nodes between convolutions, and sizes that exporters compute, against ONNX Runtime; and outputs
 * that are no floats, or have no batch.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Graph, Int7Model, LayerModel, type Pictures, type Tensor } from '@facetrain/native';
import * as ort from 'onnxruntime-node';
import { withInputRange } from '../onnx/input-range.ts';
import { dataTypeNumber, decodeModel, encodeModel } from '../onnx/proto.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, plainScales } from '../testing/graph-fixtures.ts';
import { inputOf, variedPictures } from '../testing/onnx-oracles.ts';
import { CHANNELS, checkOperator, fileOf, type OperatorCase, SIDE } from '../testing/operator-cases.ts';
import { modelFile } from './artifact-files.ts';
import { disposable } from './disposable.ts';
import { fold } from './fold.ts';
import { decodeInt7 } from './qdq.ts';

const integers = (...values: number[]): Tensor => ({
  dims: [values.length],
  data: BigInt64Array.from(values, BigInt),
});
const number = (value: number): Tensor => ({ dims: [], data: Float32Array.of(value) });
const FLOAT = { to: 1 };

/** A value beside x that two nodes read. */
const other = (b: GraphBuilder, x: string) => b.conv(x, CHANNELS, CHANNELS, 1);
/** Of [1, 6, 8, 8] with its rows and columns halved. */
const halved = (b: GraphBuilder, x: string) => b.node('MaxPool', [x], { kernel_shape: [2, 2], strides: [2, 2] });
const part = (b: GraphBuilder, shape: string, from: number, to: number) =>
  b.node('Slice', [shape, integers(from), integers(to), integers(0)]);

const toLast = (b: GraphBuilder, x: string) => b.node('Transpose', [x], { perm: [0, 2, 3, 1] });
const toFirst = (b: GraphBuilder, x: string) => b.node('Transpose', [x], { perm: [0, 3, 1, 2] });
const normalized = (b: GraphBuilder, x: string) =>
  b.node('LayerNormalization', [x, b.values([CHANNELS], 0.5, 2), b.values([CHANNELS])], { axis: -1 });
/** x W + b for each row, by a matrix of the given sizes. */
const linear = (b: GraphBuilder, x: string, features: number, outputs: number) => {
  const size = Math.sqrt(3 / features);
  return b.node('Add', [b.node('MatMul', [x, b.values([features, outputs], -size, size)]), b.values([outputs])]);
};
const swish = (b: GraphBuilder, x: string) => b.node('Mul', [x, b.node('Sigmoid', [x])]);

/** The unit of ConvNeXt: its two products are of the channels of each pixel. */
const convNeXt = (b: GraphBuilder, x: string): string => {
  const spatial = b.conv(x, CHANNELS, CHANNELS, 3, { pad: 1, group: CHANNELS });
  const hidden = swish(b, linear(b, normalized(b, toLast(b, spatial)), CHANNELS, 4 * CHANNELS));
  const scaled = b.node('Mul', [linear(b, hidden, 4 * CHANNELS, CHANNELS), b.values([CHANNELS])]);
  return b.node('Add', [x, toFirst(b, scaled)]);
};

/** The unit of a transformer on the pixels as rows. */
const transformer = (b: GraphBuilder, x: string): string => {
  const area = SIDE * SIDE;
  const rows = b.node('Reshape', [toLast(b, x), integers(0, area, CHANNELS)]);
  const [query, key, value] = [0, 1, 2].map(() => linear(b, normalized(b, rows), CHANNELS, CHANNELS)) as [
    string,
    string,
    string,
  ];
  const products = b.node('MatMul', [query, b.node('Transpose', [key], { perm: [0, 2, 1] })]);
  const mixed = b.node('MatMul', [b.node('Softmax', [products], { axis: 2 }), value]);
  const sum = b.node('Add', [rows, linear(b, mixed, CHANNELS, CHANNELS)]);
  return toFirst(b, b.node('Reshape', [sum, integers(0, SIDE, SIDE, CHANNELS)]));
};

const CASES: Record<string, OperatorCase> = {
  'the unit of ConvNeXt': { step: convNeXt },
  'the unit of a transformer': { step: transformer },
  'a function of one value by a comparison': {
    step: (b, x) => b.node('Where', [b.node('Greater', [x, number(0.3)]), x, b.node('Mul', [x, number(0.2)])]),
  },
  'a comparison as a factor': {
    step: (b, x) => b.node('Mul', [x, b.node('Cast', [b.node('LessOrEqual', [x, number(0.4)])], FLOAT)]),
  },
  'the choice between two values': {
    step: (b, x) => {
      const y = other(b, x);
      return b.node('Where', [b.node('Less', [x, y]), x, y]);
    },
  },
  'a choice by what several comparisons say': {
    step: (b, x) => {
      const y = other(b, x);
      const inside = b.node('And', [
        b.node('GreaterOrEqual', [x, number(0.1)]),
        b.node('Not', [b.node('Greater', [x, number(0.8)])]),
      ]);
      return b.node('Where', [b.node('Or', [inside, b.node('Equal', [y, number(0)])]), y, number(0.5)]);
    },
  },
  'a number for each pixel by the place of its largest channel': {
    step: (b, x) => {
      const place = b.node('Cast', [b.node('ArgMax', [x], { axis: 1 })], FLOAT);
      return b.node('Add', [x, b.node('Mul', [place, number(0.01)])]);
    },
  },
  'a number for each channel by the place of its least row, without that axis': {
    step: (b, x) => {
      const rows = b.node('ReduceMean', [x], { axes: [3], keepdims: 0 });
      const place = b.node('Cast', [b.node('ArgMin', [rows], { axis: -1, keepdims: 0 })], FLOAT);
      const map = b.node('Reshape', [place, integers(0, CHANNELS, 1, 1)]);
      return b.node('Add', [x, b.node('Mul', [map, number(0.01)])]);
    },
  },
  'the parts of a PRelu, of one channel with the slopes of several': {
    step: (b, x) => {
      const one = b.conv(x, CHANNELS, 1, 3, { pad: 1 });
      const negative = b.node('Mul', [b.node('Min', [one, number(0)]), b.values([CHANNELS, 1, 1])]);
      return b.node('Add', [b.node('Relu', [one]), negative]);
    },
  },
  'an AveragePool without pads that counts them, and rounds up': {
    step: (b, x) => {
      const sizes = { kernel_shape: [3, 3], strides: [2, 2], pads: [0, 0, 0, 0] };
      return b.node('AveragePool', [x], { ...sizes, ceil_mode: 1, count_include_pad: 1 });
    },
  },
  'a Resize to the size of another map': {
    step: (b, x) => {
      const sizes = [part(b, b.node('Shape', [x]), 0, 2), part(b, b.node('Shape', [x]), 2, 4)];
      const target = b.node('Concat', sizes, { axis: 0 });
      return b.node('Resize', [halved(b, x), '', '', target], { mode: 'nearest', nearest_mode: 'floor' });
    },
  },
  'a Resize by numbers that are computed of the size': {
    step: (b, x) => {
      const area = b.node('Cast', [part(b, b.node('Shape', [x]), 2, 4)], FLOAT);
      const doubled = b.node('Cast', [b.node('Floor', [b.node('Mul', [area, number(2)])])], { to: 7 });
      const target = b.node('Concat', [part(b, b.node('Shape', [x]), 0, 2), doubled], { axis: 0 });
      return b.node('Resize', [x, '', '', target], { mode: 'linear' });
    },
  },
  'an Expand to the size of another map': {
    step: (b, x) => b.node('Mul', [x, b.node('Expand', [b.node('GlobalAveragePool', [x]), b.node('Shape', [x])])]),
  },
  'a Resize of chosen axes, by their sizes': {
    opset: 18,
    step: (b, x) => b.node('Resize', [x, '', '', integers(12, 5)], { mode: 'linear', axes: [2, -1] }),
  },
  'a Resize of one axis, by its scale': {
    opset: 18,
    step: (b, x) => b.node('Resize', [x, '', { dims: [1], data: Float32Array.of(2) }], { mode: 'nearest', axes: [3] }),
  },
  'a ConvTranspose that names the size of its output': {
    step: (b, x) =>
      b.node('ConvTranspose', [x, b.values([CHANNELS, CHANNELS, 3, 3])], { strides: [2, 2], output_shape: [16, 15] }),
  },
  'a ConvTranspose to as many pixels as its strides say': {
    step: (b, x) =>
      b.node('ConvTranspose', [x, b.values([CHANNELS, CHANNELS, 3, 4])], { strides: [2, 2], auto_pad: 'SAME_UPPER' }),
  },
  'the same with the odd pad first': {
    step: (b, x) =>
      b.node('ConvTranspose', [x, b.values([CHANNELS, CHANNELS, 3, 4])], { strides: [2, 2], auto_pad: 'SAME_LOWER' }),
  },
  'numbers of a Range, added to each row': {
    step: (b, x) => {
      const range = b.node('Range', [number(0), number(0.4), number(0.05)]);
      return b.node('Add', [x, b.node('Reshape', [range, integers(1, 1, SIDE, 1)])]);
    },
  },
  'half of the channels, by their number': {
    channels: CHANNELS / 2,
    step: (b, x) => {
      const channels = part(b, b.node('Shape', [x]), 1, 2);
      const half = b.node('Div', [channels, integers(2)]);
      return b.node('Slice', [x, integers(0), half, integers(1)]);
    },
  },
};

for (const [name, given] of Object.entries(CASES)) test(name, () => checkOperator(given));

/** The numbers of all outputs of one picture. */
async function inOrt(model: Uint8Array, picture: Pictures, { input, outputs }: Graph): Promise<number[]> {
  const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
  try {
    const results = await session.run({ [input.name]: inputOf(picture, input) });
    return outputs!.flatMap(({ name }) => Array.from(results[name]!.data as Float32Array, Number));
  } finally {
    await session.release();
  }
}

test('a product of rows and a constant matrix is a convolution, and of two computed values FP32', () => {
  const kinds = (step: OperatorCase['step']) => {
    const real: string[] = [];
    const read = parseOnnx(fileOf({ step }), 'model.onnx', { every: true });
    const { layers } = fold(read.graph, { onReal: ({ node }) => real.push(node.replace(/.*\((\w+)\)/, '$1')) });
    return { layers: layers.map(({ kind }) => kind).join(' '), real: real.sort().join(' ') };
  };
  // Between the two products is one function, the Swish.
  assert.deepEqual(kinds(convNeXt), {
    layers: 'conv pointwise conv node node node conv node conv add conv pool',
    real: 'LayerNormalization Transpose Transpose',
  });
  assert.equal(kinds(transformer).real.match(/MatMul/g)!.length, 2);
});

test('outputs that are no floats or have no batch become numbers of one picture', async () => {
  const b = new GraphBuilder({ height: SIDE, width: SIDE });
  const x = b.conv('data', 3, CHANNELS, 3, { pad: 1 });
  const rows = b.node('Reshape', [b.node('Transpose', [x], { perm: [2, 3, 0, 1] }), integers(-1, 2)]);
  const outputs = [
    { name: b.node('ArgMax', [x], { axis: 1, keepdims: 0 }), dims: [SIDE, SIDE], type: 'INT64' as const },
    { name: b.node('Greater', [x, number(0)]), dims: [CHANNELS, SIDE, SIDE], type: 'BOOL' as const },
    { name: b.node('Sigmoid', [rows]), dims: [(SIDE * SIDE * CHANNELS) / 2, 2], type: 'FLOAT' as const },
  ];
  const given: Graph = { ...b.graph(x), outputs: outputs.map(({ name, dims }) => ({ name, dims })) };
  const proto = decodeModel(encodeOnnx(given));
  proto.graph!.output = outputs.map(({ name, type }) => ({
    name,
    type: { tensorType: { elemType: dataTypeNumber(type) } },
  }));
  const file = encodeModel(proto);
  const picture = variedPictures(1, SIDE, SIDE);
  const expected = await inOrt(file, picture, given);

  const subject = 'model.onnx';
  const range = { mean: [127.5], std: [127.5] };
  const { graph } = withInputRange(parseOnnx(file, subject, { every: true }), { subject, given: range });
  assert.deepEqual(graph.outputs, given.outputs);
  const layers = fold(graph);
  await using fp32 = disposable(await LayerModel.open(layers, { computeThreads: 1 }));
  const found = await fp32.model.embed(picture);
  assert.equal(found.length, expected.length);
  found.forEach((value, i) => assert.ok(Math.abs(value - expected[i]!) < 1e-5, `${i}: ${value}, ${expected[i]}`));

  const written = modelFile(layers, plainScales(layers), { source: '', calibration: '', channelOrder: 'rgb' });
  const decoded = decodeInt7(withInputRange(parseOnnx(written, subject), { subject }).graph);
  assert.deepEqual(decoded.layers.outputs, given.outputs);
  await using int7 = disposable(await Int7Model.open(decoded.layers, decoded.scales, { computeThreads: 1 }));
  const ours = await int7.model.embed(picture);
  const theirs = await inOrt(written, picture, given);
  const same = theirs.filter((value, i) => Math.abs(value - ours[i]!) < 1e-3).length;
  assert.ok(same > 0.95 * theirs.length, `${same} of ${theirs.length} as in ONNX Runtime`);
});
