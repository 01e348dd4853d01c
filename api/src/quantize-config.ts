/**
 * The quantizer's configuration: `config.json` of a QuantizeJob's pod, written by the operator (or the command line).
 *
 * Like the trainer's, it holds resolved paths and numbers; nothing is left to default here. Credentials are never in it:
 * they come through the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) from a Secret.
 */
import { z } from 'zod';
import { VerificationSet } from './trainer-config.ts';

export const QuantizeConfig = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string().min(1), uid: z.string().min(1), attempt: z.int().min(0) }),
  model: z.strictObject({
    path: z.string().min(1).describe('The FP32 backbone, an ONNX file.'),
    channelOrder: z.enum(['rgb', 'bgr']).describe('What the model’s input expects.'),
  }),
  calibration: z.strictObject({
    datasetPath: z.string().min(1).describe('Folder with train.rec, train.idx and property.'),
    images: z.int().min(1).max(100_000),
    seed: z
      .int()
      .min(0)
      .max(2 ** 32 - 1)
      .describe('Which pictures are drawn is a function of this and of nothing else.'),
  }),
  search: z.strictObject({
    rounds: z
      .int()
      .min(0)
      .max(100)
      .describe('Rounds over all weights, then all activations; 0: scales from the maximum.'),
    candidates: z.int().min(2).max(10_000).describe('Candidates a scale and round.'),
    lower: z
      .number()
      .positive()
      .max(1)
      .describe('Smallest candidate as a multiple of the initial scale (alpha in the paper).'),
    upper: z
      .number()
      .min(1)
      .max(16)
      .describe('Largest candidate as a multiple of the initial scale (beta in the paper).'),
    equalize: z
      .boolean()
      .describe('Balance the channels of activations against the weights that read them, before the search.'),
    biasCorrection: z
      .boolean()
      .describe('Remove the mean error of every output channel by its bias, after the search.'),
  }),
  evaluation: z.strictObject({ sets: z.array(VerificationSet).max(32) }),
  gate: z.strictObject({
    maxAccuracyDrop: z
      .number()
      .min(0)
      .max(1)
      .nullable()
      .describe('Largest FP32 − INT7 accuracy on any evaluation set; null: not checked.'),
    minMeanCosine: z
      .number()
      .min(-1)
      .max(1)
      .nullable()
      .describe('Smallest mean cosine between FP32 and INT7 embeddings; null: not checked.'),
  }),
  publish: z
    .strictObject({
      uri: z
        .string()
        .regex(/^(file|s3):\/\//)
        .describe('file:///folder or s3://bucket/prefix.'),
      endpoint: z.url().nullable().describe('An S3 server other than AWS; null: AWS.'),
      region: z.string().min(1).nullable(),
      forcePathStyle: z
        .boolean()
        .describe('Bucket in the path, not in the host name: most S3 servers other than AWS want it.'),
    })
    .nullable()
    .describe('null: the files stay in outputDirectory.'),
  outputDirectory: z
    .string()
    .min(1)
    .describe('Receives model.int7.onnx, scales.json, report.json, report.html, and manifest.json last.'),
  computeThreads: z.int().min(1).max(256).nullable().describe('null: the container’s CPUs.'),
  progress: z
    .strictObject({ host: z.string(), port: z.int().min(0).max(65535) })
    .nullable()
    .describe('null: no server.'),
});
export type QuantizeConfig = z.infer<typeof QuantizeConfig>;
