/**
 * Unusual files that must be read, with ONNX Runtime as the oracle, and broken files that must be refused with a
 * reason.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { fold } from '../quantize/fold.ts';
import { QUANTIZER_OPERATORS } from '../quantize/onnx-to-layers.ts';
import { decodeInt7, encodeInt7, isQuantized } from '../quantize/qdq.ts';
import { networkOfNodes, plainScales, smallFaceNet } from '../testing/graph-fixtures.ts';
import { checkWithOnnx, largestDifference, MOBILEFACENET, noise, runOrt } from '../testing/onnx-oracles.ts';
import { detector, withIf } from '../testing/tail-networks.ts';
import { describeModel } from './describe.ts';
import { withInputRange } from './input-range.ts';
import {
  type AttributeProto,
  AttributeType,
  type DataType,
  dataTypeNumber,
  encodeGraph,
  encodeModel,
  type ModelProto,
  type NodeProto,
  type TensorProto,
  type ValueInfoProto,
} from './proto.ts';
import { checkFinite, FORMAT_METADATA, INT7_FORMAT, parseOnnx, type ReadOptions, readOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

const bytesOf = (data: Float32Array | BigInt64Array | Int8Array | Int32Array | Float64Array | Uint16Array) =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
const tensor = (name: string, type: DataType, dims: number[], data: Partial<TensorProto>): TensorProto => ({
  name,
  dataType: dataTypeNumber(type),
  dims,
  ...data,
});
const floats = (name: string, dims: number[], values: number[] | Float32Array) =>
  tensor(name, 'FLOAT', dims, { rawData: bytesOf(Float32Array.from(values)) });
const longs = (name: string, values: number[]) => tensor(name, 'INT64', [values.length], { int64Data: values });

function attribute(
  name: string,
  value: number | number[] | string | TensorProto | { float: number } | { floats: number[] },
): AttributeProto {
  if (typeof value === 'number') return { name, type: AttributeType.INT, i: value };
  if (typeof value === 'string') return { name, type: AttributeType.STRING, s: Buffer.from(value) };
  if (Array.isArray(value)) return { name, type: AttributeType.INTS, ints: value };
  if ('float' in value) return { name, type: AttributeType.FLOAT, f: value.float };
  if ('floats' in value) return { name, type: AttributeType.FLOATS, floats: value.floats };
  return { name, type: AttributeType.TENSOR, t: value };
}

type Attributes = Record<string, Parameters<typeof attribute>[1]>;
const node = (
  opType: string,
  input: string[],
  output: string[],
  attributes: Attributes = {},
  more: Partial<NodeProto> = {},
): NodeProto => ({
  name: '',
  opType,
  input,
  output,
  attribute: Object.entries(attributes).map(([name, value]) => attribute(name, value)),
  ...more,
});

const value = (name: string, dims: (number | string)[], type: DataType = 'FLOAT'): ValueInfoProto => ({
  name,
  type: {
    tensorType: {
      elemType: dataTypeNumber(type),
      shape: { dim: dims.map((dim) => (typeof dim === 'number' ? { dimValue: dim } : { dimParam: dim })) },
    },
  },
});

interface File {
  nodes: NodeProto[];
  initializers?: TensorProto[];
  inputs?: ValueInfoProto[];
  outputs?: ValueInfoProto[];
  opset?: number;
  irVersion?: number;
  model?: Partial<ModelProto>;
  graph?: object;
}

function file({
  nodes,
  initializers = [],
  inputs = [value('x', ['N', 2, 5, 5])],
  outputs = [value('y', ['N', 'd'])],
  opset = 17,
  irVersion = 8,
  model,
  graph,
}: File): Uint8Array {
  return encodeModel({
    irVersion,
    producerName: 'test',
    producerVersion: '1',
    opsetImport: [{ domain: '', version: opset }],
    metadataProps: [],
    graph: { name: 'g', node: nodes, initializer: initializers, input: inputs, output: outputs, ...graph },
    ...model,
  });
}

const flag = (name: string, is: boolean) => tensor(name, 'BOOL', [], { rawData: Uint8Array.of(Number(is)) });

/**
 * An If whose first branch makes `a` by `then`.
 * @param more nodes of the other branch, else those of the first; constants of both; the other's result
 */
function choice(
  condition: string,
  output: string,
  then: NodeProto[],
  { other = then, constants = [], result = 'a' }: { other?: NodeProto[]; constants?: TensorProto[]; result?: string },
): NodeProto {
  const graph = (name: string, nodes: NodeProto[], made: string) => ({
    name,
    type: AttributeType.GRAPH,
    g: encodeGraph({ name, node: nodes, initializer: constants, input: [], output: [{ name: made }] }),
  });
  const isOutside = result !== 'a';
  const branches = [
    graph('then_branch', then, 'a'),
    // A branch without a node is no graph to ONNX Runtime.
    isOutside ? graph('else_branch', [node('Identity', [result], ['b'])], 'b') : graph('else_branch', other, 'a'),
  ];
  return { ...node('If', [condition], [output], {}, { name: `if ${output}` }), attribute: branches };
}

const weight = floats('w', [3, 2, 3, 3], noise(54));
const flat = node('Flatten', ['h'], ['y']);
const conv = node('Conv', ['x', 'w'], ['h'], { pads: [1, 1, 1, 1] });

/**
 * A small INT8 network as quantizers write it: uint8 activations around 128, int8 weights per output channel, int32
 * bias.
 */
