import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { conditionText } from '../conditions.ts';
import type { ObservedFaceTrainJob, ObservedObject, ObservedProgress } from '../observed.ts';
import type { Plan } from '../plan.ts';
import { after, at, type FaceTrainJobBuilder, makeJob, makePod } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { planFaceTrainJob } from './plan-facetrainjob.ts';

const PODS = [makePod(0).running().build(), makePod(1).running().build()];
const OBJECTS: ObservedObject[] = (['Service', 'NetworkPolicy'] as const).map((kind) => ({
  kind,
  name: 'faces',
  uid: kind,
  owned: true,
}));
OBJECTS.push({ kind: 'ConfigMap', name: 'faces-0', uid: 'c', owned: true });
const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };

const progress = (step: number, fields: Partial<ObservedProgress> = {}): ObservedProgress => ({
  attempt: 0,
  step,
  totalSteps: 1000,
  epoch: step / 100,
  activity: step,
  imagesPerSecond: 40,
  loss: 9.5,
  etaSeconds: 1000 - step,
  ...fields,
});

function plan(
  status: FaceTrainJobStatus,
  observed: ObservedProgress | undefined,
  seconds: number,
  job: FaceTrainJobBuilder = makeJob(),
  pods = PODS,
  watch?: ObservedFaceTrainJob['progressWatch'],
): Plan<FaceTrainJobStatus> {
  return planFaceTrainJob(
    job.observe(status, pods, {
      objects: OBJECTS,
      ...(observed && { progress: observed }),
      ...(watch && { progressWatch: watch }),
    }),
    after(seconds),
    testEnvironment,
  );
}

const RUNNING = plan(STARTED, undefined, 10).status;
const AT_100 = plan(RUNNING, progress(100), 100).status;

test('a gang whose ranks do not meet says whom rank 0 waits for', () => {
  const messageOf = ({ status }: Plan<FaceTrainJobStatus>) => conditionText(status.conditions, 'Ready');
  const waitsFor = 'rank 1 to come to faces-0-0.faces:29500';
  const waiting = plan(RUNNING, progress(0, { activity: 2, waitsFor }), 20);
  const words = `rank 0 waits for ${waitsFor}; the logs of the other ranks say whom they wait for`;
  assert.equal(messageOf(waiting), `PodsReady: all 2 pods are ready; ${words}`);
  const met = plan(waiting.status, progress(0, { activity: 3 }), 22);
  assert.equal(messageOf(met), 'PodsReady: all 2 pods are ready');
  const before = plan(RUNNING, progress(0, { attempt: 1, waitsFor }), 20);
  assert.equal(messageOf(before), 'PodsReady: all 2 pods are ready');
});

test('the status has all of the progress, rounded', () => {
  const status = plan(RUNNING, progress(100, { imagesPerSecond: 40.000123, loss: 9.5000004 }), 100).status.progress;
  assert.deepEqual(status, {
    step: 100,
    totalSteps: 1000,
    epoch: 1,
    percent: 10,
    imagesPerSecond: 40,
    loss: 9.5,
    estimatedCompletionTime: at(1000),
    activity: 100,
    lastHeartbeatTime: at(100),
  });
});

test('a failed job has no estimated completion time', () => {
  const failed = plan(AT_100, undefined, 110, makeJob(), [makePod(0).failed(2).build(), PODS[1]!]).status;
  assert.partialDeepStrictEqual(failed, { phase: 'Failed', progress: { step: 100 } });
  assert.equal(failed.progress?.estimatedCompletionTime, undefined);
});

const DAMAGED = { folder: 'damaged-step-0000000100.0000000002', reason: '/c/rows: no such file; the file' };

