/**
 * Reads an ONNX file as a Graph: one input, the picture; one output, the embedding; a free batch; the semantics of one
 * operator set.
 *
 * Any byte of the file may be wrong, so everything is checked. What a face model does not need (control flow whose
 * condition is not known, functions, operators of other domains) is refused by name. normalize.ts translates what
 * exporters write differently.
 */
import { readFile } from 'node:fs/promises';
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, GraphOutput, Tensor } from '@facetrain/native';
import { type Branches, branchesOf } from './branches.ts';
import { loadExternalData } from './external-data.ts';
import { inferShapes } from './infer-shapes.ts';
import { inputSizes, isChannels, readingChannelsLast, readingNoBatch, withoutByteCasts } from './input-layout.ts';
import { modelFile, readError } from './model-file.ts';
import { normalize } from './normalize.ts';
import {
  DATA_TYPES,
  decodeModel,
  type GraphProto,
  type ModelProto,
  type NodeProto,
  type TensorProto,
  toNumber,
  type ValueInfoProto,
} from './proto.ts';
import { checkOrder, constantOf, graphNode, nameNodes, type Refuse } from './read-nodes.ts';
import { type FileNode, fileNode, reasonOf, type Tail, tailFile } from './tail.ts';
import { decodeTensor, isOfOtherType, NUMERIC_TYPES } from './tensor.ts';

export interface OnnxModel {
  graph: Graph;
  irVersion: number;
  /** Version of each operator set in the file, by domain; '' is ONNX's own. */
  opsets: Record<string, number>;
  producer: { name: string; version: string };
  metadata: Record<string, string>;
  /** What the file computes and the graph does not, each a sentence for people (normalize.ts). */
  removed: string[];
  /** What the file computes of the graph's outputs, and the graph does not. */
  tail?: Tail;
}

/** Paths of the files that a model was read from. */
export interface ModelFiles {
  file: string;
  /** Files that hold weights (ONNX, external data). */
  externalFiles: string[];
}

export interface ReadOptions {
  /** The output that is the embedding; absent or null: the only one. */
  output?: string | null | undefined;
  /**
   * Keeps every output that the file has, unless `output` names one, and what only nodes in FP32 can compute: for the
   * quantizer. An INT7 file is always read so. `several`: only if the file has several outputs. Absent: one embedding
   * [N, d] of canonical operators, as far as the file can be written with them.
   */
  every?: boolean | 'several' | undefined;
  /** Height and width of the picture where the file leaves them free. */
  size?: { height: number; width: number } | null | undefined;
  /**
   * With `every`: the operators that the caller computes. What no layer follows may then have others (tail.ts). Absent:
   * they are refused.
   */
  computes?: ReadonlySet<string> | undefined;
}

/**
 * Operator sets that can be read: from the first with today's broadcasting to the newest that was tested (onnx 1.23).
 */
export const OLDEST_OPSET = 7;
export const NEWEST_OPSET = 28;

/** What the quantizer writes into a file's metadata_props. */
export const FORMAT_METADATA = 'facetrain.format';
export const INT7_FORMAT = 'int7';
/** Of the file for TensorRT. */
export const TENSORRT_FORMAT = 'int7-tensorrt';
/** Of the format. native/int7/onnx_file.cc refuses newer ones in the same words. */
export const VERSION_METADATA = 'facetrain.version';
export const NEWEST_VERSION = 2;
/** Of files with a tail: the names of the values that our runtime gives, a line each. */
export const OUTPUTS_METADATA = 'facetrain.outputs';
/** Of files with a tail: how many nodes of which operators compute the file's outputs of these, for people. */
export const TAIL_METADATA = 'facetrain.tail';

const LARGEST_FILE = 2 ** 31 - 1;
const LARGEST_SIDE = 1 << 14;

/**
 * Reads a model and the weights that it keeps in files beside it.
 * @param path an ONNX file, or a folder with one
 * @throws FacetrainError InvalidModel, UnsupportedOperator; InvalidArtifact for a file of ours in a newer format;
 *   StorageFailed when a file cannot be read
 */
