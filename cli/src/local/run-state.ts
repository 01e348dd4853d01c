/** run.json: what a run in a folder is, and how far it came. */
import { existsSync, readFileSync } from 'node:fs';
import { FaceTrainJobSpec, FacetrainError } from '@facetrain/api';
import { writeAtomically } from '@facetrain/trainer/storage/atomic-files';

/** What the next run in the folder has to know. */
export interface RunState {
  schemaVersion: 2;
  /** Name of the job. */
  job: string;
  uid: string;
  /** Defaults filled in. */
  spec: FaceTrainJobSpec;
  /** The newest attempt, over all invocations: a fence refuses trainers of a lower one. */
  attempt: number;
  /** All trainers have ended with success: the model and its report are written. */
  trained: boolean;
  /** The artifact is written, and published if the spec names a place for it. */
  quantized: boolean;
  /** How the newest invocation ended; null while one runs, and after one that was stopped or killed. */
  ended: { phase: 'Succeeded' | 'Failed'; exitCode: number; message?: string } | null;
  /** `--fresh` has begun to remove the files of this run. Written before it removes the first one. */
  removing: boolean;
}

/**
 * The uid of the QuantizeJob that a run makes. It is in the artifact's report, and says from which attempt, and so from
 * which spec, the artifact comes.
 */
export const quantizeJobUid = ({ uid, attempt }: Pick<RunState, 'uid' | 'attempt'>): string => `${uid}-${attempt}`;

/** run.json of version 0.1. `finished` is true after every end, a failure included. */
export interface FormerState {
  uid: string;
  specSha256: string;
  finished: boolean;
  pid: number;
}

export const isFormer = (state: RunState | FormerState): state is FormerState => !('schemaVersion' in state);

/**
 * @returns undefined when no run has used the folder
 * @throws FacetrainError InvalidArgument for a file that no known version has written
 */
export function readState(file: string): RunState | FormerState | undefined {
  if (!existsSync(file)) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw refused(file, (cause as Error).message, cause);
  }
  const fields = Object(value) as Record<string, unknown>;
  if (isShapedLike(fields, FORMER)) return fields as unknown as FormerState;
  const isWhole = isShapedLike(fields, CURRENT) && Number.isSafeInteger(fields.attempt) && isSpecUsable(fields.spec);
  if (fields.schemaVersion !== 2 || !isWhole) throw refused(file, 'is not the state of a run that this version knows');
  const state = fields as unknown as RunState;
  // A field that a later version has added gets its default, and so does not count as changed.
  const spec = FaceTrainJobSpec.safeParse(state.spec);
  return spec.success ? { ...state, spec: spec.data } : state;
}

/** @throws FacetrainError DiskFull, StorageFailed */
export const writeState = (file: string, state: RunState): Promise<void> =>
  writeAtomically(file, `${JSON.stringify(state, null, 2)}\n`);

/** Types of the fields, by `typeof`, and null. */
const FORMER = { uid: 'string', specSha256: 'string', finished: 'boolean', pid: 'number' };
const CURRENT = {
  job: 'string',
  uid: 'string',
  spec: 'object',
  attempt: 'number',
  trained: 'boolean',
  quantized: 'boolean',
  ended: 'object|null',
  removing: 'boolean',
};

/** Whether a spec has what is read of it also where this version's schema refuses it. */
function isSpecUsable(spec: unknown): boolean {
  const { quantize } = Object(spec) as Record<string, unknown>;
  return (
    isShapedLike(spec, { checkpoint: 'object', trainers: 'object' }) &&
    (quantize === undefined || isShapedLike(quantize, { quantizer: 'object' }))
  );
}

const isShapedLike = (value: unknown, types: Record<string, string>): boolean => {
  const fields = Object(value) as Record<string, unknown>;
  return Object.entries(types).every(([name, type]) =>
    type.split('|').includes(fields[name] === null ? 'null' : typeof fields[name]),
  );
};

const refused = (file: string, found: string, cause?: unknown) =>
  new FacetrainError({
    code: 'InvalidArgument',
    subject: file,
    found,
    allowed: 'the file as facetrain wrote it; or choose another folder with --out',
    cause,
  });
