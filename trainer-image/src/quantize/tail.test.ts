/// <reference lib="esnext.float16" />
/**
 * Networks that end with operators of other runtimes: their INT7 files in ONNX Runtime, and in our runtime up to the
 * tail. What the tail makes is compared with the tail alone in ONNX Runtime.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { Int7FileModel, type Pictures, searchScales } from '@facetrain/native';
import * as ort from 'onnxruntime-node';
import { withInputRange } from '../onnx/input-range.ts';
import { decodeModel, encodeModel } from '../onnx/proto.ts';
import { type OnnxModel, parseOnnx } from '../onnx/read.ts';
import { GraphBuilder, QUICK_SEARCH } from '../testing/graph-fixtures.ts';
import { checkWithOnnx, inputOf, variedPictures } from '../testing/onnx-oracles.ts';
import {
  detector,
  End,
  fileWithEnd,
  floats,
  int,
  integers,
  ints,
  recognizer,
  text,
  value,
  withIf,
} from '../testing/tail-networks.ts';
import { modelFile } from './artifact-files.ts';
import { disposable } from './disposable.ts';
import { fold } from './fold.ts';
import { COMPUTED } from './inputs.ts';

const ORIGIN = { source: 'a'.repeat(64), calibration: 'b'.repeat(64), channelOrder: 'rgb' } as const;
const PICTURES = 3;

const read = (file: Uint8Array, subject = 'model.onnx'): OnnxModel =>
  parseOnnx(file, subject, { every: true, computes: COMPUTED });

type Results = Record<string, { dims: readonly number[]; data: number[] }>;

/** All outputs, and the values that are named. */
async function runOrt(file: Uint8Array, feeds: Record<string, ort.Tensor>, values: string[] = []): Promise<Results> {
  const proto = decodeModel(file);
  const known = new Set(proto.graph!.output.map(({ name }) => name));
  proto.graph!.output.push(...values.filter((name) => !known.has(name)).map((name) => ({ name })));
  const session = await ort.InferenceSession.create(encodeModel(proto), {
    intraOpNumThreads: 1,
    logSeverityLevel: 3,
    graphOptimizationLevel: 'disabled',
  });
  try {
    const results = await session.run(feeds);
    return Object.fromEntries(
      Object.entries(results).map(([name, { dims, data }]) => {
        const numbers =
          data instanceof Uint16Array ? new Float16Array(data.buffer, data.byteOffset, data.length) : data;
        return [name, { dims, data: Array.from(numbers as never, Number) }];
      }),
    );
  } finally {
    await session.release();
  }
}

/** The tail as a network of its own, which reads what enters it. */
function tailAlone(int7: Uint8Array, heads: { name: string; dims: number[] }[]): Uint8Array {
  const proto = decodeModel(int7);
  const graph = proto.graph!;
  const names = new Set(heads.map(({ name }) => name));
  const first = graph.node.findLastIndex(({ output }) => output.some((name) => names.has(name))) + 1;
  graph.node = graph.node.slice(first);
  const made = new Set(graph.node.flatMap(({ output }) => output));
  graph.input.push(...heads.map(({ name, dims }) => value(name, 'FLOAT', ['N', ...dims])));
  graph.output = graph.output.filter(({ name }) => made.has(name));
  return encodeModel(proto);
}

function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [product, squareA, squareB] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    product += a[i]! * b[i]!;
    squareA += a[i]! ** 2;
    squareB += b[i]! ** 2;
  }
  return product / Math.sqrt(squareA * squareB);
}

const onePicture = ({ height, width, data, ...rest }: Pictures, index: number): Pictures => {
  const size = height * width * 3;
  return { ...rest, height, width, count: 1, data: data.subarray(index * size, (index + 1) * size) };
};

const written: Record<string, Uint8Array> = {};

interface Expected {
  /** What our runtime gives, with the sizes behind the batch. */
  heads: Record<string, number[]>;
  /** Operators of the nodes that it does not compute. */
  causes: string[];
  operators: string;
  opset?: number;
}

