/** Restarts of trainers in their pods: what is counted, what goes on, and when new pods take over. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { restartRules } from './container-restarts.ts';
import { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
import type { ObservedObject, ObservedPod, ProgramEnd } from './observed.ts';
import { after, at, type FaceTrainJobBuilder, makeJob, makePod } from './testing/builders.ts';
import { testEnvironment } from './testing/test-environment.ts';

const OBJECTS: ObservedObject[] = (['Service', 'NetworkPolicy', 'ConfigMap'] as const).map((kind) => ({
  kind,
  name: kind === 'ConfigMap' ? 'faces-0' : 'faces',
  uid: kind,
  owned: true,
}));

const PROGRESS = { step: 40, totalSteps: 100, epoch: 1, percent: 40, activity: 40, lastHeartbeatTime: at(95) };

/** Of a gang that has trained since its start. */
const TRAINED: FaceTrainJobStatus = {
  observedGeneration: 1,
  attempt: 0,
  startTime: at(0),
  attemptStartTime: at(0),
  progress: PROGRESS,
  conditions: [
    { type: 'Running', status: 'True', reason: 'Running', message: '', lastTransitionTime: at(5) },
    { type: 'Ready', status: 'True', reason: 'PodsReady', message: '', lastTransitionTime: at(5) },
  ],
};

const planAt = (status: FaceTrainJobStatus, pods: ObservedPod[], seconds = 102, job: FaceTrainJobBuilder = makeJob()) =>
  planFaceTrainJob(
    job.observe(status, pods, { objects: OBJECTS, servesRestartRules: true }),
    after(seconds),
    testEnvironment,
  );

const end = (exitCode: number, seconds = 100, more: ProgramEnd = {}): ProgramEnd => ({
  exitCode,
  reason: 'Error',
  finishedAt: at(seconds),
  ...more,
});
const running = (rank: number, count = 0, lastEnd?: ProgramEnd) => makePod(rank).running().restarts(count, lastEnd);
const ended = (rank: number, exitCode: number, count = 0) => makePod(rank).running().restarts(count).ended(exitCode);
/** The kubelet has not started the container again yet. */
const waiting = (rank: number, count: number, lastEnd: ProgramEnd) => {
  const pod = running(rank, count, lastEnd).build();
  return { ...pod, ready: false, containerRestarts: { ...pod.containerRestarts!, isRunning: false } };
};

