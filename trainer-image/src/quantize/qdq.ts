/**
 * The file format of an INT7 network, `model.int7.onnx`: an FP32 ONNX graph in which every quantized tensor passes
 * through QuantizeLinear and DequantizeLinear (Q/DQ). encodeInt7 writes it; decodeInt7 reads back the same integers
 * and scales.
 *
 * This file adds and removes the Q/DQ pairs. It calls layers-to-onnx.ts and onnx-to-layers.ts, which convert between
 * layers and the FP32 graph and do not depend on this file.
 *
 * ONNX has no 7-bit type:
 * - Weights are int8 within ±63, with one scale per output channel.
 * - Activations are uint8, because ONNX Runtime has integer kernels for them. With int8 activations it computes
 *   residual additions in float. Their zero point is 128 more than that of the scales.
 * - Every tensor that a layer reads is quantized once. So there is a Q/DQ pair before and after each PRelu, and before
 *   and after each Flatten, there with the same scale.
 * - A PRelu is written in parts (onnx/prelu-parts.ts), which parseOnnx joins; for TensorRT it stays one node.
 * - TensorRT wants int8 activations with zero point 0, and biases in FP32. It gets a file of its own, which decodeInt7
 *   does not read. Its integers are ours less the zero point: within ±126, so int8 holds them.
 * - Our runtime clamps the operands of convolutions at 7 bits. Other runtimes clamp them at 8 bits, which loses no more
 *   accuracy.
 * - An operand may have 8 bits in our runtime, too (search.budget). Its zero point is 128, and the graph is no other.
 *   The scales of the biases behind it have axis -1 instead of 0, which is the same for a bias: readers of before,
 *   which would clamp at 7 bits, refuse it, and to ONNX Runtime it makes no difference.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Layer, LayerGraph, Scales, Tensor } from '@facetrain/native';
import { splitPRelus } from '../onnx/prelu-parts.ts';
import { UniqueNames } from '../onnx/unique-names.ts';
import { inputsOf } from './layer-shapes.ts';
import { type WrittenLayers, writeLayers } from './layers-to-onnx.ts';
import { movesNumbers } from './node-layers.ts';
import { onnxToLayers } from './onnx-to-layers.ts';

/** The largest absolute value of a weight, and of an activation that weights multiply. */
export const WEIGHT_LIMIT = 63;
/** The uint8 of the integer 0. */
const UINT8_ZERO = 128;
/** Of the biases of layers whose operands have 8 bits. */
const WIDE_AXIS = -1;

/**
 * The largest absolute value of each quantized tensor's integers: 63 where a conv or fc multiplies it, or a tensor that
 * has its scale, else 127. The tensors that only nodes in FP32 read are not quantized.
 * @param wide the names of the conv and fc layers whose operands have 8 bits: 127
 * @throws FacetrainError InvalidArtifact when one of two layers that read the same integers is wide
 */
export function activationLimits(graph: LayerGraph, wide: ReadonlySet<string> = new Set()): Map<string, 63 | 127> {
  const quantized = quantizedTensors(graph);
  const scaleOf = sharedScales(graph);
  const operands = new Map<string, 63 | 127>();
  for (const layer of graph.layers) {
    if (layer.kind !== 'conv' && layer.kind !== 'fc') continue;
    const limit = wide.has(layer.name) ? 127 : 63;
    const first = scaleOf(layer.input);
    if ((operands.get(first) ?? limit) !== limit)
      throw invalidArtifact(`layer "${layer.name}"`, 'it reads integers of other bits than another layer');
    operands.set(first, limit);
  }
  const tensors = [graph.input.name, ...graph.layers.map(({ output }) => output)].filter((name) => quantized.has(name));
  return new Map(tensors.map((name) => [name, operands.get(scaleOf(name)) ?? 127]));
}

/** The tensors that layers read as integers. */
function quantizedTensors({ layers }: LayerGraph): Set<string> {
  return new Set(layers.flatMap((layer) => (layer.kind === 'node' && layer.real ? [] : inputsOf(layer))));
}