const QDQ: File = {
  nodes: [
    node('QuantizeLinear', ['x', 'sx', 'zx'], ['xq']),
    node('DequantizeLinear', ['xq', 'sx', 'zx'], ['xd']),
    node('DequantizeLinear', ['wq', 'sw', 'zw'], ['wd'], { axis: 0 }),
    node('DequantizeLinear', ['bq', 'sb'], ['bd'], { axis: 0 }),
    node('Conv', ['xd', 'wd', 'bd'], ['h']),
    flat,
  ],
  initializers: [
    floats('sx', [], [1 / 63]),
    tensor('zx', 'UINT8', [], { rawData: Uint8Array.of(128) }),
    tensor('wq', 'INT8', [3, 2, 3, 3], { rawData: bytesOf(Int8Array.from(noise(54), (v) => Math.round(v * 63))) }),
    floats('sw', [3], [0.01, 0.02, 0.03]),
    tensor('zw', 'INT8', [3], { int32Data: [0, 0, 0] }),
    tensor('bq', 'INT32', [3], { rawData: bytesOf(Int32Array.of(100, -200, 300)) }),
    floats('sb', [3], [0.01 / 63, 0.02 / 63, 0.03 / 63]),
  ],
  opset: 13,
};

/** Forms of older operator sets and of exporters. Each file is run, and the file that is written after reading it. */
const AWKWARD: Record<string, File> = {
  'typed float data, weights listed as inputs, format version 3': {
    nodes: [conv, flat],
    initializers: [tensor('w', 'FLOAT', [3, 2, 3, 3], { floatData: [...noise(54)] })],
    inputs: [value('w', [3, 2, 3, 3]), value('x', [1, 2, 5, 5])],
    opset: 7,
    irVersion: 3,
  },
  'Clip with bounds as attributes': {
    nodes: [node('Clip', ['x'], ['h'], { min: { float: -0.25 }, max: { float: 0.5 } }), flat],
    opset: 9,
  },
  'Clip with an upper bound alone': { nodes: [node('Clip', ['x'], ['h'], { max: { float: 0.5 } }), flat], opset: 10 },
  'Clip with constants': {
    nodes: [node('Constant', [], ['hi'], { value_float: { float: 0.5 } }), node('Clip', ['x', '', 'hi'], ['h']), flat],
    opset: 13,
  },
  'Squeeze and Unsqueeze with axes as attributes': {
    nodes: [
      node('GlobalAveragePool', ['x'], ['a']),
      node('Squeeze', ['a'], ['b'], { axes: [2, 3] }),
      node('Unsqueeze', ['b'], ['h'], { axes: [2] }),
      flat,
    ],
    opset: 11,
  },
  'ReduceSum with axes as an attribute': {
    nodes: [node('ReduceSum', ['x'], ['y'], { axes: [2, 3], keepdims: 0 })],
    opset: 11,
  },
  'ReduceMean with axes as an input': {
    nodes: [node('ReduceMean', ['x', 'axes'], ['y'], { keepdims: 0 })],
    initializers: [longs('axes', [2, 3])],
    opset: 18,
  },
  'Pad and Slice with attributes': {
    nodes: [
      node('Pad', ['x'], ['a'], { pads: [0, 0, 1, 0, 0, 0, 2, 1], value: { float: 0.5 } }),
      node('Slice', ['a'], ['h'], { axes: [2], starts: [1], ends: [Number.MAX_SAFE_INTEGER] }),
      flat,
    ],
    opset: 9,
  },
  'Slice to the largest integer': {
    nodes: [node('Slice', ['x', 'from', 'to', 'axes'], ['h']), flat],
    initializers: [
      longs('from', [1]),
      tensor('to', 'INT64', [1], { rawData: bytesOf(BigInt64Array.of(2n ** 63n - 1n)) }),
      longs('axes', [3]),
    ],
  },
  'SAME_UPPER with an odd amount of padding': {
    nodes: [node('Conv', ['x', 'w2'], ['h'], { auto_pad: 'SAME_UPPER', strides: [2, 1] }), flat],
    initializers: [floats('w2', [3, 2, 2, 4], noise(48))],
  },
  'SAME_LOWER with an odd amount of padding': {
    nodes: [node('Conv', ['x', 'w2'], ['h'], { auto_pad: 'SAME_LOWER', strides: [2, 1] }), flat],
    initializers: [floats('w2', [3, 2, 2, 4], noise(48))],
  },
  'VALID padding of a pool': {
    nodes: [node('MaxPool', ['x'], ['h'], { auto_pad: 'VALID', kernel_shape: [2, 2], strides: [2, 2] }), flat],
  },
  'VALID padding of a transposed convolution': {
    nodes: [node('ConvTranspose', ['x', 'wt'], ['h'], { auto_pad: 'VALID', strides: [2, 2] }), flat],
    initializers: [floats('wt', [2, 3, 2, 2], noise(24))],
  },
  'Dropout with its ratio as an attribute, at the end': {
    nodes: [node('Flatten', ['x'], ['a']), node('Dropout', ['a'], ['y'], { ratio: { float: 0.4 } })],
    opset: 10,
  },
  'Dropout with training_mode false': {
    nodes: [node('Dropout', ['x', 'ratio', 'train'], ['h']), flat],
    initializers: [floats('ratio', [], [0.4]), tensor('train', 'BOOL', [], { rawData: Uint8Array.of(0) })],
    opset: 13,
  },
  'Identity of a weight and of the result': {
    nodes: [
      node('Identity', ['w'], ['v']),
      node('Conv', ['x', 'v'], ['h']),
      node('Flatten', ['h'], ['a']),
      node('Identity', ['a'], ['y']),
    ],
    initializers: [weight],
  },
  'a Reshape target computed from the batch': {
    nodes: [
      conv,
      node('Shape', ['h'], ['shape']),
      node('Constant', [], ['zero'], { value: tensor('', 'INT64', [], { int64Data: [0] }) }),
      node('Gather', ['shape', 'zero'], ['n'], { axis: 0 }),
      node('Unsqueeze', ['n'], ['n1'], { axes: [0] }),
      node('Constant', [], ['rest'], { value: longs('', [-1]) }),
      node('Concat', ['n1', 'rest'], ['target'], { axis: 0 }),
      node('Reshape', ['h', 'target'], ['y']),
    ],
    initializers: [weight],
    opset: 11,
  },
  'a Reshape target computed by arithmetic and Slice': {
    nodes: [
      node('Shape', ['x'], ['shape']),
      node('Slice', ['shape', 'i0', 'i1'], ['n']),
      node('Slice', ['shape', 'i1', 'i2'], ['c']),
      node('Mul', ['c', 'area'], ['length']),
      node('Concat', ['n', 'length'], ['target'], { axis: 0 }),
      node('Reshape', ['x', 'target'], ['y']),
    ],
    initializers: [longs('i0', [0]), longs('i1', [1]), longs('i2', [2]), longs('area', [25])],
  },
  'a batch of 1 baked into a Reshape': {
    nodes: [node('Reshape', ['x', 'target'], ['y'])],
    initializers: [longs('target', [1, -1])],
    inputs: [value('x', [1, 2, 5, 5])],
  },
  'no flattening at the end': {
    nodes: [node('GlobalAveragePool', ['x'], ['y'])],
    outputs: [value('y', ['N', 2, 1, 1])],
  },
  'Softmax over the last axis': {
    nodes: [node('Flatten', ['x'], ['a']), node('Softmax', ['a'], ['y'], { axis: 1 })],
    opset: 11,
  },
  'batch norm with spatial 0 and a statistic per channel': {
    nodes: [
      // ONNX Runtime folds the batch norm into the convolution; on its own it refuses it.
      node('Conv', ['x', 'w'], ['c']),
      node('BatchNormalization', ['c', 's', 's', 's', 's'], ['h'], { spatial: 0, momentum: { float: 0.9 } }),
      flat,
    ],
    initializers: [weight, floats('s', [3], [0.5, 2, 1])],
    opset: 8,
  },
  'half precision between casts': {
    nodes: [
      node('Cast', ['x'], ['half'], { to: dataTypeNumber('FLOAT16') }),
      node('Conv', ['half', 'w16'], ['c']),
      node('Cast', ['c'], ['h'], { to: dataTypeNumber('FLOAT') }),
      flat,
    ],
    initializers: [tensor('w16', 'FLOAT16', [1, 2, 1, 1], { int32Data: [0x3c00, 0] })],
  },
  'a slope of ConstantOfShape and an Unsqueeze with an attribute': {
    nodes: [
      node('ConstantOfShape', ['size'], ['quarter'], { value: floats('', [1], [0.25]) }),
      node('Unsqueeze', ['quarter'], ['slope'], { axes: [1, 2] }),
      node('PRelu', ['x', 'slope'], ['h']),
      flat,
    ],
    initializers: [longs('size', [2])],
    opset: 11,
  },
  'an INT8 network': QDQ,
  'an If of a constant, whose branch has a constant of its own, and the other what no command reads': {
    nodes: [
      choice(
        'yes',
        'h',
        [node('Constant', [], ['c'], { value: floats('', [1], [2]) }), node('Mul', ['x', 'c'], ['a'])],
        {
          other: [node('Erf', ['x'], ['e']), node('LRN', ['e'], ['a'], { size: 1 })],
        },
      ),
      flat,
    ],
    initializers: [flag('yes', true)],
  },
  'an If of a constant in another spelling, and a branch that reads a constant of the graph': {
    nodes: [
      node('Constant', [], ['no'], { value: flag('', false) }),
      node('Not', ['no'], ['yes']),
      node('Not', ['yes'], ['again']),
      choice('again', 'h', [node('Relu', ['x'], ['a'])], { other: [node('Conv', ['x', 'w'], ['a'])] }),
      flat,
    ],
    initializers: [weight],
  },
  'an If of shapes, as x.squeeze(1) leaves it': {
    nodes: [
      node('ReduceMean', ['x'], ['m'], { axes: [2, 3] }),
      node('Shape', ['m'], ['shape']),
      node('Gather', ['shape', 'i'], ['size'], { axis: 0 }),
      node('Equal', ['size', 'one'], ['is']),
      choice('is', 'h', [node('Squeeze', ['m'], ['a'], { axes: [2] })], { other: [node('Identity', ['m'], ['a'])] }),
      node('Flatten', ['h'], ['y']),
    ],
    initializers: [longs('i', [2]), longs('one', [1])],
    opset: 11,
  },
  'two If whose branches name their values and constants alike': {
    nodes: [
      choice('yes', 'b', [node('Mul', ['x', 'c'], ['a'])], { constants: [floats('c', [1], [3])] }),
      choice('yes', 'h', [node('Add', ['b', 'c'], ['a'])], { constants: [floats('c', [1], [0.5])] }),
      flat,
    ],
    initializers: [flag('yes', true)],
  },
  'an If that chooses a value from outside': {
    nodes: [node('Relu', ['x'], ['r']), choice('no', 'h', [node('Neg', ['x'], ['a'])], { result: 'r' }), flat],
    initializers: [flag('no', false)],
  },
};

