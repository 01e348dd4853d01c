import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runSoak } from './soak.ts';

/** Fresh choices in each run, so that all runs together see more than one. The seed stands in the log. */
const seed = Math.floor(Math.random() * 1e6);

test(`half a minute of faults, seed ${seed}`, async (t) => {
  const { violations, jobs } = await runSoak({
    seed,
    seconds: 30,
    jobs: 10,
    nodes: 6,
    faultMilliseconds: 500,
    say: (line) => t.diagnostic(line),
  });
  assert.deepEqual(violations, []);
  assert(jobs.succeeded > 0, 'no job succeeded');
});
