/**
 * The status of a job whose spec the schema of this operator refuses, though that of the CRD once let it through. Nothing else is done about it: what runs goes
 * on, and what is over stays as it is.
 */
import type { JobStatus } from './attempt.ts';
import { isTrue, mergeConditions } from './conditions.ts';
import { ConditionType, Reason } from './reasons.ts';

const REPLACED = new Set<string>([ConditionType.ready, ConditionType.reconciling, ConditionType.stalled]);

export function invalidStatus<Status extends JobStatus & { phase?: string | undefined }>(
  before: Status,
  generation: number,
  message: string,
  now: Date,
): Status {
  const { conditions = [] } = before;
  if (isTrue(conditions, ConditionType.succeeded) || isTrue(conditions, ConditionType.failed)) return before;
  const why = { reason: Reason.invalidSpec, message };
  const wanted = [
    { type: ConditionType.ready, status: 'False' as const, ...why },
    { type: ConditionType.stalled, status: 'True' as const, ...why },
  ];
  const told = mergeConditions(
    conditions.filter(({ type }) => REPLACED.has(type)),
    wanted,
    generation,
    now,
  );
  const kept = conditions.filter(({ type }) => !REPLACED.has(type));
  return {
    ...before,
    observedGeneration: generation,
    phase: before.phase ?? 'Pending',
    conditions: [...told, ...kept],
  };
}