for (const [name, description] of Object.entries(AWKWARD)) {
  test(`read: ${name}`, async () => {
    const original = file(description);
    const { graph } = parseOnnx(original, 'awkward.onnx');
    const written = encodeOnnx(graph);
    assert.deepEqual(parseOnnx(written, 'written.onnx').graph, graph, 'what is written is already normal');

    const pictures = noise(3 * 50);
    const first = pictures.slice(0, 50);
    const [expected] = await runOrt(original, first);
    const [one, three] = await runOrt(written, first, pictures);
    assert.deepEqual(one!.dims, [1, graph.output.dim]);
    assert.ok(largestDifference(one!.data, expected!.data) < 1e-6);
    assert.deepEqual(three!.dims, [3, graph.output.dim]);
    const [last] = await runOrt(original, pictures.slice(100));
    assert.ok(largestDifference(three!.data.slice(2 * graph.output.dim), last!.data) < 1e-5);
  });
}

test('onnx.checker accepts each file as it is written after reading', () => {
  checkWithOnnx(
    Object.fromEntries(
      Object.entries(AWKWARD).map(([name, description]) => [
        name,
        encodeOnnx(parseOnnx(file(description), 'awkward.onnx').graph),
      ]),
    ),
  );
});

test('batch norm whose other outputs are left out by empty names', () => {
  const attributes = { epsilon: { float: 1e-5 } };
  const nodes = [node('BatchNormalization', ['x', 's', 's', 's', 's'], ['h', '', '', '', ''], attributes), flat];
  const { graph } = parseOnnx(file({ nodes, initializers: [floats('s', [2], [0.5, 2])], opset: 9 }), 'norm.onnx');
  assert.deepEqual(graph.nodes[0]!.outputs, ['h']);
});

