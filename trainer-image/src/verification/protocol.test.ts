import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import fc from 'fast-check';
import { groupAcceptRates, verify, verifyGroups, wilson } from './protocol.ts';

/** Embeddings from a linear congruential generator, with which the reference's figures were computed, too. */
function example(pairs: number, dim: number, seed: number): { embeddings: Float32Array; same: boolean[] } {
  let state = seed;
  const draw = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  const embeddings = new Float32Array(2 * pairs * dim);
  const same = Array.from({ length: pairs }, (_, pair) => (pair * 7) % 10 < 5);
  for (let pair = 0; pair < pairs; pair++) {
    const [a, b] = [2 * pair * dim, (2 * pair + 1) * dim];
    for (let i = 0; i < dim; i++) embeddings[a + i] = draw();
    for (let i = 0; i < dim; i++) embeddings[b + i] = same[pair] ? embeddings[a + i]! + 1.4 * draw() : draw();
  }
  return { embeddings, same };
}

/** By insightface's lines of NumPy 2.4, scikit-learn 1.9's KFold(10), normalize and roc_curve. */
const golden = [
  {
    pairs: 103,
    dim: 8,
    seed: 1,
    accuracy: 0.8445454545454545,
    std: 0.10135038641488389,
    threshold: 1.299,
    tarAtFar: { '1e-3': 0.3269230769230769 },
  },
  {
    pairs: 600,
    dim: 16,
    seed: 7,
    accuracy: 0.8933333333333333,
    std: 0.04484541349024568,
    threshold: 1.312,
    tarAtFar: { '1e-1': 0.9066666666666666, '1e-2': 0.6166666666666667, '1e-3': 0.32 },
  },
  {
    pairs: 2503,
    dim: 32,
    seed: 9,
    accuracy: 0.9696318725099602,
    std: 0.006758096576359912,
    threshold: 1.297,
    tarAtFar: { '1e-1': 0.9936102236421726, '1e-2': 0.9249201277955271, '1e-3': 0.7827476038338658 },
  },
  { pairs: 10, dim: 4, seed: 3, accuracy: 0.7, std: 0.45825756949558405, threshold: 0.426, tarAtFar: { '1e-3': 0.6 } },
];

const close = (actual: number, expected: number) =>
  assert.ok(Math.abs(actual - expected) < 1e-12, `${actual} is not ${expected}`);

test("insightface's figures", () => {
  for (const { pairs, dim, seed, accuracy, std, threshold, tarAtFar } of golden) {
    const { embeddings, same } = example(pairs, dim, seed);
    const result = verify(embeddings, dim, same);
    assert.equal(result.pairs, pairs);
    close(result.accuracy, accuracy);
    close(result.std, std);
    close(result.threshold, threshold);
    for (const [rate, value] of Object.entries(tarAtFar)) close(result.tarAtFar[rate]!, value);
  }
});

test('only false accept rates that the number of pairs can resolve, and 1e-3', () => {
  const rates = (pairs: number) =>
    Object.keys(verify(example(pairs, 4, 5).embeddings, 4, example(pairs, 4, 5).same).tarAtFar);
  assert.deepEqual(rates(10), ['1e-3']);
  assert.deepEqual(rates(20), ['1e-1', '1e-3']);
  assert.deepEqual(rates(200), ['1e-1', '1e-2', '1e-3']);
});

test('perfect, useless and reversed embeddings', () => {
  const same = Array.from({ length: 40 }, (_, i) => i % 3 === 0);
  const vectors = (far: (pair: number) => boolean) =>
    Float32Array.from(same.flatMap((_, pair) => [1, 0, far(pair) ? -3 : 2, 0]));
  const perfect = verify(
    vectors((pair) => !same[pair]),
    2,
    same,
  );
  const { pairs, accuracy, std, tarAtFar } = perfect;
  assert.deepEqual(
    { pairs, accuracy, std, tarAtFar },
    { pairs: 40, accuracy: 1, std: 0, tarAtFar: { '1e-1': 1, '1e-3': 1 } },
  );
  close(perfect.threshold, 0.01); // The first of several equally good thresholds.
  const useless = verify(
    vectors(() => false),
    2,
    same,
  );
  close(useless.accuracy, 26 / 40); // Always "different", which is correct more often.
  assert.equal(useless.tarAtFar['1e-3'], 0);
  assert.equal(
    verify(
      vectors((pair) => same[pair]!),
      2,
      same,
    ).tarAtFar['1e-1'],
    0,
  );
});

