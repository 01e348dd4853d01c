/**
 * Deadlines of the whole job, and of the pods of an attempt to start. A job that exceeds one fails; it is not
 * restarted.
 */
import { firstWaiting, isUnknown, type JobView, outcomeOf } from './attempt.ts';
import { conditionText } from './conditions.ts';
import { ConditionType, Reason } from './reasons.ts';
import { secondsSince, soonest } from './time.ts';

export interface ExceededDeadline {
  reason: string;
  message: string;
}

/** @returns null if no deadline is exceeded */
export function exceededDeadline(view: JobView): ExceededDeadline | null {
  const { activeDeadlineSeconds, pendingDeadlineSeconds } = view.spec;
  if (isExceeded(activeSecondsLeft(view)))
    return {
      reason: Reason.activeDeadline,
      message: `not done within activeDeadlineSeconds ${activeDeadlineSeconds}${whyNotCreated(view)}`,
    };
  if (isExceeded(pendingSecondsLeft(view)))
    return {
      reason: Reason.pendingDeadline,
      message:
        `not all pods started within pendingDeadlineSeconds ${pendingDeadlineSeconds}: ${whatPodsWaitFor(view)}` +
        whyNotCreated(view),
    };
  return null;
}

/** Why pods of the attempt do not exist, as the last plan reported it; empty if all were created. */
function whyNotCreated({ startedAt, status }: JobView): string {
  const text = startedAt === undefined ? conditionText(status.conditions, ConditionType.ready) : undefined;
  return text === undefined ? '' : `; ${text}`;
}

/** Seconds until the first deadline; null if none applies. One that has passed without an end no longer applies. */
export const secondsToDeadline = (view: JobView): number | null =>
  soonest(...[activeSecondsLeft(view), pendingSecondsLeft(view)].filter((left) => !isExceeded(left)));

const isExceeded = (left: number | null): boolean => left !== null && left <= 0;

/** Without the time in a queue after evictions: while a job waits there, no deadline runs. */
function activeSecondsLeft({ status, spec, now }: JobView): number | null {
  const { startTime, queuedTime, queuedSeconds = 0 } = status;
  return startTime === undefined || queuedTime !== undefined || spec.activeDeadlineSeconds === undefined
    ? null
    : spec.activeDeadlineSeconds + queuedSeconds - secondsSince(startTime, now);
}

/**
 * From the time at which the pods were wanted, whether they were created or refused. A status that an earlier version
 * of the operator wrote has no pendingTime.
 */
function pendingSecondsLeft({ startedAt, spec, ranks, status, now }: JobView): number | null {
  const since = status.pendingTime ?? startedAt;
  const isPending = startedAt === undefined || ranks.some((pod) => pod?.phase === 'Pending');
  return since === undefined || spec.pendingDeadlineSeconds === undefined || !isPending
    ? null
    : spec.pendingDeadlineSeconds - secondsSince(since, now);
}

/** A message: how many pods are ready, and what the first other pod waits for, as Kubernetes reports it. */
export function whatPodsWaitFor({ ranks }: JobView): string {
  const ready = ranks.filter((pod) => pod && (pod.ready || outcomeOf(pod) === 'succeeded')).length;
  const reason = firstWaitReason(ranks);
  return `${ready} of ${ranks.length} pods are ready${reason === undefined ? '' : `; ${reason}`}`;
}

function firstWaitReason(ranks: JobView['ranks']): string | undefined {
  const waiting = firstWaiting(ranks);
  if (waiting) return `${waiting.name} ${waiting.waiting!.reason}: ${waiting.waiting!.message}`;
  const unknown = ranks.find((pod) => pod && isUnknown(pod));
  if (unknown) return `${unknown.name} is in phase ${unknown.phase}`;
  const unscheduled = ranks.find((pod) => pod?.phase === 'Pending' && pod.node === undefined);
  return unscheduled && `${unscheduled.name} has no place, and no scheduler has said why`;
}
