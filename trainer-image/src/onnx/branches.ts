/**
 * The branches of an If. Exporters leave one where PyTorch's code asks for a shape, as in x.squeeze(1): its condition
 * is known when the file is read, and one branch takes the node's place (normalize.ts).
 */
import type { FacetrainError } from '@facetrain/api';
import type { GraphNode, Tensor } from '@facetrain/native';
import { AttributeType, decodeGraph, type GraphProto, type NodeProto, type TensorProto } from './proto.ts';
import { constantOf, graphNode, nameNodes, type Refuse } from './read-nodes.ts';
import { decodeTensor } from './tensor.ts';

export interface Branch {
  nodes: GraphNode[];
  /** The branch's own constants, whose names another branch may have as well. */
  constants: Map<string, Tensor>;
  /** Constants of the graph around it that the branch reads. */
  outerConstants: Map<string, Tensor>;
  /** Values of the branch, or of the graph around it, in the order of the If's outputs. */
  outputs: string[];
}

/** Reads the branch that a condition chooses. Nobody reads the other, so it may hold anything. */
export type Branches = (condition: boolean) => Branch;

/** @returns null for a node that is no If of two branches */
export function branchesOf(
  node: NodeProto,
  { constants, refuse, subject }: { constants: Map<string, TensorProto | Tensor>; refuse: Refuse; subject: string },
): Branches | null {
  const graphOf = (name: string) =>
    node.attribute.find((attribute) => attribute.name === name && attribute.type === AttributeType.GRAPH)?.g;
  const [then, otherwise] = [graphOf('then_branch'), graphOf('else_branch')];
  if (node.opType !== 'If' || !node.input[0] || !then || !otherwise) return null;
  return (condition) => {
    let graph: GraphProto;
    try {
      graph = decodeGraph(condition ? then : otherwise);
    } catch (cause) {
      throw refuse(
        `node "${node.name}" (If) has a branch that cannot be decoded (${(cause as Error).message})`,
        'an ONNX file; this one is damaged',
      );
    }
    return readBranch(graph, node, constants, refuse, subject);
  };
}

function readBranch(
  graph: GraphProto,
  outer: NodeProto,
  outerConstants: Map<string, TensorProto | Tensor>,
  refuse: Refuse,
  subject: string,
): Branch {
  const named = graph.node.map(({ name, opType: op }) => ({ name, op }));
  nameNodes(named);
  const own = new Map<string, TensorProto | Tensor>(graph.initializer.map((tensor) => [tensor.name, tensor]));
  const nodes: GraphNode[] = [];
  graph.node.forEach((proto, i) => {
    const node = { ...proto, name: named[i]!.name };
    const error = (found: string): FacetrainError =>
      refuse(`node "${outer.name}" (If): node "${node.name}" of its branch ${found}`, 'operators of ONNX itself');
    if (node.domain && node.domain !== 'ai.onnx') throw error(`is ${node.opType} of domain ${node.domain}`);
    if (!node.opType || !node.output[0]) throw error('has no operator or no output');
    if (node.opType === 'Constant') own.set(node.output[0], constantOf(node, refuse));
    else nodes.push(graphNode(node, own, refuse));
  });
  const outputs = graph.output.map(({ name }) => name);
  const read = new Set([...nodes.flatMap(({ inputs }) => inputs), ...outputs]);
  const decoded = (constants: Map<string, TensorProto | Tensor>, isRead: (name: string) => boolean) => {
    const names = [...read].filter((name) => constants.has(name) && isRead(name));
    return new Map(
      names.map((name) => {
        const constant = constants.get(name)!;
        return [name, 'dataType' in constant ? decodeTensor(constant, name, subject) : constant];
      }),
    );
  };
  return {
    nodes,
    constants: decoded(own, () => true),
    outerConstants: decoded(outerConstants, (name) => !own.has(name)),
    outputs,
  };
}
