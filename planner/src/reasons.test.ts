import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES } from '@facetrain/api';
import { Label } from './names.ts';
import { Reason } from './reasons.ts';

const docs = join(import.meta.dirname, '..', '..', 'docs');

test('the runbook has an entry for every reason and every error code', async () => {
  const runbook = await readFile(join(docs, 'runbook.md'), 'utf8');
  const entries = new Set([...runbook.matchAll(/`([A-Z]\w+)`/g)].map(([, word]) => word));
  assert.deepEqual(
    [...Object.values(Reason), ...ERROR_CODES].filter((reason) => !entries.has(reason)),
    [],
  );
});

test('the docs select by labels that objects have', async () => {
  const labels = new Set<string>(Object.values(Label));
  for (const page of ['runbook.md', 'kubernetes.md']) {
    const selected = [...(await readFile(join(docs, page), 'utf8')).matchAll(/ -l (facetrain\.dev\/[\w-]+)/g)].map(
      ([, label]) => label!,
    );
    assert(selected.length > 0, page);
    assert.deepEqual(
      selected.filter((label) => !labels.has(label)),
      [],
      page,
    );
  }
});