/** The first tensor that has the same scale as the given one (native/quant/layer_graph.cc, share_scales). */
export function sharedScales(graph: LayerGraph): (tensor: string) => string {
  const quantized = quantizedTensors(graph);
  const first = new Map<string, string>();
  const scaleOf = (tensor: string) => first.get(tensor) ?? tensor;
  for (const layer of graph.layers) {
    if (layer.kind !== 'node' || layer.inputs.length !== 1 || !layer.steps.every(movesNumbers)) continue;
    const [input] = layer.inputs as [string];
    if (quantized.has(input) && quantized.has(layer.output)) first.set(layer.output, scaleOf(input));
  }
  return scaleOf;
}

export interface EncodeInt7Options {
  /** ONNX Runtime's form, which decodeInt7 and our runtime read, too; or TensorRT's. */
  runtime?: 'onnxruntime' | 'tensorrt';
  clamp?: boolean;
}

/**
 * @param clamp clamps operands at 7 bits in other runtimes, too. ONNX Runtime then computes convolutions in float, so
 * this is for comparisons only.
 */
export function encodeInt7(layers: LayerGraph, scales: Scales, options: EncodeInt7Options = {}): Graph {
  const graph = new QdqWriter(writeLayers(layers), scales, options).write();
  return options.runtime === 'tensorrt' ? graph : splitPRelus(graph);
}

/** Copies an FP32 graph and puts Q/DQ pairs between its nodes; weights and biases become dequantized integers. */
class QdqWriter {
  private readonly float: Graph;
  private readonly written: WrittenLayers;
  private readonly scales: Scales;
  private readonly clamp: boolean;
  private readonly forTensorRt: boolean;
  private readonly names: UniqueNames;
  private readonly nodes: GraphNode[] = [];
  private readonly initializers: Record<string, Tensor> = {};
  /** The dequantized value of each FP32 value that was quantized. */
  private readonly dequantized = new Map<string, string>();
  /** Views of tensors that stay FP32. */
  private readonly realViews = new Set<string>();

  constructor(written: WrittenLayers, scales: Scales, { runtime = 'onnxruntime', clamp = false }: EncodeInt7Options) {
    const float = written.graph;
    this.float = float;
    this.written = written;
    this.scales = scales;
    this.clamp = clamp;
    this.forTensorRt = runtime === 'tensorrt';
    this.names = new UniqueNames([float.input.name, ...float.nodes.flatMap(({ name, outputs }) => [name, ...outputs])]);
  }

  write(): Graph {
    const { views, inner } = this.written;
    for (const node of this.float.nodes) {
      if (views.has(node.outputs[0]!)) continue; // activation() writes it, where its value is first read.
      const inputs = node.inputs.map((name, index) => {
        if (name === '' || inner.has(name)) return name;
        if (Object.hasOwn(this.float.initializers, name)) return this.constantOperand(node, name, index);
        return this.activation(name);
      });
      this.nodes.push({ ...node, inputs });
    }
    return { ...this.float, nodes: this.nodes, initializers: this.initializers };
  }

  private constantOperand(node: GraphNode, name: string, index: number): string {
    const constant = this.float.initializers[name]!;
    const weight = Object.hasOwn(this.scales.weights, node.name) ? this.scales.weights[node.name] : undefined;
    if (!weight) return this.constant(name, constant);
    return index === 1
      ? this.weight(node, { dims: constant.dims, data: weight.values }, weight.scales)
      : this.bias(node.name, this.tensorOf(node.inputs[0]!), weight.scales);
  }

