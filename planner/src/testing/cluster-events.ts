/**
 * Events in the simulated cluster. They are plain data, so that fast-check can shrink a failing history to its shortest
 * form.
 */
import fc from 'fast-check';
import { isAlive, outcomeOf } from '../attempt.ts';
import type { ObservedPod } from '../observed.ts';
import { timestamp } from '../time.ts';
import type { Simulator } from './simulator.ts';

/** `pod` is an index into the pods that exist, modulo their number. */
export type ClusterEvent =
  | { type: 'advance'; seconds: number }
  | {
      type:
        | 'start'
        | 'unready'
        | 'succeed'
        | 'removePod'
        | 'drain'
        | 'evict'
        | 'loseNode'
        | 'unknownPhase'
        | 'inventedPhase'
        | 'recoverNode';
      pod: number;
    }
  | { type: 'fail'; pod: number; exitCode: number }
  | { type: 'removeDeletedPods' }
  /** The pod garbage collector, or a person, removes pods that have ended. */
  | { type: 'removeEndedPods' }
  /** A user deletes the PodGroups. */
  | { type: 'deletePodGroups' }
  | { type: 'startAll' }
  | { type: 'suspend'; suspend: boolean }
  | { type: 'networkPolicy'; enabled: boolean }
  /** The spec is suspended, changed and resumed while the operator is down. */
  | { type: 'changeSpec'; epochs: number }
  | { type: 'progress'; steps: number };

const pod = fc.nat({ max: 7 });
const EXIT_CODES = [1, 2, 4, 4, 137, 143];

/** Events that must not make a job fail or restart. */
export const harmlessEvents: fc.Arbitrary<ClusterEvent> = fc.oneof(
  fc.record({ type: fc.constant('advance' as const), seconds: fc.integer({ min: 1, max: 900 }) }),
  fc.record({
    type: fc.constantFrom(
      'start' as const,
      'unready' as const,
      'unknownPhase' as const,
      'inventedPhase' as const,
      'recoverNode' as const,
    ),
    pod,
  }),
  fc.record({ type: fc.constantFrom('removeDeletedPods' as const, 'removeEndedPods' as const) }),
  fc.record({ type: fc.constant('succeed' as const), pod }),
  fc.record({ type: fc.constant('suspend' as const), suspend: fc.boolean() }),
  fc.record({ type: fc.constant('networkPolicy' as const), enabled: fc.boolean() }),
  fc.record({ type: fc.constant('changeSpec' as const), epochs: fc.integer({ min: 1, max: 3 }) }),
  fc.record({ type: fc.constant('progress' as const), steps: fc.nat({ max: 50 }) }),
);

/** All events, among them failures of pods, nodes and the cluster. */
export const anyEvents: fc.Arbitrary<ClusterEvent> = fc.oneof(
  { weight: 2, arbitrary: harmlessEvents },
  { weight: 2, arbitrary: fc.record({ type: fc.constant('startAll' as const) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      type: fc.constantFrom('removePod' as const, 'drain' as const, 'evict' as const, 'loseNode' as const),
      pod,
    }),
  },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('deletePodGroups' as const) }) },
  {
    weight: 2,
    arbitrary: fc.record({ type: fc.constant('fail' as const), pod, exitCode: fc.constantFrom(...EXIT_CODES) }),
  },
);

export function applyEvent(event: ClusterEvent, cluster: Simulator): void {
  switch (event.type) {
    case 'advance':
      return cluster.advance(event.seconds);
    case 'removeDeletedPods':
      return cluster.removeDeletedPods();
    case 'removeEndedPods':
      cluster.pods = cluster.pods.filter(isAlive);
      return;
    case 'deletePodGroups':
      cluster.objects = cluster.objects.map((object) =>
        object.kind === 'PodGroup' ? { ...object, deleting: true } : object,
      );
      return;
    case 'startAll':
      return cluster.pods.forEach((pod) => start(pod));
    case 'suspend':
      return cluster.trainJob.spec.suspend === event.suspend ? undefined : cluster.change({ suspend: event.suspend });
    case 'networkPolicy':
      return cluster.change({ networkPolicy: { enabled: event.enabled } });
    case 'changeSpec':
      cluster.change({ epochs: event.epochs });
      return cluster.change({ suspend: false });
    case 'progress':
      return train(event.steps, cluster);
  }
  const pod = cluster.pods[event.pod % Math.max(1, cluster.pods.length)];
  if (!pod) return;
  switch (event.type) {
    case 'start':
    case 'recoverNode':
      return start(pod);
    case 'unready':
      pod.ready = false;
      return;
    case 'unknownPhase':
    case 'inventedPhase':
      if (isAlive(pod))
        Object.assign(pod, { phase: event.type === 'unknownPhase' ? 'Unknown' : 'Hibernating', ready: false });
      return;
    case 'succeed':
      return finish(pod, 0, cluster.now);
    case 'fail':
      return finish(pod, event.exitCode, cluster.now);
    case 'removePod':
      cluster.pods = cluster.pods.filter((other) => other !== pod);
      return;
    case 'loseNode':
      if (pod.node !== undefined) pod.lostNode = `node ${pod.node} does not answer`;
      return;
    case 'drain':
      Object.assign(pod, { disrupted: true, deleting: true });
      return;
    case 'evict':
      if (isAlive(pod))
        Object.assign(pod, {
          phase: 'Failed',
          ready: false,
          reason: 'Evicted',
          disrupted: true,
          finishedAt: timestamp(cluster.now),
        });
      return;
  }
}

/** Starts a pod, or lets its lost node recover. */
function start(pod: ObservedPod): void {
  delete pod.lostNode;
  if (isAlive(pod) && outcomeOf(pod) === null)
    Object.assign(pod, { phase: 'Running', ready: true, node: `node-${pod.rank}` });
}

/** Ends the program of a pod that has started. */
function finish(pod: ObservedPod, exitCode: number, now: Date): void {
  if (isAlive(pod) && pod.phase !== 'Pending')
    Object.assign(pod, {
      phase: exitCode === 0 ? 'Succeeded' : 'Failed',
      ready: false,
      exitCode,
      finishedAt: timestamp(now),
    });
}

/** Rank 0 reports that it did some more steps of 1000. */
function train(steps: number, cluster: Simulator): void {
  const attempt = cluster.trainJob.status.attempt ?? 0;
  const before = cluster.progress?.attempt === attempt ? cluster.progress : { step: 0, activity: 0 };
  const step = Math.min(1000, before.step + steps);
  cluster.progress = {
    attempt,
    step,
    totalSteps: 1000,
    epoch: step / 100,
    activity: before.activity + steps,
    etaSeconds: 1000 - step,
  };
}

export const isOver = (cluster: Simulator): boolean => cluster.trainJob.status.completionTime !== undefined;

/**
 * Lets the job run to its end undisturbed: deleted pods disappear, nodes recover, the job is resumed, and its pods
 * start, work and succeed.
 */
export function finishUndisturbed(cluster: Simulator, rounds = 60): void {
  if (cluster.trainJob.spec.suspend) cluster.change({ suspend: false });
  for (let round = 0; round < rounds && !isOver(cluster); round++) {
    cluster.removeDeletedPods();
    cluster.settle();
    cluster.pods.forEach((pod) => start(pod));
    cluster.advance(10);
    cluster.settle();
    for (const pod of cluster.pods) if (!pod.deleting) finish(pod, 0, cluster.now);
    cluster.advance(300);
    cluster.settle();
  }
}
