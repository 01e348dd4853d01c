import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
import { MULTIKUEUE } from './multikueue.ts';
import type { ObservedQueue, ObservedWorkload } from './observed.ts';
import type { Action } from './plan.ts';
import { after, at, makeCondition as condition, makeJob, makeObservedWorkload, makePod } from './testing/builders.ts';
import { testEnvironment } from './testing/test-environment.ts';
import { WORKLOAD_FINALIZER } from './workload.ts';

const job = () => makeJob().with({ queue: { name: 'team' } });
const managed = () => job().with({ managedBy: MULTIKUEUE });
const queueWith = (workload?: Partial<ObservedWorkload>, more: Partial<ObservedQueue> = {}): ObservedQueue => ({
  workloads: 'Listed',
  flavors: {},
  ...(workload && { workload: makeObservedWorkload(workload) }),
  ...more,
});
const named = (actions: Action[]) =>
  actions.map((action) =>
    action.type === 'create'
      ? `create ${action.object.kind}`
      : action.type === 'patchWorkload'
        ? `patch ${Object.keys(action.status ?? {}).join()}${action.finalizers ? 'finalizers' : ''}`
        : `${action.type} ${'kind' in action ? action.kind : ''}`,
  );

test('on the manager a job has a Workload and nothing else', () => {
  const evicted = { conditions: [condition('QuotaReserved'), condition('Admitted'), condition('Evicted')] };
  const running: FaceTrainJobStatus = { attempt: 0, attemptStartTime: at(0) };
  const ended: FaceTrainJobStatus = { completionTime: at(1) };
  const cases: Record<string, [string[], ObservedQueue, FaceTrainJobStatus?, ReturnType<typeof managed>?]> = {
    'no Workload': [['create Workload'], queueWith()],
    'a class that cannot be read': [[], queueWith(undefined, { problem: 'not found' })],
    'other pods': [['delete Workload'], queueWith({ specDigest: 'other' })],
    'other pods, with quota': [[], queueWith({ specDigest: 'other', conditions: [condition('QuotaReserved')] })],
    'evicted while its pods run': [[], queueWith(evicted), running],
    'evicted, and no pod is left': [['patch admission,conditions'], queueWith(evicted), { attempt: 1 }],
    suspended: [['delete Workload'], queueWith({}), running, managed().suspended()],
    'being deleted': [['patch finalizers'], queueWith({ deleting: true }), running],
    'over, and not Finished yet': [[], queueWith({}), ended],
    over: [['patch finalizers'], queueWith({ conditions: [condition('Finished')] }), ended],
    'of another manager': [[], queueWith(), {}, job().with({ managedBy: 'acme.example/other' })],
    'of a deleted job': [[], queueWith(), {}, managed().deleting()],
    'no Kueue': [[], { workloads: 'NotServed', flavors: {} }],
  };
  for (const [name, [want, queue, status = {}, builder = managed()]] of Object.entries(cases)) {
    const made = planFaceTrainJob(builder.observe(status, [], { queue }), after(10), testEnvironment);
    assert.deepEqual(named(made.actions), want, name);
    assert.equal(made.status, status, name);
  }
});

test('on the worker the job adopts the Workload of MultiKueue, and keeps it until it is over', () => {
  const prebuilt = 'facetrainjob-faces';
  const admitted = [condition('QuotaReserved'), condition('Admitted')];
  const plan = (queue: ObservedQueue, status: FaceTrainJobStatus = {}, builder = job(), pods = 0) => {
    const running = Array.from({ length: pods }, (_, rank) => makePod(rank).running().build());
    return planFaceTrainJob(builder.observe(status, running, { queue }), after(10), testEnvironment).actions;
  };
  assert.deepEqual(named(plan(queueWith(undefined, { prebuilt }))), []);
  const [adoption, ...others] = plan(queueWith({ orphan: true, finalizers: [], conditions: admitted }, { prebuilt }));
  assert.deepEqual(others, []);
  assert.partialDeepStrictEqual(adoption, {
    type: 'patchWorkload',
    labels: { 'facetrain.dev/job-uid': 'uid-faces' },
    ownerReferences: [{ name: 'faces', uid: 'uid-faces', controller: true }],
    finalizers: [WORKLOAD_FINALIZER],
  });
  // Whatever its digest is: it was made by the operator of the other cluster.
  const own = queueWith({ specDigest: 'other', conditions: admitted }, { prebuilt });
  assert.equal(named(plan(own)).filter((action) => action === 'create Pod').length, 2);
  assert.deepEqual(named(plan(own, { attempt: 1 }, job().suspended())), []);
  const trained = { attempt: 0, trainingCompletionTime: at(5) };
  const isFinished = (actions: Action[]) => named(actions).includes('patch conditions');
  assert.equal(isFinished(plan(own, trained, job().quantized())), false);
  assert.equal(isFinished(plan(own, { ...trained, completionTime: at(9) }, job().quantized())), true);
});
