/**
 * Writes a layer graph as an FP32 ONNX graph: one node a layer, under the layer's name (of a layer of several nodes,
 * the last has it). The inverse is onnx-to-layers.ts.
 *
 * Knows layers and ONNX operators, and nothing of quantization: qdq.ts adds that to the graph written here.
 */
import type { Graph, GraphNode, Layer, LayerGraph, NodeLayer, Tensor } from '@facetrain/native';
import { UniqueNames } from '../onnx/unique-names.ts';
import { inputsOf, tensorShapes } from './layer-shapes.ts';

/** The ONNX operator of a layer, with its constant inputs by the suffix of their names, in the operator's order. */
interface Operator {
  op: string;
  constants?: Record<string, Tensor>;
  attributes?: GraphNode['attributes'];
}

/** An FP32 graph, and what in it is part of a layer. */
export interface WrittenLayers {
  graph: Graph;
  /** The nodes between layers, which only give a tensor another shape, by the value that they compute. */
  views: Map<string, GraphNode>;
  /** Values inside a layer of several nodes. */
  inner: Set<string>;
  /** Names of the nodes of layers that stay in FP32. */
  real: Set<string>;
}

export function layersToOnnx(graph: LayerGraph): Graph {
  return writeLayers(graph).graph;
}

/**
 * A layer that reads vectors [N, C] reads a feature map [N, C, H, W] through a Flatten, and one that reads maps reads a
 * vector through a Reshape. Each tensor has one of each at most, in front of the first layer that needs it. A graph of
 * one embedding that ends with a feature map gets a Flatten at its end.
 */
export function writeLayers(graph: LayerGraph): WrittenLayers {
  const names = new UniqueNames([graph.input.name, ...graph.layers.flatMap(({ name, output }) => [name, output])]);
  const nodes: GraphNode[] = [];
  const initializers: Record<string, Tensor> = {};
  const [views, inner, real] = [new Map<string, GraphNode>(), new Set<string>(), new Set<string>()];
  const shapes = tensorShapes(graph);
  /** Tensors of shape [N, C], and those that are neither that nor maps. */
  const vectors = new Set<string>();
  const others = new Set<string>();
  /** Views by the tensor that they show. */
  const flattened = new Map<string, string>();
  const mapped = new Map<string, string>();

  const constant = (preferred: string, tensor: Tensor): string => {
    const name = names.take(preferred);
    initializers[name] = tensor;
    return name;
  };
  const flatten = (name: string, input: string, output: string): GraphNode => {
    const node = { name, op: 'Flatten', inputs: [input], outputs: [output], attributes: { axis: 1 } };
    nodes.push(node);
    return node;
  };
  const asVector = (tensor: string): string => {
    if (vectors.has(tensor)) return tensor;
    let vector = flattened.get(tensor);
    if (vector === undefined) {
      vector = names.take(`${tensor}.flat`);
      views.set(vector, flatten(vector, tensor, vector));
      flattened.set(tensor, vector);
    }
    return vector;
  };
  const asMap = (tensor: string): string => {
    if (!vectors.has(tensor)) return tensor;
    let map = mapped.get(tensor);
    if (map === undefined) {
      map = names.take(`${tensor}.map`);
      const target = BigInt64Array.from([0, shapes.get(tensor)![0], 1, 1], BigInt);
      const inputs = [tensor, constant(`${map}.shape`, { dims: [4], data: target })];
      const node = { name: map, op: 'Reshape', inputs, outputs: [map], attributes: {} };
      nodes.push(node);
      views.set(map, node);
      mapped.set(tensor, map);
    }
    return map;
  };
  const asDims = (tensor: string, dims: number[]): string =>
    others.has(tensor) ? tensor : dims.length === 2 ? asVector(tensor) : asMap(tensor);

  /** What a layer computes that has no vector as its output: of an embedding, a value that is flattened. */
  const computedAs = (output: string): string =>
    !graph.outputs && output === graph.output.name ? names.take(`${output}.map`) : output;
  const flattenEnd = (output: string, computed: string): void => {
    if (computed !== output) flatten(names.take(`${output}.flat`), computed, output);
  };

  const writeNode = (layer: NodeLayer): void => {
    const { name, inputs, output, inputDims, outputDims, steps } = layer;
    const read = inputs.map((tensor, i) => asDims(tensor, inputDims[i]!));
    if (layer.real) real.add(name);
    if (outputDims.length === 2 && outputDims[0] === 1) vectors.add(output);
    else if (outputDims.length !== 4 || outputDims[0] !== 1) others.add(output);
    const last = vectors.has(output) ? output : computedAs(output);
    const values: string[] = [];
    steps.forEach(({ op, attributes, operands }, i) => {
      const isLast = i === steps.length - 1;
      const value = isLast ? last : names.take(`${name}.${i}`);
      if (!isLast) inner.add(value);
      values.push(value);
      const constants = operands.map((operand, k) => {
        if ('constant' in operand) return constant(`${name}.${i}.${k}`, operand.constant as Tensor);
        if ('step' in operand) return values[operand.step as number]!;
        return 'input' in operand ? read[operand.input as number]! : '';
      });
      nodes.push({ name: isLast ? name : value, op, inputs: constants, outputs: [value], attributes });
    });
    flattenEnd(output, last);
  };

  for (const layer of graph.layers) {
    if (layer.kind === 'node') {
      writeNode(layer);
      continue;
    }
    const readsMaps = layer.kind === 'conv' || layer.kind === 'pool';
    const isVector = layer.kind === 'fc' || (!readsMaps && inputsOf(layer).some((input) => vectors.has(input)));
    if (isVector) vectors.add(layer.output);
    const inputs = inputsOf(layer).map((input) => (isVector ? asVector(input) : asMap(input)));
    const output = isVector ? layer.output : computedAs(layer.output);

    const { op, constants = {}, attributes = {} } = operatorOf(layer, isVector);
    for (const [suffix, tensor] of Object.entries(constants)) inputs.push(constant(`${layer.name}.${suffix}`, tensor));
    nodes.push({ name: layer.name, op, inputs, outputs: [output], attributes });
    flattenEnd(layer.output, output);
  }
  const { input, output, outputs } = graph;
  const written = { input: { ...input }, output: { ...output }, ...(outputs && { outputs }), nodes, initializers };
  return { graph: written, views, inner, real };
}

