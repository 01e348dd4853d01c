/**
 * `manifest.json` of a checkpoint, written last: a directory without one is garbage.
 *
 * Class centres are addressed by their global row, so a checkpoint fits any number of ranks. Each rows file holds the
 * tensors `weight` and `momentum`, both [rows, embeddingDim]; the backbone's holds every trained or tracked tensor of the
 * graph under its ONNX name and each one's momentum under `momentum/<name>`.
 */
import { z } from 'zod';

export const StoredFile = z.strictObject({
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  bytes: z.int().min(0),
});
export type StoredFile = z.infer<typeof StoredFile>;

export const CheckpointManifest = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string(), uid: z.string() }),
  time: z.string(),
  step: z.int().min(0).describe('Steps that are in it: training goes on with this step’s number.'),
  stepsPerEpoch: z.int().positive(),
  worldSize: z.int().positive().describe('Ranks that wrote it; any number may read it.'),
  seed: z.int().min(0),
  numClasses: z.int().positive(),
  embeddingDim: z.int().positive(),
  backbone: StoredFile.extend({ file: z.string() }),
  rows: z
    .array(StoredFile.extend({ file: z.string(), firstRow: z.int().min(0), rows: z.int().positive() }))
    .describe('In row order, without gaps or overlaps.'),
  /** Loss of the first step of the run and so on: what a resumed run needs to report on the whole. */
  history: z.strictObject({
    lossFirst: z.number().nullable(),
    trainSeconds: z.number().min(0),
    recentLosses: z
      .array(z.number())
      .max(50)
      .describe('Of the last steps, oldest first: a run that resumes near its end still has its last mean.'),
  }),
});
export type CheckpointManifest = z.infer<typeof CheckpointManifest>;
