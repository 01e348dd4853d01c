import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LayerGraph, Scales } from '@facetrain/native';
import { checkScales } from './check-source.ts';

const graph: LayerGraph = {
  input: { name: 'data', channels: 1, height: 1, width: 1 },
  output: { name: 'y', dim: 1 },
  layers: [
    {
      ...{ kind: 'pointwise', name: 'slope', input: 'data', output: 'x' },
      ...{ positive: Float32Array.of(1), negative: Float32Array.of(0.25), offset: Float32Array.of(0) },
    },
    {
      ...{ kind: 'fc', name: 'last', input: 'x', output: 'y' },
      ...{ weight: { dims: [1, 1], data: Float32Array.of(1) }, bias: Float32Array.of(0) },
    },
  ],
};
const scales: Scales = {
  tensors: {
    data: { scale: 0.01, limit: 127, zeroPoint: 0 },
    x: { scale: Math.fround(1e-12), limit: 63, zeroPoint: 0 },
  },
  weights: { last: { scales: Float32Array.of(1e-20), values: Int8Array.of(63) } },
  biases: { last: Int32Array.of(0) },
};
const withTensor = (scale: number): Scales => ({
  ...scales,
  tensors: { ...scales.tensors, x: { scale, limit: 63, zeroPoint: 0 } },
});

test('scales that readers take are written', () => {
  checkScales({ graph, scales }, 'model.onnx'); // the least scale of a tensor, and a filter of zeros
  checkScales({ graph, scales: withTensor(Math.fround(1e12)) }, 'model.onnx');
});

test('scales that no reader takes are refused by name', () => {
  for (const scale of [9e-13, 1.1e12, Infinity, NaN])
    assert.throws(
      () => checkScales({ graph, scales: withTensor(scale) }, 'model.onnx'),
      /model\.onnx: tensor "x" has values of .* a step; numbers between 1e-12 and 1e12/,
    );
  const wide = { ...scales, weights: { last: { ...scales.weights.last!, scales: Float32Array.of(2e12) } } };
  assert.throws(() => checkScales({ graph, scales: wide }, 'model.onnx'), /layer "last" has a number of 2\.0e\+12/);
  const steep = structuredClone(graph);
  Object.assign(steep.layers[0]!, { negative: Float32Array.of(-2e12) });
  assert.throws(() => checkScales({ graph: steep, scales }, 'model.onnx'), /layer "slope" has a number of -2\.0e\+12/);
});