  /**
   * Quantizes and dequantizes a tensor, or a view of one. Nodes that read the same tensor share one Q/DQ pair. One that
   * stays FP32 is read as it is.
   */
  private activation(value: string): string {
    const known = this.dequantized.get(value);
    if (known !== undefined) return known;
    const view = this.written.views.get(value);
    const tensor = this.tensorOf(value);
    const quantization = Object.hasOwn(this.scales.tensors, tensor) ? this.scales.tensors[tensor] : undefined;
    if (view && !this.realViews.has(value)) {
      const [source, ...constants] = view.inputs as [string, ...string[]];
      const shape = constants.map((name) => this.constant(name, this.float.initializers[name]!));
      this.nodes.push({ ...view, inputs: [this.activation(source), ...shape] });
      if (!quantization) this.realViews.add(value);
    }
    if (!quantization) return value;

    const { scale, limit, zeroPoint } = quantization;
    let real = value;
    if (this.clamp && limit === 63) {
      const low = this.constant(`${value}.low`, scalar(Float32Array.of((-limit - zeroPoint) * scale)));
      const high = this.constant(`${value}.high`, scalar(Float32Array.of((limit - zeroPoint) * scale)));
      real = this.node(`${value}.clamped`, 'Clip', [value, low, high]);
    }
    const parameters = [
      this.constant(`${tensor}.scale`, scalar(Float32Array.of(scale))),
      this.zeroPoint(tensor, zeroPoint),
    ];
    const integers = this.node(`${value}.quantized`, 'QuantizeLinear', [real, ...parameters]);
    const dequantized = this.node(`${value}.dequantized`, 'DequantizeLinear', [integers, ...parameters]);
    this.dequantized.set(value, dequantized);
    return dequantized;
  }

  /** Tensors whose zero point is 0 share one constant. */
  private zeroPoint(tensor: string, zeroPoint: number): string {
    if (this.forTensorRt) return this.constant('zero_point', scalar(Int8Array.of(0)));
    const name = zeroPoint === 0 ? 'zero_point' : `${tensor}.zero_point`;
    return this.constant(name, scalar(Uint8Array.of(UINT8_ZERO + zeroPoint)));
  }

  private weight({ name, op }: GraphNode, integers: Tensor, scales: Float32Array): string {
    // Without them ONNX Runtime computes a Gemm in float. With TensorRT nothing was tried.
    const zeroPoints = op === 'Gemm' || this.forTensorRt ? new Int8Array(scales.length) : undefined;
    return this.perOutputChannel(`${name}.weight`, integers, scales, { zeroPoints });
  }

  private bias(layer: string, input: string, weightScales: Float32Array): string {
    const values = this.scales.biases[layer]!;
    const { scale, limit } = this.scales.tensors[input]!;
    const scales = biasScales(scale, weightScales);
    const integers = { dims: [values.length], data: values };
    if (this.forTensorRt) {
      const real = Float32Array.from(values, (value, output) => value * scales[output]!);
      return this.constant(`${layer}.bias`, { dims: integers.dims, data: real });
    }
    const axis = limit === WEIGHT_LIMIT ? 0 : WIDE_AXIS;
    return this.perOutputChannel(`${layer}.bias`, integers, scales, { axis });
  }

  /**
   * A constant of integers with one scale for each entry of its first axis.
   * @param axis its number
   * @param zeroPoints zeros; absent, they are 0 as well, in fewer bytes
   */
  private perOutputChannel(
    name: string,
    integers: Tensor,
    scales: Float32Array,
    { axis = 0, zeroPoints }: { axis?: number; zeroPoints?: Int8Array | undefined },
  ): string {
    const dims = [scales.length];
    const inputs = [
      this.constant(`${name}.quantized`, integers),
      this.constant(`${name}.scale`, { dims, data: scales }),
      ...(zeroPoints ? [this.constant(`${name}.zero_point`, { dims, data: zeroPoints })] : []),
    ];
    return this.node(name, 'DequantizeLinear', inputs, { axis });
  }

  /** The tensor that a value is, or is a view of. */
  private tensorOf(value: string): string {
    return this.written.views.get(value)?.inputs[0] ?? value;
  }

