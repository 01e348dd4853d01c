/**
 * Reads an FP32 ONNX graph as layers: one layer, or one affine map, for each operator. The inverse of
 * layers-to-onnx.ts.
 *
 * Every operator becomes a layer, or an affine map y = scale·x + offset per channel (batch norms, and constants that
 * are added or multiplied). Flatten and Reshape change no numbers and disappear. Other operators are refused.
 * Knows nothing of quantization, and moves no numbers between layers: that is fold.ts.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Layer, LayerGraph, Tensor } from '@facetrain/native';
import { arithmeticMap, batchNormMap } from '../onnx/channel-map.ts';
import { elementCount, inputsOf, outputShape } from './layer-shapes.ts';
import { Operands, type Value } from './onnx-operands.ts';

/** y = scale·x + offset per channel, or per value of a flattened feature map: in front of an fc, that is as good. */
export interface AffineMap {
  kind: 'affine';
  name: string;
  /** The node, for messages, where there is a scale for each value of a map. */
  perValue?: string;
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
  const { name, perValue, input, output, scale, offset } = operation;
  if (perValue !== undefined)
    throw new FacetrainError({
      code: 'UnsupportedOperator',
      subject: perValue,
      found: 'a scale or an offset for each value of a feature map',
      allowed: 'one for each channel, or in front of a Gemm or MatMul',
    });
  return { kind: 'pointwise', name, input, output, positive: scale, negative: scale, offset };
}

/** The tensors that an operation reads. */
export function operandsOf(operation: Operation): string[] {
  return operation.kind === 'affine' ? [operation.input] : inputsOf(operation);
}

/** How each operator is read. */
const OPERATORS: Record<string, (reader: OnnxReader, node: GraphNode) => void> = {
  Add: (reader, node) => reader.arithmetic(node),
  BatchNormalization: (reader, node) => reader.batchNorm(node),
  Conv: (reader, node) => reader.conv(node),
  Div: (reader, node) => reader.arithmetic(node),
  Flatten: (reader, node) => reader.flatten(node),
  Gemm: (reader, node) => reader.gemm(node),
  GlobalAveragePool: (reader, node) => reader.pool(node),
  LeakyRelu: (reader, node) => reader.activation(node, () => reader.operands.number(node, 'alpha', 0.01)),
  MatMul: (reader, node) => reader.matMul(node),
  Mul: (reader, node) => reader.arithmetic(node),
  PRelu: (reader, node) => reader.prelu(node),
  Relu: (reader, node) => reader.activation(node, () => 0),
  Reshape: (reader, node) => reader.flatten(node),
  Sub: (reader, node) => reader.arithmetic(node),
};

class OnnxReader {
  readonly operands: Operands;
  private readonly graph: Graph;
  private readonly operations: Operation[] = [];

  constructor(graph: Graph) {
    this.graph = graph;
    this.operands = new Operands(graph);
  }

