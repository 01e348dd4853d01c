/**
 * Reads an FP32 ONNX graph as layers: one layer, or one affine map, for each operator. The inverse of
 * layers-to-onnx.ts.
 *
 * Every operator becomes a layer, or an affine map y = scale·x + offset per channel (batch norms, and constants that
 * are added or multiplied). Flatten and Reshape change no numbers and disappear. What is no such operator is refused.
 * Knows nothing of quantization, and moves no numbers between layers: that is fold.ts.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Layer, LayerGraph, Tensor } from '@facetrain/native';
import { elementCount, inputsOf, outputShape, type Shape } from './layer-shapes.ts';

/** y = scale·x + offset per channel. */
export interface AffineMap {
  kind: 'affine';
  name: string;
  input: string;
  output: string;
  scale: Float32Array;
  offset: Float32Array;
}

export type Operation = Layer | AffineMap;

/**
 * The layers of a graph in topological order, an affine map as a pointwise layer.
 * @throws FacetrainError as onnxToOperations
 */
export function onnxToLayers(graph: Graph): LayerGraph {
  return toLayerGraph(graph, onnxToOperations(graph));
}

/**
 * In topological order; the last operation's output has the name of the graph's output.
 * @param graph as onnx/read.ts returns it: finite weights, unique node names, no node that the output does not need
 * @throws FacetrainError UnsupportedOperator naming the operator and its node; InvalidModel
 */
export function onnxToOperations(graph: Graph): Operation[] {
  return new OnnxReader(graph).read();
}

export function toLayerGraph({ input, output }: Graph, operations: Operation[]): LayerGraph {
  return { input: { ...input }, output: { ...output }, layers: operations.map(asLayer) };
}

function asLayer(operation: Operation): Layer {
  if (operation.kind !== 'affine') return operation;
  const { name, input, output, scale, offset } = operation;
  return { kind: 'pointwise', name, input, output, positive: scale, negative: scale, offset };
}

/** What an operation reads. */
export function operandsOf(operation: Operation): string[] {
  return operation.kind === 'affine' ? [operation.input] : inputsOf(operation);
}

/** An ONNX value: the tensor that an operation computes, or its flattened form [N, channels·height·width]. */
interface Value {
  tensor: string;
  shape: Shape;
  flat: boolean;
}

const OPERATORS: Record<string, (reader: OnnxReader, node: GraphNode) => void> = {
  Add: (reader, node) => reader.arithmetic(node),
  BatchNormalization: (reader, node) => reader.batchNorm(node),
  Conv: (reader, node) => reader.conv(node),
  Div: (reader, node) => reader.arithmetic(node),
  Flatten: (reader, node) => reader.flatten(node),
  Gemm: (reader, node) => reader.gemm(node),
  GlobalAveragePool: (reader, node) => reader.pool(node),
  LeakyRelu: (reader, node) => reader.activation(node, () => reader.number(node, 'alpha', 0.01)),
  MatMul: (reader, node) => reader.matMul(node),
  Mul: (reader, node) => reader.arithmetic(node),
  PRelu: (reader, node) => reader.prelu(node),
  Relu: (reader, node) => reader.activation(node, () => 0),
  Reshape: (reader, node) => reader.flatten(node),
  Sub: (reader, node) => reader.arithmetic(node),
};

class OnnxReader {
  private readonly values = new Map<string, Value>();
  private readonly operations: Operation[] = [];
  private readonly graph: Graph;

  constructor(graph: Graph) {
    this.graph = graph;
    const { name, channels, height, width } = graph.input;
    this.values.set(name, { tensor: name, shape: [channels, height, width], flat: false });
  }

