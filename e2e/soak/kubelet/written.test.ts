import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WrittenCheck } from './written.ts';

const step = (number: number) => `step-${String(number).padStart(10, '0')}`;
const listed = (number: number, token: number) => ({
  step: number,
  folder: `${step(number)}/${String(token).padStart(10, '0')}-7d9b`,
});

test('checkpoints of a volume may come, and neither go nor change', () => {
  const check = new WrittenCheck();
  check.folder('a', new Map([[step(20), 'one']]));
  check.folder(
    'a',
    new Map([
      [step(20), undefined],
      [step(40), 'two'],
    ]),
  );
  check.folder('b', new Map([[step(20), 'another job']]));
  assert.deepEqual(check.violations, []);
  assert.equal(check.seen, 3);
  check.folder('a', new Map([[step(40), 'three']]));
  assert.deepEqual(check.violations, [`a: ${step(20)} is gone`, `a: ${step(40)} was written again`]);
});

test('a store lists checkpoints of the newest claim, in addition to those before', () => {
  const check = new WrittenCheck();
  const first = listed(20, 1);
  check.head('a', { token: 1, checkpoints: [first] });
  // The process of token 1 has saved once more, and then token 2 came.
  check.head('a', { token: 2, checkpoints: [first, listed(40, 1)] });
  check.head('a', { token: 2, checkpoints: [first, listed(40, 1), listed(60, 2)] });
  assert.deepEqual(check.violations, []);
  check.head('a', { token: 2, checkpoints: [first, listed(40, 1), listed(60, 2), listed(80, 1)] });
  assert.deepEqual(check.violations.splice(0), [`a: ${listed(80, 1).folder} was listed after the claim of 2`]);
  check.head('a', { token: 1, checkpoints: [listed(20, 2), listed(40, 1), listed(60, 2), listed(80, 1)] });
  assert.deepEqual(check.violations, [
    'a: the token 2 became 1',
    `a: the checkpoint of step 20, ${first.folder}, became ${listed(20, 2).folder}`,
  ]);
});
