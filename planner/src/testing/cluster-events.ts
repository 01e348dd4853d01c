/**
 * Events in the simulated cluster. They are plain data, so that fast-check can shrink a failing history to its shortest
 * form.
 */
import { ExitCode } from '@facetrain/api';
import fc from 'fast-check';
import { isAlive, outcomeOf, willStartAgain } from '../attempt.ts';
import { timestamp } from '../time.ts';
import type { WriterStep } from './checkpoint-folder.ts';
import type { SimulatedPod, Simulator } from './simulator.ts';

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
        | 'loseContainer'
        | 'loseNode'
        | 'silenceNode'
        | 'unknownPhase'
        | 'inventedPhase'
        | 'recoverNode';
      pod: number;
    }
  | { type: 'fail'; pod: number; exitCode: number }
  | { type: 'removeDeletedPods' }
  /** The pod garbage collector, or a person, removes pods that have ended. */
  | { type: 'removeEndedPods' }
  /** The kubelet starts the programs again that it has to. */
  | { type: 'restartContainers' }
  /** It has all but managed to start them. */
  | { type: 'holdContainers' }
  /** A user deletes the PodGroups. */
  | { type: 'deletePodGroups' }
  | { type: 'startAll' }
  | { type: 'suspend'; suspend: boolean }
  | { type: 'networkPolicy'; enabled: boolean }
  /** The spec is suspended, changed and resumed while the operator is down. */
  | { type: 'changeSpec'; epochs: number }
  | { type: 'progress'; steps: number }
  /** A process of rank 0 does some of its work, also if its pod is gone. `process` counts from the newest. */
  | { type: 'write'; process: number; steps: WriterStep[] };

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
      type: fc.constantFrom(
        'removePod' as const,
        'drain' as const,
        'evict' as const,
        'loseContainer' as const,
        'loseNode' as const,
        'silenceNode' as const,
      ),
      pod,
    }),
  },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('deletePodGroups' as const) }) },
  {
    weight: 2,
    arbitrary: fc.record({ type: fc.constantFrom('restartContainers' as const, 'holdContainers' as const) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ type: fc.constant('fail' as const), pod, exitCode: fc.constantFrom(...EXIT_CODES) }),
  },
);

/** A gang trains, a trainer of it fails, and others may lose it; the kubelet starts some of them again, or cannot. */
const trainAndFail = fc
  .record({
    steps: fc.integer({ min: 1, max: 9 }),
    pod,
    exitCode: fc.constantFrom(4, 137, 137),
    seconds: fc.constantFrom(1, 6, 35),
    follow: fc.subarray([0, 1, 2]),
    kubelet: fc.array(fc.constantFrom('restartContainers' as const, 'holdContainers' as const), { maxLength: 3 }),
  })
  .map(({ steps, pod, exitCode, seconds, follow, kubelet }): ClusterEvent[] => [
    { type: 'startAll' },
    { type: 'advance', seconds: 12 },
    { type: 'progress', steps },
    { type: 'advance', seconds: 1 },
    { type: 'fail', pod, exitCode },
    ...follow.map((pod): ClusterEvent => ({ type: 'fail', pod, exitCode: 4 })),
    { type: 'advance', seconds },
    ...kubelet.map((type): ClusterEvent => ({ type })),
  ]);

/** A gang trains, and the kubelet evicts a trainer whose container it no longer finds; others may lose it. */
const trainAndEvict = fc
  .record({ pod, seconds: fc.constantFrom(1, 6, 29), follow: fc.subarray([0, 1, 2]), restart: fc.boolean() })
  .map(({ pod, seconds, follow, restart }): ClusterEvent[] => [
    { type: 'startAll' },
    { type: 'advance', seconds: 12 },
    { type: 'progress', steps: 1 },
    { type: 'advance', seconds: 1 },
    { type: 'loseContainer', pod },
    ...follow.map((pod): ClusterEvent => ({ type: 'fail', pod, exitCode: 4 })),
    ...(restart ? [{ type: 'restartContainers' as const }] : []),
    { type: 'advance', seconds },
    { type: 'evict', pod },
  ]);