/** Reads, quantizes and runs a network. */
async function checkTail(name: string, file: Uint8Array, expected: Expected): Promise<void> {
  const found = read(file, name);
  const { graph } = withInputRange(found, { subject: name });
  const heads = graph.outputs ?? [{ name: graph.output.name, dims: [graph.output.dim] }];
  assert.deepEqual(Object.fromEntries(heads.map((head) => [head.name, head.dims])), expected.heads);
  const { causes, operators } = found.tail!;
  assert.deepEqual(
    causes.map(({ node }) => /\((\w+)\)$/.exec(node)![1]),
    expected.causes,
  );
  assert.equal(operators, expected.operators);

  const pictures = variedPictures(PICTURES, graph.input.height, graph.input.width);
  const { graph: layers, scales } = await searchScales(fold(graph), pictures, QUICK_SEARCH);
  const bytes = modelFile(layers, scales, ORIGIN, 'onnxruntime', found.tail);
  written[name] = bytes;
  written[`${name}, TensorRT`] = modelFile(layers, scales, ORIGIN, 'tensorrt', found.tail);
  const { opsetImport } = decodeModel(bytes);
  assert.equal(Number(opsetImport[0]!.version), expected.opset ?? 17);

  const reread = parseOnnx(bytes, name, {});
  assert.equal(reread.metadata['facetrain.tail'], operators);
  await using int7 = disposable(await Int7FileModel.open(bytes, { subject: name, computeThreads: 1 }));
  assert.deepEqual(int7.model.outputs, heads);
  const names = heads.map((head) => head.name);
  for (let index = 0; index < PICTURES; index++) {
    const picture = onePicture(pictures, index);
    const feeds = { data: inputOf(picture, graph.input) };
    const [fp32, inOrt] = [await runOrt(file, feeds, names), await runOrt(bytes, feeds, names)];
    assert.deepEqual(Object.keys(inOrt).sort(), Object.keys(fp32).sort());
    const ours = await int7.model.embed(picture);
    const given: Record<string, ort.Tensor> = {};
    let first = 0;
    for (const head of heads) {
      const size = head.dims.reduce((product, dim) => product * dim, 1);
      const values = ours.subarray(first, first + size);
      first += size;
      assert.deepEqual(inOrt[head.name]!.dims, fp32[head.name]!.dims, head.name);
      assert.ok(cosine(values, fp32[head.name]!.data) > 0.98, `${head.name}: ours and FP32`);
      assert.ok(cosine(values, inOrt[head.name]!.data) > 0.99, `${head.name}: ours and ONNX Runtime`);
      given[head.name] = new ort.Tensor('float32', Float32Array.from(inOrt[head.name]!.data), [1, ...head.dims]);
    }
    const alone = await runOrt(tailAlone(bytes, heads), { ...feeds, ...given });
    for (const [output, result] of Object.entries(alone)) assert.deepEqual(inOrt[output], result, output);
  }
  // Two pictures at once are two pictures, where the file allows it.
  const [input] = decodeModel(file).graph!.input;
  if (input!.type!.tensorType!.shape!.dim[0]!.dimValue) return; // of one picture
  const { data: a, dims } = inputOf(onePicture(pictures, 0), graph.input);
  const { data: b } = inputOf(onePicture(pictures, 1), graph.input);
  const both = new ort.Tensor('float32', Float32Array.from([...(a as Float32Array), ...(b as Float32Array)]), [
    2,
    ...dims.slice(1),
  ]);
  const [fp32, inOrt] = [await runOrt(file, { data: both }), await runOrt(bytes, { data: both })];
  for (const [output, { dims: shape }] of Object.entries(fp32))
    assert.deepEqual(inOrt[output]!.dims.slice(1), shape.slice(1), `${output} of two pictures`);
}

const DETECTED = { boxes: [128, 4], by_class: [3, 128], best: [128] };

for (const opset of [11, 12, 13, 17, 20])
  test(`a detector with NonMaxSuppression and TopK, operator set ${opset}`, () =>
    checkTail(`detector-${opset}`, detector({ opset }), {
      heads: DETECTED,
      causes: ['NonMaxSuppression', 'TopK'],
      operators: [
        'NonMaxSuppression 1',
        'TopK 1',
        ...(opset > 11 ? ['Unsqueeze 1', 'GatherND 1'] : []),
        'Softmax 1',
      ].join(', '),
      opset: Math.max(17, opset),
    }));

