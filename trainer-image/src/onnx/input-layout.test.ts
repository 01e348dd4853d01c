/** Files that read [N, H, W, C] or bytes, by ONNX Runtime on what each file reads. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FacetrainError, INPUT_RANGES } from '@facetrain/api';
import { Int7FileModel, Int7Model, Model, searchScales, type Tensor } from '@facetrain/native';
import * as ort from 'onnxruntime-node';
import { modelFile } from '../quantize/artifact-files.ts';
import { fold } from '../quantize/fold.ts';
import { decodeInt7, encodeInt7 } from '../quantize/qdq.ts';
import { GraphBuilder, QUICK_SEARCH } from '../testing/graph-fixtures.ts';
import { meanCosine, runOrt, variedPictures } from '../testing/onnx-oracles.ts';
import { describeModel } from './describe.ts';
import { LAYOUT_METADATA } from './input-layout.ts';
import { withInputRange } from './input-range.ts';
import { CANONICAL_OPERATORS } from './operators.ts';
import { dataTypeNumber, decodeModel, encodeModel } from './proto.ts';
import { parseOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

const [HEIGHT, WIDTH] = [12, 10];
const AREA = HEIGHT * WIDTH;
const COUNT = 6;
/** Numbers of an embedding. */
const DIM = 16;
const pixels = variedPictures(COUNT, HEIGHT, WIDTH);

type Layout = 'NCHW' | 'NHWC';
type Step = (b: GraphBuilder, x: string) => string;
interface Spelling {
  /** From the file's input to the first convolution's, [N, 3, H, W]. */
  head: Step;
  layout?: Layout;
  bytes?: boolean;
  reads?: keyof typeof INPUT_RANGES;
  /** Between two convolutions of 8 channels. */
  middle?: Step;
  /** From the last map [N, 8, H/2, W/2] to the embedding. */
  end?: Step;
  /** Whether the first convolution pads; if not, the head does. */
  pads?: boolean;
}

const floats = (dims: number[], ...data: number[]): Tensor => ({ dims, data: Float32Array.from(data) });
const longs = (...data: number[]): Tensor => ({ dims: [data.length], data: BigInt64Array.from(data, BigInt) });
const first: Step = (b, x) => b.node('Transpose', [x], { perm: [0, 3, 1, 2] });
const last: Step = (b, x) => b.node('Transpose', [x], { perm: [0, 2, 3, 1] });
const cast = (b: GraphBuilder, x: string, to: 'FLOAT' | 'INT32' = 'FLOAT') =>
  b.node('Cast', [x], { to: dataTypeNumber(to) });
const FEATURES = (8 * AREA) / 4;

