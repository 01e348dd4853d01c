/**
 * The layout and the element type of a file's input. A graph reads floats [N, C, H, W]; a file of TensorFlow or Keras
 * reads [N, H, W, C], and some read bytes.
 *
 * A file of channels last is read with a Transpose in front, which is exact whatever the file does then. Such files
 * begin with the opposite Transpose, perhaps behind arithmetic, and canonical.ts takes out the two. write.ts puts them
 * in front again, so a file that is written reads what the file that was read does.
 *
 * A file of one picture without a batch, [C, H, W], is read as one of a batch of one that takes the picture out of it
 * (one-picture.ts).
 */
import type { Graph, GraphInput, GraphNode, Tensor } from '@facetrain/native';
import { intAttribute } from './attributes.ts';
import { TO_CHANNELS_FIRST, TO_CHANNELS_LAST } from './canonical.ts';
import { DATA_TYPES, dataTypeNumber } from './proto.ts';
import type { Refuse } from './read-nodes.ts';
import { UniqueNames } from './unique-names.ts';

/** In an ONNX file's metadata_props: for people and other programs, since the file's input says both. */
export const LAYOUT_METADATA = {
  layout: 'facetrain.input.layout',
  elementType: 'facetrain.input.elementType',
} as const;

/** Pictures have up to this many channels; a larger first size is a height. */
const MOST_CHANNELS = 4;

export const isChannels = (size: number) => size > 0 && size <= MOST_CHANNELS;

/**
 * What the three sizes behind the batch mean. Channels are last where only the last size can be a number of channels.
 * @param sizes as the file declares them
 */
export function inputSizes(
  sizes: [number, number, number],
): Pick<GraphInput, 'channels' | 'height' | 'width' | 'layout'> {
  const [first, second, third] = sizes;
  if (first > MOST_CHANNELS && third <= MOST_CHANNELS)
    return { channels: third, height: first, width: second, layout: 'NHWC' };
  return { channels: first, height: second, width: third };
}

type Sizes = Pick<GraphInput, 'channels' | 'height' | 'width'> & { layout?: GraphInput['layout'] | undefined };

/** The sizes of the file's input. @param batch of the file; one of CHW has none */
export function fileSizes<Batch>({ channels, height, width, layout }: Sizes, batch: Batch): (Batch | number)[] {
  if (layout === 'CHW') return [channels, height, width];
  return layout === 'NHWC' ? [batch, height, width, channels] : [batch, channels, height, width];
}

/** Operators that move numbers and compute nothing, by their first input. */
const MOVING = new Set([
  'Flatten',
  'Gather',
  'Identity',
  'Pad',
  'Reshape',
  'Slice',
  'Split',
  'Squeeze',
  'Transpose',
  'Unsqueeze',
]);
/** Types that hold every byte, in which the file may keep the picture before it casts it to floats. */
const WHOLE_NUMBERS = ['UINT8', 'UINT16', 'INT16', 'UINT32', 'INT32', 'UINT64', 'INT64'];
const FLOATS = ['FLOAT', 'FLOAT16', 'BFLOAT16', 'DOUBLE'];

/**
 * The nodes of a file of bytes, for a graph that reads the same numbers as floats: casts of the picture are gone.
 * @param isUnread whether a node is left as it is
 * @throws FacetrainError UnsupportedOperator for a node that computes with integers, which overflow and round
 */
export function withoutByteCasts(
  nodes: GraphNode[],
  input: string,
  isUnread: (node: GraphNode) => boolean,
  refuse: Refuse,
): GraphNode[] {
  const bytes = new Set([input]);
  return nodes.map((node) => {
    const { name, op, inputs, outputs } = node;
    if (op === 'Shape' || isUnread(node) || !inputs.some((value) => bytes.has(value))) return node;
    const error = (found: string) =>
      refuse(`node "${name}" (${op}) ${found}`, 'a Cast to float in front of it', 'UnsupportedOperator');
    if (op === 'Cast') {
      const to = DATA_TYPES[intAttribute(node, 'to', 0)] ?? '';
      if (WHOLE_NUMBERS.includes(to)) bytes.add(outputs[0]!);
      else if (!FLOATS.includes(to)) throw error(`makes ${to} of the picture’s bytes`);
      return { ...node, op: 'Identity', attributes: {} };
    }
    const movesAll = op === 'Concat' && inputs.every((value) => bytes.has(value));
    const moves = MOVING.has(op) && inputs.slice(1).every((value) => !bytes.has(value));
    if (!movesAll && !moves) throw error('computes with the picture’s bytes');
    for (const output of outputs) bytes.add(output);
    return node;
  });
}

/** A graph whose input is [N, C, H, W], with the nodes of a file that reads [N, H, W, C]. */
export function readingChannelsLast(graph: Graph): Graph {
  return inFront(graph, ({ input }) => [
    { op: 'Transpose', value: `${input.name}_channels_last`, attributes: { perm: TO_CHANNELS_LAST } },
  ]);
}

/** A graph whose input is [N, C, H, W], with the nodes of a file that reads [C, H, W]. */
export function readingNoBatch(graph: Graph): Graph {
  const first = { dims: [], data: BigInt64Array.of(0n) };
  return inFront(graph, ({ input }) => [
    { op: 'Gather', value: `${input.name}_without_batch`, constant: first, attributes: { axis: 0 } },
  ]);
}

/** The graph as its file has it: with the nodes that bring the file's input into the graph's form. */
export function withFileInput(graph: Graph): { graph: Graph; metadata: Record<string, string> } {
  const { layout = 'NCHW', elementType } = graph.input;
  const isBytes = elementType === 'uint8';
  const steps: Step[] = [];
  if (isBytes) steps.push({ op: 'Cast', value: 'input.float', attributes: { to: dataTypeNumber('FLOAT') } });
  if (layout === 'NHWC')
    steps.push({ op: 'Transpose', value: 'input.channels_first', attributes: { perm: TO_CHANNELS_FIRST } });
  if (layout === 'CHW') {
    const axes = { dims: [1], data: BigInt64Array.of(0n) };
    steps.push({ op: 'Unsqueeze', value: 'input.batch', constant: axes, attributes: {} });
  }
  const metadata = {
    ...(layout !== 'NCHW' && { [LAYOUT_METADATA.layout]: layout }),
    ...(isBytes && { [LAYOUT_METADATA.elementType]: 'uint8' }),
  };
  return { graph: inFront(graph, () => steps), metadata };
}

interface Step {
  op: string;
  /** The name that its output should have. */
  value: string;
  /** What it reads beside the picture. */
  constant?: Tensor;
  attributes: GraphNode['attributes'];
}

/** Puts nodes between the picture and all that read it. */
function inFront(graph: Graph, steps: (graph: Graph) => Step[]): Graph {
  const { input } = graph;
  const initializers = { ...graph.initializers };
  const names = new UniqueNames([
    input.name,
    ...Object.keys(initializers),
    ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
  ]);
  let tensor = input.name;
  const added = steps(graph).map(({ op, value, constant, attributes }): GraphNode => {
    const output = names.take(value);
    const inputs = [tensor];
    if (constant) {
      inputs.push(names.take(`${value}.constant`));
      initializers[inputs[1]!] = constant;
    }
    tensor = output;
    return { name: output, op, inputs, outputs: [output], attributes };
  });
  const nodes = graph.nodes.map((node) => ({
    ...node,
    inputs: node.inputs.map((name) => (name === input.name ? tensor : name)),
  }));
  return { ...graph, nodes: [...added, ...nodes], initializers };
}
