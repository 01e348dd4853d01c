/**
 * Where a job stands: what a planner decides, once, and everything else follows from. The steps here are those that
 * both kinds of job share; each answers a stage, or null to pass the question on.
 *
 * `Restart` and `Replace` end an attempt, on evidence that the next actions would destroy (the failed pod, say). They carry no
 * actions: the decision is written to the status first, as a higher attempt number, and acted upon by the next plan. So a crash at any
 * moment finds either the evidence or the decision.
 */
import type { Restarts } from '@facetrain/api';
import { isAlive, type JobView, outcomeOf } from './attempt.ts';
import { findCondition, isTrue } from './conditions.ts';
import { exceededDeadline } from './deadlines.ts';
import { type Failure, findFailure } from './failure.ts';
import { attemptName } from './names.ts';
import type { ChildObject } from './objects.ts';
import type { ObservedObject } from './observed.ts';
import type { Action } from './plan.ts';
import { ConditionType, Reason } from './reasons.ts';
import { backoffEnd, decideRestart } from './restarts.ts';

export type Stage =
  /** Nothing can be done until the spec or the world changes. */
  | { name: 'Refused'; reason: string; message: string }
  | { name: 'Suspended' }
  /** Decided: a new attempt, because this one failed. */
  | { name: 'Restart'; restarts: Restarts }
  /** Decided: this attempt is over, through no failure. */
  | { name: 'Replace'; reason: string; message: string }
  /** Pods of an older attempt may still run. */
  | { name: 'Stopping' }
  /** Other jobs will give free what this one must have: a name, or a folder. */
  | { name: 'Waiting'; reason: string; message: string }
  | { name: 'Backoff'; until: Date }
  /** The attempt is made, waits for its pods, or runs. */
  | { name: 'Active'; create: ChildObject[]; updates?: Action[] }
  /** Training is done, and its QuantizeJob is not. */
  | { name: 'Quantizing'; message: string; actions: Action[] }
  | { name: 'Succeeded'; message: string }
  | { name: 'Failed'; reason: string; message: string };

/** A finished job stays as it is, whatever happens to its spec or its pods. */
export function finished({ status: { conditions } }: JobView): Stage | null {
  if (isTrue(conditions, ConditionType.succeeded))
    return { name: 'Succeeded', message: findCondition(conditions, ConditionType.succeeded)!.message };
  if (!isTrue(conditions, ConditionType.failed)) return null;
  const { reason, message } = findCondition(conditions, ConditionType.failed)!;
  return { name: 'Failed', reason, message };
}

/** A suspension ends the attempt; resuming starts another from the checkpoint that its trainers leave behind. */
export function suspended(view: JobView): Stage | null {
  if (!view.spec.suspend) return null;
  return hasBegun(view)
    ? { name: 'Replace', reason: Reason.suspending, message: 'the job is being suspended' }
    : { name: 'Suspended' };
}

/** What decides the result was changed during a suspension that nobody saw: the attempt does something else than the spec says. */
export function specChanged(
  digest: string,
  { identity, status, ranks, otherPods, attempt }: JobView,
  objects: ObservedObject[],
): Stage | null {
  if (status.observedGeneration === identity.generation) return null;
  const config = objects.find(({ kind, name }) => kind === 'ConfigMap' && name === attemptName(identity, attempt));
  const isOther = (made: { specDigest?: string } | undefined) =>
    made?.specDigest !== undefined && made.specDigest !== digest;
  const changed = isOther(config) || ranks.some(isOther) || otherPods.some((pod) => pod.attempt === attempt);
  return changed
    ? { name: 'Replace', reason: Reason.specChanged, message: 'the spec was changed while the job was suspended' }
    : null;
}

export function failed(view: JobView): Stage | null {
  const failure = findFailure(view);
  return failure && stageAfterFailure(failure, view);
}

export function stageAfterFailure(failure: Failure, view: JobView): Stage {
  const verdict = decideRestart(failure, view.spec.failurePolicy, view.status.restarts, view.now);
  return verdict.action === 'fail'
    ? { name: 'Failed', reason: verdict.reason, message: verdict.message }
    : { name: 'Restart', restarts: verdict.restarts };
}

export function deadlineExceeded(view: JobView): Stage | null {
  const deadline = exceededDeadline(view);
  return deadline && { name: 'Failed', ...deadline };
}

/** Two attempts must never be alive together: they would write the same checkpoints. */
export const stopping = (view: JobView): Stage | null => (isStopping(view) ? { name: 'Stopping' } : null);

export function backingOff(view: JobView): Stage | null {
  const until = hasBegun(view) ? null : backoffEnd(view.status.restarts);
  return until !== null && until > view.now ? { name: 'Backoff', until } : null;
}

export const isStopping = (view: JobView): boolean => view.otherPods.some(isAlive);

/** Some of the attempt exists already. */
export const hasBegun = (view: JobView): boolean =>
  view.startedAt !== undefined || view.ranks.some((pod) => pod !== undefined);

/** Every rank is there and works, or has done its part. */
export const allReady = (view: JobView): boolean =>
  view.ranks.every(
    (pod) => pod !== undefined && (outcomeOf(pod) === 'succeeded' || (pod.phase === 'Running' && pod.ready)),
  );