test('an embedding of length zero, or not finite, is an error that names the picture', () => {
  for (const [value, text] of [
    [0, '0'],
    [NaN, 'NaN'],
    [Infinity, 'Infinity'],
  ] as const) {
    const { embeddings, same } = example(12, 4, 5);
    embeddings.fill(value, 7 * 4, 8 * 4);
    assert.throws(
      () => verify(embeddings, 4, same),
      (error) =>
        error instanceof FacetrainError &&
        error.code === 'NotANumber' &&
        error.message.startsWith(`embedding of picture 7: its length is ${text};`),
    );
  }
});

/** The protocol, written directly from its definition. */
function naive(
  embeddings: Float32Array,
  dim: number,
  same: boolean[],
): { accuracies: number[]; tar: (far: number) => number } {
  const unit = (picture: number) => {
    const vector = [...embeddings.subarray(picture * dim, (picture + 1) * dim)];
    const length = Math.hypot(...vector);
    return vector.map((x) => x / length);
  };
  const distance = same.map((_, pair) => {
    const [a, b] = [unit(2 * pair), unit(2 * pair + 1)];
    return a.reduce((sum, x, i) => sum + (x - b[i]!) ** 2, 0);
  });
  const accuracy = (pairs: number[], threshold: number) =>
    pairs.filter((pair) => distance[pair]! < threshold === same[pair]).length / pairs.length;
  const all = same.map((_, pair) => pair);
  const accuracies: number[] = [];
  let start = 0;
  for (let fold = 0; fold < 10; fold++) {
    const size = Math.floor(all.length / 10) + (fold < all.length % 10 ? 1 : 0);
    const testing = all.slice(start, start + size);
    const training = all.filter((pair) => !testing.includes(pair));
    start += size;
    let best = 0;
    for (let t = 1; t < 400; t++) if (accuracy(training, t * 0.01) > accuracy(training, best * 0.01)) best = t;
    accuracies.push(accuracy(testing, best * 0.01));
  }
  const tar = (far: number) => {
    const rate = (threshold: number, kind: boolean) =>
      all.filter((pair) => same[pair] === kind && distance[pair]! < threshold).length /
      same.filter((s) => s === kind).length;
    return Math.max(
      0,
      ...distance
        .filter((threshold) => rate(threshold, false) <= far + 1e-12)
        .map((threshold) => rate(threshold, true)),
    );
  };
  return { accuracies, tar };
}

test('property: equal to the definition, up to rounding', () => {
  const input = fc.integer({ min: 11, max: 45 }).chain((pairs) =>
    fc.record({
      same: fc.array(fc.boolean(), { minLength: pairs, maxLength: pairs }).map((same) => [true, false, ...same]),
      embeddings: fc.array(fc.double({ min: -1, max: 1, noNaN: true }), {
        minLength: (pairs + 2) * 6,
        maxLength: (pairs + 2) * 6,
      }),
    }),
  );
  fc.assert(
    fc.property(input, ({ same, embeddings }) => {
      const vectors = Float32Array.from(embeddings, (x, i) => x + (i % 3 === 0 ? 2 : 0)); // never zero
      const result = verify(vectors, 3, same);
      const { accuracies, tar } = naive(vectors, 3, same);
      close(result.accuracy, accuracies.reduce((a, b) => a + b) / 10);
      close(result.std, Math.sqrt(accuracies.reduce((sum, a) => sum + (a - result.accuracy) ** 2, 0) / 10));
      for (const [rate, value] of Object.entries(result.tarAtFar)) close(value, tar(Number(rate)));
    }),
    { numRuns: 60 },
  );
});

test('rates down to 1e-6 where there are as many pairs of different people, and the others are named', () => {
  const pairs = 20_020;
  const same = Array.from({ length: pairs }, (_, pair) => pair < 20);
  // Pair i of different people is i / pairs apart, so the threshold of a rate is known.
  const angle = (pair: number) => (same[pair] ? 0.1 : 0.2 + pair / pairs);
  const embeddings = Float32Array.from(same.flatMap((_, pair) => [1, 0, Math.cos(angle(pair)), Math.sin(angle(pair))]));
  const found = verify(embeddings, 2, same);
  assert.deepEqual(found.tarAtFar, { '1e-1': 1, '1e-2': 1, '1e-3': 1, '1e-4': 1 });
  assert.deepEqual(found.unresolvedFar, { '1e-5': 100_000, '1e-6': 1_000_000 });
  assert.deepEqual([found.positives, found.negatives], [20, 20_000]);
  assert.deepEqual(Object.keys(found.intervals.tarAtFar), Object.keys(found.tarAtFar));
});

