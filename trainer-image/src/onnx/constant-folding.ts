/**
 * Computes nodes whose inputs are all constants, as exporters leave them in front of weights: Unsqueeze of a PRelu's
 * slope, Transpose of a matrix, Cast of half-precision weights.
 *
 * Results are bounded (MAX_FOLDED_ELEMENTS), because an Expand of a few bytes may ask for any amount of memory.
 */
import type { GraphNode, Tensor, TypedArray } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import { axisIndex, type KnownInputs, sliceIndices } from './known-integers.ts';
import { DATA_TYPES } from './proto.ts';
import { SHAPE_RULES } from './shape-rules.ts';

/** Most elements of one computed constant: 256 MiB of float32. */
export const MAX_FOLDED_ELEMENTS = 2 ** 26;

const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);

const rowMajorStrides = (dims: number[]) => dims.map((_, axis) => product(dims.slice(axis + 1)));

/** Row-major strides; 0 along axes of size 1, so that an index broadcasts. `rank` may be larger than that of `dims`. */
function broadcastStrides(dims: number[], rank: number): number[] {
  const strides = new Array<number>(rank).fill(0);
  let stride = 1;
  for (let axis = dims.length - 1; axis >= 0; axis--) {
    strides[rank - dims.length + axis] = dims[axis] === 1 ? 0 : stride;
    stride *= dims[axis]!;
  }
  return strides;
}

/** Calls `visit(output, input)` with the offsets of every element of `dims` and of that which `strides` lead to. */
function forEachOffset(dims: number[], strides: number[], visit: (output: number, input: number) => void): void {
  const index = new Array<number>(dims.length).fill(0);
  const count = product(dims);
  let input = 0;
  for (let output = 0; output < count; output++) {
    visit(output, input);
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      input += strides[axis]!;
      if (++index[axis]! < dims[axis]!) break;
      input -= strides[axis]! * dims[axis]!;
      index[axis] = 0;
    }
  }
}

function sameType(data: TypedArray, count: number): TypedArray {
  return new (data.constructor as new (length: number) => TypedArray)(count);
}

/** The elements of `x` that `strides` lead to from `offset`, as a tensor of `dims`. */
function picked({ data }: Tensor, dims: number[], strides: number[], offset = 0): Tensor {
  const result = sameType(data, product(dims)) as Float32Array;
  forEachOffset(dims, strides, (output, input) => {
    result[output] = (data as Float32Array)[offset + input]!;
  });
  return { dims, data: result };
}

/** @returns undefined when the shapes cannot be broadcast */
export function broadcastTo(x: Tensor, dims: number[]): Tensor | undefined {
  const rank = dims.length;
  if (x.dims.length > rank || x.dims.some((dim, i) => dim !== 1 && dim !== dims[rank - x.dims.length + i]))
    return undefined;
  return picked(x, dims, broadcastStrides(x.dims, rank));
}

/** A tensor of the type of `like`, from numbers. Integers are truncated, as ONNX's division does. */
function fromNumbers(like: TypedArray, dims: number[], count: number, valueAt: (index: number) => number): Tensor {
  const data = sameType(like, count);
  if (data instanceof BigInt64Array)
    for (let i = 0; i < count; i++) {
      const value = Math.trunc(valueAt(i));
      if (!Number.isSafeInteger(value)) throw new RangeError('an integer that is not exact');
      data[i] = BigInt(value);
    }
  else for (let i = 0; i < count; i++) data[i] = valueAt(i);
  return { dims, data };
}

const UNARY: Record<string, (x: number) => number> = {
  Abs: Math.abs,
  Ceil: Math.ceil,
  Cos: Math.cos,
  Exp: Math.exp,
  Floor: Math.floor,
  Log: Math.log,
  Neg: (x) => -x,
  Reciprocal: (x) => 1 / x,
  Sin: Math.sin,
  Sqrt: Math.sqrt,
};

const BINARY: Record<string, (x: number, y: number) => number> = {
  Add: (x, y) => x + y,
  Div: (x, y) => x / y,
  Max: Math.max,
  Min: Math.min,
  Mul: (x, y) => x * y,
  Pow: (x, y) => x ** y,
  Sub: (x, y) => x - y,
};

function binary(compute: (x: number, y: number) => number, [x, y]: Tensor[], dims: number[]): Tensor | undefined {
  if (!x || !y || x.data.constructor !== y.data.constructor) return undefined;
  const [a, b] = [broadcastTo(x, dims), broadcastTo(y, dims)];
  return a && b && fromNumbers(x.data, dims, product(dims), (i) => compute(Number(a.data[i]), Number(b.data[i])));
}

function cast({ dims, data }: Tensor, to: number): Tensor | undefined {
  switch (DATA_TYPES[to]) {
    case 'FLOAT':
      return { dims, data: data instanceof Float32Array ? data : Float32Array.from(data as Iterable<never>, Number) };
    case 'INT64':
      return fromNumbers(new BigInt64Array(0), dims, data.length, (i) => Number(data[i]));
    case 'INT32':
      return { dims, data: Int32Array.from(data as Iterable<never>, Number) };
    default:
      return undefined;
  }
}

