import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StageSeconds } from '@facetrain/api';
import { type EarlierSteps, History } from './history.ts';

const stages = (data: number, head = 0.25): StageSeconds => ({
  data,
  upload: 0,
  forward: 0,
  head,
  backward: 0,
  communication: 0,
  update: 0,
});
const record = (step: number, loss = step) => ({
  step,
  loss,
  learningRate: 0.5,
  sampleRate: 1,
  seconds: 0.5,
  stageSeconds: null,
  time: new Date(1000 * step),
});
const attempt = { job: 'faces', attempt: 0, startedAt: '2026-01-01T00:00:00.000Z', trainers: 2, device: 'cpu' };
const fresh = (totalSteps: number, stepsPerEpoch: number, earlier?: EarlierSteps) =>
  new History({ totalSteps, stepsPerEpoch, globalBatchSize: 8 }, attempt, earlier);
/** What the next attempt reads. */
const stored = (step: number, { forCheckpoint: history, curves }: History): EarlierSteps =>
  JSON.parse(JSON.stringify({ step, history, curves })) as EarlierSteps;

test('a resumed run ends with the same losses as a run without interruption', () => {
  const whole = fresh(100, 60);
  for (let step = 0; step < 100; step++) whole.add(record(step));
  const first = fresh(100, 60);
  for (let step = 0; step < 97; step++) first.add(record(step));
  const second = fresh(100, 60, stored(97, first));
  for (let step = 97; step < 100; step++) second.add(record(step));
  assert.deepEqual(second.forCheckpoint, whole.forCheckpoint);
  assert.equal(second.lossFirst, 0);
  assert.equal(second.lossLast, (50 + 99) / 2);
  assert.equal(second.trainSeconds, 50);
  assert.deepEqual(second.intervals, whole.intervals);
  assert.equal(second.imagesPerSecond, 16);
});

test('lossLast covers an epoch where that is shorter than 50 steps', () => {
  const history = fresh(100, 4);
  assert.equal(history.lossLast, null);
  for (let step = 0; step < 10; step++) history.add(record(step));
  assert.equal(history.lossLast, (6 + 7 + 8 + 9) / 4);
});

test('long runs are reported in at most 1,000 intervals that cover every step', () => {
  const history = fresh(2500, 1000);
  for (let step = 0; step < 2500; step++) history.add(record(step));
  assert.equal(history.intervals.length, 834);
  assert.deepEqual(history.intervals[0], {
    step: 3,
    steps: 3,
    time: new Date(2000).toISOString(),
    epoch: 0.003,
    loss: 1,
    learningRate: 0.5,
    sampleRate: 1,
    imagesPerSecond: 16,
  });
  assert.equal(history.intervals.at(-1)?.step, 2500);
  assert.equal(history.intervals.at(-1)?.loss, 2499);
});

test('speed and remaining time', () => {
  const history = fresh(10, 5);
  assert.equal(history.etaSeconds(0), null);
  history.add(record(0));
  assert.equal(history.recentImagesPerSecond, 16);
  assert.equal(history.imagesPerSecond, 16);
  assert.equal(history.etaSeconds(1), 4.5);
});

test('stage times are means over the measured steps: the last 20, and all of the training', () => {
  const history = fresh(100, 50);
  assert.deepEqual([history.recentStageSeconds, history.stageSeconds], [null, null]);
  history.add(record(0));
  assert.deepEqual([history.recentStageSeconds, history.stageSeconds], [null, null], 'it was not measured');
  for (let step = 1; step <= 10; step++) history.add({ ...record(step), stageSeconds: stages(1) });
  for (let step = 11; step <= 30; step++)
    history.add({ ...record(step), stageSeconds: step % 2 === 0 ? stages(step / 10) : null });
  // 12, 14 ... 30 tenths of a second.
  assert.deepEqual(history.recentStageSeconds, stages(2.1));
  assert.deepEqual(history.stageSeconds, stages((10 + 21) / 20));
  history.add({ ...record(31), stageSeconds: stages(1 / 3, 0) });
  assert.equal(history.recentStageSeconds?.head, Number(((10 * 0.25) / 11).toFixed(6)), 'in whole microseconds');
});

test('curves are whole over attempts, with steps that were done again once, and marks where attempts began', () => {
  const whole = fresh(2500, 1000);
  for (let step = 0; step < 2500; step++) whole.add(record(step));
  // Checkpoints in the middle of an interval of three steps.
  const first = fresh(2500, 1000);
  for (let step = 0; step < 1000; step++) first.add(record(step));
  const checkpoint = stored(1000, first);
  for (let step = 1000; step < 1100; step++) first.add(record(step, 1e9));
  const second = new History(
    { totalSteps: 2500, stepsPerEpoch: 1000, globalBatchSize: 8 },
    { ...attempt, attempt: 1, trainers: 4 },
    checkpoint,
  );
  for (let step = 1000; step < 1900; step++) second.add(record(step));
  const third = new History(
    { totalSteps: 2500, stepsPerEpoch: 1000, globalBatchSize: 8 },
    { ...attempt, attempt: 3, trainers: 1 },
    stored(1900, second),
  );
  for (let step = 1900; step < 2500; step++) third.add(record(step));
  const rounded = (history: History) =>
    history.intervals.map((interval) => ({ ...interval, loss: Number(interval.loss.toPrecision(12)) }));
  assert.deepEqual(rounded(third), rounded(whole));
  assert.deepEqual(
    third.curves.attempts.map((mark) => [mark.attempt, mark.fromStep, mark.trainers]),
    [
      [0, 0, 2],
      [1, 1000, 4],
      [3, 1900, 1],
    ],
  );
});

test('an attempt of which no step is left is forgotten, and the newest 200 are named', () => {
  let earlier: EarlierSteps | undefined;
  for (let number = 0; number < 300; number++) {
    const history = new History(
      { totalSteps: 1000, stepsPerEpoch: 10, globalBatchSize: 8 },
      { ...attempt, attempt: number },
      earlier,
    );
    if (number % 3 !== 0) history.add(record(earlier?.step ?? 0));
    earlier = stored((earlier?.step ?? 0) + (number % 3 === 0 ? 0 : 1), history);
  }
  const { attempts } = earlier!.curves!;
  assert.deepEqual(
    [attempts.length, attempts[0], attempts.at(-1)!.attempt],
    [200, { ...attempt, attempt: 1, fromStep: 0 }, 299],
  );
});

test('a training with more or fewer steps than before has other intervals of the same curve', () => {
  const short = fresh(1500, 100);
  for (let step = 0; step < 1500; step++) short.add(record(step));
  assert.equal(short.intervals.length, 750);
  const longer = fresh(10_000, 100, stored(1500, short));
  assert.deepEqual([longer.intervals.length, longer.intervals.at(-1)!.step, longer.isIntervalOpen], [150, 1500, false]);
  assert.deepEqual([longer.intervals[0]!.steps, longer.intervals[0]!.loss], [10, 4.5]);
  for (let step = 1500; step < 10_000; step++) longer.add(record(step));
  assert.equal(longer.intervals.length, 1000);
});

test('a checkpoint of before has no curves: they begin with this attempt', () => {
  const before = fresh(100, 50);
  for (let step = 0; step < 40; step++) before.add(record(step));
  const { history } = stored(40, before);
  const after = fresh(100, 50, { step: 40, history });
  after.add(record(40));
  assert.deepEqual([after.intervals.length, after.intervals[0]!.step, after.intervals[0]!.steps], [1, 41, 1]);
  assert.deepEqual([after.curves.attempts[0]!.fromStep, after.imagesPerSecond], [40, 16]);
});
