/** The one way to write conditions: times move only when a status does, and the order is always that of the wanted list. */
import type { Condition } from '@facetrain/api';
import { truncate } from './plain-data.ts';
import { ConditionType, MAX_MESSAGE } from './reasons.ts';
import { timestamp } from './time.ts';

export interface WantedCondition {
  type: ConditionType;
  status: Condition['status'];
  reason: string;
  message: string;
}

const OURS = new Set<string>(Object.values(ConditionType));

export function isTrue(conditions: Condition[] | undefined, type: ConditionType): boolean {
  return conditions?.some((condition) => condition.type === type && condition.status === 'True') ?? false;
}

export function findCondition(conditions: Condition[] | undefined, type: ConditionType): Condition | undefined {
  return conditions?.find((condition) => condition.type === type);
}

/** Conditions of ours that are not wanted go; those of others stay. */
export function mergeConditions(
  old: Condition[] | undefined,
  wanted: WantedCondition[],
  generation: number,
  now: Date,
): Condition[] {
  const ours = wanted.map(({ type, status, reason, message }) => {
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
  return [...ours, ...(old ?? []).filter((condition) => !OURS.has(condition.type))];
}
