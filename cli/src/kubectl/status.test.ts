import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Job, Workload } from './cluster.ts';
import { columns, draw, scalingNodes, stateOf, workloadText } from './status.ts';

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

describe('a trainer that the kubelet starts again in its pod', () => {
  const stateWith = (container: object, status: object = { phase: 'Running' }) =>
    stateOf({
      metadata: { name: 'faces-0-0', uid: 'u', resourceVersion: '1', creationTimestamp: '' },
      spec: {},
      status: { ...status, containerStatuses: [{ name: 'facetrain', ...container }] },
    });
  const running = { running: {} };
  const killed = { terminated: { exitCode: 137, reason: 'Error' } };
  /** What a kubelet writes about a container of which it finds nothing any more. */
  const unknown = { terminated: { exitCode: 137, reason: 'ContainerStatusUnknown' } };
  const created = { waiting: { reason: 'ContainerCreating' } };
  const evicted = { phase: 'Failed', reason: 'Evicted' };

  test('is told', () => {
    assert.equal(stateWith({ state: running, restartCount: 0 }), 'Running, not ready');
    assert.equal(
      stateWith({ state: running, lastState: killed, restartCount: 1 }),
      'Running, not ready, started again once',
    );
    assert.equal(
      stateWith({ state: running, lastState: killed, restartCount: 2 }),
      'Running, not ready, started again 2 times',
    );
    assert.equal(
      stateWith({ state: running, lastState: unknown, restartCount: 1 }),
      'Running, not ready, started again once',
    );
    assert.equal(
      stateWith({ state: killed, lastState: unknown, restartCount: 1 }, evicted),
      'Failed, Evicted, exit code 137, started again once',
    );
  });

  test('is not told of a container that is gone, although the kubelet counts it', () => {
    assert.equal(
      stateWith({ state: created, lastState: unknown, restartCount: 1 }),
      'Running, not ready, its container is gone',
    );
    assert.equal(
      stateWith({ state: unknown, lastState: unknown, restartCount: 1 }, evicted),
      'Failed, Evicted, exit code 137',
    );
  });

  test('is told of the restarts before, which the kubelet leaves as they are', () => {
    assert.equal(
      stateWith({ state: created, lastState: killed, restartCount: 1 }),
      'Running, not ready, its container is gone, started again once',
    );
    assert.equal(
      stateWith({ state: unknown, lastState: killed, restartCount: 1 }, evicted),
      'Failed, Evicted, exit code 137, started again once',
    );
  });
});

const metadata = { name: 'facetrainjob-faces', uid: 'u', resourceVersion: '1', creationTimestamp: '' };

test('of an elastic job, the trainers that it has and wishes are shown, and when it looks for more', () => {
  const elastic = { minReplicas: 1, maxReplicas: 4, scaleDownSeconds: 120, scaleUpSeconds: 600 };
  const textOf = (replicas: number, scaling: object, fields: object = {}) => {
    const status = {
      attemptStartTime: '2026-01-01T00:00:00Z',
      trainers: { desired: 3, active: 3, ready: 3, succeeded: 0, failed: 0 },
      scaling: { replicas, resizes: 0, failedGrowths: 0, history: [], ...scaling },
      ...fields,
    };
    const job = { metadata, spec: { trainers: { replicas, elastic } }, status } as Job;
    return scalingNodes(job, new Date('2026-01-01T00:01:00Z')).map((node) => draw(node));
  };
  const shrunk = { attempt: 1, trainers: 3, time: '2026-01-01T00:00:00Z', reason: 'ScaledDown', message: 'no node' };
  assert.deepEqual(textOf(3, {}), ['trainers: 3 of 3 wished\n']);
  assert.deepEqual(textOf(4, { resizes: 5, history: [shrunk] }), [
    'trainers: 3 of 4 wished; looks for more in 9 min 0 s\n' +
      '└─ the last of 5 changes, 1 min 0 s ago: ScaledDown: no node\n',
  ]);
  assert.deepEqual(textOf(4, { failedGrowths: 1 }), ['trainers: 3 of 4 wished; looks for more in 19 min 0 s\n']);
  assert.deepEqual(textOf(4, { askedTime: '2026-01-01T00:00:30Z' }), ['trainers: 3 of 4 wished; looks for more\n']);
  assert.deepEqual(textOf(4, {}, { completionTime: '2026-01-01T00:00:30Z' }), []);
});

test('of a Workload, what Kueue lends by it is shown, or what it says', () => {
  const condition = (type: string, status: 'True' | 'False', message = '') => ({ type, status, message }) as never;
  const textOf = (status: Workload['status'], spec: Workload['spec'] = { podSets: [{ count: 4 }] }) =>
    workloadText({ metadata, spec, ...(status && { status }) }).replace('Workload facetrainjob-faces  ', '');
  const admitted = [condition('QuotaReserved', 'True'), condition('Admitted', 'True')];
  assert.equal(textOf(undefined), 'asks quota for 4 pods: Kueue has not looked at it');
  assert.equal(
    textOf({ conditions: [condition('QuotaReserved', 'False', 'too few')] }),
    'asks quota for 4 pods: too few',
  );
  assert.equal(textOf({ conditions: admitted }), 'has quota for 4 pods');
  assert.equal(textOf({ conditions: admitted, reclaimablePods: [{ count: 3 }] }), 'has quota for 1 pod');
  const partly = { podSetAssignments: [{ count: 3 }] };
  assert.equal(textOf({ conditions: admitted, admission: partly }), 'has quota for 3 pods');
  assert.equal(
    textOf({ conditions: [...admitted, condition('Evicted', 'True', 'by another')] }),
    'evicted: by another',
  );
  assert.equal(textOf({ conditions: admitted }, { active: false }), 'deactivated');
  assert.equal(textOf({ conditions: [...admitted, condition('Finished', 'True')] }), 'finished');
});
