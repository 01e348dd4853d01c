/**
 * Turns an ONNX graph into the layers that are quantised, the same function in FP32.
 *
 * Two steps. `lower` rewrites every operator as a layer, or as an affine map y = scale·x + offset per channel (batch norms, and constants that
 * are added or multiplied). Then affine maps disappear where that is exact:
 *   - into the convolution or the fully connected layer whose output only they read;
 *   - into the layers that read them. A convolution pads the *output* of a batch norm in front of it with zeros, and the offset of a map that
 *     was folded into it would leak into that border: such a map stays (the first batch norm of IResNet's units) as a `pointwise` layer, unless
 *     the convolution pads nothing or the offset is zero.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Layer, LayerGraph, Tensor } from '@facetrain/native';
import { inputsOf, outputShape, type Shape, size } from './layer-shapes.ts';

type Conv = Extract<Layer, { kind: 'conv' }>;
type Fc = Extract<Layer, { kind: 'fc' }>;

interface Affine {
  kind: 'affine';
  name: string;
  input: string;
  output: string;
  scale: Float32Array;
  offset: Float32Array;
}

type Step = Layer | Affine;

/**
 * @param graph as onnx/read.ts gives it: weights finite, nodes named apart, nothing in it that the output does not need
 * @throws FacetrainError UnsupportedOperator naming the operator and its node; InvalidModel
 */
export function fold(graph: Graph): LayerGraph {
  const { name } = graph.output;
  return layerGraph(graph, foldIntoReaders(foldIntoProducers(new Lowering(graph).steps(), name), name));
}

/** The same without folding: every operator is a layer of its own. */
export function lower(graph: Graph): LayerGraph {
  return layerGraph(graph, new Lowering(graph).steps());
}

function layerGraph({ input, output }: Graph, steps: Step[]): LayerGraph {
  return { input: { ...input }, output: { ...output }, layers: steps.map(asLayer) };
}

/** What an ONNX tensor is: that of a step, perhaps flattened to [N, channels·height·width]. */
interface Value {
  tensor: string;
  shape: Shape;
  flat: boolean;
}

const SUPPORTED: Record<string, (lowering: Lowering, node: GraphNode) => void> = {
  Add: (lowering, node) => lowering.arithmetic(node),
  BatchNormalization: (lowering, node) => lowering.batchNorm(node),
  Conv: (lowering, node) => lowering.conv(node),
  Div: (lowering, node) => lowering.arithmetic(node),
  Flatten: (lowering, node) => lowering.flatten(node),
  Gemm: (lowering, node) => lowering.gemm(node),
  GlobalAveragePool: (lowering, node) => lowering.pool(node),
  LeakyRelu: (lowering, node) => lowering.activation(node, () => lowering.number(node, 'alpha', 0.01)),
  MatMul: (lowering, node) => lowering.matMul(node),
  Mul: (lowering, node) => lowering.arithmetic(node),
  PRelu: (lowering, node) => lowering.prelu(node),
  Relu: (lowering, node) => lowering.activation(node, () => 0),
  Reshape: (lowering, node) => lowering.flatten(node),
  Sub: (lowering, node) => lowering.arithmetic(node),
};

class Lowering {
  private readonly values = new Map<string, Value>();
  private readonly lowered: Step[] = [];
  private readonly graph: Graph;

  constructor(graph: Graph) {
    this.graph = graph;
    const { name, channels, height, width } = graph.input;
    this.values.set(name, { tensor: name, shape: [channels, height, width], flat: false });
  }