export async function readOnnx(path: string, options: ReadOptions = {}): Promise<OnnxModel & ModelFiles> {
  const file = await modelFile(path);
  const bytes = await readFile(file).catch((error: unknown) => {
    throw readError(file, error, 'an ONNX file of less than 2 GiB');
  });
  const refuse = refusal(file);
  const model = decode(bytes, refuse);
  const externalFiles = await loadExternalData(model.graph, file, LARGEST_FILE - bytes.length, refuse);
  return { ...modelOf(model, file, options), file, externalFiles };
}

/**
 * Weights may be views of `bytes`: do not change them afterwards.
 * @param subject the file's name, for messages
 * @throws FacetrainError as readOnnx; InvalidModel also for weights in another file
 */
export function parseOnnx(bytes: Uint8Array, subject: string, options: ReadOptions = {}): OnnxModel {
  return modelOf(decode(bytes, refusal(subject)), subject, options);
}

const refusal =
  (subject: string): Refuse =>
  (found, allowed, code = 'InvalidModel') =>
    new FacetrainError({ code, subject, found, allowed });

function modelOf(model: ReturnType<typeof decode>, subject: string, options: ReadOptions): OnnxModel {
  const { output, size } = options;
  const metadata = Object.fromEntries(model.metadataProps.map(({ key, value }) => [key, value]));
  const refuse = refusal(subject);
  // An INT7 file has what the quantizer has written.
  const isInt7 = [INT7_FORMAT, TENSORRT_FORMAT].includes(metadata[FORMAT_METADATA] ?? '');
  const proto = isInt7 ? withoutTail(model.graph, metadata, output, refuse) : model.graph;
  const hasSeveral = proto.output.length > 1 && (output ?? null) === null;
  if (isInt7) checkVersion(metadata, subject);
  const every = isInt7 || (options.every === 'several' ? hasSeveral : options.every);
  const opsets = checkOpsets(model, refuse);
  if (model.functions?.length)
    throw refuse('has local functions', 'inline them first (onnx.inliner.inline_local_functions)');
  if (proto.sparseInitializer?.length) throw refuse('has sparse weights', 'dense weights');

  const constants = new Map<string, TensorProto | Tensor>();
  for (const tensor of proto.initializer) constants.set(tensor.name, tensor);
  const inputInfo = onlyInput(
    proto.input.filter(({ name }) => !constants.has(name)),
    refuse,
  );
  const outputInfos =
    every && (output ?? null) === null && proto.output.length > 0
      ? proto.output
      : [chosenOutput(proto.output, output, refuse)];
  const outputNames = outputInfos.map(({ name }) => name);
  if (new Set(outputNames).size < outputNames.length) throw refuse('names an output twice', 'outputs that differ');

  const nodes: GraphNode[] = [];
  const branches = new Map<string, Branches>();
  const computes = every && !isInt7 ? options.computes : undefined;
  const fileNodes = new Map<string, FileNode>();
  /** Nodes that no Graph can have, which only a tail may, with why. */
  const unread = new Map<string, string>();
  const readNode = (node: NodeProto): void => {
    if (node.domain && node.domain !== 'ai.onnx')
      throw refuse(
        `node "${node.name}" is ${node.opType} of domain ${node.domain}`,
        'operators of ONNX itself',
        'UnsupportedOperator',
      );
    const first = node.output[0];
    if (!node.opType || !first)
      throw refuse(
        `node "${node.name}" has ${node.opType ? 'no output' : 'no operator'}`,
        'nodes as onnx.checker accepts them',
        computes && node.opType && node.output.some(Boolean) ? 'UnsupportedOperator' : 'InvalidModel',
      );
    if (node.opType === 'Constant') constants.set(first, constantOf(node, refuse));
    else if (node.opType === 'Identity' && constants.has(node.input[0] ?? ''))
      constants.set(first, constants.get(node.input[0]!)!);
    else {
      const both = branchesOf(node, { constants, refuse, subject });
      if (both) branches.set(node.name, both);
      nodes.push(
        both
          ? { name: node.name, op: 'If', inputs: node.input.slice(0, 1), outputs: node.output, attributes: {} }
          : graphNode(node, constants, refuse),
      );
    }
  };
  for (const node of named(proto.node)) {
    const inFile = computes && fileNode(node, refuse);
    if (inFile) fileNodes.set(node.name, inFile);
    const odd = inFile?.inputs
      .map((name) => constants.get(name))
      .find((constant) => constant && isOfOtherType(constant));
    try {
      if (odd)
        throw refuse(`node "${node.name}" reads a constant of another type`, NUMERIC_TYPES, 'UnsupportedOperator');
      readNode(node);
    } catch (error) {
      if (!inFile || !(error instanceof FacetrainError) || error.code !== 'UnsupportedOperator') throw error;
      unread.set(node.name, reasonOf(error));
      const { name, op, inputs, outputs } = inFile;
      nodes.push({ name, op, inputs, outputs, attributes: {} });
    }
  }
  for (const name of outputNames) checkOrder(nodes, inputInfo.name, constants, name, refuse);

  const initializers = new Map<string, Tensor>();
  for (const name of nodes.flatMap(({ name: node, inputs }) => (unread.has(node) ? [] : inputs))) {
    const constant = constants.get(name);
    if (!constant || initializers.has(name)) continue;
    initializers.set(name, 'dataType' in constant ? decodeTensor(constant, name, subject) : constant);
  }
  const { input, fixedBatch } = pictureInput(inputInfo, { free: size ?? null, takesOne: every ?? false }, refuse);
  const asWritten: Graph = {
    input,
    output: { name: outputNames[0]!, dim: 0 },
    nodes:
      input.elementType === 'uint8'
        ? withoutByteCasts(nodes, input.name, ({ name }) => unread.has(name), refuse)
        : nodes,
    initializers: Object.fromEntries(initializers),
  };
  const readingPictures = { NCHW: (graph: Graph) => graph, NHWC: readingChannelsLast, CHW: readingNoBatch };
  const constantNames = new Set(proto.initializer.map(({ name }) => name));
  const { graph, removed, cut } = normalize(readingPictures[input.layout ?? 'NCHW'](asWritten), {
    opset: opsets['']!,
    fixedBatch,
    branches,
    subject,
    outputs: every ? outputNames : undefined,
    keepsNorms: isInt7,
    tail: computes && {
      ...{ nodes: fileNodes, constants: constantNames, input: input.name, operators: computes, unread, subject },
    },
  });
  const infos = cut
    ? cut.outputs.map((name) => outputInfos.find((info) => info.name === name) ?? { name })
    : outputInfos;
  // The file lists them, a line each.
  if (cut?.outputs.some((name) => name.includes('\n')))
    throw refuse('has a value in front of its tail whose name has several lines', 'another name for it');
  graph.output.name = infos[0]!.name;
  const outputs = every ? outputsOf(graph, infos, refuse) : [];
  if (outputs.length === 0) graph.output.dim = embeddingLength(graph, infos[0]!, refuse);
  else {
    graph.outputs = outputs;
    graph.output.dim = outputs.reduce((sum, { dims }) => sum + product(dims), 0);
  }
  checkFinite(graph, subject);

  const irVersion = toNumber(model.irVersion);
  const tail =
    cut &&
    tailFile(
      cut,
      {
        nodes: fileNodes,
        initializers: new Map(proto.initializer.map((tensor) => [tensor.name, tensor])),
        input: { name: input.name, type: inputInfo.type?.tensorType?.elemType ?? 0 },
        outputs: outputInfos,
        ...{ opsets, irVersion, batch: fixedBatch },
      },
      refuse,
    );
  return {
    graph,
    irVersion,
    opsets,
    producer: { name: model.producerName, version: model.producerVersion },
    metadata,
    removed,
    ...(tail && { tail }),
  };
}

