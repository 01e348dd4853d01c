/**
 * The tail of a network: nodes that our runtime does not compute, with all that reads what they compute. Detectors end
 * with TopK and NonMaxSuppression, recognizers of text with LSTMs.
 *
 * A file of the quantizer has the tail as the FP32 file had it, behind the tensors that enter it. Our runtime gives
 * these tensors (docs/decisions/0076). TailSearch finds the tail while a graph is read; tailFile makes the parts of a
 * file.
 */
import { FacetrainError } from '@facetrain/api';
import { OPSET } from './operators.ts';
import {
  AttributeType,
  DATA_TYPES,
  decodeGraph,
  type NodeProto,
  type TensorProto,
  toNumber,
  type ValueInfoProto,
} from './proto.ts';
import type { Refuse } from './read-nodes.ts';
import { OpsetUpgrade } from './tail-opset.ts';
import { UniqueNames } from './unique-names.ts';

export interface Tail {
  /** The nodes that our runtime does not compute: `node "NAME" (OPERATOR)`, and why. The others read of them. */
  causes: { node: string; reason: string }[];
  /** How many nodes there are of each operator: "NonMaxSuppression 1, Gather 3". */
  operators: string;
  file: TailFile;
}

/** What a file has of it. */
export interface TailFile {
  nodes: NodeProto[];
  initializers: TensorProto[];
  /** Names of what it makes, also inside its nodes' graphs: nothing else in the file may have them. */
  names: ReadonlySet<string>;
  /** Version of each operator set, by domain. */
  opsets: Record<string, number>;
  irVersion: number;
  /** Of the file's input; null: free. */
  batch: number | null;
  /** The file's outputs, of which the tail makes some. */
  outputs: ValueInfoProto[];
}

/** A node of a file, with what the graphs inside it read from around them. */
export interface FileNode {
  name: string;
  op: string;
  inputs: string[];
  outputs: string[];
  proto: NodeProto;
  /** Names that the graphs inside it make. */
  inner: string[];
}

const label = ({ name, op }: Pick<FileNode, 'name' | 'op'>) => `node "${name}" (${op})`;

/** Of graphs inside nodes; files as they are have two levels. */
const DEEPEST = 16;

/** @throws FacetrainError InvalidModel for a graph inside the node that cannot be decoded */
export function fileNode(proto: NodeProto, refuse: Refuse): FileNode {
  const outer = new Set<string>();
  const inner = new Set<string>();
  const read = (node: NodeProto, isKnown: (name: string) => boolean, depth: number): void => {
    for (const bytes of graphsOf(node)) {
      if (depth === DEEPEST)
        throw refuse(`node "${proto.name}" has graphs in more than ${DEEPEST} levels`, 'an ONNX file as exported');
      const graph = decodeInner(bytes, proto, refuse);
      const made = new Set([...graph.input, ...graph.initializer].map(({ name }) => name));
      const isInside = (name: string) => made.has(name) || isKnown(name);
      for (const each of graph.node) {
        for (const name of each.input) if (name !== '' && !isInside(name)) outer.add(name);
        read(each, isInside, depth + 1);
        for (const name of each.output) made.add(name);
      }
      for (const { name } of graph.output) if (!isInside(name)) outer.add(name);
      for (const name of [...made, ...graph.node.map(({ name }) => name)]) inner.add(name);
    }
  };
  read(proto, () => false, 0);
  const given = new Set(proto.input);
  const inputs = [...proto.input, ...[...outer].filter((name) => !given.has(name))];
  return { name: proto.name, op: proto.opType, inputs, outputs: proto.output, proto, inner: [...inner] };
}

function graphsOf({ attribute }: NodeProto): Uint8Array[] {
  return attribute.flatMap(({ type, g, graphs }) => {
    if (type === AttributeType.GRAPH) return g ? [g] : [];
    return type === AttributeType.GRAPHS ? (graphs ?? []) : [];
  });
}

function decodeInner(bytes: Uint8Array, { name, opType }: NodeProto, refuse: Refuse) {
  try {
    return decodeGraph(bytes);
  } catch (cause) {
    throw refuse(
      `node "${name}" (${opType}) has a graph that cannot be decoded (${(cause as Error).message})`,
      'an ONNX file; this one is damaged',
    );
  }
}

/** What cuts a network in two. */
export interface Cut {
  /** The outputs of the network without its tail: first those of the file, then the values that enter the tail. */
  outputs: string[];
  /** The values that enter it. */
  inputs: string[];
  /** The names of the tail's nodes, in the file's order. */
  nodes: string[];
  /** Of these, those that our runtime does not compute, with why. */
  causes: Map<string, string>;
  /** The constants that it reads. */
  initializers: Set<string>;
  /** Its nodes Shape of which only the batch may not be known: all sizes, NaN for a free batch. */
  sizes: Map<string, number[]>;
}