  /** In topological order; the tensor that is the graph's output bears its name. */
  steps(): Step[] {
    for (const node of this.graph.nodes) {
      if (!Object.hasOwn(SUPPORTED, node.op))
        throw this.unsupported(node, `operator ${node.op}`, `one of ${Object.keys(SUPPORTED).join(', ')}`);
      SUPPORTED[node.op]!(this, node);
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
    if (size(output.shape) !== dim) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: `output "${name}"`,
        found: `${size(output.shape)} values a picture`,
        allowed: `the ${dim} it declares`,
      });
    }
    return this.lowered.map((step) => renamed(step, output.tensor, name));
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
    const pads = this.numbers(node, 'pads', [0, 0, 0, 0]) as Conv['pads'];
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
      ? this.spread(node, 2, weight.dims[0]!, true).map((value) => value * beta)
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
    if (weight.dims[1] !== size(input.shape)) {
      throw this.unsupported(
        node,
        `weights for ${weight.dims[1]} features on ${size(input.shape)}`,
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
    const input = this.perChannel(node, 0);
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
    const input = this.perChannel(node, constants[0] ? 1 : 0);
    const channels = input.shape[0];
    const constant = this.spread(node, constants[0] ? 0 : 1, channels, input.flat);
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
    const input = this.perChannel(node, 0);
    const slope = this.spread(node, 1, input.shape[0], input.flat);
    this.activation(node, (channel) => slope[channel]!);
  }

  activation(node: GraphNode, slope: (channel: number) => number): void {
    const input = this.perChannel(node, 0);
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

  /** Flatten, and Reshape to two dimensions: nothing happens to the numbers. */
  flatten(node: GraphNode): void {
    const input = this.value(node, 0);
    if (node.op === 'Flatten') {
      if (this.number(node, 'axis', 1) !== 1)
        throw this.unsupported(node, `axis ${this.number(node, 'axis', 1)}`, 'axis 1');
    } else {
      const target = node.inputs[1]
        ? Array.from(this.initializer(node, 1).data, Number)
        : this.numbers(node, 'shape', []);
      if (target.length !== 2 || (target[1] !== -1 && target[1] !== size(input.shape))) {
        throw this.unsupported(
          node,
          `shape [${target.join(', ')}]`,
          `a reshape of every picture to its ${size(input.shape)} values`,
        );
      }
    }
    this.values.set(node.outputs[0]!, { ...input, flat: true });
  }

  private affine(node: GraphNode, input: Value, scale: Float32Array, offset: Float32Array): void {
    const output = node.outputs[0]!;
    this.lowered.push({ kind: 'affine', name: node.name, input: input.tensor, output, scale, offset });
    this.values.set(output, { ...input, tensor: output });
  }

  private emit(node: GraphNode, input: Value, layer: Layer): void {
    const shape = outputShape(layer, input.shape);
    if (shape.some((length) => length < 1))
      throw this.unsupported(node, `an output of [${shape.join(', ')}]`, 'a kernel that fits into its padded input');
    this.lowered.push(layer);
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

  /** A value whose channels are those of its tensor: a flattened feature map has lost them. */
  private perChannel(node: GraphNode, index: number): Value {
    const value = this.value(node, index);
    if (value.flat && size(value.shape) !== value.shape[0])
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

  /** A constant that ONNX broadcasts over a picture, as one value a channel. */
  private spread(node: GraphNode, index: number, channels: number, flat: boolean): Float32Array {
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

  number(node: GraphNode, attribute: string, otherwise: number): number {
    return (node.attributes[attribute] as number | undefined) ?? otherwise;
  }

  private numbers(node: GraphNode, attribute: string, otherwise: number[]): number[] {
    return (node.attributes[attribute] as number[] | undefined) ?? otherwise;
  }

  private subject(node: GraphNode): string {
    return `node "${node.name}" (${node.op})`;
  }

  private unsupported(node: GraphNode, found: string, allowed: string): FacetrainError {
    return new FacetrainError({ code: 'UnsupportedOperator', subject: this.subject(node), found, allowed });
  }
}

function readBy(step: Step): string[] {
  return step.kind === 'affine' ? [step.input] : inputsOf(step);
}

function renamed(step: Step, from: string, to: string): Step {
  const rename = (tensor: string): string => (tensor === from ? to : tensor);
  if (step.kind === 'add')
    return { ...step, inputs: [rename(step.inputs[0]), rename(step.inputs[1])], output: rename(step.output) };
  return { ...step, input: rename(step.input), output: rename(step.output) };
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

/** Folds each affine map into the layer or the map in front of it, where nothing else reads that one's output. */
function foldIntoProducers(steps: Step[], output: string): Step[] {
  const readers = countReaders(steps, output);
  const producers = new Map<string, Step>();
  const result: Step[] = [];
  for (const step of steps) {
    const producer = step.kind === 'affine' && readers.get(step.input) === 1 ? producers.get(step.input) : undefined;
    if (
      step.kind === 'affine' &&
      (producer?.kind === 'conv' || producer?.kind === 'fc' || producer?.kind === 'affine')
    ) {
      const merged = {
        ...(producer.kind === 'affine' ? affineAfterAffine(producer, step) : affineAfterWeights(producer, step)),
        output: step.output,
      };
      result[result.indexOf(producer)] = merged;
      producers.set(step.output, merged);
    } else {
      result.push(step);
      producers.set(step.output, step);
    }
  }
  return result;
}

function affineAfterAffine(first: Affine, second: Affine): Affine {
  const scale = first.scale.map((value, channel) => value * second.scale[channel]!);
  const offset = first.offset.map((value, channel) => value * second.scale[channel]! + second.offset[channel]!);
  return { ...first, scale, offset };
}

function affineAfterWeights<Weighted extends Conv | Fc>(layer: Weighted, { scale, offset }: Affine): Weighted {
  const perOutput = layer.weight.data.length / layer.bias.length;
  const data = layer.weight.data.map((value, index) => value * scale[Math.floor(index / perOutput)]!);
  const bias = layer.bias.map((value, channel) => value * scale[channel]! + offset[channel]!);
  return { ...layer, weight: { dims: layer.weight.dims, data }, bias };
}

/** Folds each remaining affine map into the layers that read it, where all of them can take it exactly. From the end, so that a chain folds whole. */
function foldIntoReaders(steps: Step[], output: string): Step[] {
  let result = steps;
  for (const step of steps.toReversed()) {
    if (step.kind !== 'affine' || step.output === output) continue;
    const readers = result.filter((reader) => readBy(reader).includes(step.output));
    if (!readers.every((reader) => takesExactly(reader, step))) continue;
    result = result
      .filter((other) => other !== step)
      .map((other) => (readers.includes(other) ? weightsAfterAffine(other as Conv | Fc, step) : other));
  }
  return result;
}

function takesExactly(reader: Step, { offset }: Affine): boolean {
  if (reader.kind === 'fc') return true;
  return reader.kind === 'conv' && (reader.pads.every((pad) => pad === 0) || offset.every((value) => value === 0));
}

/** The layer that does what `affine` and then `layer` did. */
function weightsAfterAffine<Weighted extends Conv | Fc>(layer: Weighted, { input, scale, offset }: Affine): Weighted {
  const outputs = layer.bias.length;
  const perOutput = layer.weight.data.length / outputs;
  const group = layer.kind === 'conv' ? layer.group : 1;
  // Of a flattened feature map, neighbouring weights share a channel, as those of a kernel do.
  const perChannel = layer.kind === 'conv' ? layer.weight.dims[2]! * layer.weight.dims[3]! : perOutput / scale.length;
  const data = new Float32Array(layer.weight.data.length);
  const bias = new Float32Array(outputs);
  for (let out = 0; out < outputs; ++out) {
    const firstChannel = Math.floor(out / (outputs / group)) * (perOutput / perChannel);
    let sum = layer.bias[out]!;
    for (let index = 0; index < perOutput; ++index) {
      const channel = firstChannel + Math.floor(index / perChannel);
      const weight = layer.weight.data[out * perOutput + index]!;
      data[out * perOutput + index] = weight * scale[channel]!;
      sum += weight * offset[channel]!;
    }
    bias[out] = sum;
  }
  return { ...layer, input, weight: { dims: layer.weight.dims, data }, bias };
}

function countReaders(steps: Step[], output: string): Map<string, number> {
  const readers = new Map([[output, 1]]);
  for (const step of steps) for (const input of readBy(step)) readers.set(input, (readers.get(input) ?? 0) + 1);
  return readers;
}

function asLayer(step: Step): Layer {
  if (step.kind !== 'affine') return step;
  const { name, input, output, scale, offset } = step;
  return { kind: 'pointwise', name, input, output, positive: scale, negative: scale, offset };
}