function concat(node: GraphNode, inputs: Tensor[], dims: number[]): Tensor | undefined {
  const [first] = inputs as [Tensor];
  if (inputs.some(({ data }) => data.constructor !== first.data.constructor)) return undefined;
  const axis = axisIndex(intAttribute(node, 'axis', 0), dims.length);
  const result = sameType(first.data, product(dims)) as Float32Array;
  const inner = product(dims.slice(axis + 1));
  let start = 0;
  for (const { dims: part, data } of inputs) {
    const block = part[axis]! * inner;
    for (let outer = 0; outer * block < data.length; outer++)
      result.set(
        data.subarray(outer * block, (outer + 1) * block) as Float32Array,
        outer * dims[axis]! * inner + start,
      );
    start += block;
  }
  return { dims, data: result };
}

function slice([x, starts, ends, axes, steps]: Tensor[], dims: number[]): Tensor | undefined {
  if (!x || !starts || !ends) return undefined;
  const numbers = (tensor: Tensor) => Array.from(tensor.data as Iterable<never>, Number);
  const strides = rowMajorStrides(x.dims);
  let offset = 0;
  const [from, to] = [numbers(starts), numbers(ends)];
  const along = axes ? numbers(axes) : from.map((_, i) => i);
  const by = steps ? numbers(steps) : from.map(() => 1);
  along.forEach((axis, i) => {
    const at = axisIndex(axis, x.dims.length);
    const { first } = sliceIndices(x.dims[at]!, from[i]!, to[i]!, by[i]!);
    offset += first * strides[at]!;
    strides[at]! *= by[i]!;
  });
  return picked(x, dims, strides, offset);
}

function gather(node: GraphNode, [x, indices]: Tensor[], dims: number[]): Tensor | undefined {
  if (!x || !indices) return undefined;
  const axis = axisIndex(intAttribute(node, 'axis', 0), x.dims.length);
  const inner = product(x.dims.slice(axis + 1));
  const outer = product(x.dims.slice(0, axis));
  const size = x.dims[axis]!;
  const at = Array.from(indices.data as Iterable<never>, (index) => axisIndex(Number(index), size));
  if (at.some((index) => !(index >= 0 && index < size))) return undefined;
  const result = sameType(x.data, product(dims)) as Float32Array;
  for (let o = 0; o < outer; o++)
    at.forEach((index, i) => {
      const start = (o * size + index) * inner;
      result.set(x.data.subarray(start, start + inner) as Float32Array, (o * at.length + i) * inner);
    });
  return { dims, data: result };
}

function transpose(node: GraphNode, x: Tensor, dims: number[]): Tensor {
  const strides = rowMajorStrides(x.dims);
  const order = intsAttribute(
    node,
    'perm',
    x.dims.map((_, i) => x.dims.length - 1 - i),
  );
  return picked(
    x,
    dims,
    order.map((axis) => strides[axis]!),
  );
}

/** The numbers from the first to below the second, by the third. */
function range([start, limit, step]: Tensor[]): Tensor | undefined {
  const [from, to, by] = [start, limit, step].map((tensor) => Number(tensor?.data[0])) as [number, number, number];
  const count = Math.max(0, Math.ceil((to - from) / by));
  if (!(count <= MAX_FOLDED_ELEMENTS)) return undefined;
  return fromNumbers(start!.data, [count], count, (i) => from + i * by);
}

/**
 * The value of a node of constants; undefined for an operator or a type that is not computed here, for shapes that do
 * not fit, and for a result that is too large.
 * @param node in the semantics of operator set 17
 */
export function foldConstants(node: GraphNode, inputs: Tensor[], known: KnownInputs): Tensor | undefined {
  const [x] = inputs;
  if (node.op === 'Range') return range(inputs);
  const dims = Object.hasOwn(SHAPE_RULES, node.op) ? SHAPE_RULES[node.op]!(node, known) : undefined;
  if (!x || !dims?.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) return undefined;
  const count = product(dims);
  if (!(count <= MAX_FOLDED_ELEMENTS)) return undefined;
  try {
    if (Object.hasOwn(UNARY, node.op) && inputs.length === 1)
      return fromNumbers(x.data, dims, count, (i) => UNARY[node.op]!(Number(x.data[i])));
    if (Object.hasOwn(BINARY, node.op) && inputs.length === 2) return binary(BINARY[node.op]!, inputs, dims);
    switch (node.op) {
      case 'Cast':
        return cast(x, intAttribute(node, 'to', 0));
      case 'Flatten':
      case 'Identity':
      case 'Reshape':
      case 'Squeeze':
      case 'Unsqueeze':
        return count === x.data.length ? { dims, data: x.data } : undefined;
      case 'Concat':
        return concat(node, inputs, dims);
      case 'ConstantOfShape': {
        const value = node.attributes.value as number;
        const isFloat = node.attributes.type === DATA_TYPES.indexOf('FLOAT');
        const type = isFloat ? new Float32Array(0) : new BigInt64Array(0);
        return fromNumbers(type, dims, count, () => value);
      }
      case 'Expand':
        return broadcastTo(x, dims);
      case 'ReduceMax':
      case 'ReduceMin': {
        if (count !== 1 || x.data.length === 0) return undefined;
        const least = node.op === 'ReduceMax' ? Math.max : Math.min;
        return fromNumbers(x.data, dims, 1, () =>
          Array.from(x.data as Iterable<never>, Number).reduce((a, b) => least(a, b)),
        );
      }
      case 'Gather':
        return gather(node, inputs, dims);
      case 'Slice':
        return slice(inputs, dims);
      case 'Transpose':
        return transpose(node, x, dims);
      default:
        return undefined;
    }
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}
