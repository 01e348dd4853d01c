/**
 * The part of the status that both kinds of job share, as a function of the stage. The conditions Ready, Reconciling
 * and Stalled follow kstatus (sigs.k8s.io/cli-utils), by which Helm and Flux judge objects.
 *
 *   stage              phase        Ready  Reconciling  Stalled   status by kstatus
 *   Blocked            Pending      False  -            True      Failed
 *   Suspended          Suspended    True   while stopping         Current
 *   Restart, Backoff   Restarting   False  True         -         InProgress
 *   RestartInPlace     Restarting   False  True         -         InProgress
 *   Replace, Stopping  as before    False  True         -         InProgress
 *   Waiting, Release   Pending      False  True         -         InProgress
 *   Queued             Pending      False  True         -         InProgress
 *   Active, waiting    Pending      False  True         -         InProgress
 *   Active, all ready  Running      True   -            -         Current
 *   Quantizing         Quantizing   True   -            -         Current
 *   Succeeded          Succeeded    True   -            -         Current
 *   Failed             Failed       False  -            True      Failed
 */
import type { FaceTrainPhase, Restarts } from '@facetrain/api';
import { firstWaiting, isAlive, type JobStatus, type JobView } from './attempt.ts';
import { findCondition, isTrue, mergeConditions, type WantedCondition } from './conditions.ts';
import { whatPodsWaitFor } from './deadlines.ts';
import { truncate } from './plain-data.ts';
import { ConditionType, MAX_MESSAGE, Reason } from './reasons.ts';
import { allReady, isStopping, type Stage } from './stage.ts';
import { secondsSince, timestamp } from './time.ts';

/** Attempt number, times and restarts after this plan. */
export function lifecycleOf(stage: Stage, view: JobView): Omit<JobStatus, 'conditions'> {
  const { status, now, attempt, startedAt } = view;
  const time = timestamp(now);
  const wanted = { startTime: status.startTime ?? time, pendingTime: status.pendingTime ?? startedAt ?? time };
  const unchanged = {
    observedGeneration: view.identity.generation,
    attempt,
    startTime: status.startTime,
    ...queuedAfter(stage, view),
    pendingTime: status.pendingTime,
    attemptStartTime: startedAt,
    completionTime: status.completionTime,
    restarts: status.restarts,
    refusal: status.refusal,
  };
  /** Of an attempt that has ended. */
  const ended = { pendingTime: undefined, refusal: undefined };
  switch (stage.name) {
    case 'Restart':
      return {
        ...unchanged,
        ...ended,
        ...(stillWaits(stage.restarts, view) && { pendingTime: status.pendingTime ?? startedAt }),
        attempt: attempt + 1,
        attemptStartTime: undefined,
        restarts: stage.restarts,
      };
    case 'RestartInPlace':
      return { ...unchanged, restarts: stage.restarts };
    case 'Replace':
      return {
        ...unchanged,
        ...ended,
        attempt: attempt + 1,
        attemptStartTime: undefined,
        // A suspension is when users change the learning rate. Then the same step may give another value.
        restarts: status.restarts && { ...status.restarts, lastNotANumberStep: undefined },
      };
    case 'Suspended':
      return { ...unchanged, ...ended, startTime: undefined, queuedSeconds: undefined };
    // Of a job that has run, the start stays: its folder is still its own, and its deadline goes on after the queue.
    case 'Queued':
      return { ...unchanged, ...ended, startTime: hasRun(view) ? status.startTime : undefined };
    case 'Active':
      return { ...unchanged, ...wanted, attemptStartTime: startedAt ?? time, refusal: undefined };
    case 'Release':
      return { ...unchanged, ...wanted, attempt: attempt + 1, attemptStartTime: undefined, refusal: stage.refusal };
    case 'Blocked':
    case 'Waiting': {
      // A wait for another job that has the folder does not count towards the deadlines: that job may run for days.
      if (stage.name === 'Waiting' && !stage.refusal) return { ...unchanged, ...(startedAt === undefined && ended) };
      const { releases = 0, releaseTime } = status.refusal ?? {};
      const refusal = stage.refusal ? { ...stage.refusal, releases, releaseTime } : status.refusal;
      return { ...unchanged, ...wanted, refusal };
    }
    case 'Succeeded':
    case 'Failed':
      return { ...unchanged, ...ended, completionTime: status.completionTime ?? time };
    default:
      return unchanged;
  }
}

/** Whether the job may have had pods: one that is queued for the first time is in attempt 0. */
const hasRun = ({ attempt, status }: JobView): boolean => attempt > 0 && status.startTime !== undefined;

/**
 * The time in a queue counts towards no deadline: others decide how long it is. Since when a job that has run waits
 * there, and how long it has waited before. It also waits there while Workloads cannot be listed: queueBlocker.
 */
