/**
 * `manifest.json` of a checkpoint. It is written last: a folder without one is incomplete and is ignored.
 *
 * Class centres are addressed by their global row, so any number of ranks can read a checkpoint. Each file of rows
 * holds the tensors `weight` and `momentum`, both [rows, embeddingDim]. The backbone's file holds every trained or
 * tracked tensor of the graph under its ONNX name, and its momentum under `momentum/<name>`.
 */
import { z } from 'zod';

/** SHA-256 and size of a file. */
export const StoredFile = z.strictObject({
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  bytes: z.int().min(0),
});
export type StoredFile = z.infer<typeof StoredFile>;

export const CheckpointManifest = z.strictObject({
  schemaVersion: z.literal(1),
  job: z.strictObject({ name: z.string(), uid: z.string() }),
  time: z.string(),
  step: z.int().min(0).describe('Steps done; counted from 0, this is the number of the next step.'),
  stepsPerEpoch: z.int().positive(),
  worldSize: z.int().positive().describe('Ranks that wrote it; any number may read it.'),
  seed: z.int().min(0),
  numClasses: z.int().positive(),
  embeddingDim: z.int().positive(),
  backbone: StoredFile.extend({ file: z.string() }),
  rows: z
    .array(StoredFile.extend({ file: z.string(), firstRow: z.int().min(0), rows: z.int().positive() }))
    .describe('In row order, without gaps or overlaps.'),
  /** What a resumed run needs for a report on the whole training. */
  history: z.strictObject({
    lossFirst: z.number().nullable(),
    trainSeconds: z.number().min(0),
    recentLosses: z
      .array(z.number())
      .max(50)
      .describe('Losses of the last steps, oldest first, for lossLast of a run that resumes shortly before its end.'),
  }),
});
export type CheckpointManifest = z.infer<typeof CheckpointManifest>;
