/** The comparison of two models, and the gate. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Metrics } from '@facetrain/api';
import { noise } from '../testing/onnx-oracles.ts';
import { fewestPairs } from '../verification/gate-pairs.ts';
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
    const same = [true];
    const compare = (mirrored: Float32Array) =>
      compareOnSet({ name: 'lfw', same }, 2, { plain: fine, mirrored: fine }, { plain: fine, mirrored });
    assert.throws(
      () => compare(broken),
      /^FacetrainError: INT7 model: embedding of picture 1 of set "lfw", mirrored: its length is /,
    );
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

  test('are compared on each group, at the threshold of each on the whole set', () => {
    // Pairs 0, 2 and 4 of one person are spoilt: all of group "hard".
    const groups = same.map((_, pair) => (pair < 6 ? 'hard' : 'easy'));
    const { comparison } = compareOnSet({ name: 'set', same, groups }, dim, set, embeddings(3).set);
    const of = (accuracy: number, falseRejectRate: number) => ({ accuracy, falseAcceptRate: 0, falseRejectRate });
    const found = comparison.groups?.map(({ drop, positives, tarAtFar, ...group }) => {
      assert.equal(drop, group.fp32.accuracy - group.int7.accuracy);
      const isHard = group.group === 'hard';
      assert.equal(positives, same.filter((isSame, pair) => isSame && groups[pair] === group.group).length);
      assert.deepEqual(tarAtFar, { '1e-1': [1, isHard ? 0 : 1], '1e-3': [1, isHard ? 0 : 1] });
      return group;
    });
    assert.deepEqual(found, [
      { group: 'easy', pairs: 14, fp32: of(1, 0), int7: of(1, 0) },
      { group: 'hard', pairs: 6, fp32: of(1, 0), int7: of(0.5, 1) },
    ]);
    assert.equal(compareOnSet({ name: 'set', same }, dim, set, set).comparison.groups, undefined);
  });

  test('that are the same lose no accuracy', () => {
    const { comparison, cosines: all } = compareOnSet({ name: 'set', same }, dim, set, set);
    assert.equal(comparison.fp32.accuracy, 1);
    assert.equal(comparison.drop, 0);
    assert.equal(all.length, 80, 'mirror images count');
    assert.ok(all.every((cosine) => Math.abs(cosine - 1) < 1e-12));
  });

  test('lose accuracy when one of them changes pairs', () => {
    const { comparison, cosines: all } = compareOnSet({ name: 'set', same }, dim, set, embeddings(3).set);
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
    worstCosine: 0.9,
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
    comparisons: [{ set: 'cfp_fp', pairs: 600, fp32: accuracy(0.98), int7: accuracy(0.98 - drop), drop, meanCosine }],
  });
  const rates = (tarAtFar: Record<string, [fp32: number, int7: number]>): Metrics => {
    const at = (index: 0 | 1) => ({
      ...accuracy(0.95),
      tarAtFar: Object.fromEntries(Object.entries(tarAtFar).map(([rate, values]) => [rate, values[index]])),
    });
    const comparison = { set: 'cfp_fp', pairs: 600, fp32: at(0), int7: at(1), drop: 0, meanCosine: 1 };
    return { ...metrics(0, 1), comparisons: [comparison] };
  };
  const unresolved = (tarAtFar: Parameters<typeof rates>[0]): Metrics => {
    const found = rates(tarAtFar);
    return { ...found, comparisons: [{ ...found.comparisons[0]!, negatives: 300, unresolvedFar: ['1e-3'] }] };
  };
  const grouped = (groups: Record<string, [pairs: number, fp32: number, int7: number]>): Metrics => {
    const of = (value: number) => ({ accuracy: value, falseAcceptRate: 0, falseRejectRate: 0 });
    const found = Object.entries(groups).map(([group, [pairs, fp32, int7]]) => ({
      ...{ group, pairs, fp32: of(fp32), int7: of(int7), drop: fp32 - int7 },
    }));
    const all = metrics(0, 1);
    return { ...all, comparisons: [{ ...all.comparisons[0]!, groups: found }] };
  };
  /** At a false accept rate of one in a hundred. */
  const ratesOfGroups = (
    groups: Record<string, [positives: number, fp32: number, int7: number]>,
    unresolvedFar?: string[],
  ): Metrics => {
    const found = grouped(Object.fromEntries(Object.keys(groups).map((group) => [group, [600, 1, 1]])));
    const [comparison] = found.comparisons;
    const withRates = comparison!.groups!.map((group) => {
      const [positives, fp32, int7] = groups[group.group]!;
      return { ...group, positives, tarAtFar: { '1e-2': [fp32, int7] as [number, number] } };
    });
    const few = unresolvedFar && { negatives: 90, unresolvedFar };
    return { ...found, comparisons: [{ ...comparison!, ...few, groups: withRates }] };
  };
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
      failures: ['accuracy on cfp_fp falls by 0.0200 (0.9800 to 0.9600), more than maxAccuracyDrop 0.01'],
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
      failures: ['accuracy on cfp_fp falls by 0.01003 (0.98000 to 0.96997), more than maxAccuracyDrop 0.01'],
    },
    {
      name: 'cosine missed by little',
      bounds: { ...NONE, minMeanCosine: 0.99999 },
      metrics: metrics(0, 0.999986),
      failures: ['the mean cosine of embeddings is 0.999986, less than minMeanCosine 0.99999'],
    },
    {
      name: 'a true accept rate missed at one of two rates, though accuracy is kept',
      bounds: { ...NONE, maxAccuracyDrop: 0, maxTarDrop: 0.02 },
      metrics: rates({ '1e-1': [0.99, 0.97], '1e-2': [0.9, 0.87] }),
      failures: [
        'the true accept rate at 1e-2 on cfp_fp falls by 0.0300 (0.9000 to 0.8700), more than maxTarDrop 0.02',
      ],
    },
    {
      name: 'a fall at a rate for which the set has too few pairs is not judged',
      bounds: { ...NONE, maxTarDrop: 0.02 },
      metrics: unresolved({ '1e-1': [0.99, 0.98], '1e-3': [0.9, 0.2] }),
      failures: [],
      notJudged: [
        'maxTarDrop does not judge cfp_fp at 1e-3: it has 300 pairs of different people, too few for this rate',
      ],
    },
    {
      name: 'a group that loses too much, though the set does not',
      bounds: { ...NONE, maxAccuracyDrop: 0.01, maxGroupAccuracyDrop: 0.02 },
      metrics: grouped({ old: [50, 0.9, 0.86], young: [550, 0.99, 0.98] }),
      failures: [
        'accuracy on group old of cfp_fp falls by 0.0400 (0.9000 to 0.8600, 50 pairs), more than ' +
          'maxGroupAccuracyDrop 0.02',
      ],
    },
    {
      name: 'a group of which one pair is more than the bound is not judged',
      bounds: { ...NONE, maxGroupAccuracyDrop: 0.02 },
      metrics: grouped({ old: [49, 0.9, 0.2], young: [550, 0.99, 0.97] }),
      failures: [],
      notJudged: ['maxGroupAccuracyDrop does not judge groups of cfp_fp with fewer than 50 pairs: old (49)'],
    },
    {
      name: 'a set without groups is not judged by them',
      bounds: { ...NONE, maxGroupAccuracyDrop: 0.02 },
      metrics: metrics(0, 1),
      failures: [],
      notJudged: ['maxGroupAccuracyDrop does not judge cfp_fp: it has no groups'],
    },
    {
      name: 'a bound of zero is missed by a single pair',
      bounds: { ...NONE, maxGroupAccuracyDrop: 0 },
      metrics: grouped({ old: [1, 1, 0] }),
      failures: [
        'accuracy on group old of cfp_fp falls by 1.0000 (1.0000 to 0.0000, 1 pair), more than ' +
          'maxGroupAccuracyDrop 0',
      ],
    },
    {
      name: 'a true accept rate of a group that falls too far, though that of the set does not',
      bounds: { ...NONE, maxTarDrop: 0.02, maxGroupTarDrop: 0.05 },
      metrics: ratesOfGroups({ old: [20, 0.9, 0.8], young: [280, 0.99, 0.95] }),
      failures: [
        'the true accept rate at 1e-2 on group old of cfp_fp falls by 0.1000 (0.9000 to 0.8000, 20 pairs of one ' +
          'person), more than maxGroupTarDrop 0.05',
      ],
    },
    {
      name: 'a group with few pairs of one person, and a rate of a set with few of different people, are not judged',
      bounds: { ...NONE, maxGroupTarDrop: 0.05 },
      metrics: ratesOfGroups({ old: [19, 0.9, 0.1], young: [280, 0.99, 0.1] }, ['1e-2']),
      failures: [],
      notJudged: [
        'maxGroupTarDrop does not judge cfp_fp at 1e-2: it has 90 pairs of different people, too few for this rate',
        'maxGroupTarDrop does not judge groups of cfp_fp with fewer than 20 pairs of one person: old (19)',
      ],
    },
    {
      name: 'worst cosine missed',
      bounds: { ...NONE, minMeanCosine: 0.9, minWorstCosine: 0.9 },
      metrics: { ...metrics(0, 0.98), worstCosine: 0.85 },
      failures: ['the worst cosine of embeddings is 0.8500, less than minWorstCosine 0.9'],
    },
    {
      name: 'other largest numbers of one output of several',
      bounds: { ...NONE, minTop1Agreement: 0.9 },
      metrics: {
        ...metrics(0, 0.98),
        outputs: [
          { name: 'boxes', meanCosine: 1, percentile1Cosine: 1, top1Agreement: null },
          { name: 'classes', meanCosine: 1, percentile1Cosine: 1, top1Agreement: 0.89 },
          { name: 'kinds', meanCosine: 1, percentile1Cosine: 1, top1Agreement: 0.9 },
        ],
      },
      failures: [
        'the largest number of output classes is the same on 0.8900 of the pictures, less than minTop1Agreement 0.9',
      ],
    },
    {
      name: 'other largest numbers of the only output',
      bounds: { ...NONE, minTop1Agreement: 0.9 },
      metrics: { ...metrics(0, 0.98), top1Agreement: 0.5 },
      failures: [
        'the largest number of the output is the same on 0.5000 of the pictures, less than minTop1Agreement 0.9',
      ],
    },
    {
      name: 'no largest number to compare',
      bounds: { ...NONE, minTop1Agreement: 0.9 },
      metrics: metrics(0, 0.98),
      failures: [],
      notJudged: ['minTop1Agreement does not judge the model: it has evaluation sets, or no output that is a vector'],
    },
    {
      name: 'no number',
      bounds: { ...NONE, minMeanCosine: -1 },
      metrics: metrics(0, NaN),
      failures: ['the mean cosine of embeddings is NaN, less than minMeanCosine -1'],
    },
  ];
  for (const { name, bounds, metrics: found, failures, notJudged } of cases) {
    test(name, () =>
      assert.deepEqual(checkGate(bounds, found), {
        ...bounds,
        passed: failures.length === 0,
        failures,
        ...(notJudged && { notJudged }),
      }),
    );
  }

  test('a set of few pairs says which rates it cannot resolve', () => {
    const { dim, same, set } = embeddings();
    const { comparison } = compareOnSet({ name: 'set', same }, dim, set, set);
    assert.deepEqual([comparison.negatives, comparison.unresolvedFar], [10, ['1e-3']]);
    assert.deepEqual(Object.keys(comparison.fp32.tarAtFar), ['1e-1', '1e-3']);
  });

  test('says when all sets are easy, by their names or by the accuracy of FP32', () => {
    const of = (...sets: [set: string, fp32: number][]) => {
      const comparisons = sets.map(([set, value]) => ({
        ...{ set, pairs: 600, fp32: accuracy(value), int7: accuracy(value), drop: 0, meanCosine: 1 },
      }));
      return checkGate(NONE, { ...metrics(0, 1), comparisons }).easySets;
    };
    assert.equal(of(['lfw', 0.98]), true);
    assert.equal(of(['calfw', 0.95], ['ours', 0.995]), true);
    assert.equal(of(['lfw', 0.998], ['cplfw', 0.92]), undefined);
    assert.equal(of(), undefined, 'no sets');
  });

  test('a group needs so many pairs that one of them is no more than the bound', () => {
    assert.deepEqual([0.5, 0.02, 0.07, 0.0003, 1, 0].map(fewestPairs), [2, 50, 15, 3334, 1, 1]);
    // Of every whole number n, 1/n needs n pairs, however it is rounded.
    for (let n = 1; n < 10_000; ++n) assert.equal(fewestPairs(1 / n), n);
  });
});
