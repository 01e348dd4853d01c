import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import type { ObservedFaceTrainJob, ObservedObject, ObservedPod } from '../observed.ts';
import type { Action, Plan } from '../plan.ts';
import { after, at, type FaceTrainJobBuilder, makeJob, makePod } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { trainingDigest } from './gang-objects.ts';
import { planFaceTrainJob } from './plan-facetrainjob.ts';

const plan = (observed: ObservedFaceTrainJob, seconds = 100) =>
  planFaceTrainJob(observed, after(seconds), testEnvironment);
const describeActions = (actions: Action[]) =>
  actions.map((action) =>
    action.type === 'create'
      ? `create ${action.object.kind}/${action.object.metadata.name}`
      : action.type === 'deleteJob'
        ? 'deleteJob'
        : `${action.type} ${action.kind}/${action.name}`,
  );
const conditions = ({ status }: Plan<FaceTrainJobStatus>) =>
  Object.fromEntries(status.conditions!.map(({ type, status, reason }) => [type, `${status} ${reason}`]));
const message = ({ status }: Plan<FaceTrainJobStatus>, type = 'Ready') =>
  status.conditions!.find((condition) => condition.type === type)!.message;

const owned = (kind: ObservedObject['kind'], name: string): ObservedObject => ({
  kind,
  ...(kind === 'PodGroup' && { apiVersion: 'scheduling.k8s.io/v1beta1' }),
  name,
  uid: `uid-${kind}-${name}`,
  owned: true,
});
const foreign = (kind: ObservedObject['kind'], name: string): ObservedObject => ({
  ...owned(kind, name),
  owned: false,
});
const objectsOf = (attempt: number) => [
  owned('Service', 'faces'),
  owned('NetworkPolicy', 'faces'),
  owned('ConfigMap', `faces-${attempt}`),
];
const OBJECTS = objectsOf(0);

const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
const RUNNING = [makePod(0).running().build(), makePod(1).running().build()];

/** The status after a few plans in which nothing else happens. */
function settled(
  job: FaceTrainJobBuilder,
  pods: ObservedPod[],
  status: FaceTrainJobStatus = STARTED,
  observation: Partial<ObservedFaceTrainJob> = { objects: OBJECTS },
  seconds = 10,
): FaceTrainJobStatus {
  for (let round = 0; round < 5; round++) status = plan(job.observe(status, pods, observation), seconds).status;
  return status;
}

describe('a new job', () => {
  const all = [
    'create Service/faces',
    'create NetworkPolicy/faces',
    'create ConfigMap/faces-0',
    'create Pod/faces-0-0',
    'create Pod/faces-0-1',
  ];
  const cases: Record<
    string,
    {
      job: FaceTrainJobBuilder;
      observation?: Partial<ObservedFaceTrainJob>;
      pods?: ObservedPod[];
      want: string[];
      wantPhase?: string;
    }
  > = {
    'gets all objects of its gang in one plan': { job: makeJob(), want: all, wantPhase: 'Pending' },
    'with a PodGroup where the cluster serves it': {
      job: makeJob(),
      observation: { podGroupApis: { Native: 'scheduling.k8s.io/v1beta1' } },
      want: [...all.slice(0, 3), 'create PodGroup/faces-0', ...all.slice(3)],
    },
    'without a PodGroup in gang mode None': {
      job: makeJob().with({ gang: { mode: 'None' } }),
      observation: { podGroupApis: { Native: 'scheduling.k8s.io/v1beta1' } },
      want: all,
    },
    'without a NetworkPolicy if it is disabled': {
      job: makeJob().with({ networkPolicy: { enabled: false } }),
      want: all.filter((what) => !what.includes('Policy')),
    },
    'gets the rest after a crash of the executor': {
      job: makeJob(),
      observation: { objects: OBJECTS },
      pods: [makePod(0).build()],
      want: ['create Pod/faces-0-1'],
    },
    'gets nothing while suspended': { job: makeJob().suspended(), want: [], wantPhase: 'Suspended' },
    'gets nothing if another controller manages it': {
      job: makeJob().with({ managedBy: 'acme.example/controller' }),
      want: [],
    },
    'gets all objects if managedBy names this operator': {
      job: makeJob().with({ managedBy: 'facetrain.dev/operator' }),
      want: all,
    },
    'gets nothing while it is being deleted': { job: makeJob().deleting(), want: [] },
  };
  for (const [name, { job, observation, pods, want, wantPhase }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(job.observe({}, pods, observation));
      assert.deepEqual(describeActions(result.actions), want);
      if (wantPhase) assert.equal(result.status.phase, wantPhase);
    });
  }

  test('a job of another controller, or one being deleted, keeps its status', () => {
    for (const job of [makeJob().with({ managedBy: 'acme.example/controller' }), makeJob().deleting()]) {
      const status = {};
      const result = plan(job.observe(status, [makePod(0).failed(1).build()]));
      assert.equal(result.status, status);
      assert.deepEqual([result.actions, result.events, result.requeueAfterSeconds], [[], [], null]);
    }
  });

  test('the PodGroup has the size of the gang, and all pods belong to it', () => {
    const { actions } = plan(makeJob().observe({}, [], { podGroupApis: { Native: 'scheduling.k8s.io/v1beta1' } }));
    const objects = actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));
    const group = objects.find(({ kind }) => kind === 'PodGroup');
    assert.partialDeepStrictEqual(group, {
      apiVersion: 'scheduling.k8s.io/v1beta1',
      metadata: { name: 'faces-0' },
      spec: { schedulingPolicy: { gang: { minCount: 2 } } },
    });
    for (const pod of objects.filter((object) => object.kind === 'Pod'))
      assert.partialDeepStrictEqual(pod.spec, { schedulingGroup: { podGroupName: 'faces-0' } });
    for (const { metadata } of objects) {
      assert.deepEqual(metadata.ownerReferences, [
        {
          apiVersion: 'facetrain.dev/v1alpha1',
          kind: 'FaceTrainJob',
          name: 'faces',
          uid: 'uid-faces',
          controller: true,
          blockOwnerDeletion: true,
        },
      ]);
      assert.partialDeepStrictEqual(metadata.labels, {
        'facetrain.dev/job-uid': 'uid-faces',
        'facetrain.dev/job-name': 'faces',
      });
    }
  });
});

