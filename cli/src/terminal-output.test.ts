import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bytes, duration } from './terminal-output.ts';

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

test('sizes are in powers of 1000', () => {
  assert.deepEqual([999, 17_300, 4_900_000, 5_000_000_000_000_000].map(bytes), [
    '999 B',
    '17 kB',
    '4.90 MB',
    '5000.00 TB',
  ]);
});
