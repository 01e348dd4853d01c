/**
 * Writes layers as an ONNX graph, one node a layer under the layer's name. Whoever calls decides how tensors, weights and biases are read:
 * as they are (`floatGraph`), or through quantisation (qdq.ts).
 */
import type { Graph, GraphNode, Layer, LayerGraph, Tensor } from '@facetrain/native';
import { inputsOf } from './layer-shapes.ts';

/** Adds to the graph that is written. Names are wishes: one that is taken gets a number behind it. */
export interface GraphWriter {
  /** Adds a node between layers; returns its output, which is named like it. */
  node(name: string, op: string, inputs: string[], attributes?: GraphNode['attributes']): string;
  /** Adds a constant and returns its name; the same one again is not added twice. */
  constant(name: string, tensor: Tensor): string;
}

/** How layers read. Each returns the name of a float value. */
export interface Reading {
  /** `value` holds the tensor, flattened or not. Called once for every such value that a layer reads. */
  activation(writer: GraphWriter, tensor: string, value: string): string;
  weight(writer: GraphWriter, layer: Weighted): string;
  bias(writer: GraphWriter, layer: Weighted): string;
}

export type Weighted = Extract<Layer, { kind: 'conv' | 'fc' }>;

export function asOnnx(graph: LayerGraph, reading: Reading): Graph {
  const writer = new Writer(graph);
  /** Tensors of shape [N, C]; the others have height and width. */
  const flat = new Set<string>();
  const read = new Map<string, string>();
  /** Reads each form of a tensor once, however many layers want it. */
  const operand = (tensor: string, flattened: boolean): string => {
    const flatten = flattened && !flat.has(tensor);
    const key = flatten ? `${tensor}.flat` : tensor;
    let value = read.get(key);
    if (value === undefined) {
      const held = flatten ? writer.node(key, 'Flatten', [operand(tensor, false)], { axis: 1 }) : tensor;
      value = reading.activation(writer, tensor, held);
      read.set(key, value);
    }
    return value;
  };
  for (const layer of graph.layers) {
    const isFlat = layer.kind === 'fc' || (layer.kind !== 'conv' && inputsOf(layer).some((input) => flat.has(input)));
    const inputs = inputsOf(layer).map((input) => operand(input, isFlat));
    const isMap = layer.output === graph.output.name && !isFlat;
    const output = isMap ? writer.name(`${layer.output}.map`) : layer.output;
    writeLayer(writer, layer, reading, inputs, output, isFlat);
    if (isMap) writer.named(writer.name(`${layer.output}.flat`), 'Flatten', [output], layer.output, { axis: 1 });
    if (isFlat) flat.add(layer.output);
  }
  return {
    input: { ...graph.input },
    output: { ...graph.output },
    nodes: writer.nodes,
    initializers: writer.initializers,
  };
}

/** The layers in FP32. */
export function floatGraph(graph: LayerGraph): Graph {
  return asOnnx(graph, {
    activation: (_, __, value) => value,
    weight: (writer, layer) => writer.constant(`${layer.name}.weight`, layer.weight),
    bias: (writer, layer) => writer.constant(`${layer.name}.bias`, { dims: [layer.bias.length], data: layer.bias }),
  });
}

class Writer implements GraphWriter {
  readonly nodes: GraphNode[] = [];
  readonly initializers: Record<string, Tensor> = {};
  /** Of values and of nodes alike. */
  private readonly names: Set<string>;

  constructor({ input, layers }: LayerGraph) {
    this.names = new Set([input.name, ...layers.flatMap(({ name, output }) => [name, output])]);
  }

  /** A name that nothing else has. */
  name(wish: string): string {
    let name = wish;
    for (let count = 2; this.names.has(name); ++count) name = `${wish}_${count}`;
    this.names.add(name);
    return name;
  }

  /** Adds a node under a name that is its own. */
  named(name: string, op: string, inputs: string[], output: string, attributes: GraphNode['attributes'] = {}): void {
    this.nodes.push({ name, op, inputs, outputs: [output], attributes });
  }

  node(wish: string, op: string, inputs: string[], attributes: GraphNode['attributes'] = {}): string {
    const name = this.name(wish);
    this.named(name, op, inputs, name, attributes);
    return name;
  }

  constant(wish: string, tensor: Tensor): string {
    const there = this.initializers[wish];
    if (
      there &&
      there.data.length === tensor.data.length &&
      there.data.every((value, index) => value === tensor.data[index])
    )
      return wish;
    const name = this.name(wish);
    this.initializers[name] = tensor;
    return name;
  }
}

function writeLayer(
  writer: Writer,
  layer: Layer,
  reading: Reading,
  inputs: string[],
  output: string,
  isFlat: boolean,
): void {
  switch (layer.kind) {
    case 'conv': {
      const { strides, pads, dilations, group } = layer;
      const kernel_shape = layer.weight.dims.slice(2);
      writer.named(
        layer.name,
        'Conv',
        [...inputs, reading.weight(writer, layer), reading.bias(writer, layer)],
        output,
        { kernel_shape, strides, pads, dilations, group },
      );
      return;
    }
    case 'fc':
      writer.named(
        layer.name,
        'Gemm',
        [...inputs, reading.weight(writer, layer), reading.bias(writer, layer)],
        output,
        { transB: 1 },
      );
      return;
    case 'pointwise':
      writePointwise(writer, layer, inputs, output, isFlat);
      return;
    case 'add':
      writer.named(layer.name, 'Add', inputs, output);
      return;
    case 'pool':
      writer.named(layer.name, 'GlobalAveragePool', inputs, output);
  }
}

/** PRelu where only the negative side has a slope, BatchNormalization with mean 0 and variance 1 where both have the same: each gives back the numbers it was given. */
function writePointwise(
  writer: Writer,
  layer: Extract<Layer, { kind: 'pointwise' }>,
  inputs: string[],
  output: string,
  isFlat: boolean,
): void {
  const { name, positive, negative, offset } = layer;
  const channels = positive.length;
  if (positive.every((slope) => slope === 1) && offset.every((value) => value === 0)) {
    const slope = writer.constant(`${name}.slope`, { dims: isFlat ? [channels] : [channels, 1, 1], data: negative });
    writer.named(name, 'PRelu', [...inputs, slope], output);
    return;
  }
  if (positive.some((slope, channel) => slope !== negative[channel]))
    throw new TypeError(`pointwise layer ${name} is neither a PRelu nor an affine map`);
  const parameter = (suffix: string, data: Float32Array): string =>
    writer.constant(`${name}.${suffix}`, { dims: [channels], data });
  const parameters = [
    parameter('scale', positive),
    parameter('offset', offset),
    parameter('mean', new Float32Array(channels)),
    parameter('variance', new Float32Array(channels).fill(1)),
  ];
  writer.named(name, 'BatchNormalization', [...inputs, ...parameters], output, { epsilon: 0 });
}
