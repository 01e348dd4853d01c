/** For tests: a small face network whose parts are written as exporters write them. All spellings can be quantized. */
import type { Tensor } from '@facetrain/native';
import { dataTypeNumber } from '../onnx/proto.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder } from './graph-fixtures.ts';

/** Pictures of 12 x 12; a body of 12 channels of 3 x 3; embeddings of 10. */
export const SIDE = 12;
export const MAP = 12;
const AREA = 9;
export const DIM = 10;
export type Step = (b: GraphBuilder, x: string) => string;

export const long = (...values: number[]): Tensor => ({
  dims: [values.length],
  data: BigInt64Array.from(values, BigInt),
});
const index = (value: number): Tensor => ({ dims: [], data: BigInt64Array.of(BigInt(value)) });
export const scalar = (value: number): Tensor => ({ dims: [], data: Float32Array.of(value) });
const FLOAT = dataTypeNumber('FLOAT');
const FLOAT16 = dataTypeNumber('FLOAT16');

/** How the colors may be swapped; [channels] in, [channels] out. */
export const SWAPS: Record<string, Step> = {
  none: (_, x) => x,
  Gather: (b, x) => b.node('Gather', [x, long(2, -2, 0)], { axis: 1 }),
  'Split and Concat': (b, x) => {
    const [blue, green, red] = b.nodeOfMany('Split', [x, long(1, 1, 1)], 3, { axis: 1 }) as [string, string, string];
    return b.node('Concat', [red, green, blue], { axis: 1 });
  },
  'Slice backwards': (b, x) => b.node('Slice', [x, long(-1), long(-100), long(1), long(-1)]),
  'Slices and Concat': (b, x) =>
    b.node(
      'Concat',
      [2, 1, 0].map((at) => b.node('Slice', [x, long(at), long(at + 1), long(1)])),
      { axis: 1 },
    ),
  'planes, stacked': (b, x) =>
    b.node(
      'Concat',
      [2, 1, 0].map((at) => b.node('Unsqueeze', [b.node('Gather', [x, index(at)], { axis: 1 }), long(1)])),
      { axis: 1 },
    ),
  'Gather, then range and batch norm': (b, x) => {
    const swapped = b.node('Gather', [x, long(2, 1, 0)], { axis: 1 });
    return b.batchNorm(b.node('Mul', [b.node('Sub', [swapped, b.values([1, 3, 1, 1])]), b.values([3, 1, 1])]), 3);
  },
  'Gather in front of a depthwise convolution': (b, x) =>
    b.prelu(b.conv(b.node('Gather', [x, long(2, 1, 0)], { axis: 1 }), 3, 3, 3, { pad: 1, group: 3 }), 3),
  'there and back in NHWC': (b, x) =>
    b.node('Transpose', [b.node('Transpose', [x], { perm: [0, 2, 3, 1] })], { perm: [0, 3, 1, 2] }),
};

const stem: Step = (b, x) => b.conv(x, 3, MAP, 3, { pad: 1, stride: 2 });
const second: Step = (b, x) => b.conv(x, MAP, MAP, 3, { pad: 1, stride: 2 });

