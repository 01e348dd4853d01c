/**
 * `manifest.json` of a checkpoint. It is written last: a folder without one is incomplete and is ignored.
 *
 * Class centres are addressed by their global row, so any number of ranks can read a checkpoint.
 *
 * Version 2 is written and read, version 1 only read. What changes later (docs/decisions/0029):
 * - A reader ignores fields that it does not know, so a writer may add some that change nothing for it.
 * - A writer names in `requires` what a reader must know to continue the training. A reader that does not know a name
 *   refuses the checkpoint.
 * - Another `schemaVersion` is refused.
 */
import { z } from 'zod';
import { StageSeconds } from './step-stages.ts';

const digest = z.string().regex(/^[0-9a-f]{64}$/);

/** SHA-256 and size of a file. */
export const StoredFile = z.strictObject({
  sha256: digest,
  bytes: z.int().min(0),
});
export type StoredFile = z.infer<typeof StoredFile>;

/** The same, for places where later versions may add something. */
const stored = z.object(StoredFile.shape);

/** Types of the numbers in a checkpoint, little-endian. */
export const StoredType = z.enum(['float32', 'bfloat16']);
export type StoredType = z.infer<typeof StoredType>;

/** Names in `requires` that this version knows. */
export const CHECKPOINT_FEATURES: readonly string[] = ['retired'];

/** The scale of the loss in FP16 (native/train/loss_scale.h). */
export const LossScale = z.object({
  value: z.number().positive(),
  goodSteps: z.int().min(0).describe('Steps since the scale changed, or since one was skipped.'),
  skippedSteps: z.int().min(0).describe('Steps, over all attempts, that changed no weight: a gradient overflowed.'),
});
export type LossScale = z.infer<typeof LossScale>;

/** Running values of the margin AdaFace (NormStatistics of native/pfc/margin.h). */
export const NormStatistics = z.object({
  normMean: z.number().positive(),
  normDeviation: z.number().min(0),
});
export type NormStatistics = z.infer<typeof NormStatistics>;

/** Points of a curve, and evaluations of it: so many at most are kept of a training. */
export const MOST_CURVE_POINTS = 1000;

/** Means over steps that follow one another. */
export const CurveInterval = z.object({
  step: z.int().positive().describe('Steps done at its end.'),
  steps: z.int().positive().describe('Its steps.'),
  time: z.string().describe('Of its end.'),
  loss: z.number(),
  learningRate: z.number(),
  sampleRate: z.number(),
  seconds: z.number().min(0).describe('Of all its steps.'),
});
export type CurveInterval = z.infer<typeof CurveInterval>;

/** A start of the trainers of which steps are in the training: those up to the next one's. */
export const AttemptMark = z.object({
  job: z.string().describe('Its name.'),
  attempt: z.int().min(0).describe('Trainers that are started again in their pods have the number of before.'),
  startedAt: z.string(),
  fromStep: z.int().min(0).describe('Steps done before.'),
  trainers: z.int().positive(),
  device: z.string(),
});
export type AttemptMark = z.infer<typeof AttemptMark>;

/** What curves show of an evaluation. */
export const CurveEvaluation = z.object({
  set: z.string(),
  step: z.int().min(0),
  accuracy: z.number().min(0).max(1),
  std: z.number().optional(),
  threshold: z.number(),
  pairs: z.int().positive(),
  tarAtFar: z.record(z.string(), z.number()),
});
export type CurveEvaluation = z.infer<typeof CurveEvaluation>;

/** A training up to a step, over all attempts. Steps that were done again are in it once. */
export const Curves = z.object({
  attempts: z.array(AttemptMark).describe('The newest 200, by ascending step.'),
  intervals: z
    .array(CurveInterval)
    .describe('At most 1,000, of equal length but for the last one, and for what a version of before did not record.'),
  evaluations: z
    .array(CurveEvaluation)
    .describe('By ascending step, at most some 1,000. That of a checkpoint’s own step is in evaluations.json.'),
});
export type Curves = z.infer<typeof Curves>;

/** What both versions have. */
const common = {
  job: z.object({ name: z.string(), uid: z.string() }),
  time: z.string(),
  step: z.int().min(0).describe('Steps done; counted from 0, this is the number of the next step.'),
  stepsPerEpoch: z.int().positive(),
  worldSize: z.int().positive().describe('Ranks that wrote it; any number may read it.'),
  seed: z.int().min(0),
  numClasses: z.int().positive(),
  embeddingDim: z.int().positive(),
  /** What a resumed run needs for a report on the whole training. */
  history: z.object({
    lossFirst: z.number().nullable(),
    trainSeconds: z.number().min(0),
    recentLosses: z
      .array(z.number())
      .max(50)
      .describe('Losses of the last steps, oldest first, for lossLast of a run that resumes shortly before its end.'),
    stages: z
      .object({ steps: z.int().positive(), seconds: StageSeconds })
      .optional()
      .catch(undefined)
      .describe('Where the time of a step went on rank 0: the mean over so many steps.'),
  }),
};

/**
 * Version 1. Each file of rows holds the tensors `weight` and `momentum`, both [rows, embeddingDim]. The backbone's
 * file holds every trained or tracked tensor of the graph under its ONNX name, and its momentum under
 * `momentum/<name>`.
 */
