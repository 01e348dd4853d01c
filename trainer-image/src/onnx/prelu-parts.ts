/**
 * PRelu as ONNX Runtime computes it fastest: relu(x) + slope · min(x, 0), or relu(x) where all slopes are 0. Its kernel
 * of PRelu uses one value at a time, those of the parts use vectors; the numbers are the same (docs/benchmarks.md).
 * normalize.ts joins them before it moves nodes to in front of a Flatten, which would keep some parts behind it.
 * native/int7/prelu_parts.h joins the parts in the same way.
 */
import type { Graph, GraphNode } from '@facetrain/native';
import { isRelu } from './operators.ts';
import { UniqueNames } from './unique-names.ts';

/**
 * The graph with each PRelu of constant slopes in parts. The last one has the PRelu's name and output. A Relu takes its
 * place where it is only quantized: elsewhere readers could take it for a part of a function
 * (quantize/node-layers.ts).
 */
export function splitPRelus(graph: Graph): Graph {
  const isSplit = ({ op, inputs }: GraphNode) => op === 'PRelu' && Object.hasOwn(graph.initializers, inputs[1]!);
  if (!graph.nodes.some(isSplit)) return graph;
  const names = new UniqueNames([
    graph.input.name,
    ...Object.keys(graph.initializers),
    ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
  ]);
  const zero = names.take('zero');
  const readAsReal = new Set([
    ...graph.nodes.flatMap(({ op, inputs }) => (op === 'QuantizeLinear' ? [] : inputs)),
    ...outputsOf(graph),
  ]);
  const nodes = graph.nodes.flatMap((node) => {
    if (!isSplit(node)) return [node];
    const [x, slope] = node.inputs as [string, string];
    const slopes = graph.initializers[slope]!.data as Float32Array;
    if (slopes.every((value) => Object.is(value, 0)) && !readAsReal.has(node.outputs[0]!))
      return [{ ...node, op: 'Relu', inputs: [x] }];
    const part = (op: string, inputs: string[]): GraphNode => {
      const name = names.take(`${node.outputs[0]}.${op.toLowerCase()}`);
      return { name, op, inputs, outputs: [name], attributes: {} };
    };
    const positive = part('Relu', [x]);
    const below = part('Min', [x, zero]);
    const negative = part('Mul', [below.name, slope]);
    return [positive, below, negative, { ...node, op: 'Add', inputs: [positive.name, negative.name] }];
  });
  const read = new Set(nodes.flatMap(({ inputs }) => inputs));
  const initializers = { ...graph.initializers, [zero]: { dims: [], data: Float32Array.of(0) } };
  return {
    ...graph,
    nodes,
    initializers: Object.fromEntries(Object.entries(initializers).filter(([k]) => read.has(k))),
  };
}

const outputsOf = (graph: Graph) => (graph.outputs ?? [graph.output]).map(({ name }) => name);

/**
 * The graph with a PRelu for each sum of such parts. Operands may come in any order, and the first part may be any node
 * that computes a Relu; others may not read the parts. A PRelu has the shape of what it reads: slopes for several
 * channels make several of one, in parts.
 * @param shapes of values, as far as they are known
 */
export function joinPRelus(graph: Graph, shapes: ReadonlyMap<string, number[]> = new Map()): Graph {
  const read = new Map<string, number>();
  for (const value of [...graph.nodes.flatMap(({ inputs }) => inputs), ...outputsOf(graph)])
    read.set(value, (read.get(value) ?? 0) + 1);
  const maker = new Map(graph.nodes.map((node) => [node.outputs[0]!, node]));
  /** The node that makes the value, if nothing else reads it. */
  const part = (value: string) => {
    const node = maker.get(value);
    return node?.outputs.length === 1 && read.get(value) === 1 ? node : undefined;
  };
  const partOf = (op: string, value: string) => {
    const node = part(value);
    return node?.op === op ? node : undefined;
  };
  const constantOf = (value: string) => (isConstant(value) ? graph.initializers[value] : undefined);
  const isConstant = (value: string) => Object.hasOwn(graph.initializers, value);
  const isZero = (value: string) => {
    const constant = isConstant(value) ? graph.initializers[value]! : undefined;
    return constant?.data instanceof Float32Array && constant.data.length === 1 && Object.is(constant.data[0], 0);
  };
  /** The operand of two that is no such constant, and the constant. */
  const operands = ({ inputs }: GraphNode, isWanted: (value: string) => boolean) => {
    const [a, b, more] = inputs as [string, string, string?];
    if (more !== undefined || isWanted(a) === isWanted(b)) return undefined;
    return isWanted(a) ? { computed: b, constant: a } : { computed: a, constant: b };
  };

  const isSameShape = (a: string, b: string) => {
    const [one, other] = [shapes.get(a), shapes.get(b)];
    return !one || !other || one.join() === other.join();
  };

  const parts = new Set<GraphNode>();
  const joined = new Map<GraphNode, GraphNode>();
  for (const node of graph.nodes) {
    if (node.op !== 'Add' || node.inputs.length !== 2) continue;
    for (const [a, b] of [node.inputs, node.inputs.toReversed()] as [string, string][]) {
      const positive = part(a);
      const negative = partOf('Mul', b);
      const product = negative && operands(negative, isConstant);
      const below = product && partOf('Min', product.computed);
      const least = below && operands(below, isZero);
      if (!positive || !isRelu(positive, constantOf) || !least || positive.inputs[0] !== least.computed) continue;
      if (!isSameShape(node.outputs[0]!, least.computed)) continue;
      for (const each of [positive, negative, below]) parts.add(each);
      joined.set(node, { ...node, op: 'PRelu', inputs: [least.computed, product.constant] });
      break;
    }
  }
  if (joined.size === 0) return graph;
  return { ...graph, nodes: graph.nodes.filter((node) => !parts.has(node)).map((node) => joined.get(node) ?? node) };
}
