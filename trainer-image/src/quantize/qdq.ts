/**
 * INT7 networks as ONNX graphs, and back: `model.int7.onnx`.
 *
 * ONNX has no 7-bit type. Weights are int8 within ±63, one scale per output channel; activations are uint8 with zero point 128, so that ONNX
 * Runtime finds its integer kernels (int8 activations would send residual additions back to float); every tensor that a layer reads passes
 * QuantizeLinear and DequantizeLinear once. A PRelu stands between two such pairs, and so does a Flatten, with one scale on both sides.
 * Other runtimes clamp the operands of convolutions at 8 bits, where ours clamps at 7: theirs lose no more than ours does. Everything that our
 * runtime needs is in the graph.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, LayerGraph, Scales, Tensor } from '@facetrain/native';
import { asOnnx, type GraphWriter, type Reading, type Weighted } from './as-onnx.ts';
import { lower } from './fold.ts';

export const WEIGHT_LIMIT = 63;
const ZERO_POINT = 128;

/** The limit of a tensor's integers: 63 for what some conv or fc multiplies, 127 for what is only added or mapped. */
export function limits(graph: LayerGraph): Map<string, 63 | 127> {
  const operands = new Set(
    graph.layers.flatMap((layer) => (layer.kind === 'conv' || layer.kind === 'fc' ? [layer.input] : [])),
  );
  const tensors = [graph.input.name, ...graph.layers.map(({ output }) => output)].filter(
    (name) => name !== graph.output.name,
  );
  return new Map(tensors.map((name) => [name, operands.has(name) ? 63 : 127]));
}

/**
 * @param clamp holds operands to ±63 in other runtimes, too. ONNX Runtime then computes convolutions in float: for comparisons alone.
 */
export function encodeInt7(graph: LayerGraph, scales: Scales, { clamp = false } = {}): Graph {
  return asOnnx(graph, new QdqReading(scales, clamp));
}

class QdqReading implements Reading {
  private readonly scales: Scales;
  private readonly clamp: boolean;

  constructor(scales: Scales, clamp: boolean) {
    this.scales = scales;
    this.clamp = clamp;
  }

  activation(writer: GraphWriter, tensor: string, value: string): string {
    const { scale, limit } = this.scales.tensors[tensor]!;
    let real = value;
    if (this.clamp && limit === 63) {
      const bounds = [-limit * scale, limit * scale].map((bound, index) =>
        writer.constant(`${value}.${index === 0 ? 'low' : 'high'}`, scalar(Float32Array.of(bound))),
      );
      real = writer.node(`${value}.clamped`, 'Clip', [value, ...bounds]);
    }
    const parameters = [
      writer.constant(`${tensor}.scale`, scalar(Float32Array.of(scale))),
      writer.constant('zero_point', scalar(Uint8Array.of(ZERO_POINT))),
    ];
    const quantized = writer.node(`${value}.quantized`, 'QuantizeLinear', [real, ...parameters]);
    return writer.node(`${value}.dequantized`, 'DequantizeLinear', [quantized, ...parameters]);
  }

  weight(writer: GraphWriter, layer: Weighted): string {
    const { values, scales } = this.scales.weights[layer.name]!;
    const integers = { dims: layer.weight.dims, data: values };
    return dequantized(writer, `${layer.name}.weight`, integers, scales, new Int8Array(scales.length));
  }

  bias(writer: GraphWriter, layer: Weighted): string {
    const values = this.scales.biases[layer.name]!;
    const scales = biasScales(this.scales.tensors[layer.input]!.scale, this.scales.weights[layer.name]!.scales);
    return dequantized(
      writer,
      `${layer.name}.bias`,
      { dims: [values.length], data: values },
      scales,
      new Int32Array(values.length),
    );
  }
}

/** A constant of integers, one scale for each entry of its first axis. */
function dequantized(
  writer: GraphWriter,
  name: string,
  integers: Tensor,
  scales: Float32Array,
  zeroPoints: Int8Array | Int32Array,
): string {
  const dims = [scales.length];
  const inputs = [
    writer.constant(`${name}.quantized`, integers),
    writer.constant(`${name}.scale`, { dims, data: scales }),
    writer.constant(`${name}.zero_point`, { dims, data: zeroPoints }),
  ];
  return writer.node(name, 'DequantizeLinear', inputs, { axis: 0 });
}

function scalar(data: Float32Array | Uint8Array): Tensor {
  return { dims: [], data };
}

/** A bias is added to sums of products, so its scale is the product of theirs, in 32 bits as everywhere. */
function biasScales(inputScale: number, weightScales: Float32Array): Float32Array {
  return weightScales.map((scale) => inputScale * scale);
}

/**
 * Reads back what encodeInt7 wrote: the same integers and scales; the layers' weights and biases are those integers' real values.
 * @throws FacetrainError InvalidArtifact for a graph that is not ours
 */
export function decodeInt7(graph: Graph): { layers: LayerGraph; scales: Scales } {
  return new Decoding(graph).result();
}

class Decoding {
  private readonly graph: Graph;
  private readonly nodes: GraphNode[] = [];
  /** The float values that were quantised, by the names of their integers, and by those of what comes of these. */
  private readonly quantized = new Map<string, string>();
  private readonly real = new Map<string, string>();
  /** By float value: a tensor, flattened or not. */
  private readonly scaleOf = new Map<string, number>();
  /** Integers of weights and biases by the name of their real value. */
  private readonly constants = new Map<string, { values: Int8Array | Int32Array; scales: Float32Array }>();
  private readonly initializers: Record<string, Tensor>;

