import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { columns, draw, stateOf } from './status.ts';

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