describe('children that cannot be created', () => {
  const clash = { podTemplate: { spec: { volumes: [{ name: 'output' }] } } };
  const cases: Record<
    string,
    { job?: FaceTrainJobBuilder; observation: Partial<ObservedFaceTrainJob>; want: [string, RegExp] }
  > = {
    'a name that is taken': {
      observation: { objects: [foreign('Service', 'faces')] },
      want: ['NameTaken', /^Service faces exists and does not belong to this job;/],
    },
    'a pod name that is taken': {
      observation: { objects: [foreign('Pod', 'faces-0-1')] },
      want: ['NameTaken', /^Pod faces-0-1 exists/],
    },
    'a name that only quantization will need': {
      job: makeJob().quantized(),
      observation: { objects: [foreign('QuantizeJob', 'faces-quantize')] },
      want: ['NameTaken', /^QuantizeJob faces-quantize exists/],
    },
    'a native gang in a cluster without PodGroups': {
      job: makeJob().with({ gang: { mode: 'Native' } }),
      observation: {},
      want: ['GangUnavailable', /^spec\.gang\.mode: Native;/],
    },
    'a template that clashes': {
      job: makeJob().trainers(clash),
      observation: {},
      want: ['InvalidSpec', /^spec\.trainers\.podTemplate\.spec\.volumes\[0\]\.name: output/],
    },
    'a child that the API server refused': {
      observation: {
        refused: { kind: 'Pod', name: 'faces-0-0', message: 'pods "faces-0-0" is forbidden: exceeded quota' },
      },
      want: ['ChildRefused', /^Pod faces-0-0: pods "faces-0-0" is forbidden: exceeded quota$/],
    },
  };
  for (const [
    name,
    {
      job = makeJob(),
      observation,
      want: [reason, words],
    },
  ] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(job.observe({}, [], observation));
      assert.deepEqual(result.actions, []);
      assert.partialDeepStrictEqual(conditions(result), { Ready: `False ${reason}`, Stalled: `True ${reason}` });
      assert.match(message(result), words);
      assert.deepEqual(
        result.events.map(({ type, reason }) => [type, reason]),
        [['Warning', 'Stalled']],
      );
      const again = plan(job.observe(result.status, [], observation), 101);
      assert.equal(again.status, result.status);
      assert.deepEqual(again.events, []);
      assert.equal(again.requeueAfterSeconds, 30);
    });
  }
  test('a name that another kind or the job itself uses does not block', () => {
    assert.notDeepEqual(
      plan(makeJob().observe({}, [], { objects: [foreign('ConfigMap', 'faces'), owned('Service', 'faces')] })).actions,
      [],
    );
  });
  test('a running job is not blocked by a name that only quantization needs', () => {
    const status = settled(makeJob(), RUNNING);
    assert.equal(
      plan(makeJob().observe(status, RUNNING, { objects: [...OBJECTS, foreign('QuantizeJob', 'faces-quantize')] }), 11)
        .status,
      status,
    );
  });
});

