/** The comparison of two models, and the gate. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Metrics } from '@facetrain/api';
import { noise } from '../testing/onnx-oracles.ts';
import { checkGate, compareOnSet, cosines, summarize } from './compare.ts';

const NONE = { maxAccuracyDrop: null, minMeanCosine: null };

test('cosines are those of each row', () => {
  const found = cosines(Float32Array.of(1, 0, 3, 4, -2, 0), Float32Array.of(2, 0, 4, 3, 5, 0), 2);
  assert.deepEqual(Array.from(found), [1, 24 / 25, -1]);
});

test('a zero embedding, or one that is not finite, has no cosine', () => {
  const fine = Float32Array.of(1, 0, 3, 4);
  for (const [value, shown] of [
    [0, '0'],
    [NaN, 'NaN'],
    [Infinity, 'Infinity'],
  ] as const) {
    const broken = Float32Array.of(1, 0, value, value);
    assert.throws(() => cosines(fine, broken, 2), {
      code: 'NotANumber',
      message: `INT7 model: embedding of picture 1: its length is ${shown}; a finite vector that is not zero`,
    });
    assert.throws(() => cosines(broken, fine, 2), /^FacetrainError: FP32 model: embedding of picture 1: /);
  }
});

/**
 * Twenty pairs of 8-dimensional embeddings: those of one person differ a little. `spoil` swaps the second pictures of
 * that many pairs around.
 */
function embeddings(spoil = 0) {
  const dim = 8;
  const same = Array.from({ length: 20 }, (_, pair) => pair % 2 === 0);
  const plain = noise(40 * dim);
  const random = plain.slice();
  same.forEach((alike, pair) => {
    const first = 2 * pair * dim;
    if (alike)
      for (let at = 0; at < dim; ++at) plain[first + dim + at] = plain[first + at]! + 0.05 * random[first + dim + at]!;
  });
  for (let pair = 0; pair < 2 * spoil; pair += 2)
    plain.set(random.subarray((2 * pair + 1) * dim, (2 * pair + 2) * dim), (2 * pair + 1) * dim);
  return { dim, same, set: { plain, mirrored: plain.map((value) => value * 2) } };
}

describe('two models on a set', () => {
  const { dim, same, set } = embeddings();

  test('that are the same lose no accuracy', () => {
    const { comparison, cosines: all } = compareOnSet('set', same, dim, set, set);
    assert.equal(comparison.fp32.accuracy, 1);
    assert.equal(comparison.drop, 0);
    assert.equal(all.length, 80, 'mirror images count');
    assert.ok(all.every((cosine) => Math.abs(cosine - 1) < 1e-12));
  });

  test('lose accuracy when one of them changes pairs', () => {
    const { comparison, cosines: all } = compareOnSet('set', same, dim, set, embeddings(3).set);
    assert.ok(comparison.drop > 0.05);
    assert.equal(comparison.drop, comparison.fp32.accuracy - comparison.int7.accuracy);
    assert.equal(
      Array.from(all).filter((cosine) => cosine < 0.999).length,
      6,
      'three pictures and their mirror images',
    );
    const metrics = summarize([comparison], all, 'evaluation');
    assert.equal(metrics.accuracyDrop, comparison.drop);
    assert.equal(metrics.percentile1Cosine, Math.min(...all));
    assert.equal(metrics.meanCosine, comparison.meanCosine);
    Metrics.parse(metrics);
  });
});

test('without sets there is no accuracy to drop', () => {
  assert.deepEqual(summarize([], Float64Array.of(0.9, 1), 'heldOut'), {
    meanCosine: 0.95,
    percentile1Cosine: 0.9,
    accuracyDrop: null,
    comparisons: [],
    measuredOn: { source: 'heldOut', pictures: 2 },
  });
});

describe('the gate', () => {
  const accuracy = (value: number) => ({ accuracy: value, std: 0, threshold: 1, tarAtFar: {} });
  const metrics = (drop: number, meanCosine: number): Metrics => ({
    meanCosine,
    percentile1Cosine: meanCosine,
    accuracyDrop: drop,
    comparisons: [{ set: 'lfw', pairs: 600, fp32: accuracy(0.98), int7: accuracy(0.98 - drop), drop, meanCosine }],
  });
  const cases = [
    { name: 'no bounds', bounds: NONE, metrics: metrics(0.5, -1), failures: [] },
    {
      name: 'both kept, to the last digit',
      bounds: { maxAccuracyDrop: 0.01, minMeanCosine: 0.98 },
      metrics: metrics(0.01, 0.98),
      failures: [],
    },
    {
      name: 'a fall as large as the bound, by rounded accuracies',
      bounds: { ...NONE, maxAccuracyDrop: 0.01 },
      metrics: metrics(0.98 - 0.97, 1),
      failures: [],
    },
    {
      name: 'accuracy missed',
      bounds: { ...NONE, maxAccuracyDrop: 0.01 },
      metrics: metrics(0.02, 1),
      failures: ['accuracy on lfw falls by 0.0200 (0.9800 to 0.9600), more than maxAccuracyDrop 0.01'],
    },
    {
      name: 'cosine missed',
      bounds: { ...NONE, minMeanCosine: 0.99 },
      metrics: metrics(0, 0.98),
      failures: ['the mean cosine of embeddings is 0.9800, less than minMeanCosine 0.99'],
    },
    {
      name: 'accuracy missed by little',
      bounds: { ...NONE, maxAccuracyDrop: 0.01 },
      metrics: metrics(0.01003, 1),
      failures: ['accuracy on lfw falls by 0.01003 (0.98000 to 0.96997), more than maxAccuracyDrop 0.01'],
    },
    {
      name: 'cosine missed by little',
      bounds: { ...NONE, minMeanCosine: 0.99999 },
      metrics: metrics(0, 0.999986),
      failures: ['the mean cosine of embeddings is 0.999986, less than minMeanCosine 0.99999'],
    },
    {
      name: 'no number',
      bounds: { ...NONE, minMeanCosine: -1 },
      metrics: metrics(0, NaN),
      failures: ['the mean cosine of embeddings is NaN, less than minMeanCosine -1'],
    },
  ];
  for (const { name, bounds, metrics: found, failures } of cases) {
    test(name, () =>
      assert.deepEqual(checkGate(bounds, found), { ...bounds, passed: failures.length === 0, failures }),
    );
  }
});