test('a detector of one picture at a time', () =>
  checkTail('detector-1', detector({ batch: 1 }), {
    heads: DETECTED,
    causes: ['NonMaxSuppression', 'TopK'],
    operators: 'NonMaxSuppression 1, TopK 1, Unsqueeze 1, GatherND 1, Softmax 1',
  }));

test('a recognizer with LSTMs: the products behind them stay FP32', () =>
  checkTail('recognizer', recognizer(), {
    heads: { columns: [12, 16] },
    causes: ['LSTM'],
    operators: 'Transpose 3, LSTM 2, Reshape 2, MatMul 2, Softmax 1',
  }));

test('an If whose branches read what is around them, and an output that enters the tail', () =>
  checkTail('if', withIf(), {
    heads: { 'Gemm_3:0': [24] },
    causes: ['If'],
    operators: 'ReduceMax 1, Greater 1, If 1',
  }));

/** A vector of 24 numbers and the map in front of it, [8, 4, 4]. */
function network(): { b: GraphBuilder; map: string; vector: string; end: End } {
  const b = new GraphBuilder();
  const map = b.node('Relu', [b.conv('data', 3, 8, 3, { pad: 1, stride: 2 })]);
  return { b, map, vector: b.gemm(b.flatten(map), 128, 24), end: new End() };
}

test('the sizes of a value that our runtime does not give are the picture’s batch and numbers', async () => {
  const { b, map, vector, end } = network();
  end.node('Shape', [map], 'sizes');
  end.node('Shape', [map], 'area', [int('start', 2)]);
  end.node('Mod', [vector, end.constant('divisor', floats([0.75], []))], 'rest', [int('fmod', 1)]);
  end.node('Slice', ['sizes', end.constant('zero', integers([0])), end.constant('one', integers([1]))], 'batch');
  end.node('Concat', ['batch', 'area', end.constant('last', integers([-1]))], 'target', [int('axis', 0)]);
  end.node('Expand', [end.constant('factor', floats([2], [1])), 'batch'], 'factors');
  end.node('Unsqueeze', ['factors', 'one'], 'column');
  // 24 numbers are not 4 x 4 x n.
  end.node('Pad', ['rest', end.constant('pads', integers([0, 0, 0, 8]))], 'padded');
  end.node('Mul', ['padded', 'column'], 'product');
  end.node('Reshape', ['product', 'target'], 'result');
  const outputs = [value('result', 'FLOAT', ['N', 4, 4, 2]), value('factors', 'FLOAT', ['N'])];
  const file = fileWithEnd(b.graph(vector), end, { outputs });
  await checkTail('sizes', file, {
    heads: { [vector]: [24] },
    causes: ['Mod'],
    operators: 'Shape 2, Mod 1, Slice 1, Concat 1, Expand 1, Unsqueeze 1, Pad 1, Mul 1, Reshape 1',
  });
});

/** Operators that our runtime has, with arguments that it does not compute: the last node of a network. */
const ARGUMENTS: Record<
  string,
  {
    end: (end: End, map: string, vector: string) => ReturnType<typeof value>;
    reason: string;
    heads?: Record<string, number[]>;
    opset?: number;
  }