describe('conditions', () => {
  const waiting = makePod(1).waiting('Unschedulable', '0/3 nodes are available: insufficient nvidia.com/gpu').build();
  const cases: Record<string, { pods: ObservedPod[]; want: object; wantPhase: string; wantMessage: RegExp }> = {
    'while pods wait': {
      pods: [makePod(0).running().build(), waiting],
      want: {
        Ready: 'False Unschedulable',
        Reconciling: 'True Unschedulable',
        Admitted: 'False Unschedulable',
        PodsReady: 'False PodsNotReady',
        Running: 'False PodsPending',
      },
      wantPhase: 'Pending',
      wantMessage:
        /^1 of 2 pods are ready; faces-0-1 Unschedulable: 0\/3 nodes are available: insufficient nvidia.com\/gpu$/,
    },
    'while an image cannot be pulled': {
      pods: [
        makePod(0).with({ node: 'n' }).waiting('ImagePullBackOff', 'registry.example/facetrain:1 not found').build(),
        makePod(1).running().build(),
      ],
      want: {
        Ready: 'False ImagePullBackOff',
        Reconciling: 'True ImagePullBackOff',
        Admitted: 'True Scheduled',
        PodsReady: 'False PodsNotReady',
        Running: 'False PodsPending',
      },
      wantPhase: 'Pending',
      wantMessage: /ImagePullBackOff: registry.example\/facetrain:1 not found$/,
    },
    'while all run': {
      pods: RUNNING,
      want: {
        Ready: 'True PodsReady',
        Admitted: 'True Scheduled',
        PodsReady: 'True PodsReady',
        Running: 'True Running',
      },
      wantPhase: 'Running',
      wantMessage: /^all 2 pods are ready$/,
    },
    'while one has succeeded': {
      pods: [RUNNING[0]!, makePod(1).succeeded().build()],
      want: {
        Ready: 'True PodsReady',
        Admitted: 'True Scheduled',
        PodsReady: 'True PodsReady',
        Running: 'True Running',
      },
      wantPhase: 'Running',
      wantMessage: /^all 2 pods are ready$/,
    },
  };
  for (const [name, { pods, want, wantPhase, wantMessage }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(makeJob().observe(STARTED, pods, { objects: OBJECTS }));
      assert.deepEqual(conditions(result), want);
      assert.equal(result.status.phase, wantPhase);
      assert.match(message(result), wantMessage);
    });
  }
  test('the phase stays Running while a rank is not ready for a while', () => {
    const status = settled(makeJob(), RUNNING);
    const result = plan(
      makeJob().observe(status, [RUNNING[0]!, makePod(1).with({ phase: 'Unknown' }).build()], { objects: OBJECTS }),
    );
    assert.deepEqual(conditions(result), {
      Ready: 'False PodsNotReady',
      Reconciling: 'True PodsNotReady',
      Admitted: 'True Scheduled',
      PodsReady: 'False PodsNotReady',
      Running: 'True Running',
    });
    assert.equal(result.status.phase, 'Running');
    assert.match(message(result), /faces-0-1 is in phase Unknown$/);
  });
});

test('a running job needs no action, no event and no write', () => {
  const status = settled(makeJob(), RUNNING);
  const result = plan(makeJob().observe(status, RUNNING, { objects: OBJECTS }), 500);
  assert.equal(result.status, status);
  assert.deepEqual([result.actions, result.events], [[], []]);
});

test('a restart: the decision is written, the old pods are deleted, then the new ones are created', () => {
  const job = makeJob();
  const broken = [makePod(0).running().build(), makePod(1).running('gpu-7').failed(137).build()];
  const decided = plan(job.observe(settled(job, RUNNING), broken, { objects: OBJECTS }));
  assert.deepEqual(decided.actions, []);
  assert.partialDeepStrictEqual(decided.status, {
    phase: 'Restarting',
    attempt: 1,
    restarts: { count: 1, lastExitCode: 137, lastRank: 1, lastNode: 'gpu-7', lastReason: 'ProcessKilled' },
  });
  assert.equal(decided.status.attemptStartTime, undefined);
  assert.deepEqual(decided.events, [
    { type: 'Warning', reason: 'Restarting', message: 'ProcessKilled: rank 1 left with exit code 137 on gpu-7' },
  ]);

  const stopping = plan(job.observe(decided.status, broken, { objects: OBJECTS }));
  assert.deepEqual(describeActions(stopping.actions), ['delete Pod/faces-0-0']);

  const waiting = plan(
    job.observe(stopping.status, [makePod(0).running().deleting().build(), broken[1]!], { objects: OBJECTS }),
  );
  assert.deepEqual([waiting.actions, waiting.status.phase], [[], 'Restarting']);

  const started = plan(job.observe(waiting.status, [broken[1]!], { objects: OBJECTS }), 101);
  assert.deepEqual(describeActions(started.actions), [
    'create ConfigMap/faces-1',
    'create Pod/faces-1-0',
    'create Pod/faces-1-1',
  ]);
  assert.partialDeepStrictEqual(started.status, {
    phase: 'Restarting',
    attempt: 1,
    startTime: at(0),
    attemptStartTime: at(101),
  });

  const recovered = plan(
    job.observe(started.status, [broken[1]!, makePod(0, 1).running().build(), makePod(1, 1).running().build()], {
      objects: [...objectsOf(1), ...OBJECTS],
    }),
    110,
  );
  assert.equal(recovered.status.phase, 'Running');
  assert.equal(conditions(recovered).Restarting, 'False Recovered');
  assert.equal(recovered.status.restarts!.count, 1);
});

