import assert from 'node:assert/strict';
import { test } from 'node:test';
import { largestSampleRate, sampleRateAt, sampleRateSteps } from './sample-rates.ts';

test('the sample rate of a step is that of the last change before it', () => {
  const loss = {
    sampleRate: 0.1,
    sampleRateChanges: [
      { fromEpoch: 0.01, rate: 0.2 },
      { fromEpoch: 1.5, rate: 0.4 },
      { fromEpoch: 2, rate: 0.3 },
    ],
  };
  const changes = sampleRateSteps(loss, 7);
  assert.deepEqual(
    changes.map(({ fromStep }) => fromStep),
    [0, 11, 14],
  );
  assert.deepEqual(
    [0, 10, 11, 13, 14, 1000].map((step) => sampleRateAt(step, loss.sampleRate, changes)),
    [0.2, 0.2, 0.4, 0.4, 0.3, 0.3],
  );
  assert.equal(sampleRateAt(5, 0.1, []), 0.1);
  assert.equal(largestSampleRate(loss), 0.4);
  assert.equal(largestSampleRate({ ...loss, sampleRateChanges: [] }), 0.1);
});
