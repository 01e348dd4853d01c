/**
 * Shapes of a graph's values for a batch of a given size. A node of an operator without a rule leaves its outputs
 * without a shape.
 */
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { computedIntegers } from './known-integers.ts';
import { SHAPE_RULES, splitShapes } from './shape-rules.ts';

/** Longer lists of integers are data, not shapes. */
const LONGEST_SHAPE = 64;
/** Of a value: ONNX Runtime knows no operator on more. */
const MOST_AXES = 8;

export class ShapeInference {
  /** By value name; values whose shape is not known are absent. */
  readonly shapes = new Map<string, number[]>();
  /** Small integers by value name, of values that do not depend on the picture's content. */
  readonly integers = new Map<string, number[]>();
  /** Short lists of constant floats. */
  readonly floats = new Map<string, number[]>();

  constructor({ input, initializers }: Pick<Graph, 'input' | 'initializers'>, batch: number) {
    this.shapes.set(input.name, [batch, input.channels, input.height, input.width]);
    for (const [name, tensor] of Object.entries(initializers)) this.define(name, tensor);
  }

  /** Adds a constant. */
  define(name: string, tensor: Tensor): void {
    this.shapes.set(name, tensor.dims);
    const values = smallIntegers(tensor);
    if (values) this.integers.set(name, values);
    if (tensor.data instanceof Float32Array && tensor.data.length <= MOST_AXES)
      this.floats.set(name, Array.from(tensor.data));
  }

  /** Adds a node. Nodes must come in topological order. */
  visit(node: GraphNode): void {
    const known = {
      shapes: node.inputs.map((name) => this.shapes.get(name)),
      integers: node.inputs.map((name) => this.integers.get(name)),
      floats: node.inputs.map((name) => this.floats.get(name)),
    };
    const output = node.outputs[0]!;
    const shape = Object.hasOwn(SHAPE_RULES, node.op) ? SHAPE_RULES[node.op]!(node, known) : undefined;
    if (shape?.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) this.shapes.set(output, shape);
    if (node.op === 'Split')
      splitShapes(node, known)?.forEach((part, i) => {
        this.shapes.set(node.outputs[i]!, part);
      });
    const values = computedIntegers(node, known);
    if (values && values.length <= LONGEST_SHAPE) {
      this.integers.set(output, values);
      if (!this.shapes.has(output)) this.shapes.set(output, [values.length]);
    }
  }
}

/** Shapes by value name. */
export function inferShapes(graph: Graph, batch: number): Map<string, number[]> {
  const inference = new ShapeInference(graph, batch);
  for (const node of graph.nodes) inference.visit(node);
  return inference.shapes;
}

function smallIntegers({ dims, data }: Tensor): number[] | undefined {
  if (dims.length > 1 || data.length > LONGEST_SHAPE || !(data instanceof BigInt64Array || data instanceof Int32Array))
    return undefined;
  return Array.from(data, Number);
}