test('the second restart waits, and the message has the time of its end', () => {
  const status: FaceTrainJobStatus = {
    ...STARTED,
    attempt: 2,
    attemptStartTime: undefined as never,
    restarts: { count: 2, countedTimes: [at(50), at(100)], disruptions: 0, lastTime: at(100) },
  };
  const waiting = plan(makeJob().observe(status), 101);
  assert.deepEqual(describeActions(waiting.actions), []);
  assert.match(message(waiting), /^attempt 2 starts at 2026-01-01T00:01:50Z$/);
  assert.equal(plan(makeJob().observe(waiting.status), 101).requeueAfterSeconds, 9);
  assert.equal(describeActions(plan(makeJob().observe(waiting.status), 110).actions).at(-1), 'create Pod/faces-2-1');
});

test('a pod in phase Unknown keeps the next attempt waiting', () => {
  const status = { ...STARTED, attempt: 1, attemptStartTime: undefined as never };
  const stuck = plan(
    makeJob().observe(status, [makePod(0).with({ phase: 'Unknown' }).deleting().build()], { objects: OBJECTS }),
  );
  assert.deepEqual(stuck.actions, []);
  assert.match(message(stuck), /^of an earlier attempt faces-0-0 has not ended$/);
});

describe('how a training ends', () => {
  const succeeded = [makePod(0).succeeded().build(), makePod(1).succeeded().build()];
  const cases: Record<
    string,
    { job?: FaceTrainJobBuilder; pods: ObservedPod[]; at?: number; want: object; wantReason?: string }
  > = {
    'all ranks succeeded': {
      pods: succeeded,
      want: {
        phase: 'Succeeded',
        completionTime: at(100),
        trainingCompletionTime: at(100),
        trainers: { succeeded: 2, active: 0 },
      },
    },
    'rank 0 alone is not enough': { pods: [succeeded[0]!, RUNNING[1]!], want: { phase: 'Running' } },
    'rank 0 is enough with successPolicy RankZero': {
      job: makeJob().with({ successPolicy: 'RankZero' }),
      pods: [succeeded[0]!, RUNNING[1]!],
      want: { phase: 'Succeeded' },
    },
    'another rank is not enough with successPolicy RankZero': {
      job: makeJob().with({ successPolicy: 'RankZero' }),
      pods: [RUNNING[0]!, succeeded[1]!],
      want: { phase: 'Running' },
    },
    'success comes before a suspension': { job: makeJob().suspended(), pods: succeeded, want: { phase: 'Succeeded' } },
    'a refused input': {
      pods: [RUNNING[0]!, makePod(1).failed(2).terminationMessage('InvalidDataset', 'train.rec: cut short').build()],
      want: { phase: 'Failed', attempt: 0, completionTime: at(100) },
      wantReason: 'InvalidDataset',
    },
    'too many restarts': {
      job: makeJob().failurePolicy({ maxRestarts: 0 }),
      pods: [RUNNING[0]!, makePod(1).failed(1).build()],
      want: { phase: 'Failed' },
      wantReason: 'MaxRestartsExceeded',
    },
    'not within the active deadline': {
      job: makeJob().with({ activeDeadlineSeconds: 100 }),
      pods: RUNNING,
      want: { phase: 'Failed' },
      wantReason: 'ActiveDeadlineExceeded',
    },
    'just within it': {
      job: makeJob().with({ activeDeadlineSeconds: 101 }),
      pods: RUNNING,
      want: { phase: 'Running' },
    },
    'not within the pending deadline': {
      job: makeJob().with({ pendingDeadlineSeconds: 100 }),
      pods: [RUNNING[0]!, makePod(1).build()],
      want: { phase: 'Failed' },
      wantReason: 'PendingDeadlineExceeded',
    },
    'the pending deadline is not for pods that run': {
      job: makeJob().with({ pendingDeadlineSeconds: 10 }),
      pods: RUNNING,
      want: { phase: 'Running' },
    },
  };
  for (const [name, { job = makeJob(), pods, at: seconds, want, wantReason }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(job.observe(STARTED, pods, { objects: OBJECTS }), seconds);
      assert.deepEqual(result.actions, []);
      assert.partialDeepStrictEqual(result.status, want);
      if (wantReason)
        assert.partialDeepStrictEqual(conditions(result), {
          Failed: `True ${wantReason}`,
          Stalled: `True ${wantReason}`,
          Ready: `False ${wantReason}`,
        });
    });
  }
});