function queuedAfter(stage: Stage, view: JobView): Pick<JobStatus, 'queuedTime' | 'queuedSeconds'> {
  const { queuedTime, queuedSeconds } = view.status;
  if (stage.name === 'Queued' || (stage.name === 'Waiting' && stage.reason === Reason.queueUnavailable))
    return hasRun(view) ? { queuedTime: queuedTime ?? timestamp(view.now), queuedSeconds } : {};
  if (queuedTime === undefined) return { queuedSeconds };
  return { queuedSeconds: (queuedSeconds ?? 0) + Math.max(0, Math.round(secondsSince(queuedTime, view.now))) };
}

/**
 * Whether a gang that starts again still waits for its first start: it has never been whole, and what ended it was no
 * failure of its own. Such restarts have no maximum, so a gang that the nodes reject again and again would never exceed
 * pendingDeadlineSeconds if each of them began its time anew.
 */
const stillWaits = (restarts: Restarts, { status: { conditions, restarts: before } }: JobView): boolean =>
  restarts.disruptions > (before?.disruptions ?? 0) && !isTrue(conditions, ConditionType.running);

/** `status.phase`. */
export function phaseOf(stage: Stage, view: JobView): FaceTrainPhase {
  switch (stage.name) {
    case 'Suspended':
    case 'Quantizing':
    case 'Succeeded':
    case 'Failed':
      return stage.name;
    case 'Restart':
    case 'RestartInPlace':
      return 'Restarting';
    case 'Active':
      if (isRunning(view)) return 'Running';
      break;
  }
  return isRestarting(stage, view) ? 'Restarting' : 'Pending';
}

/**
 * All ranks of the attempt have been ready at the same time, and none is pending now. A rank may be unready for a
 * while.
 */
function isRunning(view: JobView): boolean {
  if (allReady(view)) return true;
  return (
    view.startedAt !== undefined &&
    isTrue(view.status.conditions, ConditionType.running) &&
    view.ranks.every((pod) => pod && pod.phase !== 'Pending')
  );
}

const isRestart = (stage: Stage): stage is Extract<Stage, { name: 'Restart' | 'RestartInPlace' }> =>
  stage.name === 'Restart' || stage.name === 'RestartInPlace';

function isRestarting(stage: Stage, view: JobView): boolean {
  if (isRestart(stage)) return true;
  const isBetweenAttempts =
    stage.name === 'Stopping' ||
    stage.name === 'Backoff' ||
    stage.name === 'Blocked' ||
    stage.name === 'Release' ||
    (stage.name === 'Waiting' && stage.refusal !== undefined) ||
    (stage.name === 'Active' && !allReady(view));
  return isBetweenAttempts && isTrue(view.status.conditions, ConditionType.restarting);
}

interface Summary {
  ready: boolean;
  /** InProgress sets the condition Reconciling, Failed sets Stalled. */
  kstatus: 'Current' | 'InProgress' | 'Failed';
  reason: string;
  message: string;
}

function summaryOf(stage: Stage, view: JobView): Summary {
  switch (stage.name) {
    case 'Blocked':
    case 'Failed':
      return { ready: false, kstatus: 'Failed', reason: stage.reason, message: stage.message };
    case 'Suspended':
      if (isStopping(view))
        return { ready: false, kstatus: 'InProgress', reason: Reason.suspending, message: olderPodsMessage(view) };
      return { ready: true, kstatus: 'Current', reason: Reason.suspended, message: 'suspended as spec.suspend asks' };
    case 'Restart':
    case 'RestartInPlace':
      return {
        ready: false,
        kstatus: 'InProgress',
        reason: stage.restarts.lastReason!,
        message: stage.restarts.lastMessage!,
      };
    case 'Replace':
      return { ready: false, kstatus: 'InProgress', reason: stage.reason, message: stage.message };
    case 'Stopping':
      return { ready: false, kstatus: 'InProgress', reason: Reason.stopping, message: olderPodsMessage(view) };
    case 'Waiting':
    case 'Release':
      return { ready: false, kstatus: 'InProgress', reason: stage.reason, message: stage.message };
    case 'Queued':
      return { ready: false, kstatus: 'InProgress', reason: Reason.queued, message: stage.message };
    case 'Backoff':
      return {
        ready: false,
        kstatus: 'InProgress',
        reason: Reason.backoff,
        message: `attempt ${view.attempt} starts at ${timestamp(stage.until)}`,
      };
    case 'Active':
      if (allReady(view))
        return {
          ready: true,
          kstatus: 'Current',
          reason: Reason.podsReady,
          message: truncate(`${allReadyMessage(view)}${stage.waitsFor ? `; ${stage.waitsFor}` : ''}`, MAX_MESSAGE),
        };
      return {
        ready: false,
        kstatus: 'InProgress',
        reason: isRunning(view)
          ? Reason.podsNotReady
          : (firstWaiting(view.ranks)?.waiting?.reason ?? Reason.podsPending),
        message: whatPodsWaitFor(view),
      };
    case 'Quantizing':
      return { ready: true, kstatus: 'Current', reason: Reason.quantizing, message: `trained; ${stage.message}` };
    case 'Succeeded':
      return { ready: true, kstatus: 'Current', reason: Reason.succeeded, message: stage.message };
  }
}

