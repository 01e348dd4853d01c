import assert from 'node:assert/strict';
import { test } from 'node:test';
import countReporter from './lib/count-reporter.mjs';

const file = `${process.cwd()}/a.test.ts`;
const passed = (data) => ({ type: 'test:pass', data: { name: 'a test', nesting: 1, file, ...data } });
const failed = (data) => ({ type: 'test:fail', data: { name: 'a test', nesting: 1, file, ...data } });

async function counts(events) {
  const written = [];
  for await (const text of countReporter(events)) written.push(text);
  return JSON.parse(written.join(''));
}

test('counts tests, not suites', async () => {
  const suite = { details: { type: 'suite' } };
  const events = [
    passed(),
    passed({ nesting: 0 }),
    failed(),
    passed(suite),
    failed(suite),
    { type: 'test:plan', data: {} },
  ];
  assert.deepEqual(await counts(events), { passed: 2, failed: 1 });
});

test('a skipped or todo test counts as failed', async () => {
  assert.deepEqual(await counts([passed({ skip: true }), passed({ todo: 'later' })]), { passed: 0, failed: 2 });
});

test('a file counts only when it fails: it passes also when none of its tests has run', async () => {
  assert.deepEqual(await counts([passed({ name: 'a.test.ts', nesting: 0 })]), { passed: 0, failed: 0 });
  assert.deepEqual(await counts([failed({ name: file, nesting: 0 })]), { passed: 0, failed: 1 });
});
