/**
 * The small integers that exporters compute from shapes and constants, for the target of a Reshape for example: Shape,
 * Gather, Concat and arithmetic.
 */
import type { GraphNode } from '@facetrain/native';
import { intAttribute } from './attributes.ts';

/** Longer lists are data, not shapes. */
const LONGEST_LIST = 64;

/** What is known of a node's inputs, in their order. */
export interface KnownInputs {
  shapes: (number[] | undefined)[];
  /** Values of one-dimensional or scalar integers. */
  integers: (number[] | undefined)[];
  /** Short lists of constant floats, such as the scales of a Resize. */
  floats?: (number[] | undefined)[];
}

/** An axis, or an index into a list, from 0; a negative one counts from the end. */
export const axisIndex = (axis: number, rank: number) => (axis < 0 ? axis + rank : axis);

/**
 * The entries of an axis that a Slice takes: `length` of them, from `first` on. NaN entries for a step of 0, which ONNX
 * does not allow.
 */
export function sliceIndices(size: number, start: number, end: number, step: number) {
  if (step === 0) return { first: 0, length: NaN };
  const clamp = (value: number, low: number, high: number) =>
    Math.min(Math.max(value < 0 ? value + size : value, low), high);
  const first = step > 0 ? clamp(start, 0, size) : clamp(start, 0, size - 1);
  const last = step > 0 ? clamp(end, 0, size) : clamp(end, -1, size - 1);
  return { first, length: Math.max(0, Math.ceil((last - first) / step)) };
}

/** The integers that a node computes; undefined when they depend on the picture, or the operator is not known here. */
export function computedIntegers(
  node: GraphNode,
  { shapes: [shape], integers: inputs }: KnownInputs,
): number[] | undefined {
  if (node.op === 'Shape') return shape?.slice(intAttribute(node, 'start', 0), intAttribute(node, 'end', shape.length));
  const [x, y] = inputs;
  if (!x || (inputs.length > 2 && ['Max', 'Min'].includes(node.op))) return undefined;
  switch (node.op) {
    case 'Cast':
    case 'Identity':
    case 'Squeeze':
    case 'Unsqueeze':
      return x;
    case 'Gather':
      return y?.map((index) => x[axisIndex(index, x.length)] ?? NaN);
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
    case 'Max':
      return elementwise(x, y, Math.max);
    case 'Min':
      return elementwise(x, y, Math.min);
    case 'And':
      return elementwise(x, y, (a, b) => Number(a !== 0 && b !== 0));
    case 'Equal':
      return elementwise(x, y, (a, b) => Number(a === b));
    case 'Greater':
      return elementwise(x, y, (a, b) => Number(a > b));
    case 'GreaterOrEqual':
      return elementwise(x, y, (a, b) => Number(a >= b));
    case 'Less':
      return elementwise(x, y, (a, b) => Number(a < b));
    case 'LessOrEqual':
      return elementwise(x, y, (a, b) => Number(a <= b));
    case 'Not':
      return x.map((value) => Number(value === 0));
    case 'Or':
      return elementwise(x, y, (a, b) => Number(a !== 0 || b !== 0));
    case 'Where': {
      const [, , z] = inputs;
      const chosen = y && z && elementwise(x, y, (condition, value) => (condition ? value : NaN));
      return chosen && elementwise(chosen, z, (value, other) => (Number.isNaN(value) ? other : value));
    }
    case 'ConstantOfShape':
      return x.length === 1 && x[0]! <= LONGEST_LIST
        ? new Array<number>(x[0]!).fill(intAttribute(node, 'value', 0))
        : undefined;
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
