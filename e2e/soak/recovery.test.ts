import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JobStatus } from '@facetrain/planner/attempt';
import { Recovery } from './recovery.ts';

const status = (phase: string, attempt = 0): JobStatus => ({ phase, attempt }) as unknown as JobStatus;

test('a recovery lasts from the fault until the job runs again', () => {
  const recovery = new Recovery();
  recovery.status('soak/a', 'a', status('Running'), 0);
  recovery.status('soak/b', 'b', status('Running'), 0);
  recovery.fault('kill', ['a', 'unknown'], 1_000);
  // A step that is written is no recovery, and b was not hit.
  recovery.status('soak/a', 'a', status('Running'), 2_000);
  recovery.status('soak/b', 'b', status('Restarting', 1), 2_000);
  recovery.status('soak/a', 'a', status('Restarting', 1), 3_000);
  recovery.status('soak/b', 'b', status('Running', 1), 4_000);
  recovery.status('soak/a', 'a', status('Running', 1), 6_000);
  recovery.status('soak/a', 'a', status('Restarting', 2), 7_000);
  assert.deepEqual(recovery.summary(), [
    { fault: 'kill', count: 1, recoveries: 1, medianSeconds: 5, longestSeconds: 5 },
  ]);
});

test('a job that goes on all the time, is suspended, or is deleted, has no recovery', () => {
  const recovery = new Recovery();
  for (const uid of ['a', 'b', 'c']) recovery.status(`soak/${uid}`, uid, status('Running'), 0);
  recovery.fault('freeze', ['a', 'b', 'c'], 1_000);
  recovery.status('soak/a', 'a', status('Restarting', 1), 60_000);
  recovery.status('soak/b', 'b', status('Suspended', 1), 2_000);
  recovery.deleted('soak/c');
  for (const uid of ['a', 'b']) recovery.status(`soak/${uid}`, uid, status('Running', 1), 61_000);
  assert.deepEqual(recovery.summary(), [
    { fault: 'freeze', count: 1, recoveries: 0, medianSeconds: null, longestSeconds: null },
  ]);
});

test('the median is of all recoveries after faults of a kind', () => {
  const recovery = new Recovery();
  for (const milliseconds of [9_000, 1_000, 2_000]) {
    recovery.fault('kill the leader', [], 0);
    recovery.acted('kill the leader', milliseconds);
  }
  recovery.fault('rare', [], 0);
  const [first, second] = recovery.summary();
  assert.deepEqual(
    [first!.fault, first!.count, first!.medianSeconds, first!.longestSeconds],
    ['kill the leader', 3, 2, 9],
  );
  assert.equal(second!.fault, 'rare');
});
