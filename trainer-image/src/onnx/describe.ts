/** Describes a model for `facetrain inspect`, as a plain object that can be written as JSON. */
import type { Graph, GraphNode } from '@facetrain/native';
import { intAttribute } from './attributes.ts';
import { type ChannelOrder, channelOrderOf } from './channel-order.ts';
import { inferShapes } from './infer-shapes.ts';
import { fileSizes } from './input-layout.ts';
import type { FoundRange } from './input-range.ts';
import { type OnnxModel, TAIL_METADATA } from './read.ts';
import { elementType } from './tensor.ts';

export interface ModelDescription {
  /**
   * As the file has it. `range`: it reads (byte - mean) / std; null when it is not clear. `channelOrder`: null when the
   * file does not say it.
   */
  input: {
    name: string;
    shape: ('N' | number)[];
    layout: 'NCHW' | 'NHWC' | 'CHW';
    elementType: 'float32' | 'uint8';
    channelOrder: ChannelOrder | null;
    range: FoundRange | null;
  };
  output: { name: string; shape: ['N', ...number[]] };
  /** Of an INT7 model of several outputs: all of them. */
  outputs?: { name: string; shape: ['N', ...number[]] }[];
  /** Of an INT7 model: operators behind these outputs, which ONNX Runtime computes and our runtime does not. */
  tail?: string;
  irVersion: number;
  opsets: Record<string, number>;
  producer: { name: string; version: string };
  metadata: Record<string, string>;
  /** What the file computes and the commands leave out, each a sentence. */
  removed: string[];
  /** Nodes of each operator, the most frequent first. */
  operators: Record<string, number>;
  /** The number of trainable weights: without running statistics and quantized weights. */
  parameters: number;
  /** Multiply-accumulates of convolutions and matrix products for one picture; null when a shape is not known. */
  macs: number | null;
  /** Bytes of the constants by element type. */
  constantBytes: Record<string, number>;
}

export function describeModel(
  { graph, irVersion, opsets, producer, metadata, removed }: OnnxModel,
  range: FoundRange | null,
): ModelDescription {
  const { input, output } = graph;
  const constantBytes: Record<string, number> = {};
  for (const { data } of Object.values(graph.initializers)) {
    const type = elementType(data).toLowerCase();
    constantBytes[type] = (constantBytes[type] ?? 0) + data.byteLength;
  }
  return {
    input: {
      name: input.name,
      shape: fileSizes(input, 'N'),
      layout: input.layout ?? 'NCHW',
      elementType: input.elementType ?? 'float32',
      channelOrder: channelOrderOf(metadata) ?? null,
      range,
    },
    output: { name: output.name, shape: ['N', ...(graph.outputs?.[0]?.dims ?? [output.dim])] },
    ...(graph.outputs && {
      outputs: graph.outputs.map(({ name, dims }) => ({ name, shape: ['N', ...dims] as const })),
    }),
    ...(metadata[TAIL_METADATA] !== undefined && { tail: metadata[TAIL_METADATA] }),
    irVersion,
    opsets,
    producer,
    metadata,
    removed,
    operators: countOperators(graph.nodes),
    parameters: countParameters(graph),
    macs: countMacs(graph),
    constantBytes,
  };
}

function countOperators(nodes: GraphNode[]): Record<string, number> {
  const counts = new Map<string, number>();
  for (const { op } of nodes) counts.set(op, (counts.get(op) ?? 0) + 1);
  return Object.fromEntries([...counts].toSorted(([a, m], [b, n]) => n - m || a.localeCompare(b)));
}

/** Multiply-accumulates of Conv, Gemm and MatMul for one picture; null when a shape is not known. */
export function countMacs(graph: Graph): number | null {
  const shapes = inferShapes(graph, 1);
  let macs = 0;
  for (const node of graph.nodes) {
    const own = macsOf(node, shapes);
    if (own === null) return null;
    macs += own;
  }
  return macs;
}

/**
 * Multiply-accumulates of a node, 0 for one that is not Conv, Gemm or MatMul.
 * @param shapes by value name
 * @returns null when a shape is not known
 */
export function macsOf(node: GraphNode, shapes: ReadonlyMap<string, number[]>): number | null {
  if (!['Conv', 'Gemm', 'MatMul'].includes(node.op)) return 0;
  const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);
  const [x, weight] = node.inputs.map((name) => shapes.get(name));
  const y = shapes.get(node.outputs[0]!);
  if (!x || !weight || !y) return null;
  // The terms of each output value's sum: a kernel over one group's channels, or the axis that is summed over.
  const terms =
    node.op === 'Conv'
      ? product(weight.slice(1))
      : node.op === 'Gemm' && intAttribute(node, 'transA', 0) === 1
        ? x[0]!
        : x.at(-1)!;
  return product(y) * terms;
}

/**
 * Numbers that training learns, without running statistics. A gamma that is held at one is included, as in
 * insightface's figures.
 */
export function countParameters(graph: Graph): number {
  const learned = new Set(
    graph.nodes.flatMap(({ op, inputs }) => (op === 'BatchNormalization' ? inputs.slice(1, 3) : inputs)),
  );
  return Object.entries(graph.initializers).reduce(
    (count, [name, { data }]) => count + (data instanceof Float32Array && learned.has(name) ? data.length : 0),
    0,
  );
}