/** An INT7 file as our runtime reads it: with the values that it gives as outputs, and what computes them. */
function withoutTail(
  graph: GraphProto,
  { [OUTPUTS_METADATA]: outputs, [TAIL_METADATA]: tail }: Record<string, string>,
  chosen: string | null | undefined,
  refuse: Refuse,
): GraphProto {
  if (outputs === undefined) return graph;
  const names = outputs.split('\n');
  if (chosen && !names.includes(chosen) && graph.output.some(({ name }) => name === chosen))
    throw refuse(
      `computes output "${chosen}" by operators that our runtime does not have (${tail}), for ONNX Runtime`,
      `one of the values in front of these: ${listed(names.map((name) => `"${name}"`))}`,
    );
  const needed = new Set(names);
  const node = graph.node.toReversed().filter(({ input, output }) => {
    const isNeeded = output.some((name) => needed.has(name));
    if (isNeeded) for (const name of input) needed.add(name);
    return isNeeded;
  });
  return { ...graph, node: node.reverse(), output: names.map((name) => ({ name })) };
}

/** A newer format may mean something else by the same nodes. The first files did not say theirs. */
function checkVersion({ [VERSION_METADATA]: version = '1' }: Record<string, string>, subject: string): void {
  const refuse = (found: string, allowed: string) =>
    new FacetrainError({ code: 'InvalidArtifact', subject, found, allowed });
  if (!/^0*[1-9]\d*$/.test(version))
    throw refuse(
      `has metadata ${VERSION_METADATA} that is no number from 1 on`,
      'a model.int7.onnx of Facetrain is wanted',
    );
  if (Number(version) > NEWEST_VERSION)
    throw refuse(`of version ${version} of the format`, `at most ${NEWEST_VERSION}, so a newer Facetrain is needed`);
}

