/**
 * Builds an ONNX graph layer by layer, as a network is written in PyTorch.
 *
 * A layer is named as in the state_dict of insightface's network: `layer1.0.conv1` has the tensor
 * `layer1.0.conv1.weight`, and its node and its output have the layer's name. Every method takes the value that the
 * layer reads and returns the value that it computes.
 */
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { BATCH_NORM_START, type Initializer, PRELU_START } from './initial-weights.ts';

/** A value in the graph: its name, and its channels (features, once flattened). */
export interface Value {
  name: string;
  channels: number;
}

export interface ConvOptions {
  kernel: number;
  stride?: number;
  padding?: number;
  groups?: number;
}

const BATCH_NORM_EPSILON = 1e-5;
/** torch's 0.1: ONNX counts the share of the running statistics that is kept, torch the share that is replaced. */
const BATCH_NORM_MOMENTUM = 0.9;

export class GraphBuilder {
  readonly #nodes: GraphNode[] = [];
  readonly #initializers: Record<string, Tensor> = {};
  readonly #input: Graph['input'];

  constructor(input: Graph['input']) {
    this.#input = input;
  }

  get input(): Value {
    return { name: this.#input.name, channels: this.#input.channels };
  }

  /** A convolution without bias: a batch norm follows it. */
  conv(
    name: string,
    x: Value,
    channels: number,
    { kernel, stride = 1, padding = 0, groups = 1 }: ConvOptions,
    initialize: Initializer,
  ): Value {
    const fanIn = (x.channels / groups) * kernel * kernel;
    const weight = this.#weight(
      `${name}.weight`,
      [channels, x.channels / groups, kernel, kernel],
      initialize,
      fanIn,
      channels * kernel * kernel,
    );
    return this.#node(name, 'Conv', [x.name, weight], channels, {
      dilations: [1, 1],
      group: groups,
      kernel_shape: [kernel, kernel],
      pads: [padding, padding, padding, padding],
      strides: [stride, stride],
    });
  }

  batchNorm(name: string, x: Value): Value {
    const inputs = Object.entries(BATCH_NORM_START).map(([vector, value]) =>
      this.#constant(`${name}.${vector}`, [x.channels], new Float32Array(x.channels).fill(value)),
    );
    return this.#node(name, 'BatchNormalization', [x.name, ...inputs], x.channels, {
      epsilon: BATCH_NORM_EPSILON,
      momentum: BATCH_NORM_MOMENTUM,
    });
  }

  prelu(name: string, x: Value): Value {
    const slope = this.#constant(`${name}.weight`, [x.channels, 1, 1], new Float32Array(x.channels).fill(PRELU_START));
    return this.#node(name, 'PRelu', [x.name, slope], x.channels);
  }

  add(name: string, a: Value, b: Value): Value {
    return this.#node(name, 'Add', [a.name, b.name], a.channels);
  }

  /** [N, channels, side, side] to [N, channels * side * side], for any N. */
  flatten(name: string, x: Value, side: number): Value {
    return this.#node(name, 'Flatten', [x.name], x.channels * side * side, { axis: 1 });
  }

  linear(name: string, x: Value, features: number, initialize: { weight: Initializer; bias?: Initializer }): Value {
    const inputs = [
      x.name,
      this.#weight(`${name}.weight`, [features, x.channels], initialize.weight, x.channels, features),
    ];
    if (initialize.bias) inputs.push(this.#weight(`${name}.bias`, [features], initialize.bias, x.channels, features));
    return this.#node(name, 'Gemm', inputs, features, { transB: 1 });
  }

  /** The finished graph, whose output is `x` under the name `output`. */
  finish(x: Value, output: string): Graph {
    const last = this.#nodes.at(-1)!;
    if (last.outputs[0] !== x.name) throw new TypeError(`${x.name} is not what the last layer made`);
    last.outputs = [output];
    return {
      input: this.#input,
      output: { name: output, dim: x.channels },
      nodes: this.#nodes,
      initializers: this.#initializers,
    };
  }

  #node(name: string, op: string, inputs: string[], channels: number, attributes: GraphNode['attributes'] = {}): Value {
    this.#nodes.push({ name, op, inputs, outputs: [name], attributes });
    return { name, channels };
  }

  #weight(name: string, dims: number[], initialize: Initializer, fanIn: number, fanOut: number): string {
    const count = dims.reduce((product, dim) => product * dim, 1);
    return this.#constant(name, dims, initialize({ name, count, fanIn, fanOut }));
  }

  #constant(name: string, dims: number[], data: Float32Array): string {
    this.#initializers[name] = { dims, data };
    return name;
  }
}
