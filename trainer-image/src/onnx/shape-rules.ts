/** The shape of each operator's output, in the semantics of operator set 17 with explicit pads (see normalize.ts). */
import type { GraphNode } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import { axisIndex, type KnownInputs, sliceIndices } from './known-integers.ts';

/** The shape of a node's first output; undefined when it is not known. */
export type ShapeRule = (node: GraphNode, known: KnownInputs) => number[] | undefined;

const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);

const sameAsInput: ShapeRule = (_, { shapes: [x] }) => x;

const broadcast: ShapeRule = (_, { shapes }) => {
  if (!shapes.every((shape) => shape !== undefined)) return undefined;
  const rank = shapes.reduce((longest, { length }) => Math.max(longest, length), 0);
  return Array.from({ length: rank }, (_, i) =>
    shapes.map((shape) => shape[i - rank + shape.length] ?? 1).reduce((a, b) => (a === 1 ? b : a), 1),
  );
};

/**
 * Output height or width of a convolution or a pool (ONNX, Conv and MaxPool).
 * @param pads zeros before and after the picture along this axis, together
 */
export function windowOutputs(
  size: number,
  window: { kernel: number; stride: number; dilation: number; pads: number },
  round: (value: number) => number = Math.floor,
): number {
  const { kernel, stride, dilation, pads } = window;
  return round((size + pads - dilation * (kernel - 1) - 1) / stride) + 1;
}

/** Output height and width of a node with explicit pads; `kernel` is [height, width]. */
function windowOutputsOf(
  node: GraphNode,
  [height, width]: [number, number],
  kernel: number[],
): [number, number] | undefined {
  if (kernel.length !== 2) return undefined;
  const strides = intsAttribute(node, 'strides', [1, 1]);
  const dilations = intsAttribute(node, 'dilations', [1, 1]);
  const [top, left, bottom, right] = intsAttribute(node, 'pads', [0, 0, 0, 0]) as [number, number, number, number];
  const roundsUp = intAttribute(node, 'ceil_mode', 0) === 1;
  const along = (axis: 0 | 1, size: number, before: number, after: number) => {
    const [stride, dilation] = [strides[axis]!, dilations[axis]!];
    const window = { kernel: kernel[axis]!, stride, dilation, pads: before + after };
    const outputs = windowOutputs(size, window, roundsUp ? Math.ceil : Math.floor);
    // A window that begins behind the picture and its first pads is left out.
    return roundsUp && (outputs - 1) * stride >= size + before ? outputs - 1 : outputs;
  };
  return [along(0, height, top, bottom), along(1, width, left, right)];
}

const conv: ShapeRule = (node, { shapes: [x, weight] }) => {
  if (x?.length !== 4 || weight?.length !== 4) return undefined;
  const window = windowOutputsOf(node, [x[2]!, x[3]!], weight.slice(2));
  return window && [x[0]!, weight[0]!, ...window];
};

const pool: ShapeRule = (node, { shapes: [x] }) => {
  if (x?.length !== 4) return undefined;
  const window = windowOutputsOf(node, [x[2]!, x[3]!], intsAttribute(node, 'kernel_shape', []));
  return window && [x[0]!, x[1]!, ...window];
};

const globalPool: ShapeRule = (_, { shapes: [x] }) => x?.map((dim, i) => (i < 2 ? dim : 1));

const gemm: ShapeRule = (node, { shapes: [a, b] }) => {
  if (a?.length !== 2 || b?.length !== 2) return undefined;
  return [a[intAttribute(node, 'transA', 0) === 1 ? 1 : 0]!, b[intAttribute(node, 'transB', 0) === 1 ? 0 : 1]!];
};

const matmul: ShapeRule = (node, { shapes: [a, b], integers: none }) => {
  if (!a || !b || a.length < 2 || b.length < 2) return undefined;
  const stack = broadcast(node, { shapes: [a.slice(0, -2), b.slice(0, -2)], integers: none });
  return stack && [...stack, a.at(-2)!, b.at(-1)!];
};