describe('a failure of a gang whose pods have restart rules', () => {
  const killed = running(1, 1, end(137)).build();
  const lostPeer = running(0, 1, end(4)).build();
  const counted = { count: 1, disruptions: 0, inPlace: 1, lastReason: 'ProcessKilled', lastRank: 1, lastExitCode: 137 };
  const replaced = (count: number, disruptions: number, reason: string) => ({
    attempt: 1,
    restarts: { count, disruptions, lastReason: reason },
  });
  const inPlace = { attempt: 0, restarts: counted, containerRestarts: 1 };
  const unchanged = { attempt: 0 };
  const cases: Record<
    string,
    {
      pods: ObservedPod[];
      status?: Partial<FaceTrainJobStatus>;
      seconds?: number;
      job?: FaceTrainJobBuilder;
      want: object;
    }
  > = {
    'both were started again': { pods: [lostPeer, killed], want: inPlace },
    'the killed one was started again, and the other runs on': { pods: [running(0).build(), killed], want: inPlace },
    'the other was started again first: the killed one is the cause': {
      pods: [lostPeer, ended(1, 137).build()],
      seconds: 106,
      want: inPlace,
    },
    'none was started again yet': { pods: [ended(0, 4).build(), ended(1, 137).build()], seconds: 106, want: unchanged },
    'none was started again yet, and the kubelet says that it waits': {
      pods: [waiting(0, 0, end(4)), waiting(1, 0, end(137))],
      seconds: 106,
      want: unchanged,
    },
    'none was started again for half a minute': {
      pods: [ended(0, 4).build(), ended(1, 137).build()],
      seconds: 131,
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'none was started again for half a minute, as the kubelet says': {
      pods: [waiting(0, 0, end(4)), waiting(1, 0, end(137))],
      seconds: 131,
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'out of memory: new pods have the same limit': {
      pods: [lostPeer, running(1, 1, end(137, 100, { reason: 'OOMKilled' })).build()],
      want: { ...inPlace, restarts: { ...counted, lastReason: 'OOMKilled' } },
    },
    'out of memory again within ten minutes': {
      status: {
        restarts: { count: 1, countedTimes: [at(-400)], disruptions: 0, lastTime: at(-400) },
        attemptStartTime: at(-400),
      },
      pods: [lostPeer, running(1, 1, end(137, 100, { reason: 'OOMKilled' })).build()],
      want: replaced(2, 0, 'OOMKilled'),
    },
    'an unforeseen failure, with steps in memory': {
      job: makeJob().with({ checkpoint: { inMemory: true } }),
      pods: [lostPeer, makePod(1).running().restarts(1, end(1), [1, 4, 137]).build()],
      want: { ...inPlace, restarts: { ...counted, lastReason: 'ProcessFailed', lastExitCode: 1 } },
    },
    'a crash, with steps in memory': {
      job: makeJob().with({ checkpoint: { inMemory: true } }),
      pods: [lostPeer, makePod(1).running().restarts(0, undefined, [1, 4, 137]).failed(139).build()],
      seconds: 106,
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'the kubelet killed it for a failed probe': {
      pods: [lostPeer, running(1, 1, end(137, 100, { message: 'Container facetrain failed liveness probe' })).build()],
      want: {
        attempt: 1,
        restarts: {
          count: 1,
          lastReason: 'ProcessKilled',
          lastMessage: 'rank 1 left with exit code 137 on node-1: Container facetrain failed liveness probe',
        },
      },
    },
    'another exit code ended the pod': {
      pods: [lostPeer, makePod(1).running().restarts().failed(1).build()],
      want: replaced(1, 0, 'ProcessFailed'),
    },
    'the kubelet knows no rules: the pods have ended': {
      pods: [makePod(0).running().restarts().failed(4).build(), makePod(1).running().restarts().failed(137).build()],
      seconds: 106,
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'the other pod is being deleted': {
      pods: [lostPeer, running(1).deleting().build()],
      want: replaced(0, 1, 'PodDeleted'),
    },
    'the other pod was evicted': {
      pods: [lostPeer, ended(1, 137).disrupted().build()],
      seconds: 106,
      want: replaced(0, 1, 'Disrupted'),
    },
    'the node of the other pod does not answer': {
      pods: [lostPeer, { ...running(1).build(), silentNode: { reason: 'node-1 is silent', since: at(99) } }],
      seconds: 103,
      want: replaced(1, 0, 'PeerLost'),
    },
    'the other rank has succeeded': {
      pods: [running(0, 1, end(137)).build(), makePod(1).running().restarts().succeeded().build()],
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'the gang has not trained yet: ranks may be on their way to the others': {
      status: { progress: { ...PROGRESS, step: 0, activity: 2 } },
      pods: [running(0).build(), killed],
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'the work of the gang is that of an earlier attempt': {
      status: { attemptStartTime: at(98) },
      pods: [running(0).build(), killed],
      want: replaced(1, 0, 'ProcessKilled'),
    },
    'a second restart within ten minutes has to wait': {
      status: {
        restarts: { count: 1, countedTimes: [at(-400)], disruptions: 0, lastTime: at(-400) },
        attemptStartTime: at(-400),
      },
      pods: [lostPeer, killed],
      want: replaced(2, 0, 'ProcessKilled'),
    },
    'a restart after ten minutes need not wait': {
      status: { restarts: { count: 1, countedTimes: [at(-600)], disruptions: 0, lastTime: at(-600) } },
      pods: [lostPeer, killed],
      want: { ...inPlace, restarts: { ...counted, count: 2 } },
    },
    'a rank that was started twice counts twice, and the first time it was in place': {
      pods: [lostPeer, running(1, 2, end(137)).build()],
      want: { attempt: 1, restarts: { count: 2, inPlace: 1, disruptions: 0, lastReason: 'ProcessKilled' } },
    },
    'a rank that was started twice uses up two restarts': {
      job: makeJob().failurePolicy({ maxRestarts: 1 }),
      pods: [lostPeer, running(1, 2, end(137)).build()],
      want: { phase: 'Failed' },
    },
    'a rank that was started again has ended again': {
      pods: [lostPeer, ended(1, 4, 1).build()],
      want: replaced(1, 0, 'PeerLost'),
    },
    'a rule fails the job': {
      job: makeJob().failurePolicy({ rules: [{ reasons: ['ProcessKilled'], action: 'FailJob' }] }),
      pods: [lostPeer, killed],
      want: { phase: 'Failed' },
    },
    'a rule does not count it': {
      job: makeJob().failurePolicy({ rules: [{ reasons: ['ProcessKilled'], action: 'RestartWithoutCounting' }] }),
      pods: [lostPeer, killed],
      want: replaced(0, 1, 'ProcessKilled'),
    },
  };
  for (const [name, { pods, status, seconds = 102, job, want }] of Object.entries(cases))
    test(name, () => {
      const { status: result, actions } = planAt({ ...TRAINED, ...status }, pods, seconds, job);
      const { attempt, phase, restarts, trainers } = result;
      assert.partialDeepStrictEqual({ attempt, phase, restarts, containerRestarts: trainers!.containerRestarts }, want);
      // What is not restarted in place has no trace of it.
      if (!('containerRestarts' in want)) assert.equal(trainers!.containerRestarts, undefined);
      if (want === unchanged) assert.equal(restarts, undefined);
      // The next plan acts; this one has to be written first.
      assert.deepEqual(actions, []);
    });
});

describe('a gang that was started again in its pods', () => {
  const job = makeJob();
  /** The status after the restart was counted, at 102. */
  const { status: counted, events } = planAt(TRAINED, [running(0).build(), running(1, 1, end(137)).build()]);

  test('is told: phase, condition and an Event say it', () => {
    assert.equal(counted.phase, 'Restarting');
    assert.equal(counted.attemptStartTime, at(0));
    assert.equal(counted.restarts!.lastTime, at(102));
    const restarting = counted.conditions!.find(({ type }) => type === 'Restarting');
    assert.partialDeepStrictEqual(restarting, { status: 'True', reason: 'ProcessKilled' });
    assert.deepEqual(
      events.map(({ type, reason }) => `${type} ${reason}`),
      ['Warning Restarting'],
    );
    assert.match(events[0]!.message, /^ProcessKilled: rank 1.*; the trainers start again in their pods$/);
  });

  /** The job after a few plans. */
  const later = (pods: ObservedPod[], seconds: number) => {
    let result = planAt(counted, pods, seconds, job);
    for (let round = 0; round < 4; round++) result = planAt(result.status, pods, seconds, job);
    return result;
  };
  const both = [running(0, 1, end(4)).build(), running(1, 1, end(137)).build()];

  test('runs when all are ready, and nothing more is counted', () => {
    const { status, actions } = later(both, 110);
    assert.equal(status.phase, 'Running');
    assert.deepEqual([status.attempt, status.restarts, status.trainers!.containerRestarts], [0, counted.restarts, 1]);
    assert.deepEqual(actions, []);
  });

  for (const [name, late] of Object.entries({
    'runs on': running(0).build(),
    'has ended': ended(0, 4).build(),
    'was killed as well': ended(0, 137).build(),
    'is about to be started': waiting(0, 0, end(4, 103)),
  })) {
    test(`restarts while a trainer ${name}; after half a minute new pods follow, and nothing more is counted`, () => {
      const pods = [late, both[1]!];
      const { status, requeueAfterSeconds: next } = later(pods, 110);
      assert.equal(status.phase, 'Restarting');
      assert.deepEqual([status.attempt, status.restarts], [0, counted.restarts]);
      assert(next! <= 22, `${next}`);
      const { status: replaced } = planAt(status, pods, 132);
      assert.partialDeepStrictEqual(replaced, { attempt: 1, restarts: { count: 1, disruptions: 0 } });
      assert.equal(replaced.trainers!.containerRestarts, undefined);
    });
  }

  for (const [name, gone] of Object.entries({
    'has succeeded': makePod(0).running().restarts().succeeded().build(),
    'has ended with its pod': makePod(0).running().restarts().failed(4, 103).build(),
  }))
    test(`gets new pods at once when a trainer ${name}, and nothing more is counted`, () => {
      const { status } = planAt(counted, [gone, both[1]!], 104);
      assert.partialDeepStrictEqual(status, { attempt: 1, restarts: { count: 1, disruptions: 0 } });
    });

  test('has failed again when a trainer fails that had not followed', () => {
    const failedItself = makePod(0).running().restarts().failed(1, 103).build();
    const { status } = planAt(counted, [failedItself, both[1]!], 104);
    assert.partialDeepStrictEqual(status, { attempt: 1, restarts: { count: 2, lastReason: 'ProcessFailed' } });
  });

  test('counts the next restart once, after ten minutes, when it has trained since', () => {
    const trained = { ...later(both, 110).status, progress: { ...PROGRESS, lastHeartbeatTime: at(760) } };
    const pods = [running(0, 2, end(4, 800)).build(), running(1, 2, end(137, 800)).build()];
    const { status } = planAt(trained, pods, 803);
    assert.partialDeepStrictEqual(status, { attempt: 0, restarts: { count: 2, inPlace: 2 } });
    assert.equal(status.trainers!.containerRestarts, 2);
    const untrained = { ...trained, progress: PROGRESS };
    assert.partialDeepStrictEqual(planAt(untrained, pods, 803).status, {
      attempt: 1,
      restarts: { count: 2, inPlace: 1 },
    });
  });

  test('has its time for progress anew', () => {
    const hurried = makeJob().with({ progressDeadlineSeconds: 60 });
    const status = later(both, 110).status;
    assert.equal(planAt(status, both, 161, hurried).status.attempt, 0);
    assert.partialDeepStrictEqual(planAt(status, both, 162, hurried).status, {
      attempt: 1,
      restarts: { count: 2, lastReason: 'ProgressDeadlineExceeded' },
    });
  });

  test('has its pods deleted at once when the job fails or is replaced, also where a program has just ended', () => {
    const pods = [ended(0, 4, 1).build(), both[1]!];
    const { actions } = planAt({ ...counted, attempt: 1, attemptStartTime: undefined, trainers: undefined }, pods, 104);
    assert.deepEqual(
      actions.flatMap((action) => (action.type === 'delete' ? [`${action.kind} ${action.name}`] : [])),
      ['Pod faces-0-0', 'Pod faces-0-1'],
    );
  });
});

describe('a pod that the kubelet ends by itself', () => {
  /** As it reports a container of which it finds nothing any more: convertToAPIContainerStatuses of kubelet_pods.go. */
  const unknown = { exitCode: 137, reason: 'ContainerStatusUnknown', message: 'The container could not be located' };
  const gone = (rank: number, count = 1, lastEnd: ProgramEnd = unknown): ObservedPod => {
    const pod = running(rank, count, lastEnd).build();
    return {
      ...pod,
      ready: false,
      containerRestarts: { ...pod.containerRestarts!, isRunning: false, isGone: true },
    };
  };
  const evicted = (pod: ObservedPod, more: Partial<ObservedPod> = {}): ObservedPod => ({
    ...pod,
    phase: 'Failed',
    ready: false,
    reason: 'Evicted',
    message: 'Usage of EmptyDir volume "cache" exceeds the limit "20Mi".',
    ...more,
  });
  const lostPeer = running(0, 1, end(4)).build();
  const isEvicted = { attempt: 1, restarts: { count: 1, disruptions: 0, lastReason: 'Evicted', lastRank: 1 } };
  const unchanged = { attempt: 0 };
  const killedBefore = end(137, 90);
  /** Of a gang that was started again in its pods at 95, and has trained since. */
  const secondStart: Partial<FaceTrainJobStatus> = {
    attemptStartTime: at(-700),
    restarts: { count: 1, disruptions: 0, inPlace: 1, countedTimes: [at(-600)], lastTime: at(-600) },
    trainers: { desired: 2, active: 2, ready: 2, succeeded: 0, failed: 0, containerRestarts: 1 },
  };
  const evictedAgain = { attempt: 1, restarts: { count: 2, disruptions: 0, lastReason: 'Evicted', lastRank: 1 } };
  const cases: Record<
    string,
    { pods: ObservedPod[]; status?: Partial<FaceTrainJobStatus>; seconds?: number; want: object }
  > = {
    'its container is gone': { pods: [running(0).build(), gone(1)], want: unchanged },
    'its container is gone, and the gang has not trained yet': {
      status: { progress: { ...PROGRESS, step: 0, activity: 2 } },
      pods: [running(0).build(), gone(1)],
      want: unchanged,
    },
    'its container is gone for minutes, which may be a kubelet that unmounts': {
      pods: [running(0).build(), gone(1)],
      seconds: 400,
      want: unchanged,
    },
    'its container is gone, and another was started again': {
      pods: [lostPeer, gone(1)],
      seconds: 110,
      want: unchanged,
    },
    'its container is gone, and another is about to be started again': {
      pods: [ended(0, 4).build(), gone(1)],
      seconds: 110,
      want: unchanged,
    },
    'its container is gone, and its end does not follow for half a minute': {
      pods: [lostPeer, gone(1)],
      seconds: 131,
      want: { attempt: 1, restarts: { count: 1, disruptions: 0, lastReason: 'PeerLost' } },
    },
    'it has ended, and its container was gone': { pods: [running(0).build(), evicted(gone(1))], want: isEvicted },
    'it has ended, and the kubelet has set the end of its container': {
      pods: [lostPeer, evicted(gone(1), { exitCode: 137 })],
      want: isEvicted,
    },
    'it has ended, and its container was found': {
      pods: [lostPeer, evicted(running(1).build(), { exitCode: 137, finishedAt: at(100) })],
      want: isEvicted,
    },
    'its program has ended, and then it': {
      pods: [lostPeer, evicted(ended(1, 137).build())],
      want: isEvicted,
    },
    'it has ended after a start that was not counted': {
      pods: [lostPeer, evicted(running(1, 1, killedBefore).build())],
      want: isEvicted,
    },
    'its second container is gone': {
      status: secondStart,
      pods: [running(0, 1, end(4, -610)).build(), gone(1, 1, end(137, -611))],
      want: unchanged,
    },
    'its second container is gone, and another was started again': {
      status: secondStart,
      pods: [running(0, 2, end(4)).build(), gone(1, 1, end(137, -611))],
      seconds: 110,
      want: { ...unchanged, restarts: { count: 1 }, containerRestarts: 1 },
    },
    'it has ended in its second start': {
      status: secondStart,
      pods: [running(0, 2, end(4)).build(), evicted(gone(1, 1, end(137, -611)))],
      want: evictedAgain,
    },
    'it had not followed a restart when it ended': {
      status: secondStart,
      pods: [running(0, 1, end(4, -610)).build(), evicted(gone(1))],
      want: evictedAgain,
    },
    'the kubelet preempted it for a pod of the system': {
      pods: [lostPeer, evicted(gone(1), { reason: 'Preempting', disrupted: true })],
      want: { attempt: 1, restarts: { count: 0, disruptions: 1, lastReason: 'Preempting' } },
    },
    'its node was shut down': {
      pods: [lostPeer, evicted(gone(1), { reason: 'Terminated', disrupted: true, exitCode: 137 })],
      want: { attempt: 1, restarts: { count: 0, disruptions: 1, lastReason: 'Terminated' } },
    },
    'its own deadline is over': {
      pods: [lostPeer, evicted(gone(1), { reason: 'DeadlineExceeded' })],
      want: { attempt: 1, restarts: { count: 1, disruptions: 0, lastReason: 'DeadlineExceeded' } },
    },
    'the collector of pods ended it for its lost node, after a start that was not counted': {
      pods: [lostPeer, { ...running(1, 1, killedBefore).build(), phase: 'Failed', ready: false, disrupted: true }],
      want: { attempt: 1, restarts: { count: 0, disruptions: 1, lastReason: 'Disrupted' } },
    },
    'a kubelet that was started again rejects it, and reports no container': {
      status: secondStart,
      pods: [
        running(0, 1, end(4, -610)).build(),
        evicted(running(1, 0).build(), { reason: 'OutOfcpu', rejected: true }),
      ],
      want: { attempt: 1, restarts: { count: 1, disruptions: 1, lastReason: 'OutOfcpu' } },
    },
    'somebody deletes it, and its container is gone': {
      pods: [running(0).build(), { ...gone(1, 0), deleting: true }],
      want: { attempt: 1, restarts: { count: 0, disruptions: 1, lastReason: 'PodDeleted' } },
    },
    'it is drained, and its second container is gone': {
      status: secondStart,
      pods: [lostPeer, { ...gone(1, 1, end(137, -611)), deleting: true, disrupted: true }],
      want: { attempt: 1, restarts: { count: 1, disruptions: 1, lastReason: 'Disrupted' } },
    },
    'its node is lost, and its container is gone': {
      pods: [lostPeer, { ...gone(1), lostNode: 'node-1 was deleted' }],
      seconds: 104,
      want: { attempt: 1, restarts: { count: 0, disruptions: 1, lastReason: 'NodeLost' } },
    },
    'the kubelet has lost its container, and has started another': {
      pods: [running(0).build(), running(1, 1, unknown).build()],
      want: { attempt: 1, restarts: { count: 1, disruptions: 0, lastReason: 'ContainerStatusUnknown' } },
    },
  };
  for (const [name, { pods, status, seconds = 102, want }] of Object.entries(cases))
    test(name, () => {
      const { status: result } = planAt({ ...TRAINED, ...status }, pods, seconds);
      const { attempt, restarts, trainers } = result;
      assert.partialDeepStrictEqual({ attempt, restarts, containerRestarts: trainers!.containerRestarts }, want);
      if (want === unchanged) assert.deepEqual(restarts, status?.restarts);
    });
});

test('pods of a failed job in which the kubelet would start trainers again are not kept', () => {
  const failed = { type: 'Failed', status: 'True', reason: 'X', message: '', lastTransitionTime: at(101) } as const;
  const status: FaceTrainJobStatus = { ...TRAINED, conditions: [failed], completionTime: at(101) };
  const pods = [running(0, 1, end(4)).build(), makePod(1).running().build()];
  const { actions } = planAt(status, pods, 102, makeJob().with({ cleanPodPolicy: 'None' }));
  assert.deepEqual(
    actions.flatMap((action) => (action.type === 'delete' ? [action.name] : [])),
    ['faces-0-0'],
  );
});

describe('restart rules of a pod', () => {
  const OTHER = 'registry.example/facetrain:0';
  const values = (job: FaceTrainJobBuilder) =>
    restartRules(job.parse(), testEnvironment).restartPolicyRules?.flatMap(({ exitCodes }) => exitCodes.values) ?? [];

  for (const [name, job, want] of [
    ['lost peers and SIGKILL', makeJob(), [4, 137]],
    [
      'not the exit codes that the policy names',
      makeJob().failurePolicy({ rules: [{ exitCodes: [3, 137], action: 'FailJob' }] }),
      [4],
    ],
    ['none if nothing restarts', makeJob().failurePolicy({ maxRestarts: 0 }), []],
    ['none if the pods of a finished job are kept', makeJob().with({ cleanPodPolicy: 'None' }), []],
    ['none with another image, which may be older', makeJob().trainers({ image: OTHER }), []],
    [
      'with steps in memory also unforeseen failures, and with any image, which knows them',
      makeJob()
        .trainers({ image: OTHER })
        .with({ checkpoint: { inMemory: true } }),
      [1, 4, 137],
    ],
  ] as const)
    test(name, () => assert.deepEqual(values(job), want));

  /** Of the first plan. */
  const containers = (servesRestartRules: boolean) =>
    planFaceTrainJob(makeJob().observe({}, [], { servesRestartRules }), after(0), testEnvironment).actions.flatMap(
      (action) => (action.type === 'create' && action.object.kind === 'Pod' ? action.object.spec.containers : []),
    );

  test('are those of all trainers, where the cluster serves them', () => {
    assert.equal(containers(true).length, 2);
    for (const container of containers(true))
      assert.partialDeepStrictEqual(container, restartRules(makeJob().parse(), testEnvironment));
    for (const container of containers(false)) {
      assert(!('restartPolicy' in container));
      assert(!('restartPolicyRules' in container));
    }
  });
});
