/**
 * Shapes of a graph's values for a batch of a given size, and the small integers that exporters compute from them
 * (Shape, Gather, Concat, ... in front of a Reshape). An operator that is not known here leaves its values without a shape.
 */
import type { Graph, GraphNode, Tensor } from '@facetrain/native';

interface Known {
  shapes: (number[] | undefined)[];
  integers: (number[] | undefined)[];
}

type ShapeRule = (node: GraphNode, known: Known) => number[] | undefined;

/** Longer lists of integers are data, not shapes. */
const LONGEST_SHAPE = 64;

export class ShapeInference {
  /** By value name, for values whose shape is known. */
  readonly shapes = new Map<string, number[]>();
  /** Values of one-dimensional or scalar integers that do not depend on the picture's content. */
  readonly integers = new Map<string, number[]>();

  constructor({ input, initializers }: Pick<Graph, 'input' | 'initializers'>, batch: number) {
    this.shapes.set(input.name, [batch, input.channels, input.height, input.width]);
    for (const [name, tensor] of Object.entries(initializers)) this.define(name, tensor);
  }

  define(name: string, tensor: Tensor): void {
    this.shapes.set(name, tensor.dims);
    const values = smallIntegers(tensor);
    if (values) this.integers.set(name, values);
  }

  /** Takes the next node in topological order. */
  visit(node: GraphNode): void {
    const known = {
      shapes: node.inputs.map((name) => this.shapes.get(name)),
      integers: node.inputs.map((name) => this.integers.get(name)),
    };
    const output = node.outputs[0]!;
    const shape = Object.hasOwn(RULES, node.op) ? RULES[node.op]!(node, known) : undefined;
    if (shape?.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) this.shapes.set(output, shape);
    const values = computedIntegers(node, known);
    if (values && values.length <= LONGEST_SHAPE) {
      this.integers.set(output, values);
      if (!this.shapes.has(output)) this.shapes.set(output, [values.length]);
    }
  }
}

export function inferShapes(graph: Graph, batch: number): Map<string, number[]> {
  const inference = new ShapeInference(graph, batch);
  for (const node of graph.nodes) inference.visit(node);
  return inference.shapes;
}

function smallIntegers({ dims, data }: Tensor): number[] | undefined {
  if (dims.length > 1 || data.length > LONGEST_SHAPE || !(data instanceof BigInt64Array || data instanceof Int32Array))
    return undefined;
  return Array.from(data, Number);
}

/** An integer attribute, or its default. */
export function integer(node: GraphNode, name: string, otherwise: number): number {
  const value = Object.hasOwn(node.attributes, name) ? node.attributes[name] : undefined;
  return typeof value === 'number' ? value : otherwise;
}

/** A list attribute, or its default. */
export function integers(node: GraphNode, name: string, otherwise: number[]): number[] {
  const value = Object.hasOwn(node.attributes, name) ? node.attributes[name] : undefined;
  return Array.isArray(value) ? value : otherwise;
}

const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);

/** A negative axis counts from the end. */
const fromEnd = (axis: number, rank: number) => (axis < 0 ? axis + rank : axis);

const same: ShapeRule = (_, { shapes: [x] }) => x;

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
  const strides = integers(node, 'strides', [1, 1]);
  const dilations = integers(node, 'dilations', [1, 1]);
  const [top, left, bottom, right] = integers(node, 'pads', [0, 0, 0, 0]) as [number, number, number, number];
  const round = integer(node, 'ceil_mode', 0) === 1 ? Math.ceil : Math.floor;
  const along = (axis: 0 | 1, size: number, pads: number) =>
    windowOutputs(size, { kernel: kernel[axis]!, stride: strides[axis]!, dilation: dilations[axis]!, pads }, round);
  return [along(0, height, top + bottom), along(1, width, left + right)];
}

const conv: ShapeRule = (node, { shapes: [x, weight] }) => {
  if (x?.length !== 4 || weight?.length !== 4) return undefined;
  const window = windowOutputsOf(node, [x[2]!, x[3]!], weight.slice(2));
  return window && [x[0]!, weight[0]!, ...window];
};

const pool: ShapeRule = (node, { shapes: [x] }) => {
  if (x?.length !== 4) return undefined;
  const window = windowOutputsOf(node, [x[2]!, x[3]!], integers(node, 'kernel_shape', []));
  return window && [x[0]!, x[1]!, ...window];
};

const globalPool: ShapeRule = (_, { shapes: [x] }) => x?.map((dim, i) => (i < 2 ? dim : 1));

const gemm: ShapeRule = (node, { shapes: [a, b] }) => {
  if (a?.length !== 2 || b?.length !== 2) return undefined;
  return [a[integer(node, 'transA', 0) === 1 ? 1 : 0]!, b[integer(node, 'transB', 0) === 1 ? 0 : 1]!];
};

const matmul: ShapeRule = (node, { shapes: [a, b], integers: none }) => {
  if (!a || !b || a.length < 2 || b.length < 2) return undefined;
  const stack = broadcast(node, { shapes: [a.slice(0, -2), b.slice(0, -2)], integers: none });
  return stack && [...stack, a.at(-2)!, b.at(-1)!];
};

const flatten: ShapeRule = (node, { shapes: [x] }) => {
  if (!x) return undefined;
  const axis = fromEnd(integer(node, 'axis', 1), x.length);
  return [product(x.slice(0, axis)), product(x.slice(axis))];
};

const reshape: ShapeRule = (node, { shapes: [x], integers: [, target] }) => {
  if (!x || !target) return undefined;
  const keepsZero = integer(node, 'allowzero', 0) === 1;
  const dims = target.map((dim, i) => (dim === 0 && !keepsZero ? (x[i] ?? -2) : dim));
  return dims.map((dim) => (dim === -1 ? product(x) / -product(dims) : dim));
};