/** The nodes with a name each, so that a message about any of them says which it is. */
function named(nodes: NodeProto[]): NodeProto[] {
  const renamed = nodes.map((node) => ({ name: node.name, op: node.opType }));
  nameNodes(renamed);
  return nodes.map((node, i) => ({ ...node, name: renamed[i]!.name }));
}

/** @throws FacetrainError InvalidModel for a weight that is NaN or infinite; only Clip's bounds may be infinite */
export function checkFinite(graph: Graph, subject: string): void {
  const bounds = new Set(graph.nodes.flatMap(({ op, inputs }) => (op === 'Clip' ? inputs.slice(1) : [])));
  for (const [name, { data }] of Object.entries(graph.initializers)) {
    if (!(data instanceof Float32Array) || bounds.has(name)) continue;
    // x * 0 is 0 for finite x alone. Adding these up has no branch in the loop, so it is fast for large weights.
    let probe = 0;
    for (let i = 0; i < data.length; i++) probe += data[i]! * 0;
    if (probe === 0) continue;
    const index = data.findIndex((value) => !Number.isFinite(value));
    const found = `tensor "${name}" holds ${data[index]} at index ${index}`;
    throw new FacetrainError({
      code: 'InvalidModel',
      subject,
      found,
      allowed: 'finite weights; the training that made it has probably diverged',
    });
  }
}

function decode(bytes: Uint8Array, refuse: Refuse): ModelProto & { graph: NonNullable<ModelProto['graph']> } {
  const allowed = 'an ONNX file';
  const start = Buffer.from(bytes.subarray(0, 200)).toString('latin1').trimStart();
  if (bytes.length === 0) throw refuse('is empty', allowed);
  if (bytes.length > LARGEST_FILE) throw refuse(`is ${bytes.length} bytes long`, 'an ONNX file of less than 2 GiB');
  if (/^<(!doctype|html|\?xml|head)/i.test(start))
    throw refuse('is a web page', `${allowed}; its download probably went wrong`);
  if (start.startsWith('version https://git-lfs'))
    throw refuse('is a Git LFS pointer', `${allowed}; fetch it with git lfs pull`);
  if (start.startsWith('PK\x03\x04'))
    throw refuse('is a ZIP archive', `${allowed}; a PyTorch checkpoint must be exported first (torch.onnx.export)`);
  if (start.startsWith('\x1f\x8b')) throw refuse('is compressed by gzip', `${allowed}; unpack it with gunzip`);
  if (start.startsWith('{')) throw refuse('is text', allowed);
  let model: ModelProto;
  try {
    model = decodeModel(bytes);
  } catch (cause) {
    throw refuse(
      `cannot be decoded (${(cause as Error).message})`,
      `${allowed}; this one is cut short, damaged or something else`,
    );
  }
  if (!model.graph || !(toNumber(model.irVersion) > 0)) throw refuse('holds no ONNX graph', allowed);
  return model as ReturnType<typeof decode>;
}