/** Activations and what may stand around them; [MAP, 6, 6]. */
export const ACTIVATIONS: Record<string, Step> = {
  'slope [C, 1, 1]': (b, x) => b.prelu(x, MAP),
  'slope [1, C, 1, 1]': (b, x) => b.node('PRelu', [x, b.values([1, MAP, 1, 1])]),
  'slope [1]': (b, x) => b.node('PRelu', [x, b.values([1])]),
  'slope []': (b, x) => b.node('PRelu', [x, scalar(0.2)]),
  'slope [1, 1, 1]': (b, x) => b.node('PRelu', [x, b.values([1, 1, 1])]),
  'slope by Unsqueeze': (b, x) => b.node('PRelu', [x, b.node('Unsqueeze', [b.values([MAP]), long(1, 2)])]),
  'slope by Reshape': (b, x) => b.node('PRelu', [x, b.node('Reshape', [b.values([MAP]), long(1, -1, 1, 1)])]),
  'slope by Expand': (b, x) => b.node('PRelu', [x, b.node('Expand', [b.values([1, 1, 1]), long(MAP, 1, 1)])]),
  'slope by Cast and Squeeze': (b, x) =>
    b.node('PRelu', [x, b.node('Squeeze', [b.node('Cast', [b.values([1, MAP, 1, 1])], { to: FLOAT }), long(0)])]),
  'Clip from 0': (b, x) => b.node('Clip', [x, scalar(0)]),
  'Max with 0': (b, x) => b.node('Max', [x, scalar(0)]),
  'batch norm and Relu': (b, x) => b.node('Relu', [b.batchNorm(x, MAP)]),
  'casts to half and back': (b, x) =>
    b.node('Cast', [b.node('Relu', [b.node('Cast', [x], { to: FLOAT16 })])], { to: FLOAT }),
  'Dropout and Identity': (b, x) => b.node('Identity', [b.node('Dropout', [b.node('Relu', [x])])]),
  'Pad of nothing': (b, x) => b.node('Pad', [b.node('Relu', [x]), long(0, 0, 0, 0, 0, 0, 0, 0)]),
  'Pad and Relu in front of a convolution': (b, x) => {
    const padded = b.node('Relu', [
      b.node('Pad', [b.node('Pad', [x, long(0, 0, 1, 0, 0, 0, 0, 2)]), long(0, 0, 0, 1, 0, 0, 2, 0)]),
    ]);
    return b.conv(padded, MAP, MAP, 4, { pad: 0 });
  },
  'arithmetic with [1, C, 1, 1] and [1, 1, 1, 1]': (b, x) =>
    b.node('Mul', [b.node('Add', [x, b.values([1, MAP, 1, 1])]), b.values([1, 1, 1, 1])]),
  'weights by Transpose and Mul': (b, x) => {
    const kernels = b.node('Transpose', [b.values([3, 3, MAP, MAP], -0.2, 0.2)], { perm: [3, 2, 0, 1] });
    const scaled = b.node('Mul', [kernels, b.node('Sqrt', [b.values([MAP, 1, 1, 1], 0.5, 1)])]);
    return b.node('Conv', [x, scaled], { pads: [1, 1, 1, 1] });
  },
};

/** From [MAP, 3, 3] to vectors [d], and d. */
export const VECTORS: Record<string, [Step, number]> = {
  Flatten: [(b, x) => b.flatten(x), MAP * AREA],
  'Reshape to [0, -1]': [(b, x) => b.node('Reshape', [x, long(0, -1)]), MAP * AREA],
  'Flatten and Relu': [(b, x) => b.node('Relu', [b.flatten(x)]), MAP * AREA],
  'batch norm behind Flatten': [(b, x) => b.batchNorm(b.flatten(b.batchNorm(x, MAP)), MAP * AREA), MAP * AREA],
  'pool and Squeeze': [(b, x) => b.node('Squeeze', [b.node('GlobalAveragePool', [x]), long(-1, 2)]), MAP],
  'pool of the whole map': [
    (b, x) => b.flatten(b.node('AveragePool', [x], { kernel_shape: [3, 3], strides: [3, 3] })),
    MAP,
  ],
  'mean over (2, 3)': [(b, x) => b.node('ReduceMean', [x], { axes: [-2, -1], keepdims: 0 }), MAP],
  'mean over 3, then 2': [
    (b, x) => b.node('ReduceMean', [b.node('ReduceMean', [x], { axes: [3], keepdims: 0 })], { axes: [2], keepdims: 0 }),
    MAP,
  ],
  'mean over 2, then 3, kept': [
    (b, x) => b.flatten(b.node('ReduceMean', [b.node('ReduceMean', [x], { axes: [2] })], { axes: [3] })),
    MAP,
  ],
  'mean of [N, C, HW]': [
    (b, x) => b.node('ReduceMean', [b.node('Reshape', [x, long(0, MAP, -1)])], { axes: [2], keepdims: 0 }),
    MAP,
  ],
  'sum over (2, 3)': [(b, x) => b.node('ReduceSum', [x, long(2, 3)], { keepdims: 0 }), MAP],
  'depthwise convolution of the whole map': [
    (b, x) => b.node('Squeeze', [b.conv(x, MAP, MAP, 3, { group: MAP }), long(2, 3)]),
    MAP,
  ],
  'pool and a Transpose of one pixel': [
    (b, x) => b.flatten(b.node('Transpose', [b.node('GlobalAveragePool', [x])], { perm: [0, 3, 2, 1] })),
    MAP,
  ],
};

