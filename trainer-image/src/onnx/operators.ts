/**
 * The operators of a normalised graph (normalize.ts), and what reads each. The tests of both readers check this table
 * against them: the native executor (native/model/operators.cc) and the quantizer (quantize/onnx-to-layers.ts).
 */

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
