import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TimeLeft } from './time-left.ts';

test('steps still take what those since the first call took', () => {
  const left = new TimeLeft();
  // An interrupted search had done 40 of 100.
  assert.equal(left.seconds(40, 100, 5000), null);
  assert.equal(left.seconds(40, 100, 9000), null, 'no step is done yet');
  assert.equal(left.seconds(50, 100, 25_000), 100, '2 s a step');
  assert.equal(left.seconds(100, 100, 125_000), 0);
});