test('a damaged checkpoint has one event, and stays in the status after the attempt', () => {
  const first = plan(AT_100, progress(105, { setAside: [DAMAGED] }), 101);
  const ofCheckpoints = ({ events }: typeof first) => events.filter(({ reason }) => reason === 'CheckpointSetAside');
  assert.deepEqual(ofCheckpoints(first), [
    {
      type: 'Warning',
      reason: 'CheckpointSetAside',
      message: `${DAMAGED.folder}: ${DAMAGED.reason}; training continues from the checkpoint before it`,
    },
  ]);
  const second = plan(first.status, progress(200, { setAside: [DAMAGED] }), 120);
  assert.deepEqual(ofCheckpoints(second), []);
  assert.equal(second.status.progress!.step, 200);

  // Later attempts report others, of which the newest are kept.
  const others = [1, 2, 3].map((number) => ({ ...DAMAGED, folder: `damaged-step-000000010${number}.0000000003` }));
  const third = plan(second.status, progress(300, { setAside: others.slice(0, 1) }), 140);
  assert.deepEqual(third.status.damagedCheckpoints, [DAMAGED, others[0]]);
  const fourth = plan(third.status, progress(400, { setAside: others }), 160);
  assert.deepEqual(fourth.status.damagedCheckpoints, others);
  assert.equal(ofCheckpoints(fourth).length, 2);
  assert.deepEqual(plan(fourth.status, progress(500), 180).status.damagedCheckpoints, others);
});

describe('progress is written', () => {
  const checkpoint = { step: 105, time: at(104) };
  const cases: Record<
    string,
    {
      observed: ObservedProgress;
      at: number;
      pods?: typeof PODS;
      want: Partial<FaceTrainJobStatus> | null;
      wantRequeue?: number;
    }
  > = {
    'not when nothing moved': { observed: progress(100, { etaSeconds: 1, imagesPerSecond: 39 }), at: 500, want: null },
    'not within 10 s of the last': { observed: progress(105), at: 109, want: null, wantRequeue: 1 },
    'after 10 s': {
      observed: progress(110),
      at: 110,
      want: { progress: { step: 110, lastHeartbeatTime: at(110) } as never },
    },
    'also when only other things than steps move': {
      observed: progress(100, { activity: 101 }),
      at: 110,
      want: { progress: { step: 100, activity: 101, lastHeartbeatTime: at(110) } as never },
    },
    'at once with a checkpoint': {
      observed: progress(105, { checkpoint }),
      at: 101,
      want: {
        progress: { step: 105 } as never,
        checkpoint: { uri: 'pvc://data/out/checkpoints/step-0000000105', ...checkpoint },
      },
    },
    'at once with an evaluation': {
      observed: progress(105, { evaluations: [{ set: 'lfw', step: 100, accuracy: 0.9 }] }),
      at: 101,
      want: { evaluations: [{ set: 'lfw', step: 100, accuracy: 0.9 }] },
    },
    'at once with a damaged checkpoint': {
      observed: progress(105, { setAside: [DAMAGED] }),
      at: 101,
      want: { damagedCheckpoints: [DAMAGED] },
    },
    'at once at the end': { observed: progress(1000), at: 101, want: { progress: { percent: 100 } as never } },
    'with any other change': {
      observed: progress(105),
      at: 101,
      pods: [PODS[0]!, makePod(1).with({ phase: 'Unknown' }).build()],
      want: { progress: { step: 105 } as never },
    },
    'after 10 s, also if the last was written by a clock that was ahead': {
      observed: progress(105),
      at: 90,
      want: null,
      wantRequeue: 10,
    },
    'not from another attempt': { observed: progress(500, { attempt: 7 }), at: 500, want: null },
  };
  for (const [name, { observed, at: seconds, pods, want, wantRequeue }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(AT_100, observed, seconds, makeJob(), pods);
      if (want === null) assert.equal(result.status, AT_100);
      else assert.partialDeepStrictEqual(result.status, want);
      if (wantRequeue !== undefined) assert.equal(result.requeueAfterSeconds, wantRequeue);
    });
  }
});

test('the first progress of an attempt is written at once if it shows work, else after 10 s', () => {
  const loading = progress(0, { activity: 0 });
  const early = plan(RUNNING, loading, 4);
  assert.equal(early.status, RUNNING);
  assert.equal(early.requeueAfterSeconds, 6);
  assert.partialDeepStrictEqual(plan(RUNNING, loading, 10).status, { progress: { step: 0, totalSteps: 1000 } });
  for (const worked of [progress(0, { activity: 1 }), progress(1)])
    assert.partialDeepStrictEqual(plan(RUNNING, worked, 4).status, { progress: { step: worked.step } });
  // The first step, too: it says that all ranks have met.
  const met = plan(plan(RUNNING, progress(0, { activity: 1 }), 4).status, progress(1, { activity: 3 }), 5);
  assert.partialDeepStrictEqual(met.status, { progress: { step: 1 } });
});