test('a Squeeze of all axes of size 1 does not remove the batch', async () => {
  const bytes = file({
    nodes: [node('GlobalAveragePool', ['x'], ['a']), node('Squeeze', ['a'], ['y'])],
    inputs: [value('x', [1, 2, 5, 5])],
    outputs: [value('y', [2])],
  });
  const { graph } = parseOnnx(bytes, 'squeeze.onnx');
  assert.equal(graph.output.dim, 2);
  const first = noise(50);
  const [[expected], [one]] = await Promise.all([runOrt(bytes, first), runOrt(encodeOnnx(graph), first)]);
  assert.deepEqual([expected!.dims, one!.dims], [[2], [1, 2]]);
  assert.equal(largestDifference(one!.data, expected!.data), 0);
});

test('a batch of 8 baked into input and Reshape becomes free', async () => {
  const bytes = file({
    nodes: [conv, node('Reshape', ['h', 'target'], ['y'])],
    initializers: [weight, longs('target', [8, -1])],
    inputs: [value('x', [8, 2, 5, 5])],
  });
  const { graph } = parseOnnx(bytes, 'eight.onnx');
  assert.deepEqual(graph.output, { name: 'y', dim: 75 });
  const pictures = noise(8 * 50);
  const [expected] = await runOrt(bytes, pictures);
  const [eight, one] = await runOrt(encodeOnnx(graph), pictures, pictures.slice(0, 50));
  assert.equal(largestDifference(eight!.data, expected!.data), 0);
  assert.deepEqual(one!.dims, [1, 75]);
});

test('integers of quantized models stay integers', () => {
  const { graph } = parseOnnx(file(QDQ), 'int8.onnx');
  const types = Object.fromEntries(
    Object.entries(graph.initializers).map(([name, { data }]) => [name, data.constructor.name]),
  );
  assert.deepEqual(types, {
    sx: 'Float32Array',
    zx: 'Uint8Array',
    wq: 'Int8Array',
    sw: 'Float32Array',
    zw: 'Int8Array',
    bq: 'Int32Array',
    sb: 'Float32Array',
  });
});

test('half and double precision become float32, raw or typed', () => {
  const halves = [0x3c00, 0xc000, 0x3555, 0x0001, 0x7bff];
  const bfloats = [0x3f80, 0xc000, 0x3eab, 0x0080, 0x7f7f];
  const expected = {
    half: [1, -2, 0.333251953125, 2 ** -24, 65504],
    bfloat: [1, -2, 0.333984375, 2 ** -126, 3.3895313892515355e38],
    double: [1, -2, Math.fround(1 / 3), Math.fround(1e-40), 1],
  };
  const doubles = [1, -2, 1 / 3, 1e-40, 1 + 1e-12];
  const cases: [TensorProto, number[]][] = [
    [tensor('w', 'FLOAT16', [5], { rawData: bytesOf(Uint16Array.from(halves)) }), expected.half],
    [tensor('w', 'FLOAT16', [5], { int32Data: halves }), expected.half],
    [tensor('w', 'BFLOAT16', [5], { rawData: bytesOf(Uint16Array.from(bfloats)) }), expected.bfloat],
    [tensor('w', 'BFLOAT16', [5], { int32Data: bfloats }), expected.bfloat],
    [tensor('w', 'DOUBLE', [5], { rawData: bytesOf(Float64Array.from(doubles)) }), expected.double],
    [tensor('w', 'DOUBLE', [5], { doubleData: doubles }), expected.double],
  ];
  for (const [w, values] of cases) {
    const { graph } = parseOnnx(
      file({ nodes: [node('Mul', ['x', 'w'], ['h']), flat], initializers: [w] }),
      'precision.onnx',
    );
    assert.deepEqual(graph.initializers.w, { dims: [5], data: Float32Array.from(values) });
  }
});