const spellings: Record<string, Spelling> = {
  'a Transpose alone': { head: first },
  'x - 127.5, · 1/128, Transpose': {
    head: (b, x) => first(b, b.node('Mul', [b.node('Sub', [x, floats([], 127.5)]), floats([1], 1 / 128)])),
    reads: '0..255',
  },
  'x · 1/127.5 + -1, Transpose (Keras’ Rescaling)': {
    head: (b, x) => first(b, b.node('Add', [b.node('Mul', [x, floats([], 1 / 127.5)]), floats([], -1)])),
    reads: '0..255',
  },
  '(x - mean) / std, per channel, Transpose': {
    head: (b, x) =>
      first(
        b,
        b.node('Div', [b.node('Sub', [x, floats([3], 123.7, 116.3, 103.5)]), floats([1, 1, 1, 3], 58.4, 57.1, 57.4)]),
      ),
    reads: '0..255',
  },
  'Transpose, (x / 255 - mean) / std': {
    head: (b, x) =>
      b.node('Div', [
        b.node('Sub', [b.node('Div', [first(b, x), floats([], 255)]), floats([3, 1, 1], 0.485, 0.456, 0.406)]),
        floats([1, 3, 1, 1], 0.229, 0.224, 0.225),
      ]),
    reads: '0..255',
  },
  'bytes: Cast, Transpose, · 1/255': {
    head: (b, x) => b.node('Mul', [first(b, cast(b, x)), floats([], 1 / 255)]),
    bytes: true,
    reads: '0..255',
  },
  'bytes: Transpose, Cast, x - mean (Caffe)': {
    head: (b, x) => b.node('Sub', [cast(b, first(b, x)), floats([1, 3, 1, 1], 104, 117, 123)]),
    bytes: true,
    reads: '0..255',
  },
  'bytes: Cast to int32, Cast, 2x/255 - 1, Transpose': {
    head: (b, x) =>
      first(b, b.node('Sub', [b.node('Div', [cast(b, cast(b, x, 'INT32')), floats([], 127.5)]), floats([3], 1, 1, 1)])),
    bytes: true,
    reads: '0..255',
  },
  'bytes, channels first': {
    head: (b, x) => b.node('Sub', [b.node('Mul', [cast(b, x), floats([], 1 / 127.5)]), floats([], 1)]),
    layout: 'NCHW',
    bytes: true,
    reads: '0..255',
  },
  'colors in reverse by Slice, mean, Transpose (Keras’ preprocess_input)': {
    head: (b, x) =>
      first(
        b,
        b.node('Sub', [b.node('Slice', [x, longs(-1), longs(-9), longs(3), longs(-1)]), floats([3], 104, 117, 123)]),
      ),
    reads: '0..255',
  },
  'colors in reverse by Gather, Transpose': {
    head: (b, x) => first(b, b.node('Gather', [x, longs(2, 1, 0)], { axis: 3 })),
  },
  'Transpose, colors in reverse by Gather': {
    head: (b, x) => b.node('Gather', [first(b, x), longs(2, 1, 0)], { axis: 1 }),
  },
  'colors in reverse by Split, Concat, Transpose': {
    head: (b, x) => {
      const parts = b.nodeOfMany('Split', [x], 3, { axis: 3 });
      return first(b, b.node('Concat', parts.toReversed(), { axis: 3 }));
    },
  },
  'colors in reverse by Gather, Unsqueeze, Concat, Transpose': {
    head: (b, x) => {
      const planes = [2, 1, 0].map((i) => {
        const plane = b.node('Gather', [x, { dims: [], data: BigInt64Array.of(BigInt(i)) }], { axis: 3 });
        return b.node('Unsqueeze', [plane, longs(3)]);
      });
      return first(b, b.node('Concat', planes, { axis: 3 }));
    },
  },
  'zeros around the picture, Transpose': {
    head: (b, x) => first(b, b.node('Pad', [x, longs(0, 1, 1, 0, 0, 1, 1, 0)])),
    pads: false,
  },
  'Transpose, and arithmetic of channels last in the middle': {
    head: first,
    middle: (b, x) => {
      const scaled = b.node('Mul', [last(b, x), floats([8], 1, 2, 0.5, 1, -1, 1, 0.7, 1)]);
      const sloped = b.node('PRelu', [scaled, floats([1, 1, 8], 0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.2, 0.3)]);
      return first(b, b.node('Relu', [b.node('Add', [sloped, last(b, x)])]));
    },
  },
  'Transpose, and a Flatten of channels last in front of a Gemm': {
    head: first,
    end: (b, x) => b.gemm(b.flatten(last(b, x)), FEATURES, DIM),
  },
  'Transpose, and a Reshape of channels last in front of a MatMul': {
    head: first,
    end: (b, x) => b.node('MatMul', [b.node('Reshape', [last(b, x), longs(-1, FEATURES)]), b.values([FEATURES, DIM])]),
  },
  'Transpose, and a mean of channels last': {
    head: first,
    end: (b, x) => b.gemm(b.node('ReduceMean', [last(b, x)], { axes: [1, 2], keepdims: 0 }), 8, DIM),
  },
};

