/** Ranges of inputs, by ONNX Runtime on what each file expects. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FacetrainError, rangeText } from '@facetrain/api';
import { type Graph, type InputRange, Int7Model, Model, searchScales, type Tensor } from '@facetrain/native';
import { fold } from '../quantize/fold.ts';
import { decodeInt7, encodeInt7 } from '../quantize/qdq.ts';
import { GraphBuilder, QUICK_SEARCH } from '../testing/graph-fixtures.ts';
import { meanCosine, noise, runOrt, variedPictures } from '../testing/onnx-oracles.ts';
import { RANGE_METADATA, withInputRange } from './input-range.ts';
import { parseOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

const EDGE = 12;
const PICTURES = 6;
/** Numbers of an embedding. */
const DIM = 16;
const pixels = variedPictures(PICTURES, EDGE, EDGE);

const all = (...data: number[]): Tensor<Float32Array> => ({ dims: [], data: Float32Array.from(data) });
const each = (...data: number[]): Tensor<Float32Array> => ({ dims: [3, 1, 1], data: Float32Array.from(data) });
const each4 = (...data: number[]): Tensor<Float32Array> => ({ dims: [1, 3, 1, 1], data: Float32Array.from(data) });
const list = (...data: number[]): Tensor<Float32Array> => ({ dims: [data.length], data: Float32Array.from(data) });

const RAW: InputRange = { mean: [0, 0, 0], std: [1, 1, 1] };
const UNIT: InputRange = { mean: [0, 0, 0], std: [255, 255, 255] };
const SIGNED: InputRange = { mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5] };

/** The nodes in front of the first convolution, and what such a file reads. */
const heads: Record<string, { add: (b: GraphBuilder, x: string) => string; reads: InputRange }> = {
  nothing: { add: (_, x) => x, reads: SIGNED },
  'x - 127.5, · 1/127.5 (MXNet)': {
    add: (b, x) => b.node('Mul', [b.node('Sub', [x, all(127.5)]), all(1 / 127.5)]),
    reads: RAW,
  },
  'x - 127.5, · 0.0078125': {
    add: (b, x) => b.node('Mul', [b.node('Sub', [x, list(127.5)]), list(0.0078125)]),
    reads: RAW,
  },
  'x / 128 - 1': { add: (b, x) => b.node('Sub', [b.node('Div', [x, all(128)]), all(1)]), reads: RAW },
  '(x / 255 - mean) / std, per channel': {
    add: (b, x) =>
      b.node('Div', [
        b.node('Sub', [b.node('Div', [x, all(255)]), each(0.485, 0.456, 0.406)]),
        each4(0.229, 0.224, 0.225),
      ]),
    reads: RAW,
  },
  '(x - mean) / std of [0, 1], per channel': {
    add: (b, x) =>
      b.node('Mul', [b.node('Add', [x, each4(-0.485, -0.456, -0.406)]), each(1 / 0.229, 1 / 0.224, 1 / 0.225)]),
    reads: UNIT,
  },
  '(x - 0.5) / 0.5': { add: (b, x) => b.node('Div', [b.node('Sub', [x, all(0.5)]), all(0.5)]), reads: UNIT },
  '2x - 1': { add: (b, x) => b.node('Sub', [b.node('Mul', [all(2), x]), all(1)]), reads: UNIT },
  'x / 255': { add: (b, x) => b.node('Mul', [x, all(1 / 255)]), reads: RAW },
  'x - mean, per channel (Caffe)': { add: (b, x) => b.node('Sub', [x, each(104, 117, 123)]), reads: RAW },
  '1 - x / 127.5, a negative': { add: (b, x) => b.node('Sub', [all(1), b.node('Div', [x, all(127.5)])]), reads: RAW },
  'a batch norm of bytes': {
    add: (b, x) =>
      b.node('BatchNormalization', [
        x,
        list(1, 1.1, 0.9),
        list(0, 0.1, 0),
        list(120, 130, 110),
        list(4900, 5000, 4800),
      ]),
    reads: RAW,
  },
  'a batch norm of -1..1': {
    add: (b, x) =>
      b.node('BatchNormalization', [x, list(1, 1.1, 0.9), list(0, 0.1, 0), list(0, 0.1, -0.1), list(0.3, 0.3, 0.3)]),
    reads: SIGNED,
  },
};

function network(add: (b: GraphBuilder, x: string) => string): Graph {
  const b = new GraphBuilder({ height: EDGE, width: EDGE });
  const x = b.prelu(b.conv(add(b, 'data'), 3, 8, 3, { pad: 1, stride: 2 }), 8);
  return b.graph(b.gemm(b.flatten(b.conv(x, 8, 8, 3, { pad: 1 })), 8 * (EDGE / 2) ** 2, DIM));
}

/** What a file of this range reads, [N, 3, H, W]. */
function inputs({ mean, std }: InputRange): Float32Array {
  const area = EDGE * EDGE;
  return Float32Array.from({ length: PICTURES * 3 * area }, (_, i) => {
    const [picture, c, at] = [Math.floor(i / (3 * area)), Math.floor(i / area) % 3, i % area];
    return (pixels.data[(picture * area + at) * 3 + c]! - mean[c]!) / std[c]!;
  });
}