/** Trainers of a gang that trains fail and are started again, or are evicted, with a few other events between. */
export const restartHistory: fc.Arbitrary<ClusterEvent[]> = fc
  .array(
    fc.oneof(
      { weight: 4, arbitrary: trainAndFail },
      { weight: 2, arbitrary: trainAndEvict },
      { weight: 2, arbitrary: fc.constant<ClusterEvent[]>([{ type: 'restartContainers' }]) },
      { weight: 2, arbitrary: fc.constant<ClusterEvent[]>([{ type: 'advance', seconds: 700 }]) },
      { weight: 1, arbitrary: anyEvents.map((event) => [event]) },
    ),
    { maxLength: 8 },
  )
  .map((parts) => parts.flat());

/** All nodes fall silent for longer than a job waits, and the next attempt starts. The processes run on. */
const LOSE_ALL: ClusterEvent[] = [
  { type: 'startAll' },
  ...[0, 1, 2, 3].map((pod): ClusterEvent => ({ type: 'silenceNode', pod })),
  { type: 'advance', seconds: 600 },
  { type: 'advance', seconds: 600 },
  { type: 'startAll' },
];

/** What a process may do between two moments in which it is frozen. */
const WRITES: WriterStep[][] = [
  ['claim'],
  ['claim', 'train', 'stage'],
  ['claim', 'train', 'stage', 'publish'],
  ['train', 'stage'],
  ['train', 'stage', 'publish'],
  ['publish'],
  ['export'],
];

/** Histories in which trainers outlive their pods, and work on the storage in any order. */
export const storageHistory: fc.Arbitrary<ClusterEvent[]> = fc
  .array(
    fc.oneof(
      { weight: 1, arbitrary: fc.record({ type: fc.constant('removePod' as const), pod }).map((event) => [event]) },
      { weight: 1, arbitrary: harmlessEvents.map((event) => [event]) },
      { weight: 3, arbitrary: fc.constant(LOSE_ALL) },
      {
        weight: 12,
        arbitrary: fc
          .record({
            type: fc.constant('write' as const),
            process: fc.nat({ max: 2 }),
            steps: fc.constantFrom(...WRITES),
          })
          .map((event) => [event]),
      },
    ),
    { minLength: 10, maxLength: 30 },
  )
  .map((parts) => parts.flat());

export function applyEvent(event: ClusterEvent, cluster: Simulator): void {
  switch (event.type) {
    case 'advance':
      return cluster.advance(event.seconds);
    case 'removeDeletedPods':
      return cluster.removeDeletedPods();
    case 'removeEndedPods':
      cluster.pods = cluster.pods.filter(isAlive);
      return;
    case 'restartContainers':
      return cluster.pods.forEach((pod) => restartContainer(pod, cluster));
    case 'holdContainers':
      return cluster.pods.forEach(holdContainer);
    case 'deletePodGroups':
      cluster.objects = cluster.objects.map((object) =>
        object.kind === 'PodGroup' ? { ...object, deleting: true } : object,
      );
      return;
    case 'startAll':
      return cluster.pods.forEach((pod) => start(pod, cluster));
    case 'write': {
      const { process } = cluster.processes.at(-1 - event.process) ?? {};
      if (process) for (const step of event.steps) cluster.folder.act(process, step);
      return;
    }
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
      return start(pod, cluster);
    case 'unready':
      pod.ready = false;
      return;
    case 'unknownPhase':
    case 'inventedPhase':
      if (isAlive(pod))
        Object.assign(pod, { phase: event.type === 'unknownPhase' ? 'Unknown' : 'Hibernating', ready: false });
      return;
    case 'succeed':
      return finish(pod, 0, cluster);
    case 'fail':
      return finish(pod, event.exitCode, cluster);
    case 'removePod':
      // By force: its program may go on.
      cluster.pods = cluster.pods.filter((other) => other !== pod);
      return;
    case 'loseContainer':
      return loseContainer(pod, cluster);
    case 'loseNode':
      if (pod.node !== undefined) pod.lostNode = `node ${pod.node} does not answer`;
      return;
    case 'silenceNode':
      if (pod.node !== undefined)
        pod.silentNode ??= { reason: `node ${pod.node} does not answer`, since: timestamp(cluster.now) };
      return;
    case 'drain':
      Object.assign(pod, { disrupted: true, deleting: true });
      return;
    case 'evict':
      return evict(pod, cluster);
  }
}