/** The file of a spelling, whose first nodes are written by hand: an NHWC input is declared as sizes alone. */
function fileOf({ head, layout = 'NHWC', bytes, middle, end, pads = true }: Spelling): Uint8Array {
  const isLast = layout === 'NHWC';
  const b = new GraphBuilder(isLast ? { channels: HEIGHT, height: WIDTH, width: 3 } : { height: HEIGHT, width: WIDTH });
  const map = b.prelu(b.conv(head(b, 'data'), 3, 8, 3, { pad: pads ? 1 : 0, stride: 2 }), 8);
  const features = b.conv(middle ? middle(b, map) : map, 8, 8, 3, { pad: 1 });
  const graph = b.graph(end ? end(b, features) : b.gemm(b.flatten(features), FEATURES, DIM));
  graph.output.dim = 16;
  const model = decodeModel(encodeOnnx(graph));
  if (bytes) model.graph!.input[0]!.type!.tensorType!.elemType = dataTypeNumber('UINT8');
  return encodeModel(model);
}

/** What a file reads. */
function inputs({ layout = 'NHWC', bytes, reads = '-1..1' }: Spelling): Float32Array | Uint8Array {
  const range = INPUT_RANGES[reads];
  const values = Float32Array.from(pixels.data, (_, i) => {
    const [picture, channel, place] = [Math.floor(i / (3 * AREA)), Math.floor(i / AREA) % 3, i % AREA];
    const at = layout === 'NHWC' ? i : (picture * AREA + place) * 3 + channel;
    return (pixels.data[at]! - range.mean[0]) / range.std[0];
  });
  return bytes ? Uint8Array.from(values) : values;
}

/** Type and sizes of a file's input, as ONNX Runtime reads them. */
async function declared(file: Uint8Array): Promise<{ type: string; sizes: (number | string)[] }> {
  const session = await ort.InferenceSession.create(file, { logSeverityLevel: 3 });
  const [input] = session.inputMetadata;
  await session.release();
  assert.ok(input?.isTensor);
  return { type: input.type, sizes: input.shape.slice(1) };
}

describe('a file that begins with', () => {
  for (const [name, spelling] of Object.entries(spellings))
    test(name, async () => {
      const { layout = 'NHWC', bytes = false, reads = '-1..1' } = spelling;
      const file = fileOf(spelling);
      const model = parseOnnx(file, 'a.onnx');
      assert.deepEqual(
        parseOnnx(encodeOnnx(model.graph), 'again.onnx').graph,
        model.graph,
        'what is written is normal',
      );
      const { graph, range } = withInputRange(model, { subject: 'a.onnx' });
      const { input } = graph;
      assert.deepEqual([input.channels, input.height, input.width], [3, HEIGHT, WIDTH]);
      assert.deepEqual([input.layout ?? 'NCHW', input.elementType ?? 'float32'], [layout, bytes ? 'uint8' : 'float32']);
      assert.deepEqual([range.mean[1], range.std[1]], [INPUT_RANGES[reads].mean[0], INPUT_RANGES[reads].std[0]]);
      assert.equal(range.source, bytes ? 'type' : reads === '-1..1' ? 'default' : 'head');
      for (const { op } of graph.nodes) assert.ok((CANONICAL_OPERATORS as readonly string[]).includes(op), op);
      const shape = layout === 'NHWC' ? ['N', HEIGHT, WIDTH, 3] : ['N', 3, HEIGHT, WIDTH];
      assert.deepEqual(describeModel(model, range).input.shape, shape);

      const fed = inputs(spelling);
      const [expected] = await runOrt(file, fed);
      const runtime = await Model.open(graph, { computeThreads: 1 });
      const embeddings = await runtime.embed(pixels);
      await runtime.close();
      embeddings.forEach((value, i) => assert.ok(Math.abs(value - expected!.data[i]!) < 1e-4, `${i}`));

      // What a training writes, and the INT7 model, read what the file reads.
      const kept = withInputRange(model, { keepNorms: true, subject: 'a.onnx' }).graph;
      const [trained] = await runOrt(encodeOnnx(kept), fed);
      trained!.data.forEach((value, i) => assert.ok(Math.abs(value - expected!.data[i]!) < 1e-4, `trained ${i}`));
      const found = await searchScales(fold(graph), pixels, QUICK_SEARCH);
      const int7File = encodeOnnx(encodeInt7(found.graph, found.scales));
      assert.deepEqual(await declared(int7File), await declared(file));
      const [theirs] = await runOrt(int7File, fed);
      assert.ok(meanCosine(theirs!.data, expected!.data, DIM) > 0.99, 'INT7 in ONNX Runtime');

      const int7Model = parseOnnx(int7File, 'int7.onnx');
      assert.equal(int7Model.metadata[LAYOUT_METADATA.layout], layout === 'NHWC' ? 'NHWC' : undefined);
      assert.equal(int7Model.metadata[LAYOUT_METADATA.elementType], bytes ? 'uint8' : undefined);
      const again = withInputRange(int7Model, { subject: 'int7.onnx' });
      assert.deepEqual(again.range, { ...range, source: 'metadata' });
      const { layers, scales } = decodeInt7(again.graph);
      const int7 = await Int7Model.open(layers, scales, { computeThreads: 1 });
      const ours = await int7.embed(pixels);
      await int7.close();
      assert.ok(meanCosine(ours, theirs!.data, DIM) > 0.999, 'INT7 in both');
    });
});

