import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
import { MULTIKUEUE } from './multikueue.ts';
import type { ObservedQueue, ObservedWorkload } from './observed.ts';
import type { Action } from './plan.ts';
import { planQuantizeJob } from './quantizejob/plan-quantizejob.ts';
import {
  after,
  at,
  makeCondition as condition,
  makeJob,
  makeObservedWorkload,
  makePod,
  makeQuantizeJob,
} from './testing/builders.ts';
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

/** The Workload asks for what the job needs. */
function withDigest(queue: ObservedQueue): ObservedQueue {
  if (queue.workload === undefined) return queue;
  const { actions } = planFaceTrainJob(managed().observe({}, [], { queue: queueWith() }), after(0), testEnvironment);
  const [made] = actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));
  const specDigest = made!.metadata.labels['facetrain.dev/spec-digest']!;
  return { ...queue, workload: { ...queue.workload, specDigest } };
}

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
  }
});

test('on the manager the status says why the job is on no worker, and is the copied one while it may be', () => {
  const copied: FaceTrainJobStatus = {
    observedGeneration: 1,
    phase: 'Running',
    attempt: 2,
    startTime: at(0),
    attemptStartTime: at(0),
    progress: { step: 7, totalSteps: 9, epoch: 1, percent: 77, lastHeartbeatTime: at(5) },
    conditions: [{ ...condition('Ready'), observedGeneration: 1 }],
  };
  const evicted = { conditions: [condition('QuotaReserved'), condition('Admitted'), condition('Evicted')] };
  const sent = (state: string) => [{ name: 'sent', state, message: 'words' }];
  const waits = { conditions: [condition('QuotaReserved', 'False', 'Pending', 'no quota')] };
  // null: the copied one stays.
  const cases: Record<string, [string | null, ObservedQueue, ReturnType<typeof managed>?, FaceTrainJobStatus?]> = {
    'no Workload yet': ['Pending Queued: queue team: the Workload is being made', queueWith(), managed(), {}],
    'no quota': ['Pending Queued: queue team: no quota', queueWith(waits)],
    'a class that cannot be read': [
      'Pending QueueUnavailable: spec.queue: team; not found',
      queueWith(undefined, { problem: 'not found' }),
    ],
    'quota, and no worker has room': [
      'Pending Queued: queue team: quota is reserved; admission checks: sent (Pending): words',
      queueWith({ conditions: [condition('QuotaReserved')], checks: sent('Pending') }),
    ],
    'on a worker, but another check is pending': [
      null,
      queueWith({ conditions: [condition('QuotaReserved')], checks: [...sent('Ready'), ...sent('Pending')] }),
    ],
    admitted: [null, queueWith({ conditions: [condition('QuotaReserved'), condition('Admitted')] })],
    'evicted, while its pods end': [null, queueWith(evicted)],
    'being suspended': [null, queueWith({}), managed().suspended()],
    suspended: ['Suspended Suspended: suspended as spec.suspend asks', queueWith(), managed().suspended()],
    over: [null, queueWith({ conditions: [condition('Finished')] }), managed(), { ...copied, completionTime: at(1) }],
    'of another manager': [null, queueWith(), managed().with({ managedBy: 'acme.example/other' })],
    'of a deleted job': [null, queueWith(), managed().deleting()],
    'no Kueue': [null, { workloads: 'NotServed', flavors: {} }],
  };
  for (const [name, [want, queue, builder = managed(), status = copied]] of Object.entries(cases)) {
    const observe = (seen: FaceTrainJobStatus) => builder.observe(seen, [], { queue: withDigest(queue) });
    const made = planFaceTrainJob(observe(status), after(10), testEnvironment);
    if (want === null) {
      assert.equal(made.status, status, name);
      continue;
    }
    const ready = made.status.conditions!.find(({ type }) => type === 'Ready')!;
    assert.equal(`${made.status.phase} ${ready.reason}: ${ready.message}`, want, name);
    assert.equal(made.status.attemptStartTime, undefined, name);
    assert.deepEqual(made.status.progress?.step, status.progress?.step, name);
    // Written once.
    assert.equal(planFaceTrainJob(observe(made.status), after(20), testEnvironment).status, made.status, name);
  }
});

test('the same for a QuantizeJob', () => {
  const builder = makeQuantizeJob().with({ queue: { name: 'team' }, managedBy: MULTIKUEUE, suspend: true });
  const plan = (queue: ObservedQueue, status: QuantizeJobStatus) =>
    planQuantizeJob(builder.observe(status, [], { queue }), after(10), testEnvironment);
  const copied: QuantizeJobStatus = { phase: 'Running', attempt: 0, attemptStartTime: at(0) };
  const running = queueWith({ name: 'quantizejob-small' });
  assert.deepEqual(named(plan(running, copied).actions), ['delete Workload']);
  assert.equal(plan(running, copied).status, copied);
  const { status, events } = plan(queueWith(), copied);
  assert.deepEqual([status.phase, status.attemptStartTime], ['Suspended', undefined]);
  assert.deepEqual(
    events.map(({ reason }) => reason),
    ['Suspended'],
  );
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
