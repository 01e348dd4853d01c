/** `train-report.json`: speed, loss curve and accuracy of a finished training. */
import { z } from 'zod';
import { AttemptMark, StoredFile } from './checkpoint-manifest.ts';
import { EvaluationResult } from './facetrainjob.ts';
import { CheckpointStatistics } from './progress.ts';
import { precision } from './ranges.ts';
import { StageSeconds } from './step-stages.ts';
import { TrainerConfig } from './trainer-config.ts';

const interval = z.tuple([z.number(), z.number()]);

/** Values in bars of equal width from `min` to `max`. */
export const Histogram = z.strictObject({
  min: z.number(),
  max: z.number(),
  sum: z.number(),
  sumOfSquares: z.number(),
  counts: z.array(z.int()).min(1),
});
export type Histogram = z.infer<typeof Histogram>;

/** Pairs of one group at the threshold of the whole set. */
export const GroupAccuracy = z.strictObject({
  accuracy: z.number().min(0).max(1),
  falseAcceptRate: z.number().nullable().describe('Of the pairs of different people; null: the group has none.'),
  falseRejectRate: z.number().nullable().describe('Of the pairs of one person; null: the group has none.'),
});

/** Accuracy on one verification set, with what only the report has. */
export const EvaluationReport = EvaluationResult.extend({
  threshold: z
    .number()
    .describe('Squared distance of unit embeddings below which a pair counts as the same person, mean over the folds.'),
  pairs: z.int().positive(),
  tarAtFar: z.record(z.string(), z.number()).describe('True accept rate by false accept rate ("1e-3").'),
  // Absent in reports of before.
  unresolvedFar: z
    .record(z.string(), z.int())
    .optional()
    .describe('False accept rates that the set cannot resolve, with the pairs of different people that each needs.'),
  positives: z.int().optional().describe('Pairs of one person.'),
  negatives: z.int().optional().describe('Pairs of different people.'),
  intervals: z
    .strictObject({ accuracy: interval, tarAtFar: z.record(z.string(), interval) })
    .optional()
    .describe('95 % intervals by the number of pairs (Wilson).'),
  byNorm: z
    .array(z.strictObject({ from: z.number(), to: z.number(), pairs: z.int(), errors: z.int() }))
    .optional()
    .describe('Pairs by the smaller norm of the two embeddings, a quarter each, with the wrong answers among them.'),
  groups: z
    .array(
      GroupAccuracy.extend({
        group: z.string(),
        pairs: z.int().positive(),
        interval: interval.describe('Of the accuracy.'),
      }),
    )
    .optional()
    .describe('By group of pairs, at the threshold of the whole set. Absent: the set has no groups.'),
  histograms: z
    .strictObject({
      norm: Histogram.describe('Lengths of embeddings, of a picture and its mirror image together.'),
      sameAngle: Histogram.describe('Degrees between the embeddings of pairs of one person.'),
      differentAngle: Histogram.describe('Degrees between those of different people.'),
    })
    .optional(),
});
export type EvaluationReport = z.infer<typeof EvaluationReport>;

/** Degrees; the angle of a cosine of 0.99. Models with random weights have 18 and more. */
const SAME_DIRECTION_DEGREES = 8.1;

/**
 * Whether all pictures of a set have nearly the same embedding: the training has collapsed, or has hardly begun. Then
 * accuracy is that of guessing. By the mean angle between different people.
 */
export function isHardlyToldApart({ histograms }: Pick<EvaluationReport, 'histograms'>): boolean {
  if (!histograms) return false;
  const { sum, counts } = histograms.differentAngle;
  const pairs = counts.reduce((total, number) => total + number, 0);
  return pairs > 0 && sum / pairs < SAME_DIRECTION_DEGREES;
}

export const TrainReport = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string(), uid: z.string(), attempt: z.int().min(0) }),
  startedAt: z.string(),
  finishedAt: z.string(),
  dataset: z.strictObject({
    path: z.string(),
    images: z.int().positive(),
    identities: z.int().positive(),
    badPictures: z
      .strictObject({
        count: z.int().min(0),
        listed: z.array(z.strictObject({ name: z.string(), reason: z.string() })),
      })
      .optional()
      .describe('Pictures that could not be used and were left out, of those that this attempt met.'),
  }),
  model: StoredFile.extend({
    path: z.string().describe('Relative to this report.'),
    parameters: z.int().positive(),
    embeddingDim: z.int().positive(),
  }),
  trainers: z.int().positive(),
  device: z.string(),
  precision: precision.optional().describe('Absent in reports of before.'),
  skippedSteps: z
    .int()
    .min(0)
    .optional()
    .describe('Of precision fp16: steps, over all attempts, that changed no weight, because a gradient overflowed.'),
  steps: z.int().positive(),
  resumedFromStep: z.int().min(0).nullable().describe('Of this attempt.'),
  attempts: z
    .array(AttemptMark)
    .optional()
    .describe(
      'The starts of which steps are in the model, at most 200, by ascending step. Absent in reports of before.',
    ),
  checkpoints: CheckpointStatistics.optional().describe('Of this attempt.'),
  trainSeconds: z.number().min(0).describe('Time in training steps, over all attempts.'),
  imagesPerSecond: z.number().min(0).describe('Over all trainers; training steps of all attempts.'),
  stageSeconds: StageSeconds.nullable()
    .optional()
    .describe('Where the time of a step goes on rank 0: the mean over the steps of all attempts, by stage.'),
  lossFirst: z.number(),
  lossLast: z.number().describe('Mean loss of the last steps: those of one epoch, at most 50.'),
  history: z
    .array(
      z.strictObject({
        step: z.int(),
        // Absent in reports of before, as time and sampleRate are.
        steps: z.int().positive().optional().describe('Steps of which it has the mean: those up to `step`.'),
        time: z.string().optional().describe('Of its end.'),
        epoch: z.number(),
        loss: z.number(),
        learningRate: z.number(),
        sampleRate: z.number().optional(),
        imagesPerSecond: z.number(),
      }),
    )
    .describe('Means over at most 1,000 intervals of the training, over all attempts.'),
  evaluations: z
    .array(EvaluationReport)
    .describe(
      'By ascending step, over all attempts; where there were more than some 1,000, the newest of each interval. ' +
        'Those of earlier attempts have the figures that curves show.',
    ),
  config: TrainerConfig,
});
export type TrainReport = z.infer<typeof TrainReport>;
