import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mergeConditions } from './conditions.ts';
import { ConditionType } from './reasons.ts';
import { after, at } from './testing/builders.ts';

const ready = (status: 'True' | 'False', message = '') => ({ type: ConditionType.ready, status, reason: 'R', message });
const old = mergeConditions([], [ready('True')], 1, after(0));

test('lastTransitionTime changes with the status', () =>
  assert.equal(mergeConditions(old, [ready('False')], 1, after(9))[0]!.lastTransitionTime, at(9)));
test('lastTransitionTime stays when only the message or the generation changes', () => {
  assert.deepEqual(mergeConditions(old, [ready('True', 'other')], 2, after(9)), [
    { ...ready('True', 'other'), observedGeneration: 2, lastTransitionTime: at(0) },
  ]);
});
test('a condition of ours that is not wanted is removed', () =>
  assert.deepEqual(mergeConditions(old, [], 1, after(9)), []));
test('a condition of another controller stays', () => {
  const foreign = {
    type: 'acme.example/Billed',
    status: 'True' as const,
    lastTransitionTime: at(0),
    reason: 'R',
    message: '',
  };
  assert.deepEqual(mergeConditions([foreign, ...old], [ready('True')], 1, after(9)), [...old, foreign]);
});
test('a long message is cut', () =>
  assert.equal(mergeConditions([], [ready('True', 'x'.repeat(5000))], 1, after(0))[0]!.message.length, 2000));
