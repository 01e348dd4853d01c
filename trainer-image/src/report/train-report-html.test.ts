import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TrainReport } from '@facetrain/api';
import { trainerConfig } from '../testing/training-gang.ts';
import { histogram } from './histogram.ts';
import { niceTicks, trainReportHtml } from './train-report-html.ts';

function report(change: Partial<TrainReport> = {}): TrainReport {
  return TrainReport.parse({
    schemaVersion: 1,
    job: { name: 'faces', uid: 'u', attempt: 1 },
    startedAt: '2026-01-01T00:00:00.000Z',
    finishedAt: '2026-01-01T00:03:20.000Z',
    dataset: { path: '/data', images: 800, identities: 40 },
    model: {
      path: 'model/backbone.onnx',
      sha256: 'a'.repeat(64),
      bytes: 8_300_000,
      parameters: 2_058_304,
      embeddingDim: 512,
    },
    trainers: 2,
    device: 'cpu',
    precision: 'fp16',
    skippedSteps: 3,
    steps: 200,
    resumedFromStep: 50,
    checkpoints: { count: 3, stallSeconds: 0.25, whileTrainingWaited: 1 },
    trainSeconds: 190.4,
    imagesPerSecond: 38.123,
    stageSeconds: {
      data: 0.0002,
      upload: 0.001,
      forward: 0.05,
      head: 0.02,
      backward: 0.1,
      communication: 0.01,
      update: 0.0188,
    },
    lossFirst: 29.51,
    lossLast: 4.25,
    history: Array.from({ length: 150 }, (_, i) => ({
      step: 51 + i,
      epoch: (51 + i) / 25,
      loss: 30 * Math.exp(-i / 40) + Math.sin(i),
      learningRate: 0.02 * (1 - (50 + i) / 200) ** 2,
      imagesPerSecond: 38,
    })),
    evaluations: [100, 150, 200].flatMap((step, i) => [
      {
        set: 'lfw-small',
        step,
        accuracy: 0.7 + i * 0.03,
        std: 0.02,
        threshold: 1.4,
        pairs: 600,
        tarAtFar: { '1e-1': 0.4, '1e-2': 0.125 },
      },
      { set: 'other', step, accuracy: 0.65 + i * 0.02, std: 0.03, threshold: 1.5, pairs: 300, tarAtFar: {} },
    ]),
    config: trainerConfig('/job'),
    ...change,
  });
}

