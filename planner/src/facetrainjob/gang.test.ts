import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import type { ObservedFaceTrainJob, ObservedObject, ObservedPod } from '../observed.ts';
import { after, at, makeJob, makePod } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { planFaceTrainJob } from './plan-facetrainjob.ts';

const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
const GROUP: ObservedObject = { kind: 'PodGroup', name: 'faces-0', uid: 'g', owned: true };
const OBJECTS: ObservedObject[] = [
  ...(['Service', 'NetworkPolicy'] as const).map(
    (kind): ObservedObject => ({ kind, name: 'faces', uid: kind, owned: true }),
  ),
  { kind: 'ConfigMap', name: 'faces-0', uid: 'c', owned: true },
];

function plan(pods: ObservedPod[], observation: Partial<ObservedFaceTrainJob>, status = STARTED) {
  return planFaceTrainJob(
    makeJob().observe(status, pods, {
      objects: [...OBJECTS, GROUP],
      podGroupApi: 'scheduling.k8s.io/v1beta1',
      ...observation,
    }),
    after(100),
    testEnvironment,
  );
}

test('a missing PodGroup is created again', () => {
  const { actions } = plan([makePod(0).build(), makePod(1).build()], { objects: OBJECTS });
  assert.deepEqual(
    actions.map((action) => action.type === 'create' && action.object.kind),
    ['PodGroup'],
  );
});

test('a gang that began as plain pods gets no PodGroup later, and its missing pods join none', () => {
  const pods = [{ ...makePod(0).build(), ungrouped: true as const }];
  const { actions } = plan(pods, { objects: OBJECTS }, { observedGeneration: 1, attempt: 0 });
  const created = actions.map((action) => action.type === 'create' && action.object);
  assert.deepEqual(
    created.map((object) => object && [object.kind, object.kind === 'Pod' && object.spec.schedulingGroup]),
    [['Pod', undefined]],
  );
});

describe('a PodGroup that a user deletes', () => {
  const going = { objects: [...OBJECTS, { ...GROUP, deleting: true as const }] };
  test('while pods wait to be scheduled: a restart that does not count', () => {
    const { status, actions } = plan([makePod(0).build(), makePod(1).running().build()], going);
    assert.deepEqual(actions, []);
    assert.partialDeepStrictEqual(status, {
      attempt: 1,
      restarts: { count: 0, disruptions: 1, lastReason: 'PodGroupDeleted' },
    });
  });
  test('once every pod is scheduled: nothing', () => {
    assert.partialDeepStrictEqual(plan([makePod(0).running().build(), makePod(1).running().build()], going).status, {
      phase: 'Running',
      attempt: 0,
    });
  });
});

test('the PodGroup names the PriorityClass of the pod template, and no class if the template names none', () => {
  const groupOf = (podTemplate?: object) => {
    const job = makeJob().trainers({ podTemplate }).observe({}, [], { podGroupApi: 'scheduling.k8s.io/v1beta1' });
    const created = planFaceTrainJob(job, after(100), testEnvironment).actions.flatMap((action) =>
      action.type === 'create' && action.object.kind === 'PodGroup' ? [action.object.spec] : [],
    );
    return created[0];
  };
  const policy = { schedulingPolicy: { gang: { minCount: 2 } } };
  assert.deepEqual(groupOf({ spec: { priorityClassName: 'training' } }), {
    ...policy,
    priorityClassName: 'training',
  });
  assert.deepEqual(groupOf({ spec: {} }), policy);
  assert.deepEqual(groupOf(), policy);
});

