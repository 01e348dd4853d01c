/**
 * The data that TypeScript and the native addon exchange.
 *
 * TypeScript reads and writes every file format that has a schema (ONNX, JSON manifests, pickles) and validates; C++
 * relies on that. Images are 8-bit RGB, row-major, height x width x 3; tensors are contiguous, NCHW.
 */

export type TypedArray = Float32Array | Int8Array | Uint8Array | Int32Array | BigInt64Array;

/** A constant of a graph. `data.length` is the product of `dims`. */
export interface Tensor<T extends TypedArray = TypedArray> {
  dims: number[];
  data: T;
}

/** One node of an ONNX graph; `attributes` holds ints, floats, strings and lists of them under their ONNX names. */
export interface GraphNode {
  name: string;
  op: string;
  inputs: string[];
  outputs: string[];
  attributes: Record<string, number | number[] | string>;
}

/**
 * How the bytes of a picture become numbers: (byte - mean) / std for each channel, both in units of bytes. mean 127.5
 * and std 127.5 give [-1, 1].
 */
export interface InputRange {
  mean: number[];
  std: number[];
}

/** The picture that a graph reads. */
export interface GraphInput extends Partial<InputRange> {
  name: string;
  channels: number;
  height: number;
  width: number;
  /** The axes of the input in the graph's file; the graph itself reads [N, C, H, W]. Absent: NCHW. */
  layout?: 'NCHW' | 'NHWC' | 'CHW';
  /** What the file's input holds; the graph itself reads floats. Absent: float32. */
  elementType?: 'float32' | 'uint8';
  /**
   * What the graph's file reads, if it differs from what its first layer reads: numbers of this range, which the file
   * maps to scale·x + offset before its first layer. Then `mean` and `std` are those of both maps together.
   */
  file?: InputRange & { scale: number[]; offset: number[] };
}

/** An ONNX graph as plain data. Nodes are in topological order; the batch dimension of input and output is free. */
export interface Graph {
  /** Without `mean` and `std`: [-1, 1]. */
  input: GraphInput;
  /** The first output, and the numbers of all outputs. */
  output: { name: string; dim: number };
  /** Absent: one, [N, dim]. Others are read where they are asked for (onnx/read.ts); only the quantizer knows them. */
  outputs?: GraphOutput[];
  nodes: GraphNode[];
  initializers: Record<string, Tensor>;
}

/**
 * A layer of the network that is quantized: batch norms are folded or have become `pointwise` layers, and every layer
 * has one output. `input` and `output` are names of tensors.
 *
 * conv       weight [O, I/group, kh, kw], bias [O]; zero padding.
 * fc         weight [O, I], bias [O], on the input flattened in NCHW order.
 * pointwise  per channel c: y = offset[c] + (x > 0 ? positive[c] : negative[c]) * x.
 *            PReLU, ReLU, or a batch norm that cannot be folded.
 * add        y = a + b, same shape.
 * pool       global average over height and width.
 * node       ONNX operators that are computed in FP32 from dequantized inputs (native/nodes/float_steps.h).
 */
export type Layer =
  | {
      kind: 'conv';
      name: string;
      input: string;
      output: string;
      weight: Tensor<Float32Array>;
      bias: Float32Array;
      strides: [number, number];
      pads: [number, number, number, number];
      dilations: [number, number];
      group: number;
    }
  | { kind: 'fc'; name: string; input: string; output: string; weight: Tensor<Float32Array>; bias: Float32Array }
  | {
      kind: 'pointwise';
      name: string;
      input: string;
      output: string;
      positive: Float32Array;
      negative: Float32Array;
      offset: Float32Array;
    }
  | { kind: 'add'; name: string; inputs: [string, string]; output: string }
  | { kind: 'pool'; name: string; input: string; output: string }
  | NodeLayer;

/** An operand of a step of a NodeLayer: the layer's input of this index, an earlier step, a constant, or left out. */
export type NodeOperand = { input: number } | { step: number } | { constant: Tensor } | Record<string, never>;

/** One ONNX node, in the semantics of operator set 17 with explicit pads. */
export interface NodeStep {
  op: string;
  attributes: GraphNode['attributes'];
  operands: NodeOperand[];
}

/** Steps for a batch of one picture. Of several, each but the last is read by later steps alone. */
export interface NodeLayer {
  kind: 'node';
  name: string;
  inputs: string[];
  output: string;
  steps: NodeStep[];
  /** With the batch of 1. */
  inputDims: number[][];
  outputDims: number[];
  /**
   * Whether it stays in FP32: it may have values of any rank, and reads integers only where another layer needs them.
   * The output of any other is quantized, and is [1, C, H, W] or [1, d].
   */
  real: boolean;
}

/** An output of a graph: [N, ...dims]. */
export interface GraphOutput {
  name: string;
  dims: number[];
}

export interface LayerGraph {
  input: GraphInput;
  /** The first output, and the numbers of all outputs, one after the other. */
  output: { name: string; dim: number };
  /** Absent: one, [N, dim]. */
  outputs?: GraphOutput[];
  layers: Layer[];
}

/**
 * Scales found for a LayerGraph. Real = (integer - zeroPoint) * scale (the reciprocal of the paper's S). Rounding is
 * half to even.
 *
 * A tensor that a conv or fc reads is an operand of products: its integers lie in [-63, 63] (`limit` 63), and so does
 * its zero point; or it has eight bits, `limit` 127 and zero point 0. Any other quantized tensor (before a PReLU, or
 * inside the residual sum) is only added or mapped: `limit` 127, zero point 0. Tensors between which numbers are only
 * moved (MaxPool, Pad) have one scale, limit and zero point. The graph's outputs stay real, and what only nodes in FP32
 * read.
 *
 * Weights are integers in [-63, 63], one scale per output channel. Biases are int32 at scale weightScale * inputScale.
 */
export interface Scales {
  tensors: Record<string, { scale: number; limit: 63 | 127; zeroPoint: number }>;
  weights: Record<string, { scales: Float32Array; values: Int8Array }>;
  biases: Record<string, Int32Array>;
}