test('a model of half precision has a graph of float32', async () => {
  const nodes = [
    node('Cast', ['x'], ['x32'], { to: dataTypeNumber('FLOAT') }),
    node('Cast', ['x32'], ['h'], { to: dataTypeNumber('FLOAT16') }),
    flat,
  ];
  const { graph } = parseOnnx(
    file({ nodes, inputs: [value('x', ['N', 2, 5, 5], 'FLOAT16')], outputs: [value('y', ['N', 50], 'FLOAT16')] }),
    'half.onnx',
  );
  const first = noise(50);
  const [result] = await runOrt(encodeOnnx(graph), first);
  assert.equal(largestDifference(result!.data, first), 0);
});

test('nodes without a name, or with one that is taken, get a unique name, always the same', () => {
  const nodes = [
    node('Relu', ['x'], ['a']),
    node('Relu', ['a'], ['b'], {}, { name: 'same' }),
    node('Relu', ['b'], ['h'], {}, { name: 'same' }),
    flat,
  ];
  const names = (bytes: Uint8Array) => parseOnnx(bytes, 'names.onnx').graph.nodes.map(({ name }) => name);
  assert.deepEqual(names(file({ nodes })), ['Relu_0', 'same', 'same_2', 'Flatten_3']);
  assert.deepEqual(names(file({ nodes: [node('Relu', ['x'], ['h'], {}, { name: 'Flatten_1' }), flat] })), [
    'Flatten_1',
    'Flatten_1_2',
  ]);
  const many = Array.from({ length: 50_000 }, (_, i) =>
    node('Relu', [i ? `v${i - 1}` : 'x'], [i === 49_999 ? 'h' : `v${i}`], {}, { name: 'same' }),
  );
  assert.equal(new Set(names(file({ nodes: [...many, flat] }))).size, 50_001, 'in linear time');
});

test('nodes that the output does not depend on are left out', () => {
  const { graph } = parseOnnx(
    file({ nodes: [conv, node('Relu', ['h'], ['unused']), flat], initializers: [weight, floats('stray', [1], [NaN])] }),
    'dead.onnx',
  );
  assert.deepEqual(
    graph.nodes.map(({ op }) => op),
    ['Conv', 'Flatten'],
  );
  assert.deepEqual(Object.keys(graph.initializers), ['w']);
});

test('names of JavaScript’s own properties, such as constructor, can be names of values', () => {
  for (const name of ['__proto__', 'constructor']) {
    const { graph } = parseOnnx(
      file({
        nodes: [node('Conv', ['x', name], ['h'], {}, { name: 'constructor' }), flat],
        initializers: [{ ...weight, name }],
      }),
      'names.onnx',
    );
    assert.deepEqual(Object.keys(graph.initializers), [name]);
    assert.deepEqual(parseOnnx(encodeOnnx(graph), 'names.onnx').graph, graph);
  }
  const missing = file({ nodes: [node('Conv', ['x', 'constructor'], ['h']), flat] });
  assert.throws(() => parseOnnx(missing, 'names.onnx'), /reads "constructor", which no node before it makes/);
});

test('float attributes are read as the shortest decimal', () => {
  const { graph } = parseOnnx(
    file({ nodes: [node('LeakyRelu', ['x'], ['h'], { alpha: { float: 0.1 } }), flat] }),
    'alpha.onnx',
  );
  assert.equal(graph.nodes[0]!.attributes.alpha, 0.1);
});

test('metadata, producer and documentation are written and read', () => {
  const { graph } = parseOnnx(file({ nodes: [flat, node('Relu', ['x'], ['h'])].reverse() }), 'meta.onnx');
  const bytes = encodeOnnx(graph, {
    metadata: { 'facetrain.step': '12', note: 'Grüße' },
    producer: { name: 'facetrain', version: '0.1.0' },
  });
  const { metadata, producer, irVersion, opsets } = parseOnnx(bytes, 'meta.onnx');
  assert.deepEqual(
    { metadata, producer, irVersion, opsets },
    {
      metadata: { 'facetrain.step': '12', note: 'Grüße' },
      producer: { name: 'facetrain', version: '0.1.0' },
      irVersion: 8,
      opsets: { '': 17 },
    },
  );
  checkWithOnnx({ bytes });
});

test('large aligned weights are views of the file', () => {
  const graph: Graph = {
    input: { name: 'x', channels: 2, height: 5, width: 5 },
    output: { name: 'y', dim: 75 },
    nodes: [
      { name: 'c', op: 'Conv', inputs: ['x', 'w'], outputs: ['h'], attributes: { pads: [1, 1, 1, 1] } },
      { name: 'f', op: 'Flatten', inputs: ['h'], outputs: ['y'], attributes: { axis: 1 } },
    ],
    initializers: { w: { dims: [3, 2, 3, 3], data: noise(54) } },
  };
  const bytes = encodeOnnx(graph);
  // The offset of the weights is not chosen, so one of four copies of the file has them aligned.
  const views = [0, 1, 2, 3].filter((shift) => {
    const copy = new Uint8Array(bytes.length + shift).subarray(shift);
    copy.set(bytes);
    const read = parseOnnx(copy, 'view.onnx').graph;
    assert.deepEqual(read, graph);
    return read.initializers.w!.data.buffer === copy.buffer;
  });
  assert.equal(views.length, 1);
});