describe('priorities of pods and PodGroup', () => {
  const pods = (priority: number | undefined) => [
    makePod(0).with({ priority: 100 }).build(),
    makePod(1).with({ priority }).build(),
  ];
  const group = (priority: number | undefined) => ({ objects: [...OBJECTS, { ...GROUP, priority }] });
  test('differ: a restart that counts, as a webhook may cause it in every attempt', () => {
    assert.partialDeepStrictEqual(plan(pods(7), group(100)).status, {
      attempt: 1,
      restarts: {
        count: 1,
        disruptions: 0,
        lastReason: 'PriorityMismatch',
        lastRank: 1,
        lastMessage:
          'pod faces-0-1 has priority 7, its PodGroup 100: a scheduler places neither; ' +
          'name the PriorityClass in spec.trainers.podTemplate.spec.priorityClassName',
      },
    });
  });
  test('differ in a pod with several ranks: the first of them is named', () => {
    const { spec } = makeJob().trainers({ replicas: 2, ranksPerPod: 4 }).observe();
    assert.equal(plan(pods(7), { ...group(100), spec }).status.restarts?.lastRank, 4);
  });
  test('agree, are not known, or matter no more because the pod has a node: nothing', () => {
    const placed = [pods(100)[0]!, makePod(1).running().with({ priority: 7 }).build()];
    for (const { status } of [
      plan(pods(100), group(100)),
      plan(pods(undefined), group(100)),
      plan(pods(7), group(undefined)),
      plan(placed, group(100)),
    ])
      assert.partialDeepStrictEqual(status, { attempt: 0, phase: 'Pending' });
  });
});

test('the message about a refused pod says that the others wait for it', () => {
  const refused = { kind: 'Pod' as const, name: 'faces-0-1', message: 'exceeded quota' };
  const message = (observation: Partial<ObservedFaceTrainJob>) =>
    plan(
      [
        makePod(0)
          .with({ createdAt: at(98) })
          .build(),
      ],
      { refused, ...observation },
      { ...STARTED, attemptStartTime: undefined },
    ).status.conditions!.find(({ type }) => type === 'Stalled')!.message;
  assert.equal(
    message({}),
    'Pod faces-0-1: exceeded quota; 1 of 2 pods of the gang exist, and none of them starts before all do',
  );
  assert.equal(message({ podGroupApi: null }), 'Pod faces-0-1: exceeded quota');
});

test('of an elastic gang, the message says so only while fewer than minReplicas exist', () => {
  const refused = { kind: 'Pod' as const, name: 'faces-0-2', message: 'no' };
  const message = (minReplicas: number) => {
    const pods = [0, 1].map((rank) => makePod(rank).with({ gangSize: 4 }).build());
    const job = makeJob().trainers({ replicas: 4, elastic: { minReplicas, maxReplicas: 4 } });
    const observed = job.observe({ observedGeneration: 1, attempt: 0, startTime: at(0) }, pods, {
      refused,
      podGroupApi: 'scheduling.k8s.io/v1beta1',
    });
    const { conditions } = planFaceTrainJob(observed, after(1), testEnvironment).status;
    return conditions!.find(({ type }) => type === 'Stalled')!.message;
  };
  assert.equal(message(2), 'Pod faces-0-2: no');
  assert.match(message(3), /; 2 of 4 pods of the gang exist, and none of them starts before 3 do$/);
});

test('pods without a report of the scheduler are named in the message', () => {
  const { status } = plan([makePod(0).build(), makePod(1).build()], {});
  assert.equal(
    status.conditions!.find(({ type }) => type === 'Ready')!.message,
    '0 of 2 pods are ready; faces-0-0 has no place, and no scheduler has said why',
  );
});

test('pods on a lost node are deleted by force, even if they are being deleted already', () => {
  const lost = { lostNode: 'node n is gone' };
  const pods = [makePod(0).running('n').with(lost).build(), makePod(1).running('n').with(lost).deleting().build()];
  const restarted = plan(pods, {});
  assert.partialDeepStrictEqual(restarted.status, {
    attempt: 1,
    restarts: { count: 0, disruptions: 1, lastReason: 'NodeLost', lastNode: 'n', lastRank: 0 },
  });
  const { actions } = plan(pods, {}, restarted.status);
  assert.deepEqual(
    actions.map((action) => action.type === 'delete' && [action.kind, action.name, action.uid, action.force]),
    pods.map(({ name, uid }) => ['Pod', name, uid, true]),
  );
});