  read(): Operation[] {
    for (const node of this.graph.nodes) {
      if (!Object.hasOwn(OPERATORS, node.op))
        throw this.unsupported(node, `operator ${node.op}`, `one of ${Object.keys(OPERATORS).join(', ')}`);
      OPERATORS[node.op]!(this, node);
    }
    const { name, dim } = this.graph.output;
    const output = this.values.get(name);
    if (!output || output.tensor === this.graph.input.name) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: `output "${name}"`,
        found: 'no layer computes it',
        allowed: 'an output that depends on the input through a layer',
      });
    }
    if (elementCount(output.shape) !== dim) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: `output "${name}"`,
        found: `${elementCount(output.shape)} values a picture`,
        allowed: `the ${dim} it declares`,
      });
    }
    return this.operations.map((operation) => renamed(operation, output.tensor, name));
  }

  conv(node: GraphNode): void {
    const input = this.featureMap(node);
    const weight = this.constant(node, 1);
    const group = this.number(node, 'group', 1);
    const [outputs, perGroup] = weight.dims as [number, number];
    if (weight.dims.length !== 4 || perGroup * group !== input.shape[0] || outputs % group !== 0) {
      throw this.unsupported(
        node,
        `weights [${weight.dims.join(', ')}] in ${group} group(s) on ${input.shape[0]} channels`,
        'two-dimensional convolutions whose weights fit their input',
      );
    }
    const strides = this.numbers(node, 'strides', [1, 1]) as [number, number];
    const dilations = this.numbers(node, 'dilations', [1, 1]) as [number, number];
    const pads = this.numbers(node, 'pads', [0, 0, 0, 0]) as [number, number, number, number];
    const bias = node.inputs[2] ? this.floats(node, 2) : new Float32Array(outputs);
    this.emit(node, input, {
      kind: 'conv',
      name: node.name,
      input: input.tensor,
      output: node.outputs[0]!,
      weight,
      bias,
      strides,
      pads,
      dilations,
      group,
    });
  }

  gemm(node: GraphNode): void {
    const input = this.flattened(node);
    const alpha = this.number(node, 'alpha', 1);
    if (this.number(node, 'transA', 0) !== 0)
      throw this.unsupported(node, 'a transposed first operand', 'rows of features');
    const weight = scaled(
      this.number(node, 'transB', 0) ? this.constant(node, 1) : transposed(this.constant(node, 1)),
      alpha,
    );
    const beta = this.number(node, 'beta', 1);
    const bias = node.inputs[2]
      ? this.perChannelConstant(node, 2, weight.dims[0]!, true).map((value) => value * beta)
      : new Float32Array(weight.dims[0]!);
    this.fc(node, input, weight, bias);
  }

  matMul(node: GraphNode): void {
    const matrix = this.constant(node, 1);
    if (matrix.dims.length !== 2)
      throw this.unsupported(node, `weights of shape [${matrix.dims.join(', ')}]`, 'one matrix [features, outputs]');
    const weight = transposed(matrix);
    this.fc(node, this.flattened(node), weight, new Float32Array(weight.dims[0]!));
  }

  private fc(node: GraphNode, input: Value, weight: Tensor<Float32Array>, bias: Float32Array): void {
    if (weight.dims[1] !== elementCount(input.shape)) {
      throw this.unsupported(
        node,
        `weights for ${weight.dims[1]} features on ${elementCount(input.shape)}`,
        'weights that fit their input',
      );
    }
    this.emit(
      node,
      { ...input, flat: true },
      { kind: 'fc', name: node.name, input: input.tensor, output: node.outputs[0]!, weight, bias },
    );
  }

  batchNorm(node: GraphNode): void {
    const input = this.channelwise(node, 0);
    const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((index) => this.floats(node, index)) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    if (gamma.length !== input.shape[0])
      throw this.unsupported(node, `${gamma.length} channels on ${input.shape[0]}`, 'one value a channel');
    const epsilon = this.number(node, 'epsilon', 1e-5);
    const scale = gamma.map((value, channel) => value / Math.sqrt(variance[channel]! + epsilon));
    const bad = scale.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: this.subject(node),
        found: `variance ${variance[bad]} of channel ${bad}`,
        allowed: 'variances whose sum with epsilon is positive',
      });
    }
    this.affine(
      node,
      input,
      scale,
      beta.map((value, channel) => value - mean[channel]! * scale[channel]!),
    );
  }

  /** Add, Sub, Mul and Div: of two tensors only Add is a layer; with a constant, an affine map. */
  arithmetic(node: GraphNode): void {
    const constants = node.inputs.map((name) => Object.hasOwn(this.graph.initializers, name));
    if (!constants[0] && !constants[1]) {
      const [a, b] = [this.value(node, 0), this.value(node, 1)];
      if (node.op !== 'Add')
        throw this.unsupported(node, `${node.op} of two computed tensors`, 'Add of two, or a constant operand');
      if (a.shape.join() !== b.shape.join() || a.flat !== b.flat)
        throw this.unsupported(
          node,
          `shapes [${a.shape.join(', ')}] and [${b.shape.join(', ')}]`,
          'two tensors of one shape',
        );
      this.emit(node, a, { kind: 'add', name: node.name, inputs: [a.tensor, b.tensor], output: node.outputs[0]! });
      return;
    }
    const input = this.channelwise(node, constants[0] ? 1 : 0);
    const channels = input.shape[0];
    const constant = this.perChannelConstant(node, constants[0] ? 0 : 1, channels, input.flat);
    const ones = new Float32Array(channels).fill(1);
    const zeros = new Float32Array(channels);
    if (node.op === 'Add') this.affine(node, input, ones, constant);
    else if (node.op === 'Mul') this.affine(node, input, constant, zeros);
    else if (node.op === 'Sub')
      this.affine(
        node,
        input,
        constants[0] ? ones.map((one) => -one) : ones,
        constants[0] ? constant : constant.map((value) => -value),
      );
    else if (constants[0] || constant.includes(0))
      throw this.unsupported(
        node,
        'a division that is no scaling',
        'a computed tensor divided by constants other than 0',
      );
    else
      this.affine(
        node,
        input,
        constant.map((value) => 1 / value),
        zeros,
      );
  }

  prelu(node: GraphNode): void {
    const input = this.channelwise(node, 0);
    const slope = this.perChannelConstant(node, 1, input.shape[0], input.flat);
    this.activation(node, (channel) => slope[channel]!);
  }

  activation(node: GraphNode, slope: (channel: number) => number): void {
    const input = this.channelwise(node, 0);
    const channels = input.shape[0];
    const negative = Float32Array.from({ length: channels }, (_, channel) => slope(channel));
    this.emit(node, input, {
      kind: 'pointwise',
      name: node.name,
      input: input.tensor,
      output: node.outputs[0]!,
      positive: new Float32Array(channels).fill(1),
      negative,
      offset: new Float32Array(channels),
    });
  }

  pool(node: GraphNode): void {
    const input = this.featureMap(node);
    this.emit(node, input, { kind: 'pool', name: node.name, input: input.tensor, output: node.outputs[0]! });
  }

  /** Flatten, and Reshape to two dimensions: the numbers stay the same. */
  flatten(node: GraphNode): void {
    const input = this.value(node, 0);
    if (node.op === 'Flatten') {
      if (this.number(node, 'axis', 1) !== 1)
        throw this.unsupported(node, `axis ${this.number(node, 'axis', 1)}`, 'axis 1');
    } else {
      const target = node.inputs[1]
        ? Array.from(this.initializer(node, 1).data, Number)
        : this.numbers(node, 'shape', []);
      if (target.length !== 2 || (target[1] !== -1 && target[1] !== elementCount(input.shape))) {
        throw this.unsupported(
          node,
          `shape [${target.join(', ')}]`,
          `a reshape of every picture to its ${elementCount(input.shape)} values`,
        );
      }
    }
    this.values.set(node.outputs[0]!, { ...input, flat: true });
  }

  private affine(node: GraphNode, input: Value, scale: Float32Array, offset: Float32Array): void {
    const output = node.outputs[0]!;
    this.operations.push({ kind: 'affine', name: node.name, input: input.tensor, output, scale, offset });
    this.values.set(output, { ...input, tensor: output });
  }

  private emit(node: GraphNode, input: Value, layer: Layer): void {
    const shape = outputShape(layer, input.shape);
    if (shape.some((length) => length < 1))
      throw this.unsupported(node, `an output of [${shape.join(', ')}]`, 'a kernel that fits into its padded input');
    this.operations.push(layer);
    this.values.set(layer.output, { tensor: layer.output, shape, flat: input.flat });
  }

  private value(node: GraphNode, index: number): Value {
    const value = this.values.get(node.inputs[index] ?? '');
    if (!value)
      throw this.unsupported(
        node,
        `input ${index} ("${node.inputs[index] ?? ''}") that the graph does not compute from its input`,
        'a computed tensor',
      );
    return value;
  }

  private featureMap(node: GraphNode): Value {
    const value = this.value(node, 0);
    if (value.flat) throw this.unsupported(node, 'a flattened input', 'a feature map [N, channels, height, width]');
    return value;
  }

  private flattened(node: GraphNode): Value {
    const value = this.value(node, 0);
    if (!value.flat)
      throw this.unsupported(node, 'a feature map as its input', 'rows of features: put a Flatten in front of it');
    return value;
  }

  /** A value whose second axis is its tensor’s channels, so not a flattened feature map. */
  private channelwise(node: GraphNode, index: number): Value {
    const value = this.value(node, index);
    if (value.flat && elementCount(value.shape) !== value.shape[0])
      throw this.unsupported(node, 'a flattened feature map as its input', 'it in front of the Flatten');
    return value;
  }

  private initializer(node: GraphNode, index: number): Tensor {
    const name = node.inputs[index] ?? '';
    if (!Object.hasOwn(this.graph.initializers, name))
      throw this.unsupported(node, `input ${index} ("${name}") that is computed`, 'a constant');
    return this.graph.initializers[name]!;
  }

  private constant(node: GraphNode, index: number): Tensor<Float32Array> {
    const { dims, data } = this.initializer(node, index);
    if (!(data instanceof Float32Array))
      throw this.unsupported(
        node,
        `input ${index} ("${node.inputs[index]}") of ${data.constructor.name}`,
        '32-bit floats',
      );
    return { dims, data };
  }

  private floats(node: GraphNode, index: number): Float32Array {
    return this.constant(node, index).data;
  }

  /** A constant that ONNX broadcasts over a picture, as one value per channel. */
  private perChannelConstant(node: GraphNode, index: number, channels: number, flat: boolean): Float32Array {
    const { dims, data } = this.constant(node, index);
    if (data.length === 1) return new Float32Array(channels).fill(data[0]!);
    const trailing = flat ? [channels] : [channels, 1, 1];
    const fits = [trailing, [1, ...trailing]].some((want) => want.join() === dims.join());
    if (!fits)
      throw this.unsupported(
        node,
        `a constant of shape [${dims.join(', ')}]`,
        `one number, or one for each of ${channels} channels`,
      );
    return data;
  }

  number(node: GraphNode, attribute: string, fallback: number): number {
    return (node.attributes[attribute] as number | undefined) ?? fallback;
  }

  private numbers(node: GraphNode, attribute: string, fallback: number[]): number[] {
    return (node.attributes[attribute] as number[] | undefined) ?? fallback;
  }

  private subject(node: GraphNode): string {
    return `node "${node.name}" (${node.op})`;
  }

  private unsupported(node: GraphNode, found: string, allowed: string): FacetrainError {
    return new FacetrainError({ code: 'UnsupportedOperator', subject: this.subject(node), found, allowed });
  }
}

function renamed(operation: Operation, from: string, to: string): Operation {
  const rename = (tensor: string): string => (tensor === from ? to : tensor);
  if (operation.kind === 'add')
    return {
      ...operation,
      inputs: [rename(operation.inputs[0]), rename(operation.inputs[1])],
      output: rename(operation.output),
    };
  return { ...operation, input: rename(operation.input), output: rename(operation.output) };
}

function transposed({ dims, data }: Tensor<Float32Array>): Tensor<Float32Array> {
  const [rows, columns] = dims as [number, number];
  const result = new Float32Array(data.length);
  for (let row = 0; row < rows; ++row) {
    for (let column = 0; column < columns; ++column) result[column * rows + row] = data[row * columns + column]!;
  }
  return { dims: [columns, rows], data: result };
}

function scaled(tensor: Tensor<Float32Array>, factor: number): Tensor<Float32Array> {
  return factor === 1 ? tensor : { dims: tensor.dims, data: tensor.data.map((value) => value * factor) };
}