  /** Adds a node with one output of the same name, and returns the name. */
  private node(preferredName: string, op: string, inputs: string[], attributes: GraphNode['attributes'] = {}): string {
    const name = this.names.take(preferredName);
    this.nodes.push({ name, op, inputs, outputs: [name], attributes });
    return name;
  }

  /** Adds a constant, or reuses the one with the preferred name if its numbers are the same. Returns the name. */
  private constant(preferredName: string, tensor: Tensor): string {
    const existing = Object.hasOwn(this.initializers, preferredName)
      ? this.initializers[preferredName]!.data
      : undefined;
    if (existing?.length === tensor.data.length && existing.every((value, index) => value === tensor.data[index]))
      return preferredName;
    const name = this.names.take(preferredName);
    this.initializers[name] = tensor;
    return name;
  }
}

function scalar(data: Float32Array | Uint8Array | Int8Array): Tensor {
  return { dims: [], data };
}

/** A bias is added to sums of products, so its scale is the product of the two scales, in 32 bits as in the runtime. */
function biasScales(inputScale: number, weightScales: Float32Array): Float32Array {
  return weightScales.map((scale) => inputScale * scale);
}

/** Whether a model is quantized, by us or by others. */
export function isQuantized({ nodes }: Graph): boolean {
  return nodes.some(({ op }) => op === 'QuantizeLinear' || op === 'DequantizeLinear');
}

/**
 * Reads back what encodeInt7 wrote: the same integers and scales. The layers' weights and biases are the real values of
 * those integers.
 * @throws FacetrainError InvalidArtifact for a graph that encodeInt7 did not write, or wrote for TensorRT
 */
export function decodeInt7(graph: Graph): { layers: LayerGraph; scales: Scales } {
  refuseTensorRtForm(graph);
  const { float, quantizationOf, integersOf, unquantized } = new QdqReader(graph).read();
  const layers = readLayers(float, new Set(quantizationOf.keys()));
  const nodes = new Map(float.nodes.map((node) => [node.name, node]));
  const isWide = ({ name }: Layer) => integersOf.get(nodes.get(name)?.inputs[2] ?? '')?.axis === WIDE_AXIS;
  const limits = activationLimits(layers, new Set(layers.layers.filter(isWide).map(({ name }) => name)));
  for (const { node, value } of unquantized)
    if (limits.has(value)) throw invalidArtifact(`node "${node.name}" (${node.op})`, `it reads "${value}" unquantized`);
  const tensors: Scales['tensors'] = {};
  for (const [tensor, limit] of limits) {
    const quantization = quantizationOf.get(tensor);
    if (!quantization) throw invalidArtifact(`tensor "${tensor}"`, 'it is not quantized');
    if (limit !== WEIGHT_LIMIT && quantization.zeroPoint !== 0)
      throw invalidArtifact(`tensor "${tensor}"`, 'it has a zero point, and no convolution reads it with 7 bits');
    tensors[tensor] = { ...quantization, limit };
  }
  // A Flatten that is no layer shows a tensor in another shape.
  const made = new Set(layers.layers.map(({ name }) => name));
  for (const { name, op, inputs, outputs } of float.nodes) {
    const flattened = op === 'Flatten' && !made.has(name) ? quantizationOf.get(outputs[0]!) : undefined;
    if (flattened && !isSame(flattened, quantizationOf.get(inputs[0]!)))
      throw invalidArtifact(`tensor "${inputs[0]}"`, 'its scale or zero point changes when it is flattened');
  }

  const weights: Scales['weights'] = {};
  const biases: Scales['biases'] = {};
  for (const layer of layers.layers) {
    if (layer.kind !== 'conv' && layer.kind !== 'fc') continue;
    const [, weightName, biasName] = nodes.get(layer.name)!.inputs as [string, string, string];
    const weight = integersOf.get(weightName);
    const bias = integersOf.get(biasName);
    if (!(weight?.values instanceof Int8Array) || !(bias?.values instanceof Int32Array))
      throw invalidArtifact(`layer "${layer.name}"`, 'its weights are not int8, or its bias is not int32');
    const beyond = weight.values.find((value) => Math.abs(value) > WEIGHT_LIMIT);
    if (beyond !== undefined) throw invalidArtifact(`layer "${layer.name}"`, `it has a weight of ${beyond}`);
    if (!areEqual(bias.scales, biasScales(tensors[layer.input]!.scale, weight.scales)))
      throw invalidArtifact(`layer "${layer.name}"`, 'the scale of its bias is not input scale times weight scale');
    weights[layer.name] = { scales: weight.scales, values: weight.values };
    biases[layer.name] = bias.values;
  }
  return { layers, scales: { tensors, weights, biases } };
}

