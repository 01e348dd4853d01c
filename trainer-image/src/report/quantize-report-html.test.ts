import assert from 'node:assert/strict';
import { test } from 'node:test';
import { QuantizeReport } from '@facetrain/api';
import { renderQuantizeReport } from './quantize-report-html.ts';

function report(change: Partial<QuantizeReport> = {}): QuantizeReport {
  const accuracy = (value: number) => ({
    accuracy: value,
    std: 0.011,
    threshold: 1.46,
    tarAtFar: { '1e-3': value - 0.05 },
  });
  return QuantizeReport.parse({
    schemaVersion: 1,
    job: { name: 'faces-quantize', uid: 'u', attempt: 2 },
    source: { sha256: 'a'.repeat(64), bytes: 4 * 2 ** 20, channelOrder: 'bgr', parameters: 1_190_000 },
    model: { sha256: 'b'.repeat(64), bytes: 2 ** 20 },
    calibration: { images: 50, seed: 7, sha256: 'c'.repeat(64) },
    search: { rounds: 2, candidates: 100, lower: 0.5, upper: 2, equalize: true, biasCorrection: true },
    layers: [
      {
        name: 'conv_0',
        kind: 'conv',
        bits: 7,
        macs: 21_676_032,
        cosineStart: 0.98,
        cosine: 0.9912,
        inputScale: 0.0159,
        saturation: 0.0123,
        weightSumMax: 1234,
      },
      {
        name: 'prelu_0',
        kind: 'pointwise',
        bits: 8,
        macs: 0,
        cosineStart: 1,
        cosine: 1,
        inputScale: 0.03,
        saturation: 0,
        weightSumMax: null,
      },
    ],
    errorSplit: { source: 'heldOut', pictures: 50, weights: 0.9961, operands: 0.9902, others: 0.9987, all: 0.9885 },
    metrics: {
      meanCosine: 0.98848,
      percentile1Cosine: 0.9712,
      accuracyDrop: 0.0033,
      comparisons: [
        { set: 'lfw', pairs: 600, fp32: accuracy(0.9817), int7: accuracy(0.9784), drop: 0.0033, meanCosine: 0.98848 },
      ],
      measuredOn: { source: 'evaluation', pictures: 2400 },
    },
    gate: { maxAccuracyDrop: 0.01, minMeanCosine: null, passed: true, failures: [] },
    ...change,
  });
}

