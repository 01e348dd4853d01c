/**
 * What a changed manifest means for a run that has begun: which fields differ, and which part of the work they decide.
 * Pure.
 */
import { isDeepStrictEqual } from 'node:util';
import { type FaceTrainJobSpec, isPlainObject, TRAINING_FIELDS } from '@facetrain/api';

/**
 * Fields that decide what is trained. Those of TRAINING_FIELDS but the ones of `trainers`: ports are not used here, and
 * any number of trainers has the same batches and class centres, and micro-batches are to batch norms what trainers
 * are. In a cluster the schema lets nobody change the others.
 */
const DECIDING = [
  ...TRAINING_FIELDS.filter((path) => !path.startsWith('trainers.')),
  'model',
  'checkpoint.uri',
  'trainers.precision',
];

/** Below one of DECIDING, but it changes no number. */
const NOT_DECIDING = ['spec.model.checkpointActivations'];

/** Fields that decide what a quantization gives; the others (resources, failure policy, deadlines) do not. */
const QUANTIZATION = ['calibration', 'search', 'gate', 'output'] as const;

/** The fields that differ, by their paths in the manifest; `output` is the folder itself. */
export function changedFields(before: FaceTrainJobSpec, after: FaceTrainJobSpec): string[] {
  return differences(before, after)
    .filter((path) => path !== 'output' && !path.startsWith('output.'))
    .map((path) => `spec.${path}`);
}

/** Those of the changed fields that decide what is trained. */
export const trainingFields = (changed: string[]): string[] =>
  changed.filter(
    (path) =>
      !NOT_DECIDING.includes(path) &&
      DECIDING.some((field) => path === `spec.${field}` || path.startsWith(`spec.${field}.`)),
  );

/**
 * Whether an unfinished training can go on with the changed fields: at most with more epochs, whose schedule is that of
 * the new number from then on, and with more classes, as in a cluster. The checkpoint fits.
 */
export const canGoOn = (changed: string[], before: FaceTrainJobSpec, after: FaceTrainJobSpec): boolean =>
  trainingFields(changed).every(
    (path) =>
      (path === 'spec.epochs' && after.epochs > before.epochs) ||
      (path === 'spec.model.numClasses' &&
        (after.model.numClasses ?? 0) > (before.model.numClasses ?? Number.POSITIVE_INFINITY)),
  );

/** Whether the quantization of `after` gives another artifact than that of `before`. */
export function quantizationDiffers(before: FaceTrainJobSpec, after: FaceTrainJobSpec): boolean {
  return !isDeepStrictEqual(quantization(before), quantization(after));
}

function quantization({ quantize, evaluation }: FaceTrainJobSpec): unknown {
  if (!quantize) return null;
  // Sets that the template does not name are those of the training (planner/src/facetrainjob/child-quantizejob.ts).
  return [quantize.evaluation?.sets ?? evaluation.sets, ...QUANTIZATION.map((field) => quantize[field])];
}

/** Paths at which two values differ: the longest that both have, so that a section that is added has its own name. */
function differences(before: unknown, after: unknown, path = ''): string[] {
  if (isDeepStrictEqual(before, after)) return [];
  if (!isPlainObject(before) || !isPlainObject(after)) return [path];
  const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return keys.flatMap((key) => differences(before[key], after[key], path === '' ? key : `${path}.${key}`));
}