function checkOpsets(model: ModelProto, refuse: Refuse): Record<string, number> {
  const opsets = Object.fromEntries(
    model.opsetImport.map(({ domain, version }) => [domain === 'ai.onnx' ? '' : domain, toNumber(version)]),
  );
  const opset = opsets[''];
  const range = `operator sets ${OLDEST_OPSET} to ${NEWEST_OPSET}`;
  const allowed = `${range}; convert it with onnx.version_converter or export it again`;
  if (opset === undefined) throw refuse('names no version of ONNX’s operator set', allowed);
  if (!(opset >= OLDEST_OPSET && opset <= NEWEST_OPSET)) throw refuse(`uses operator set ${opset}`, allowed);
  return opsets;
}

/** So many names are listed in a message. */
const LISTED = 20;

const listed = (names: string[]) =>
  names.slice(0, LISTED).join(', ') + (names.length > LISTED ? `, and ${names.length - LISTED} more` : '');

function onlyInput(infos: ValueInfoProto[], refuse: Refuse): ValueInfoProto {
  const [first, ...more] = infos;
  if (!first) throw refuse('has no input', 'one input, the picture');
  if (more.length)
    throw refuse(`has ${infos.length} inputs: ${listed(infos.map(({ name }) => name))}`, 'one input, the picture');
  return first;
}

/** The output that is the embedding. Of several, none is guessed: a wrong one would train and quantize as well. */
function chosenOutput(infos: ValueInfoProto[], name: string | null | undefined, refuse: Refuse): ValueInfoProto {
  const list = listed(infos.map((info) => `"${info.name}" ${shownShape(info)}`));
  const [first, ...more] = infos;
  if (!first) throw refuse('has no output', 'one output, the embedding');
  if (name !== null && name !== undefined) {
    const chosen = infos.find((info) => info.name === name);
    if (!chosen) throw refuse(`has no output "${name}"`, `one of its outputs: ${list}`);
    return chosen;
  }
  if (more.length === 0) return first;
  const vectors = infos.filter((info) => {
    const dims = declaredDims(info);
    return dims?.length === 2 && dims[1] !== 1;
  });
  const likely = vectors.length === 1 ? `; "${vectors[0]!.name}" is probably the embedding` : '';
  throw refuse(
    `has ${infos.length} outputs: ${list}${likely}`,
    'name the embedding: --output NAME, or model.output in a manifest (model.onnx.output of a FaceTrainJob)',
  );
}

/** Sizes as the file declares them, 0 for one that is not known; undefined without a declared shape. */
function declaredDims({ type }: ValueInfoProto): number[] | undefined {
  return type?.tensorType?.shape?.dim?.map(({ dimValue }) => (dimValue === undefined ? 0 : toNumber(dimValue)));
}

function shownShape({ type }: ValueInfoProto): string {
  const dims = type?.tensorType?.shape?.dim;
  if (!dims) return 'of unknown shape';
  return `[${dims.map(({ dimValue, dimParam }) => dimParam || (dimValue ? toNumber(dimValue) : '?')).join(', ')}]`;
}

const HELP_INPUT =
  'a picture [N, channels, height, width] or [N, height, width, channels] of float32 or uint8 with a fixed size, ' +
  'such as [N, 3, 112, 112]';

