/**
 * Builds an ONNX graph layer by layer, as one would write a network in PyTorch.
 *
 * A layer is named as in the state_dict of the reference, so `layer1.0.conv1` makes `layer1.0.conv1.weight`; its node and its output
 * carry the layer's name. Every method takes the name of the value it works on and gives the name of the value it makes.
 */
import type { Graph, GraphNode, Tensor } from '@facetrain/native';

/** A value in the graph: its name, and its channels (features, once flattened). */
export interface Value {
  name: string;
  channels: number;
}

/** Makes a weight's first values. `fanIn` and `fanOut` are torch's: channels times the kernel's area. */
export type Initializer = (weight: { name: string; count: number; fanIn: number; fanOut: number }) => Float32Array;

export interface ConvOptions {
  kernel: number;
  stride?: number;
  padding?: number;
  groups?: number;
}

const BATCH_NORM_EPSILON = 1e-5;
/** PyTorch's 0.1, by ONNX's definition: the share that the running statistics keep. */
const BATCH_NORM_MOMENTUM = 0.9;
const PRELU_SLOPE = 0.25;

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

  /** Convolution without bias, for a batch norm follows it. */
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
    const vectors = { weight: 1, bias: 0, running_mean: 0, running_var: 1 };
    const inputs = Object.entries(vectors).map(([vector, value]) =>
      this.#constant(`${name}.${vector}`, [x.channels], new Float32Array(x.channels).fill(value)),
    );
    return this.#node(name, 'BatchNormalization', [x.name, ...inputs], x.channels, {
      epsilon: BATCH_NORM_EPSILON,
      momentum: BATCH_NORM_MOMENTUM,
    });
  }

  prelu(name: string, x: Value): Value {
    const slope = this.#constant(`${name}.weight`, [x.channels, 1, 1], new Float32Array(x.channels).fill(PRELU_SLOPE));
    return this.#node(name, 'PRelu', [x.name, slope], x.channels);
  }

  add(name: string, a: Value, b: Value): Value {
    return this.#node(name, 'Add', [a.name, b.name], a.channels);
  }

  /** [N, channels, side, side] -> [N, channels * side * side], whatever N is. */
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

  /** The finished graph; `output` becomes the name of the value `x`. */
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
