/**
 * The range of a model's input: what a picture's bytes become before they enter the file, and what the file itself does
 * to them before its first layer.
 *
 * Models are trained on bytes (0..255), on [0, 1] or on [-1, 1], and many files begin with the rest of the
 * normalization: MXNet's exports with Sub 127.5 and Mul 1/127.5, others with (x - mean) / std for each channel. This
 * head is an affine map for each channel. It is taken out of the graph, and both parts become one map from bytes to the
 * first layer's input (`mean` and `std` of Graph.input). So a padding convolution pads normalized values, and the
 * quantizer sees only what is behind the head; write.ts puts it in front again.
 */
import { counted, FacetrainError, INPUT_RANGES, rangeBehind } from '@facetrain/api';
import type { Graph, GraphInput, GraphNode, InputRange, Tensor } from '@facetrain/native';
import { arithmeticMap, batchNormMap, type ChannelMap } from './channel-map.ts';
import { FORMAT_METADATA } from './read.ts';
import { UniqueNames } from './unique-names.ts';

/**
 * Where a range is from: the user; metadata of our own exports; the type of the input, which holds bytes; the head of
 * the graph; or nothing says it.
 */
export type RangeSource = 'given' | 'metadata' | 'type' | 'head' | 'default';

/** What a file reads. `layout` and `elementType` are there where they are not NCHW and float32. */
export interface FoundRange extends InputRange, Pick<GraphInput, 'layout' | 'elementType'> {
  source: RangeSource;
}

export interface RangeOptions {
  /** What the user says, in the file's input channels: one number for all, or one for each. */
  given?: InputRange | null;
  /** For a training: batch norms at the head stay in the graph, where they learn. */
  keepNorms?: boolean;
  /** The file's name, for messages. */
  subject: string;
}

/** In an ONNX file's metadata_props: JSON lists of numbers in units of bytes, one for each channel. */
export const RANGE_METADATA = { mean: 'facetrain.input.mean', std: 'facetrain.input.std' } as const;

/** An affine map for each channel: scale·x + offset. */
interface Head {
  scale: number[];
  offset: number[];
}

/**
 * Takes the head out of the graph, and says what the file's input is.
 * @returns the graph, whose input has `mean`, `std` and `file`; and the range of the file's input
 * @throws FacetrainError InvalidArgument when the range does not fit the channels or the bytes, or is given for an INT7
 *   file; InvalidModel when it has a head and it is not clear for which range it was made
 */
export function withInputRange(
  { graph, metadata }: { graph: Graph; metadata: Record<string, string> },
  { given = null, keepNorms = false, subject }: RangeOptions,
): { graph: Graph; range: FoundRange } {
  const { layout, elementType } = graph.input;
  const { head, nodes, first } = splitHead(graph, true);
  const found = findRange(given, metadata, head, graph.input, subject);
  const range = { ...found, ...(layout && { layout }), ...(elementType && { elementType }) };
  const taken = keepNorms ? splitHead(graph, false) : { head, nodes, first };
  const rest = taken.first === graph.input.name ? graph : withoutHead(graph, taken.nodes, taken.first);
  // As write.ts writes it: a file that is read again must give the same numbers.
  const kept = { scale: taken.head.scale.map(Math.fround), offset: taken.head.offset.map(Math.fround) };
  const file = { ...kept, mean: range.mean, std: range.std };
  return { graph: { ...rest, input: { ...graph.input, ...rangeBehind(range, kept), file } }, range };
}

function findRange(
  given: InputRange | null,
  metadata: Record<string, string>,
  head: Head,
  { channels, elementType }: GraphInput,
  subject: string,
): FoundRange {
  if (elementType === 'uint8') return rangeOfBytes(given, metadata, channels, subject);
  if (given && metadata[FORMAT_METADATA] !== undefined)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: `the range of the input of ${subject}`,
      found: 'given for an INT7 model',
      allowed: 'none: the file says it, and its scales are for that range',
    });
  if (given) return { ...forChannels(given, channels, subject), source: 'given' };
  const written = fromMetadata(metadata, channels);
  if (written) return { ...written, source: 'metadata' };
  const isIdentity = head.scale.every((scale) => scale === 1) && head.offset.every((offset) => offset === 0);
  if (isIdentity) return { ...forChannels(INPUT_RANGES['-1..1'], channels, subject), source: 'default' };
  const name = rangeOfHead(head);
  if (name !== null) return { ...forChannels(INPUT_RANGES[name], channels, subject), source: 'head' };
  throw new FacetrainError({
    code: 'InvalidModel',
    subject,
    found:
      `begins with a map of its input (scale ${shown(head.scale)}, offset ${shown(head.offset)}) that fits none or ` +
      `several of the ranges ${Object.keys(INPUT_RANGES).join(', ')}`,
    allowed: 'say the range of the input: --input-range, or model.input in a manifest',
  });
}

