/**
 * Operators that are written with others when the quantizer reads a model, so that no runtime has to know them: their
 * definitions in ONNX. Functions of single numbers become one layer again (quantize/node-layers.ts), with a table.
 */
import type { GraphNode } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import { axisIndex } from './known-integers.ts';
import type { Context } from './translate-node.ts';

/** What a composite is written with. */
interface Writer {
  node: GraphNode;
  /** The first input, and its dimensions with a batch of one. */
  x: string;
  dims: number[];
  context: Context;
  /** Adds a node of the operator. @returns its value; that of the last is the composite's */
  add: (op: string, inputs: string[], attributes?: GraphNode['attributes']) => string;
  number: (value: number) => string;
  integers: (values: number[]) => string;
}

/**
 * The nodes that compute a composite operator, the last with its name and output.
 * @returns undefined for other operators, for forms that the quantizer has, and for an input of unknown shape
 * @throws FacetrainError UnsupportedOperator
 */
export function composite(
  node: GraphNode,
  context: Context,
  freshName: (name: string) => string,
): GraphNode[] | undefined {
  const write = Object.hasOwn(COMPOSITES, node.op) ? COMPOSITES[node.op] : undefined;
  const x = node.inputs[0]!;
  const dims = context.batches[0].shapes.get(x);
  if (!write || !dims) return undefined;
  const nodes: GraphNode[] = [];
  write({
    ...{ node, x, dims, context },
    add: (op, inputs, attributes = {}) => {
      const name = freshName(`${node.name}_${op.toLowerCase()}`);
      nodes.push({ name, op, inputs, outputs: [name], attributes });
      return name;
    },
    number: (value) => context.constant(`${node.name}.number`, { dims: [], data: Float32Array.of(value) }),
    integers: (values) =>
      context.constant(`${node.name}.integers`, { dims: [values.length], data: BigInt64Array.from(values, BigInt) }),
  });
  const last = nodes.at(-1);
  if (!last) return undefined;
  return [...nodes.slice(0, -1), { ...last, name: node.name, outputs: node.outputs.slice(0, 1) }];
}

const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);
const real = ({ node }: Writer, name: string, otherwise: number) => Number(node.attributes[name] ?? otherwise);

