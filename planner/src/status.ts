/**
 * The part of the status that both kinds of job share, as a function of the stage.
 *
 *   stage              phase        Ready  Reconciling  Stalled   (kstatus reads them as)
 *   Refused            Pending      False  -            True      Failed
 *   Suspended          Suspended    True   while stopping         Current
 *   Restart, Backoff   Restarting   False  True         -         InProgress
 *   Replace, Stopping  as before    False  True         -         InProgress
 *   Waiting            Pending      False  True         -         InProgress
 *   Active, waiting    Pending      False  True         -         InProgress
 *   Active, all there  Running      True   -            -         Current
 *   Quantizing         Quantizing   True   -            -         Current
 *   Succeeded          Succeeded    True   -            -         Current
 *   Failed             Failed       False  -            True      Failed
 */
import type { FaceTrainPhase } from '@facetrain/api';
import { isAlive, type JobStatus, type JobView } from './attempt.ts';
import { findCondition, isTrue, mergeConditions, type WantedCondition } from './conditions.ts';
import { whatPodsWaitFor } from './deadlines.ts';
import { ConditionType, Reason } from './reasons.ts';
import { allReady, isStopping, type Stage } from './stage.ts';
import { timestamp } from './time.ts';

/** Attempt, times and restarts after this plan. */
export function lifecycleOf(stage: Stage, view: JobView): Omit<JobStatus, 'conditions'> {
  const { status, now, attempt, startedAt } = view;
  const time = timestamp(now);
  const same = {
    observedGeneration: view.identity.generation,
    attempt,
    startTime: status.startTime,
    attemptStartTime: startedAt,
    completionTime: status.completionTime,
    restarts: status.restarts,
  };
  switch (stage.name) {
    case 'Restart':
      return { ...same, attempt: attempt + 1, attemptStartTime: undefined, restarts: stage.restarts };
    case 'Replace':
      return { ...same, attempt: attempt + 1, attemptStartTime: undefined };
    case 'Suspended':
      return { ...same, startTime: undefined };
    case 'Active':
      return { ...same, startTime: status.startTime ?? time, attemptStartTime: startedAt ?? time };
    case 'Succeeded':
    case 'Failed':
      return { ...same, completionTime: status.completionTime ?? time };
    default:
      return same;
  }
}

export function phaseOf(stage: Stage, view: JobView): FaceTrainPhase {
  switch (stage.name) {
    case 'Suspended':
    case 'Quantizing':
    case 'Succeeded':
    case 'Failed':
      return stage.name;
    case 'Restart':
      return 'Restarting';
    case 'Active':
      if (isRunning(view)) return 'Running';
      break;
  }
  return isRestarting(stage, view) ? 'Restarting' : 'Pending';
}

/** All ranks of the attempt have been there at once, and it goes on. That one of them is not ready now may pass. */
function isRunning(view: JobView): boolean {
  if (allReady(view)) return true;
  return (
    view.startedAt !== undefined &&
    isTrue(view.status.conditions, ConditionType.running) &&
    view.ranks.every((pod) => pod && pod.phase !== 'Pending')
  );
}

function isRestarting(stage: Stage, view: JobView): boolean {
  if (stage.name === 'Restart') return true;
  const goesOn =
    stage.name === 'Stopping' ||
    stage.name === 'Backoff' ||
    stage.name === 'Refused' ||
    (stage.name === 'Active' && !allReady(view));
  return goesOn && isTrue(view.status.conditions, ConditionType.restarting);
}

interface Summary {
  ready: boolean;
  /** Where ready is false: whether the job works on it, or is stuck. */
  kstatus: 'Current' | 'InProgress' | 'Failed';
  reason: string;
  message: string;
}

