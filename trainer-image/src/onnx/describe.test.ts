import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Graph } from '@facetrain/native';
import { buildBackbone } from '../backbones/backbone.ts';
import { MOBILEFACENET } from '../testing/onnx-oracles.ts';
import { countMacs, describeModel } from './describe.ts';
import { parseOnnx, readOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

test('a description has the file’s facts and the graph’s cost', () => {
  const graph = buildBackbone({
    backbone: 'mobilefacenet',
    embeddingDim: 128,
    width: 1,
    blocks: [1, 1, 1, 1],
    seed: 0,
  });
  const file = encodeOnnx(graph, {
    producer: { name: 'facetrain', version: '0.1.0' },
    metadata: { 'facetrain.channelOrder': 'bgr' },
  });
  const { operators, macs, ...rest } = describeModel(parseOnnx(file, 'small.onnx'), null);
  // Running statistics count as bytes of the file, not as parameters.
  assert.deepEqual(rest, {
    input: {
      name: 'data',
      shape: ['N', 3, 112, 112],
      layout: 'NCHW',
      elementType: 'float32',
      channelOrder: 'bgr',
      range: null,
    },
    output: { name: 'embedding', shape: ['N', 128] },
    irVersion: 8,
    opsets: { '': 17 },
    producer: { name: 'facetrain', version: '0.1.0' },
    metadata: { 'facetrain.channelOrder': 'bgr' },
    removed: [],
    parameters: 530_048,
    constantBytes: { float: 4 * (530_048 + 2 * channelsOf(graph, 'BatchNormalization')) },
  });
  assert.deepEqual(Object.entries(operators), [
    ['BatchNormalization', 23],
    ['Conv', 22],
    ['PRelu', 15],
    ['Add', 3],
    ['Flatten', 1],
    ['Gemm', 1],
  ]);
  assert.equal(macs, 109_913_344);
});

test('the pretrained MobileFaceNet has 1.19 M parameters', async () => {
  const { parameters, operators, macs } = describeModel(await readOnnx(MOBILEFACENET), null);
  assert.equal((parameters / 1e6).toFixed(2), '1.19');
  assert.equal(operators.Conv, 50);
  assert.ok(macs! > 0);
});

test('multiply-accumulates follow the definition, and are null when a shape is not known', () => {
  const graph: Graph = {
    input: { name: 'x', channels: 4, height: 6, width: 8 },
    output: { name: 'y', dim: 5 },
    nodes: [
      {
        name: 'c',
        op: 'Conv',
        inputs: ['x', 'w'],
        outputs: ['h'],
        attributes: { group: 2, pads: [1, 1, 1, 1], strides: [2, 2] },
      },
      { name: 'f', op: 'Flatten', inputs: ['h'], outputs: ['v'], attributes: {} },
      { name: 'g', op: 'Gemm', inputs: ['v', 'm'], outputs: ['y'], attributes: { transB: 1 } },
    ],
    initializers: {
      w: { dims: [10, 2, 3, 3], data: new Float32Array(180) },
      m: { dims: [5, 120], data: new Float32Array(600) },
    },
  };
  assert.equal(countMacs(graph), 10 * 3 * 4 * (2 * 3 * 3) + 120 * 5);
  graph.nodes[0]!.op = 'Mystery';
  assert.equal(countMacs(graph), null);
});

function channelsOf(graph: Graph, op: string): number {
  return graph.nodes
    .filter((node) => node.op === op)
    .reduce((sum, { inputs }) => sum + graph.initializers[inputs[1]!]!.data.length, 0);
}