  constructor(graph: Graph) {
    this.graph = graph;
    this.initializers = { ...graph.initializers };
    for (const node of graph.nodes) {
      if (node.op === 'QuantizeLinear') this.quantize(node);
      else if (node.op === 'DequantizeLinear') this.dequantize(node);
      else this.layer(node);
    }
  }

  result(): { layers: LayerGraph; scales: Scales } {
    const scales: Scales = { tensors: {}, weights: {}, biases: {} };
    const layers = this.lowered();
    for (const [tensor, limit] of limits(layers)) {
      const scale = this.scaleOf.get(tensor);
      if (scale === undefined) throw notOurs(`tensor "${tensor}"`, 'it is not quantised');
      scales.tensors[tensor] = { scale, limit };
    }
    for (const { op, inputs, outputs } of this.nodes) {
      const scale = op === 'Flatten' ? this.scaleOf.get(outputs[0]!) : undefined;
      if (scale !== undefined && scale !== this.scaleOf.get(inputs[0]!))
        throw notOurs(`tensor "${inputs[0]}"`, 'its scale changes when it is flattened');
    }
    const nodes = new Map(this.nodes.map((node) => [node.name, node]));
    for (const layer of layers.layers) {
      if (layer.kind !== 'conv' && layer.kind !== 'fc') continue;
      const [, weightName, biasName] = nodes.get(layer.name)!.inputs as [string, string, string];
      const weight = this.constants.get(weightName);
      const bias = this.constants.get(biasName);
      if (!(weight?.values instanceof Int8Array) || !(bias?.values instanceof Int32Array))
        throw notOurs(`layer "${layer.name}"`, 'its weights are no int8 with an int32 bias');
      const wide = weight.values.find((value) => Math.abs(value) > WEIGHT_LIMIT);
      if (wide !== undefined) throw notOurs(`layer "${layer.name}"`, `it has a weight of ${wide}`);
      if (!same(bias.scales, biasScales(scales.tensors[layer.input]!.scale, weight.scales)))
        throw notOurs(`layer "${layer.name}"`, 'the scale of its bias is not that of its products');
      scales.weights[layer.name] = { scales: weight.scales, values: weight.values };
      scales.biases[layer.name] = bias.values;
    }
    return { layers, scales };
  }

  private layer(node: GraphNode): void {
    const unquantized = node.inputs.find((name) => !this.real.has(name) && !(name in this.initializers));
    // The Flatten of the output reads what is never quantised.
    if (unquantized !== undefined && node.op !== 'Flatten')
      throw notOurs(`node "${node.name}" (${node.op})`, `it reads "${unquantized}" as it is`);
    this.nodes.push({ ...node, inputs: node.inputs.map((name) => this.real.get(name) ?? name) });
  }

  /** The layers with real weights, as lower() sees them without any quantisation. */
  private lowered(): LayerGraph {
    try {
      return lower({ ...this.graph, nodes: this.nodes, initializers: this.initializers });
    } catch (error) {
      if (error instanceof FacetrainError) throw notOurs(error.subject, error.found, error);
      throw error;
    }
  }

  private quantize(node: GraphNode): void {
    const [value, scaleName, zeroPoint] = node.inputs as [string, string, string];
    const scale = this.graph.initializers[scaleName]?.data;
    const zero = this.graph.initializers[zeroPoint]?.data;
    if (!(zero instanceof Uint8Array) || zero.length !== 1 || zero[0] !== ZERO_POINT)
      throw notOurs(`node "${node.name}"`, `its zero point is not the uint8 ${ZERO_POINT}`);
    if (!(scale instanceof Float32Array) || scale.length !== 1 || !(scale[0]! > 0))
      throw notOurs(`node "${node.name}"`, 'its scale is not one positive number');
    this.quantized.set(node.outputs[0]!, value);
    this.scaleOf.set(value, scale[0]!);
  }

  private dequantize(node: GraphNode): void {
    const [value, scaleName, zeroName] = node.inputs as [string, string, string];
    const output = node.outputs[0]!;
    const source = this.quantized.get(value);
    if (source !== undefined) {
      if (this.graph.initializers[scaleName]?.data[0] !== this.scaleOf.get(source))
        throw notOurs(`node "${node.name}"`, 'its scale is not that of the quantisation');
      this.real.set(output, source);
      return;
    }
    const { dims, data: values } = this.graph.initializers[value] ?? {};
    const scales = this.graph.initializers[scaleName]?.data;
    const zeros = this.graph.initializers[zeroName]?.data;
    if (
      !(values instanceof Int8Array || values instanceof Int32Array) ||
      !(scales instanceof Float32Array) ||
      scales.length !== dims![0] ||
      node.attributes.axis !== 0
    ) {
      throw notOurs(`node "${node.name}"`, 'it dequantises no constant with one scale per output channel');
    }
    if (!zeros || (zeros as Int8Array).some((zero) => zero !== 0))
      throw notOurs(`node "${node.name}"`, 'a zero point of its weights is not 0');
    this.constants.set(output, { values, scales });
    this.initializers[output] = { dims: dims!, data: realValues(values, scales) };
  }
}

/** One scale for each entry of the first axis. */
function realValues(integers: Int8Array | Int32Array, scales: Float32Array): Float32Array {
  const perOutput = integers.length / scales.length;
  const real = new Float32Array(integers.length);
  for (let index = 0; index < real.length; ++index)
    real[index] = integers[index]! * scales[Math.floor(index / perOutput)]!;
  return real;
}

function same(a: Float32Array, b: Float32Array): boolean {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}

function notOurs(subject: string, found: string, cause?: unknown): FacetrainError {
  return new FacetrainError({
    code: 'InvalidArtifact',
    subject,
    found,
    allowed: 'a model.int7.onnx that Facetrain has written',
    cause,
  });
}
