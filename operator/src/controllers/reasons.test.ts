import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES } from '@facetrain/api';
import { Reason } from './reasons.ts';

test('the runbook has an entry for every reason, whoever gives it', async () => {
  const runbook = await readFile(join(import.meta.dirname, '..', '..', '..', 'docs', 'runbook.md'), 'utf8');
  const entries = new Set([...runbook.matchAll(/`([A-Z]\w+)`/g)].map(([, word]) => word));
  assert.deepEqual([...Object.values(Reason), ...ERROR_CODES].filter((reason) => !entries.has(reason)), []);
});