describe('the range of a file that begins with', () => {
  for (const [name, { add, reads }] of Object.entries(heads))
    test(name, async () => {
      const file = encodeOnnx(network(add));
      const { graph, range } = withInputRange(parseOnnx(file, 'a.onnx'), { subject: 'a.onnx' });
      assert.deepEqual({ mean: range.mean, std: range.std }, reads);
      assert.equal(range.source, name === 'nothing' ? 'default' : 'head');
      assert.equal(graph.nodes[0]!.op, 'Conv');

      const [expected] = await runOrt(file, inputs(reads));
      const model = await Model.open(graph, { computeThreads: 1 });
      const embeddings = await model.embed(pixels);
      await model.close();
      embeddings.forEach((value, i) => assert.ok(Math.abs(value - expected!.data[i]!) < 1e-4, `${i}`));

      // The INT7 model reads what the FP32 file reads, in ONNX Runtime and in our runtime.
      const found = await searchScales(fold(graph), pixels, QUICK_SEARCH);
      const int7File = encodeOnnx(encodeInt7(found.graph, found.scales));
      const [theirs] = await runOrt(int7File, inputs(reads));
      assert.ok(meanCosine(theirs!.data, expected!.data, DIM) > 0.99, 'INT7 in ONNX Runtime');
      const again = withInputRange(parseOnnx(int7File, 'int7.onnx'), { subject: 'int7.onnx' });
      assert.deepEqual(again.range, { ...reads, source: 'metadata' });
      const { layers, scales } = decodeInt7(again.graph);
      const int7 = await Int7Model.open(layers, scales, { computeThreads: 1 });
      const ours = await int7.embed(pixels);
      await int7.close();
      assert.ok(meanCosine(ours, expected!.data, DIM) > 0.99, 'INT7 in our runtime');
      assert.ok(meanCosine(ours, theirs!.data, DIM) > 0.999, 'INT7 in both');
    });
});

test('what the user says comes before the metadata, and that before the head', () => {
  const graph = network(heads['x - 127.5, · 1/127.5 (MXNet)']!.add);
  const metadata = { [RANGE_METADATA.mean]: '[1,2,3]', [RANGE_METADATA.std]: '[4,5,6]' };
  const model = parseOnnx(encodeOnnx(graph, { metadata }), 'a.onnx');
  const range = (given: InputRange | null) => withInputRange(model, { given, subject: 'a.onnx' }).range;
  assert.deepEqual(range({ mean: [7], std: [8] }), { mean: [7, 7, 7], std: [8, 8, 8], source: 'given' });
  assert.deepEqual(range(null), { mean: [1, 2, 3], std: [4, 5, 6], source: 'metadata' });
  model.metadata[RANGE_METADATA.std] = '[4,5,0]';
  assert.equal(range(null).source, 'head');
  assert.throws(() => range({ mean: [1, 2], std: [1] }), /mean of the input of a\.onnx: 2 numbers; .*3 channels/);
});

test('a head that fits several ranges is refused, and read when the range is given', () => {
  // About zero for -1..1, and for 0..1 after a shift of a half.
  const model = parseOnnx(encodeOnnx(network((b, x) => b.node('Sub', [x, all(0.3)]))), 'a.onnx');
  assert.throws(
    () => withInputRange(model, { subject: 'a.onnx' }),
    (error) => error instanceof FacetrainError && error.code === 'InvalidModel' && /--input-range/.test(error.message),
  );
  assert.equal(withInputRange(model, { given: UNIT, subject: 'a.onnx' }).range.source, 'given');
});

test('a training keeps a batch norm at the head, and a file is written as it was read', async () => {
  const file = encodeOnnx(network(heads['a batch norm of bytes']!.add));
  const { graph, range } = withInputRange(parseOnnx(file, 'a.onnx'), { keepNorms: true, subject: 'a.onnx' });
  assert.equal(graph.nodes[0]!.op, 'BatchNormalization');
  assert.deepEqual({ mean: range.mean, std: range.std }, RAW);
  for (const { add, reads } of Object.values(heads)) {
    const original = encodeOnnx(network(add));
    const read = withInputRange(parseOnnx(original, 'a.onnx'), { keepNorms: true, subject: 'a.onnx' });
    const [expected] = await runOrt(original, inputs(reads));
    const [found] = await runOrt(encodeOnnx(read.graph), inputs(reads));
    found!.data.forEach((value, i) => assert.ok(Math.abs(value - expected!.data[i]!) < 1e-4));
  }
});

test('maps that are not an affine map for each channel, or whose input others read, stay in the graph', () => {
  for (const add of [
    (b: GraphBuilder, x: string) => b.node('Mul', [x, x]),
    (b: GraphBuilder, x: string) => b.node('Mul', [x, each(1, 0, 1)]),
    (b: GraphBuilder, x: string) => b.node('Add', [x, { dims: [1, 1, EDGE, EDGE], data: noise(EDGE * EDGE) }]),
    (b: GraphBuilder, x: string) => b.node('Add', [b.node('Mul', [x, all(2)]), x]),
  ]) {
    const model = parseOnnx(encodeOnnx(network(add)), 'a.onnx');
    const { graph, range } = withInputRange(model, { subject: 'a.onnx' });
    assert.equal(graph.nodes.length, model.graph.nodes.length);
    assert.equal(range.source, 'default');
  }
});

test('a range is shown by its name, or by its numbers', () => {
  assert.deepEqual([RAW, UNIT, SIGNED].map(rangeText), ['0..255', '0..1', '-1..1']);
  assert.equal(
    rangeText({ mean: [123.7, 116.3, 103.5], std: [58, 58, 58] }),
    '(pixel − mean) / std with mean 123.7, 116.3, 103.5 and std 58',
  );
});