function refuseTensorRtForm({ input, nodes, initializers }: Graph): void {
  const first = nodes.find(({ op }) => op === 'QuantizeLinear');
  const zero = initializers[first?.inputs[2] ?? '']?.data;
  if (!(zero instanceof Int8Array) || zero.length !== 1 || zero[0] !== 0) return;
  throw new FacetrainError({
    code: 'InvalidArtifact',
    subject: `tensor "${input.name}"`,
    found: 'is quantized to int8 with zero point 0, as in the file for TensorRT (model.int7.trt.onnx)',
    allowed:
      'the model.int7.onnx of the same folder, which has the same weights and scales and runs here and in ONNX ' +
      'Runtime; TensorRT and ONNX Runtime run this file',
  });
}

function readLayers(float: Graph, boundaries: ReadonlySet<string>): LayerGraph {
  try {
    return onnxToLayers(float, { boundaries });
  } catch (error) {
    if (error instanceof FacetrainError) throw invalidArtifact(error.subject, error.found, error);
    throw error;
  }
}

/** Of an activation, as in Scales. */
interface Quantization {
  scale: number;
  zeroPoint: number;
}

function isSame(a: Quantization, b: Quantization | undefined): boolean {
  return a.scale === b?.scale && a.zeroPoint === b.zeroPoint;
}

interface WithoutQdq {
  /** The FP32 graph that QdqWriter was given, its weights and biases as the real values of their integers. */
  float: Graph;
  /** By FP32 value: a tensor, flattened or not. */
  quantizationOf: Map<string, Quantization>;
  /** Integers of weights and biases, by the name of their real values. */
  integersOf: Map<string, { values: Int8Array | Int32Array; scales: Float32Array; axis: number }>;
  /** Where a node reads a value as it is before quantization, in the nodes' order. */
  unquantized: { node: GraphNode; value: string }[];
}

/** Takes the Q/DQ pairs out of a graph: the inverse of QdqWriter. */
class QdqReader {
  private readonly graph: Graph;
  private readonly nodes: GraphNode[] = [];
  private readonly initializers: Record<string, Tensor>;
  /** FP32 values by the integers that QuantizeLinear makes of them. */
  private readonly sourceOf = new Map<string, string>();
  /** FP32 values by the values that DequantizeLinear makes of those integers. */
  private readonly realOf = new Map<string, string>();
  private readonly quantizationOf: WithoutQdq['quantizationOf'] = new Map();
  private readonly integersOf: WithoutQdq['integersOf'] = new Map();
  private readonly unquantized: WithoutQdq['unquantized'] = [];

  constructor(graph: Graph) {
    this.graph = graph;
    this.initializers = { ...graph.initializers };
  }

  read(): WithoutQdq {
    for (const node of this.graph.nodes) {
      if (node.op === 'QuantizeLinear') this.quantize(node);
      else if (node.op === 'DequantizeLinear') this.dequantize(node);
      else this.copy(node);
    }
    // An output that is the dequantized value of a tensor.
    for (const { name } of this.graph.outputs ?? [this.graph.output]) {
      const source = this.realOf.get(name);
      if (source === undefined) continue;
      this.nodes.push({ name: `${name}.output`, op: 'Identity', inputs: [source], outputs: [name], attributes: {} });
    }
    const float = { ...this.graph, nodes: this.nodes, initializers: this.initializers };
    return {
      float,
      quantizationOf: this.quantizationOf,
      integersOf: this.integersOf,
      unquantized: this.unquantized,
    };
  }