test('a pod that is removed just after its creation is not created again: its process may still run', () => {
  const pods = RUNNING.slice(1);
  const soon = plan(makeJob().observe(settled(makeJob(), RUNNING), pods, { objects: OBJECTS }), 3);
  const later = plan(makeJob().observe(soon.status, pods, { objects: OBJECTS }), 3);
  for (const { actions, requeueAfterSeconds } of [soon, later])
    assert.deepEqual([actions, requeueAfterSeconds], [[], 2]);
  const lost = plan(makeJob().observe(soon.status, pods, { objects: OBJECTS }), 5);
  assert.equal(lost.status.restarts?.lastReason, 'PodLost');
});

describe('a node that does not answer', () => {
  const job = makeJob().failurePolicy({ nodeLostSeconds: 90 });
  const silent = (pod: ObservedPod) => ({ ...pod, silentNode: { reason: 'node-1 is silent', since: at(20) } });
  const status = settled(job, RUNNING);

  test('is waited for', () => {
    const waiting = plan(job.observe(status, RUNNING.map(silent), { objects: OBJECTS }), 80);
    assert.deepEqual([waiting.status, waiting.requeueAfterSeconds], [status, 30]);
  });
  test('is lost after nodeLostSeconds, and its pods are deleted by force', () => {
    const lost = plan(job.observe(status, RUNNING.map(silent), { objects: OBJECTS }), 110);
    assert.equal(lost.status.restarts?.lastReason, 'NodeLost');
    const { actions } = plan(job.observe(lost.status, RUNNING.map(silent), { objects: OBJECTS }), 110);
    assert.deepEqual(
      actions.map((action) => action.type === 'delete' && action.force),
      [true, true],
    );
  });
  describe('and whose gang was last seen at work 45 s after the start', () => {
    const worked = { attempt: 0, step: 7, totalSteps: 100, epoch: 0, activity: 9 };
    const trained = settled(job, RUNNING, status, { objects: OBJECTS, progress: worked }, 45);
    const planAt = (seconds: number, progress?: Partial<typeof worked>) =>
      plan(
        job.observe(trained, RUNNING.map(silent), {
          objects: OBJECTS,
          ...(progress && { progress: { ...worked, ...progress } }),
        }),
        seconds,
      );
    test('is waited for until the gang has stood still for half of nodeLostSeconds', () => {
      const waiting = planAt(60, {});
      assert.deepEqual([waiting.status, waiting.requeueAfterSeconds], [trained, 30]);
      const lost = planAt(90, {});
      assert.equal(lost.status.restarts?.lastReason, 'NodeLost');
      const { actions } = plan(job.observe(lost.status, RUNNING.map(silent), { objects: OBJECTS }), 90);
      assert.deepEqual(
        actions.map((action) => action.type === 'delete' && action.force),
        [true, true],
      );
    });
    test('is waited for while the gang works', () =>
      assert.equal(planAt(90, { activity: 10 }).status.restarts, undefined));
    test('is waited for until the operator has asked the gang', () =>
      assert.equal(planAt(90).status.restarts, undefined));
  });
  test('keeps the pods of an older attempt until it is lost', () => {
    const older = RUNNING.map((pod) => ({ ...silent(pod), deleting: true }));
    const next = settled(job, older, { ...status, attempt: 1, attemptStartTime: undefined }, { objects: [] }, 60);
    const stopping = plan(job.observe(next, older), 100);
    assert.deepEqual([stopping.actions, stopping.requeueAfterSeconds], [[], 10]);
    assert.deepEqual(describeActions(plan(job.observe(next, older), 110).actions), [
      'delete Pod/faces-0-0',
      'delete Pod/faces-0-1',
    ]);
  });
});

