import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Action } from '@facetrain/planner/plan';
import { ApiError } from '../runtime/api-error.ts';
import type { Client } from '../runtime/client.ts';
import type { EventRecorder } from '../runtime/event-recorder.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import { silentLog } from '../testing/silent-log.ts';
import { Executor } from './pod-executor.ts';
import { faceTrainJobs, type JobObject } from './resources.ts';

const job: JobObject = {
  metadata: { name: 'faces', namespace: 'n', uid: 'u', resourceVersion: '1', creationTimestamp: '' },
  spec: {},
};
const patchOfWorkload: Action = {
  type: 'patchWorkload',
  kind: 'Workload',
  name: 'facetrainjob-faces',
  uid: 'w',
  resourceVersion: '1',
  reason: 'PodsReady',
  status: {},
};

const executorWith = (patch: (...args: Parameters<Client['patch']>) => Promise<KubernetesObject>): Executor =>
  new Executor({
    kind: 'FaceTrainJob',
    resource: faceTrainJobs,
    client: { patch } as unknown as Client,
    caches: {},
    events: { emit: () => {} } as unknown as EventRecorder,
  });

test('a timer ends in its time while the status that has changed meanwhile is not due', async () => {
  let written = 0;
  const patch = async () => {
    written += 1;
    return job;
  };
  const executor = executorWith(patch);
  const execute = (active: number, requeueAfterSeconds: number | null) => {
    const status = { trainers: { active, ready: 0, succeeded: 0, failed: 0, desired: 8, selector: '' } };
    return executor.execute(job, { actions: [], status, events: [], requeueAfterSeconds }, silentLog);
  };
  // A new status may start timers.
  assert.equal(await execute(1, 2), 0);
  assert.equal(await execute(2, 2), 2);
  for (const seconds of [await execute(3, null), await execute(4, 30)]) assert(seconds! > 2 && seconds! <= 5);
  assert.equal(written, 1);
});

test('a Workload that cannot be changed holds back no status, and is tried again', async () => {
  const written: object[] = [];
  const patch = async ({ plural }: Resource, _namespace: string | null, _name: string, body: object) => {
    if (plural === 'workloads') throw new ApiError('PATCH', 500, 'InternalError', 'failed calling webhook "vworkload"');
    written.push((body as { status: object }).status);
    return job;
  };
  const executor = executorWith(patch);
  const status = { completionTime: '2026-01-01T00:00:00Z' };
  const plan = { actions: [patchOfWorkload], status, events: [], requeueAfterSeconds: 0 };
  await assert.rejects(executor.execute(job, plan, silentLog), /failed calling webhook/);
  assert.deepEqual(written, [status]);
});
