import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Graph } from '@facetrain/native';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { compact } from './compact.ts';
import { parseOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

const floats = (...values: number[]) => ({ dims: [values.length, 1, 1], data: Float32Array.from(values) });

/** Two convolutions and two products, with constants that are equal. */
function graph(): Graph {
  const b = new GraphBuilder();
  const scaled = b.node('Mul', [b.conv('data', 3, 4, 3), floats(1, 2, 3, 4)]);
  return b.graph(b.flatten(b.node('Mul', [b.conv(scaled, 4, 4, 3), floats(1, 2, 3, 4)])));
}

const same = (a: Graph, b: Graph) => {
  const plain = ({ nodes, initializers, output }: Graph) => {
    const values = new Map(nodes.flatMap(({ outputs }) => outputs).map((name, i) => [name, `value ${i}`]));
    const operand = (name: string) => values.get(name) ?? initializers[name] ?? name;
    return nodes.map(({ op, inputs }) => ({ op, inputs: inputs.map(operand), output }));
  };
  assert.deepEqual(plain(a), plain(b));
};

test('a file of a compact graph reads as that of the graph, with fewer bytes', () => {
  const [full, small] = [graph(), compact(graph(), new Set())].map((each) => encodeOnnx(each)) as [
    Uint8Array,
    Uint8Array,
  ];
  assert.ok(small.length < full.length - 200, `${small.length} of ${full.length} bytes`);
  same(parseOnnx(small, 'small').graph, parseOnnx(full, 'full').graph);
});

test('attributes that say what goes without saying are left out, and no others', () => {
  const b = new GraphBuilder();
  const conv = b.conv('data', 3, 4, 3, { stride: 2 });
  const pads = { kernel_shape: [2, 2], strides: [1, 1], pads: [0, 1, 0, 1], ceil_mode: 0, count_include_pad: 1 };
  const { nodes } = compact(b.graph(b.flatten(b.node('AveragePool', [conv], pads))), new Set());
  const attributes = Object.fromEntries(nodes.map(({ op, attributes }) => [op, attributes]));
  assert.deepEqual(attributes.Conv, { strides: [2, 2] });
  assert.deepEqual(attributes.AveragePool, { kernel_shape: [2, 2], pads: [0, 1, 0, 1], count_include_pad: 1 });
});

test('names that others refer to stay', () => {
  const { nodes, input, output } = graph();
  const [first] = nodes as [(typeof nodes)[0]];
  const [node, ...others] = compact(graph(), new Set([first.name, first.outputs[0]!])).nodes;
  assert.equal(node!.name, first.name);
  assert.deepEqual(node!.outputs, first.outputs);
  assert.equal(node!.inputs[0], input.name);
  assert.deepEqual(others.at(-1)!.outputs, [output.name]);
  assert.ok(others.every(({ name }) => name === ''));
});

test('a short name that is in use is passed over', () => {
  const { nodes } = compact(graph(), new Set(['a', 'b', 'data']));
  const values = new Set(nodes.flatMap(({ inputs, outputs }) => [...inputs, ...outputs]));
  assert.ok(!values.has('a') && !values.has('b') && values.has('c'));
});

test('equal constants are one, but weights are their own', () => {
  const b = new GraphBuilder();
  const weights = () => ({ dims: [3, 1, 1], data: Int8Array.of(1, 2, 3) });
  const others = [floats(1, 2, 3), floats(1, 2, 3), floats(1, 5, 3), { ...floats(1, 2, 3), dims: [3] }];
  let value = 'data';
  for (const constant of [...others, weights(), weights()]) value = b.node('Mul', [value, constant]);
  const { nodes, initializers } = compact(b.graph(b.flatten(value)), new Set());
  const used = nodes.flatMap(({ op, inputs }) => (op === 'Mul' ? [inputs[1]!] : []));
  assert.equal(used[0], used[1]);
  assert.equal(new Set(used).size, 5);
  assert.deepEqual(new Set(Object.keys(initializers)), new Set(used));
});

test('more values than letters get names of their own, none of them a number', () => {
  const b = new GraphBuilder();
  let value = 'data';
  for (let i = 0; i < 1200; i++) value = b.node('Relu', [value]);
  const names = compact(b.graph(b.flatten(value)), new Set()).nodes.flatMap(({ outputs }) => outputs);
  assert.equal(new Set(names).size, 1201);
  assert.ok(names.every((name) => !/^\d/.test(name)));
});