test("Wilson's intervals", () => {
  // By statsmodels 0.15, proportion_confint(method='wilson').
  const cases: [hits: number, all: number, want: [number, number]][] = [
    [540, 600, [0.8734, 0.9216]],
    [20, 20, [0.8389, 1]],
    [0, 300, [0, 0.0126]],
  ];
  for (const [hits, all, want] of cases)
    wilson(hits, all).forEach((value, i) => {
      assert.ok(Math.abs(value - want[i]!) < 1e-4, `${hits} of ${all}: ${value}, not ${want[i]}`);
    });
});

test('errors by norm: a quarter of the pairs each, the shortest embeddings first', () => {
  const { embeddings, same } = example(40, 8, 3);
  // Pairs 0 to 9 are short, and wrong: their two pictures are the same if they should not be.
  for (let pair = 0; pair < 10; pair++) {
    const [a, b] = [2 * pair * 8, (2 * pair + 1) * 8];
    for (let i = 0; i < 8; i++) {
      embeddings[a + i]! *= 0.01;
      embeddings[b + i] = (same[pair] ? -1 : 1) * embeddings[a + i]!;
    }
  }
  const { byNorm } = verify(embeddings, 8, same);
  assert.deepEqual(
    byNorm.map(({ pairs }) => pairs),
    [10, 10, 10, 10],
  );
  assert.equal(byNorm[0]!.errors, 10);
  assert.ok(byNorm[0]!.to < 0.1 && byNorm[1]!.from > byNorm[0]!.to && byNorm[3]!.to >= byNorm[3]!.from);
});

test('groups are judged at the threshold of the whole set', () => {
  const same = [true, true, false, false, true, false];
  const embeddings = Float32Array.from([1, 1, 0, 1, 1, 0].flatMap((near) => [1, 0, near ? 1 : 0, near ? 0 : 1]));
  const groups = ['a', 'a', 'a', 'a', 'b', 'b'];
  const found = verifyGroups(embeddings, 2, same, groups, 1).map(({ interval: _, ...figures }) => figures);
  assert.deepEqual(found, [
    { group: 'a', pairs: 4, accuracy: 0.75, falseAcceptRate: 0.5, falseRejectRate: 0 },
    { group: 'b', pairs: 2, accuracy: 1, falseAcceptRate: 0, falseRejectRate: 0 },
  ]);
  const [positivesOnly] = verifyGroups(embeddings, 2, same, ['p', 'p', 'n', 'n', 'n', 'n'], 1).slice(1);
  assert.deepEqual([positivesOnly?.group, positivesOnly?.falseAcceptRate], ['p', null]);
});

test('true accept rates of groups are those at the thresholds of the whole set', () => {
  // Group "far" has its pairs of one person at a wider angle than one in ten of the different people.
  const kinds = [
    ...new Array(10).fill({ group: 'near', isSame: true, angle: 0.1 }),
    ...new Array(4).fill({ group: 'far', isSame: true, angle: 1.2 }),
    { group: 'far', isSame: true, angle: 0.2 },
    ...new Array(18).fill({ group: 'near', isSame: false, angle: 1.5 }),
    ...new Array(2).fill({ group: 'different', isSame: false, angle: 1 }),
  ];
  const embeddings = Float32Array.from(kinds.flatMap(({ angle }) => [1, 0, Math.cos(angle), Math.sin(angle)]));
  const [same, groups] = [kinds.map(({ isSame }) => isSame), kinds.map(({ group }) => group)];
  const found = groupAcceptRates(embeddings, 2, same, groups);
  assert.deepEqual(Object.fromEntries(found), {
    near: { positives: 10, tarAtFar: { '1e-1': 1, '1e-3': 1 } },
    far: { positives: 5, tarAtFar: { '1e-1': 1, '1e-3': 0.2 } },
    different: { positives: 0, tarAtFar: {} },
  });
});
