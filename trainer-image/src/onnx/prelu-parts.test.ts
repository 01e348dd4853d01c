/** PRelu in parts: written as ONNX Runtime computes it fastest, and joined again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Graph, GraphNode } from '@facetrain/native';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { joinPRelus, splitPRelus } from './prelu-parts.ts';
import { parseOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

function twoPRelus(): Graph {
  const b = new GraphBuilder();
  return b.graph(b.flatten(b.prelu(b.conv(b.prelu('data', 3), 3, 4, 3), 4)));
}

/** The graph with one part's inputs changed. */
function changed(graph: Graph, op: string, inputs: (node: GraphNode) => string[]): Graph {
  let isFirst = true;
  const nodes = graph.nodes.map((node) => {
    if (node.op !== op || !isFirst) return node;
    isFirst = false;
    return { ...node, inputs: inputs(node) };
  });
  return { ...graph, nodes };
}

const preluCount = ({ nodes }: Graph) => nodes.filter(({ op }) => op === 'PRelu').length;

test('parts are joined to the PRelu that they were, whatever the order of their operands', () => {
  const graph = twoPRelus();
  const parts = splitPRelus(graph);
  assert.equal(preluCount(parts), 0);
  assert.deepEqual(joinPRelus(parts).nodes, graph.nodes);
  for (const op of ['Min', 'Mul', 'Add'])
    assert.deepEqual(joinPRelus(changed(parts, op, ({ inputs }) => inputs.toReversed())).nodes, graph.nodes, op);
});

test('a file with parts is read with PRelus, by every command, also behind a Flatten', () => {
  const b = new GraphBuilder();
  const slopes = { dims: [192], data: Float32Array.from({ length: 192 }, (_, i) => i / 192) };
  const graph = b.graph(b.node('PRelu', [b.flatten(b.prelu(b.conv('data', 3, 3, 3), 3)), slopes]));
  const parts = splitPRelus(graph);
  const zero = parts.nodes.find(({ op }) => op === 'Min')!.inputs[1]!;
  const byMax = { ...parts, nodes: parts.nodes.map((n) => (n.op === 'Relu' ? maxOf(n, zero) : n)) };
  for (const written of [parts, byMax]) {
    const { graph: read } = parseOnnx(encodeOnnx(written), 'model.onnx', { every: true });
    assert.deepEqual(
      read.nodes.map(({ op }) => op),
      ['Conv', 'PRelu', 'Flatten', 'PRelu'],
    );
  }
  const maps = splitPRelus(twoPRelus());
  assert.equal(preluCount(parseOnnx(encodeOnnx(maps), 'model.onnx').graph), 2);
});

const maxOf = (node: GraphNode, zero: string): GraphNode => ({ ...node, op: 'Max', inputs: [...node.inputs, zero] });

test('a graph without PRelu, or without parts of one, stays as it is', () => {
  const b = new GraphBuilder();
  const graph = b.graph(b.flatten(b.conv('data', 3, 4, 3)));
  assert.equal(splitPRelus(graph), graph);
  assert.equal(joinPRelus(graph), graph);
});

test('without slopes it is a Relu where it is only quantized', () => {
  const b = new GraphBuilder();
  const noSlopes = { dims: [3, 1, 1], data: new Float32Array(3) };
  const scale = { dims: [], data: Float32Array.of(0.1) };
  const zeroPoint = { dims: [], data: Uint8Array.of(128) };
  const quantized = b.node('QuantizeLinear', [b.node('PRelu', ['data', noSlopes]), scale, zeroPoint]);
  const graph = b.graph(
    b.flatten(b.node('PRelu', [b.node('DequantizeLinear', [quantized, scale, zeroPoint]), noSlopes])),
  );
  const written = splitPRelus(graph);
  assert.deepEqual(
    written.nodes.map(({ op }) => op),
    ['Relu', 'QuantizeLinear', 'DequantizeLinear', 'Relu', 'Min', 'Mul', 'Add', 'Flatten'],
  );
  assert.deepEqual(written.nodes[0]!.inputs, ['data']);
  const read = new Set(written.nodes.flatMap(({ inputs }) => inputs));
  assert.deepEqual(
    Object.keys(written.initializers).filter((name) => !read.has(name)),
    [],
  );
});

test('what only looks like parts is not joined', () => {
  const parts = splitPRelus(twoPRelus());
  const [relu, min, mul] = parts.nodes as [GraphNode, GraphNode, GraphNode];
  const slope = mul.inputs[1]!;
  const constants = (more: Graph['initializers']) => ({ ...parts, initializers: { ...parts.initializers, ...more } });
  const cases: Record<string, Graph> = {
    'another bound': constants({ [min.inputs[1]!]: { dims: [], data: Float32Array.of(0.5) } }),
    'a bound for each channel': constants({ [min.inputs[1]!]: { dims: [3, 1, 1], data: new Float32Array(3) } }),
    'a computed slope': changed(parts, 'Mul', ({ inputs }) => [inputs[0]!, relu.inputs[0]!]),
    'a Relu of something else': changed(parts, 'Relu', () => [slope]),
    'a part that another node reads': {
      ...parts,
      nodes: parts.nodes.map((node) => (node.op === 'Flatten' ? { ...node, inputs: [min.outputs[0]!] } : node)),
    },
    'a part that is an output': {
      ...parts,
      outputs: [parts.output, { name: mul.outputs[0]!, dims: [3, 8, 8] }] as NonNullable<Graph['outputs']>,
    },
  };
  for (const [name, graph] of Object.entries(cases)) assert.ok(preluCount(joinPRelus(graph)) < 2, `${name}: joined`);
});
