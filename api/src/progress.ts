/**
 * What a program reports while it runs, and when it ends.
 *
 * Any image may run in a pod, so a report may be anything. These schemas accept only what the status can hold: the CRD
 * refuses a status with a time, a name or a number of another form, and then no status of that job would be written any
 * more (operator/src/controllers/reports.test.ts). Fields that they do not have are left out: the image of a later
 * release may report more.
 *
 * Rank 0 of a gang, and the quantizer, serve `Progress` over HTTP; the operator and `facetrain run` poll it. At its end
 * a program writes `TerminationMessage` (after a failure) or `TerminationResult` to its pod's termination message.
 */
import { z } from 'zod';
import { EvaluationResult } from './facetrainjob.ts';
import { ArtifactStatus } from './job-fields.ts';
import { MAX_SET_ASIDE, MAX_SET_ASIDE_REASON, MAX_SETS, setAsideFolder, setName } from './ranges.ts';
import { StageSeconds } from './step-stages.ts';

/** Serves `Progress` as JSON. */
export const PROGRESS_PATH = '/v1/progress';
/** Answers 200 while the program does its work, else 503. */
export const HEALTH_PATH = '/healthz';
/**
 * The address on which a pod serves its progress: all of IPv6 and IPv4, or all of IPv4 where the kernel has no IPv6. A
 * pod has addresses of either family or of both.
 */
export const PROGRESS_HOST = '::';

/** RFC 3339 in UTC, with seconds. Zod alone would take a time without them, which the API server refuses. */
const time = z.iso
  .datetime()
  .max(64)
  .regex(/T\d\d:\d\d:\d\d/, 'a time with seconds');

/**
 * Longest answer of PROGRESS_PATH, in bytes. With 32 evaluations it has about 6 KiB.
 */
export const MAX_PROGRESS_BYTES = 65_536;

/** What checkpoints cost, of one attempt, on rank 0. */
export const CheckpointStatistics = z.object({
  count: z.int().min(0).describe('Complete checkpoints.'),
  stallSeconds: z.number().min(0).describe('Time for which training stood still for them.'),
  whileTrainingWaited: z
    .int()
    .min(0)
    .describe('Checkpoints for which the memory did not suffice for a copy of the state, so that training waited.'),
});

/** What the programs of this release do. */
export const ProgressStage = z.enum([
  'Preflight',
  'Rendezvous',
  'Loading',
  'Training',
  'Evaluating',
  'Checkpointing',
  'Exporting',
  'Equalizing',
  'Searching',
  'Comparing',
  'Publishing',
  'Done',
]);
export type ProgressStage = z.infer<typeof ProgressStage>;

/** Longest `waitsFor`, in characters: a host name has 253, and a message of the C library is short. */
export const MAX_WAITS_FOR = 500;

export const Progress = z.object({
  schemaVersion: z.literal(1),
  job: z.object({ name: z.string().max(253), uid: z.string().max(253), attempt: z.int().min(0) }),
  stage: z.string().max(64).describe('What the program does now: a ProgressStage, or one of a later release.'),
  waitsFor: z
    .string()
    .max(MAX_WAITS_FOR)
    .optional()
    .describe('Whom rank 0 has waited for in the rendezvous for some time, and why.'),
  step: z.int().min(0).describe('Training steps done; in the quantizer, layers searched.'),
  totalSteps: z.int().min(0).describe('0 while the number is unknown.'),
  epoch: z.number().min(0).describe('Epochs done, with their fraction; 0 in the quantizer.'),
  imagesPerSecond: z.number().min(0).nullable(),
  stageSeconds: z
    .object(StageSeconds.shape)
    .nullable()
    .optional()
    .describe('Where the time of a step goes on rank 0: the mean of the last steps by stage.'),
  loss: z.number().nullable().describe('Mean loss of the last steps.'),
  learningRate: z.number().nullable(),
  sampleRate: z.number().nullable().optional().describe('Fraction of the negatives that the last step scored.'),
  etaSeconds: z.number().min(0).nullable(),
  evaluations: z
    .array(z.object({ ...EvaluationResult.shape, set: setName }))
    .max(MAX_SETS)
    .refine((results) => new Set(results.map(({ set }) => set)).size === results.length, 'names of sets must differ')
    .describe('The newest result on each set.'),
  checkpoint: z
    .object({ step: z.int().min(0), time })
    .nullable()
    .describe('The newest complete checkpoint.'),
  checkpoints: CheckpointStatistics.optional(),
  setAside: z
    .array(
      z.object({
        folder: setAsideFolder.describe('Its new name, in the folder of checkpoints.'),
        reason: z.string().max(MAX_SET_ASIDE_REASON),
      }),
    )
    .max(MAX_SET_ASIDE)
    .optional()
    .describe('Checkpoints that were found damaged at the start and renamed, the newest ones.'),
  activity: z.int().min(0).describe('Counter of all work: steps, evaluation batches, checkpoint files.'),
});
export type Progress = z.infer<typeof Progress>;

/** Of a program that has not done any work yet. */
export function progressAtStart(job: Progress['job'], stage: ProgressStage): Progress {
  return {
    schemaVersion: 1,
    job,
    stage,
    step: 0,
    totalSteps: 0,
    epoch: 0,
    imagesPerSecond: null,
    loss: null,
    learningRate: null,
    etaSeconds: null,
    evaluations: [],
    checkpoint: null,
    activity: 0,
  };
}

/** Longest `message` of a TerminationMessage, in characters. */
export const MAX_TERMINATION_TEXT = 3500;

/** Termination message of a program that failed. */
export const TerminationMessage = z.object({
  code: z
    .string()
    .max(64)
    .regex(/^[A-Za-z][A-Za-z0-9]*$/, 'one word of letters and digits')
    .describe('An ErrorCode, or "Internal" for a defect.'),
  message: z.string().max(MAX_TERMINATION_TEXT),
  rank: z.int().min(0).optional().describe('The rank that failed, where its pod has several.'),
});
export type TerminationMessage = z.infer<typeof TerminationMessage>;

/** Termination message of a program that succeeded, or that SIGTERM stopped. */
export const TerminationResult = z.object({
  progress: Progress.optional().describe(
    'Progress of rank 0 at its end; without evaluations if they do not fit into the message.',
  ),
  artifact: z
    .object(ArtifactStatus.omit({ uri: true }).shape)
    .optional()
    .describe('The published artifact, without its address: that stands in the job.'),
});
export type TerminationResult = z.infer<typeof TerminationResult>;

/**
 * Longest termination message; the kubelet cuts longer ones ("Customizing the termination message" in Kubernetes'
 * docs).
 */
export const MAX_TERMINATION_BYTES = 4096;
