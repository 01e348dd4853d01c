import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ObservedPod } from '@facetrain/planner/observed';
import { observePod } from './observe.ts';
import type { PodObject } from './resources.ts';

const pod = (
  status: PodObject['status'],
  labels: Record<string, string> = { 'facetrain.dev/attempt': '2', 'facetrain.dev/rank': '1' },
): PodObject => ({
  metadata: {
    name: 'faces-2-1',
    namespace: 'n',
    uid: 'u',
    resourceVersion: '1',
    creationTimestamp: '2026-01-01T00:00:00Z',
    labels,
  },
  spec: { nodeName: 'node-1' },
  ...(status && { status }),
});
const terminated = (exitCode: number, more = {}) => ({
  name: 'facetrain',
  state: { terminated: { exitCode, reason: 'Error', finishedAt: '2026-01-01T00:01:00Z', ...more } },
});

const cases: Record<
  string,
  { status: PodObject['status']; want: { [Field in keyof ObservedPod]?: ObservedPod[Field] | undefined } }
> = {
  'without a status yet': { status: undefined, want: { phase: 'Pending', ready: false, attempt: 2, rank: 1 } },
  running: {
    status: { phase: 'Running', conditions: [{ type: 'Ready', status: 'True' }] },
    want: { phase: 'Running', ready: true, node: 'node-1' },
  },
  'failed, with a termination message of the trainer': {
    status: {
      phase: 'Failed',
      containerStatuses: [terminated(2, { message: '{"code":"InvalidDataset","message":"no faces"}' })],
    },
    want: {
      exitCode: 2,
      reason: 'Error',
      termination: { code: 'InvalidDataset', message: 'no faces' },
      finishedAt: '2026-01-01T00:01:00Z',
    },
  },
  'failed, with the end of its log as termination message': {
    status: { phase: 'Failed', containerStatuses: [terminated(1, { message: 'Segmentation fault' })] },
    want: { exitCode: 1, termination: undefined },
  },
  'succeeded, with the artifact in its termination message': {
    status: {
      phase: 'Succeeded',
      containerStatuses: [
        terminated(0, {
          reason: 'Completed',
          message: '{"artifact":{"bytes":7,"meanCosine":0.98952621,"gate":"Passed"}}',
        }),
      ],
    },
    want: {
      exitCode: 0,
      reason: undefined,
      result: { artifact: { bytes: 7, meanCosine: 0.98953, gate: 'Passed' } },
      termination: undefined,
    },
  },
  'succeeded, with a termination message of another version': {
    status: { phase: 'Succeeded', containerStatuses: [terminated(0, { message: '{"artifact":{"bytes":"many"}}' })] },
    want: { phase: 'Succeeded', exitCode: 0, result: undefined, termination: undefined },
  },
  'killed for its memory': {
    status: { phase: 'Failed', containerStatuses: [terminated(137, { reason: 'OOMKilled' })] },
    want: { exitCode: 137, reason: 'OOMKilled' },
  },
  evicted: {
    status: { phase: 'Failed', reason: 'Evicted', conditions: [{ type: 'DisruptionTarget', status: 'True' }] },
    want: { reason: 'Evicted', disrupted: true, exitCode: undefined },
  },
  'running, with a failed sidecar, which does not count': {
    status: { phase: 'Running', containerStatuses: [{ ...terminated(1), name: 'sidecar' }] },
    want: { exitCode: undefined },
  },
  'failed in the init container that fetches': {
    status: {
      phase: 'Failed',
      initContainerStatuses: [
        { ...terminated(2, { message: '{"code":"StorageFailed","message":"access denied"}' }), name: 'fetch-dataset' },
      ],
    },
    want: { exitCode: 2, termination: { code: 'StorageFailed', message: 'access denied' } },
  },
  unschedulable: {
    status: {
      phase: 'Pending',
      conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message: '0/3 nodes' }],
    },
    want: { waiting: { reason: 'Unschedulable', message: '0/3 nodes' } },
  },
  'waiting for an image that cannot be pulled': {
    status: {
      phase: 'Pending',
      containerStatuses: [
        { name: 'facetrain', state: { waiting: { reason: 'ImagePullBackOff', message: 'no such image' } } },
      ],
    },
    want: { waiting: { reason: 'ImagePullBackOff', message: 'no such image' } },
  },
  starting: {
    status: {
      phase: 'Pending',
      containerStatuses: [{ name: 'facetrain', state: { waiting: { reason: 'ContainerCreating' } } }],
    },
    want: { waiting: undefined },
  },
};

for (const [name, { status, want }] of Object.entries(cases)) {
  test(`a pod: ${name}`, () => {
    const observed = observePod(pod(status)) as unknown as Record<string, unknown>;
    for (const [field, value] of Object.entries(want)) assert.deepEqual(observed[field], value, field);
  });
}

test('a pod without the labels of attempt and rank is not observed', () => {
  for (const labels of [
    {},
    { 'facetrain.dev/attempt': '0' },
    { 'facetrain.dev/attempt': 'x', 'facetrain.dev/rank': '0' },
  ])
    assert.equal(observePod(pod({}, labels as Record<string, string>)), null);
});