  read(): Operation[] {
    for (const node of this.graph.nodes) {
      if (!Object.hasOwn(OPERATORS, node.op))
        throw this.operands.unsupported(node, `operator ${node.op}`, `one of ${Object.keys(OPERATORS).join(', ')}`);
      OPERATORS[node.op]!(this, node);
    }
    const { name, dim } = this.graph.output;
    const output = this.operands.find(name);
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
    const input = this.operands.featureMap(node);
    const weight = this.operands.constant(node, 1);
    const group = this.operands.number(node, 'group', 1);
    const [outputs, perGroup] = weight.dims as [number, number];
    if (weight.dims.length !== 4 || perGroup * group !== input.shape[0] || outputs % group !== 0) {
      throw this.operands.unsupported(
        node,
        `weights [${weight.dims.join(', ')}] in ${group} group(s) on ${input.shape[0]} channels`,
        'two-dimensional convolutions whose weights fit their input',
      );
    }
    const strides = this.operands.numbers(node, 'strides', [1, 1]) as [number, number];
    const dilations = this.operands.numbers(node, 'dilations', [1, 1]) as [number, number];
    const pads = this.operands.numbers(node, 'pads', [0, 0, 0, 0]) as [number, number, number, number];
    const bias = node.inputs[2] ? this.operands.floats(node, 2) : new Float32Array(outputs);
    this.addLayer(node, input, {
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
    const input = this.operands.flattened(node);
    const alpha = this.operands.number(node, 'alpha', 1);
    if (this.operands.number(node, 'transA', 0) !== 0)
      throw this.operands.unsupported(node, 'a transposed first operand', 'rows of features');
    const weight = scaled(
      this.operands.number(node, 'transB', 0)
        ? this.operands.constant(node, 1)
        : transposed(this.operands.constant(node, 1)),
      alpha,
    );
    const beta = this.operands.number(node, 'beta', 1);
    const bias = node.inputs[2]
      ? this.operands.perChannelConstant(node, 2, weight.dims[0]!, true).map((value) => value * beta)
      : new Float32Array(weight.dims[0]!);
    this.fc(node, input, weight, bias);
  }

  matMul(node: GraphNode): void {
    const matrix = this.operands.constant(node, 1);
    if (matrix.dims.length !== 2)
      throw this.operands.unsupported(
        node,
        `weights of shape [${matrix.dims.join(', ')}]`,
        'one matrix [features, outputs]',
      );
    const weight = transposed(matrix);
    this.fc(node, this.operands.flattened(node), weight, new Float32Array(weight.dims[0]!));
  }

  private fc(node: GraphNode, input: Value, weight: Tensor<Float32Array>, bias: Float32Array): void {
    if (weight.dims[1] !== elementCount(input.shape)) {
      throw this.operands.unsupported(
        node,
        `weights for ${weight.dims[1]} features on ${elementCount(input.shape)}`,
        'weights that fit their input',
      );
    }
    this.addLayer(
      node,
      { ...input, flat: true },
      { kind: 'fc', name: node.name, input: input.tensor, output: node.outputs[0]!, weight, bias },
    );
  }

  batchNorm(node: GraphNode): void {
    const input = this.operands.value(node, 0);
    const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((index) => this.operands.floats(node, index)) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const channels = input.flat ? elementCount(input.shape) : input.shape[0];
    if (gamma.length !== channels)
      throw this.operands.unsupported(node, `${gamma.length} channels on ${channels}`, 'one value a channel');
    const { scale, offset } = batchNormMap([gamma, beta, mean, variance], this.operands.number(node, 'epsilon', 1e-5));
    const bad = scale.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: this.operands.subject(node),
        found: `variance ${variance[bad]} of channel ${bad}`,
        allowed: 'variances whose sum with epsilon is positive',
      });
    }
    this.addAffine(node, input, scale, offset);
  }

  /** Add, Sub, Mul and Div: of two tensors only Add is a layer; with a constant, an affine map. */
  arithmetic(node: GraphNode): void {
    const constants = node.inputs.map((name) => this.operands.isConstant(name));
    if (!constants[0] && !constants[1]) {
      const [a, b] = [this.operands.value(node, 0), this.operands.value(node, 1)];
      if (node.op !== 'Add')
        throw this.operands.unsupported(
          node,
          `${node.op} of two computed tensors`,
          'Add of two, or a constant operand',
        );
      if (a.shape.join() !== b.shape.join() || a.flat !== b.flat)
        throw this.operands.unsupported(
          node,
          `shapes [${a.shape.join(', ')}] and [${b.shape.join(', ')}]`,
          'two tensors of one shape',
        );
      this.addLayer(node, a, { kind: 'add', name: node.name, inputs: [a.tensor, b.tensor], output: node.outputs[0]! });
      return;
    }
    const input = this.operands.value(node, constants[0] ? 1 : 0);
    const channels = input.flat ? elementCount(input.shape) : input.shape[0];
    const constant = this.operands.perChannelConstant(node, constants[0] ? 0 : 1, channels, input.flat);
    const map = arithmeticMap(node.op, constant, constants[0]!);
    if (!map)
      throw this.operands.unsupported(
        node,
        'a division that is no scaling',
        'a computed tensor divided by constants other than 0',
      );
    this.addAffine(node, input, map.scale, map.offset);
  }

  prelu(node: GraphNode): void {
    const input = this.operands.channelwise(node, 0);
    const slope = this.operands.perChannelConstant(node, 1, input.shape[0], input.flat);
    this.activation(node, (channel) => slope[channel]!);
  }

  activation(node: GraphNode, slope: (channel: number) => number): void {
    const input = this.operands.channelwise(node, 0);
    const channels = input.shape[0];
    const negative = Float32Array.from({ length: channels }, (_, channel) => slope(channel));
    this.addLayer(node, input, {
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
    const input = this.operands.featureMap(node);
    this.addLayer(node, input, { kind: 'pool', name: node.name, input: input.tensor, output: node.outputs[0]! });
  }

  /** Flatten, and Reshape to two dimensions or to [N, C, 1, 1]: the numbers stay the same. */
  flatten(node: GraphNode): void {
    const input = this.operands.value(node, 0);
    if (node.op === 'Flatten') {
      if (this.operands.number(node, 'axis', 1) !== 1)
        throw this.operands.unsupported(node, `axis ${this.operands.number(node, 'axis', 1)}`, 'axis 1');
    } else {
      const target = node.inputs[1]
        ? Array.from(this.operands.initializer(node, 1).data, Number)
        : this.operands.numbers(node, 'shape', []);
      const [channels] = input.shape;
      if (elementCount(input.shape) === channels && target.slice(1).join() === `${channels},1,1`) {
        this.operands.define(node.outputs[0]!, { ...input, flat: false });
        return;
      }
      if (target.length !== 2 || (target[1] !== -1 && target[1] !== elementCount(input.shape))) {
        throw this.operands.unsupported(
          node,
          `shape [${target.join(', ')}]`,
          `a reshape of every picture to its ${elementCount(input.shape)} values`,
        );
      }
    }
    this.operands.define(node.outputs[0]!, { ...input, flat: true });
  }

  /** Adds an affine map. */
  private addAffine(node: GraphNode, input: Value, scale: Float32Array, offset: Float32Array): void {
    const output = node.outputs[0]!;
    const perValue = scale.length === input.shape[0] ? {} : { perValue: this.operands.subject(node) };
    this.operations.push({ kind: 'affine', name: node.name, ...perValue, input: input.tensor, output, scale, offset });
    this.operands.define(output, { ...input, tensor: output });
  }

  /** Adds a layer. */
  private addLayer(node: GraphNode, input: Value, layer: Layer): void {
    const shape = outputShape(layer, input.shape);
    if (shape.some((length) => length < 1))
      throw this.operands.unsupported(
        node,
        `an output of [${shape.join(', ')}]`,
        'a kernel that fits into its padded input',
      );
    this.operations.push(layer);
    this.operands.define(layer.output, { tensor: layer.output, shape, flat: input.flat });
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
  if (operation.kind === 'node')
    return { ...operation, inputs: operation.inputs.map(rename), output: rename(operation.output) };
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