> = {
  'a Resize by cubic interpolation': {
    end: (end, map) => {
      const scales = end.constant('scales', floats([1, 1, 2, 2]));
      end.node('Resize', [map, '', scales], 'result', [text('mode', 'cubic')]);
      return value('result', 'FLOAT', ['N', 8, 8, 8]);
    },
    reason: 'resizes by mode cubic',
  },
  'a Resize that crops': {
    end: (end, map) => {
      const inputs = [map, end.constant('roi', floats([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8])), ''];
      inputs.push(end.constant('sizes', integers([1, 8, 4, 4])));
      end.node('Resize', inputs, 'result', [
        text('mode', 'linear'),
        text('coordinate_transformation_mode', 'tf_crop_and_resize'),
      ]);
      return value('result', 'FLOAT', [1, 8, 4, 4]);
    },
    reason: 'reads at the places of tf_crop_and_resize',
  },
  'a Pad that begins again': {
    end: (end, map) => {
      end.node('Pad', [map, end.constant('pads', integers([0, 0, 1, 1, 0, 0, 1, 1]))], 'result', [
        text('mode', 'wrap'),
      ]);
      return value('result', 'FLOAT', ['N', 8, 6, 6]);
    },
    reason: 'pads by mode wrap',
    opset: 19,
  },
  'an AveragePool that counts its pads and rounds up': {
    end: (end, map) => {
      const sizes = [ints('kernel_shape', [3, 3]), ints('strides', [2, 2]), ints('pads', [1, 1, 1, 1])];
      end.node('AveragePool', [map], 'result', [...sizes, int('ceil_mode', 1), int('count_include_pad', 1)]);
      return value('result', 'FLOAT', ['N', 8, 3, 3]);
    },
    reason: 'counts its pads, and rounds its size up (ceil_mode = 1)',
  },
  'a MaxPool of three axes': {
    end: (end, map) => {
      end.node('Unsqueeze', [map, end.constant('front', integers([1]))], 'block');
      end.node('MaxPool', ['block'], 'result', [ints('kernel_shape', [2, 2, 2]), ints('strides', [2, 2, 2])]);
      return value('result', 'FLOAT', ['N', 1, 4, 2, 2]);
    },
    heads: { block: [1, 8, 4, 4] },
    reason: 'works along 3 axes, not two',
  },
  'bytes of scores': {
    end: (end, map) => {
      end.node('Cast', [map], 'result', [int('to', 2)]);
      return value('result', 'UINT8', ['N', 8, 4, 4]);
    },
    reason: 'casts to UINT8',
  },
  'entries by the place of the largest': {
    end: (end, _map, vector) => {
      end.node('ArgMax', [vector], 'place', [int('axis', 1), int('keepdims', 0)]);
      end.node(
        'Gather',
        [
          end.constant('table', floats([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4])),
          'place',
        ],
        'result',
      );
      return value('result', 'FLOAT', ['N']);
    },
    heads: { 'Gemm_3:0': [24] },
    reason: 'takes entries whose places are computed',
  },
  'the row of a place': {
    end: (end, _map, vector) => {
      end.node('ArgMax', [vector], 'place', [int('axis', 1), int('keepdims', 0)]);
      end.node('Div', ['place', end.constant('width', integers([6]))], 'result');
      return value('result', 'INT64', ['N']);
    },
    heads: { 'Gemm_3:0': [24] },
    reason: 'divides integers that are computed',
  },
};

for (const [name, { end: write, reason, heads, opset }] of Object.entries(ARGUMENTS))
  test(`${name} is a tail`, async () => {
    const { b, map, vector, end } = network();
    const output = write(end, map, vector);
    const graph = b.graph(vector);
    const file = fileWithEnd(graph, end, { outputs: [output], ...(opset && { opset }) });
    const { causes, operators } = read(file).tail!;
    assert.deepEqual(causes, [{ node: `node "result" (${end.nodes.at(-1)!.opType})`, reason }]);
    await checkTail(name, file, {
      heads: heads ?? { [map]: [8, 4, 4] },
      causes: [end.nodes.at(-1)!.opType],
      operators,
      ...(opset && { opset }),
    });
  });

test('such arguments in front of a convolution refuse the network, and the message names both', () => {
  const { b, map, end } = network();
  end.node('Resize', [map, '', end.constant('scales', floats([1, 1, 2, 2]))], 'large', [text('mode', 'cubic')]);
  end.node('Conv', ['large', end.constant('weight', floats(new Array(64).fill(0.5), [8, 8, 1, 1]))], 'last');
  assert.equal(
    refused(fileWithEnd(b.graph(map), end, { outputs: [value('last')] })),
    'model.onnx: node "large" (Resize): resizes by mode cubic, and node "last" (Conv) is behind it; ' +
      'such operators behind the last convolution only, where they stay FP32',
  );
});

