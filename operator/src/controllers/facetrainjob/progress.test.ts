import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import type { ObservedObject, ObservedProgress } from '../observed.ts';
import type { Plan } from '../plan.ts';
import { after, at, makeJob, makePod, type FaceTrainJobBuilder } from '../testing/builders.ts';
import { testEnvironment } from '../testing/environment.ts';
import { planFaceTrainJob } from './plan.ts';

const PODS = [makePod(0).running().build(), makePod(1).running().build()];
const OBJECTS: ObservedObject[] = (['Service', 'NetworkPolicy'] as const).map((kind) => ({ kind, name: 'faces', uid: kind, owned: true }));
OBJECTS.push({ kind: 'ConfigMap', name: 'faces-0', uid: 'c', owned: true });
const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };

const progress = (step: number, more: Partial<ObservedProgress> = {}): ObservedProgress => ({
  attempt: 0,
  step,
  totalSteps: 1000,
  epoch: step / 100,
  activity: step,
  imagesPerSecond: 40,
  loss: 9.5,
  etaSeconds: 1000 - step,
  ...more,
});

function plan(
  status: FaceTrainJobStatus,
  observed: ObservedProgress | undefined,
  seconds: number,
  job: FaceTrainJobBuilder = makeJob(),
  pods = PODS,
): Plan<FaceTrainJobStatus> {
  return planFaceTrainJob(job.observe(status, pods, { objects: OBJECTS, ...(observed && { progress: observed }) }), after(seconds), testEnvironment);
}

const RUNNING = plan(STARTED, undefined, 10).status;
const AT_100 = plan(RUNNING, progress(100), 100).status;

test('progress is told in full', () => {
  assert.deepEqual(AT_100.progress, {
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

describe('when progress is written', () => {
  const checkpoint = { step: 105, time: at(104) };
  const cases: Record<string, { observed: ObservedProgress; at: number; pods?: typeof PODS; want: Partial<FaceTrainJobStatus> | null; wantRequeue?: number }> =
    {
      'not when nothing moved': { observed: progress(100, { etaSeconds: 1, imagesPerSecond: 39 }), at: 500, want: null },
      'not within 10 s of the last': { observed: progress(105), at: 109, want: null, wantRequeue: 1 },
      'after 10 s': { observed: progress(110), at: 110, want: { progress: { step: 110, lastHeartbeatTime: at(110) } as never } },
      'also when only other things than steps move': {
        observed: progress(100, { activity: 101 }),
        at: 110,
        want: { progress: { step: 100, activity: 101, lastHeartbeatTime: at(110) } as never },
      },
      'at once with a checkpoint': {
        observed: progress(105, { checkpoint }),
        at: 101,
        want: { progress: { step: 105 } as never, checkpoint: { uri: 'pvc://data/out/checkpoints/step-0000000105', ...checkpoint } },
      },
      'at once with an evaluation': {
        observed: progress(105, { evaluations: [{ set: 'lfw', step: 100, accuracy: 0.9 }] }),
        at: 101,
        want: { evaluations: [{ set: 'lfw', step: 100, accuracy: 0.9 }] },
      },
      'at once at the end': { observed: progress(1000), at: 101, want: { progress: { percent: 100 } as never } },
      'with any other change': {
        observed: progress(105),
        at: 101,
        pods: [PODS[0]!, makePod(1).with({ phase: 'Unknown' }).build()],
        want: { progress: { step: 105 } as never },
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

describe('a hang', () => {
  const job = makeJob().with({ progressDeadlineSeconds: 300 });
  const still = progress(100);
  const cases: Record<
    string,
    { status: FaceTrainJobStatus; observed?: ObservedProgress; at: number; pods?: typeof PODS; want: 'goes on' | 'restarts'; wantRequeue?: number }
  > = {
    'is not seen before its time': { status: AT_100, observed: still, at: 399, want: 'goes on', wantRequeue: 1 },
    'is a restart': { status: AT_100, observed: still, at: 400, want: 'restarts' },
    'is one too when progress cannot be had': { status: AT_100, at: 400, want: 'restarts' },
    'is none while anything moves': { status: AT_100, observed: progress(100, { activity: 101 }), at: 400, want: 'goes on' },
    'is one of a gang that never showed progress': { status: RUNNING, at: 310, want: 'restarts' },
    'is none while pods wait for their place': { status: STARTED, at: 9999, pods: [PODS[0]!, makePod(1).build()], want: 'goes on' },
  };
  for (const [name, { status, observed, at: seconds, pods, want, wantRequeue }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(status, observed, seconds, job, pods);
      assert.equal(result.status.attempt, want === 'restarts' ? 1 : 0);
      if (want === 'restarts') assert.partialDeepStrictEqual(result.status.restarts, { count: 1, lastReason: 'ProgressDeadlineExceeded' });
      if (wantRequeue !== undefined) assert.equal(result.requeueAfterSeconds, wantRequeue);
    });
  }
  test('of an earlier attempt is not one of this', () => {
    const status = { ...AT_100, attempt: 1, attemptStartTime: at(1000) };
    const pods = [makePod(0, 1).running().build(), makePod(1, 1).running().build()];
    const result = planFaceTrainJob(
      job.observe(status, pods, { objects: [...OBJECTS, { kind: 'ConfigMap', name: 'faces-1', uid: 'd', owned: true }] }),
      after(1001),
      testEnvironment,
    );
    assert.equal(result.status.attempt, 1);
    assert.equal(result.status.restarts, undefined);
  });
});
