/** Events, as the difference between two statuses. Each change gets one event, and only after it was written. */
import { INITIALIZING, type JobStatus } from './attempt.ts';
import { conditionText, findCondition, isTrue } from './conditions.ts';
import type { PlanEvent } from './plan.ts';
import { ConditionType, Reason } from './reasons.ts';

/** Conditions that get an event when they become True. */
const CONDITION_EVENTS: [ConditionType, PlanEvent['type']][] = [
  [ConditionType.running, 'Normal'],
  [ConditionType.suspended, 'Normal'],
  [ConditionType.quantizationSucceeded, 'Normal'],
  [ConditionType.succeeded, 'Normal'],
  [ConditionType.failed, 'Warning'],
];

/** @param before the observed status; `after`: the status of the plan */
export function eventsOf(before: JobStatus, after: JobStatus): PlanEvent[] {
  const events: PlanEvent[] = [];
  if (restartsOf(after) !== restartsOf(before)) {
    const { lastReason, lastMessage, inPlace } = after.restarts!;
    const how = inPlace === before.restarts?.inPlace ? '' : '; the trainers start again in their pods';
    events.push({ type: 'Warning', reason: ConditionType.restarting, message: `${lastReason}: ${lastMessage}${how}` });
  }
  if (after.attemptStartTime !== undefined && after.attemptStartTime !== before.attemptStartTime) {
    events.push({
      type: 'Normal',
      reason: Reason.attemptStarted,
      message: `made the pods of attempt ${after.attempt}`,
    });
  }
  const ready = findCondition(after.conditions, ConditionType.ready);
  // Once for each wait: the message changes whenever another pod of the namespace begins or ends.
  if (after.refusal?.quota !== undefined && before.refusal?.quota === undefined)
    events.push({ type: 'Warning', reason: Reason.quotaExceeded, message: ready!.message });
  if ((after.refusal?.releases ?? 0) > (before.refusal?.releases ?? 0))
    events.push({ type: 'Normal', reason: Reason.gangReleased, message: ready!.message });
  // Once for each wait and each eviction: Kueue's words change with the other jobs of the queue.
  const reasonBefore = findCondition(before.conditions, ConditionType.ready)?.reason;
  if (ready !== undefined && ready.reason !== reasonBefore) {
    if (ready.reason === Reason.queued) events.push({ type: 'Normal', reason: Reason.queued, message: ready.message });
    if (ready.reason === Reason.queueEvicted)
      events.push({ type: 'Warning', reason: Reason.queueEvicted, message: ready.message });
  }
  for (const [type, severity] of CONDITION_EVENTS) {
    if (isTrue(after.conditions, type) && !isTrue(before.conditions, type))
      events.push({ type: severity, reason: type, message: conditionText(after.conditions, type)! });
  }
  const waiting = waitReason(after);
  if (waiting !== undefined && waiting !== waitReason(before))
    events.push({
      type: 'Warning',
      reason: waiting,
      message: findCondition(after.conditions, ConditionType.ready)!.message,
    });
  // A failed job has the event Failed. Any other Stalled condition gets an event whenever its text changes.
  if (isTrue(after.conditions, ConditionType.stalled) && !isTrue(after.conditions, ConditionType.failed)) {
    const message = conditionText(after.conditions, ConditionType.stalled)!;
    if (message !== conditionText(before.conditions, ConditionType.stalled))
      events.push({ type: 'Warning', reason: ConditionType.stalled, message });
  }
  return events;
}

const OWN_REASONS = new Set<string>(Object.values(Reason));

/**
 * The reason, in Kubernetes' words, for which the pods of a job do not start; undefined if none is known. While pods
 * start, the reason of Ready is either one of ours or one of these. Afterwards the cause of a restart has its own
 * event.
 */
function waitReason({ conditions }: JobStatus): string | undefined {
  const ready = findCondition(conditions, ConditionType.ready);
  const isAttempt = findCondition(conditions, ConditionType.podsReady)?.reason === Reason.podsNotReady;
  if (!isAttempt || ready?.status !== 'False') return undefined;
  const { reason } = ready;
  return reason === Reason.unschedulable || !(OWN_REASONS.has(reason) || reason === INITIALIZING) ? reason : undefined;
}

const restartsOf = ({ restarts }: JobStatus): number => (restarts?.count ?? 0) + (restarts?.disruptions ?? 0);
