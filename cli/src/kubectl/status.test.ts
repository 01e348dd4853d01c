import assert from 'node:assert/strict';
import { test } from 'node:test';
import { columns, draw } from './status.ts';

test('a message of several lines is one line of the tree, and of the table', () => {
  const text = 'rank 1 left with exit code 1: Traceback\n  \x1b[31mMemoryError';
  const want = 'rank 1 left with exit code 1: Traceback \\x1b[31mMemoryError';
  assert.equal(
    draw({ text: 'faces', children: [{ text }, { text: 'attempt 0' }] }),
    `faces\n├─ ${want}\n└─ attempt 0\n`,
  );
  assert.equal(
    columns([
      ['NAME', 'WHY'],
      ['faces', text],
    ]),
    `NAME   WHY\nfaces  ${want}\n`,
  );
});
