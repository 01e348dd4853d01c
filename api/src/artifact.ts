/** What a quantized model is published with: `report.json` for people and dashboards, `manifest.json` for programs. */
import { z } from 'zod';
import { StoredFile } from './checkpoint-manifest.ts';

const Accuracy = z.strictObject({
  accuracy: z.number().min(0).max(1),
  std: z.number().min(0),
  threshold: z.number(),
  tarAtFar: z.record(z.string(), z.number()),
});

export const Comparison = z.strictObject({
  set: z.string(),
  pairs: z.int().positive(),
  fp32: Accuracy,
  int7: Accuracy,
  drop: z.number().describe('fp32 − int7 accuracy.'),
  meanCosine: z.number().describe('Between the FP32 and INT7 embeddings of the set’s pictures.'),
});
export type Comparison = z.infer<typeof Comparison>;

export const Metrics = z.strictObject({
  meanCosine: z
    .number()
    .describe(
      'Between FP32 and INT7 embeddings: over the evaluation sets’ pictures, or the calibration’s where there are no sets.',
    ),
  percentile1Cosine: z.number().describe('The worst picture in a hundred.'),
  accuracyDrop: z.number().nullable().describe('Largest over the sets; null without sets.'),
  comparisons: z.array(Comparison),
});
export type Metrics = z.infer<typeof Metrics>;

export const Gate = z.strictObject({
  maxAccuracyDrop: z.number().nullable(),
  minMeanCosine: z.number().nullable(),
  passed: z.boolean(),
  failures: z.array(z.string()).describe('A sentence for each bound that was missed.'),
});
export type Gate = z.infer<typeof Gate>;

export const QuantizedLayer = z.strictObject({
  name: z.string(),
  kind: z.enum(['conv', 'fc', 'pointwise', 'add', 'pool']),
  bits: z
    .union([z.literal(7), z.literal(8), z.literal(32)])
    .describe(
      'Of the layer’s input operand: 7 where it is multiplied by weights, 8 where it is only added or mapped, 32 where it stays real.',
    ),
  macs: z.int().min(0).describe('Multiplications of one picture.'),
  cosineStart: z
    .number()
    .describe('Output against FP32 with scales from the maximum, mean over the calibration pictures.'),
  cosine: z.number().describe('The same after the search.'),
  inputScale: z.number().nullable(),
  saturation: z
    .number()
    .min(0)
    .max(1)
    .describe('Share of the input’s values that were clipped, over the calibration pictures.'),
  weightSumMax: z
    .int()
    .min(0)
    .nullable()
    .describe('Largest sum of |weight| over one output channel: 63 × it bounds the accumulator.'),
});
export type QuantizedLayer = z.infer<typeof QuantizedLayer>;

/** What a quantization found. A function of its inputs, to the byte, so that doing it twice publishes once: it holds no times. */
export const QuantizeReport = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string(), uid: z.string(), attempt: z.int().min(0) }),
  source: StoredFile.extend({ channelOrder: z.enum(['rgb', 'bgr']), parameters: z.int().min(0) }),
  model: StoredFile.describe('model.int7.onnx.'),
  calibration: z.strictObject({
    images: z.int().positive(),
    seed: z.int().min(0),
    sha256: z.string().describe('Of the decoded pictures, in order.'),
  }),
  search: z.strictObject({
    rounds: z.int(),
    candidates: z.int(),
    lower: z.number(),
    upper: z.number(),
    equalize: z.boolean(),
    biasCorrection: z.boolean(),
  }),
  layers: z.array(QuantizedLayer),
  metrics: Metrics,
  gate: Gate,
});
export type QuantizeReport = z.infer<typeof QuantizeReport>;

/** `scales.json`: real = integer × scale (the reciprocal of EasyQuant’s S). */
export const ScalesDocument = z.strictObject({
  schemaVersion: z.literal(1),
  tensors: z.record(
    z.string(),
    z.strictObject({
      scale: z.number().positive(),
      limit: z.union([z.literal(63), z.literal(127)]).describe('Largest magnitude of its integers.'),
    }),
  ),
  weights: z.record(z.string(), z.array(z.number().positive())).describe('By layer, one for each output channel.'),
});
export type ScalesDocument = z.infer<typeof ScalesDocument>;

export const ArtifactManifest = z.strictObject({
  schemaVersion: z.literal(1),
  kind: z.literal('facetrain-int7'),
  source: StoredFile.extend({ channelOrder: z.enum(['rgb', 'bgr']) }),
  calibration: z.strictObject({ images: z.int().positive(), seed: z.int().min(0), sha256: z.string() }),
  metrics: Metrics,
  gate: Gate,
  files: z.record(z.string(), StoredFile).describe('Every other file of the artifact by its name.'),
});
export type ArtifactManifest = z.infer<typeof ArtifactManifest>;