/**
 * A file whose input is of bytes reads 0..255.
 * @throws FacetrainError InvalidArgument when the user says another range
 */
function rangeOfBytes(
  given: InputRange | null,
  metadata: Record<string, string>,
  channels: number,
  subject: string,
): FoundRange {
  const bytes = forChannels(INPUT_RANGES['0..255'], channels, subject);
  const { mean, std } = given ? forChannels(given, channels, subject) : bytes;
  if (!mean.every((value) => value === 0) || !std.every((value) => value === 1))
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: `the range of the input of ${subject}`,
      found: 'another one than 0..255 for a file that reads bytes (uint8)',
      allowed: '0..255, or none: the file’s type says it',
    });
  const isWritten = fromMetadata(metadata, channels) !== null;
  return { ...bytes, source: given ? 'given' : isWritten ? 'metadata' : 'type' };
}

const shown = (values: number[]) => values.map((value) => Number(value.toPrecision(4))).join(' ');

/**
 * Networks are trained on values about zero, whose span is neither tiny nor that of a product of two ranges. Of the
 * ranges for which the head gives such a span, the one whose values lie best around zero.
 * @returns null when none or more than one fits
 */
function rangeOfHead({ scale, offset }: Head): keyof typeof INPUT_RANGES | null {
  const SPAN = { least: 0.4, most: 300 };
  /** Of the distances from zero, in spans. */
  const CLEARLY = 0.1;
  const fits = Object.entries(INPUT_RANGES).flatMap(([name, { mean, std }]) => {
    const ends = scale.map((value, c) => [0, 255].map((byte) => (value * (byte - mean[0])) / std[0] + offset[c]!)) as [
      number,
      number,
    ][];
    const spans = ends.map(([low, high]) => Math.abs(high - low));
    if (!spans.every((span) => span >= SPAN.least && span <= SPAN.most)) return [];
    const distance = Math.max(...ends.map(([low, high], c) => Math.abs(low + high) / 2 / spans[c]!));
    return [{ name: name as keyof typeof INPUT_RANGES, distance }];
  });
  const [best, next] = fits.toSorted((a, b) => a.distance - b.distance);
  return best && (!next || next.distance - best.distance >= CLEARLY) ? best.name : null;
}

/** @throws FacetrainError InvalidArgument for several numbers that are not one for each channel */
export function forChannels(
  { mean, std }: { mean: readonly number[]; std: readonly number[] },
  channels: number,
  subject: string,
): InputRange {
  const expand = (values: readonly number[], name: string) => {
    if (values.length !== 1 && values.length !== channels)
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: `${name} of the input of ${subject}`,
        found: counted(values.length, 'number'),
        allowed: `one number, or one for each of the ${channels} channels`,
      });
    return Array.from({ length: channels }, (_, c) => values[values.length === 1 ? 0 : c]!);
  };
  return { mean: expand(mean, 'mean'), std: expand(std, 'std') };
}

function fromMetadata(metadata: Record<string, string>, channels: number): InputRange | null {
  const numbers = (key: string) => {
    try {
      const value: unknown = JSON.parse(metadata[key] ?? '');
      return Array.isArray(value) && value.length === channels && value.every(Number.isFinite) ? value : null;
    } catch {
      return null;
    }
  };
  const [mean, std] = [numbers(RANGE_METADATA.mean), numbers(RANGE_METADATA.std)] as (number[] | null)[];
  return mean && std?.every((value) => value !== 0) ? { mean, std } : null;
}

/** Follows the affine nodes from the input on, as long as nothing else reads what they read. */
function splitHead(graph: Graph, withNorms: boolean): { head: Head; nodes: Set<GraphNode>; first: string } {
  const { channels } = graph.input;
  const head = { scale: new Array<number>(channels).fill(1), offset: new Array<number>(channels).fill(0) };
  const nodes = new Set<GraphNode>();
  const outputs = new Set((graph.outputs ?? [graph.output]).map(({ name }) => name));
  let first = graph.input.name;
  for (;;) {
    const readers = graph.nodes.filter(({ inputs }) => inputs.includes(first));
    const [node] = readers;
    if (!node || readers.length > 1 || outputs.has(node.outputs[0]!)) break;
    const map = mapOf(node, first, graph, withNorms);
    // A channel that is multiplied by zero has no inverse: the map stays in the graph.
    if (!map?.scale.every((value) => value !== 0 && Number.isFinite(value))) break;
    head.offset = head.offset.map((offset, c) => offset * map.scale[c]! + map.offset[c]!);
    head.scale = head.scale.map((scale, c) => scale * map.scale[c]!);
    nodes.add(node);
    first = node.outputs[0]!;
  }
  return { head, nodes, first };
}