test('a heartbeat is not before the start that a leader with a clock ahead has written', () => {
  const status = { ...RUNNING, attemptStartTime: at(130) };
  const first = plan(status, progress(100), 100).status;
  assert.equal(first.progress?.lastHeartbeatTime, at(130));
  assert.equal(plan(first, progress(100), 101).status, first);
  assert.equal(plan(first, progress(100), 130 + 1800 - 1).status.attempt, 0);
});

describe('the termination message of rank 0', () => {
  const last = {
    progress: progress(1000, {
      checkpoint: { step: 1000, time: at(149) },
      evaluations: [{ set: 'lfw', step: 1000, accuracy: 0.9 }],
    }),
  };
  const checkpoint = { uri: 'pvc://data/out/checkpoints/step-0000001000', step: 1000, time: at(149) };

  test('replaces the polled progress, and stays after the pods are deleted', () => {
    const pods = [makePod(0).succeeded().with({ result: last }).build(), makePod(1).succeeded().build()];
    const { status } = plan(AT_100, progress(990), 150, makeJob(), pods);
    assert.partialDeepStrictEqual(status, {
      phase: 'Succeeded',
      progress: { step: 1000, percent: 100, activity: 1000 },
      checkpoint,
      evaluations: last.progress.evaluations,
    });
    assert.equal(plan(status, progress(990), 200, makeJob(), []).status, status);
  });
  test('stays when the pod of rank 0 is removed before the other ranks have ended', () => {
    const pods = [makePod(0).succeeded().with({ result: last }).build(), PODS[1]!];
    const { status } = plan(AT_100, progress(990), 150, makeJob(), pods);
    const polled = progress(990, { checkpoint: { step: 900, time: at(140) } });
    assert.partialDeepStrictEqual(plan(status, polled, 151, makeJob(), [PODS[1]!]).status, {
      checkpoint,
      progress: { step: 1000 },
    });
  });
  test('gives the checkpoint of a preempted attempt, together with the restart', () => {
    const pods = [makePod(0).failed(143).with({ result: last }).build(), makePod(1).failed(143).build()];
    assert.partialDeepStrictEqual(plan(AT_100, progress(990), 150, makeJob(), pods).status, { attempt: 1, checkpoint });
  });
  test('gives the checkpoint of a suspended attempt, once', () => {
    const job = makeJob().suspended().atGeneration(2);
    const { status } = plan(AT_100, progress(990), 140, job);
    assert.equal(status.checkpoint, undefined);
    const pods = [makePod(0).failed(143).deleting().with({ result: last }).build()];
    const stopped = plan(status, undefined, 150, job, pods).status;
    assert.partialDeepStrictEqual(stopped, { phase: 'Suspended', checkpoint, progress: { step: 990 } });
    assert.equal(plan(stopped, undefined, 160, job, pods).status, stopped);
  });
});

