/** For tests: a builder of small ONNX graphs, with weights that are always the same. */
import { tmpdir } from 'node:os';
import type { Graph, GraphNode, LayerGraph, Scales, Tensor } from '@facetrain/native';
import { inferShapes } from '../onnx/infer-shapes.ts';
import { activationLimits, sharedScales, WEIGHT_LIMIT } from '../quantize/qdq.ts';
import { noise } from './onnx-oracles.ts';

/** Builds a graph; every method adds a node and returns the name of its output. */
export class GraphBuilder {
  readonly input: Graph['input'];
  private readonly nodes: GraphNode[] = [];
  private readonly initializers: Record<string, Tensor> = {};
  private drawn = 0;

  constructor({ channels = 3, height = 8, width = 8 } = {}) {
    this.input = { name: 'data', channels, height, width };
  }

  /** Random values in [low, high]. */
  values(dims: number[], low = -1, high = 1): Tensor<Float32Array> {
    const count = dims.reduce((product, dim) => product * dim, 1);
    const fresh = noise(this.drawn + count).subarray(this.drawn);
    this.drawn += count;
    return { dims, data: fresh.map((value) => low + ((value + 1) / 2) * (high - low)) };
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

  /** A node of several outputs. Returns their names. */
  nodeOfMany(
    op: string,
    inputs: (string | Tensor)[],
    outputs: number,
    attributes: GraphNode['attributes'] = {},
  ): string[] {
    this.node(op, inputs, attributes);
    const node = this.nodes.at(-1)!;
    node.outputs = Array.from({ length: outputs }, (_, i) => `${node.name}:${i}`);
    return node.outputs;
  }

  /** A convolution whose weights are so small that values keep their range. */
  conv(
    input: string,
    channels: number,
    outputs: number,
    kernel: number,
    { pad = 0, stride = 1, group = 1, bias = true } = {},
  ): string {
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
    const parameters = [
      this.values([channels], 0.5, 2),
      this.values([channels]),
      this.values([channels]),
      this.values([channels], 0.3, 2),
    ];
    return this.node('BatchNormalization', [input, ...parameters], { epsilon: 1e-5 });
  }

  prelu(input: string, channels: number): string {
    return this.node('PRelu', [input, this.values([channels, 1, 1], -0.2, 0.5)]);
  }

  gemm(input: string, features: number, outputs: number): string {
    const size = Math.sqrt(3 / features);
    return this.node('Gemm', [input, this.values([outputs, features], -size, size), this.values([outputs])], {
      transB: 1,
    });
  }

  flatten(input: string): string {
    return this.node('Flatten', [input], { axis: 1 });
  }

  graph(output: string): Graph {
    const graph = {
      input: this.input,
      output: { name: output, dim: 0 },
      nodes: this.nodes,
      initializers: this.initializers,
    };
    const shape = inferShapes(graph, 1).get(output) ?? [];
    graph.output.dim = shape.slice(1).reduce((product, dim) => product * dim, 1);
    return graph;
  }
}

/** A search of less than a second on a small network. */
export const QUICK_SEARCH = {
  rounds: 1,
  candidates: 20,
  lower: 0.5,
  upper: 2,
  zeroPoints: true,
  equalize: true,
  biasCorrection: true,
  budget: 0,
  memoryBytes: 2 ** 30,
  temporaryDirectory: tmpdir(),
  computeThreads: 1,
};

const ZERO_POINTS = [0, -40, 0, -63, 17];

/**
 * Scales for values of about one, and the integers of weights and biases for them, without a search.
 * @param wide whether every second operand has 8 bits, the first among them
 */
export function plainScales(graph: LayerGraph, { wide = false } = {}): Scales {
  const scales: Scales = { tensors: {}, weights: {}, biases: {} };
  let index = 0;
  const scaleOf = sharedScales(graph);
  const convs = graph.layers.filter((layer) => layer.kind === 'conv' || layer.kind === 'fc');
  const operands = [...new Set(convs.map(({ input }) => scaleOf(input)))];
  const isWide = (tensor: string) => wide && operands.indexOf(scaleOf(tensor)) % 2 === 0;
  const limits = activationLimits(graph, new Set(convs.filter(({ input }) => isWide(input)).map(({ name }) => name)));
  for (const [name, limit] of limits) {
    const first = scaleOf(name);
    const shared = Object.hasOwn(scales.tensors, first) ? scales.tensors[first] : undefined;
    const choice = shared ? 0 : index++ % 5;
    scales.tensors[name] = shared ?? {
      scale: Math.fround((3 + choice) / limit),
      limit,
      zeroPoint: limit === 63 ? ZERO_POINTS[choice]! : 0,
    };
  }
  for (const layer of graph.layers) {
    if (layer.kind !== 'conv' && layer.kind !== 'fc') continue;
    const { data } = layer.weight;
    const outputs = layer.bias.length;
    const perOutput = data.length / outputs;
    const weightScales = Float32Array.from({ length: outputs }, (_, output) => {
      const filter = data.subarray(output * perOutput, (output + 1) * perOutput);
      return filter.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1e-6) / WEIGHT_LIMIT;
    });
    const inputScale = scales.tensors[layer.input]!.scale;
    scales.weights[layer.name] = {
      scales: weightScales,
      values: Int8Array.from(data, (value, at) => Math.round(value / weightScales[Math.floor(at / perOutput)]!)),
    };
    scales.biases[layer.name] = Int32Array.from(layer.bias, (value, output) =>
      Math.round(value / (inputScale * weightScales[output]!)),
    );
  }
  return scales;
}

