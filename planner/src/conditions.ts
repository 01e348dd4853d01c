/**
 * Writes conditions (metav1.Condition). `lastTransitionTime` changes only with `status`, and the order is that of the
 * given list, so that an unchanged status stays equal.
 */
import type { Condition } from '@facetrain/api';
import { truncate } from './plain-data.ts';
import { ConditionType, MAX_MESSAGE } from './reasons.ts';
import { timestamp } from './time.ts';

/** A condition before its times are known. */
export interface WantedCondition {
  type: ConditionType;
  status: Condition['status'];
  reason: string;
  message: string;
}

const OWN_TYPES = new Set<string>(Object.values(ConditionType));

export function isTrue(conditions: Condition[] | undefined, type: ConditionType): boolean {
  return conditions?.some((condition) => condition.type === type && condition.status === 'True') ?? false;
}

export function findCondition(conditions: Condition[] | undefined, type: ConditionType): Condition | undefined {
  return conditions?.find((condition) => condition.type === type);
}

/** Removes our conditions that are not wanted. Conditions of other types (of other controllers) are kept. */
export function mergeConditions(
  old: Condition[] | undefined,
  wanted: WantedCondition[],
  generation: number,
  now: Date,
): Condition[] {
  const own = wanted.map(({ type, status, reason, message }) => {
    const before = findCondition(old, type);
    return {
      type,
      status,
      observedGeneration: generation,
      lastTransitionTime: before?.status === status ? before.lastTransitionTime : timestamp(now),
      reason,
      message: truncate(message, MAX_MESSAGE),
    };
  });
  return [...own, ...(old ?? []).filter((condition) => !OWN_TYPES.has(condition.type))];
}

/** Reason and message of a condition in one line; undefined if there is no such condition. */
export function conditionText(conditions: Condition[] | undefined, type: ConditionType): string | undefined {
  const condition = findCondition(conditions, type);
  return condition && `${condition.reason}: ${condition.message}`;
}