describe('a rank that has succeeded, and whose pod is removed', () => {
  const job = makeJob();
  const seen = settled(job, [makePod(0).running().build(), makePod(1).succeeded().build()]);
  const running = [makePod(0).running().build()];

  test('stays succeeded, and no pod replaces it', () => {
    assert.equal(seen.trainers!.completedRanks, '1');
    for (const seconds of [3, 100]) {
      const { status, actions } = plan(job.observe(seen, running, { objects: OBJECTS }), seconds);
      assert.deepEqual([status.phase, status.attempt, actions], ['Running', 0, []]);
      assert.partialDeepStrictEqual(status.trainers, { active: 1, succeeded: 1, completedRanks: '1' });
    }
  });
  test('counts for the end of the training', () => {
    const end = settled(job, [makePod(0).succeeded().build()], seen);
    assert.deepEqual([end.phase, end.trainers!.completedRanks], ['Succeeded', '0-1']);
    assert.deepEqual(plan(job.with({ cleanPodPolicy: 'All' }).observe(end, [], { objects: OBJECTS })).actions, []);
  });
  test('is trained again in the next attempt', () => {
    const status = settled(job, [makePod(0).failed(1).build()], seen);
    assert.deepEqual([status.attempt, status.trainers!.completedRanks], [1, undefined]);
  });
});

test('the PodGroup of a finished job is deleted once no pod runs; one that is being deleted is left alone', () => {
  const [running, failed] = [makePod(0).running().build(), makePod(1).failed(2).build()];
  const group = owned('PodGroup', 'faces-0');
  const deletions = (pods: ObservedPod[], groups: ObservedObject[]) => {
    const objects = [...OBJECTS, ...groups];
    const finished = plan(makeJob().observe(STARTED, [running, failed], { objects })).status;
    return describeActions(plan(makeJob().observe(finished, pods, { objects })).actions);
  };
  assert.deepEqual(deletions([running, failed], [group]), ['delete Pod/faces-0-0']);
  assert.deepEqual(deletions([failed], [group]), ['delete PodGroup/faces-0']);
  assert.deepEqual(deletions([failed], [{ ...group, deleting: true }]), []);
});

describe('pods of a finished job', () => {
  const pods = [makePod(0).running().build(), makePod(1).failed(2).build()];
  const cases: Record<string, { policy: string; want: string[] }> = {
    All: { policy: 'All', want: ['delete Pod/faces-0-0', 'delete Pod/faces-0-1'] },
    Running: { policy: 'Running', want: ['delete Pod/faces-0-0'] },
    None: { policy: 'None', want: [] },
  };
  for (const [name, { policy, want }] of Object.entries(cases)) {
    test(name, () => {
      const job = makeJob().with({ cleanPodPolicy: policy });
      const finished = plan(job.observe(STARTED, pods, { objects: OBJECTS })).status;
      assert.deepEqual(describeActions(plan(job.observe(finished, pods, { objects: OBJECTS })).actions), want);
    });
  }
});

test('of earlier attempts only the previous one keeps its ended pods and their ConfigMap, and none a PodGroup', () => {
  const old = [makePod(0, 0).failed(1).build(), makePod(1, 1).failed(1).build()];
  const now = [makePod(0, 2).running().build(), makePod(1, 2).running().build()];
  const objects = [
    owned('ConfigMap', 'faces-0'),
    owned('ConfigMap', 'faces-1'),
    owned('PodGroup', 'faces-1'),
    owned('ConfigMap', 'faces-extra'),
    foreign('ConfigMap', 'faces-00'),
    ...objectsOf(2),
  ];
  const status = { ...STARTED, attempt: 2 };
  const first = plan(makeJob().observe(status, [...old, ...now], { objects }));
  assert.deepEqual(describeActions(first.actions), ['delete Pod/faces-0-0', 'delete PodGroup/faces-1']);
  objects.splice(2, 1);
  const second = plan(makeJob().observe(status, [old[1]!, ...now], { objects }));
  assert.deepEqual(describeActions(second.actions), ['delete ConfigMap/faces-0']);
});

test('a pod whose program has ended gets some seconds to end, so that its log stays', () => {
  const exited = makePod(1)
    .running()
    .with({ exitCode: 1, finishedAt: at(100) })
    .build();
  const pods = [RUNNING[0]!, exited];
  const decided = settled(makeJob(), pods);
  assert.equal(decided.attempt, 1);
  const stopping = plan(makeJob().observe(decided, pods, { objects: OBJECTS }), 101);
  assert.deepEqual(
    [describeActions(stopping.actions), stopping.status.phase],
    [['delete Pod/faces-0-0'], 'Restarting'],
  );
  const { status } = plan(makeJob().observe(stopping.status, [exited], { objects: OBJECTS }), 102);
  const waiting = plan(makeJob().observe(status, [exited], { objects: OBJECTS }), 102);
  assert.deepEqual([describeActions(waiting.actions), waiting.requeueAfterSeconds], [[], 3]);
  // A sidecar still runs.
  const ended = plan(makeJob().observe(status, [exited], { objects: OBJECTS }), 105);
  assert.deepEqual(describeActions(ended.actions), ['delete Pod/faces-0-1']);
  const all = plan(makeJob().with({ cleanPodPolicy: 'All' }).observe(status, [exited], { objects: OBJECTS }), 102);
  assert.deepEqual(describeActions(all.actions), ['delete Pod/faces-0-1']);
});