/** From vectors [d] to the embedding. */
export const HEADS: Record<string, (b: GraphBuilder, x: string, d: number) => string> = {
  Gemm: (b, x, d) => b.gemm(x, d, DIM),
  'MatMul and Add': (b, x, d) => b.node('Add', [b.node('MatMul', [x, b.values([d, DIM])]), b.values([DIM])]),
  'MatMul of [N, 1, d]': (b, x, d) =>
    b.node('Squeeze', [b.node('MatMul', [b.node('Unsqueeze', [x, long(1)]), b.values([d, DIM])]), long(1)]),
  'a matrix by Transpose': (b, x, d) =>
    b.node('MatMul', [x, b.node('Transpose', [b.values([DIM, d])], { perm: [1, 0] })]),
  'a matrix by Slice and Concat': (b, x, d) => {
    const half = b.node('Slice', [b.values([DIM, d]), long(0), long(DIM / 2), long(0)]);
    return b.node('Gemm', [x, b.node('Concat', [half, b.values([DIM / 2, d])], { axis: 0 })], { transB: 1 });
  },
  'a convolution of [N, d, 1, 1]': (b, x, d) =>
    b.node('Squeeze', [b.conv(b.node('Reshape', [x, long(0, d, 1, 1)]), d, DIM, 1), long(2, 3)]),
  'batch norm of [N, d, 1]': (b, x, d) =>
    b.node('Squeeze', [b.batchNorm(b.node('Unsqueeze', [b.gemm(x, d, DIM), long(-1)]), DIM), long(2)]),
  'batch norm, PRelu and Dropout of vectors': (b, x, d) =>
    b.node('Dropout', [b.node('PRelu', [b.batchNorm(b.gemm(x, d, DIM), DIM), b.values([1, DIM])])]),
};

/** Normalisations, and forms of the end. */
export const ENDS: Record<string, Step> = {
  none: (_, x) => x,
  'Unsqueeze [N, d, 1, 1]': (b, x) => b.node('Unsqueeze', [x, long(2, 3)]),
  LpNormalization: (b, x) => b.node('LpNormalization', [x], { axis: 1 }),
  'LpNormalization, L1, scaled': (b, x) =>
    b.node('Mul', [scalar(64), b.node('LpNormalization', [x], { axis: -1, p: 1 })]),
  'ReduceL2, Clip, Expand, Div': (b, x) => {
    const norm = b.node('Clip', [b.node('ReduceL2', [x], { axes: [-1] }), scalar(1e-12)]);
    return b.node('Div', [x, b.node('Expand', [norm, b.node('Shape', [x])])]);
  },
  'ReduceL2 and Max': (b, x) =>
    b.node('Div', [x, b.node('Max', [b.node('ReduceL2', [x], { axes: [1] }), scalar(1e-12)])]),
  'Mul, ReduceSum, Sqrt, Div': (b, x) =>
    b.node('Div', [x, b.node('Sqrt', [b.node('ReduceSum', [b.node('Mul', [x, x]), long(1)])])]),
  'Pow, ReduceSum, Add, Pow, Reciprocal, Mul': (b, x) => {
    const sum = b.node('Add', [b.node('ReduceSum', [b.node('Pow', [x, scalar(2)]), long(1)]), scalar(1e-9)]);
    return b.node('Mul', [b.node('Reciprocal', [b.node('Pow', [sum, scalar(0.5)])]), x]);
  },
  'ReduceSumSquare, Unsqueeze, 1 / Sqrt': (b, x) => {
    const sum = b.node('Unsqueeze', [b.node('ReduceSumSquare', [x], { axes: [1], keepdims: 0 }), long(1)]);
    return b.node('Mul', [x, b.node('Div', [scalar(1), b.node('Sqrt', [sum])])]);
  },
};

export interface Spelling {
  swap?: Step;
  activation?: Step;
  vectors?: [Step, number];
  head?: (b: GraphBuilder, x: string, d: number) => string;
  end?: Step;
}

/** The file of a network that is spelt so; what is not given is spelt plainly. */
export function fileOf({
  swap = SWAPS.none!,
  activation = ACTIVATIONS['slope [C, 1, 1]']!,
  vectors: [vectors, length] = VECTORS.Flatten!,
  head = HEADS.Gemm!,
  end = ENDS.none!,
}: Spelling): Uint8Array {
  const b = new GraphBuilder({ height: SIDE, width: SIDE });
  return encodeOnnx(b.graph(end(b, head(b, vectors(b, second(b, activation(b, stem(b, swap(b, 'data'))))), length))));
}
