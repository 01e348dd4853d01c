import assert from 'node:assert/strict';
import { test } from 'node:test';
import { progressAtStart } from '@facetrain/api';
import { bytes, duration, oneLine, progressDetail, StatusLine } from './terminal-output.ts';

test('durations are rounded to seconds, from an hour on cut to minutes', () => {
  assert.deepEqual([0.4, 59.4, 59.6, 119.7, 3599.6, 7500].map(duration), [
    '0 s',
    '59 s',
    '1 min 0 s',
    '2 min 0 s',
    '1 h 0 min',
    '2 h 5 min',
  ]);
});

test('words of others stay in their line and command no terminal', () => {
  assert.equal(oneLine('no space\n\tleft\x1b[2J  on /data\r'), 'no space left\\x1b[2J  on /data ');
});

test('sizes are in powers of 1000', () => {
  assert.deepEqual([999, 17_300, 4_900_000, 5_000_000_000_000_000].map(bytes), [
    '999 B',
    '17 kB',
    '4.90 MB',
    '5000.00 TB',
  ]);
});

test('progress says how much of a step waits for pictures, from 5 % on', () => {
  const progress = {
    ...progressAtStart({ name: 'job', uid: 'u', attempt: 0 }, 'Training'),
    ...{ step: 120, totalSteps: 200, epoch: 4.8, imagesPerSecond: 35, loss: 12.31, learningRate: 0.1, etaSeconds: 80 },
  };
  const text = 'step 120 of 200, epoch 4.8, loss 12.31, 35.0 images/s, 1 min 20 s left';
  const detail = (data: number) => {
    const others = { upload: 0, forward: 0.2, head: 0.1, backward: 0.6, communication: 0, update: 0.1 };
    return progressDetail({ ...progress, stageSeconds: { data, ...others } });
  };
  assert.equal(progressDetail(progress), text);
  assert.equal(detail(0.04), text);
  assert.equal(detail(0.25), text.replace('s, 1 min', 's, 20 % of the time waiting for pictures, 1 min'));
});

test('without a terminal, news of a stage come every 10 s, and a line without news once a minute', (t) => {
  t.mock.timers.enable({ apis: ['Date'] });
  const written: string[] = [];
  t.mock.method(process.stderr, 'write', (text: string) => written.push(text) > 0);
  const line = new StatusLine();
  line.show('Loading', '');
  line.show('Searching', 'step 1');
  for (let second = 1; second <= 130; ++second) {
    t.mock.timers.tick(1000);
    line.show('Searching', second < 20 ? `step ${second}` : 'step 20');
  }
  t.mock.restoreAll();
  const lines = ['Loading', 'Searching: step 1', 'Searching: step 10', 'Searching: step 20', 'Searching: step 20'];
  assert.deepEqual(
    written,
    lines.map((text) => `${text}\n`),
  );
});
