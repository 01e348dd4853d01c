/**
 * The trainer's configuration: `config.json`, written by the planner and mounted into every pod.
 *
 * It holds paths as the pod sees them, and all defaults are resolved. So every program that reads the file does the
 * same.
 */
import { z } from 'zod';
import {
  accuracyDrop,
  adaptiveMargin,
  backbone,
  blocks,
  computeThreads,
  concentration,
  cosine,
  embeddingDim,
  epochs,
  everyEpochs,
  fromEpoch,
  globalBatchSize,
  gradient,
  gradientClipNorm,
  inputMean,
  inputStd,
  keep,
  keepBest,
  loaderThreads,
  MAX_SAMPLE_RATE_CHANGES,
  MAX_SETS,
  m1,
  m2,
  m3,
  maxBadPictures,
  microBatchSize,
  modelOutput,
  momentum,
  numClasses,
  power,
  precision,
  probability,
  rowsOptimizer,
  rowsPlacement,
  rowUpdate,
  sampleRate,
  scale,
  seed,
  setName,
  shift,
  warmupEpochs,
  weightDecay,
  width,
} from './ranges.ts';
import { ObjectStorePlace } from './storage.ts';

/** Here "off" is null, so 0 is refused. */
const positive = <T extends z.ZodNumber>(range: T) => range.gt(0);

/** The margin of the logits. All parameters are set; those that the type does not use change nothing. */
export const Margin = z.strictObject({
  type: z
    .enum(['cosface', 'arcface', 'combined', 'sphereface', 'adaface'])
    .describe(
      'cosface: cos θ − m3. arcface: cos(θ + m2). combined: cos(m1·θ + m2) − m3. sphereface: (−1)^k cos(m1·θ) − 2k, ' +
        'k = ⌊m1·θ / π⌋. adaface: cos(θ − m·q) − (m + m·q), with q from the length of the feature.',
    ),
  m1: m1.describe('Multiplicative angular margin; used by combined and sphereface.'),
  m2: m2.describe('Additive angular margin in radians (ArcFace); used by arcface and combined.'),
  m3: m3.describe('Additive cosine margin (CosFace); used by cosface and combined.'),
  // With defaults, because reports of former versions have a configuration without them.
  m: adaptiveMargin.default(0).describe('Margin of adaface.'),
  h: concentration.default(0).describe('Concentration of adaface: q is h deviations from the mean length, at most 1.'),
});
export type Margin = z.infer<typeof Margin>;

const Loss = z.strictObject({
  margin: Margin,
  gradient: gradient
    .default('exact')
    .describe('straightThrough: the gradient of the target is that of cos θ, without the margin.'),
  scale: scale.describe('Scale s of the logits.'),
  sampleRate: sampleRate.describe(
    'Sample rate r of Partial FC: the fraction of negative class centres scored in a step.',
  ),
  sampleRateChanges: z
    .array(z.strictObject({ fromEpoch, rate: sampleRate }))
    .max(MAX_SAMPLE_RATE_CHANGES)
    .default([])
    .describe('Other sample rates, each from an epoch on, by ascending epoch.'),
  interclassFilter: cosine
    .nullable()
    .describe('Negatives whose cosine exceeds this are ignored (arXiv 2203.15565); null: off.'),
  rows: z
    .strictObject({
      precision: z.enum(['fp32', 'bf16']).describe('Type of class centres and their momentum.'),
      optimizer: rowsOptimizer.default('sgd').describe('Of the class centres.'),
      placement: rowsPlacement
        .default('device')
        .describe('Of class centres and what their optimizer keeps. auto: on the host where a GPU has no room.'),
      learningRate: z
        .number()
        .positive()
        .nullable()
        .default(null)
        .describe('Of the class centres, in place of optimizer.learningRate; null: the same.'),
    })
    .default({ precision: 'fp32', optimizer: 'sgd', placement: 'device', learningRate: null }),
});

const Sgd = z.strictObject({
  // Without the manifest's upper bound: a larger rate is how a loss becomes infinite in a test.
  learningRate: z.number().positive(),
  momentum,
  weightDecay,
  gradientClipNorm: positive(gradientClipNorm)
    .nullable()
    .describe('Largest L2 norm of the backbone gradient; class centres are not clipped. null: off.'),
  rowUpdate: rowUpdate.describe('lazy: only the sampled class centres change in a step; dense: all.'),
});

const Schedule = z.strictObject({
  type: z.enum(['polynomial', 'constant']),
  power,
  warmupEpochs: warmupEpochs.describe(
    'In epochs, as the planner does not know the dataset: steps = epochs × floor(images / globalBatchSize).',
  ),
});

export const VerificationSet = z.strictObject({
  name: setName,
  path: z.string().min(1).describe('An insightface .bin file: pickled (pictures, issame).'),
  groups: z.string().min(1).optional().describe('A text file with the group of each pair, a line each; absent: none.'),
});
export type VerificationSet = z.infer<typeof VerificationSet>;

