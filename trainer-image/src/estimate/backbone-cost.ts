/** Counts what training a graph takes for each picture: values that stay, products, bytes. Pure. */
import type { Graph, GraphNode } from '@facetrain/native';
import { macsOf } from '../onnx/describe.ts';
import { inferShapes } from '../onnx/infer-shapes.ts';

/** Operators whose backward pass reads their input, which therefore stays until then. */
const KEEPS_INPUT = new Set(['BatchNormalization', 'Conv', 'Gemm', 'MatMul', 'PRelu']);
const IS_PRODUCT = new Set(['Conv', 'Gemm', 'MatMul']);

/**
 * How often the values of an operator pass through memory in a step, forward and backward: times its input, times its
 * output. A batch norm reads its input for the statistics and again to normalize it; its backward pass reads input and
 * gradient twice.
 */
const PASSES: Record<string, [input: number, output: number]> = {
  Conv: [3, 3],
  Gemm: [3, 3],
  MatMul: [3, 3],
  BatchNormalization: [5, 3],
  PRelu: [2, 3],
  Add: [2, 4],
};
const OTHER_PASSES: [input: number, output: number] = [2, 2];

export interface NodeCost {
  /** Multiply-accumulates for a picture, forward. */
  macs: number;
  /** Numbers that pass through memory for a picture, forward and backward. */
  traffic: number;
  /** A convolution whose channels are in groups, such as a depthwise one. */
  grouped: boolean;
}

/** Everything for one picture, except parameters and statistics. */
export interface BackboneCost {
  /** Trained numbers, each with a gradient and its optimizer's state. */
  parameters: number;
  /** Weights of convolutions and linear layers, of which 16-bit precisions make a copy in each step. */
  productWeights: number;
  /** Running statistics and other tensors that are not trained. */
  statistics: number;
  /** Numbers of the values that stay for the backward pass. */
  kept: number;
  /** Numbers of the largest value. */
  largest: number;
  /** The node that keeps the most, and the shape of what it keeps. */
  keeper: { node: GraphNode; shape: number[] } | undefined;
  /** Pixels and channels of a picture. */
  input: number;
  /** In the order of the graph, without batch norms that are computed with the node that follows. */
  nodes: NodeCost[];
}

const product = (shape: readonly number[]) => shape.reduce((all, dim) => all * dim, 1);

/**
 * The batch norms that are computed in one step with the only node that reads them, a PRelu or an Add, by that node's
 * output; their result is never stored (fused_norms in native/model/executor.cc).
 */
function fusedNorms(graph: Graph): Map<GraphNode, GraphNode> {
  const readers = new Map<string, GraphNode[]>();
  for (const node of graph.nodes)
    for (const name of node.inputs) readers.set(name, [...(readers.get(name) ?? []), node]);
  const norms = new Map<GraphNode, GraphNode>();
  for (const norm of graph.nodes) {
    const [value] = norm.outputs;
    if (norm.op !== 'BatchNormalization' || value === undefined || value === graph.output.name) continue;
    const reading = readers.get(value) ?? [];
    const [reader] = reading;
    if (reading.length !== 1 || !reader || norms.has(reader)) continue;
    const isAdd = reader.op === 'Add' && !reader.inputs.some((name) => Object.hasOwn(graph.initializers, name));
    if ((reader.op === 'PRelu' && reader.inputs[0] === value) || isAdd) norms.set(reader, norm);
  }
  return norms;
}

/** @param graph values of its weights are not read, only their shapes. Values of unknown shape count nothing */
export function backboneCost(graph: Graph): BackboneCost {
  const shapes = inferShapes(graph, 1);
  const sizeOf = (name: string | undefined) => {
    const shape = name === undefined ? undefined : shapes.get(name);
    return shape ? product(shape) : 0;
  };
  const isConstant = (name: string | undefined) => name !== undefined && Object.hasOwn(graph.initializers, name);
  const fused = fusedNorms(graph);
  const norms = new Set(fused.values());
  const trained = new Set<string>();
  const productWeights = new Set<string>();
  const counted = new Set(Object.keys(graph.initializers));
  const nodes: NodeCost[] = [];
  let kept = 0;
  let largest = sizeOf(graph.input.name);
  let keeper: { node: GraphNode; shape: number[]; own: number } | undefined;

  for (const node of graph.nodes) {
    const norm = fused.get(node);
    const [x, weight] = node.inputs;
    const [input, output] = [sizeOf(x), sizeOf(node.outputs[0])];
    largest = Math.max(largest, output);
    const keepsItsInput = KEEPS_INPUT.has(node.op) && !norm;
    const shape = shapes.get(x ?? '');
    if (keepsItsInput && x !== undefined && shape && !counted.has(x)) {
      counted.add(x);
      kept += input;
      if (!keeper || input > keeper.own) keeper = { node, shape, own: input };
    }
    for (const name of trainedInputs(node, graph)) trained.add(name);
    if (IS_PRODUCT.has(node.op) && isConstant(weight)) productWeights.add(weight!);
    if (norms.has(node)) continue;
    const [inputs, outputs] = Object.hasOwn(PASSES, node.op) ? PASSES[node.op]! : OTHER_PASSES;
    const isView = node.op === 'Flatten' || node.op === 'Reshape';
    // A fused batch norm makes the passes of one; an addition also reads and writes the other summand.
    const fusedPasses = (PASSES.BatchNormalization![0] + PASSES.BatchNormalization![1]) * sizeOf(norm?.inputs[0]);
    nodes.push({
      macs: macsOf(node, shapes) ?? 0,
      traffic: norm
        ? fusedPasses + (node.op === 'Add' ? 4 * output : 0)
        : isView
          ? 0
          : inputs * input + outputs * output,
      grouped: node.op === 'Conv' && Number(node.attributes.group ?? 1) > 1,
    });
  }
  const sum = (names: Iterable<string>) =>
    [...names].reduce((all, name) => all + product(graph.initializers[name]!.dims), 0);
  const parameters = sum(trained);
  const floats = Object.entries(graph.initializers).filter(([, { data }]) => data instanceof Float32Array);
  return {
    parameters,
    productWeights: sum(productWeights),
    statistics: sum(floats.map(([name]) => name)) - parameters,
    kept,
    largest,
    keeper: keeper && { node: keeper.node, shape: keeper.shape },
    input: sizeOf(graph.input.name),
    nodes,
  };
}

/** Constants that a node learns. The batch norm that ends a graph keeps its gamma (decision 0008). */
function trainedInputs({ op, inputs, outputs }: GraphNode, graph: Graph): string[] {
  const isWeight = (name: string | undefined): name is string => name !== undefined && name in graph.initializers;
  if (op === 'BatchNormalization')
    return (outputs[0] === graph.output.name ? [inputs[2]] : [inputs[1], inputs[2]]).filter(isWeight);
  if (IS_PRODUCT.has(op) || op === 'PRelu') return inputs.slice(1).filter(isWeight);
  return [];
}
