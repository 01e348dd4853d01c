/**
 * The trainer's configuration: `config.json`, written by the operator (or `facetrain run`) and mounted into every pod.
 *
 * It holds paths as the pod sees them and numbers that are already resolved: no defaults from a FaceTrainJob are left
 * to be decided here, so that two programs that read the same file do the same thing.
 */
import { z } from 'zod';

export const Margin = z.strictObject({
  type: z
    .enum(['cosface', 'arcface', 'combined'])
    .describe('cosface: cos θ − m3. arcface: cos(θ + m2). combined: cos(m1·θ + m2) − m3.'),
  m1: z.number().min(0.1).max(4).describe('Multiplicative angular margin (SphereFace); used by combined.'),
  m2: z
    .number()
    .min(0)
    .max(1.5)
    .describe('Additive angular margin in radians (ArcFace); used by arcface and combined.'),
  m3: z.number().min(0).max(1).describe('Additive cosine margin (CosFace); used by cosface and combined.'),
});
export type Margin = z.infer<typeof Margin>;

const Loss = z.strictObject({
  margin: Margin,
  scale: z.number().positive().max(512).describe('Logit scale s.'),
  sampleRate: z
    .number()
    .positive()
    .max(1)
    .describe('Partial FC sample rate r: the fraction of negative class centres in a step.'),
  interclassFilter: z
    .number()
    .min(-1)
    .max(1)
    .nullable()
    .describe('Negatives whose cosine exceeds this are ignored (arXiv 2203.15565); null: off.'),
});

const Sgd = z.strictObject({
  learningRate: z.number().positive(),
  momentum: z.number().min(0).lt(1),
  weightDecay: z.number().min(0).max(1),
  gradientClipNorm: z
    .number()
    .positive()
    .nullable()
    .describe('Largest L2 norm of the backbone gradient; class centres are not clipped. null: off.'),
  rowUpdate: z.enum(['lazy']).describe('lazy: only the sampled class centres move in a step.'),
});

const Schedule = z.strictObject({
  type: z.enum(['polynomial', 'constant']),
  power: z.number().positive().max(10),
  warmupEpochs: z
    .number()
    .min(0)
    .describe('The writer of this file does not know the dataset: steps = epochs × floor(images / globalBatchSize).'),
});

export const VerificationSet = z.strictObject({
  name: z
    .string()
    .regex(/^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/)
    .max(63),
  path: z.string().min(1).describe('An insightface .bin file: pickled (jpegs, issame).'),
});

export const TrainerConfig = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string().min(1), uid: z.string().min(1), attempt: z.int().min(0) }),
  dataset: z.strictObject({ path: z.string().min(1).describe('Folder with train.rec, train.idx and property.') }),
  model: z.strictObject({
    onnxPath: z.string().min(1).nullable().describe('The user’s own backbone; null: built from `backbone`.'),
    backbone: z.enum(['iresnet18', 'iresnet34', 'iresnet50', 'iresnet100', 'iresnet200', 'mobilefacenet']),
    embeddingDim: z.int().min(8).max(4096),
    width: z.int().min(1).max(16).describe('mobilefacenet: channel multiplier (2 is the reference’s).'),
    blocks: z
      .array(z.int().min(1).max(256))
      .length(4)
      .nullable()
      .describe('Blocks per stage; null: the backbone’s own.'),
    numClasses: z.int().positive().nullable().describe('Identities; null: taken from the dataset.'),
    channelOrder: z.enum(['rgb', 'bgr']),
  }),
  loss: Loss,
  optimizer: Sgd,
  schedule: Schedule,
  globalBatchSize: z.int().positive(),
  epochs: z.int().positive(),
  seed: z
    .int()
    .min(0)
    .max(2 ** 32 - 1),
  augment: z.strictObject({
    flip: z.boolean(),
    shift: z.int().min(0).max(16).describe('Largest random translation in pixels.'),
  }),
  loaderThreads: z.int().min(1).max(64),
  computeThreads: z
    .int()
    .min(1)
    .max(256)
    .nullable()
    .describe('null: the container’s CPUs divided by the ranks on this machine.'),
  device: z.enum(['auto', 'cpu', 'cuda']),
  rendezvousTimeoutSeconds: z.int().positive(),
  collectiveTimeoutSeconds: z.int().positive(),
  checkpoint: z.strictObject({
    directory: z.string().min(1),
    shared: z
      .boolean()
      .describe('Checkpoints that a job of another name wrote are gone on from; else they are refused.'),
    everyEpochs: z.number().positive().nullable().describe('Each interval that is not null counts by itself.'),
    everySteps: z.int().positive().nullable(),
    everySeconds: z.int().positive().nullable(),
    keep: z.int().positive().describe('Complete checkpoints kept; older ones are deleted.'),
  }),
  evaluation: z.strictObject({
    sets: z.array(VerificationSet).max(32),
    everyEpochs: z
      .number()
      .positive()
      .nullable()
      .describe('The end of training is always evaluated; null and null: nothing else is.'),
    everySteps: z.int().positive().nullable(),
  }),
  outputDirectory: z.string().min(1).describe('Receives model/backbone.onnx, train-report.json and train-report.html.'),
  progress: z.strictObject({ host: z.string(), port: z.int().min(0).max(65535) }),
});
export type TrainerConfig = z.infer<typeof TrainerConfig>;
