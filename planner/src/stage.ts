/**
 * The stage of a job. A planner decides it first; actions, status, events and the time of the next plan follow from it.
 *
 * The functions here are the checks that both kinds of job share. Each returns a stage, or null if the next check
 * decides.
 *
 * `Restart` and `Replace` end an attempt, and the actions that follow delete the object that was the cause (the failed
 * pod, for example). So these two stages have no actions: their plan only writes a higher attempt number to the status,
 * and the next plan deletes the pods. After a crash at any moment, the failed pod or the new number still exists.
 */
import type { Refusal, Restarts } from '@facetrain/api';
import { differ, isAlive, type JobView, outcomeOf } from './attempt.ts';
import { findCondition, isTrue } from './conditions.ts';
import { containerRestartsOf, rankLeftBehind, restartsToCount, staysInPods } from './container-restarts.ts';
import { exceededDeadline } from './deadlines.ts';
import { type Failure, findFailure } from './failure.ts';
import { attemptName } from './names.ts';
import type { ChildObject } from './objects.ts';
import type { ObservedObject } from './observed.ts';
import type { Action } from './plan.ts';
import { ConditionType, Reason } from './reasons.ts';
import { backoffEnd, decideRestart } from './restarts.ts';

/** What the API server refused. */
export type RefusedObject = Pick<Refusal, 'quota' | 'reason' | 'message'>;

/** The state of a job, decided again in every plan. */
export type Stage =
  /** An object cannot be created until a user changes the spec or the cluster. `refusal`: the API server refused it. */
  | { name: 'Blocked'; reason: string; message: string; refusal?: RefusedObject }
  | { name: 'Suspended' }
  /** This attempt failed; another one follows. */
  | { name: 'Restart'; restarts: Restarts }
  /** The trainers failed, and the kubelet has started one again in its pod: container-restarts.ts. */
  | { name: 'RestartInPlace'; restarts: Restarts; containerRestarts: number }
  /**
   * This attempt is over without a failure; another one follows, at once or after a suspension. `trainers`: with this
   * number of ranks.
   */
  | { name: 'Replace'; reason: string; message: string; trainers?: number }
  /** Pods of an older attempt may still run. */
  | { name: 'Stopping' }
  /**
   * Another job still has a name or a folder that this job needs; or, with `refusal`, a quota that it needs. `until`:
   * when the job tries again.
   */
  | { name: 'Waiting'; reason: string; message: string; refusal?: RefusedObject; until?: Date }
  /** The gang lets go of the pods that it has; another attempt follows: refusal.ts. */
  | { name: 'Release'; reason: string; message: string; refusal: Refusal }
  /** Kueue has not admitted the job: queue.ts. `actions` make, or replace, its Workload. */
  | { name: 'Queued'; message: string; actions: Action[] }
  | { name: 'Backoff'; until: Date }
  /**
   * The attempt is being created, waits for its pods, or runs. `updates` change objects that outlive attempts.
   * `waitsFor`: what a gang whose pods are all ready waits for, to begin or to have more pods.
   */
  | { name: 'Active'; create: ChildObject[]; updates?: Action[]; waitsFor?: string }
  /** Training has succeeded, its QuantizeJob has not ended. */
  | { name: 'Quantizing'; message: string; actions: Action[] }
  | { name: 'Succeeded'; message: string }
  | { name: 'Failed'; reason: string; message: string };

/** A finished job stays finished, whatever happens to its spec or its pods. */
export function finished({ status: { conditions } }: JobView): Stage | null {
  if (isTrue(conditions, ConditionType.succeeded))
    return { name: 'Succeeded', message: findCondition(conditions, ConditionType.succeeded)!.message };
  if (!isTrue(conditions, ConditionType.failed)) return null;
  const { reason, message } = findCondition(conditions, ConditionType.failed)!;
  return { name: 'Failed', reason, message };
}

/** A suspension ends the attempt. When the job is resumed, another attempt starts from the checkpoint of this one. */
export function suspended(view: JobView): Stage | null {
  if (!view.spec.suspend) return null;
  return hasBegun(view)
    ? { name: 'Replace', reason: Reason.suspending, message: 'the job is being suspended' }
    : { name: 'Suspended' };
}

