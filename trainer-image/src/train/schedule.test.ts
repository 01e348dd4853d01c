import assert from 'node:assert/strict';
import { test } from 'node:test';
import { trainerConfig } from '../testing/training-gang.ts';
import { isCheckpointDue, isDue, learningRateAt } from './schedule.ts';

const close = (actual: number, expected: number, tolerance = 1e-12) =>
  assert(Math.abs(actual - expected) < tolerance, `${actual} is not ${expected}`);

test('power 2 gives the rates that insightface logged for ms1mv3_r50: 20 epochs, 0.1', () => {
  const stepsPerEpoch = 5057;
  const schedule = {
    type: 'polynomial',
    power: 2,
    warmupSteps: 0,
    totalSteps: 20 * stepsPerEpoch,
    learningRate: 0.1,
  } as const;
  for (const [epoch, rate] of [
    [1, 0.0902],
    [5, 0.0562],
    [10, 0.025],
    [15, 0.0062],
  ] as const)
    close(learningRateAt(epoch * stepsPerEpoch, schedule), rate, 1e-4);
});

test('the warm-up rises in equal steps from above 0 to the full rate, and the decay starts there', () => {
  const schedule = { type: 'polynomial', power: 1, warmupSteps: 4, totalSteps: 12, learningRate: 0.8 } as const;
  const rates = Array.from({ length: 12 }, (_, step) => learningRateAt(step, schedule));
  const expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1];
  for (const [step, rate] of rates.entries()) close(rate, expected[step]!);
});

test('a constant rate has a warm-up, too, and a warm-up may be longer than the training', () => {
  assert.deepEqual(
    [0, 1, 2, 99].map((step) =>
      learningRateAt(step, { type: 'constant', power: 2, warmupSteps: 2, totalSteps: 100, learningRate: 1 }),
    ),
    [0.5, 1, 1, 1],
  );
  assert.deepEqual(
    [0, 1].map((step) =>
      learningRateAt(step, { type: 'polynomial', power: 2, warmupSteps: 4, totalSteps: 2, learningRate: 1 }),
    ),
    [0.25, 0.5],
  );
  // A fraction of an epoch may be a fraction of a step.
  assert(learningRateAt(0, { type: 'polynomial', power: 2, warmupSteps: 0.5, totalSteps: 2, learningRate: 1 }) > 0);
});

test('the two intervals are independent; a fraction of an epoch is rounded to steps, at least one', () => {
  const due = (every: Parameters<typeof isDue>[1]) =>
    Array.from({ length: 12 }, (_, step) => step + 1).filter((done) => isDue(done, every, 8));
  assert.deepEqual(due({ everyEpochs: null, everySteps: null }), []);
  assert.deepEqual(due({ everyEpochs: 1, everySteps: null }), [8]);
  assert.deepEqual(due({ everyEpochs: 0.5, everySteps: 5 }), [4, 5, 8, 10, 12]);
  assert.deepEqual(due({ everyEpochs: 0.01, everySteps: null }).length, 12);
});

test('where the best are kept, a checkpoint is due with each evaluation that has a set', () => {
  const due = (keepBest: number, sets: number) => {
    const config = trainerConfig('/', {});
    const checkpoint = { ...config.checkpoint, everySteps: 5, keepBest };
    const evaluation = { everyEpochs: null, everySteps: 4, sets: Array(sets).fill({ name: 'a', path: '/a' }) };
    return [...Array(8).keys()].filter((done) => isCheckpointDue(done + 1, { checkpoint, evaluation }, 100));
  };
  assert.deepEqual(due(0, 1), [4]);
  assert.deepEqual(due(1, 1), [3, 4, 7]);
  assert.deepEqual(due(1, 0), [4]);
});