/** A small network of the operators that are nodes (quantize/node-layers.ts), with two outputs. */
export function networkOfNodes(): Graph {
  const b = new GraphBuilder({ height: 14, width: 14 });
  const integers = (...values: number[]): Tensor => ({
    dims: [values.length],
    data: BigInt64Array.from(values, BigInt),
  });
  const number = (value: number): Tensor => ({ dims: [], data: Float32Array.of(value) });
  const stem = b.conv('data', 3, 12, 3, { pad: 1 });
  // HardSwish as exporters write it.
  const gate = b.node('Clip', [b.node('Add', [stem, number(3)]), number(0), number(6)]);
  const active = b.node('Div', [b.node('Mul', [stem, gate]), number(6)]);
  const pooled = b.node('MaxPool', [active], { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] });
  const shuffled = b.node('Gather', [pooled, integers(0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11)], { axis: 1 });
  const left = b.node('Clip', [b.conv(shuffled, 12, 8, 3, { pad: 1 }), number(0), number(6)]);
  const right = b.conv(b.node('Sigmoid', [b.conv(pooled, 12, 8, 1)]), 8, 8, 1);
  const joined = b.node('Concat', [left, right], { axis: 1 });
  const squeezed = b.conv(b.node('GlobalAveragePool', [joined]), 16, 16, 1);
  const excited = b.node('Mul', [joined, b.node('HardSigmoid', [squeezed], { alpha: 0.2, beta: 0.5 })]);
  const means = b.node('AveragePool', [excited], { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] });
  const sizes = { dims: [4], data: Float32Array.of(1, 1, 2, 2) };
  const nearest = b.node('Resize', [means, '', sizes], {
    mode: 'nearest',
    coordinate_transformation_mode: 'asymmetric',
    nearest_mode: 'floor',
  });
  const padded = b.node('Pad', [nearest, integers(0, 0, 1, 0, 0, 0, 0, 1)]);
  const map = b.conv(padded, 16, 6, 3);
  const linear = b.node('Resize', [map, '', sizes], { mode: 'linear', coordinate_transformation_mode: 'half_pixel' });
  const vector = b.gemm(b.flatten(b.conv(linear, 6, 4, 3, { stride: 2 })), 4 * 6 * 6, 10);
  const scores = b.node('Softmax', [vector], { axis: 1 });
  const last = b.node('Transpose', [b.conv(padded, 16, 2, 1)], { perm: [0, 2, 3, 1] });
  const graph = b.graph(b.node('Reshape', [last, integers(0, -1, 2)]));
  const outputs = [
    { name: graph.output.name, dims: [9 * 9, 2] },
    { name: scores, dims: [10] },
  ];
  return { ...graph, output: { ...graph.output, dim: 9 * 9 * 2 + 10 }, outputs };
}

/**
 * A small face network with every kind of layer: two residual units, a batch norm that is not folded, a pool, two fc.
 */
export function smallFaceNet(): Graph {
  const b = new GraphBuilder({ height: 14, width: 14 });
  const stem = b.prelu(b.batchNorm(b.conv('data', 3, 8, 3, { pad: 1, bias: false }), 8), 8);
  const inner = b.prelu(b.batchNorm(b.conv(b.batchNorm(stem, 8), 8, 12, 3, { pad: 1, bias: false }), 12), 12);
  const first = b.node('Add', [
    b.batchNorm(b.conv(inner, 12, 12, 3, { pad: 1, stride: 2, bias: false }), 12),
    b.conv(stem, 8, 12, 1, { stride: 2 }),
  ]);
  const narrow = b.conv(
    b.prelu(b.conv(b.prelu(b.conv(first, 12, 24, 1), 24), 24, 24, 3, { pad: 1, group: 24 }), 24),
    24,
    12,
    1,
  );
  const second = b.node('Add', [narrow, first]);
  const whole = b.gemm(b.flatten(b.batchNorm(second, 12)), 12 * 7 * 7, 16);
  const average = b.gemm(b.flatten(b.node('GlobalAveragePool', [second])), 12, 16);
  return b.graph(b.gemm(b.node('Add', [whole, average]), 16, 10));
}