test('a job waits for pods and objects of a deleted job of the same name, and deletes them', () => {
  const pod: ObservedObject = { ...foreign('Pod', 'faces-3-1'), leftover: true };
  const predecessor = plan(makeJob().observe({}, [], { predecessorPods: [pod] }));
  assert.deepEqual(describeActions(predecessor.actions), ['delete Pod/faces-3-1']);
  assert.partialDeepStrictEqual(conditions(predecessor), { Ready: 'False Stopping', Reconciling: 'True Stopping' });
  assert.equal(conditions(predecessor).Stalled, undefined);
  assert.equal(predecessor.status.phase, 'Pending');
  const status = settled(makeJob(), [], {}, { predecessorPods: [pod] });
  const waiting = plan(makeJob().observe(status, [], { predecessorPods: [{ ...pod, deleting: true }] }));
  assert.deepEqual([waiting.actions, waiting.requeueAfterSeconds], [[], 5]);
  assert.match(
    status.conditions!.find(({ type }) => type === 'Ready')!.message,
    /^pod faces-3-1 of an earlier job of this name has not ended/,
  );
  // Its owner was deleted with --cascade=orphan: it belongs to nobody.
  const orphan = plan(makeJob().observe(status, [], { predecessorPods: [foreign('Pod', 'faces-3-1')] }));
  assert.deepEqual([orphan.actions, conditions(orphan).Ready], [[], 'False Stopping']);
  const leftover = plan(
    makeJob().observe(status, [], {
      objects: [{ ...foreign('ConfigMap', 'faces-0'), leftover: true }, foreign('Service', 'another')],
    }),
  );
  assert.deepEqual(
    [describeActions(leftover.actions), conditions(leftover).Ready],
    [['delete ConfigMap/faces-0'], 'False Stopping'],
  );
  assert(plan(makeJob().observe(leftover.status)).actions.length > 0);
});

test('a job waits for jobs before it in the same folder, unless its attempt has begun', () => {
  const jobsBefore = ['FaceTrainJob first'];
  const { actions, status } = plan(makeJob().observe({}, [], { jobsBefore }));
  assert.deepEqual([actions, status.phase], [[], 'Pending']);
  const again = plan(makeJob().observe(status, [], { jobsBefore }));
  assert.deepEqual([again.requeueAfterSeconds, conditions(again).Ready], [5, 'False OutputInUse']);
  assert.match(
    status.conditions!.find(({ type }) => type === 'Ready')!.message,
    /^FaceTrainJob first writes to the same folder and has not finished/,
  );
  assert(plan(makeJob().observe(status)).actions.length > 0);
  const begun = plan(makeJob().observe({}, [makePod(0).build()], { jobsBefore }));
  assert(describeActions(begun.actions).includes('create Pod/faces-0-1'));
});

describe('time to live', () => {
  const job = makeJob().with({ ttlSecondsAfterFinished: { succeeded: 60 } });
  const pods = [makePod(0).succeeded().build(), makePod(1).succeeded().build()];
  const finished = settled(job, pods);
  test('is waited for', () =>
    assert.equal(plan(job.observe(finished, pods, { objects: OBJECTS }), 30).requeueAfterSeconds, 40));
  test('over: the job is deleted', () =>
    assert.deepEqual(describeActions(plan(job.observe(finished, pods, { objects: OBJECTS }), 70).actions), [
      'deleteJob',
    ]));
  test('of a failed job is separate', () => {
    const failed = [makePod(0).failed(2).build(), makePod(1).failed(4).build()];
    assert.deepEqual(
      describeActions(plan(job.observe(settled(job, failed), failed, { objects: OBJECTS }), 9999).actions),
      [],
    );
  });
});

