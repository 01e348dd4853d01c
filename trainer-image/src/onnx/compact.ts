/**
 * Writes a graph with fewer bytes, for files of which it is a good part. The same numbers come out. What it brings is
 * in docs/decisions/0064-what-an-int7-file-weighs.md.
 */
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { elementType } from './tensor.ts';

/**
 * Constants of equal numbers become one; attributes that have the value which ONNX takes without them are left out, as
 * are the names of nodes; values get short names.
 * @param keep names of nodes and values that people or other files refer to; inputs and outputs keep theirs
 */
export function compact(graph: Graph, keep: ReadonlySet<string>): Graph {
  const same = sharedConstants(graph.initializers);
  const { input, output, outputs = [output] } = graph;
  const kept = new Set([...keep, input.name, ...outputs.map(({ name }) => name)]);
  const short = new Map<string, string>([['', '']]);
  let count = 0;
  const rename = (name: string): string => {
    if (kept.has(name)) return name;
    let found = short.get(name);
    if (found !== undefined) return found;
    do found = shortName(count++);
    while (kept.has(found));
    short.set(name, found);
    return found;
  };
  const nodes = graph.nodes.map((node) => ({
    name: keep.has(node.name) ? node.name : '',
    op: node.op,
    inputs: node.inputs.map((name) => rename(same.get(name) ?? name)),
    outputs: node.outputs.map(rename),
    attributes: withoutDefaults(node),
  }));
  const constants = Object.entries(graph.initializers).filter(([name]) => same.get(name) === name);
  return { ...graph, nodes, initializers: Object.fromEntries(constants.map(([name, t]) => [rename(name), t])) };
}

/** a to z, then aa to zz and a0 to z9, and so on: none is a number, by which JavaScript would sort the keys. */
function shortName(index: number): string {
  let [first, length] = [0, 26];
  let digits = 0;
  while (index - first >= length) {
    first += length;
    length *= 36;
    digits++;
  }
  const within = index - first;
  const rest = digits === 0 ? '' : (within % 36 ** digits).toString(36).padStart(digits, '0');
  return String.fromCharCode(97 + Math.floor(within / 36 ** digits)) + rest;
}

/**
 * For each constant, the first of the same type, shape and bytes. Weights (int8) are their own: the C library bounds
 * what a file may ask for by its size, so it refuses layers that share them.
 */
function sharedConstants(constants: Graph['initializers']): Map<string, string> {
  const firsts = new Map<string, string[]>();
  const same = new Map<string, string>();
  for (const [name, tensor] of Object.entries(constants)) {
    const key = `${elementType(tensor.data)} ${tensor.dims.join()} ${tensor.data[0]} ${tensor.data.at(-1)}`;
    const candidates = firsts.get(key) ?? [];
    firsts.set(key, candidates);
    const bytes = bytesOf(tensor);
    const isWeight = tensor.data instanceof Int8Array && tensor.dims.length > 1;
    const first = isWeight ? undefined : candidates.find((other) => bytes.equals(bytesOf(constants[other]!)));
    if (first === undefined) candidates.push(name);
    same.set(name, first ?? name);
  }
  return same;
}

const bytesOf = ({ data }: Tensor) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

/** Of convolutions and pools: what each entry of an attribute is where the attribute lacks. */
const DEFAULTS: Record<string, number> = {
  strides: 1,
  dilations: 1,
  group: 1,
  pads: 0,
  ceil_mode: 0,
  count_include_pad: 0,
};
const WITH_DEFAULTS = new Set(['Conv', 'ConvTranspose', 'MaxPool', 'AveragePool']);

function withoutDefaults({ op, attributes }: GraphNode): GraphNode['attributes'] {
  if (!WITH_DEFAULTS.has(op)) return attributes;
  const isDefault = ([name, value]: [string, number | number[] | string]) =>
    (op === 'Conv' && name === 'kernel_shape') || // that of its weights
    (Object.hasOwn(DEFAULTS, name) && [value].flat().every((entry) => entry === DEFAULTS[name]));
  return Object.fromEntries(Object.entries(attributes).filter((entry) => !isDefault(entry)));
}