function operatorOf(layer: Exclude<Layer, NodeLayer>, isVector: boolean): Operator {
  switch (layer.kind) {
    case 'conv': {
      const { weight, strides, pads, dilations, group } = layer;
      return {
        op: 'Conv',
        constants: { weight, bias: vector(layer.bias) },
        attributes: { kernel_shape: weight.dims.slice(2), strides, pads, dilations, group },
      };
    }
    case 'fc':
      return {
        op: 'Gemm',
        constants: { weight: layer.weight, bias: vector(layer.bias) },
        attributes: { transB: 1 },
      };
    case 'pointwise':
      return pointwiseOperator(layer, isVector);
    case 'add':
      return { op: 'Add' };
    case 'pool':
      return { op: 'GlobalAveragePool' };
  }
}

/**
 * PRelu where only the negative side has a slope; BatchNormalization with mean 0, variance 1 and epsilon 0 where both
 * sides have the same slope. Both read back as exactly the numbers that were written.
 */
function pointwiseOperator(layer: Extract<Layer, { kind: 'pointwise' }>, isVector: boolean): Operator {
  const { positive, negative, offset } = layer;
  const channels = positive.length;
  if (positive.every((slope) => slope === 1) && offset.every((value) => value === 0))
    return { op: 'PRelu', constants: { slope: { dims: isVector ? [channels] : [channels, 1, 1], data: negative } } };
  if (positive.some((slope, channel) => slope !== negative[channel]))
    throw new TypeError(`pointwise layer ${layer.name} is neither a PRelu nor an affine map`);
  return {
    op: 'BatchNormalization',
    constants: {
      scale: vector(positive),
      offset: vector(offset),
      mean: vector(new Float32Array(channels)),
      variance: vector(new Float32Array(channels).fill(1)),
    },
    attributes: { epsilon: 0 },
  };
}

function vector(data: Float32Array): Tensor {
  return { dims: [data.length], data };
}