/** As torchvision's detectors begin. @param hasBatch whether the file reads [1, 3, H, W], or [3, H, W] */
async function checkOnePicture(hasBatch: boolean): Promise<void> {
  const list = (...values: number[]) => ({ dims: [values.length], data: BigInt64Array.from(values, BigInt) });
  const int64 = (value: number) => ({ dims: [], data: BigInt64Array.of(BigInt(value)) });
  const real = (value: number) => ({ dims: [], data: Float32Array.of(value) });
  const b = new GraphBuilder({ height: 10, width: 14 });
  const cast = (x: string, to: number) => b.node('Cast', [x], { to });
  const without = (x: string) => b.node('Gather', [x, int64(0)], { axis: 0 });
  const withBatch = (x: string) => b.node('Unsqueeze', [x, list(0)]);
  const sizeOf = (x: string, axis: number) => b.node('Gather', [b.node('Shape', [x]), int64(axis)], { axis: 0 });
  const one = b.node('Clip', [hasBatch ? without('data') : 'data', real(-0.8), real(0.9)]);
  // Both sides by one factor, the longer one to 20.
  const sizes = cast(b.node('Shape', [one]), 1);
  const longest = b.node('ReduceMax', [b.node('Slice', [sizes, list(1), list(3), list(0)])], { keepdims: 0 });
  const factor = b.node('Mul', [b.node('Reciprocal', [longest]), real(20)]);
  const scaled = [1, 2].map((axis) =>
    withBatch(cast(b.node('Floor', [b.node('Mul', [cast(sizeOf(one, axis), 1), factor])]), 7)),
  );
  const target = b.node('Concat', [list(1, 3), ...scaled], { axis: 0 });
  const large = without(b.node('Resize', [withBatch(one), '', '', target], { mode: 'linear' }));
  // To multiples of 8.
  const missing = [1, 2].map((axis) => {
    const size = sizeOf(large, axis);
    const most = b.node('Mul', [b.node('Ceil', [b.node('Div', [cast(size, 1), real(8)])]), real(8)]);
    return withBatch(b.node('Sub', [cast(most, 7), size]));
  });
  const padded = b.node('Pad', [large, b.node('Concat', [list(0, 0, 0, 0), ...missing], { axis: 0 })]);
  const joined = b.node('Concat', [withBatch(padded)], { axis: 0 });
  const map = b.node('Relu', [b.conv(joined, 3, 8, 3, { pad: 1, stride: 2 })]);
  const graph = b.graph(map);
  const end = new End();
  end.node('Flatten', [map], 'flat', [int('axis', 1)]);
  end.node('TopK', ['flat', end.constant('k', integers([3]))], ['top', 'places']);
  end.node('Cast', [end.node('Shape', [padded], 'sizes')], 'size', [int('to', 1)]);
  // Of the picture as the file reads it, and of a map that does not enter the tail.
  end.node('Concat', [end.node('Shape', ['data'], 'a'), end.node('Shape', [map], 'b')], 'all_sizes', [int('axis', 0)]);
  end.node('Cast', ['all_sizes'], 'numbers', [int('to', 1)]);
  end.node('ReduceMean', ['numbers'], 'mean', [int('keepdims', 0)]);
  end.node('Mul', ['top', 'size'], 'product');
  end.node('Mul', ['product', 'mean'], 'result');
  const outputs = [value('result', 'FLOAT', [1, 3])];
  const name = hasBatch ? 'one picture' : 'a picture without a batch';
  await checkTail(name, fileWithEnd(graph, end, { outputs, batch: hasBatch ? 1 : null }), {
    heads: { flat: [768] },
    causes: ['TopK'],
    operators: 'TopK 1, Shape 3, Cast 2, Concat 1, ReduceMean 1, Mul 2',
  });
}

test('a file of one picture takes it out of its batch, and resizes and pads it by computed sizes', () =>
  checkOnePicture(true));

test('a file of a picture without a batch, and so its INT7 file', async () => {
  await checkOnePicture(false);
  const [input] = decodeModel(written['a picture without a batch']!).graph!.input;
  assert.deepEqual(
    input!.type!.tensorType!.shape!.dim.map(({ dimValue }) => Number(dimValue)),
    [3, 10, 14],
  );
});