const COMPOSITES: Record<string, (writer: Writer) => void> = {
  // ---- Functions of single numbers ----
  /** α (exp(x / α) - 1) below 0. */
  Celu: (w) => {
    const alpha = w.number(real(w, 'alpha', 1));
    w.add('Mul', [w.add('Elu', [w.add('Div', [w.x, alpha])], { alpha: 1 }), alpha]);
  },
  /** x Φ(x), by erf or its approximation by tanh. */
  Gelu: (w) => {
    const half = w.add('Mul', [w.x, w.number(0.5)]);
    w.add('Mul', [
      half,
      w.add('Add', [w.node.attributes.approximate === 'tanh' ? tanhOfGelu(w) : erfOfGelu(w), w.number(1)]),
    ]);
  },
  /** x tanh(log(1 + exp(x))). */
  Mish: (w) => w.add('Mul', [w.x, w.add('Tanh', [w.add('Softplus', [w.x])])]),
  Selu: (w) => {
    const alpha = real(w, 'alpha', 1.6732631921768188);
    w.add('Mul', [w.add('Elu', [w.x], { alpha }), w.number(real(w, 'gamma', 1.0507010221481323))]);
  },
  Softsign: (w) => w.add('Div', [w.x, w.add('Add', [w.add('Abs', [w.x]), w.number(1)])]),
  Swish: (w) => {
    const alpha = real(w, 'alpha', 1);
    w.add('Mul', [w.x, w.add('Sigmoid', [alpha === 1 ? w.x : w.add('Mul', [w.x, w.number(alpha)])])]);
  },

  // ---- Over axes ----
  LogSoftmax: (w) => {
    const axis = axisIndex(intAttribute(w.node, 'axis', -1), w.dims.length);
    const below = w.add('Sub', [w.x, w.add('ReduceMax', [w.x], { axes: [axis], keepdims: 1 })]);
    const sum = w.add('ReduceSum', [w.add('Exp', [below]), w.integers([axis])], { keepdims: 1 });
    w.add('Sub', [below, w.add('Log', [sum])]);
  },
  /** Of an operator set before 13, where it normalizes all axes from `axis` on together (translate-node.ts). */
  Softmax: (w) => {
    const axis = axisIndex(intAttribute(w.node, 'axis', 1), w.dims.length);
    if (w.context.opset >= 13 || w.dims.filter((dim, i) => i >= axis && dim !== 1).length < 2) return;
    const [outer, inner] = [product(w.dims.slice(1, axis)), product(w.dims.slice(axis))];
    const rows = w.add('Reshape', [w.x, w.integers([0, outer, inner])]);
    w.add('Reshape', [w.add('Softmax', [rows], { axis: 2 }), w.integers([0, ...w.dims.slice(1)])]);
  },
  LpNormalization: (w) => {
    const axis = axisIndex(intAttribute(w.node, 'axis', -1), w.dims.length);
    const norm =
      intAttribute(w.node, 'p', 2) === 1
        ? w.add('ReduceSum', [w.add('Abs', [w.x]), w.integers([axis])], { keepdims: 1 })
        : w.add('ReduceL2', [w.x], { axes: [axis], keepdims: 1 });
    // As ONNX Runtime: zeros stay zeros.
    w.add('Div', [w.x, w.add('Max', [norm, w.number(1e-30)])]);
  },
  ReduceL1: (w) => w.add('ReduceSum', [w.add('Abs', [w.x]), ...reducedAxes(w)], keepdims(w)),
  ReduceSumSquare: (w) => w.add('ReduceSum', [w.add('Mul', [w.x, w.x]), ...reducedAxes(w)], keepdims(w)),
  Mean: (w) => {
    const count = w.node.inputs.length;
    w.add('Mul', [w.add('Sum', w.node.inputs), w.number(1 / count)]);
  },

  ReduceLogSum: (w) => w.add('Log', [w.add('ReduceSum', [w.x, ...reducedAxes(w)], keepdims(w))]),
  ReduceLogSumExp: (w) => w.add('Log', [w.add('ReduceSum', [w.add('Exp', [w.x]), ...reducedAxes(w)], keepdims(w))]),

  // ---- Normalizations ----
  InstanceNormalization: (w) => {
    const channels = w.dims[1]!;
    scaled(w, normalized(w, channels, w.dims.slice(1)), [channels, ...w.dims.slice(2).map(() => 1)]);
  },
  GroupNormalization: (w) => {
    const groups = intAttribute(w.node, 'num_groups', 1);
    const ones = w.dims.slice(2).map(() => 1);
    if (w.context.opset >= 21) return scaled(w, normalized(w, groups, w.dims.slice(1)), [w.dims[1]!, ...ones]);
    // Until operator set 20 a scale and a bias belong to a group.
    const grouped = [groups, product(w.dims.slice(1)) / groups];
    const result = scaled(w, normalized(w, groups, grouped), [groups, 1]);
    w.add('Reshape', [result, w.integers([0, ...w.dims.slice(1)])]);
  },

  // ---- Windows along one axis ----
  AveragePool: (w) => alongOneAxis(w),
  Conv: (w) => alongOneAxis(w),
  LpPool: (w) => alongOneAxis(w),
  MaxPool: (w) => alongOneAxis(w),

  // ---- Numbers that move ----
  SpaceToDepth: (w) => {
    const block = intAttribute(w.node, 'blocksize', 1);
    const [, channels, height, width] = w.dims as [number, number, number, number];
    const [rows, columns] = [height / block, width / block];
    const split = w.add('Reshape', [w.x, w.integers([0, channels, rows, block, columns, block])]);
    const moved = w.add('Transpose', [split], { perm: [0, 3, 5, 1, 2, 4] });
    w.add('Reshape', [moved, w.integers([0, channels * block * block, rows, columns])]);
  },
  Tile: (w) => {
    const repeats = w.context.batches[0].integers.get(w.node.inputs[1] ?? '');
    if (repeats?.length !== w.dims.length || repeats[0] !== 1 || product(repeats) > MOST_COPIES)
      throw w.context.refuse(w.node, 'has other repeats', `constant ones, ${MOST_COPIES} in all, and one of the batch`);
    let value = w.x;
    repeats.forEach((times, axis) => {
      if (times > 1) value = w.add('Concat', new Array<string>(times).fill(value), { axis });
    });
    if (value === w.x) w.add('Identity', [w.x]);
  },
};

