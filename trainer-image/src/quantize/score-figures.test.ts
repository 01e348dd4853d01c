/** ROC and histograms of two models on one set. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { noise } from '../testing/onnx-oracles.ts';
import { acceptRates } from '../verification/protocol.ts';
import { rocOf, scoreFigures } from './score-figures.ts';

test('true accept rates are those of the protocol', () => {
  const random = noise(4000);
  const same = Float64Array.from(random.subarray(0, 1000), (value) => Math.min(1, 0.5 + 0.3 * value));
  const different = Float64Array.from(random.subarray(1000), (value) => 0.5 * value);
  const roc = rocOf(same, different);
  const distances = Float64Array.from([...same, ...different], (cosine) => 2 - 2 * cosine);
  const { tarAtFar } = acceptRates(
    distances,
    Array.from(distances, (_, pair) => pair < same.length),
  );
  for (const [far, rate] of [
    [1e-1, '1e-1'],
    [1e-2, '1e-2'],
    [1e-3, '1e-3'],
  ] as const) {
    const [, tar] = roc.findLast(([found]) => found <= far)!;
    const [, next] = roc.find(([found]) => found >= far)!;
    assert.ok(tar <= tarAtFar[rate]! && tarAtFar[rate]! <= next, `${rate}: ${tar}, ${tarAtFar[rate]}, ${next}`);
  }
  assert.deepEqual(roc.at(-1), [1, 1]);
  assert.equal(roc[0]![0], 1 / 3000);
  assert.ok(roc.length < 60);
});

test('histograms of both models have the same bars, and hold every pair', () => {
  const [dim, pairs] = [4, 40];
  const same = Array.from({ length: pairs }, (_, pair) => pair % 2 === 0);
  const fp32 = noise(2 * pairs * dim);
  const int7 = fp32.map((value, i) => value + 0.1 * fp32[(i * 7 + 3) % fp32.length]!);
  const found = scoreFigures('set', same, dim, fp32, int7);
  for (const kind of ['same', 'different'] as const) {
    const [a, b] = [found.fp32[kind], found.int7[kind]];
    assert.deepEqual([a.min, a.max], [b.min, b.max]);
    assert.ok(a.min >= -1 && a.max <= 1);
    for (const { counts } of [a, b])
      assert.equal(
        counts.reduce((sum, n) => sum + n, 0),
        pairs / 2,
      );
  }
  assert.notDeepEqual(found.fp32, found.int7);
});