function summaryOf(stage: Stage, view: JobView): Summary {
  switch (stage.name) {
    case 'Refused':
    case 'Failed':
      return { ready: false, kstatus: 'Failed', reason: stage.reason, message: stage.message };
    case 'Suspended':
      if (isStopping(view))
        return { ready: false, kstatus: 'InProgress', reason: Reason.suspending, message: olderPodsMessage(view) };
      return { ready: true, kstatus: 'Current', reason: Reason.suspended, message: 'suspended as spec.suspend asks' };
    case 'Restart':
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
      return { ready: false, kstatus: 'InProgress', reason: stage.reason, message: stage.message };
    case 'Backoff':
      return {
        ready: false,
        kstatus: 'InProgress',
        reason: Reason.backoff,
        message: `attempt ${view.attempt} starts at ${timestamp(stage.until)}`,
      };
    case 'Active':
      if (allReady(view))
        return { ready: true, kstatus: 'Current', reason: Reason.podsReady, message: allReadyMessage(view) };
      return {
        ready: false,
        kstatus: 'InProgress',
        reason: isRunning(view)
          ? Reason.podsNotReady
          : (view.ranks.find((pod) => pod?.waiting)?.waiting?.reason ?? Reason.podsPending),
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
  const [first, ...more] = view.otherPods.filter(isAlive).map(({ name }) => name);
  return `of an earlier attempt ${first}${more.length > 0 ? ` and ${more.length} more pods have` : ' has'} not ended`;
}

/** Conditions that say how the job is; `more` are those of one kind of job. */
export function conditionsOf(stage: Stage, view: JobView, extra: WantedCondition[] = []) {
  const { ready, kstatus, reason, message } = summaryOf(stage, view);
  const at = { reason, message };
  const wanted: (WantedCondition | null)[] = [
    { type: ConditionType.ready, status: ready ? 'True' : 'False', ...at },
    kstatus === 'InProgress' ? { type: ConditionType.reconciling, status: 'True', ...at } : null,
    kstatus === 'Failed' ? { type: ConditionType.stalled, status: 'True', ...at } : null,
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
      stage.name === 'Suspended' ? at : null,
      view,
      Reason.resumed,
      'the job was resumed',
    ),
    stage.name === 'Succeeded' ? { type: ConditionType.succeeded, status: 'True', ...at } : null,
    stage.name === 'Failed' ? { type: ConditionType.failed, status: 'True', ...at } : null,
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
  const restarts = stage.name === 'Restart' ? stage.restarts : view.status.restarts;
  return { reason: restarts?.lastReason ?? Reason.exited, message: restarts?.lastMessage ?? '' };
}

/** A condition that is absent until it has been true once, and false afterwards. */
function transientCondition(
  type: ConditionType,
  now: { reason: string; message: string } | null,
  view: JobView,
  overReason: string,
  overMessage: string,
): WantedCondition | null {
  if (now) return { type, status: 'True', ...now };
  return findCondition(view.status.conditions, type)
    ? { type, status: 'False', reason: overReason, message: overMessage }
    : null;
}

function podConditions(stage: Stage, view: JobView): WantedCondition[] {
  if (stage.name !== 'Active') {
    const over = { status: 'False', reason: Reason.over, message: 'no attempt is under way' } as const;
    return [
      { type: ConditionType.podsReady, ...over },
      { type: ConditionType.running, ...over },
    ];
  }
  const { ranks } = view;
  const placed = ranks.filter((pod) => pod && (pod.node !== undefined || pod.phase !== 'Pending')).length;
  const running = isRunning(view);
  const waits = whatPodsWaitFor(view);
  return [
    placed === ranks.length
      ? { type: ConditionType.admitted, status: 'True', reason: Reason.scheduled, message: 'every pod has its place' }
      : {
          type: ConditionType.admitted,
          status: 'False',
          reason: Reason.unschedulable,
          message: `${placed} of ${ranks.length} pods have a place; ${waits}`,
        },
    allReady(view)
      ? { type: ConditionType.podsReady, status: 'True', reason: Reason.podsReady, message: allReadyMessage(view) }
      : { type: ConditionType.podsReady, status: 'False', reason: Reason.podsNotReady, message: waits },
    running
      ? {
          type: ConditionType.running,
          status: 'True',
          reason: Reason.running,
          message: `attempt ${view.attempt} is under way`,
        }
      : { type: ConditionType.running, status: 'False', reason: Reason.podsPending, message: waits },
  ];
}