describe('a hang', () => {
  const job = makeJob().with({ progressDeadlineSeconds: 300 });
  const still = progress(100);
  const cases: Record<
    string,
    {
      status: FaceTrainJobStatus;
      observed?: ObservedProgress;
      at: number;
      watch?: ObservedFaceTrainJob['progressWatch'];
      pods?: typeof PODS;
      want: 'continues' | 'restarts';
      wantRequeue?: number;
    }
  > = {
    'is not detected before the deadline': {
      status: AT_100,
      observed: still,
      at: 399,
      want: 'continues',
      wantRequeue: 1,
    },
    'restarts the gang at the deadline': { status: AT_100, observed: still, at: 400, want: 'restarts' },
    'is detected without polled progress, too': { status: AT_100, at: 400, want: 'restarts' },
    'is not detected while the activity counter changes': {
      status: AT_100,
      observed: progress(100, { activity: 101 }),
      at: 400,
      want: 'continues',
    },
    'is detected in a gang that never reported progress': { status: RUNNING, at: 310, want: 'restarts' },
    'is not detected when an operator comes back that was away for longer, before the gang has answered': {
      status: AT_100,
      watch: { since: at(2000), isUnreadable: false },
      at: 2001,
      want: 'continues',
      wantRequeue: 29,
    },
    'is detected when the answer is that nothing has moved meanwhile': {
      status: AT_100,
      watch: { since: at(2000), isUnreadable: false },
      observed: still,
      at: 2001,
      want: 'restarts',
    },
    'is detected when no answer comes for as long': {
      status: AT_100,
      watch: { since: at(2000), isUnreadable: false },
      at: 2300,
      want: 'restarts',
    },
    'is detected when several leaders together get no answer for as long': {
      status: { ...AT_100, unanswered: { seconds: 250, time: at(1900) } },
      watch: { since: at(2000), isUnreadable: false },
      at: 2050,
      want: 'restarts',
    },
    'is not detected before that': {
      status: { ...AT_100, unanswered: { seconds: 250, time: at(1900) } },
      watch: { since: at(2000), isUnreadable: false },
      at: 2029,
      want: 'continues',
      wantRequeue: 1,
    },
    'is not told by what was counted before the gang was last seen at work': {
      status: { ...AT_100, unanswered: { seconds: 250, time: at(99) } },
      watch: { since: at(2000), isUnreadable: false },
      at: 2050,
      want: 'continues',
    },
    'is not detected while the answers cannot be read': {
      status: RUNNING,
      watch: { since: at(0), isUnreadable: true },
      at: 9999,
      want: 'continues',
    },
    'is not detected while pods wait to be scheduled': {
      status: STARTED,
      at: 9999,
      pods: [PODS[0]!, makePod(1).build()],
      want: 'continues',
    },
  };
  for (const [name, { status, observed, watch, at: seconds, pods, want, wantRequeue }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(status, observed, seconds, job, pods, watch);
      assert.equal(result.status.attempt, want === 'restarts' ? 1 : 0);
      if (want === 'restarts')
        assert.partialDeepStrictEqual(result.status.restarts, { count: 1, lastReason: 'ProgressDeadlineExceeded' });
      if (wantRequeue !== undefined) assert.equal(result.requeueAfterSeconds, wantRequeue);
    });
  }
  test('is counted in the status while no answer comes, and no longer once one has come', () => {
    const watch = { since: at(2000), isUnreadable: false };
    const early = plan(AT_100, undefined, 2029, job, PODS, watch);
    assert.deepEqual([early.status, early.requeueAfterSeconds], [AT_100, 1]);
    const counted = plan(AT_100, undefined, 2030, job, PODS, watch).status;
    assert.deepEqual(counted.unanswered, { seconds: 30, time: at(2030) });
    assert.equal(plan(counted, undefined, 2059, job, PODS, watch).status, counted);
    const twice = plan(counted, undefined, 2062, job, PODS, watch).status;
    assert.deepEqual(twice.unanswered, { seconds: 62, time: at(2062) });
    assert.equal(plan(twice, progress(100, { activity: 101 }), 2063, job, PODS, watch).status.unanswered, undefined);
  });
  describe('while a node does not answer', () => {
    const silent = PODS.map((pod) => ({ ...pod, silentNode: { reason: 'node-1 is silent', since: at(110) } }));
    const patient = job.failurePolicy({ nodeLostSeconds: 900 });
    const waiting = plan(AT_100, still, 400, patient, silent);
    test('is left to nodeLostSeconds', () =>
      assert.deepEqual([waiting.status.attempt, waiting.requeueAfterSeconds], [0, 150]));
    test('does not hide the lost node', () =>
      assert.partialDeepStrictEqual(plan(waiting.status, still, 550, patient, silent).status.restarts, {
        count: 0,
        lastReason: 'NodeLost',
      }));
    test('is detected once the node answers again', () =>
      assert.equal(plan(waiting.status, still, 401, patient).status.restarts?.lastReason, 'ProgressDeadlineExceeded'));
    test('is detected where the template tolerates the loss of nodes', () => {
      const tolerations = [{ key: 'node.kubernetes.io/unreachable', operator: 'Exists' }];
      const tolerant = patient.trainers({ podTemplate: { spec: { tolerations } } });
      const { restarts } = plan(AT_100, still, 400, tolerant, silent).status;
      assert.equal(restarts?.lastReason, 'ProgressDeadlineExceeded');
    });
  });
  test('of an earlier attempt does not count for this one', () => {
    const status = { ...AT_100, attempt: 1, attemptStartTime: at(1000) };
    const pods = [makePod(0, 1).running().build(), makePod(1, 1).running().build()];
    const result = planFaceTrainJob(
      job.observe(status, pods, {
        objects: [...OBJECTS, { kind: 'ConfigMap', name: 'faces-1', uid: 'd', owned: true }],
      }),
      after(1001),
      testEnvironment,
    );
    assert.equal(result.status.attempt, 1);
    assert.equal(result.status.restarts, undefined);
  });
});
