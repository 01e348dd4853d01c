/** For tests: small ONNX graphs, written down as a chain, with weights that are a function of a seed. */
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { inferShapes } from '../onnx/shapes.ts';
import { picture } from '../onnx/testing.ts';

/** A graph under construction; every method adds a node and returns the name of its output. */
export class GraphBuilder {
  readonly input: Graph['input'];
  private readonly nodes: GraphNode[] = [];
  private readonly initializers: Record<string, Tensor> = {};
  private seed: number;

  constructor({ channels = 3, height = 8, width = 8, seed = 1 } = {}) {
    this.input = { name: 'data', channels, height, width };
    this.seed = seed;
  }

  /** Values in [low, high]. */
  values(dims: number[], low = -1, high = 1): Tensor<Float32Array> {
    const count = dims.reduce((product, dim) => product * dim, 1);
    return { dims, data: picture(count, ++this.seed).map((value) => low + ((value + 1) / 2) * (high - low)) };
  }

  node(op: string, inputs: (string | Tensor)[], attributes: GraphNode['attributes'] = {}): string {
    const name = `${op}_${this.nodes.length}`;
    const names = inputs.map((input, index) => {
      if (typeof input === 'string') return input;
      this.initializers[`${name}.${index}`] = input;
      return `${name}.${index}`;
    });
    this.nodes.push({ name, op, inputs: names, outputs: [`${name}:0`], attributes });
    return `${name}:0`;
  }

  /** A convolution with weights of the size that keeps values in range. */
  conv(input: string, channels: number, outputs: number, kernel: number, { pad = 0, stride = 1, group = 1, bias = true } = {}): string {
    const size = Math.sqrt(3 / ((channels / group) * kernel * kernel));
    const weight = this.values([outputs, channels / group, kernel, kernel], -size, size);
    return this.node('Conv', bias ? [input, weight, this.values([outputs])] : [input, weight], {
      kernel_shape: [kernel, kernel],
      pads: [pad, pad, pad, pad],
      strides: [stride, stride],
      dilations: [1, 1],
      group,
    });
  }

  batchNorm(input: string, channels: number): string {
    const parameters = [this.values([channels], 0.5, 2), this.values([channels]), this.values([channels]), this.values([channels], 0.3, 2)];
    return this.node('BatchNormalization', [input, ...parameters], { epsilon: 1e-5 });
  }

  prelu(input: string, channels: number): string {
    return this.node('PRelu', [input, this.values([channels, 1, 1], -0.2, 0.5)]);
  }

  gemm(input: string, features: number, outputs: number): string {
    const size = Math.sqrt(3 / features);
    return this.node('Gemm', [input, this.values([outputs, features], -size, size), this.values([outputs])], { transB: 1 });
  }

  flatten(input: string): string {
    return this.node('Flatten', [input], { axis: 1 });
  }

  graph(output: string): Graph {
    const graph = { input: this.input, output: { name: output, dim: 0 }, nodes: this.nodes, initializers: this.initializers };
    const shape = inferShapes(graph, 1).get(output) ?? [];
    graph.output.dim = shape.slice(1).reduce((product, dim) => product * dim, 1);
    return graph;
  }
}