/**
 * The input, and the batch size of the file's input; null when it is free.
 * @param free for sizes that are free
 * @param takesOne whether the input may have no batch
 */
function pictureInput(
  info: ValueInfoProto,
  { free, takesOne }: { free: ReadOptions['size'] | null; takesOne: boolean },
  refuse: Refuse,
): { input: Graph['input']; fixedBatch: number | null } {
  const { name, type } = info;
  const elemType = type?.tensorType?.elemType ?? 0;
  const elementType = DATA_TYPES[elemType] ?? String(elemType);
  if (!['FLOAT', 'FLOAT16', 'BFLOAT16', 'DOUBLE', 'UINT8'].includes(elementType))
    throw refuse(`input "${name}" has element type ${elementType}`, HELP_INPUT);
  const dims = type?.tensorType?.shape?.dim ?? [];
  const all = dims.map(({ dimValue }) => Math.max(0, dimValue === undefined ? 0 : toNumber(dimValue)));
  const isOne = takesOne && all.length === 3 && isChannels(all[0]!);
  const [batch, ...declared] = isOne ? [1, ...all] : all;
  const sizes = free ? withSize(declared, free) : declared;
  const shown = `input "${name}" has shape ${shownShape(info)}`;
  if (sizes.length !== 3 || !sizes.every((size) => size > 0 && size <= LARGEST_SIDE))
    throw refuse(shown, !free && isOfFreeSize(declared) ? `${HELP_INPUT}, or --input-size` : HELP_INPUT);
  const shownSize = (values: number[]) => values.join(' x ');
  if (!sizes.every((size, i) => declared[i] === 0 || declared[i] === size))
    throw refuse(`${shown}, not of the given size`, `--input-size ${shownSize(declared.filter((size) => size > 4))}`);
  const input = {
    name,
    ...inputSizes(sizes as [number, number, number]),
    ...(isOne && { layout: 'CHW' as const }),
    ...(elementType === 'UINT8' && { elementType: 'uint8' as const }),
  };
  return { input, fixedBatch: batch! > 0 ? batch! : null };
}

/** Sizes of which the free ones are given; of four or fewer, the last are channels only where the first are not. */
function withSize(declared: number[], { height, width }: { height: number; width: number }): number[] {
  const [first, , last] = declared;
  const isLast = declared.length === 3 && isChannels(last!) && !isChannels(first!);
  return isLast ? [height, width, last!] : [first || 3, height, width];
}

function isOfFreeSize(declared: number[]): boolean {
  return declared.length === 3 && declared.filter((size) => size === 0).length >= 1;
}

const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);

/** The outputs with their shapes; none for one embedding [N, d]. */
function outputsOf(graph: Graph, infos: ValueInfoProto[], refuse: Refuse): GraphOutput[] {
  const shapes = inferShapes(graph, 1);
  const outputs = infos.map((info) => {
    const [batch, ...dims] = shapes.get(info.name) ?? declaredDims(info) ?? [];
    if (batch === undefined || batch > 1 || dims.length === 0 || !dims.every((dim) => dim > 0))
      throw refuse(`output "${info.name}" has shape ${shownShape(info)}`, 'outputs [N, ...] of sizes that are known');
    return { name: info.name, dims };
  });
  return outputs.length === 1 && outputs[0]!.dims.length === 1 ? [] : outputs;
}

/** Length of the embedding by shape inference; as the file declares it, where an operator has no shape rule. */
function embeddingLength(graph: Graph, info: ValueInfoProto, refuse: Refuse): number {
  const { name } = info;
  const shape = inferShapes(graph, 1).get(name) ?? declaredDims(info) ?? [];
  const dim = shape[1] ?? 0;
  const shown = ['N', ...shape.slice(1).map((size) => size || '?')].join(', ');
  if (shape.length !== 2 || !(dim > 0)) throw refuse(`output "${name}" has shape [${shown}]`, 'an embedding [N, d]');
  return dim;
}