const squeeze: ShapeRule = (_, { shapes: [x], integers: [, axes] }) => {
  const removed = axes?.map((axis) => fromEnd(axis, x?.length ?? 0));
  return x?.filter((dim, i) => (removed ? !removed.includes(i) : dim !== 1));
};

const unsqueeze: ShapeRule = (_, { shapes: [x], integers: [, axes] }) => {
  if (!x || !axes) return undefined;
  const added = axes.map((axis) => fromEnd(axis, x.length + axes.length));
  const rest = x.values();
  return Array.from({ length: x.length + axes.length }, (_, i) => (added.includes(i) ? 1 : (rest.next().value ?? -1)));
};

const transpose: ShapeRule = (node, { shapes: [x] }) =>
  x &&
  integers(
    node,
    'perm',
    x.map((_, i) => x.length - 1 - i),
  ).map((axis) => x[axis] ?? -1);

const concat: ShapeRule = (node, { shapes }) => {
  const [first] = shapes;
  if (!first || !shapes.every((shape) => shape?.length === first.length)) return undefined;
  const axis = fromEnd(integer(node, 'axis', 0), first.length);
  return first.map((dim, i) => (i === axis ? shapes.reduce((total, shape) => total + shape![i]!, 0) : dim));
};

function reduced(x: number[], axes: number[], keepDims: boolean): number[] {
  const gone = axes.length ? axes.map((axis) => fromEnd(axis, x.length)) : x.map((_, i) => i);
  return keepDims ? x.map((dim, i) => (gone.includes(i) ? 1 : dim)) : x.filter((_, i) => !gone.includes(i));
}

const reduce: ShapeRule = (node, { shapes: [x] }) =>
  x && reduced(x, integers(node, 'axes', []), integer(node, 'keepdims', 1) === 1);

const reduceSum: ShapeRule = (node, { shapes: [x], integers: [, axes] }) =>
  x && reduced(x, axes ?? [], integer(node, 'keepdims', 1) === 1);

const pad: ShapeRule = (_, { shapes: [x], integers: [, pads] }) =>
  x && pads && x.map((dim, i) => dim + (pads[i] ?? NaN) + (pads[i + x.length] ?? NaN));

const slice: ShapeRule = (_, { shapes: [x], integers: [, starts, ends, axes, steps] }) => {
  if (!x || !starts || !ends) return undefined;
  const dims = [...x];
  (axes ?? starts.map((_, i) => i)).forEach((axis, i) => {
    const at = fromEnd(axis, x.length);
    if (at < 0 || at >= x.length) return;
    dims[at] = sliceIndices(x[at]!, starts[i]!, ends[i]!, steps?.[i] ?? 1).length;
  });
  return dims;
};

function sliceIndices(size: number, start: number, end: number, step: number) {
  if (step === 0) return { first: 0, length: NaN };
  const clamp = (value: number, low: number, high: number) =>
    Math.min(Math.max(value < 0 ? value + size : value, low), high);
  const first = step > 0 ? clamp(start, 0, size) : clamp(start, 0, size - 1);
  const last = step > 0 ? clamp(end, 0, size) : clamp(end, -1, size - 1);
  return { first, length: Math.max(0, Math.ceil((last - first) / step)) };
}

const UNARY =
  'Abs BatchNormalization Cast Ceil Clip DequantizeLinear Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish Neg PRelu QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu';
const RULES: Record<string, ShapeRule> = {
  ...Object.fromEntries(UNARY.split(' ').map((op) => [op, same])),
  ...Object.fromEntries('Add Div Max Mean Min Mul Pow Sub Sum'.split(' ').map((op) => [op, broadcast])),
  ...Object.fromEntries(
    'ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSumSquare'.split(' ').map((op) => [op, reduce]),
  ),
  Conv: conv,
  AveragePool: pool,
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
};

/** The integers a node computes from shapes and constants alone, if it does. */
function computedIntegers(node: GraphNode, { shapes: [shape], integers: inputs }: Known): number[] | undefined {
  if (node.op === 'Shape') return shape?.slice(integer(node, 'start', 0), integer(node, 'end', shape.length));
  const [x, y] = inputs;
  if (!x) return undefined;
  switch (node.op) {
    case 'Cast':
    case 'Identity':
    case 'Squeeze':
    case 'Unsqueeze':
      return x;
    case 'Gather':
      return y?.map((index) => x[fromEnd(index, x.length)] ?? NaN);
    case 'Concat':
      return inputs.every((values) => values !== undefined) ? inputs.flat() : undefined;
    case 'Slice': {
      const [, starts, ends, , steps] = inputs;
      if (starts?.length !== 1 || ends?.length !== 1) return undefined;
      const step = steps?.[0] ?? 1;
      const { first, length } = sliceIndices(x.length, starts[0]!, ends[0]!, step);
      return Array.from({ length }, (_, i) => x[first + i * step]!);
    }
    case 'Add':
      return elementwise(x, y, (a, b) => a + b);
    case 'Sub':
      return elementwise(x, y, (a, b) => a - b);
    case 'Mul':
      return elementwise(x, y, (a, b) => a * b);
    case 'Div':
      return elementwise(x, y, (a, b) => Math.trunc(a / b));
    default:
      return undefined;
  }
}

function elementwise(
  x: number[],
  y: number[] | undefined,
  operation: (a: number, b: number) => number,
): number[] | undefined {
  if (!y || (x.length !== y.length && x.length !== 1 && y.length !== 1)) return undefined;
  return Array.from({ length: Math.max(x.length, y.length) }, (_, i) =>
    operation(x[x.length === 1 ? 0 : i]!, y[y.length === 1 ? 0 : i]!),
  );
}