/** What a model's file reads: (pixel − mean) / std. */
export const ModelInput = z.strictObject({ mean: inputMean, std: inputStd });
export type ModelInput = z.infer<typeof ModelInput>;

export const TrainerConfig = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string().min(1), uid: z.string().min(1), attempt: z.int().min(0) }),
  dataset: z.strictObject({ path: z.string().min(1).describe('Folder of the dataset.'), maxBadPictures }),
  model: z.strictObject({
    onnxPath: z.string().min(1).nullable().describe('The user’s own backbone; null: built from `backbone`.'),
    onnxOutput: modelOutput.optional().describe('The output of that file that is the embedding; absent: the only one.'),
    backbone,
    embeddingDim: embeddingDim.describe('Of a built backbone; with onnxPath the graph decides.'),
    width: width.describe('mobilefacenet: multiplier of the channels.'),
    blocks: blocks.nullable().describe('Residual blocks in each stage; null: as the backbone’s name defines.'),
    numClasses: numClasses.nullable().describe('Number of identities; null: that of the dataset.'),
    channelOrder: z.enum(['rgb', 'bgr']),
    input: ModelInput.nullable().default(null).describe('Of the user’s own backbone; null: as its file says it.'),
    // With defaults, because reports of former versions have a configuration without them.
    checkpointActivations: z.boolean().default(false),
    syncBatchNorm: z.boolean().default(false),
  }),
  loss: Loss,
  optimizer: Sgd,
  schedule: Schedule,
  globalBatchSize,
  microBatchSize: microBatchSize
    .nullable()
    .default(null)
    .describe('Pictures of a rank’s batch that go through the backbone at once; null: all of them.'),
  epochs,
  seed,
  augment: z.strictObject({
    flip: z.boolean(),
    shift: shift.describe('Largest random translation in pixels.'),
    // With defaults, because reports of former versions have a configuration without them.
    cropProbability: probability.default(0),
    lowResolutionProbability: probability.default(0),
    colorJitterProbability: probability.default(0),
  }),
  // With a default, as precision.
  deterministic: z.boolean().default(true),
  loaderThreads,
  computeThreads: computeThreads
    .nullable()
    .describe('null: the container’s CPUs divided by the ranks on this machine.'),
  device: z.enum(['auto', 'cpu', 'cuda']),
  // With a default, because reports of former versions have a configuration without it.
  precision: z
    .enum(['auto', ...precision.options])
    .default('auto')
    .describe('auto: that of the checkpoint that training resumes from; without one, by the device.'),
  rendezvousTimeoutSeconds: z.int().positive(),
  collectiveTimeoutSeconds: z.int().positive(),
  checkpoint: z.strictObject({
    directory: z.string().min(1).describe('A folder; with `store` the URI of that, for messages.'),
    // With defaults, because reports of former versions have a configuration without them.
    store: ObjectStorePlace.nullable().default(null).describe('A prefix of an object store, in place of the folder.'),
    shared: z
      .boolean()
      .describe('true: training continues from checkpoints of a job of another name; false: they are refused.'),
    everyEpochs: positive(everyEpochs).nullable().describe('Each interval that is not null applies by itself.'),
    everySteps: z.int().positive().nullable(),
    everySeconds: z.int().positive().nullable(),
    keep: keep.describe('Complete checkpoints of this job that are kept; its older ones are deleted.'),
    // With a default, as precision.
    memoryDirectory: z
      .string()
      .min(1)
      .nullable()
      .default(null)
      .describe('A folder in memory in which ranks keep the state of their last two steps; null: nowhere.'),
    keepBest: keepBest.default(0).describe('Those of the best verification accuracy that are kept beside them.'),
  }),
  evaluation: z.strictObject({
    sets: z.array(VerificationSet).max(MAX_SETS),
    everyEpochs: positive(everyEpochs)
      .nullable()
      .describe('Both intervals null: only the end of training is evaluated, as it always is.'),
    everySteps: z.int().positive().nullable(),
    gate: z
      .strictObject({
        maxTarDrop: accuracyDrop.optional(),
        maxGroupAccuracyDrop: accuracyDrop.optional(),
        maxGroupTarDrop: accuracyDrop.optional(),
      })
      .optional()
      .describe(
        'Bounds of the quantization that follows, where it is judged on these sets: sets without the pairs for them ' +
          'are refused before the training, and not after it.',
      ),
  }),
  outputDirectory: z
    .string()
    .min(1)
    .describe(
      'Receives model/backbone.onnx, train-report.json and train-report.html; with `outputStore` its URI, for ' +
        'messages.',
    ),
  outputStore: ObjectStorePlace.nullable()
    .default(null)
    .describe('A prefix of an object store, in place of the folder.'),
  progress: z.strictObject({ host: z.string(), port: z.int().min(0).max(65535) }),
});
export type TrainerConfig = z.infer<typeof TrainerConfig>;
