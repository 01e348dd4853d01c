/**
 * Which values of a graph are booleans or integers that nodes compute from the picture. In our runtime they are float32
 * like all others; in a file they have types of their own, and no runtime quantizes them.
 */
import type { Graph, GraphNode } from '@facetrain/native';
import { dataTypeNumber } from './proto.ts';

/** Operators whose results are booleans or the places of numbers. */
const NEVER_FLOAT = new Set('And ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual Not Or Shape'.split(' '));

/** Whether a node computes floats. @param isFloat whether a value that it reads has floats */
export function computesFloats({ op, inputs, attributes }: GraphNode, isFloat: (name: string) => boolean): boolean {
  if (NEVER_FLOAT.has(op)) return false;
  if (op === 'Cast') return attributes.to === dataTypeNumber('FLOAT');
  if (op === 'ConstantOfShape') return attributes.type === dataTypeNumber('FLOAT');
  return isFloat(inputs[op === 'Where' ? 1 : 0]!);
}

/** The computed values that are no floats. */
export function otherThanFloats({ nodes, initializers }: Pick<Graph, 'nodes' | 'initializers'>): Set<string> {
  const others = new Set<string>();
  const isFloat = (name: string) =>
    Object.hasOwn(initializers, name) ? initializers[name]!.data instanceof Float32Array : !others.has(name);
  for (const node of nodes) if (!computesFloats(node, isFloat)) for (const name of node.outputs) others.add(name);
  return others;
}