test('the page shows the figures, loads no other file and has no script', () => {
  const html = renderQuantizeReport(report());
  for (const text of [
    'Gate passed',
    '2,400 pictures of the verification sets',
    'accuracy drop at most 1.00 pt',
    '4.00 → 1.00 MiB, 25 %',
    '1.19 M parameters, BGR',
    '98.17 %',
    '97.84 %',
    '0.33 pt',
    '93.17 % → 92.84 %',
    '0.9885',
    '0.9712',
    '0.9912',
    '1.23 %',
    '21.7 M',
    '1,234',
    'seed 7',
    'one part in integers, the rest FP32; 50 held-out pictures',
    '0.9961',
    '8.03°', // of the operands: acos(0.9902)
  ]) {
    assert.ok(html.includes(text), `${text} is missing`);
  }
  assert.equal(html.match(/<svg/g)?.length, 7, 'multiplications of one layer, angles of both and of four parts');
  assert.doesNotMatch(html, /NaN|undefined|Infinity|<script|https?:|\burl\(|@import/);
});

test('the paper’s search alone stands beside the model, output by output', () => {
  const metrics = (meanCosine: number) => ({
    ...{ meanCosine, percentile1Cosine: meanCosine - 0.01, worstCosine: meanCosine - 0.02, accuracyDrop: null },
    comparisons: [],
    outputs: [
      {
        name: '<boxes>',
        meanCosine: meanCosine + 0.001,
        percentile1Cosine: 0.9,
        worstCosine: 0.8765,
        top1Agreement: null,
      },
    ],
    measuredOn: { source: 'heldOut' as const, pictures: 50 },
  });
  const html = renderQuantizeReport(report({ metrics: metrics(0.99), paperSearch: metrics(0.97) }));
  for (const [what, ours, theirs] of [
    ['Mean cosine', '0.9900', '0.9700'],
    ['Worst of all', '0.9700', '0.9500'],
    ['Mean cosine of &#60;boxes&#62;', '0.9910', '0.9710'],
  ])
    assert.match(html, new RegExp(`${what}.{0,20}${ours}.{0,20}${theirs}`), what);
  assert.match(html, /0\.8765/, 'the worst cosine of an output');
  assert.doesNotMatch(html, /NaN|undefined/);
  assert.doesNotMatch(renderQuantizeReport(report()), /The paper’s search/);
});

test('a budget is suggested where operands of 7 bits lose most, the cosine is low and there is none', () => {
  const hint = (change: Partial<QuantizeReport>) => /--budget/.test(renderQuantizeReport(report(change)));
  const { search, metrics, errorSplit } = report();
  assert.equal(hint({}), true);
  assert.equal(hint({ search: { ...search, budget: 0.5 } }), false);
  assert.equal(hint({ metrics: { ...metrics, meanCosine: 0.991 } }), false);
  assert.equal(hint({ errorSplit: { ...errorSplit!, weights: 0.98 } }), false);
});

test('both models on each set, the worst pictures, sizes, times and what was folded', () => {
  const histogram = (counts: number[]) => ({ min: 0, max: 3, sum: 6, sumOfSquares: 9, counts });
  const scores = (tar: number) => ({
    roc: [
      [0.001, tar],
      [1, 1],
    ] as [number, number][],
    same: histogram([1, 2, 3]),
    different: histogram([3, 2, 1]),
  });
  const found = report({
    folded: [{ node: 'bn_0', into: ['conv_0', 'conv_1'] }],
    sizes: { channels: 128, aimBytes: 2 ** 20 + 2048, files: { 'model.int7.onnx': 2 ** 20 } },
    latency: [
      { target: 'x86 with AVX2', milliseconds: 4.1, basis: 'measured' },
      { target: 'Cortex-A55 at 2 GHz, dot products', milliseconds: 30, basis: 'simulated' },
    ],
    scores: [{ set: 'lfw', fp32: scores(0.9), int7: scores(0.8) }],
    angles: histogram([5, 1, 0]),
    worstPictures: [
      { set: 'lfw', picture: 7, mirrored: true, cosine: 0.8123 },
      { set: null, picture: 4000, mirrored: false, cosine: 0.9 },
    ],
  });
  const html = renderQuantizeReport(found, ['data:image/bmp;base64,AAAA', 'data:image/bmp;base64,BBBB']);
  for (const text of [
    'bn_0</td><td>conv_0, conv_1',
    '16 bytes for each of 128 output channels',
    '1.00 MiB',
    'about 4.1 ms',
    'more than 30 ms',
    'aria-label="ROC of lfw"',
    'lfw, pair 3, right, mirrored',
    '<img src="data:image/bmp;base64,AAAA" alt="lfw, pair 3, right, mirrored" class="mirrored">',
    '0.8123',
    'picture 4,000',
  ])
    assert.ok(html.includes(text), `${text} is missing`);
  assert.equal(html.match(/<polyline/g)?.length, 7, 'two models in a ROC and two histograms, and angles');
  assert.doesNotMatch(html, /NaN|undefined|Infinity|<script|https?:|\burl\(|@import/);
});

test('groups of pairs, the largest drop first', () => {
  const found = report();
  const of = (accuracy: number) => ({ accuracy, falseAcceptRate: null, falseRejectRate: 1 - accuracy });
  const group = (name: string, drop: number) => ({
    ...{ group: name, pairs: 1200, fp32: of(0.95), int7: of(0.95 - drop), drop, positives: 600 },
    tarAtFar: { '1e-1': [1, 1], '1e-2': [0.9, 0.9 - drop] } as Record<string, [number, number]>,
  });
  const [comparison] = found.metrics.comparisons;
  const groups = [group('young', 0.001), group('o<d', 0.04)];
  const html = renderQuantizeReport({
    ...found,
    metrics: { ...found.metrics, comparisons: [{ ...comparison!, groups }] },
    gate: {
      ...{ maxAccuracyDrop: null, minMeanCosine: null, maxGroupAccuracyDrop: 0.05, maxGroupTarDrop: 0.1 },
      ...{ passed: true, failures: [] },
    },
  });
  assert.match(html, /By group.*o&#60;d.*1,200.*95\.00 %.*91\.00 %.*4\.00 pt.*– → –.*5\.00 % → 9\.00 %.*young/s);
  assert.match(html, /90\.00 % → 86\.00 % at 1e-2.*young/s);
  assert.match(html, /Gate passed<\/b> accuracy drop of any group at most 5\.00 pt, drop of any group’s true/);
  assert.match(html, /true accept rate at most 10\.00 pt\./);
  assert.doesNotMatch(renderQuantizeReport(found), /By group/);
});

test('a missed gate lists the bounds that were missed', () => {
  const html = renderQuantizeReport(
    report({
      gate: { maxAccuracyDrop: 0.001, minMeanCosine: null, passed: false, failures: ['accuracy on lfw falls'] },
    }),
  );
  assert.match(html, /Gate missed.*<li>accuracy on lfw falls<\/li>/s);
  assert.doesNotMatch(html, /Gate passed/);
});

test('a gate shows each of its bounds, and what easy sets are', () => {
  const bounds = { maxAccuracyDrop: null, minMeanCosine: null, maxTarDrop: 0.02, minWorstCosine: 0.9 };
  const html = renderQuantizeReport(report({ gate: { ...bounds, passed: true, failures: [], easySets: true } }));
  assert.match(html, /Gate passed<\/b> drop of the true accept rate at most 2\.00 [^,]*, worst cosine at least 0\.9\./);
  // LFW is easy by its name, also for an FP32 model that makes many errors on it.
  assert.match(html, /sets are easy: a well trained FP32 model makes few errors on them/);
});

test('without sets, bounds or layers the page is complete', () => {
  const metrics = { meanCosine: 1, percentile1Cosine: 1, accuracyDrop: null, comparisons: [] };
  const html = renderQuantizeReport(
    report({ metrics, layers: [], gate: { maxAccuracyDrop: null, minMeanCosine: null, passed: true, failures: [] } }),
  );
  assert.match(html, /No gate/);
  assert.doesNotMatch(html, /NaN|undefined|Infinity|Verification/);
});

test('names are text, never markup', () => {
  const hostile = '<img src=x onerror="alert(1)">&\'';
  const found = report();
  const html = renderQuantizeReport({
    ...found,
    job: { ...found.job, name: hostile },
    layers: found.layers.map((layer) => ({ ...layer, name: hostile })),
    metrics: {
      ...found.metrics,
      comparisons: found.metrics.comparisons.map((comparison) => ({
        ...comparison,
        set: hostile,
        fp32: { ...comparison.fp32, tarAtFar: { [hostile]: 1 } },
      })),
    },
    gate: { ...found.gate, passed: false, failures: [hostile] },
  });
  assert.ok(!html.includes('<img'));
  assert.ok(html.includes('&#60;img'));
});
