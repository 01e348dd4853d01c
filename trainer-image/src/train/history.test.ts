import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StageSeconds } from '@facetrain/api';
import { History } from './history.ts';

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
});

test('a resumed run ends with the same losses as a run without interruption', () => {
  const whole = new History(100, 60, 8);
  for (let step = 0; step < 100; step++) whole.add(record(step));
  const first = new History(100, 60, 8);
  for (let step = 0; step < 97; step++) first.add(record(step));
  const second = new History(100, 60, 8, JSON.parse(JSON.stringify(first.forCheckpoint)) as typeof first.forCheckpoint);
  for (let step = 97; step < 100; step++) second.add(record(step));
  assert.deepEqual(second.forCheckpoint, whole.forCheckpoint);
  assert.equal(second.lossFirst, 0);
  assert.equal(second.lossLast, (50 + 99) / 2);
  assert.equal(second.trainSeconds, 50);
  assert.deepEqual(second.intervals.at(-1), whole.intervals.at(-1));
});

test('lossLast covers an epoch where that is shorter than 50 steps', () => {
  const history = new History(100, 4, 8);
  assert.equal(history.lossLast, null);
  for (let step = 0; step < 10; step++) history.add(record(step));
  assert.equal(history.lossLast, (6 + 7 + 8 + 9) / 4);
});

test('long runs are reported in at most 1,000 intervals that cover every step', () => {
  const history = new History(2500, 1000, 8);
  for (let step = 0; step < 2500; step++) history.add(record(step));
  assert.equal(history.intervals.length, 834);
  assert.deepEqual(history.intervals[0], {
    step: 3,
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
  const history = new History(10, 5, 8);
  assert.equal(history.etaSeconds(0), null);
  history.add(record(0));
  assert.equal(history.recentImagesPerSecond, 16);
  assert.equal(history.imagesPerSecond, 16);
  assert.equal(history.etaSeconds(1), 4.5);
});

test('stage times are means over the measured steps: the last 20, and all of this attempt', () => {
  const history = new History(100, 50, 8);
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