/** What a file offers to a tail. */
export interface TailSource {
  /** In the file's order, by name. */
  nodes: ReadonlyMap<string, FileNode>;
  /** Names of constants. */
  constants: ReadonlySet<string>;
  /** The picture. */
  input: string;
  /** Operators that our runtime computes. */
  operators: ReadonlySet<string>;
  /** Nodes that could not be read, by name, with why. */
  unread: ReadonlyMap<string, string>;
  /** Of errors: the file. */
  subject: string;
}

export class TailSearch {
  readonly #source: TailSource;
  /** Nodes that our runtime does not compute, by name, with why. */
  readonly #causes = new Map<string, string>();
  /** By node, of these and of those that read of them: one of these. */
  readonly #causeOf = new Map<string, string>();
  /** Nodes that read more than sizes and constants; also others than these. */
  readonly #ofPicture = new Set<string>();
  /** Of what these nodes make: the node. */
  readonly #makers = new Map<string, string>();

  constructor(source: TailSource) {
    this.#source = source;
  }

  computes(op: string): boolean {
    return this.#source.operators.has(op);
  }

  /**
   * @param isSize whether a value is constant, or of the batch's size
   * @returns whether a node is in the tail, by what it reads or because it was not read
   */
  takes(name: string, inputs: string[], isSize: (value: string) => boolean): boolean {
    const makers = inputs.map((input) => this.#makers.get(input));
    if (inputs.some((input, i) => (makers[i] === undefined ? !isSize(input) : this.#ofPicture.has(makers[i]))))
      this.#ofPicture.add(name);
    const unread = this.#source.unread.get(name);
    const from = makers.find((maker) => maker !== undefined && this.#ofPicture.has(maker)) ?? makers.find(Boolean);
    if (unread !== undefined) this.#addCause(name, unread);
    else if (from === undefined) return this.#causeOf.has(name);
    else if (this.#ofPicture.has(from) || !this.#ofPicture.has(name)) this.#add(name, this.#causeOf.get(from)!);
    else {
      // The first that reads the picture as well, such as an LSTM whose first state has the batch's size.
      const node = this.#source.nodes.get(name)!;
      const reads = `reads what ${label(this.#source.nodes.get(from)!)} computes`;
      this.#addCause(name, this.computes(node.op) ? reads : notSupported(node.op));
    }
    return true;
  }

  /** Adds a node of the file. @param error why our runtime does not compute it */
  addRefused(name: string, error: FacetrainError): void {
    this.#addCause(name, reasonOf(error));
  }

  #addCause(name: string, reason: string): void {
    this.#causes.set(name, reason);
    this.#add(name, name);
  }

  #add(name: string, cause: string): void {
    this.#causeOf.set(name, cause);
    for (const output of this.#source.nodes.get(name)!.outputs) if (output !== '') this.#makers.set(output, name);
  }

  /**
   * @param canEnter whether our runtime can give a value as one of its outputs
   * @param sizesOf the sizes of a value that our runtime computes, NaN for a free batch; undefined: not known
   * @returns undefined when no output needs a node that our runtime does not compute
   * @throws FacetrainError UnsupportedOperator when a convolution reads of such a node, or nothing is in front of it
   */
  cut(
    outputs: string[],
    canEnter: (value: string) => boolean,
    sizesOf: (value: string) => number[] | undefined,
  ): Cut | undefined {
    const { nodes, constants, input } = this.#source;
    const producers = new Map<string, FileNode>();
    for (const node of nodes.values()) for (const name of node.outputs) producers.set(name, node);
    const taken = new Set<string>();
    const entering = new Set<string>();
    const initializers = new Set<string>();
    const sizes = new Map<string, { value: string; dims: number[] }>();
    const wanted = outputs.filter((name) => this.#makers.has(name));
    if (wanted.length === 0) return undefined;
    for (let value = wanted.pop(); value !== undefined; value = wanted.pop()) {
      const producer = producers.get(value);
      if (constants.has(value)) initializers.add(value);
      else if (value === input || !producer || taken.has(producer.name)) continue;
      else if (!this.#makers.has(value) && canEnter(value)) entering.add(value);
      else {
        taken.add(producer.name);
        const [of] = producer.inputs;
        const dims =
          producer.op === 'Shape' && of !== undefined && of !== input && !this.#makers.has(of)
            ? sizesOf(of)
            : undefined;
        if (dims) sizes.set(producer.name, { value: of!, dims });
        else wanted.push(...producer.inputs);
      }
    }
    const made = new Set([...taken].flatMap((name) => nodes.get(name)!.outputs));
    const inputs = [...producers.keys()].filter((name) => entering.has(name) && !made.has(name));
    // A value that is read anyway tells its own sizes.
    for (const [name, { value }] of sizes) if (inputs.includes(value) || made.has(value)) sizes.delete(name);
    const ordered = [...nodes.keys()].filter((name) => taken.has(name));
    const own = outputs.filter((name) => !made.has(name));
    const given = [...own, ...inputs.filter((name) => !own.includes(name))];
    this.#check(ordered, given, producers);
    return {
      outputs: given,
      inputs,
      nodes: ordered,
      causes: this.#causesIn(taken),
      initializers,
      sizes: new Map([...sizes].map(([name, { dims }]) => [name, dims])),
    };
  }

  /** Those that read only sizes are named where there are no others. */
  #causesIn(taken: ReadonlySet<string>): Map<string, string> {
    const all = [...this.#causes].filter(([name]) => taken.has(name));
    const ofPicture = all.filter(([name]) => this.#ofPicture.has(name));
    return new Map(ofPicture.length > 0 ? ofPicture : all);
  }

  /** The tail has no convolution, and something is in front of it. */
  #check(tail: string[], outputs: string[], producers: ReadonlyMap<string, FileNode>): void {
    const { nodes, constants, subject } = this.#source;
    const isConstant = (name = '') => constants.has(name) || producers.get(name)?.op === 'Constant';
    const because = (cause: string, then: string, allowed: string) => {
      const node = nodes.get(cause)!;
      const found = `${this.#causes.get(cause)}, and ${then}`;
      // As other commands name them: what our runtime does not know, the addon refuses.
      const named = this.computes(node.op)
        ? { subject, found: `${label(node)}: ${found}` }
        : { subject: `${subject}: node '${cause}' (${node.op})`, found };
      return new FacetrainError({ code: 'UnsupportedOperator', ...named, allowed });
    };
    for (const name of tail) {
      const node = nodes.get(name)!;
      const cause = this.#causeOf.get(name) ?? name;
      const isConv = (node.op === 'Conv' || node.op === 'ConvTranspose') && isConstant(node.inputs[1]);
      if (isConv && cause !== name)
        throw because(
          cause,
          `${label(node)} is behind it`,
          'such operators behind the last convolution only, where they stay FP32',
        );
    }
    if (outputs.length === 0)
      throw because(
        [...this.#causesIn(new Set(tail)).keys()][0]!,
        'no layer that can be quantized is in front of it',
        'a network that begins with convolutions',
      );
  }
}

export const notSupported = (op: string) => `operator ${op} is not supported`;

/** What an error says, without the node that it names. */
export function reasonOf({ found }: FacetrainError): string {
  return found.replace(/^node ".*?"(?: \([^()]*\))?:? /, '');
}

const FLOAT = DATA_TYPES.indexOf('FLOAT');
const OTHER_FLOATS = ['FLOAT16', 'DOUBLE', 'BFLOAT16'].map((type) => DATA_TYPES.indexOf(type as 'DOUBLE'));

/** The tail of a file that was read. */
export interface ReadFile {
  nodes: ReadonlyMap<string, FileNode>;
  initializers: ReadonlyMap<string, TensorProto>;
  input: { name: string; type: number };
  opsets: Record<string, number>;
  irVersion: number;
  batch: number | null;
  /** Those that are kept. */
  outputs: ValueInfoProto[];
}

/**
 * The tail as an INT7 file has it, of operator set 17 or the file's own, if that is newer.
 * @throws FacetrainError UnsupportedOperator for a node that such a file cannot have
 */
export function tailFile(cut: Cut, file: ReadFile, refuse: Refuse): Tail {
  const taken = cut.nodes.map((name) => file.nodes.get(name)!);
  const all = [...file.nodes.values()].flatMap(({ name, outputs, inner }) => [name, ...outputs, ...inner]);
  const unique = new UniqueNames([file.input.name, ...file.initializers.keys(), ...all]);
  const upgrade = new OpsetUpgrade(file.opsets['']!, (name) => unique.take(name), refuse);
  const nodes: NodeProto[] = [];
  const renamed = new Map<string, string>();
  for (const [value, type] of [...castsOf(cut, taken, file)]) {
    const captures = taken.find(({ inputs, proto }) => inputs.includes(value) && !proto.input.includes(value));
    const typeName = DATA_TYPES[type]!;
    if (captures)
      throw refuse(
        `${label(captures)} reads "${value}" of ${typeName} in a graph of its own`,
        'a model of float32',
        'UnsupportedOperator',
      );
    const cast = unique.take(`${value}_${typeName.toLowerCase()}`);
    const to = { name: 'to', type: AttributeType.INT, i: type };
    nodes.push({ name: cast, opType: 'Cast', input: [value], output: [cast], attribute: [to] });
    renamed.set(value, cast);
  }
  for (const { name, proto } of taken) {
    const sizes = cut.sizes.get(name);
    if (sizes) nodes.push(...sizesNodes(proto, sizes, file.input.name, (like) => unique.take(like)));
    else nodes.push(...upgrade.nodes({ ...proto, input: proto.input.map((value) => renamed.get(value) ?? value) }));
  }
  const initializers = [...cut.initializers].map((name) => file.initializers.get(name)!);
  const domains = new Set(taken.map(({ proto }) => proto.domain ?? ''));
  const others = Object.entries(file.opsets).filter(([domain]) => domain !== '' && isIn(domain, taken, domains));
  return {
    causes: [...cut.causes].map(([name, reason]) => ({ node: label(file.nodes.get(name)!), reason })),
    operators: operatorCounts(taken),
    file: {
      nodes,
      initializers,
      names: new Set([
        ...nodes.flatMap(({ name, output }) => [name, ...output]),
        ...taken.flatMap(({ inner }) => inner),
        ...cut.initializers,
      ]),
      opsets: { '': Math.max(OPSET, file.opsets['']!), ...Object.fromEntries(others) },
      ...{ irVersion: file.irVersion, batch: file.batch, outputs: file.outputs },
    },
  };
}

function operatorCounts(nodes: FileNode[]): string {
  const counts = new Map<string, number>();
  for (const { op } of nodes) if (op !== 'Constant') counts.set(op, (counts.get(op) ?? 0) + 1);
  return [...counts].map(([op, count]) => `${op} ${count}`).join(', ');
}

/** Whether nodes may be of a domain: those of graphs inside nodes are not looked at. */
function isIn(domain: string, taken: FileNode[], domains: ReadonlySet<string>): boolean {
  return domains.has(domain) || taken.some(({ proto }) => graphsOf(proto).length > 0);
}

/** The values that the tail reads in another type than our runtime's float32, with the type. */
function castsOf(cut: Cut, taken: FileNode[], file: ReadFile): Map<string, number> {
  const types = new Map<string, number>([[file.input.name, file.input.type]]);
  for (const [name, { dataType }] of file.initializers) types.set(name, dataType);
  for (const { op, inputs, outputs, proto } of file.nodes.values()) {
    const given = inputs.map((name) => types.get(name)).filter((type) => type !== undefined);
    const attribute = (name: string) => proto.attribute.find((each) => each.name === name);
    let type = given.find((each) => each === FLOAT || OTHER_FLOATS.includes(each)) ?? given[0];
    if (op === 'Cast') type = toNumber(attribute('to')?.i ?? FLOAT);
    if (op === 'Constant' || op === 'ConstantOfShape') type = attribute('value')?.t?.dataType ?? FLOAT;
    if (type !== undefined) for (const name of outputs) types.set(name, type);
  }
  const read = new Set(taken.flatMap(({ inputs }) => inputs));
  const values = [...cut.inputs, file.input.name].filter((name) => read.has(name));
  return new Map(values.map((name) => [name, types.get(name) ?? FLOAT] as const).filter(([, type]) => isOther(type)));
}

const isOther = (type: number) => OTHER_FLOATS.includes(type);

/**
 * A Shape of a value that our runtime does not give: the batch of the picture, and sizes that are known.
 * @param sizes NaN for the batch
 */
function sizesNodes(
  { name, output, attribute }: NodeProto,
  sizes: number[],
  picture: string,
  freshName: (name: string) => string,
): NodeProto[] {
  const number = (key: string, absent: number) => {
    const value = attribute.find((each) => each.name === key)?.i;
    return value === undefined ? absent : toNumber(value);
  };
  const all = sizes.slice(number('start', 0), number('end', sizes.length));
  const [made] = output as [string];
  const constant = (to: string, values: number[]): NodeProto => ({
    name: freshName(`${made}_sizes`),
    opType: 'Constant',
    input: [],
    output: [to],
    attribute: [
      {
        name: 'value',
        type: AttributeType.TENSOR,
        t: { name: '', dataType: DATA_TYPES.indexOf('INT64'), dims: [values.length], int64Data: values },
      },
    ],
  });
  if (!Number.isNaN(all[0])) return [constant(made, all)];
  const [batch, rest] = [freshName(`${made}_batch`), freshName(`${made}_rest`)];
  const integer = (key: string, i: number) => ({ name: key, type: AttributeType.INT, i });
  return [
    {
      name: freshName(`${made}_shape`),
      opType: 'Shape',
      input: [picture],
      output: [batch],
      attribute: [integer('start', 0), integer('end', 1)],
    },
    constant(rest, all.slice(1)),
    { name, opType: 'Concat', input: [batch, rest], output: [made], attribute: [integer('axis', 0)] },
  ];
}
