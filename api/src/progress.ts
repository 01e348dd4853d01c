/** What rank 0 of a gang (or the quantizer) serves at /v1/progress: the operator and `facetrain run` poll it. */
import { z } from 'zod';
import { ArtifactStatus } from './common.ts';
import { EvaluationResult } from './facetrainjob.ts';

export const Progress = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string(), uid: z.string(), attempt: z.int().min(0) }),
  stage: z
    .enum([
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
    ])
    .describe('What the program is doing now.'),
  step: z.int().min(0).describe('Training steps done; of the quantizer, layers searched.'),
  totalSteps: z.int().min(0).describe('0 while it is not known.'),
  epoch: z.number().min(0).describe('Epochs done, with their fraction; 0 in the quantizer.'),
  imagesPerSecond: z.number().min(0).nullable(),
  loss: z.number().nullable().describe('Mean over the last steps.'),
  learningRate: z.number().nullable(),
  etaSeconds: z.number().min(0).nullable(),
  evaluations: z.array(EvaluationResult).max(32).describe('The newest result on each set.'),
  checkpoint: z
    .strictObject({ step: z.int().min(0), time: z.string() })
    .nullable()
    .describe('The newest complete checkpoint.'),
  activity: z
    .int()
    .min(0)
    .describe('A counter that moves whenever anything does: steps, evaluation batches, checkpoint files.'),
});
export type Progress = z.infer<typeof Progress>;

/** What a program leaves as its pod's termination message when it fails. */
export const TerminationMessage = z.strictObject({
  code: z.string().describe('An ErrorCode, or "Internal" for a defect.'),
  message: z.string().max(3500),
});
export type TerminationMessage = z.infer<typeof TerminationMessage>;

/** What it leaves there when it ends by itself, or because it was told to. */
export const TerminationResult = z.strictObject({
  progress: Progress.optional().describe(
    'Of rank 0, at its end; without evaluations where these are too many for the message.',
  ),
  artifact: ArtifactStatus.omit({ uri: true })
    .optional()
    .describe('What the quantizer has published; where, its job knows.'),
});
export type TerminationResult = z.infer<typeof TerminationResult>;

/** Of a termination message; a kubelet cuts what is longer. */
export const MAX_TERMINATION_BYTES = 4096;
