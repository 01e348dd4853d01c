import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StartTimes } from './start-times.ts';

test('the parts of a start follow one another from the start of the process, and each ends once', () => {
  const before = performance.now() / 1000;
  const start = new StartTimes();
  assert.equal(start.end('program'), true);
  assert.equal(start.end('preflight'), true);
  const after = performance.now() / 1000;
  const { program, preflight } = start.seconds;
  assert(program! >= before - 0.001 && preflight! >= 0);
  assert(program! + preflight! <= after + 0.002);
  assert.equal(start.end('program'), false);
  assert.deepEqual(start.seconds, { program, preflight });
});