const flatten: ShapeRule = (node, { shapes: [x] }) => {
  if (!x) return undefined;
  const axis = axisIndex(intAttribute(node, 'axis', 1), x.length);
  return [product(x.slice(0, axis)), product(x.slice(axis))];
};

const reshape: ShapeRule = (node, { shapes: [x], integers: [, target] }) => {
  if (!x || !target) return undefined;
  const keepsZero = intAttribute(node, 'allowzero', 0) === 1;
  const dims = target.map((dim, i) => (dim === 0 && !keepsZero ? (x[i] ?? -2) : dim));
  return dims.map((dim) => (dim === -1 ? product(x) / -product(dims) : dim));
};

const squeeze: ShapeRule = (_, { shapes: [x], integers: [, axes] }) => {
  const removed = axes?.map((axis) => axisIndex(axis, x?.length ?? 0));
  return x?.filter((dim, i) => (removed ? !removed.includes(i) : dim !== 1));
};

const unsqueeze: ShapeRule = (_, { shapes: [x], integers: [, axes] }) => {
  if (!x || !axes) return undefined;
  const added = axes.map((axis) => axisIndex(axis, x.length + axes.length));
  const rest = x.values();
  return Array.from({ length: x.length + axes.length }, (_, i) => (added.includes(i) ? 1 : (rest.next().value ?? -1)));
};

const transpose: ShapeRule = (node, { shapes: [x] }) =>
  x &&
  intsAttribute(
    node,
    'perm',
    x.map((_, i) => x.length - 1 - i),
  ).map((axis) => x[axis] ?? -1);

const concat: ShapeRule = (node, { shapes }) => {
  const [first] = shapes;
  if (!first || !shapes.every((shape) => shape?.length === first.length)) return undefined;
  const axis = axisIndex(intAttribute(node, 'axis', 0), first.length);
  return first.map((dim, i) => (i === axis ? shapes.reduce((total, shape) => total + shape![i]!, 0) : dim));
};

function reduced(x: number[], axes: number[], keepDims: boolean): number[] {
  const removed = axes.length ? axes.map((axis) => axisIndex(axis, x.length)) : x.map((_, i) => i);
  return keepDims ? x.map((dim, i) => (removed.includes(i) ? 1 : dim)) : x.filter((_, i) => !removed.includes(i));
}

const reduce: ShapeRule = (node, { shapes: [x] }) =>
  x && reduced(x, intsAttribute(node, 'axes', []), intAttribute(node, 'keepdims', 1) === 1);

const reduceSum: ShapeRule = (node, { shapes: [x], integers: [, axes] }) =>
  x && reduced(x, axes ?? [], intAttribute(node, 'keepdims', 1) === 1);

const arg: ShapeRule = (node, { shapes: [x] }) =>
  x && reduced(x, [intAttribute(node, 'axis', 0)], intAttribute(node, 'keepdims', 1) === 1);

const pad: ShapeRule = (_, { shapes: [x], integers: [, pads] }) =>
  x && pads && x.map((dim, i) => dim + (pads[i] ?? NaN) + (pads[i + x.length] ?? NaN));

const slice: ShapeRule = (_, { shapes: [x], integers: [, starts, ends, axes, steps] }) => {
  if (!x || !starts || !ends) return undefined;
  const dims = [...x];
  (axes ?? starts.map((_, i) => i)).forEach((axis, i) => {
    const at = axisIndex(axis, x.length);
    if (at < 0 || at >= x.length) return;
    dims[at] = sliceIndices(x[at]!, starts[i]!, ends[i]!, steps?.[i] ?? 1).length;
  });
  return dims;
};

const gather: ShapeRule = (node, { shapes: [x, indices] }) => {
  if (!x || !indices) return undefined;
  const axis = axisIndex(intAttribute(node, 'axis', 0), x.length);
  return [...x.slice(0, axis), ...indices, ...x.slice(axis + 1)];
};

const expand: ShapeRule = (node, { shapes: [x], integers: [, target] }) =>
  target && broadcast(node, { shapes: [x, target], integers: [] });

const constantOfShape: ShapeRule = (_, { integers: [target] }) => target;

