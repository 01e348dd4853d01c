import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SetupError } from './lib/steps.mjs';
import { runAll } from './lint.mjs';

test('every check runs, also after one has failed in any way', async () => {
  const ran = [];
  const counts = await runAll({
    'a check that finds something': () => {
      throw new SetupError('found');
    },
    'a check with a bug': () => {
      throw new TypeError('bug');
    },
    'a check that passes': () => ran.push('last'),
  });
  assert.deepEqual(counts, { passed: 1, failed: 2 });
  assert.deepEqual(ran, ['last']);
});
