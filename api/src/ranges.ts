/** Allowed values of fields that a manifest and the `config.json` made from it both have: stated once, used by both. */
import { z } from 'zod';

export const BACKBONES = ['iresnet18', 'iresnet34', 'iresnet50', 'iresnet100', 'iresnet200', 'mobilefacenet'] as const;

export const backbone = z.enum(BACKBONES);
export const embeddingDim = z.int32().min(8).max(4096);
/** Multiplier of mobilefacenet's channels. */
export const width = z.int32().min(1).max(16);
/** Residual blocks in each of the four stages. */
export const blocks = z.array(z.int32().min(1).max(256)).length(4);

/** Multiplicative angular margin. */
export const m1 = z.number().min(0.1).max(4);
/** Additive angular margin, in radians. */
export const m2 = z.number().min(0).max(1.5);
/** Additive cosine margin. */
export const m3 = z.number().min(0).max(1);
/** AdaFace's margin. */
export const adaptiveMargin = z.number().min(0).max(1);
/** AdaFace's concentration of qualities. */
export const concentration = z.number().min(0).max(10);
/** Whether the target's gradient is that of the margin, or of its cosine alone; manifests have these names as words. */
export const gradient = z.enum(['exact', 'straightThrough']);
/** Scale s of the logits. */
export const scale = z.number().gt(0).max(512);
export const sampleRate = z.number().gt(0).max(1);
/** Changes of the sample rate in a training. */
export const MAX_SAMPLE_RATE_CHANGES = 16;
/** From which a sample rate holds; may be a fraction. */
export const fromEpoch = z.number().gt(0).max(100_000);
export const cosine = z.number().min(-1).max(1);

/** A share of pictures. */
export const agreement = z.number().min(0).max(1);

/** A share of a dataset's pictures. */
export const maxBadPictures = z.number().min(0).max(1);

/** Number of identities. */
export const numClasses = z.int().min(1).max(1_000_000_000);

export const learningRate = z.number().gt(0).max(100);
/** Largest L2 norm of a gradient; in a manifest 0 is "off", which config.json has as null. */
export const gradientClipNorm = z.number().min(0).max(1_000_000);
export const momentum = z.number().min(0).lt(1);
export const weightDecay = z.number().min(0).max(1);
export const power = z.number().gt(0).max(10);

export const warmupEpochs = z.number().min(0).max(1000);
/** Passes over the dataset. */
export const epochs = z.int32().min(1).max(100_000);
export const globalBatchSize = z.int32().min(1).max(1_000_000);
/** Pictures of a rank's batch that go through the backbone at once. */
export const microBatchSize = z.int32().min(1).max(1_000_000);
/** An interval in epochs; in a manifest 0 is "off", which config.json has as null. */
export const everyEpochs = z.number().min(0).max(1000);
/** Checkpoints that are kept. */
export const keep = z.int32().min(1).max(1000);
/** Checkpoints that are kept beside the newest, because they verify best. */
export const keepBest = z.int32().min(0).max(1000);

/** Of a change of a picture. */
export const probability = z.number().min(0).max(1);
/** Pixels. */
export const shift = z.int32().min(0).max(16);
/** 32 bits without a sign. */
/** Name of a model's output. */
export const modelOutput = z.string().min(1).max(256);
export const seed = z
  .int()
  .min(0)
  .max(2 ** 32 - 1);

/** Optimizers of class centres; manifests have these names as ROWS_OPTIMIZER_NAMES (row-state.ts). */
export const rowsOptimizer = z.enum(['sgd', 'adamw', 'adagrad']);
export type RowsOptimizer = z.infer<typeof rowsOptimizer>;
/** Where class centres are; `auto` until a trainer knows its device. */
export const rowsPlacement = z.enum(['device', 'host', 'auto']);
export type RowsPlacement = Exclude<z.infer<typeof rowsPlacement>, 'auto'>;
/** Which class centres an update changes: those of the step's sample, or all. */
export const rowUpdate = z.enum(['lazy', 'dense']);
export type RowUpdate = z.infer<typeof rowUpdate>;

/** In which the backbone's products are computed; manifests have these names in capital letters. */
export const precision = z.enum(['fp32', 'tf32', 'bf16', 'fp16']);
export type Precision = z.infer<typeof precision>;

/** Ranks of the largest gang. */
export const MAX_REPLICAS = 4096;
export const replicas = z.int32().min(1).max(MAX_REPLICAS);
/** GPUs of the largest machines with NVLink between all (DGX-2, HGX with 16). */
export const ranksPerPod = z.int32().min(1).max(16);
export const loaderThreads = z.int32().min(1).max(64);
/** Of a model's input, in units of 8-bit pixels; one number for all channels, or one for each. */
export const inputMean = z.array(z.number().min(-1e6).max(1e6)).min(1).max(4);
export const inputStd = z.array(z.number().min(1e-6).max(1e6)).min(1).max(4);
/** Height or width of a model's input, in pixels. */
export const inputSide = z
  .int32()
  .min(1)
  .max(1 << 14);
export const computeThreads = z.int().min(1).max(256);

/** A TCP port. */
export const port = z.int32().min(1).max(65_535);

/** Names a set in reports, metrics and the status. */
export const setName = z
  .string()
  .min(1)
  .max(63)
  .regex(/^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/, 'letters, digits, "-", "_" and "."');
/** Verification sets of a job. */
export const MAX_SETS = 32;
/** Damaged checkpoints that a program or a status names, the newest ones. */
export const MAX_SET_ASIDE = 3;
/** Longest text about one of them, in characters. */
export const MAX_SET_ASIDE_REASON = 300;
/** The name under which a damaged checkpoint is kept. */
export const setAsideFolder = z
  .string()
  .max(63)
  .regex(/^damaged-[a-z0-9.-]+$/, 'damaged-, lower-case letters, digits, "-" and "."');

export const calibrationImages = z.int32().min(1).max(100_000);
/** Of a set that `facetrain dataset pairs` draws; it also takes only multiples of 20. */
export const verificationPairs = z.int32().min(20).max(1_000_000);
export const searchRounds = z.int32().min(0).max(100);
export const searchCandidates = z.int32().min(2).max(10_000);
export const searchLower = z.number().min(0.01).max(1);
export const searchUpper = z.number().min(1).max(16);
/** A share of multiply-accumulates. */
export const searchBudget = z.number().min(0).max(1);
export const accuracyDrop = z.number().min(0).max(1);
