/**
 * Reads an ONNX file as a Graph: one picture in, one embedding out, free batch, in the semantics of one operator set.
 *
 * Trusts nothing: every byte may be wrong. What a face model never needs (control flow, functions, external data, operators of other
 * domains) is refused by name; what exporters merely write differently is translated in normalize.ts.
 */
import { readFile, stat } from 'node:fs/promises';
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { inferShapes } from './infer-shapes.ts';
import { normalize } from './normalize.ts';
import type { AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto } from './proto.ts';
import { AttributeType, DATA_TYPES, decodeModel, toBigInt, toNumber } from './proto.ts';
import { decodeTensor } from './tensor.ts';

export interface OnnxModel {
  graph: Graph;
  irVersion: number;
  /** Version of each operator set as the file says; '' is ONNX's own. */
  opsets: Record<string, number>;
  producer: { name: string; version: string };
  metadata: Record<string, string>;
}

/** Operator sets that can be read: from the first with today's broadcasting to the newest that was there to be tested (onnx 1.23). */
export const OLDEST_OPSET = 7;
export const NEWEST_OPSET = 28;

const LARGEST_FILE = 2 ** 31 - 1;
const LARGEST_SIDE = 1 << 14;

type Refuse = (found: string, allowed: string, code?: 'InvalidModel' | 'UnsupportedOperator') => FacetrainError;

/** @throws FacetrainError InvalidModel, UnsupportedOperator, or StorageFailed when the file cannot be read */
export async function readOnnx(path: string): Promise<OnnxModel> {
  let bytes: Uint8Array;
  try {
    const there = await stat(path);
    // Devices and pipes may never end.
    if (!there.isFile()) throw new Error('is no file');
    bytes = await readFile(path);
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    const found = missing ? 'no such file' : (cause as Error).message;
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: path,
      found,
      allowed: 'an ONNX file of less than 2 GiB',
      cause,
    });
  }
  return parseOnnx(bytes, path);
}

/**
 * Weights may be views of `bytes`: do not change them afterwards.
 * @param subject The file's name, for messages.
 * @throws FacetrainError InvalidModel or UnsupportedOperator
 */
export function parseOnnx(bytes: Uint8Array, subject: string): OnnxModel {
  const refuse: Refuse = (found, allowed, code = 'InvalidModel') =>
    new FacetrainError({ code, subject, found, allowed });
  const model = decode(bytes, refuse);
  const { graph: proto } = model;
  const opsets = checkOpsets(model, refuse);
  if (model.functions?.length)
    throw refuse('defines functions of its own', 'inline them first (onnx.inliner.inline_local_functions)');
  if (proto.sparseInitializer?.length) throw refuse('has sparse weights', 'dense weights');

  const constants = new Map<string, TensorProto | Tensor>();
  for (const tensor of proto.initializer) constants.set(tensor.name, tensor);
  const inputInfo = onlyOne(
    proto.input.filter(({ name }) => !constants.has(name)),
    'input',
    refuse,
  );
  const outputInfo = onlyOne(proto.output, 'output', refuse);

  const nodes: GraphNode[] = [];
  for (const node of proto.node) {
    if (node.domain && node.domain !== 'ai.onnx')
      throw refuse(
        `node "${node.name}" is ${node.opType} of domain ${node.domain}`,
        'operators of ONNX itself',
        'UnsupportedOperator',
      );
    const first = node.output[0];
    if (!node.opType || !first)
      throw refuse(
        `a node "${node.name}" has ${node.opType ? 'no output' : 'no operator'}`,
        'nodes as onnx.checker accepts them',
      );
    if (node.opType === 'Constant') constants.set(first, constantOf(node, refuse));
    else if (node.opType === 'Identity' && constants.has(node.input[0] ?? ''))
      constants.set(first, constants.get(node.input[0]!)!);
    else nodes.push(graphNode(node, constants, refuse));
  }
  nameNodes(nodes);
  checkOrder(nodes, inputInfo.name, constants, outputInfo.name, refuse);

  const initializers = new Map<string, Tensor>();
  for (const name of nodes.flatMap(({ inputs }) => inputs)) {
    const constant = constants.get(name);
    if (!constant || initializers.has(name)) continue;
    initializers.set(name, 'dataType' in constant ? decodeTensor(constant, name, subject) : constant);
  }
  const { input, fixedBatch } = pictureInput(inputInfo, refuse);
  const asWritten = {
    input,
    output: { name: outputInfo.name, dim: 0 },
    nodes,
    initializers: Object.fromEntries(initializers),
  };
  const graph = normalize(asWritten, { opset: opsets['']!, fixedBatch, subject });
  graph.output.dim = embeddingLength(graph, outputInfo, refuse);
  checkFinite(graph, subject);

  return {
    graph,
    irVersion: toNumber(model.irVersion),
    opsets,
    producer: { name: model.producerName, version: model.producerVersion },
    metadata: Object.fromEntries(model.metadataProps.map(({ key, value }) => [key, value])),
  };
}

