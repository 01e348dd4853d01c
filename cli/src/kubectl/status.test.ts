import assert from 'node:assert/strict';
import { test } from 'node:test';
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

test('a trainer that the kubelet has started again in its pod is told', () => {
  const pod = (restartCount: number) => ({
    metadata: { name: 'faces-0-0', uid: 'u', resourceVersion: '1', creationTimestamp: '' },
    spec: {},
    status: {
      phase: 'Running',
      conditions: [{ type: 'Ready', status: 'True' }],
      containerStatuses: [{ name: 'facetrain', state: {}, restartCount }],
    },
  });
  assert.equal(stateOf(pod(0)), 'Running, ready');
  assert.equal(stateOf(pod(1)), 'Running, ready, started again once');
  assert.equal(stateOf(pod(2)), 'Running, ready, started again 2 times');
});
