import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readTermination } from './read-termination.ts';

const PROGRESS = {
  schemaVersion: 1,
  job: { name: 'faces', uid: 'u', attempt: 0 },
  stage: 'Done',
  step: 9,
  totalSteps: 9,
  epoch: 1,
  imagesPerSecond: null,
  stageSeconds: { data: 0, upload: 0, forward: 1, head: 1, backward: 1, communication: 0, update: 0 },
  loss: null,
  learningRate: null,
  etaSeconds: 0,
  evaluations: [{ set: 'lfw', step: 9, accuracy: 0.9 }],
  checkpoint: { step: 9, time: '2026-01-01T00:00:00Z' },
  activity: 1,
};

test('what the image of a later release reports besides is left out', () => {
  const known = readTermination(JSON.stringify({ progress: PROGRESS }));
  assert.equal(known.result?.progress?.step, 9);
  const { evaluations, checkpoint, stageSeconds, ...rest } = PROGRESS;
  const later = {
    progress: {
      ...rest,
      evaluations: evaluations.map((one) => ({ ...one, new: 1 })),
      checkpoint: { ...checkpoint, new: 1 },
      stageSeconds: { ...stageSeconds, new: 1 },
      new: 1,
    },
    new: 1,
  };
  assert.deepEqual(readTermination(JSON.stringify(later)), known);
  const failure = { code: 'PeerLost', message: 'rank 1' };
  assert.deepEqual(readTermination(JSON.stringify({ ...failure, new: 1 })), { termination: failure });
});

test('what is no message of ours is nothing', () => {
  for (const text of ['', 'the end of a log', '{}', '{"new": 1}', '[]', 'null', '{"progress": {"step": 1}}'])
    assert.deepEqual(readTermination(text), {}, text);
});
