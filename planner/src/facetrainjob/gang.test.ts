import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import type { Pod, PodGroup, QueuedPodGroup } from '../objects.ts';
import type { ObservedFaceTrainJob, ObservedObject, ObservedPod, ObservedQueue, PodGroupApis } from '../observed.ts';
import { after, at, makeCondition, makeJob, makeObservedWorkload, makePod } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { planFaceTrainJob } from './plan-facetrainjob.ts';

const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
const NATIVE = 'scheduling.k8s.io/v1beta1';
const GROUP: ObservedObject = { kind: 'PodGroup', apiVersion: NATIVE, name: 'faces-0', uid: 'g', owned: true };
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
      podGroupApis: { Native: NATIVE },
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
  const pods = [{ ...makePod(0).build(), podGroup: 'None' as const }];
  const { actions } = plan(pods, { objects: OBJECTS }, { observedGeneration: 1, attempt: 0 });
  const created = actions.map((action) => action.type === 'create' && action.object);
  assert.deepEqual(
    created.map((object) => object && [object.kind, object.kind === 'Pod' && object.spec.schedulingGroup]),
    [['Pod', undefined]],
  );
});

const SERVED = { Native: NATIVE, KAI: 'scheduling.run.ai/v2alpha2', Volcano: 'scheduling.volcano.sh/v1beta1' };
const NEW: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0 };

/** What is created for a job whose spec has these fields: PodGroups and pods, in a cluster that serves `served`. */
function created(
  fields: object,
  served: PodGroupApis = SERVED,
  { pods = [], trainers = {} }: { pods?: ObservedPod[]; trainers?: object } = {},
) {
  const job = makeJob().with(fields).trainers(trainers);
  const queue: ObservedQueue = {
    workloads: 'Listed',
    prebuilt: 'facetrainjob-faces',
    workload: makeObservedWorkload({ conditions: [makeCondition('QuotaReserved'), makeCondition('Admitted')] }),
    flavors: {},
  };
  const { actions, status } = planFaceTrainJob(
    job.observe(NEW, pods, { objects: OBJECTS, podGroupApis: served, ...('queue' in fields && { queue }) }),
    after(100),
    testEnvironment,
  );
  const objects = actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));
  return {
    groups: objects.filter(({ kind }) => kind === 'PodGroup') as (PodGroup | QueuedPodGroup)[],
    pods: objects.filter(({ kind }) => kind === 'Pod') as Pod[],
    stalled: status.conditions?.find(({ type }) => type === 'Stalled'),
  };
}

test('each mode has the PodGroup of its scheduler, and pods that are members of it', () => {
  const member = { KAI: 'pod-group-name', Volcano: 'scheduling.k8s.io/group-name' };
  const cases: Record<string, [object, string | null, string | undefined, PodGroupApis?]> = {
    'Auto, where PodGroups are served': [{ gang: {} }, NATIVE, undefined],
    'Auto, where only those of others are': [{ gang: {} }, null, undefined, { KAI: SERVED.KAI }],
    Native: [{ gang: { mode: 'Native' } }, NATIVE, undefined],
    None: [{ gang: { mode: 'None' } }, null, undefined],
    Kueue: [{ gang: { mode: 'Kueue' }, queue: { name: 'team' } }, null, undefined],
    KAI: [{ gang: { mode: 'KAI', queue: 'team' } }, SERVED.KAI, 'kai-scheduler'],
    Volcano: [{ gang: { mode: 'Volcano' } }, SERVED.Volcano, 'volcano'],
  };
  for (const [name, [fields, wantGroup, wantScheduler, served]] of Object.entries(cases)) {
    const { groups, pods } = created(fields, served);
    assert.deepEqual(
      groups.map(({ apiVersion, metadata }) => [apiVersion, metadata.name]),
      wantGroup === null ? [] : [[wantGroup, 'faces-0']],
      name,
    );
    assert.equal(pods.length, 2, name);
    for (const { metadata, spec } of pods) {
      const { annotations = {} } = metadata;
      assert.deepEqual(
        [spec.schedulerName, spec.schedulingGroup?.podGroupName, annotations[member.KAI], annotations[member.Volcano]],
        [
          wantScheduler,
          wantGroup === NATIVE ? 'faces-0' : undefined,
          name === 'KAI' ? 'faces-0' : undefined,
          name === 'Volcano' ? 'faces-0' : undefined,
        ],
        name,
      );
      assert.equal(metadata.labels['facetrain.dev/pod-group'], name in member ? name : undefined);
    }
  }
});

test('a PodGroup of KAI or Volcano has size, queue and PriorityClass; the template may name another scheduler', () => {
  const podTemplate = { spec: { priorityClassName: 'training', schedulerName: 'kai-shard' } };
  const kai = created({ gang: { mode: 'KAI', queue: 'team' } }, SERVED, { trainers: { podTemplate } });
  assert.deepEqual(kai.groups[0]!.spec, { minMember: 2, queue: 'team', priorityClassName: 'training' });
  assert.partialDeepStrictEqual(kai.pods[0], {
    metadata: {
      labels: { 'kai.scheduler/queue': 'team' },
      annotations: { 'kai.scheduler/skip-podgrouper': 'true' },
    },
    spec: { schedulerName: 'kai-shard' },
  });
  const [owner] = kai.groups[0]!.metadata.ownerReferences;
  assert.partialDeepStrictEqual(owner, { kind: 'FaceTrainJob', name: 'faces', controller: true });
  assert.deepEqual(created({ gang: { mode: 'Volcano' } }).groups[0]!.spec, { minMember: 2 });
});