/** The length of a resized axis (ONNX, Resize). A batch of 1 among the sizes is written for one picture, and kept. */
const resize: ShapeRule = (_, { shapes: [x], integers: [, , , sizes], floats }) => {
  if (sizes?.length) return sizes[0] === 1 && x ? [x[0]!, ...sizes.slice(1)] : sizes;
  const scales = floats?.[2];
  return scales?.length === x?.length ? x?.map((dim, i) => Math.floor(dim * scales![i]!)) : undefined;
};

const convTranspose: ShapeRule = (node, { shapes: [x, weight] }) => {
  if (x?.length !== 4 || weight?.length !== 4 || node.attributes.output_shape) return undefined;
  const strides = intsAttribute(node, 'strides', [1, 1]);
  const dilations = intsAttribute(node, 'dilations', [1, 1]);
  const pads = intsAttribute(node, 'pads', [0, 0, 0, 0]);
  const extra = intsAttribute(node, 'output_padding', [0, 0]);
  const along = (axis: 0 | 1) =>
    strides[axis]! * (x[2 + axis]! - 1) +
    extra[axis]! +
    dilations[axis]! * (weight[2 + axis]! - 1) +
    1 -
    pads[axis]! -
    pads[axis + 2]!;
  return [x[0]!, weight[1]! * intAttribute(node, 'group', 1), along(0), along(1)];
};

const depthToSpace: ShapeRule = (node, { shapes: [x] }) => {
  const block = intAttribute(node, 'blocksize', 1);
  return x?.length === 4 ? [x[0]!, x[1]! / block / block, x[2]! * block, x[3]! * block] : undefined;
};

/** The shapes of all outputs of a Split, which has several; undefined when they are not known. */
export function splitShapes(node: GraphNode, { shapes: [x], integers: [, sizes] }: KnownInputs) {
  if (!x) return undefined;
  const axis = axisIndex(intAttribute(node, 'axis', 0), x.length);
  const parts = node.outputs.length;
  const part = Math.ceil(x[axis]! / parts);
  const lengths = node.inputs[1] ? sizes : Array.from({ length: parts }, (_, i) => Math.min(part, x[axis]! - i * part));
  if (lengths?.length !== parts || lengths.some((length) => !(length >= 0))) return undefined;
  return lengths.map((length) => x.map((dim, i) => (i === axis ? length : dim)));
}

/** Operators whose output has the shape of their first input. */
const SHAPE_KEEPING = `
  Abs BatchNormalization Cast Ceil Clip DequantizeLinear Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish
  Identity InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish Neg Not PRelu
  QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu
`;
/** Operators whose inputs are broadcast to one shape. */
const BROADCASTING = `
  Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or Pow Sub Sum Where
`;
/** Operators whose axes are an attribute in operator set 17. */
const REDUCTIONS = `
  ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSumSquare
`;

const words = (text: string) => text.trim().split(/\s+/);

/** By operator. */
export const SHAPE_RULES: Record<string, ShapeRule> = {
  ...Object.fromEntries(words(SHAPE_KEEPING).map((op) => [op, sameAsInput])),
  ...Object.fromEntries(words(BROADCASTING).map((op) => [op, broadcast])),
  ...Object.fromEntries(words(REDUCTIONS).map((op) => [op, reduce])),
  ArgMax: arg,
  ArgMin: arg,
  Conv: conv,
  AveragePool: pool,
  LpPool: pool,
  MaxPool: pool,
  GlobalAveragePool: globalPool,
  GlobalMaxPool: globalPool,
  Gemm: gemm,
  MatMul: matmul,
  Flatten: flatten,
  Reshape: reshape,
  Squeeze: squeeze,
  Unsqueeze: unsqueeze,
  Transpose: transpose,
  Concat: concat,
  ReduceSum: reduceSum,
  Pad: pad,
  Slice: slice,
  Gather: gather,
  Expand: expand,
  ConstantOfShape: constantOfShape,
  ConvTranspose: convTranspose,
  DepthToSpace: depthToSpace,
  Resize: resize,
  Split: (node, known) => splitShapes(node, known)?.[0],
};
