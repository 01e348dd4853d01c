import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LayerGraph } from '@facetrain/native';
import { checkNumbers } from './check-source.ts';

const graphOf = (slope: number, weight: number): LayerGraph => ({
  input: { name: 'data', channels: 1, height: 1, width: 1 },
  output: { name: 'y', dim: 1 },
  layers: [
    {
      ...{ kind: 'pointwise', name: 'slope', input: 'data', output: 'x' },
      ...{ positive: Float32Array.of(1), negative: Float32Array.of(slope), offset: Float32Array.of(0) },
    },
    {
      ...{ kind: 'fc', name: 'last', input: 'x', output: 'y' },
      ...{ weight: { dims: [1, 1], data: Float32Array.of(weight) }, bias: Float32Array.of(0) },
    },
  ],
});

test('numbers that no file can have are refused by name', () => {
  checkNumbers(graphOf(0.25, 1), 'model.onnx');
  checkNumbers(graphOf(-1e12, Math.fround(1e12)), 'model.onnx');
  assert.throws(
    () => checkNumbers(graphOf(-2e12, 1), 'model.onnx'),
    /model\.onnx: layer "slope" has a number of -2\.0e\+12; numbers up to 1e12/,
  );
  assert.throws(() => checkNumbers(graphOf(0.25, 2e12), 'model.onnx'), /layer "last" has a number of 2\.0e\+12/);
});