/** Of a Tile, which becomes a Concat with so many operands. */
const MOST_COPIES = 64;

const erfOfGelu = ({ add, x, number }: Writer) => add('Erf', [add('Mul', [x, number(Math.SQRT1_2)])]);

function tanhOfGelu({ add, x, number }: Writer): string {
  const cube = add('Mul', [add('Mul', [x, x]), x]);
  const inner = add('Add', [x, add('Mul', [cube, number(0.044715)])]);
  return add('Tanh', [add('Mul', [inner, number(Math.sqrt(2 / Math.PI))])]);
}

/** Of [N, C, length], as of a map [N, C, 1, length] of one row; a map has its own form. */
function alongOneAxis({ node, x, dims, add, integers }: Writer): void {
  if (dims.length !== 3) return;
  const sizes = Object.fromEntries(
    ['kernel_shape', 'strides', 'dilations'].flatMap((name) => {
      const [size] = intsAttribute(node, name, []);
      return size === undefined ? [] : [[name, [1, size]]];
    }),
  );
  const [before = 0, after = 0] = intsAttribute(node, 'pads', []);
  const withRow = (value: string) => add('Unsqueeze', [value, integers([2])]);
  const inputs = [withRow(x), ...node.inputs.slice(1, 2).map(withRow), ...node.inputs.slice(2)];
  const map = add(node.op, inputs, { ...node.attributes, ...sizes, pads: [0, before, 0, after] });
  add('Squeeze', [map, integers([2])]);
}

const keepdims = ({ node }: Writer) => ({ keepdims: intAttribute(node, 'keepdims', 1) });
const reducedAxes = ({ node, integers }: Writer) => {
  const axes = intsAttribute(node, 'axes', []);
  return axes.length > 0 ? [integers(axes)] : [];
};

/** (x - mean) / sqrt(variance + ε), both of each group of channels, as [N, ...shape]. */
function normalized(w: Writer, groups: number, shape: number[]): string {
  const { add, dims, x } = w;
  const grouped = [1, groups, product(dims.slice(1)) / groups];
  const isGrouped = (of: number[]) => of.join() === grouped.slice(1).join();
  const flat = isGrouped(dims.slice(1)) ? x : add('Reshape', [x, w.integers([0, ...grouped.slice(1)])]);
  const mean = (of: string) => add('ReduceMean', [of], { axes: [2], keepdims: 1 });
  const centred = add('Sub', [flat, mean(flat)]);
  const variance = add('Add', [mean(add('Mul', [centred, centred])), w.number(real(w, 'epsilon', 1e-5))]);
  const result = add('Div', [centred, add('Sqrt', [variance])]);
  return isGrouped(shape) ? result : add('Reshape', [result, w.integers([0, ...shape])]);
}

/** Times the second input, plus the third, each in that shape. */
function scaled({ node, add, integers }: Writer, value: string, shape: number[]): string {
  const [scale, bias] = node.inputs.slice(1).map((name) => add('Reshape', [name, integers(shape)])) as [string, string];
  return add('Add', [add('Mul', [value, scale]), bias]);
}

/** Their names. */
export const COMPOSITE_OPERATORS = Object.keys(COMPOSITES);
