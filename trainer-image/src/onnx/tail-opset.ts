/**
 * Nodes of an older operator set in operator set 17, without their shapes: what has changed between 7 and 17 so that a
 * node would be refused or compute something else (ONNX, Operators-changelog). All other operators have kept the
 * meaning of what older files have.
 */
import { OPSET } from './operators.ts';
import {
  type AttributeProto,
  AttributeType,
  DATA_TYPES,
  decodeGraph,
  encodeGraph,
  type NodeProto,
  type TensorProto,
  toNumber,
} from './proto.ts';
import type { Refuse } from './read-nodes.ts';

/** Attributes that became inputs, in their order, and the operator set of that. */
const INPUTS: Record<string, { since: number; attributes: string[] }> = {
  Clip: { since: 11, attributes: ['min', 'max'] },
  Pad: { since: 11, attributes: ['pads', 'value'] },
  ReduceSum: { since: 13, attributes: ['axes'] },
  Slice: { since: 10, attributes: ['starts', 'ends', 'axes'] },
  Split: { since: 13, attributes: ['split'] },
  Squeeze: { since: 13, attributes: ['axes'] },
  TopK: { since: 10, attributes: ['k'] },
  Unsqueeze: { since: 13, attributes: ['axes'] },
};

const integer = (name: string, i: number): AttributeProto => ({ name, type: AttributeType.INT, i });
const text = (name: string, s: string): AttributeProto => ({ name, type: AttributeType.STRING, s: Buffer.from(s) });
const isOnnx = ({ domain }: NodeProto) => !domain || domain === 'ai.onnx';

export class OpsetUpgrade {
  readonly #opset: number;
  readonly #freshName: (name: string) => string;
  readonly #refuse: Refuse;

  /** @param opset of the nodes */
  constructor(opset: number, freshName: (name: string) => string, refuse: Refuse) {
    this.#opset = opset;
    this.#freshName = freshName;
    this.#refuse = refuse;
  }

  /** A node as nodes, the last of which has its name; the graphs inside it, too. */
  nodes(node: NodeProto): NodeProto[] {
    if (this.#opset >= OPSET) return [node];
    const inside = { ...node, attribute: node.attribute.map((attribute) => this.#graphs(attribute)) };
    return isOnnx(node) ? this.#upgraded(inside) : [inside];
  }

  #graphs(attribute: AttributeProto): AttributeProto {
    const graph = (bytes: Uint8Array) => {
      const inner = decodeGraph(bytes);
      return encodeGraph({ ...inner, node: inner.node.flatMap((node) => this.nodes(node)) });
    };
    if (attribute.type === AttributeType.GRAPH && attribute.g) return { ...attribute, g: graph(attribute.g) };
    if (attribute.type === AttributeType.GRAPHS) return { ...attribute, graphs: (attribute.graphs ?? []).map(graph) };
    return attribute;
  }

  #upgraded(node: NodeProto): NodeProto[] {
    const opset = this.#opset;
    const moved = Object.hasOwn(INPUTS, node.opType) ? INPUTS[node.opType]! : undefined;
    if (moved && opset < moved.since) return this.#withInputs(node, moved.attributes);
    const without = (...names: string[]) => node.attribute.filter(({ name }) => !names.includes(name));
    const { opType } = node;
    if (['Softmax', 'LogSoftmax', 'Hardmax'].includes(opType) && opset < 13) return this.#softmax(node);
    if (opType === 'Dropout' && opset < 12) return [{ ...node, attribute: without('ratio') }];
    if (opType === 'BatchNormalization' && opset < 9) return [{ ...node, attribute: without('spatial') }];
    if (opType === 'Scatter' && opset < 11) return [{ ...node, opType: 'ScatterElements' }];
    if (opType === 'RoiAlign' && opset < 16)
      return [{ ...node, attribute: [...node.attribute, text('coordinate_transformation_mode', 'output_half_pixel')] }];
    if ((opType === 'Upsample' && opset < 10) || (opType === 'Resize' && opset < 11)) return this.#resize(node);
    if (opType === 'Scan' && opset < 9)
      throw this.#refuse(
        `node "${node.name}" (Scan) is of operator set ${opset}`,
        'operator set 9 or newer: convert it with onnx.version_converter or export it again',
        'UnsupportedOperator',
      );
    return [node];
  }

  #withInputs(node: NodeProto, names: string[]): NodeProto[] {
    const added: NodeProto[] = [];
    const inputs = names.map((name) => {
      const attribute = node.attribute.find((each) => each.name === name);
      if (!attribute) return '';
      const made = this.#constant(`${node.output[0]}_${name}`, tensorOf(attribute));
      added.push(made);
      return made.output[0]!;
    });
    const input = [node.input[0]!, ...inputs.slice(0, inputs.findLastIndex(Boolean) + 1)];
    return [...added, { ...node, input, attribute: node.attribute.filter(({ name }) => !names.includes(name)) }];
  }

  #constant(like: string, t: TensorProto): NodeProto {
    const name = this.#freshName(like);
    const value = { name: 'value', type: AttributeType.TENSOR, t };
    return { name, opType: 'Constant', input: [], output: [name], attribute: [value] };
  }

  /** It normalized all axes from `axis` on together. */
  #softmax(node: NodeProto): NodeProto[] {
    const axis = toNumber(node.attribute.find(({ name }) => name === 'axis')?.i ?? 1);
    const last = { ...node, attribute: [integer('axis', -1)] };
    if (axis === -1) return [last];
    const [input, output] = [node.input[0]!, node.output[0]!];
    const [shape, rows, result] = ['shape', 'rows', 'result'].map((part) => this.#freshName(`${output}_${part}`)) as [
      string,
      string,
      string,
    ];
    const part = (opType: string, inputs: string[], made: string, attribute: AttributeProto[] = []): NodeProto => ({
      ...{ name: made, opType, attribute },
      ...{ input: inputs, output: [made] },
    });
    return [
      part('Shape', [input], shape),
      part('Flatten', [input], rows, [integer('axis', axis)]),
      part(node.opType, [rows], result, [integer('axis', -1)]),
      { ...part('Reshape', [result, shape], output), name: node.name },
    ];
  }

  /** Both began in the corner. */
  #resize(node: NodeProto): NodeProto[] {
    const scales = node.attribute.find(({ name }) => name === 'scales');
    const added = scales ? [this.#constant(`${node.output[0]}_scales`, tensorOf(scales))] : [];
    return [
      ...added,
      {
        ...node,
        opType: 'Resize',
        input: [node.input[0]!, '', added[0]?.output[0] ?? node.input[1] ?? ''],
        attribute: [
          ...node.attribute.filter(({ name }) => name === 'mode'),
          text('coordinate_transformation_mode', 'asymmetric'),
          text('nearest_mode', 'floor'),
        ],
      },
    ];
  }
}

/** The value of an attribute of numbers; TopK's one number as a list. */
function tensorOf({ name, type, f, i, ints, floats }: AttributeProto): TensorProto {
  const [float, int64] = [DATA_TYPES.indexOf('FLOAT'), DATA_TYPES.indexOf('INT64')];
  if (type === AttributeType.FLOAT) return { name: '', dataType: float, dims: [], floatData: [f ?? 0] };
  if (type === AttributeType.FLOATS)
    return { name: '', dataType: float, dims: [floats?.length ?? 0], floatData: floats ?? [] };
  const values = name === 'k' ? [i ?? 0] : (ints ?? []);
  return { name: '', dataType: int64, dims: [values.length], int64Data: values };
}
