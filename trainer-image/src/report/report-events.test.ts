import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TrainReport } from '@facetrain/api';
import { histogram } from './histogram.ts';
import { reportEvents } from './report-events.ts';

test('every interval, every evaluation, and the stages at the end, by step', () => {
  const stageSeconds = { data: 0, upload: 0, forward: 1, head: 2, backward: 3, communication: 0, update: 4 };
  const norm = histogram([1, 2, 3]);
  const report = {
    startedAt: '2026-01-01T00:00:00.000Z',
    finishedAt: '2026-01-01T00:01:00.000Z',
    steps: 60,
    resumedFromStep: 30,
    attempts: [0, 30].map((fromStep, attempt) => ({
      ...{ job: 'faces', attempt, fromStep, trainers: 2, device: 'cpu' },
      startedAt: `2026-01-01T00:00:${fromStep}0.000Z`.replace('300', '30'),
    })),
    history: [45, 60].map((step) => ({
      time: `2026-01-01T00:00:${step - 15}.000Z`,
      step,
      epoch: step / 30,
      loss: 9,
      learningRate: 0.1,
      imagesPerSecond: 7,
    })),
    evaluations: [
      {
        set: 'lfw',
        step: 45,
        accuracy: 0.75,
        threshold: 1,
        pairs: 10,
        tarAtFar: { '1e-3': 0.5 },
        histograms: { norm, sameAngle: norm, differentAngle: norm },
      },
    ],
    stageSeconds,
  } as unknown as TrainReport;
  const events = reportEvents(report);
  assert.deepEqual(
    events.map(({ step }) => step),
    [0, 30, 45, 45, 60, 60],
  );
  const start = Date.parse(report.startedAt) / 1000;
  assert.deepEqual(
    events.map(({ time }) => time - start),
    [0, 30, 30, 30, 45, 60],
  );
  assert.deepEqual(events[1]!.values, [{ tag: 'train/attempt', value: 1 }]);
  const values = Object.fromEntries(events.flatMap((event) => event.values.map(({ tag, value }) => [tag, value])));
  assert.deepEqual(
    [values['train/loss'], values['train/learningRate'], values['accuracy/lfw'], values['step seconds/update']],
    [9, 0.1, 0.75, 4],
  );
  assert.equal(values['tar at far 1e-3/lfw'], 0.5);
  const found = values['norm/lfw'] as unknown as { count: number; limits: number[]; max: number };
  assert.deepEqual([found.count, found.limits.at(-1)], [3, 3]);
});
