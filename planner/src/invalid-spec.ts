/**
 * The status of a job whose stored spec this operator's schema refuses, because an older CRD accepted it. Only the
 * status changes: running pods are not touched, and a finished job stays as it is.
 */
import type { JobStatus } from './attempt.ts';
import { isTrue, mergeConditions } from './conditions.ts';
import type { JobKind } from './names.ts';
import { ConditionType, Reason } from './reasons.ts';

/** Fields of a FaceTrainJob that the API server never lets change: the rules are in api/src/facetrainjob.ts. */
const NEVER_CHANGED = /\bspec\.(model|output|checkpoint\.uri)\b/;

/** parseDocument says so of a field that the schema does not have. */
const UNKNOWN = ': unknown field;';

/**
 * What the status says of a refusal. In a field that never changes, the stored spec cannot be corrected. The API server
 * stores no field that the CustomResourceDefinition does not have, so one that this operator does not know is newer
 * than the operator, and may be a default that no user wrote: nobody has to delete a job for it.
 */
export function refusalMessage(kind: JobKind, message: string): string {
  const lines = message.split('\n');
  const isFinal = lines.some((line) => NEVER_CHANGED.test(line) && !line.includes(UNKNOWN));
  if (kind === 'FaceTrainJob' && isFinal)
    return `${message}; this field cannot be changed: delete the job, and create it again with another value`;
  return lines.some((line) => line.includes(UNKNOWN))
    ? `${message}; the CustomResourceDefinition is newer than this operator: upgrade the operator`
    : message;
}

/** Whether all that is wrong with a spec is that this operator does not know some of its fields. */
export function isOfNewerVersion(message: string): boolean {
  const [first, ...others] = message.split('\n');
  return (others.length > 0 ? others : [first!]).every((line) => line.includes(UNKNOWN));
}

const REPLACED = new Set<string>([ConditionType.ready, ConditionType.reconciling, ConditionType.stalled]);

/** @param message the refusal: field, what was found, what is allowed */
export function invalidStatus<Status extends JobStatus & { phase?: string | undefined }>(
  before: Status,
  generation: number,
  message: string,
  now: Date,
): Status {
  const { conditions = [] } = before;
  if (isTrue(conditions, ConditionType.succeeded) || isTrue(conditions, ConditionType.failed)) return before;
  const cause = { reason: Reason.invalidSpec, message };
  const wanted = [
    { type: ConditionType.ready, status: 'False' as const, ...cause },
    { type: ConditionType.stalled, status: 'True' as const, ...cause },
  ];
  const invalid = mergeConditions(
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
    conditions: [...invalid, ...kept],
  };
}
