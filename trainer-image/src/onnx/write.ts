/** Writes a Graph as an ONNX file. The same graph and options give the same bytes. */
import type { Graph, GraphNode } from '@facetrain/native';
import { fileSizes, withFileInput } from './input-layout.ts';
import { withHead } from './input-range.ts';
import { OPSET } from './operators.ts';
import { type AttributeProto, AttributeType, type DataType, dataTypeNumber, encodeModel } from './proto.ts';
import type { TailFile } from './tail.ts';
import { encodeTensor } from './tensor.ts';
import { UniqueNames } from './unique-names.ts';

/** The newest format version that every runtime with this operator set accepts. */
const IR_VERSION = 8;

export interface EncodeOptions {
  metadata?: Record<string, string>;
  producer?: { name: string; version: string };
  /** A sentence for people. */
  doc?: string;
  /** Behind the graph, whose names are others. */
  tail?: TailFile | undefined;
}

/** Attributes that operators define as floats. In a Graph they are numbers; a file distinguishes 1 from 1.0. */
const FLOAT_ATTRIBUTES = new Set([
  'alpha',
  'beta',
  'gamma',
  'epsilon',
  'momentum',
  'ratio',
  'bias',
  'lambd',
  'scales',
  'cubic_coeff_a',
  'extrapolation_value',
]);

function encodeAttribute(name: string, value: number | number[] | string): AttributeProto {
  if (typeof value === 'string') return { name, type: AttributeType.STRING, s: Buffer.from(value) };
  const float = FLOAT_ATTRIBUTES.has(name);
  if (Array.isArray(value))
    return float
      ? { name, type: AttributeType.FLOATS, floats: value }
      : { name, type: AttributeType.INTS, ints: value };
  return float ? { name, type: AttributeType.FLOAT, f: value } : { name, type: AttributeType.INT, i: value };
}

function encodeNode({ name, op, inputs, outputs, attributes }: GraphNode) {
  return {
    input: inputs,
    output: outputs,
    name,
    opType: op,
    attribute: Object.entries(attributes).map(([key, value]) => encodeAttribute(key, value)),
  };
}

/** @param dims null: a free batch */
function valueInfo(name: string, dims: (number | null)[], type: DataType = 'FLOAT') {
  const dim = dims.map((dimValue) => (dimValue === null ? { dimParam: 'N' } : { dimValue }));
  return { name, type: { tensorType: { elemType: dataTypeNumber(type), shape: { dim } } } };
}

/** Reductions whose axes became an input in operator set 18. */
const REDUCTIONS = new Set(['ReduceL2', 'ReduceMax', 'ReduceMean', 'ReduceMin']);

/** A graph in a newer operator set. Our operators are the same in all but for these. */
function inOpset(graph: Graph, opset: number): Graph {
  if (opset < 18) return graph;
  const initializers = { ...graph.initializers };
  const names = new UniqueNames([...Object.keys(initializers), ...graph.nodes.flatMap(({ outputs }) => outputs)]);
  const nodes = graph.nodes.map((node) => {
    const { op, inputs, outputs, attributes } = node;
    const { axes, ...others } = attributes;
    if (op === 'Split' && inputs.length === 1)
      return { ...node, attributes: { ...attributes, num_outputs: outputs.length } };
    if (!REDUCTIONS.has(op) || !Array.isArray(axes)) return node;
    const name = names.take(`${outputs[0]}.axes`);
    initializers[name] = { dims: [axes.length], data: BigInt64Array.from(axes, BigInt) };
    return { ...node, inputs: [...inputs, name], attributes: others };
  });
  return { ...graph, nodes, initializers };
}

/**
 * The file of a graph: one input, [N, channels, height, width] or as `layout` and `elementType` say it, its outputs or
 * one [N, dim], a free N, which is 1 where the input has no batch. Names are the graph's. The weights are copied once,
 * into the result. What was taken out of the graph when it was read is put in front again: the head (withInputRange),
 * and what input-layout.ts has taken. With a tail, the outputs are those of the file that the tail is of, and N is as
 * there.
 */
export function encodeOnnx(
  behindHead: Graph,
  { metadata = {}, producer = { name: 'facetrain', version: '' }, doc = '', tail }: EncodeOptions = {},
): Uint8Array {
  const { graph: channelsFirst, metadata: range } = withHead(behindHead);
  const { graph: whole, metadata: layout } = withFileInput(channelsFirst);
  const opsets = tail?.opsets ?? { '': OPSET };
  const graph = inOpset(tail ? withoutNames(whole, tail.names) : whole, opsets['']!);
  const { input, output } = graph;
  const batch = tail?.batch ?? (input.layout === 'CHW' ? 1 : null);
  const own = (graph.outputs ?? [{ name: output.name, dims: [output.dim] }]).map(({ name, dims }) =>
    valueInfo(name, [batch, ...dims]),
  );
  const nodeNames = new Set(graph.nodes.map(({ name }) => name));
  return encodeModel({
    irVersion: Math.max(IR_VERSION, tail?.irVersion ?? 0),
    producerName: producer.name,
    producerVersion: producer.version,
    docString: doc,
    graph: {
      name: 'backbone',
      node: [
        ...graph.nodes.map(encodeNode),
        ...(tail?.nodes ?? []).map((node) => (nodeNames.has(node.name) ? { ...node, name: '' } : node)),
      ],
      initializer: [
        ...Object.entries(graph.initializers).map(([name, tensor]) => encodeTensor(name, tensor)),
        ...(tail?.initializers ?? []),
      ],
      input: [valueInfo(input.name, fileSizes(input, batch), input.elementType === 'uint8' ? 'UINT8' : 'FLOAT')],
      output: tail ? tail.outputs.map((info) => own.find(({ name }) => name === info.name) ?? info) : own,
    },
    opsetImport: Object.entries(opsets).map(([domain, version]) => ({ domain, version })),
    metadataProps: Object.entries({ ...range, ...layout, ...metadata }).map(([key, value]) => ({ key, value })),
  });
}

/** The graph without these names of values and constants; its input and its outputs have none of them. */
function withoutNames(graph: Graph, names: ReadonlySet<string>): Graph {
  const own = graph.nodes.flatMap(({ outputs }) => outputs);
  const unique = new UniqueNames([graph.input.name, ...Object.keys(graph.initializers), ...own, ...names]);
  const given = new Map<string, string>([['', '']]);
  for (const name of [...Object.keys(graph.initializers), ...own])
    if (names.has(name) && !given.has(name)) given.set(name, unique.take(name));
  const renamed = (name: string) => given.get(name) ?? name;
  return {
    ...graph,
    nodes: graph.nodes.map((node) => ({
      ...node,
      inputs: node.inputs.map(renamed),
      outputs: node.outputs.map(renamed),
    })),
    initializers: Object.fromEntries(Object.entries(graph.initializers).map(([name, t]) => [renamed(name), t])),
  };
}
