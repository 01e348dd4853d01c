/** Events, as the difference between two statuses. Each change gets one event, and only after it was written. */
import type { JobStatus } from './attempt.ts';
import { conditionText, isTrue } from './conditions.ts';
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
    const { lastReason, lastMessage } = after.restarts!;
    events.push({ type: 'Warning', reason: ConditionType.restarting, message: `${lastReason}: ${lastMessage}` });
  }
  if (after.attemptStartTime !== undefined && after.attemptStartTime !== before.attemptStartTime) {
    events.push({
      type: 'Normal',
      reason: Reason.attemptStarted,
      message: `made the pods of attempt ${after.attempt}`,
    });
  }
  for (const [type, severity] of CONDITION_EVENTS) {
    if (isTrue(after.conditions, type) && !isTrue(before.conditions, type))
      events.push({ type: severity, reason: type, message: conditionText(after.conditions, type)! });
  }
  // A failed job has the event Failed. Any other Stalled condition gets an event whenever its text changes.
  if (isTrue(after.conditions, ConditionType.stalled) && !isTrue(after.conditions, ConditionType.failed)) {
    const message = conditionText(after.conditions, ConditionType.stalled)!;
    if (message !== conditionText(before.conditions, ConditionType.stalled))
      events.push({ type: 'Warning', reason: ConditionType.stalled, message });
  }
  return events;
}

const restartsOf = ({ restarts }: JobStatus): number => (restarts?.count ?? 0) + (restarts?.disruptions ?? 0);