for (const [name, side, channels, dim] of [
  ['fr_eye', 24, 1, 2],
  ['fr_landmark', 64, 1, 136],
  ['fr_liveness', 128, 3, 3],
] as const) {
  test(`a pretrained model of another network and exporter: ${name}`, async () => {
    const original = await readFile(join(dirname(MOBILEFACENET), `${name}.onnx`));
    const { graph } = parseOnnx(original, name);
    assert.deepEqual([graph.input.channels, graph.input.height, graph.output.dim], [channels, side, dim]);
    assert.ok(
      !graph.nodes.some(({ op }) => ['Shape', 'Gather', 'Constant'].includes(op)),
      'its target is no longer computed',
    );
    const size = channels * side * side;
    const pictures = noise(3 * size);
    const [expected] = await runOrt(original, pictures.slice(2 * size));
    const [three] = await runOrt(encodeOnnx(graph), pictures);
    assert.ok(largestDifference(three!.data.slice(2 * dim), expected!.data) < 1e-5);
  });
}

test('a model of several outputs is refused with their names', async () => {
  const path = join(dirname(MOBILEFACENET), 'fr_pose.onnx');
  await assert.rejects(readOnnx(path), (error: FacetrainError) => {
    assert.ok(error.message.startsWith(`${path}: has 3 outputs: "output" [1, 66], "617" [1, 66], "618" [1, 66]; `));
    assert.match(error.message, /name the embedding: --output NAME, or model\.output/);
    return error.code === 'InvalidModel' && error.exitCode === 2;
  });
});

const graphAttribute: AttributeProto = { name: 'then_branch', type: AttributeType.GRAPH };
const withWeight = (tensorProto: TensorProto, nodes = [conv, flat]): Uint8Array =>
  file({ nodes, initializers: [tensorProto] });
const withInput = (info: ValueInfoProto): Uint8Array =>
  file({ nodes: [node('Flatten', ['x'], ['y'])], inputs: [info] });
const whole = file({ nodes: [conv, flat], initializers: [weight] });

const BROKEN: Record<string, [Uint8Array, RegExp]> = {
  'an empty file': [new Uint8Array(), /m\.onnx: is empty; an ONNX file/],
  'an error page': [Buffer.from('\n<!DOCTYPE html><html><body>404</body></html>'), /is a web page; .*download/],
  'a Git LFS pointer': [
    Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
    /Git LFS pointer; .*git lfs pull/,
  ],
  'a PyTorch checkpoint': [Buffer.from('PK\x03\x04 and so on', 'latin1'), /ZIP archive; .*torch\.onnx\.export/],
  'a file of gzip': [Buffer.from('\x1f\x8b\x08 and so on', 'latin1'), /is compressed by gzip; .*gunzip/],
  JSON: [Buffer.from('{"a": 1}'), /is text/],
  noise: [bytesOf(noise(1000)), /cannot be decoded|holds no ONNX graph/],
  'a file cut short': [
    whole.subarray(0, whole.length / 2),
    /cannot be decoded .*; an ONNX file; this one is cut short/,
  ],
  'no graph': [file({ nodes: [], model: { graph: null } }), /holds no ONNX graph/],
  'no operator set': [file({ nodes: [flat], model: { opsetImport: [] } }), /names no version/],
  'an old operator set': [file({ nodes: [flat], opset: 6 }), /uses operator set 6; operator sets 7 to 28/],
  'a future operator set': [file({ nodes: [flat], opset: 99 }), /uses operator set 99; /],
  functions: [file({ nodes: [flat], model: { functions: [Buffer.from('f')] } }), /has local functions/],
  'sparse weights': [file({ nodes: [flat], graph: { sparseInitializer: [Buffer.from('s')] } }), /sparse weights/],
  'two inputs': [
    file({ nodes: [flat], inputs: [value('a', ['N', 3, 5, 5]), value('b', ['N', 1])] }),
    /has 2 inputs: a, b; one input/,
  ],
  'no input': [file({ nodes: [flat], inputs: [] }), /has no input/],
  'two outputs': [
    file({ nodes: [flat], outputs: [value('y', ['N', 'd']), value('z', ['N', 1])] }),
    /has 2 outputs: "y" \[N, d\], "z" \[N, 1\]; "y" is probably the embedding; name .*--output NAME/,
  ],
  'an input that is no picture': [withInput(value('x', ['N', 3])), /input "x" has shape \[N, 3\]; a picture/],
  'a picture of free size': [
    withInput(value('x', ['N', 3, 'H', 'W'])),
    /input "x" has shape \[N, 3, H, W\]; .*fixed size/,
  ],
  'a picture of signed bytes': [withInput(value('x', ['N', 3, 112, 112], 'INT8')), /element type INT8; .*uint8/],
  'an output that is no embedding': [
    file({ nodes: [node('ReduceMean', ['x'], ['y'], { keepdims: 0, axes: [1, 2, 3] })] }),
    /output "y" has shape \[N\]; an embedding \[N, d\]/,
  ],
  'a feature map for an output': [
    withWeight(weight, [node('Conv', ['x', 'w'], ['y'])]),
    /output "y" has shape \[N, 3, 3, 3\]; an embedding/,
  ],
  'an output of unknown length': [file({ nodes: [node('Mystery', ['x'], ['y'])] }), /output "y" has shape \[N, \?\]/],
  'NaN in a weight': [
    withWeight(floats('w', [3, 2, 3, 3], noise(54).with(17, NaN))),
    /tensor "w" holds NaN at index 17; finite weights/,
  ],
  'infinity in a weight': [
    withWeight(floats('w', [3, 2, 3, 3], noise(54).with(3, -Infinity))),
    /tensor "w" holds -Infinity at index 3/,
  ],
  'data in another file': [
    withWeight({
      ...weight,
      rawData: new Uint8Array(),
      dataLocation: 1,
      externalData: [{ key: 'location', value: 'weights.bin' }],
    }),
    /tensor "w" keeps its data in another file \(weights\.bin\); save/,
  ],
  'a string weight': [withWeight(tensor('w', 'STRING', [1], {})), /tensor "w" has element type STRING; one of FLOAT,/],
  'an unknown element type': [withWeight({ ...weight, dataType: 77 }), /tensor "w" has element type 77/],
  'too few bytes': [
    withWeight({ ...weight, dims: [3, 2, 3, 4] }),
    /tensor "w" holds 216 bytes; 72 elements of FLOAT for dims \[3, 2, 3, 4\] are 288/,
  ],
  'too few typed values': [
    withWeight(tensor('w', 'FLOAT', [4], { floatData: [1] })),
    /tensor "w" holds 1 element; 4 elements of FLOAT/,
  ],
  'negative dims': [withWeight({ ...weight, dims: [-3, -18] }), /tensor "w" has dims \[-3, -18\]/],
  'nodes out of order': [
    file({ nodes: [flat, conv], initializers: [weight] }),
    /node "Flatten_0" \(Flatten\) reads "h", which no node before it makes/,
  ],
  'a value made twice': [file({ nodes: [conv, conv, flat], initializers: [weight] }), /makes "h" a second time/],
  'an output that nothing makes': [file({ nodes: [node('Flatten', ['x'], ['z'])] }), /no node makes the output "y"/],
  'the picture as the output': [file({ nodes: [node('Identity', ['x'], ['y'])] }), /output "y" is the picture itself/],
  'a node without an operator': [file({ nodes: [node('', ['x'], ['y'])] }), /no operator/],
  'batch norm in training': [
    file({
      nodes: [node('BatchNormalization', ['x', 's', 's', 's', 's'], ['h'], { training_mode: 1 }), flat],
      initializers: [floats('s', [2], [1, 1])],
    }),
    /in training mode; .*model\.eval/,
  ],
  'dropout in training': [
    file({
      nodes: [node('Dropout', ['x', '', 'train'], ['h']), flat],
      initializers: [tensor('train', 'BOOL', [], { rawData: Uint8Array.of(1) })],
    }),
    /\(Dropout\) is in training mode/,
  ],
};

