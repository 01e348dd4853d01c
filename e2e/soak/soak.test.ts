import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runSoak } from './soak.ts';

/** The same choices in each run, which judges a change; `npm run soak` makes others. */
const seed = Number(process.env.FACETRAIN_SEED ?? 694_176);

test(`a minute of faults, seed ${seed}`, async (t) => {
  const { violations, jobs } = await runSoak({
    seed,
    seconds: 60,
    jobs: 10,
    nodes: 6,
    faultMilliseconds: 500,
    say: (line) => t.diagnostic(line),
  });
  assert.deepEqual(violations, []);
  assert(jobs.succeeded > 0, 'no job succeeded');
});
