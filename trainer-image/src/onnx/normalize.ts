/**
 * Brings a graph of any operator set and exporter into one form, so that later code handles only operator set 17:
 *
 * - Every node has its form of operator set 17, with explicit pads and constant targets (translate-node.ts).
 * - There is no Identity and no Dropout, and no node or constant that the output does not depend on.
 * - An output [N, d, 1, 1] has a Flatten behind it.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode } from '@facetrain/native';
import { ShapeInference } from './infer-shapes.ts';
import { type Context, translateNode } from './translate-node.ts';
import { UniqueNames } from './unique-names.ts';

export interface NormalizeOptions {
  /** Operator set of the file. */
  opset: number;
  /** Batch size of the file's input; null when it is free. */
  fixedBatch: number | null;
  /** The file's name, for messages. */
  subject: string;
}

/** @throws FacetrainError UnsupportedOperator for a node that has no form in operator set 17; InvalidModel */
export function normalize(graph: Graph, { opset, fixedBatch, subject }: NormalizeOptions): Graph {
  const initializers = new Map(Object.entries(graph.initializers));
  const names = new UniqueNames([
    graph.input.name,
    ...initializers.keys(),
    ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
  ]);
  // Shapes are inferred for two batch sizes: an entry that differs depends on the batch.
  const batches = [1, 2].map((batch) => new ShapeInference(graph, batch)) as [ShapeInference, ShapeInference];
  const context: Context = {
    opset,
    fixedBatch,
    batches,
    refuse: (node, found, allowed) =>
      new FacetrainError({
        code: 'UnsupportedOperator',
        subject,
        found: `node "${node.name}" (${node.op}) ${found}`,
        allowed,
      }),
    isConstant: (name) => initializers.has(name),
    constant: (name, tensor) => {
      const unique = names.take(name);
      initializers.set(unique, tensor);
      for (const inference of batches) inference.define(unique, tensor);
      return unique;
    },
  };

  const aliases = new Map<string, string>();
  let nodes: GraphNode[] = [];
  for (const original of graph.nodes) {
    const node = {
      ...original,
      inputs: original.inputs.map((name) => aliases.get(name) ?? name),
      attributes: { ...original.attributes },
    };
    if (node.op === 'Identity' || node.op === 'Dropout') {
      aliases.set(node.outputs[0]!, node.inputs[0]!);
      continue;
    }
    translateNode(node, context);
    for (const inference of batches) inference.visit(node);
    nodes.push(node);
  }

  const { output } = graph;
  const end = aliases.get(output.name);
  if (end === graph.input.name)
    throw new FacetrainError({
      code: 'InvalidModel',
      subject,
      found: `output "${output.name}" is the picture itself`,
      allowed: 'an embedding [N, d]',
    });
  if (end !== undefined) nodes = nodes.map((node) => rename(node, end, output.name));
  const shape = batches[0].shapes.get(end ?? output.name);
  if (shape && shape.length > 2 && shape.slice(2).every((dim) => dim === 1)) {
    // [N, d, 1, 1]: the network ends with a pool.
    const spatial = names.take(`${output.name}_spatial`);
    nodes = nodes.map((node) => rename(node, output.name, spatial));
    nodes.push({
      name: names.take(`${output.name}_flatten`),
      op: 'Flatten',
      inputs: [spatial],
      outputs: [output.name],
      attributes: { axis: 1 },
    });
  }
  nodes = liveNodes(nodes, output.name);
  const used = new Set(nodes.flatMap(({ inputs }) => inputs));
  return { ...graph, nodes, initializers: Object.fromEntries([...initializers].filter(([name]) => used.has(name))) };
}

function rename(node: GraphNode, from: string, to: string): GraphNode {
  const renamed = (name: string) => (name === from ? to : name);
  return { ...node, inputs: node.inputs.map(renamed), outputs: node.outputs.map(renamed) };
}

/** The nodes that the output depends on. */
function liveNodes(nodes: GraphNode[], output: string): GraphNode[] {
  const needed = new Set([output]);
  const live: GraphNode[] = [];
  for (const node of nodes.toReversed()) {
    if (!node.outputs.some((name) => needed.has(name))) continue;
    live.push(node);
    for (const name of node.inputs) needed.add(name);
  }
  return live.reverse();
}