/** The map that a node makes of a tensor; null when it makes no such map. */
function mapOf(node: GraphNode, tensor: string, { input, initializers }: Graph, withNorms: boolean): ChannelMap | null {
  const { op, inputs, attributes } = node;
  if (op === 'BatchNormalization') {
    const statistics = inputs.slice(1).map((name) => initializers[name]?.data);
    if (!withNorms || statistics.length !== 4 || !statistics.every((data) => data instanceof Float32Array)) return null;
    const epsilon = typeof attributes.epsilon === 'number' ? attributes.epsilon : 1e-5;
    return batchNormMap(statistics as Parameters<typeof batchNormMap>[0], epsilon);
  }
  if (inputs.length !== 2 || inputs[0] === inputs[1]) return null;
  const isFirst = inputs[1] === tensor;
  const constant = perChannel(initializers[inputs[isFirst ? 0 : 1]!], input.channels);
  return constant && arithmeticMap(op, constant, isFirst);
}

/** A constant that has one value for each channel of [N, C, H, W], or one for all; null for any other. */
function perChannel(tensor: Tensor | undefined, channels: number): Float32Array | null {
  if (!(tensor?.data instanceof Float32Array)) return null;
  const { data } = tensor;
  const dims = [...new Array<number>(Math.max(0, 4 - tensor.dims.length)).fill(1), ...tensor.dims];
  if (dims.length !== 4 || dims[0] !== 1 || dims[2] !== 1 || dims[3] !== 1) return null;
  if (dims[1] !== 1 && dims[1] !== channels) return null;
  return Float32Array.from({ length: channels }, (_, c) => data[dims[1] === 1 ? 0 : c]!);
}

function withoutHead(graph: Graph, head: Set<GraphNode>, first: string): Graph {
  const nodes = graph.nodes
    .filter((node) => !head.has(node))
    .map((node) => ({ ...node, inputs: node.inputs.map((name) => (name === first ? graph.input.name : name)) }));
  const used = new Set(nodes.flatMap(({ inputs }) => inputs));
  const initializers = Object.fromEntries(Object.entries(graph.initializers).filter(([name]) => used.has(name)));
  return { ...graph, nodes, initializers };
}

/** The metadata that says what a file reads. */
export const rangeMetadata = ({ mean, std }: InputRange): Record<string, string> => ({
  [RANGE_METADATA.mean]: JSON.stringify(mean),
  [RANGE_METADATA.std]: JSON.stringify(std),
});

/**
 * The graph as its file has it: with the head that withInputRange took out, and the metadata that says the range of the
 * file's input. A graph that has no `file` is returned as it is.
 */
export function withHead(graph: Graph): { graph: Graph; metadata: Record<string, string> } {
  const { file } = graph.input;
  if (!file) return { graph, metadata: {} };
  const metadata = rangeMetadata(file);
  const steps = [
    { op: 'Mul', values: file.scale, neutral: 1 },
    { op: 'Add', values: file.offset, neutral: 0 },
  ].filter(({ values, neutral }) => values.some((value) => value !== neutral));
  if (steps.length === 0) return { graph, metadata };
  const names = new UniqueNames([
    graph.input.name,
    ...Object.keys(graph.initializers),
    ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
  ]);
  const initializers = { ...graph.initializers };
  const head: GraphNode[] = [];
  let tensor = graph.input.name;
  for (const { op, values } of steps) {
    const constant = names.take(`input.${op === 'Mul' ? 'scale' : 'offset'}`);
    initializers[constant] = { dims: [1, values.length, 1, 1], data: Float32Array.from(values) };
    const output = names.take('input.normalized');
    head.push({ name: output, op, inputs: [tensor, constant], outputs: [output], attributes: {} });
    tensor = output;
  }
  const nodes = graph.nodes.map((node) => ({
    ...node,
    inputs: node.inputs.map((name) => (name === graph.input.name ? tensor : name)),
  }));
  return { graph: { ...graph, nodes: [...head, ...nodes], initializers }, metadata };
}
