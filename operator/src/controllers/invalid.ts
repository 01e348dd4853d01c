/** The status of a job whose spec the schema of this operator refuses, though that of the CRD once let it through. Nothing else is done about it. */
import type { JobStatus } from './attempt.ts';
import { mergeConditions } from './conditions.ts';
import { ConditionType, Reason } from './reasons.ts';

export function invalidStatus<Status extends JobStatus>(before: Status, generation: number, message: string, now: Date): Status {
  const why = { reason: Reason.invalidSpec, message };
  const wanted = [
    { type: ConditionType.ready, status: 'False' as const, ...why },
    { type: ConditionType.stalled, status: 'True' as const, ...why },
  ];
  return { ...before, observedGeneration: generation, conditions: mergeConditions(before.conditions, wanted, generation, now) };
}
