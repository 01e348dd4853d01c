/** Writes a Graph as an ONNX file. The same graph and options give the same bytes. */
import type { Graph, GraphNode } from '@facetrain/native';
import { fileSizes, withFileInput } from './input-layout.ts';
import { withHead } from './input-range.ts';
import { type AttributeProto, AttributeType, type DataType, dataTypeNumber, encodeModel } from './proto.ts';
import { encodeTensor } from './tensor.ts';

/** The operator set whose semantics a Graph has. Files of other operator sets are translated when they are read. */
export const OPSET = 17;
/** The newest format version that every runtime with this operator set accepts. */
const IR_VERSION = 8;

export interface EncodeOptions {
  metadata?: Record<string, string>;
  producer?: { name: string; version: string };
  /** A sentence for people. */
  doc?: string;
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

function valueInfo(name: string, dims: number[], type: DataType = 'FLOAT') {
  const dim = [{ dimParam: 'N' }, ...dims.map((dimValue) => ({ dimValue }))];
  return { name, type: { tensorType: { elemType: dataTypeNumber(type), shape: { dim } } } };
}

/**
 * The file of a graph: one input, [N, channels, height, width] or as `layout` and `elementType` say it, its outputs or
 * one [N, dim], a free N. Names are the graph's. The weights are copied once, into the result. What was taken out of
 * the graph when it was read is put in front again: the head (withInputRange), Transpose and Cast (input-layout.ts).
 */
export function encodeOnnx(
  behindHead: Graph,
  { metadata = {}, producer = { name: 'facetrain', version: '' }, doc = '' }: EncodeOptions = {},
): Uint8Array {
  const { graph: channelsFirst, metadata: range } = withHead(behindHead);
  const { graph, metadata: layout } = withFileInput(channelsFirst);
  const { input, output } = graph;
  return encodeModel({
    irVersion: IR_VERSION,
    producerName: producer.name,
    producerVersion: producer.version,
    docString: doc,
    graph: {
      name: 'backbone',
      node: graph.nodes.map(encodeNode),
      initializer: Object.entries(graph.initializers).map(([name, tensor]) => encodeTensor(name, tensor)),
      input: [valueInfo(input.name, fileSizes(input), input.elementType === 'uint8' ? 'UINT8' : 'FLOAT')],
      output: (graph.outputs ?? [{ name: output.name, dims: [output.dim] }]).map(({ name, dims }) =>
        valueInfo(name, dims),
      ),
    },
    opsetImport: [{ domain: '', version: OPSET }],
    metadataProps: Object.entries({ ...range, ...layout, ...metadata }).map(([key, value]) => ({ key, value })),
  });
}