test('the page shows the figures, loads no other file and has no script', () => {
  const html = trainReportHtml(report());
  for (const text of [
    '38.12 pictures/s',
    '29.51 → 4.25',
    '2.058 M parameters',
    '3 min 10 s',
    'from step 50',
    '<dd>FP16; 3 steps skipped, in which a gradient overflowed</dd>',
    '3, for which training stood still for 0.25 s; 1 without memory for a copy of the state',
    '76.00 % ± 2.00',
    '12.50 % @ 1e-2',
    'The loader keeps up.',
    '<td>backward</td><td><span class="wrapped">backward pass of the backbone</span></td><td>100</td>',
    '50.0 %',
    '<td>all</td><td></td><td>200</td>',
  ])
    assert(html.includes(text), `${text} is missing`);
  assert.equal(html.match(/<svg/g)?.length, 4);
  assert.doesNotMatch(html, /NaN|undefined|Infinity|<script|https?:|\burl\(/);
});

test('histograms of norms and angles, of the newest evaluation of a set that has them', () => {
  const of = (values: number[]) => histogram(values);
  const [first, ...others] = report().evaluations.toReversed();
  const histograms = { norm: of([1, 2, 3, 3]), sameAngle: of([10, 20]), differentAngle: of([80, 95, 100]) };
  const html = trainReportHtml(report({ evaluations: [...others.toReversed(), { ...first!, histograms }] }));
  assert.equal(html.match(/<svg/g)?.length, 6);
  assert.match(html, /degrees between the two embeddings of a pair/);
  assert.equal(html.match(/<g class="bars c1">/g)?.length, 1);
  assert.match(html, />10<\/text>.*>100<\/text>/s);
  assert.doesNotMatch(html, /NaN|undefined|Infinity/);
});

test('a training that has collapsed is called so, by its newest evaluation', () => {
  const at = (...differentAngle: number[]) => {
    const histograms = { norm: histogram([1]), sameAngle: histogram([1]), differentAngle: histogram(differentAngle) };
    return { ...report().evaluations[0]!, histograms };
  };
  const words = /hardly tells pictures apart:<\/b> those of /;
  assert.match(trainReportHtml(report({ evaluations: [at(80, 90), at(0.01, 3)] })), words);
  for (const evaluations of [[at(0.01, 3), at(80, 90)], [at(15, 20)], report().evaluations])
    assert.doesNotMatch(trainReportHtml(report({ evaluations })), words);
});

test('bad pictures are named, and those beyond the list are counted', () => {
  const html = trainReportHtml(
    report({
      dataset: {
        path: '/data',
        images: 800,
        identities: 40,
        badPictures: { count: 3, listed: [{ name: '/data/train.rec, record <5>', reason: 'is a GIF' }] },
      },
    }),
  );
  assert.match(html, /<dt>Bad pictures<\/dt><dd>3, left out<\/dd>/);
  assert.match(html, /record &#60;5&#62;.*is a GIF/s);
  assert.match(html, /and 2 more/);
  assert.doesNotMatch(trainReportHtml(report()), /Bad pictures/);
});

test('names and configuration are text, never markup', () => {
  const hostile = '<img src=x onerror="alert(1)">&\'';
  const config = trainerConfig('/job');
  const html = trainReportHtml(
    report({
      job: { name: hostile, uid: hostile, attempt: 0 },
      config: {
        ...config,
        dataset: { ...config.dataset, path: hostile },
        model: { ...config.model, onnxPath: hostile },
      },
      evaluations: [{ set: hostile, step: 1, accuracy: 0.5, threshold: 1, pairs: 10, tarAtFar: { [hostile]: 1 } }],
    }),
  );
  assert(!html.includes('<img'));
  assert(html.includes('&#60;img src=x onerror=&#34;alert(1)&#34;&#62;&#38;&#39;'));
});

test('figures by group of pairs', () => {
  const [first, ...others] = report().evaluations.toReversed();
  const groups = [
    { group: 'old', pairs: 80, accuracy: 0.75, interval: [0.64, 0.83] as [number, number], falseAcceptRate: 0.1 },
  ].map((group) => ({ ...group, falseRejectRate: null }));
  const html = trainReportHtml(report({ evaluations: [...others.toReversed(), { ...first!, groups }] }));
  assert.match(html, /By group.*old.*80.*75\.00 % \(64\.00 % to 83\.00 %\).*10\.00 %.*–/s);
  assert.doesNotMatch(trainReportHtml(report()), /By group/);
});

test('attempts are named where there are several, and are lines in the curves', () => {
  const mark = { job: 'faces', startedAt: '2026-01-01T00:00:00.000Z', trainers: 2, device: 'cpu' };
  const one = { ...mark, attempt: 0, fromStep: 0 };
  const several = trainReportHtml(
    report({ attempts: [one, { ...mark, job: '<b>', attempt: 3, fromStep: 100, trainers: 1 }] }),
  );
  assert.match(several, /1 to 100.*<td>0<\/td>.*2 on cpu.*101 to 200.*3 of &#60;b&#62;.*1 on cpu/s);
  assert.match(several, /<dt>Checkpoints in the last attempt<\/dt>/);
  assert.equal(several.match(/<line class="start"/g)?.length, 4);
  assert.match(trainReportHtml(report({ attempts: [one, { ...mark, attempt: 1, fromStep: 200 }] })), /<td>none<\/td>/);
  assert.doesNotMatch(trainReportHtml(report({ attempts: [one] })), /Attempts|class="start"/);
});

test('steps that a version of before has not recorded are said to be missing', () => {
  const from = (steps: number) =>
    trainReportHtml(report({ history: report().history.map((interval) => ({ ...interval, steps })) }));
  assert.match(from(1), /mean over intervals; those of steps 1 to 50 were not recorded/);
  assert.doesNotMatch(from(51), /not recorded/);
});

test('an attempt without steps, and one with constant values, have a page, too', () => {
  const nothing = trainReportHtml(report({ history: [], evaluations: [], imagesPerSecond: 0 }));
  assert.doesNotMatch(nothing, /NaN|undefined|Infinity|<svg/);
  const flat = trainReportHtml(
    report({
      history: [1, 2].map((step) => ({ step, epoch: step, loss: 0, learningRate: 1, imagesPerSecond: 1 })),
      evaluations: [],
    }),
  );
  assert.doesNotMatch(flat, /NaN|undefined|Infinity/);
});

test('ticks are round and enclose the values', () => {
  for (const [low, high] of [
    [0, 1],
    [4.25, 29.5],
    [0.65, 0.76],
    [3, 3],
    [0, 0],
    [-5, 5],
    [1e-7, 3e-7],
    [12_000, 98_000],
  ] as const) {
    const ticks = niceTicks(low, high);
    assert(ticks.length >= 2 && ticks.length <= 8, `${ticks}`);
    assert(ticks[0]! <= low + 1e-12 && ticks.at(-1)! >= high - 1e-12, `${low}..${high}: ${ticks}`);
  }
  assert.deepEqual(niceTicks(0.02, 0.93), [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]);
  assert.deepEqual(niceTicks(100, 100), [98, 100, 102]);
});

test('numbers of a training that diverges are short', () => {
  const history = report().history.map((interval) => ({ ...interval, loss: 1.014e12 * interval.step }));
  const html = trainReportHtml(report({ lossFirst: 1.014e12, history }));
  assert.match(html, /1\.014e\+12 → /);
  assert.doesNotMatch(html, />[^<]*\d{8}/);
});

test('the report says whether steps wait for the loader', () => {
  const { stageSeconds } = report();
  const slow = trainReportHtml(report({ stageSeconds: { ...stageSeconds!, data: 0.1 }, device: 'cuda' }));
  assert.match(slow, /The loader holds the training up: 33\.36 % of a step waits for pictures\..*loaderThreads/s);
  assert.match(slow, /Times are those of the GPU\./);
  for (const none of [null, undefined])
    assert.doesNotMatch(trainReportHtml(report({ stageSeconds: none })), /Time of a step|The loader/);
  const zero = { data: 0, upload: 0, forward: 0, head: 0, backward: 0, communication: 0, update: 0 };
  assert.doesNotMatch(trainReportHtml(report({ stageSeconds: zero })), /NaN|Infinity/);
});