export const CheckpointManifestV1 = z.strictObject({
  schemaVersion: z.literal(1),
  ...common,
  backbone: StoredFile.extend({ file: z.string() }),
  rows: z
    .array(StoredFile.extend({ file: z.string(), firstRow: z.int().min(0), rows: z.int().positive() }))
    .describe('In row order, without gaps or overlaps.'),
});
export type CheckpointManifestV1 = z.infer<typeof CheckpointManifestV1>;

const name = z.string().min(1).max(64);

/** A tensor of class centres: the centres, or a part of their optimizer's state. */
const RowTensor = z.object({
  name: name.describe('weight, or what the optimizer keeps for each row: momentum.'),
  dtype: StoredType,
  columns: z.int().positive().describe('Numbers in a row.'),
});

/** Rows that follow one another, of one block. */
const RowBlock = z.object({
  firstRow: z.int().min(0),
  rows: z.int().positive(),
  offset: z.int().min(0).describe('Of its first byte in the file.'),
  sha256: digest.describe('Of its bytes: its rows of each tensor, one tensor after the other.'),
});
export type RowBlock = z.infer<typeof RowBlock>;

const RowFile = z.object({
  file: z.string(),
  bytes: z.int().min(0),
  header: stored.describe('The first bytes of the file, of which safetensors need no other.'),
  blocks: z.array(RowBlock).min(1),
});
export type RowFile = z.infer<typeof RowFile>;

/** Version 2. */
export const CheckpointManifest = z.object({
  schemaVersion: z.literal(2),
  requires: z.array(name).describe('What a reader must know to continue the training.'),
  ...common,
  precision: name
    .optional()
    .describe(
      'In which the products of the backbone were computed, fp32 to fp16 (ranges.ts). Absent: fp32, with ' +
        'convolutions in tf32 on a GPU.',
    ),
  lossScale: LossScale.optional().describe('Of precision fp16.'),
  margin: z.record(name, z.number()).optional().describe('Running values of the margin; of AdaFace NormStatistics.'),
  retired: stored
    .extend({ file: z.string(), count: z.int().positive() })
    .optional()
    .describe('RetiredClasses: identities that were removed or merged. Their class ids are not used again.'),
  classesAdded: z
    .boolean()
    .optional()
    .describe('Class centres were added since training began, so the dataset may have another number of pictures.'),
  settings: z
    .record(name, z.string())
    .optional()
    .describe('How the class centres were trained, by fields of the job: for people, who may change them on the way.'),
  bf16: z
    .array(name)
    .optional()
    .describe(
      'How the CPUs of the ranks that wrote it multiply bfloat16: amx, avx512bf16, emulated. Only of precision bf16 ' +
        'on CPUs; a training that goes on on others gives other bits.',
    ),
  labels: z
    .object({
      count: z.int().positive(),
      sha256: digest.describe('Of the names of the folders of labels 0 to count - 1, each with a zero byte after it.'),
    })
    .optional()
    .describe('Of a dataset that is an image folder: which label is whose.'),
  backbone: stored.extend({
    file: z
      .string()
      .describe('Tensors by their ONNX names; the optimizer’s state of a tensor is <name of the state>/<its name>.'),
    dtype: StoredType.describe('Of its tensors.'),
    optimizer: name,
    state: z.array(z.object({ name, dtype: StoredType })).describe('What the optimizer keeps for each parameter.'),
  }),
  rows: z.object({
    optimizer: name,
    tensors: z.array(RowTensor).min(1),
    blockRows: z
      .int()
      .positive()
      .describe(
        'Blocks begin at the multiples of this row. A block of which two ranks had parts is listed in these parts.',
      ),
    files: z.array(RowFile).min(1).describe('One of each rank with class centres; blocks in row order, without gaps.'),
  }),
  // Only reports read them: no reason to refuse a checkpoint.
  curves: Curves.optional().catch(undefined),
});
export type CheckpointManifest = z.infer<typeof CheckpointManifest>;

/** The manifest of a checkpoint that this version can read. */
export const AnyCheckpointManifest = z.discriminatedUnion('schemaVersion', [CheckpointManifestV1, CheckpointManifest]);
export type AnyCheckpointManifest = z.infer<typeof AnyCheckpointManifest>;

/** Bytes of one number of a type. */
export const BYTES_OF: Readonly<Record<StoredType, number>> = { float32: 4, bfloat16: 2 };

/**
 * `evaluations.json` beside the checkpoints: verification accuracies after the steps of which there is one. The
 * evaluation of a step follows its checkpoint, which never changes.
 */
export const CheckpointEvaluations = z.object({
  schemaVersion: z.literal(1),
  evaluations: z.array(
    z.object({
      job: z.string().describe('Name of the job.'),
      step: z.int().min(0),
      time: z
        .string()
        .optional()
        .describe(
          'That of the checkpoint, as its manifest has it: another training may have had the same name and step. ' +
            'Versions of before did not write it: any checkpoint of that job and step is meant.',
        ),
      sets: z
        .array(CurveEvaluation.omit({ step: true }).partial({ threshold: true, pairs: true, tarAtFar: true }))
        .min(1)
        .describe('Versions of before wrote names and accuracies only.'),
    }),
  ),
});
export type CheckpointEvaluations = z.infer<typeof CheckpointEvaluations>;

/** An identity that is no longer trained. Its class centre is zero. */
export const RetiredClass = z.object({
  class: z.int().min(0),
  into: z.int().min(0).nullable().describe('The class that it was merged into; null: it was removed.'),
});
export type RetiredClass = z.infer<typeof RetiredClass>;

/** The file that `retired` of a manifest names, by ascending class. */
export const RetiredClasses = z.array(RetiredClass);