test('suspension: the attempt ends, its pods are deleted, and resuming starts the next one at once', () => {
  const running = settled(makeJob(), RUNNING);
  const job = makeJob().suspended().atGeneration(2);
  const decided = plan(job.observe(running, RUNNING, { objects: OBJECTS }));
  assert.deepEqual([decided.actions, decided.status.attempt, decided.status.restarts], [[], 1, undefined]);
  const stopping = plan(job.observe(decided.status, RUNNING, { objects: OBJECTS }));
  assert.deepEqual(describeActions(stopping.actions), ['delete Pod/faces-0-0', 'delete Pod/faces-0-1']);
  assert.partialDeepStrictEqual(conditions(stopping), { Ready: 'False Suspending', Reconciling: 'True Suspending' });

  const ended = [makePod(0).failed(143).build(), makePod(1).failed(143).build()];
  const suspended = plan(job.observe(stopping.status, ended, { objects: OBJECTS }));
  assert.partialDeepStrictEqual(conditions(suspended), { Ready: 'True Suspended', Suspended: 'True Suspended' });
  assert.equal(conditions(suspended).Reconciling, undefined);
  assert.equal(suspended.status.startTime, undefined);
  assert.equal(suspended.status.restarts, undefined);

  const resumed = plan(
    makeJob().atGeneration(3).replicas(4).observe(suspended.status, ended, { objects: OBJECTS }),
    500,
  );
  assert.deepEqual(describeActions(resumed.actions), [
    'create ConfigMap/faces-1',
    ...[0, 1, 2, 3].map((rank) => `create Pod/faces-1-${rank}`),
  ]);
  assert.partialDeepStrictEqual(resumed.status, { startTime: at(500), phase: 'Pending', trainers: { desired: 4 } });
  assert.equal(conditions(resumed).Suspended, 'False Resumed');
});

describe('a spec that changed while pods run', () => {
  const labeled = (job: FaceTrainJobBuilder) =>
    RUNNING.map((pod) => ({ ...pod, specDigest: trainingDigest(job.parse()) }));
  const status = settled(makeJob(), labeled(makeJob()));
  const cases: Record<string, { job: FaceTrainJobBuilder; pods: ObservedPod[]; want: number }> = {
    'in what is trained, during a missed suspension: a new attempt': {
      job: makeJob().with({ epochs: 5 }).atGeneration(3),
      pods: labeled(makeJob()),
      want: 1,
    },
    'to fewer ranks, during a missed suspension: a new attempt': {
      job: makeJob().replicas(1).atGeneration(3),
      pods: RUNNING,
      want: 1,
    },
    'in a deadline: the attempt continues': {
      job: makeJob().with({ activeDeadlineSeconds: 9999 }).atGeneration(2),
      pods: labeled(makeJob()),
      want: 0,
    },
    'in a deadline, and a former version of the operator made another digest: the attempt continues': {
      job: makeJob().with({ activeDeadlineSeconds: 9999 }).atGeneration(2),
      pods: RUNNING.map((pod) => ({ ...pod, specDigest: 'old' })),
      want: 0,
    },
  };
  for (const [name, { job, pods, want }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(job.observe(status, pods, { objects: OBJECTS }));
      assert.equal(result.status.attempt, want);
      assert.equal(result.status.restarts, undefined);
      assert.deepEqual(result.actions, []);
    });
  }
});

test('a ConfigMap of an older spec is replaced, even if no pod was created yet', () => {
  const job = makeJob();
  const config = { ...owned('ConfigMap', 'faces-0'), specDigest: trainingDigest(job.parse()) };
  const refused = plan(
    job.observe({}, [], { objects: [config], refused: { kind: 'Pod', name: 'faces-0-0', message: 'exceeded quota' } }),
  ).status;
  const smaller = job.with({ globalBatchSize: 32 }).atGeneration(3);
  const replaced = plan(smaller.observe(refused, [], { objects: [config] }));
  assert.deepEqual([replaced.actions, replaced.status.attempt], [[], 1]);
  const made = plan(smaller.observe(replaced.status, [], { objects: [config] }));
  assert.deepEqual(describeActions(made.actions).slice(0, 4), [
    'delete ConfigMap/faces-0',
    'create Service/faces',
    'create NetworkPolicy/faces',
    'create ConfigMap/faces-1',
  ]);
});

test('after a lost peer the planner waits some seconds for the root cause', () => {
  const pods = [makePod(0).failed(4, 100).build(), RUNNING[1]!];
  const status = plan(makeJob().observe(settled(makeJob(), RUNNING), pods, { objects: OBJECTS })).status;
  const waiting = plan(makeJob().observe(status, pods, { objects: OBJECTS }));
  assert.deepEqual([waiting.status.attempt, waiting.requeueAfterSeconds], [0, 2]);
  assert.equal(plan(makeJob().observe(status, pods, { objects: OBJECTS }), 102).status.attempt, 1);
});

test('a running gang continues if the cluster no longer serves PodGroups', () => {
  const job = makeJob().with({ gang: { mode: 'Native' } });
  const status = settled(job, RUNNING);
  assert.equal(status.phase, 'Running');
  assert.equal(plan(job.observe(status, RUNNING, { objects: OBJECTS })).status, status);
});

test('a lost attempt number is restored from the pods', () => {
  const pods = [makePod(0, 3).running().build(), makePod(1, 3).running().build()];
  const { status, actions } = plan(makeJob().observe({}, pods, { objects: objectsOf(3) }));
  assert.deepEqual(actions, []);
  assert.partialDeepStrictEqual(status, { attempt: 3, phase: 'Running' });
});
