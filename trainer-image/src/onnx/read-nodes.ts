/** Reads the nodes of an ONNX file as they are in the file; normalize.ts brings them into one form. */
import type { FacetrainError } from '@facetrain/api';
import type { GraphNode, Tensor } from '@facetrain/native';
import { CANONICAL_OPERATORS, FLOAT_OPERATORS } from './operators.ts';
import {
  type AttributeProto,
  AttributeType,
  dataTypeNumber,
  type NodeProto,
  type TensorProto,
  toBigInt,
  toNumber,
} from './proto.ts';
import { decodeTensor } from './tensor.ts';

/** Makes the error of a refused file. */
export type Refuse = (found: string, allowed: string, code?: 'InvalidModel' | 'UnsupportedOperator') => FacetrainError;

/** The value of a Constant node. */
export function constantOf(node: NodeProto, refuse: Refuse): TensorProto | Tensor {
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

/** A node with its attributes as numbers, lists of numbers and strings. */
export function graphNode(node: NodeProto, constants: Map<string, TensorProto | Tensor>, refuse: Refuse): GraphNode {
  let { input: inputs, output: outputs } = node;
  if (node.opType === 'Dropout') {
    // Its inputs are dropped: of them only training_mode matters, a boolean tensor, which a Graph cannot hold.
    const training = constants.get(inputs[2] ?? '');
    const known = training !== undefined && 'dataType' in training;
    if (inputs[2] && !(known && [training.rawData, training.int32Data].every((data) => !data?.some(Boolean))))
      throw trainingMode(node, refuse);
    inputs = inputs.slice(0, 1);
    outputs = outputs.slice(0, 1);
  }
  const subgraph = node.attribute.find(({ type }) => type === AttributeType.GRAPH || type === AttributeType.GRAPHS);
  if (subgraph) throw notSupported(node, refuse);
  if (node.opType === 'ConstantOfShape') return constantOfShape(node, refuse);
  if (!inputs[0]) throw notSupported(node, refuse);
  const attributes = Object.fromEntries(
    node.attribute.map((attribute) => [attribute.name, attributeValue(attribute, node, refuse)]),
  );
  if (
    node.opType === 'BatchNormalization' &&
    (attributes.training_mode === 1 || node.output.filter(Boolean).length > 1)
  )
    throw trainingMode(node, refuse);
  const withoutTrailingEmpty = (names: string[]) => names.slice(0, names.findLastIndex(Boolean) + 1);
  return {
    name: node.name,
    op: node.opType,
    inputs: withoutTrailingEmpty(inputs),
    outputs: withoutTrailingEmpty(outputs),
    attributes,
  };
}

/** The error of an operator that no command knows. */
function notSupported(node: NodeProto, refuse: Refuse): FacetrainError {
  return refuse(
    `node "${node.name}" (${node.opType}): operator ${node.opType} is not supported`,
    `one of ${[...CANONICAL_OPERATORS, ...FLOAT_OPERATORS].toSorted().join(', ')}`,
    'UnsupportedOperator',
  );
}

/** ConstantOfShape, whose value is a tensor of one number: a Graph has it as the attributes `value` and `type`. */
function constantOfShape(node: NodeProto, refuse: Refuse): GraphNode {
  const tensor = node.attribute.find(({ name }) => name === 'value')?.t;
  const { data } = tensor ? decodeTensor({ ...tensor, dims: [] }, node.name, 'value') : { data: Float32Array.of(0) };
  const type = dataTypeNumber(data instanceof Float32Array ? 'FLOAT' : 'INT64');
  if (!node.input[0]) throw notSupported(node, refuse);
  return {
    name: node.name,
    op: node.opType,
    inputs: [node.input[0]],
    outputs: node.output.slice(0, 1),
    attributes: { value: Number(data[0]), type },
  };
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

/** The shortest decimal that is this float32: 1e-5, not 9.999999747378752e-6. */
function shortest(value: number): number {
  for (let digits = 6; digits < 9; digits++) {
    const rounded = Number(value.toPrecision(digits));
    if (Math.fround(rounded) === value) return rounded;
  }
  return value;
}

/**
 * Makes node names unique: a node without one gets operator and position, a repeated name gets a number appended.
 */
export function nameNodes(nodes: { name: string; op: string }[]): void {
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

/** Checks that every value is computed once, before it is read. */
export function checkOrder(
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