const UNSUPPORTED: Record<string, [Uint8Array, RegExp]> = {
  'a Resize that takes means': [
    file({
      opset: 18,
      nodes: [node('Resize', ['x', '', 'scales'], ['h'], { antialias: 1, mode: 'linear' }), flat],
      initializers: [floats('scales', [4], [1, 1, 0.5, 0.5])],
    }),
    /\(Resize\) takes means over what it makes smaller \(antialias = 1\); antialias = 0/,
  ],
  'a Resize that keeps the aspect ratio': [
    file({
      opset: 18,
      nodes: [node('Resize', ['x', '', '', 'sizes'], ['h'], { keep_aspect_ratio_policy: 'not_larger' }), flat],
      initializers: [longs('sizes', [1, 2, 3, 4])],
    }),
    /\(Resize\) has keep_aspect_ratio_policy not_larger; stretch/,
  ],
  'another domain': [
    file({
      nodes: [node('FusedConv', ['x', 'w'], ['y'], {}, { name: 'n', domain: 'com.microsoft' })],
      initializers: [weight],
    }),
    /node "n" is FusedConv of domain com\.microsoft/,
  ],
  'control flow': [
    file({ nodes: [{ ...node('If', ['x'], ['y'], {}, { name: 'n' }), attribute: [graphAttribute] }] }),
    /node "n" \(If\): operator If is not supported; one of Add, /,
  ],
  'an If that depends on the picture': [
    file({
      nodes: [
        node('ReduceMax', ['x'], ['most'], { keepdims: 0 }),
        node('Greater', ['most', 'zero'], ['is']),
        choice('is', 'h', [node('Relu', ['x'], ['a'])], {}),
        flat,
      ],
      initializers: [floats('zero', [], [0])],
    }),
    /node "if h" \(If\) has a condition that is not known before a picture is; a constant condition/,
  ],
  'an If in the chosen branch of another': [
    file({
      nodes: [choice('yes', 'h', [choice('yes', 'a', [node('Relu', ['x'], ['a'])], {})], {}), flat],
      initializers: [flag('yes', true)],
    }),
    /node "if a" \(If\): operator If is not supported/,
  ],
  'an If whose branch reads what nobody makes': [
    file({
      nodes: [choice('yes', 'h', [node('Relu', ['lost'], ['a'])], {}), flat],
      initializers: [flag('yes', true)],
    }),
    /node "if h" \(If\) has a branch that reads "lost", which no node before it makes/,
  ],
  'a constant string': [
    file({ nodes: [node('Constant', [], ['c'], { value_string: 'a' }, { name: 'n' }), flat] }),
    /node "n" is a Constant with attribute value_string/,
  ],
  'a Reshape that depends on the picture': [
    file({
      nodes: [
        node('Cast', ['x'], ['target'], { to: dataTypeNumber('INT64') }),
        node('Reshape', ['x', 'target'], ['y'], {}, { name: 'n' }),
      ],
    }),
    /node "n" \(Reshape\) computes its target/,
  ],
  'an old Softmax over several axes': [
    file({ nodes: [node('Softmax', ['x'], ['h'], { axis: 1 }, { name: 'n' }), flat], opset: 11 }),
    /node "n" \(Softmax\) normalizes over axis 1 and all after it/,
  ],
  'quantization in blocks': [
    file({
      ...QDQ,
      nodes: [node('DequantizeLinear', ['wq', 'sw'], ['y'], { block_size: 2 }, { name: 'n' })],
      opset: 21,
    }),
    /node "n" \(DequantizeLinear\) quantizes in blocks/,
  ],
  'batch norm per position': [
    file({
      nodes: [node('BatchNormalization', ['x', 's', 's', 's', 's'], ['h'], { spatial: 0 }, { name: 'n' }), flat],
      initializers: [floats('s', [2, 5, 5], noise(50))],
      opset: 7,
    }),
    /node "n" \(BatchNormalization\) normalizes every position/,
  ],
};

