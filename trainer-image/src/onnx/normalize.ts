/**
 * Brings a graph of any operator set and exporter into one form, so that all commands read the same graphs:
 *
 * 1. Every node has its form of operator set 17 (translate-node.ts). Nodes of constants are computed
 *    (constant-folding.ts); Identity, Dropout and casts between floats are gone.
 * 2. A normalisation that ends the model is gone (embedding-norm.ts).
 * 3. What can be written with the operators of operators.ts is written with them (canonical.ts); a MatMul and the Add
 *    of its bias are a Gemm. The output is [N, d].
 * 4. There is no node or constant that the output does not depend on.
 */
import { FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { intAttribute } from './attributes.ts';
import { Canonicalizer } from './canonical.ts';
import { foldConstants, MAX_FOLDED_ELEMENTS } from './constant-folding.ts';
import { normalisationsAtEnd } from './embedding-norm.ts';
import { ShapeInference } from './infer-shapes.ts';
import { dataTypeNumber } from './proto.ts';
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

export interface Normalized {
  graph: Graph;
  /** What the graph does not compute any more, each a sentence for people. */
  removed: string[];
}

/** @throws FacetrainError UnsupportedOperator for a node that has no form in operator set 17; InvalidModel */
export function normalize(graph: Graph, { opset, fixedBatch, subject }: NormalizeOptions): Normalized {
  const initializers = new Map(Object.entries(graph.initializers));
  const names = new UniqueNames([
    graph.input.name,
    ...initializers.keys(),
    ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
  ]);
  // Shapes are inferred for two batch sizes: an entry that differs depends on the batch.
  const batches = [1, 2].map((batch) => new ShapeInference(graph, batch)) as [ShapeInference, ShapeInference];
  const define = (name: string, tensor: Tensor) => {
    initializers.set(name, tensor);
    for (const inference of batches) inference.define(name, tensor);
  };
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
      define(unique, tensor);
      return unique;
    },
  };
  const pictureShape = (name: string) => pictureShapeOf(batches, name);
  const constantOf = (name: string) => initializers.get(name);

  const { output } = graph;
  const translated = translateAll(graph.nodes, output.name, context, { initializers, define });
  const live = liveNodes(translated, output.name);
  const norms = normalisationsAtEnd(live, output.name, { constant: constantOf, pictureShape });
  const removed = norms.map(
    ({ node: { name, op } }) =>
      `node "${name}" (${op}), which normalises the embedding: its cosine with others stays the same`,
  );
  for (const { node, embedding } of norms) Object.assign(node, identity(node, embedding));

  const canonical = new Canonicalizer(graph.input, {
    pictureShape,
    constantOf,
    constant: context.constant,
    freshName: (name) => names.take(name),
    refuse: context.refuse,
    integers: (name) => {
      const [one, two] = batches.map(({ integers }) => integers.get(name));
      return one && one.join() === two?.join() ? one : undefined;
    },
  });
  for (const node of liveNodes(live, output.name)) canonical.visit(node);
  if (!canonical.finish(output.name, graph.input.name))
    throw new FacetrainError({
      code: 'InvalidModel',
      subject,
      found: `output "${output.name}" is the picture itself`,
      allowed: 'an embedding [N, d]',
    });
  const nodes = biasedProducts(liveNodes(canonical.nodes, output.name), output.name, initializers);
  const used = new Set(nodes.flatMap(({ inputs }) => inputs));
  return {
    graph: { ...graph, nodes, initializers: Object.fromEntries([...initializers].filter(([name]) => used.has(name))) },
    removed,
  };
}

/** The shape of a value for one picture, without the batch; undefined if it is not known, or the batch is not first. */
function pictureShapeOf(batches: [ShapeInference, ShapeInference], name: string): number[] | undefined {
  const [one, two] = batches.map(({ shapes }) => shapes.get(name));
  const isKnown = one?.[0] === 1 && two?.[0] === 2 && one.slice(1).join() === two.slice(1).join();
  return isKnown ? one.slice(1) : undefined;
}

/** The nodes that depend on the picture, in the form of operator set 17. */
function translateAll(
  nodes: GraphNode[],
  graphOutput: string,
  context: Context,
  { initializers, define }: { initializers: Map<string, Tensor>; define: (name: string, tensor: Tensor) => void },
): GraphNode[] {
  const aliases = new Map<string, string>();
  const translated: GraphNode[] = [];
  let folded = 0;
  for (const original of nodes) {
    const node = {
      ...original,
      inputs: original.inputs.map((name) => aliases.get(name) ?? name),
      attributes: { ...original.attributes },
    };
    translateNode(node, context);
    const [output] = node.outputs as [string];
    const tensors = node.inputs.map((name) => initializers.get(name));
    if (tensors.every((tensor) => tensor !== undefined)) {
      const { shapes, integers } = context.batches[0];
      const value = foldConstants(node, tensors, {
        shapes: node.inputs.map((name) => shapes.get(name)),
        integers: node.inputs.map((name) => integers.get(name)),
      });
      // Data that is shared with the inputs is not new.
      folded += value && !tensors.some(({ data }) => data === value.data) ? value.data.length : 0;
      if (folded > MAX_FOLDED_ELEMENTS)
        throw context.refuse(node, 'computes too much of constants', `${MAX_FOLDED_ELEMENTS} numbers in all`);
      if (value) {
        define(output, value);
        continue;
      }
    }
    for (const inference of context.batches) inference.visit(node);
    if (!isIdentity(node, context)) translated.push(node);
    // The output keeps its name, and with it a node.
    else if (output === graphOutput) translated.push(identity(node, node.inputs[0]!));
    else aliases.set(output, node.inputs[0]!);
  }
  return translated;
}

function identity(node: GraphNode, input: string): GraphNode {
  return { ...node, op: 'Identity', inputs: [input], attributes: {} };
}

/** Whether a node's value is its first input. Half precision is read as float32, so a cast to it rounds nothing. */
function isIdentity(node: GraphNode, { batches: [{ integers }] }: Context): boolean {
  if (node.op === 'Identity' || node.op === 'Dropout') return true;
  return (
    node.op === 'Cast' && intAttribute(node, 'to', 0) === dataTypeNumber('FLOAT') && !integers.has(node.inputs[0]!)
  );
}

/** Writes a product by a constant matrix and the bias that alone reads it as one Gemm, whose bias is learned. */
function biasedProducts(nodes: GraphNode[], output: string, initializers: Map<string, Tensor>): GraphNode[] {
  const readers = new Map<string, GraphNode[]>();
  for (const node of nodes) for (const name of node.inputs) readers.set(name, [...(readers.get(name) ?? []), node]);
  const gone = new Set<GraphNode>();
  const result = nodes.map((node) => {
    const [product, more] = readers.get(node.outputs[0]!) ?? [];
    const matrix = initializers.get(node.inputs[1] ?? '');
    if (node.op !== 'MatMul' || product?.op !== 'Add' || more || node.outputs[0] === output) return node;
    const bias = product.inputs.find((name) => name !== node.outputs[0])!;
    const dims = initializers.get(bias)?.dims;
    if (matrix?.dims.length !== 2 || dims?.length !== 1 || dims[0] !== matrix.dims[1]) return node;
    gone.add(product);
    return { ...node, op: 'Gemm', inputs: [...node.inputs, bias], outputs: product.outputs, attributes: {} };
  });
  return result.filter((node) => !gone.has(node));
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