test('a tail that reads the picture, float64 and names that the quantizer takes', async () => {
  const { b, map, vector, end } = network();
  // Crops of the picture, in places that the network finds.
  end.node('Reshape', [vector, end.constant('a', integers([0, 3, 4, 2]))], 'c');
  end.node('GridSample', ['data', 'c'], `${map}.quantized`, [int('align_corners', 1)]);
  end.node('Cast', [vector], 'b', [int('to', 11)]);
  end.node('CumSum', ['b', end.constant('zero_point', integers([1], []))], `${vector}.dequantized`);
  end.node('Unsqueeze', [vector, end.constant('front', integers([0]))], 'sequence');
  const weights = [end.constant('w', floats(new Array(144).fill(0.1), [1, 6, 24]))];
  weights.push(end.constant('r', floats(new Array(12).fill(0.1), [1, 6, 2])));
  end.node('GRU', ['sequence', ...weights], ['', 'input.normalized'], [int('hidden_size', 2)]);
  end.node('Mod', [vector, vector], 'nobody', [int('fmod', 1)]);
  const outputs = [
    value(`${vector}.dequantized`, 'DOUBLE', ['N', 24]),
    value(`${map}.quantized`, 'FLOAT', ['N', 3, 3, 4]),
    value('input.normalized', 'FLOAT', [1, 'N', 2]),
  ];
  await checkTail('names', fileWithEnd(b.graph(vector), end, { outputs }), {
    heads: { [vector]: [24], c: [3, 4, 2] },
    causes: ['GridSample', 'CumSum', 'GRU'],
    operators: 'GridSample 1, Cast 1, CumSum 1, Unsqueeze 1, GRU 1',
  });
});

test('a network of half precision, whose tail reads that', async () => {
  const { b, vector, end } = network();
  end.node('TopK', [vector, end.constant('k', integers([3]))], ['top', 'places']);
  end.node('Cast', ['data'], 'half', [int('to', 10)]);
  const outputs = [value('top', 'FLOAT16', ['N', 3]), value('places', 'INT64', ['N', 3])];
  const proto = decodeModel(fileWithEnd(b.graph(vector), end, { outputs }));
  const graph = proto.graph!;
  graph.node = [graph.node.at(-1)!, ...graph.node.slice(0, -1)];
  graph.node.find(({ opType }) => opType === 'Conv')!.input[0] = 'half';
  for (const tensor of graph.initializer)
    if (tensor.dataType === 1) {
      const real = new Float32Array(new Uint8Array(tensor.rawData!).buffer);
      tensor.rawData = new Uint8Array(Float16Array.from(real).buffer);
      tensor.dataType = 10;
    }
  await checkTail('half', encodeModel(proto), {
    heads: { [vector]: [24] },
    causes: ['TopK'],
    operators: 'TopK 1',
  });
});

function refused(file: Uint8Array): string {
  try {
    read(file);
  } catch (error) {
    assert.ok(error instanceof FacetrainError);
    assert.equal(error.code, 'UnsupportedOperator');
    return error.message;
  }
  throw new Error('it was read');
}

test('what only our readers would have to run is refused by name', () => {
  const { b, map, end } = network();
  end.node('Mod', [map, map], 'rest', [int('fmod', 1)]);
  end.node('Conv', ['rest', end.constant('weight', floats(new Array(64).fill(0.5), [8, 8, 1, 1]))], 'last');
  assert.equal(
    refused(fileWithEnd(b.graph(map), end, { outputs: [value('last')] })),
    `model.onnx: node 'rest' (Mod): operator Mod is not supported, and node "last" (Conv) is behind it; ` +
      'such operators behind the last convolution only, where they stay FP32',
  );
  const all = new End();
  all.node('Mod', ['data', 'data'], 'rest', [int('fmod', 1)]);
  assert.match(
    refused(fileWithEnd(new GraphBuilder().graph('data'), all, { outputs: [value('rest')] })),
    /node 'rest' \(Mod\): operator Mod is not supported, and no layer that can be quantized is in front of it/,
  );
});

test('an operator of another domain is in the tail, and the file names the domain', () => {
  const { b, vector, end } = network();
  end.node('EfficientNMS_TRT', [vector], 'found', [], 'TRT');
  const found = read(fileWithEnd(b.graph(vector), end, { outputs: [value('found')], domains: { TRT: 1 } }));
  assert.deepEqual(found.tail!.causes, [
    { node: 'node "found" (EfficientNMS_TRT)', reason: 'is EfficientNMS_TRT of domain TRT' },
  ]);
  assert.deepEqual(found.tail!.file.opsets, { '': 17, TRT: 1 });
});

test('onnx.checker accepts the files', () => {
  checkWithOnnx(written);
});
