import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DISRUPTIONS, defaultAction, EXITS, isRejectedForPlace, OTHERS, REPORTED } from './endings.ts';
import type { Failure } from './failure.ts';
import { Reason } from './reasons.ts';

const failure: Failure = { reason: '', message: '', disruption: false, ruleReasons: [] };

test('the table says what happens', () => {
  for (const { action } of DISRUPTIONS) assert.equal(defaultAction({ ...failure, disruption: true }), action);
  for (const { code, action } of REPORTED)
    assert.equal(defaultAction({ ...failure, code, exitCode: 2, step: 1 }), action);
  for (const { exitCode, action } of EXITS) assert.equal(defaultAction({ ...failure, exitCode }), action);
  for (const { action } of OTHERS) {
    assert.equal(defaultAction(failure), action);
    assert.equal(defaultAction({ ...failure, exitCode: 143 }), action);
  }
});

test('every reason for the end of an attempt is in the table', () => {
  const listed = new Set([...DISRUPTIONS, ...REPORTED, ...EXITS, ...OTHERS].flatMap(({ reasons }) => reasons));
  const reasons = Object.values(Reason);
  const endings = reasons.slice(reasons.indexOf(Reason.exited), reasons.indexOf(Reason.specChanged));
  assert(endings.length > 10);
  assert.deepEqual(
    endings.filter((reason) => !listed.has(reason)),
    [],
  );
});

test('a kubelet rejects for lack of place, or for what no node can do', () => {
  const place = [
    'OutOfcpu',
    'OutOfnvidia.com/gpu',
    'NodeAffinity',
    'TopologyAffinityError',
    'UnexpectedAdmissionError',
    'Evicted',
  ];
  for (const reason of place) assert(isRejectedForPlace(reason), reason);
  for (const reason of ['PodOSNotSupported', 'SysctlForbidden', 'NotOutOfcpu', undefined])
    assert(!isRejectedForPlace(reason), reason);
});
