/** Attributes of a graph's nodes, with the defaults of ONNX's operators. */
import type { GraphNode } from '@facetrain/native';

/** An INT attribute, or its default. */
export function intAttribute(node: GraphNode, name: string, fallback: number): number {
  const value = Object.hasOwn(node.attributes, name) ? node.attributes[name] : undefined;
  return typeof value === 'number' ? value : fallback;
}

/** An INTS attribute, or its default. */
export function intsAttribute(node: GraphNode, name: string, fallback: number[]): number[] {
  const value = Object.hasOwn(node.attributes, name) ? node.attributes[name] : undefined;
  return Array.isArray(value) ? value : fallback;
}
