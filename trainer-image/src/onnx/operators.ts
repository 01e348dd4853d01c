/**
 * The operators of a normalised graph (normalize.ts), and what reads each. The tests of both readers check this table
 * against them: the native executor (native/model/operators.cc) and the quantizer (quantize/onnx-to-layers.ts).
 */
import type { GraphNode, Tensor } from '@facetrain/native';

/** The operator set whose semantics a Graph has. Files of other operator sets are translated when they are read. */
export const OPSET = 17;

/**
 * Operators that every command reads. Values are maps [N, C, H, W] or vectors [N, d]; constants of PRelu and of
 * arithmetic are one number, [C, 1, 1] for a map, or [d] for a vector; targets of Reshape are constant and begin with
 * 0.
 */
export const CANONICAL_OPERATORS = [
  'Add',
  'BatchNormalization',
  'Conv',
  'Div',
  'Flatten',
  'Gemm',
  'GlobalAveragePool',
  'LeakyRelu',
  'MatMul',
  'Mul',
  'PRelu',
  'Relu',
  'Reshape',
  'Sub',
] as const;

/** Operators that the executor runs, so inspect, eval and train; the quantizer has no layer for them. */
export const FLOAT_OPERATORS = ['AveragePool', 'Clip', 'Concat', 'MaxPool', 'Sigmoid', 'Tanh', 'Transpose'] as const;

/** Whether a node computes a Relu: also a Clip from 0 to infinity, and Max with 0. */
export function isRelu({ op, inputs }: GraphNode, constantOf: (name: string) => Tensor | undefined): boolean {
  if (op === 'Relu') return true;
  const low = constantOf(inputs[1] ?? '');
  return (op === 'Clip' || op === 'Max') && !inputs[2] && low?.data.length === 1 && Number(low.data[0]) === 0;
}
