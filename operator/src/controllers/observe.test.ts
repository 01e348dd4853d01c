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
  spec: { nodeName: 'node-1', initContainers: [{ name: 'log-shipper', restartPolicy: 'Always' }] },
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
  'evicted over its own limit': {
    status: {
      phase: 'Failed',
      reason: 'Evicted',
      message: 'Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. ',
      containerStatuses: [terminated(137)],
    },
    want: {
      exitCode: 137,
      reason: 'Evicted',
      disrupted: false,
      rejected: undefined,
      message: 'Pod ephemeral local storage usage exceeds the total limit of containers 20Mi.',
    },
  },
  'drained: in the words of the eviction API': {
    status: {
      phase: 'Running',
      conditions: [
        {
          type: 'DisruptionTarget',
          status: 'True',
          reason: 'EvictionByEvictionAPI',
          message: 'Eviction API: evicting',
        },
      ],
    },
    want: { disrupted: true, message: 'EvictionByEvictionAPI: Eviction API: evicting' },
  },
  'rejected by the kubelet': {
    status: {
      phase: 'Failed',
      reason: 'OutOfcpu',
      message: 'Pod was rejected: Node didn’t have enough resource: cpu, requested: 64000',
    },
    want: { exitCode: undefined, reason: 'OutOfcpu', rejected: true },
  },
  'failed to start, in the words of the runtime': {
    status: {
      phase: 'Failed',
      containerStatuses: [
        terminated(128, { reason: 'StartError', message: 'exec: "/no/such/program": no such file or directory' }),
      ],
    },
    want: {
      exitCode: 128,
      reason: 'StartError',
      termination: undefined,
      message: 'exec: "/no/such/program": no such file or directory',
    },
  },
  'failed in an init container of the template': {
    status: {
      phase: 'Failed',
      initContainerStatuses: [
        { ...terminated(137), name: 'log-shipper' },
        { ...terminated(2, { message: "ls: cannot access '/no'\nls: no such folder\n" }), name: 'copy-certs' },
      ],
    },
    want: {
      exitCode: undefined,
      termination: undefined,
      foreignContainer: {
        name: 'copy-certs',
        exitCode: 2,
        reason: 'Error',
        message: "ls: cannot access '/no' | ls: no such folder",
      },
    },
  },
  'evicted in an init container of the template: the pod’s own words': {
    status: {
      phase: 'Failed',
      reason: 'Evicted',
      initContainerStatuses: [{ ...terminated(137), name: 'copy-certs' }],
    },
    want: { exitCode: undefined, reason: 'Evicted', foreignContainer: undefined },
  },
  'running, with a native sidecar that fails again and again': {
    status: {
      phase: 'Running',
      initContainerStatuses: [{ ...terminated(1), name: 'log-shipper' }],
      containerStatuses: [{ name: 'facetrain', state: { running: {} } }],
    },
    want: { exitCode: undefined, foreignContainer: undefined, waiting: undefined },
  },
  'pending, with an init container of the template that fails: the pod may yet be Failed': {
    status: { phase: 'Pending', initContainerStatuses: [{ ...terminated(2), name: 'copy-certs' }] },
    want: { exitCode: undefined, foreignContainer: undefined },
  },
  'initializing: which container runs': {
    status: {
      phase: 'Pending',
      initContainerStatuses: [
        { name: 'log-shipper', state: { running: {} } },
        { name: 'warm-cache', state: { running: {} } },
      ],
      containerStatuses: [{ name: 'facetrain', state: { waiting: { reason: 'PodInitializing' } } }],
    },
    want: { waiting: { reason: 'PodInitializing', message: 'init container warm-cache runs' } },
  },
  'waiting in a container of the template, which is named': {
    status: {
      phase: 'Pending',
      initContainerStatuses: [
        { name: 'warm-cache', state: { waiting: { reason: 'CreateContainerConfigError', message: 'no secret "x"' } } },
      ],
    },
    want: { waiting: { reason: 'CreateContainerConfigError', message: 'init container warm-cache: no secret "x"' } },
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

test('a pod of an elastic gang says with how many ranks it was started', () => {
  const sizeIn = (label: string) =>
    observePod(pod({}, { 'facetrain.dev/attempt': '2', 'facetrain.dev/rank': '1', 'facetrain.dev/gang-size': label }))!
      .gangSize;
  assert.deepEqual(['4', '0', 'four'].map(sizeIn), [4, undefined, undefined]);
});

test('a pod without the labels of attempt and rank is not observed', () => {
  for (const labels of [
    {},
    { 'facetrain.dev/attempt': '0' },
    { 'facetrain.dev/attempt': 'x', 'facetrain.dev/rank': '0' },
  ])
    assert.equal(observePod(pod({}, labels as Record<string, string>)), null);
});

test('what the kubelet starts again, by the rules of the stored pod', () => {
  const facetrain = (status: object) => ({ phase: 'Running', containerStatuses: [{ name: 'facetrain', ...status }] });
  const rules = [
    { action: 'Restart', exitCodes: { operator: 'In', values: [4] } },
    { action: 'Restart', exitCodes: { operator: 'In', values: [137] } },
    { action: 'Restart', exitCodes: { operator: 'NotIn', values: [0] } },
    { action: 'RestartAllContainers', exitCodes: { operator: 'In', values: [9] } },
  ];
  const observed = (status: PodObject['status'], restartPolicyRules?: typeof rules) => {
    const { spec, ...others } = pod(status);
    const containers = [{ name: 'sidecar' }, { name: 'facetrain', ...(restartPolicyRules && { restartPolicyRules }) }];
    return observePod({ ...others, spec: { ...spec, containers } })!;
  };
  const exitCodes = [4, 137];
  const lastState = { terminated: { exitCode: 137, reason: 'OOMKilled', finishedAt: '2026-01-01T00:01:00Z' } };
  const lastEnd = { exitCode: 137, reason: 'OOMKilled', finishedAt: '2026-01-01T00:01:00Z' };
  const created = { reason: 'ContainerCreating' };
  const unknown = {
    terminated: { exitCode: 137, reason: 'ContainerStatusUnknown', message: 'The container could not be located' },
  };
  assert.equal(observed(facetrain({ restartCount: 1, lastState })).containerRestarts, undefined);
  for (const [status, want] of [
    [undefined, { exitCodes, count: 0, isRunning: false }],
    [facetrain({ restartCount: 0, state: { running: {} } }), { exitCodes, count: 0, isRunning: true }],
    [
      facetrain({ restartCount: 1, state: { running: {} }, lastState }),
      { exitCodes, count: 1, isRunning: true, lastEnd },
    ],
    [
      facetrain({ restartCount: 1, state: { waiting: { reason: 'CrashLoopBackOff' } }, lastState }),
      { exitCodes, count: 1, isRunning: false, lastEnd },
    ],
    // A container that is created, and does not run yet.
    [
      facetrain({ restartCount: 1, state: { waiting: {} }, lastState }),
      { exitCodes, count: 1, isRunning: false, lastEnd },
    ],
    [facetrain({ restartCount: 0, state: { waiting: created } }), { exitCodes, count: 0, isRunning: false }],
    // Of a pod that is being evicted: the kubelet finds nothing of the container that ran, its first or a later one.
    [
      facetrain({ restartCount: 1, state: { waiting: created }, lastState: unknown }),
      { exitCodes, count: 1, isRunning: false, lastEnd: unknown.terminated, isGone: true },
    ],
    [
      facetrain({ restartCount: 1, state: { waiting: { reason: 'PodInitializing' } }, lastState }),
      { exitCodes, count: 1, isRunning: false, lastEnd, isGone: true },
    ],
    // The kubelet has lost it, and cannot start another.
    [
      facetrain({ restartCount: 1, state: { waiting: { reason: 'ErrImagePull' } }, lastState: unknown }),
      { exitCodes, count: 1, isRunning: false, lastEnd: unknown.terminated },
    ],
  ] as const)
    assert.deepEqual(observed(status as PodObject['status'], rules).containerRestarts, want);
  // The end of the present program is that of the pod, as everywhere.
  assert.equal(observed({ phase: 'Running', containerStatuses: [terminated(4)] }, rules).exitCode, 4);
});