for (const [code, table] of [
  ['InvalidModel', BROKEN],
  ['UnsupportedOperator', UNSUPPORTED],
] as const) {
  for (const [name, [bytes, message]] of Object.entries(table)) {
    test(`refuse: ${name}`, () => {
      assert.throws(
        () => parseOnnx(bytes, 'm.onnx'),
        (error: FacetrainError) => {
          assert.ok(error instanceof FacetrainError, String(error));
          assert.match(error.message, message);
          assert.deepEqual([error.code, error.subject, error.exitCode], [code, 'm.onnx', 2]);
          return true;
        },
      );
    });
  }
}

test('refuse: a missing file', async () => {
  await assert.rejects(
    readOnnx('/nowhere/m.onnx'),
    (error: FacetrainError) =>
      error.code === 'StorageFailed' && /^\/nowhere\/m\.onnx: no such file/.test(error.message),
  );
});

test('bounds of Clip may be infinite, weights of other nodes not', () => {
  const graph = (op: string): Graph => ({
    input: { name: 'x', channels: 1, height: 1, width: 1 },
    output: { name: 'y', dim: 1 },
    nodes: [{ name: 'n', op, inputs: ['x', 'bound'], outputs: ['y'], attributes: {} }],
    initializers: { bound: { dims: [], data: Float32Array.of(-Infinity) } },
  });
  checkFinite(graph('Clip'), 'm.onnx');
  assert.throws(() => checkFinite(graph('Add'), 'm.onnx'), /tensor "bound" holds -Infinity/);
});

const int7File = (graph: Graph, metadata: Record<string, string> = {}) => {
  const layers = fold(graph);
  return encodeOnnx(encodeInt7(layers, plainScales(layers)), {
    metadata: { [FORMAT_METADATA]: INT7_FORMAT, ...metadata },
  });
};

test('an INT7 file of a newer format is refused in the words of the C library', () => {
  for (const version of ['1', '01', '2', undefined])
    parseOnnx(int7File(smallFaceNet(), version === undefined ? {} : { 'facetrain.version': version }), 'm.int7.onnx');
  const refused: Record<string, string> = {
    3: 'm.int7.onnx: of version 3 of the format; at most 2, so a newer Facetrain is needed',
    0:
      'm.int7.onnx: has metadata facetrain.version that is no number from 1 on; ' +
      'a model.int7.onnx of Facetrain is wanted',
    '-1':
      'm.int7.onnx: has metadata facetrain.version that is no number from 1 on; ' +
      'a model.int7.onnx of Facetrain is wanted',
  };
  for (const [version, message] of Object.entries(refused))
    assert.throws(() => parseOnnx(int7File(smallFaceNet(), { 'facetrain.version': version }), 'm.int7.onnx'), {
      name: 'FacetrainError',
      code: 'InvalidArtifact',
      message,
    });
});

test('a damaged file is refused, or read as a graph that can be written', () => {
  const sound = [
    file(QDQ),
    file(AWKWARD['a Reshape target computed from the batch']!),
    file(AWKWARD['Pad and Slice with attributes']!),
    file(AWKWARD['an If of shapes, as x.squeeze(1) leaves it']!),
    file({
      nodes: [
        node('Cast', ['x'], ['f'], { to: 1 }),
        node('Transpose', ['f'], ['t'], { perm: [0, 3, 1, 2] }),
        node('Flatten', ['t'], ['y']),
      ],
      inputs: [value('x', ['N', 6, 5, 3], 'UINT8')],
    }),
    int7File(smallFaceNet()),
    int7File(networkOfNodes()),
  ];
  const withTail = [detector({ opset: 11 }), withIf()];
  const computes = new Set(QUANTIZER_OPERATORS);
  let state = 12345;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const outcomes = { refused: 0, read: 0 };
  const feed = (bytes: Uint8Array, options: ReadOptions) => {
    try {
      const model = parseOnnx(bytes, 'damaged.onnx', options);
      const { graph, range } = withInputRange(model, { subject: 'damaged.onnx' });
      describeModel(model, range);
      encodeOnnx(graph, { tail: model.tail?.file });
      if (isQuantized(graph)) decodeInt7(graph);
      outcomes.read++;
    } catch (error) {
      if (!(error instanceof FacetrainError)) throw error;
      outcomes.refused++;
    }
  };
  for (const bytes of [...sound, ...withTail]) {
    const options = withTail.includes(bytes) ? { every: true, computes } : {};
    for (let length = 0; length < bytes.length; length += 1 + (bytes.length >> 10))
      feed(bytes.subarray(0, length), options);
    for (let i = 0; i < 1500; i++) {
      const damaged = bytes.slice();
      for (let flips = 1 + random(4); flips > 0; flips--) damaged[random(damaged.length)] = random(256);
      feed(damaged, options);
    }
  }
  assert.ok(outcomes.refused > 300 && outcomes.read > 300, JSON.stringify(outcomes));
});
