/**
 * Writes a layer graph as an FP32 ONNX graph: one node a layer, under the layer's name. The inverse is
 * onnx-to-layers.ts.
 *
 * Knows layers and ONNX operators, and nothing of quantization: qdq.ts adds that to the graph written here.
 */
import type { Graph, GraphNode, Layer, LayerGraph, Tensor } from '@facetrain/native';
import { UniqueNames } from '../onnx/unique-names.ts';
import { inputsOf } from './layer-shapes.ts';

/** The ONNX operator of a layer, with its constant inputs by the suffix of their names, in the operator's order. */
interface Operator {
  op: string;
  constants?: Record<string, Tensor>;
  attributes?: GraphNode['attributes'];
}

/**
 * A layer that reads vectors [N, C] reads a feature map [N, C, H, W] through a Flatten. Each map has one at most,
 * in front of the first layer that needs it. A graph that ends with a feature map gets a Flatten at its end.
 */
export function layersToOnnx(graph: LayerGraph): Graph {
  const names = new UniqueNames([graph.input.name, ...graph.layers.flatMap(({ name, output }) => [name, output])]);
  const nodes: GraphNode[] = [];
  const initializers: Record<string, Tensor> = {};
  /** Tensors of shape [N, C]. */
  const vectors = new Set<string>();
  /** Flattened values by the feature map that they come from. */
  const flattened = new Map<string, string>();

  const flatten = (name: string, input: string, output: string): void => {
    nodes.push({ name, op: 'Flatten', inputs: [input], outputs: [output], attributes: { axis: 1 } });
  };
  const asVector = (tensor: string): string => {
    if (vectors.has(tensor)) return tensor;
    let vector = flattened.get(tensor);
    if (vector === undefined) {
      vector = names.take(`${tensor}.flat`);
      flatten(vector, tensor, vector);
      flattened.set(tensor, vector);
    }
    return vector;
  };

  for (const layer of graph.layers) {
    const isVector =
      layer.kind === 'fc' || (layer.kind !== 'conv' && inputsOf(layer).some((input) => vectors.has(input)));
    if (isVector) vectors.add(layer.output);
    const inputs = inputsOf(layer).map((input) => (isVector ? asVector(input) : input));
    const endsWithMap = layer.output === graph.output.name && !isVector;
    const output = endsWithMap ? names.take(`${layer.output}.map`) : layer.output;

    const { op, constants = {}, attributes = {} } = operatorOf(layer, isVector);
    for (const [suffix, tensor] of Object.entries(constants)) {
      const name = names.take(`${layer.name}.${suffix}`);
      initializers[name] = tensor;
      inputs.push(name);
    }
    nodes.push({ name: layer.name, op, inputs, outputs: [output], attributes });
    if (endsWithMap) flatten(names.take(`${layer.output}.flat`), output, layer.output);
  }
  return { input: { ...graph.input }, output: { ...graph.output }, nodes, initializers };
}

function operatorOf(layer: Layer, isVector: boolean): Operator {
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
    case 'node':
      throw new TypeError(`layer ${layer.name} is a node, which is not written yet`);
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