/**
 * Fields that decide the result can change while the job is suspended. The operator may miss the whole suspension (it
 * was down, for example). Then pods of the current attempt still work for the old spec, and the attempt has to be
 * replaced.
 */
export function specChanged(
  digest: string,
  { kind: jobKind, identity, status, ranks, otherPods, attempt }: JobView,
  objects: ObservedObject[],
): Stage | null {
  if (status.observedGeneration === identity.generation) return null;
  const configName = attemptName(jobKind, identity, attempt);
  const config = objects.find(({ kind, name, owned }) => kind === 'ConfigMap' && name === configName && owned);
  const isOutdated = (made: { specDigest?: string } | undefined) =>
    made?.specDigest !== undefined && differ(made.specDigest, digest);
  // A pod of the current attempt in otherPods has a rank that the new spec does not have.
  const changed = isOutdated(config) || ranks.some(isOutdated) || otherPods.some((pod) => pod.attempt === attempt);
  return changed
    ? { name: 'Replace', reason: Reason.specChanged, message: 'the spec was changed while the job was suspended' }
    : null;
}

/** A gang whose trainers start again in their pods goes on, and has no stage of its own before the first has. */
export function failed(view: JobView): Stage | null {
  const failure = findFailure(view);
  const stage = failure && stageAfterFailure(failure, view, restartsToCount(view));
  if (stage?.name !== 'Restart') return stage;
  const { count, inPlace = 0, ...others } = stage.restarts;
  const counted = count - (view.status.restarts?.count ?? 0);
  if (!staysInPods(failure!, stage.restarts, view))
    // Of several, those before the last were in place.
    return counted < 2 ? stage : { name: 'Restart', restarts: { count, inPlace: inPlace + counted - 1, ...others } };
  const containerRestarts = containerRestartsOf(view);
  return containerRestarts > view.restartsInPlace
    ? { name: 'RestartInPlace', restarts: { count, inPlace: inPlace + 1, ...others }, containerRestarts }
    : null;
}

/** New pods for a gang of which a trainer was not started again with the others. Their restart is counted already. */
export function notFollowed(view: JobView): Stage | null {
  const pod = rankLeftBehind(view);
  if (!pod) return null;
  const message = `pod ${pod.name} was not started again with the other trainers`;
  return { name: 'Replace', reason: Reason.notRestarted, message };
}

/** @param times for how many restarts the failure stands */
export function stageAfterFailure(failure: Failure, view: JobView, times = 1): Stage {
  const { spec, status, now, startedAt } = view;
  const decision = decideRestart(failure, spec.failurePolicy, status.restarts, now, startedAt, times);
  return decision.action === 'fail'
    ? { name: 'Failed', reason: decision.reason, message: decision.message }
    : { name: 'Restart', restarts: decision.restarts };
}

export function deadlineExceeded(view: JobView): Stage | null {
  const deadline = exceededDeadline(view);
  return deadline && { name: 'Failed', ...deadline };
}

/** Two attempts must never run together: they would write the same checkpoints. */
export const stopping = (view: JobView): Stage | null => (isStopping(view) ? { name: 'Stopping' } : null);

export function backingOff(view: JobView): Stage | null {
  const until = hasBegun(view) ? null : backoffEnd(view.status.restarts);
  return until !== null && until > view.now ? { name: 'Backoff', until } : null;
}

export const isStopping = (view: JobView): boolean => view.otherPods.some(isAlive);

/** Whether at least a part of the current attempt was created. */
export const hasBegun = (view: JobView): boolean =>
  view.startedAt !== undefined || view.ranks.some((pod) => pod !== undefined);

/** A rank has succeeded, so the training is done, and the others are about to end: the gang is left alone. */
export const isEnding = ({ ranks }: JobView): boolean =>
  ranks.some((pod) => pod !== undefined && outcomeOf(pod) === 'succeeded');

/** Whether every rank runs and is ready, or has succeeded. */
export const allReady = (view: JobView): boolean =>
  view.ranks.every(
    (pod) => pod !== undefined && (outcomeOf(pod) === 'succeeded' || (pod.phase === 'Running' && pod.ready)),
  );