  private copy(node: GraphNode): void {
    for (const value of node.inputs)
      if (!this.realOf.has(value) && !Object.hasOwn(this.initializers, value)) this.unquantized.push({ node, value });
    this.nodes.push({ ...node, inputs: node.inputs.map((name) => this.realOf.get(name) ?? name) });
  }

  private quantize(node: GraphNode): void {
    const value = node.inputs[0]!;
    this.sourceOf.set(node.outputs[0]!, value);
    this.quantizationOf.set(value, this.quantization(node));
  }

  private quantization(node: GraphNode): Quantization {
    const [, scaleName, zeroName] = node.inputs as [string, string, string];
    const scale = this.graph.initializers[scaleName]?.data;
    const zero = this.graph.initializers[zeroName]?.data;
    const zeroPoint = zero instanceof Uint8Array && zero.length === 1 ? zero[0]! - UINT8_ZERO : Number.NaN;
    if (!(Math.abs(zeroPoint) <= WEIGHT_LIMIT))
      throw invalidArtifact(
        `node "${node.name}"`,
        `its zero point is not a uint8 from ${UINT8_ZERO - WEIGHT_LIMIT} to ${UINT8_ZERO + WEIGHT_LIMIT}`,
      );
    if (!(scale instanceof Float32Array) || scale.length !== 1 || !(scale[0]! > 0))
      throw invalidArtifact(`node "${node.name}"`, 'its scale is not one positive number');
    return { scale: scale[0]!, zeroPoint };
  }

  private dequantize(node: GraphNode): void {
    const [value, scaleName, zeroName] = node.inputs as [string, string, string?];
    const output = node.outputs[0]!;
    const source = this.sourceOf.get(value);
    if (source !== undefined) {
      if (!isSame(this.quantization(node), this.quantizationOf.get(source)))
        throw invalidArtifact(`node "${node.name}"`, 'its scale or zero point is not that of the quantization');
      this.realOf.set(output, source);
      return;
    }
    const { dims = [], data: values } = this.graph.initializers[value] ?? {};
    const { axis } = node.attributes;
    const scales = this.graph.initializers[scaleName]?.data;
    if (
      !(values instanceof Int8Array || values instanceof Int32Array) ||
      !(scales instanceof Float32Array) ||
      scales.length !== dims[0] ||
      (axis !== 0 && !(axis === WIDE_AXIS && dims.length === 1))
    ) {
      throw invalidArtifact(`node "${node.name}"`, 'its input is not a constant with one scale per output channel');
    }
    // Files of before have them.
    const zeros = zeroName === undefined ? undefined : this.graph.initializers[zeroName]?.data;
    if (zeroName !== undefined && (!zeros || (zeros as Int8Array).some((zero) => zero !== 0)))
      throw invalidArtifact(`node "${node.name}"`, 'a zero point of its weights is not 0');
    this.integersOf.set(output, { values, scales, axis });
    this.initializers[output] = { dims, data: realValues(values, scales) };
  }
}

/** The real values of integers with one scale for each entry of the first axis. */
function realValues(integers: Int8Array | Int32Array, scales: Float32Array): Float32Array {
  const perOutput = integers.length / scales.length;
  const real = new Float32Array(integers.length);
  for (let index = 0; index < real.length; ++index)
    real[index] = integers[index]! * scales[Math.floor(index / perOutput)]!;
  return real;
}

function areEqual(a: Float32Array, b: Float32Array): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}

function invalidArtifact(subject: string, found: string, cause?: unknown): FacetrainError {
  return new FacetrainError({
    code: 'InvalidArtifact',
    subject,
    found,
    allowed: 'a model.int7.onnx that Facetrain has written',
    cause,
  });
}