const allReadyMessage = ({ ranks }: JobView): string =>
  ranks.length === 1 ? 'the pod is ready' : `all ${ranks.length} pods are ready`;

function olderPodsMessage(view: JobView): string {
  const [first, ...others] = view.otherPods.filter(isAlive).map(({ name }) => name);
  const pods = others.length > 0 ? `${first} and ${others.length} more pods have` : `${first} has`;
  return `of an earlier attempt ${pods} not ended`;
}

/** All conditions of a job. `extra` are those that only its kind has. */
export function conditionsOf(stage: Stage, view: JobView, extra: WantedCondition[] = []) {
  const { ready, kstatus, reason, message } = summaryOf(stage, view);
  const cause = { reason, message };
  const wanted: (WantedCondition | null)[] = [
    { type: ConditionType.ready, status: ready ? 'True' : 'False', ...cause },
    kstatus === 'InProgress' ? { type: ConditionType.reconciling, status: 'True', ...cause } : null,
    kstatus === 'Failed' ? { type: ConditionType.stalled, status: 'True', ...cause } : null,
    ...podConditions(stage, view),
    transientCondition(
      ConditionType.restarting,
      restartCause(stage, view),
      view,
      Reason.recovered,
      'the restart is over',
    ),
    transientCondition(
      ConditionType.suspended,
      stage.name === 'Suspended' ? cause : null,
      view,
      Reason.resumed,
      'the job was resumed',
    ),
    stage.name === 'Succeeded' ? { type: ConditionType.succeeded, status: 'True', ...cause } : null,
    stage.name === 'Failed' ? { type: ConditionType.failed, status: 'True', ...cause } : null,
    ...extra,
  ];
  return mergeConditions(
    view.status.conditions,
    wanted.filter((condition) => condition !== null),
    view.identity.generation,
    view.now,
  );
}

function restartCause(stage: Stage, view: JobView): { reason: string; message: string } | null {
  if (!isRestarting(stage, view)) return null;
  const restarts = isRestart(stage) ? stage.restarts : view.status.restarts;
  return { reason: restarts?.lastReason ?? Reason.exited, message: restarts?.lastMessage ?? '' };
}

/**
 * A condition of a passing state: absent before it was true for the first time, False (with the given cause)
 * afterwards.
 */
function transientCondition(
  type: ConditionType,
  cause: { reason: string; message: string } | null,
  view: JobView,
  overReason: string,
  overMessage: string,
): WantedCondition | null {
  if (cause) return { type, status: 'True', ...cause };
  return findCondition(view.status.conditions, type)
    ? { type, status: 'False', reason: overReason, message: overMessage }
    : null;
}

function podConditions(stage: Stage, view: JobView): WantedCondition[] {
  if (stage.name !== 'Active') {
    const message =
      stage.name === 'RestartInPlace' ? 'the trainers start again in their pods' : 'no attempt is under way';
    const inactive = { status: 'False', reason: Reason.over, message } as const;
    return [
      { type: ConditionType.podsReady, ...inactive },
      { type: ConditionType.running, ...inactive },
    ];
  }
  const { ranks } = view;
  const scheduled = ranks.filter((pod) => pod && (pod.node !== undefined || pod.phase !== 'Pending')).length;
  const running = isRunning(view);
  const waitingFor = whatPodsWaitFor(view);
  return [
    scheduled === ranks.length
      ? { type: ConditionType.admitted, status: 'True', reason: Reason.scheduled, message: 'every pod has its place' }
      : {
          type: ConditionType.admitted,
          status: 'False',
          reason: Reason.unschedulable,
          message: `${scheduled} of ${ranks.length} pods have a place; ${waitingFor}`,
        },
    allReady(view)
      ? { type: ConditionType.podsReady, status: 'True', reason: Reason.podsReady, message: allReadyMessage(view) }
      : { type: ConditionType.podsReady, status: 'False', reason: Reason.podsNotReady, message: waitingFor },
    running
      ? {
          type: ConditionType.running,
          status: 'True',
          reason: Reason.running,
          message: `attempt ${view.attempt} is under way`,
        }
      : { type: ConditionType.running, status: 'False', reason: Reason.podsPending, message: waitingFor },
  ];
}