test('what a file of channels last computes without the Transpose is read as it is', async () => {
  // A constant for each row, and a batch norm whose channels are the rows, as ONNX defines it.
  for (const head of [
    (b: GraphBuilder, x: string) => first(b, b.node('Add', [x, b.values([HEIGHT, 1, 3])])),
    (b: GraphBuilder, x: string) => first(b, b.batchNorm(x, HEIGHT)),
  ]) {
    const file = fileOf({ head });
    const { graph } = withInputRange(parseOnnx(file, 'a.onnx'), { subject: 'a.onnx' });
    const [expected] = await runOrt(file, inputs({ head }));
    const runtime = await Model.open(graph, { computeThreads: 1 });
    const embeddings = await runtime.embed(pixels);
    await runtime.close();
    embeddings.forEach((value, i) => assert.ok(Math.abs(value - expected!.data[i]!) < 1e-4, `${i}`));
  }
});

test('arithmetic of bytes is refused by its node, and another range than that of bytes', () => {
  const computes: Step = (b, x) => first(b, cast(b, b.node('Add', [x, x])));
  assert.throws(
    () => parseOnnx(fileOf({ head: computes, bytes: true }), 'a.onnx'),
    (error) =>
      error instanceof FacetrainError &&
      error.code === 'UnsupportedOperator' &&
      /node "Add_0" \(Add\) computes with the picture’s bytes; a Cast to float/.test(error.message),
  );
  const model = parseOnnx(fileOf(spellings['bytes: Cast, Transpose, · 1/255']!), 'a.onnx');
  const range = (name: keyof typeof INPUT_RANGES) => {
    const { mean, std } = INPUT_RANGES[name];
    return withInputRange(model, { given: { mean: [...mean], std: [...std] }, subject: 'a.onnx' }).range;
  };
  assert.equal(range('0..255').source, 'given');
  assert.throws(() => range('-1..1'), /the range of the input of a\.onnx: another one than 0\.\.255 .*bytes/);
});

