import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ApiError } from '../runtime/api-error.ts';
import { silentLog } from '../testing/silent-log.ts';
import { observeQueue, readReferences, releaseOrphans } from './queues.ts';
import type { JobObject, WorkloadObject } from './resources.ts';

const metadata = { name: 'faces', namespace: 'n', uid: 'u', resourceVersion: '1', creationTimestamp: '' };
const workload: WorkloadObject = {
  metadata: {
    ...metadata,
    name: 'facetrainjob-faces',
    ownerReferences: [
      { apiVersion: 'facetrain.dev/v1alpha1', kind: 'FaceTrainJob', name: 'faces', uid: 'u', controller: true },
    ],
  },
  spec: {},
  status: { admission: { podSetAssignments: [{ flavors: { cpu: 'gpus' } }] } },
};
const client = { get: async () => ({ metadata, spec: { nodeLabels: { pool: 'gpus' } } }) as never };
const caches = { Workload: { indexed: () => [workload] } as never };
const elastic = { minReplicas: 1, maxReplicas: 4, scaleDownSeconds: 60, scaleUpSeconds: 60 };
const running = (desired: number, more = {}) => ({
  attemptStartTime: '2026-01-01T00:00:00Z',
  trainers: { desired, active: desired, ready: desired, succeeded: 0, failed: 0 },
  ...more,
});

test('flavors are read while pods may be made: without any, and while an elastic gang lacks some', async () => {
  const readsFor = async (status: JobObject['status'], trainers: { replicas: number; elastic?: typeof elastic }) => {
    const job: JobObject = { metadata, spec: {}, ...(status && { status }) };
    const { flavors } = await readReferences(client, caches, 'FaceTrainJob', job, {
      queue: { name: 'team' },
      trainers,
    });
    return Object.keys(flavors).length > 0;
  };
  assert.equal(await readsFor({}, { replicas: 4 }), true);
  assert.equal(await readsFor(running(4), { replicas: 4, elastic }), false);
  assert.equal(await readsFor(running(2), { replicas: 4 }), false);
  assert.equal(await readsFor(running(2), { replicas: 4, elastic }), true);
  assert.equal(await readsFor(running(2, { completionTime: '2026-01-01T01:00:00Z' }), { replicas: 4, elastic }), false);
});

test('while Workloads have not been listed, none counts as deleted', async () => {
  const job: JobObject = { metadata: { ...metadata, labels: { 'kueue.x-k8s.io/queue-name': 'team' } }, spec: {} };
  const unread = { Workload: { isSynced: false, indexed: () => [] } as never };
  const { workloads, workload, label } = observeQueue(unread, 'FaceTrainJob', job, { flavors: {} });
  assert.deepEqual([workloads, workload, label], ['NotListed', undefined, 'team']);
  // Nor is anything else of Kueue's asked for: it may fail as well.
  const fail = { get: () => assert.fail('a read') };
  const spec = { queue: { name: 'team', priorityClassName: 'high' } };
  assert.deepEqual(await readReferences(fail, unread, 'FaceTrainJob', job, spec), { flavors: {} });
  assert.equal(observeQueue(caches, 'FaceTrainJob', job, { flavors: {} }).workload?.name, 'facetrainjob-faces');
});

test('the Workloads of a job are told apart by the first pod that they are for', () => {
  const job: JobObject = { metadata, spec: {} };
  const named = (name: string, ...fields: object[]) =>
    Object.assign({}, workload, { metadata: { ...workload.metadata, name } }, ...fields) as WorkloadObject;
  const all = [
    named('facetrainjob-faces.3', { spec: { podSets: [{ count: 2, minCount: 1 }] } }),
    named('facetrainjob-faces', { status: { admission: { podSetAssignments: [{ count: 3 }] } } }),
    named('facetrainjob-faces.03'),
    named('facetrainjob-other'),
  ];
  const observed = observeQueue({ Workload: { indexed: () => all } as never }, 'FaceTrainJob', job, { flavors: {} });
  assert.partialDeepStrictEqual(observed.workload, { name: 'facetrainjob-faces', first: 0, assignment: { count: 3 } });
  assert.deepEqual(
    observed.growth!.map(({ name, first, count, minCount }) => [name, first, count, minCount]),
    [['facetrainjob-faces.3', 3, 2, 1]],
  );
});

test('a Workload of a deleted job that cannot be released does not hold up the next job of its name', async () => {
  let asked = 0;
  const fail = async () => {
    asked += 1;
    throw new ApiError('DELETE', 403, undefined, 'a policy forbids it');
  };
  const orphan = { ...workload, metadata: { ...workload.metadata, labels: { 'facetrain.dev/job-uid': 'earlier' } } };
  const cached = { Workload: { indexed: () => [orphan] }, Pod: { indexed: () => [] } } as never;
  const release = (job: JobObject | undefined) =>
    releaseOrphans({ delete: fail, patch: fail } as never, cached, 'FaceTrainJob', 'n/faces', job, silentLog);
  await release({ metadata, spec: {} });
  await assert.rejects(release(undefined), /a policy forbids it/);
  assert.equal(asked, 2);
});
