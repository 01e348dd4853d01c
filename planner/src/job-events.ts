/** Events, as the difference between two statuses: each change is told once, and none that was not written. */
import type { Condition } from '@facetrain/api';
import type { JobStatus } from './attempt.ts';
import { findCondition, isTrue } from './conditions.ts';
import type { PlanEvent } from './plan.ts';
import { ConditionType, Reason } from './reasons.ts';

const CONDITION_EVENTS: [ConditionType, PlanEvent['type']][] = [
  [ConditionType.running, 'Normal'],
  [ConditionType.suspended, 'Normal'],
  [ConditionType.quantizationSucceeded, 'Normal'],
  [ConditionType.succeeded, 'Normal'],
  [ConditionType.failed, 'Warning'],
];

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
      events.push({ type: severity, reason: type, message: saying(after.conditions, type) });
  }
  // A failure was told already; a refusal is told again when it is another one.
  if (isTrue(after.conditions, ConditionType.stalled) && !isTrue(after.conditions, ConditionType.failed)) {
    const message = saying(after.conditions, ConditionType.stalled);
    if (message !== saying(before.conditions, ConditionType.stalled))
      events.push({ type: 'Warning', reason: ConditionType.stalled, message });
  }
  return events;
}

const restartsOf = ({ restarts }: JobStatus): number => (restarts?.count ?? 0) + (restarts?.disruptions ?? 0);

function saying(conditions: Condition[] | undefined, type: ConditionType): string {
  const condition = findCondition(conditions, type);
  return condition ? `${condition.reason}: ${condition.message}` : '';
}