test('a file of one picture without a batch is read for the quantizer, and written as it was', async () => {
  const b = new GraphBuilder({ height: HEIGHT, width: WIDTH });
  // (x - mean) / std of [3, H, W], a batch of one for the network, and its first result.
  const normal = b.node('Div', [b.node('Sub', ['data', floats([3, 1, 1], 120, 127, 90)]), floats([], 64)]);
  const map = b.prelu(b.conv(b.node('Unsqueeze', [normal, longs(0)]), 3, 8, 3, { stride: 2, pad: 1 }), 8);
  const row = b.gemm(b.flatten(map), FEATURES, DIM);
  const index = { dims: [], data: BigInt64Array.of(0n) };
  const vector = b.node('Gather', [row, index], { axis: 0 });
  const model = decodeModel(encodeOnnx({ ...b.graph(row), outputs: [{ name: vector, dims: [] }] }));
  const shape = (dims: number[]) => ({ dim: dims.map((dimValue) => ({ dimValue })) });
  model.graph!.input[0]!.type!.tensorType!.shape = shape([3, HEIGHT, WIDTH]);
  model.graph!.output[0]!.type!.tensorType!.shape = shape([DIM]);
  const file = encodeModel(model);

  const run = async (bytes: Uint8Array, picture: number) => {
    const values = inputs({ head: first, layout: 'NCHW', reads: '0..255' }) as Float32Array;
    const one = values.subarray(picture * 3 * AREA, (picture + 1) * 3 * AREA);
    const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 3 });
    const result = await session.run({ data: new ort.Tensor('float32', one, [3, HEIGHT, WIDTH]) });
    await session.release();
    return result[vector]!;
  };
  const read = parseOnnx(file, 'a.onnx', { every: true });
  const { graph, range } = withInputRange(read, { subject: 'a.onnx' });
  assert.equal(graph.input.layout, 'CHW');
  assert.deepEqual(describeModel(read, range).input.shape, [3, HEIGHT, WIDTH]);
  const fp32 = encodeOnnx(read.graph);
  const { graph: layers, scales } = await searchScales(fold(graph), pixels, QUICK_SEARCH);
  const int7File = modelFile(layers, scales, { source: 'a', calibration: 'b', channelOrder: 'rgb' });
  const int7Model = parseOnnx(int7File, 'int7.onnx');
  assert.equal(int7Model.metadata[LAYOUT_METADATA.layout], 'CHW');
  const again = withInputRange(int7Model, { subject: 'int7.onnx' });
  assert.deepEqual(again.range, { ...range, source: 'metadata' });
  const decoded = decodeInt7(again.graph);
  assert.deepEqual(decoded.scales, scales);
  const int7 = await Int7Model.open(decoded.layers, decoded.scales, { computeThreads: 1 });
  const inC = await Int7FileModel.open(int7File, { subject: 'int7.onnx', computeThreads: 1 });
  const ours = await int7.embed(pixels);
  assert.deepEqual(await inC.embed(pixels), ours);
  for (let picture = 0; picture < COUNT; picture++) {
    const expected = await run(file, picture);
    const same = await run(fp32, picture);
    assert.deepEqual(same.dims, [1, DIM], 'outputs have a batch of one');
    (same.data as Float32Array).forEach((value, i) => assert.ok(Math.abs(value - Number(expected.data[i])) < 1e-4));
    const theirs = (await run(int7File, picture)).data as Float32Array;
    const own = ours.subarray(picture * DIM, (picture + 1) * DIM);
    assert.ok(meanCosine(own, theirs, DIM) > 0.999, 'INT7 in both');
    assert.ok(meanCosine(own, expected.data as Float32Array, DIM) > 0.99, 'INT7 and FP32');
  }
  await int7.close();
  await inC.close();

  // An embedder works on batches, and the first of three sizes must be channels.
  assert.throws(() => parseOnnx(file, 'a.onnx'), /input "data" has shape \[3, 12, 10\]; a picture \[N, channels/);
  model.graph!.input[0]!.type!.tensorType!.shape = shape([HEIGHT, WIDTH, 3]);
  assert.throws(
    () => parseOnnx(encodeModel(model), 'a.onnx', { every: true }),
    /input "data" has shape \[12, 10, 3\]; a picture/,
  );
});