test('of an elastic gang, minMember is what it can go on with, and placeholders are members', () => {
  const elastic = { minReplicas: 2, maxReplicas: 4, scaleUpSeconds: 1 };
  const trainers = { replicas: 3, elastic };
  const fields = { gang: { mode: 'Volcano', queue: 'team' } };
  assert.deepEqual(created(fields, SERVED, { trainers }).groups[0]!.spec, { minMember: 2, queue: 'team' });
  const running = [0, 1].map((rank) => makePod(rank).running().with({ gangSize: 2, podGroup: 'Volcano' }).build());
  const status: FaceTrainJobStatus = {
    ...STARTED,
    trainers: { desired: 2, active: 2, ready: 2, succeeded: 0, failed: 0 },
    scaling: { replicas: 3, resizes: 0, failedGrowths: 0, history: [] },
  };
  const placeholders = planFaceTrainJob(
    makeJob().with(fields).trainers(trainers).observe(status, running, { objects: OBJECTS, podGroupApis: SERVED }),
    after(100),
    testEnvironment,
  ).actions.flatMap((action) => (action.type === 'create' && action.object.kind === 'Pod' ? [action.object] : []));
  assert.partialDeepStrictEqual(placeholders, [
    {
      metadata: {
        name: 'faces-0-2',
        labels: { 'facetrain.dev/placeholder': 'true' },
        annotations: { 'scheduling.k8s.io/group-name': 'faces-0' },
      },
      spec: { schedulerName: 'volcano' },
    },
  ]);
});

test('a scheduler whose PodGroups are not served is named, with what to install', () => {
  const cases: Record<string, [object, RegExp]> = {
    Native: [{ mode: 'Native' }, /^spec\.gang\.mode: Native; the cluster serves no scheduling\.k8s\.io PodGroup/],
    KAI: [{ mode: 'KAI', queue: 'team' }, /^spec\.gang\.mode: KAI; .* scheduling\.run\.ai\/v2alpha2 .* 0\.15 or later/],
    Volcano: [{ mode: 'Volcano' }, /^spec\.gang\.mode: Volcano; .* scheduling\.volcano\.sh\/v1beta1 .*install Volcano/],
  };
  for (const [name, [gang, want]] of Object.entries(cases)) {
    const { stalled, pods, groups } = created({ gang }, {});
    assert.equal(stalled?.reason, 'GangUnavailable', name);
    assert.match(stalled.message, want);
    assert.deepEqual([pods, groups], [[], []]);
  }
});

test('a template that joins a group of its own is refused in the modes whose group is ours', () => {
  const refusal = (gang: object, metadata: object) =>
    created({ gang }, SERVED, { trainers: { podTemplate: { metadata } } }).stalled?.message;
  const kai = { mode: 'KAI', queue: 'team' };
  assert.match(refusal(kai, { annotations: { 'pod-group-name': 'mine' } })!, /annotations: pod-group-name is set by/);
  assert.match(refusal(kai, { labels: { 'kai.scheduler/queue': 'mine' } })!, /labels: kai\.scheduler\/queue is set by/);
  assert.match(
    refusal({ mode: 'Volcano' }, { annotations: { 'scheduling.k8s.io/group-name': 'mine' } })!,
    /group-name/,
  );
  assert.equal(refusal({ mode: 'None' }, { annotations: { 'pod-group-name': 'mine' } }), undefined);
});

test('an attempt goes on in the group in which it began, whatever the spec says since', () => {
  const begun = (podGroup: ObservedPod['podGroup'], gang: object) => {
    const pod = { ...makePod(0).build(), ...(podGroup && { podGroup }) };
    const { pods, groups } = created({ gang }, SERVED, { pods: [pod] });
    assert.equal(pods.length, 1);
    const { annotations = {} } = pods[0]!.metadata;
    const member = Object.keys(annotations).filter((name) => /group-name$/.test(name));
    return [groups.map(({ apiVersion }) => apiVersion).join(), pods[0]!.spec.schedulingGroup?.podGroupName, ...member];
  };
  assert.deepEqual(begun('KAI', { mode: 'Volcano' }), [SERVED.KAI, undefined, 'pod-group-name']);
  assert.deepEqual(begun('Native', { mode: 'KAI', queue: 'team' }), [NATIVE, 'faces-0']);
  assert.deepEqual(begun('None', { mode: 'KAI', queue: 'team' }), ['', undefined]);
  assert.deepEqual(begun(undefined, { mode: 'Native' }), [NATIVE, 'faces-0']);
});

test('PodGroups of former attempts are deleted in the API group in which they are', () => {
  const group = { ...GROUP, apiVersion: SERVED.KAI };
  const { actions } = plan([], { objects: [...OBJECTS, group], podGroupApis: SERVED }, { ...NEW, attempt: 1 });
  assert.partialDeepStrictEqual(
    actions.find((action) => action.type === 'delete' && action.kind === 'PodGroup'),
    { name: 'faces-0', uid: 'g', apiVersion: SERVED.KAI },
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
    const job = makeJob()
      .trainers({ podTemplate })
      .observe({}, [], { podGroupApis: { Native: NATIVE } });
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
  assert.equal(message({ podGroupApis: {} }), 'Pod faces-0-1: exceeded quota');
});

test('of an elastic gang, the message says so only while fewer than minReplicas exist', () => {
  const refused = { kind: 'Pod' as const, name: 'faces-0-2', message: 'no' };
  const message = (minReplicas: number) => {
    const pods = [0, 1].map((rank) => makePod(rank).with({ gangSize: 4 }).build());
    const job = makeJob().trainers({ replicas: 4, elastic: { minReplicas, maxReplicas: 4 } });
    const observed = job.observe({ observedGeneration: 1, attempt: 0, startTime: at(0) }, pods, {
      refused,
      podGroupApis: { Native: NATIVE },
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