/** @throws FacetrainError InvalidModel, naming the first weight that holds NaN or an infinity (Clip's bounds may be infinite) */
export function checkFinite(graph: Graph, subject: string): void {
  const bounds = new Set(graph.nodes.flatMap(({ op, inputs }) => (op === 'Clip' ? inputs.slice(1) : [])));
  for (const [name, { data }] of Object.entries(graph.initializers)) {
    if (!(data instanceof Float32Array) || bounds.has(name)) continue;
    // A product with zero is zero for finite numbers alone, and a sum of it costs no branch.
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
  const allowed = `operator sets ${OLDEST_OPSET} to ${NEWEST_OPSET}; convert it with onnx.version_converter or export it again`;
  if (opset === undefined) throw refuse('names no version of ONNX’s operator set', allowed);
  if (!(opset >= OLDEST_OPSET && opset <= NEWEST_OPSET)) throw refuse(`uses operator set ${opset}`, allowed);
  return opsets;
}

function onlyOne(infos: ValueInfoProto[], what: 'input' | 'output', refuse: Refuse): ValueInfoProto {
  const [first, ...more] = infos;
  if (!first) throw refuse(`has no ${what}`, `one ${what}`);
  if (more.length)
    throw refuse(
      `has ${infos.length} ${what}s: ${infos.map(({ name }) => name).join(', ')}`,
      what === 'input' ? 'one input, the picture' : 'one output, the embedding',
    );
  return first;
}

function constantOf(node: NodeProto, refuse: Refuse): TensorProto | Tensor {
  const [attribute] = node.attribute;
  const name = attribute?.name ?? '';
  if (name === 'value' && attribute?.t) return attribute.t;
  if (name === 'value_float') return { dims: [], data: Float32Array.of(attribute!.f ?? 0) };
  if (name === 'value_floats')
    return { dims: [attribute!.floats!.length], data: Float32Array.from(attribute!.floats!) };
  if (name === 'value_int') return { dims: [], data: BigInt64Array.of(toBigInt(attribute!.i ?? 0)) };
  if (name === 'value_ints')
    return { dims: [attribute!.ints!.length], data: BigInt64Array.from(attribute!.ints!, toBigInt) };
  throw refuse(
    `node "${node.name}" is a Constant with ${name ? `attribute ${name}` : 'no value'}`,
    'a value of numbers',
    'UnsupportedOperator',
  );
}

function graphNode(node: NodeProto, constants: Map<string, TensorProto | Tensor>, refuse: Refuse): GraphNode {
  let { input: inputs, output: outputs } = node;
  if (node.opType === 'Dropout') {
    // Only whether it trains matters, and that is a tensor of booleans, which a Graph cannot hold.
    const training = constants.get(inputs[2] ?? '');
    const known = training !== undefined && 'dataType' in training;
    if (inputs[2] && !(known && [training.rawData, training.int32Data].every((data) => !data?.some(Boolean))))
      throw trainingMode(node, refuse);
    inputs = inputs.slice(0, 1);
    outputs = outputs.slice(0, 1);
  }
  if (!inputs[0]) throw refuse(`node "${node.name}" (${node.opType}) reads nothing`, 'operators that work on a value');
  const attributes = Object.fromEntries(
    node.attribute.map((attribute) => [attribute.name, attributeValue(attribute, node, refuse)]),
  );
  if (
    node.opType === 'BatchNormalization' &&
    (attributes.training_mode === 1 || node.output.filter(Boolean).length > 1)
  )
    throw trainingMode(node, refuse);
  const trailing = (names: string[]) => names.slice(0, names.findLastIndex(Boolean) + 1);
  return { name: node.name, op: node.opType, inputs: trailing(inputs), outputs: trailing(outputs), attributes };
}

function trainingMode(node: NodeProto, refuse: Refuse): FacetrainError {
  return refuse(
    `node "${node.name}" (${node.opType}) is in training mode`,
    'a model exported for inference (model.eval() before torch.onnx.export)',
  );
}

function attributeValue(attribute: AttributeProto, node: NodeProto, refuse: Refuse): number | number[] | string {
  switch (attribute.type) {
    case AttributeType.FLOAT:
      return shortest(attribute.f ?? 0);
    case AttributeType.INT:
      return toNumber(attribute.i ?? 0);
    case AttributeType.STRING:
      return Buffer.from(attribute.s ?? []).toString();
    case AttributeType.FLOATS:
      return (attribute.floats ?? []).map(shortest);
    case AttributeType.INTS:
      return (attribute.ints ?? []).map(toNumber);
    default: {
      const type =
        Object.entries(AttributeType).find(([, value]) => value === attribute.type)?.[0] ?? `number ${attribute.type}`;
      throw refuse(
        `node "${node.name}" (${node.opType}) has attribute ${attribute.name} of type ${type}`,
        'numbers, lists of numbers and strings',
        'UnsupportedOperator',
      );
    }
  }
}

/** The decimal that people would write for a float32: 1e-5, not 9.999999747378752e-6. Both are the same float32. */
function shortest(value: number): number {
  for (let digits = 6; digits < 9; digits++) {
    const rounded = Number(value.toPrecision(digits));
    if (Math.fround(rounded) === value) return rounded;
  }
  return value;
}

/** Gives every node a name of its own: by operator and position where the file has none, with a number where it is taken. */
function nameNodes(nodes: GraphNode[]): void {
  const taken = new Set(nodes.map(({ name }) => name));
  const seen = new Set(['']);
  const copies = new Map<string, number>();
  nodes.forEach((node, index) => {
    if (seen.has(node.name)) {
      const base = node.name || `${node.op}_${index}`;
      let copy = copies.get(base) ?? (node.name ? 2 : 1);
      const numbered = () => (copy === 1 ? base : `${base}_${copy}`);
      while (taken.has(numbered())) copy++;
      copies.set(base, copy + 1);
      node.name = numbered();
      taken.add(node.name);
    }
    seen.add(node.name);
  });
}

/** Every value must be made once, before it is used. */
function checkOrder(
  nodes: GraphNode[],
  input: string,
  constants: Map<string, unknown>,
  output: string,
  refuse: Refuse,
): void {
  const known = new Set([...constants.keys(), input]);
  for (const { name, op, inputs, outputs } of nodes) {
    const unknown = inputs.find((value) => value !== '' && !known.has(value));
    if (unknown !== undefined)
      throw refuse(
        `node "${name}" (${op}) reads "${unknown}", which no node before it makes`,
        'nodes in topological order, every value made',
      );
    const twice = outputs.find((value) => value !== '' && known.has(value));
    if (twice !== undefined)
      throw refuse(`node "${name}" (${op}) makes "${twice}" a second time`, 'values that are made once');
    for (const value of outputs) if (value !== '') known.add(value);
  }
  if (!nodes.some(({ outputs }) => outputs.includes(output)))
    throw refuse(`no node makes the output "${output}"`, 'an output that depends on the picture');
}

const HELP_INPUT = 'a picture [N, channels, height, width] of float32 with a fixed size, such as [N, 3, 112, 112]';

/** The picture that the graph takes, and the batch size the file insists on, if any. */
function pictureInput(
  { name, type }: ValueInfoProto,
  refuse: Refuse,
): { input: Graph['input']; fixedBatch: number | null } {
  const elemType = type?.tensorType?.elemType ?? 0;
  const elementType = DATA_TYPES[elemType] ?? String(elemType);
  if (!['FLOAT', 'FLOAT16', 'BFLOAT16', 'DOUBLE'].includes(elementType))
    throw refuse(`input "${name}" has element type ${elementType}`, HELP_INPUT);
  const dims = type?.tensorType?.shape?.dim ?? [];
  const [batch, ...sizes] = dims.map(({ dimValue }) => (dimValue === undefined ? 0 : toNumber(dimValue)));
  const shown = `input "${name}" has shape [${dims.map(({ dimValue, dimParam }) => dimParam || (dimValue ? toNumber(dimValue) : '?')).join(', ')}]`;
  if (sizes.length !== 3 || !sizes.every((size) => size > 0 && size <= LARGEST_SIDE)) throw refuse(shown, HELP_INPUT);
  const [channels, height, width] = sizes as [number, number, number];
  if (channels > 4 && width <= 4) throw refuse(`${shown}, channels last`, `${HELP_INPUT}, channels first`);
  return { input: { name, channels, height, width }, fixedBatch: batch! > 0 ? batch! : null };
}

/** Length of the embedding, as the operators give it; where one of them is not known here, as the file says. */
function embeddingLength(graph: Graph, { name, type }: ValueInfoProto, refuse: Refuse): number {
  const declared = type?.tensorType?.shape?.dim?.map(({ dimValue }) =>
    dimValue === undefined ? 0 : toNumber(dimValue),
  );
  const shape = inferShapes(graph, 1).get(name) ?? declared ?? [];
  const dim = shape[1] ?? 0;
  const shown = ['N', ...shape.slice(1).map((size) => size || '?')].join(', ');
  if (shape.length !== 2 || !(dim > 0)) throw refuse(`output "${name}" has shape [${shown}]`, 'an embedding [N, d]');
  return dim;
}