function evict(pod: SimulatedPod, cluster: Simulator): void {
  cluster.endProcess(pod);
  if (isAlive(pod))
    Object.assign(pod, {
      phase: 'Failed',
      ready: false,
      reason: 'Evicted',
      disrupted: true,
      finishedAt: timestamp(cluster.now),
    });
}

/** The kubelet finds nothing of a container that ran: it is about to evict the pod. */
function loseContainer(pod: SimulatedPod, cluster: Simulator): void {
  const restarts = pod.containerRestarts;
  if (!isAlive(pod) || !restarts?.isRunning) return;
  cluster.endProcess(pod);
  pod.ready = false;
  const unknown = { exitCode: 137, reason: 'ContainerStatusUnknown' };
  pod.containerRestarts = {
    ...restarts,
    // As the kubelet counts: not if it knows of an earlier end, nor in a pod that is being deleted.
    count: restarts.count + (restarts.lastEnd || pod.deleting ? 0 : 1),
    lastEnd: restarts.lastEnd ?? unknown,
    isRunning: false,
    isGone: true,
  };
}

/** Starts a pod, or lets its lost node recover. */
function start(pod: SimulatedPod, cluster: Simulator): void {
  delete pod.lostNode;
  delete pod.silentNode;
  if (!isAlive(pod) || outcomeOf(pod) !== null || pod.containerRestarts?.isGone) return;
  Object.assign(pod, { phase: 'Running', ready: true, node: `node-${pod.rank}` });
  if (pod.containerRestarts) pod.containerRestarts = { ...pod.containerRestarts, isRunning: true };
  cluster.startProcess(pod);
}

/** The kubelet's status of a program that has ended, while it cannot start it again. */
function holdContainer(pod: SimulatedPod): void {
  if (!willStartAgain(pod)) return;
  const { exitCode, finishedAt, reason } = pod;
  const lastEnd = { exitCode: exitCode!, finishedAt: finishedAt!, ...(reason !== undefined && { reason }) };
  pod.containerRestarts = { ...pod.containerRestarts!, lastEnd, isRunning: false };
  for (const field of ['exitCode', 'finishedAt', 'reason'] as const) delete pod[field];
}

function restartContainer(pod: SimulatedPod, cluster: Simulator): void {
  holdContainer(pod);
  const restarts = pod.containerRestarts;
  if (!isAlive(pod) || pod.deleting || !restarts?.lastEnd || restarts.isRunning || restarts.isGone) return;
  pod.containerRestarts = { ...restarts, count: restarts.count + 1, isRunning: true };
  pod.ready = true;
  cluster.startAgain(pod);
}

/** Ends the program of a pod that has started. One that was fenced off meanwhile leaves with its own exit code. */
function finish(pod: SimulatedPod, exitCode: number, cluster: Simulator): void {
  // A pod on no node has not started, whatever its phase.
  if (!isAlive(pod) || pod.phase === 'Pending' || pod.node === undefined || pod.containerRestarts?.isGone) return;
  const process = cluster.processOf(pod);
  if (process && exitCode === 0)
    for (const step of ['claim', 'train', 'stage', 'publish', 'export'] as const) cluster.folder.act(process, step);
  const code = process?.ended === 'fenced off' ? ExitCode.fencedOff : exitCode;
  if (process) process.ended ??= code === 0 ? 'succeeded' : 'killed';
  const goesOn = pod.containerRestarts?.exitCodes.includes(code) ?? false;
  if (pod.containerRestarts) pod.containerRestarts = { ...pod.containerRestarts, isRunning: false };
  Object.assign(pod, {
    ...(!goesOn && { phase: code === 0 ? 'Succeeded' : 'Failed' }),
    ready: false,
    exitCode: code,
    finishedAt: timestamp(cluster.now),
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
    cluster.pods.filter((pod) => pod.containerRestarts?.isGone).forEach((pod) => evict(pod, cluster));
    cluster.pods.forEach((pod) => restartContainer(pod, cluster));
    cluster.settle();
    cluster.pods.forEach((pod) => start(pod, cluster));
    cluster.advance(10);
    cluster.settle();
    for (const pod of cluster.pods) if (!pod.deleting) finish(pod, 0, cluster);
    cluster.advance(300);
    cluster.settle();
  }
}
