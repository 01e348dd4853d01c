/**
 * Writes a checkpoint: every rank its own class centres, rank 0 also the backbone. Rank 0 writes the manifest when
 * every file of every rank is on disk, so a process that ends at any moment leaves a complete checkpoint or none.
 */
import { join } from 'node:path';
import type { CheckpointManifest } from '@facetrain/api';
import type { BackboneState, TrainingSessionContract } from '@facetrain/native';
import { gatherJson } from '../program/gather-json.ts';
import { writeAtomically } from '../storage/atomic-files.ts';
import { checkpointDirectory, manifestPath, prune } from './directory.ts';
import { type FloatTensor, writeSafetensors } from './safetensors.ts';

/** Most rows in a file. With 512 values each, weights and momentum take 256 MiB. */
const BLOCK_ROWS = 65_536;

export interface SaveOptions {
  /** The job's folder of checkpoints. */
  root: string;
  /** Complete checkpoints to keep, this one included. */
  keep: number;
  job: CheckpointManifest['job'];
  /** Steps done. There must be no complete checkpoint of this step. */
  step: number;
  seed: number;
  numClasses: number;
  history: CheckpointManifest['history'];
  time: Date;
  rank: number;
  worldSize: number;
  /** Called after every file. */
  onFile?: () => void;
}

/**
 * To be called on every rank after the same step.
 * @throws FacetrainError DiskFull or StorageFailed
 */
export async function saveCheckpoint(session: TrainingSessionContract, options: SaveOptions): Promise<void> {
  const { root, step, rank, onFile } = options;
  const directory = checkpointDirectory(root, step);

  const rows: CheckpointManifest['rows'] = [];
  const end = session.rowRange.firstRow + session.rowRange.rows;
  for (let firstRow = session.rowRange.firstRow; firstRow < end; firstRow += BLOCK_ROWS) {
    const block = await session.saveRows(firstRow, Math.min(BLOCK_ROWS, end - firstRow));
    const dims = [block.rows, session.dim];
    const file = `rows-${String(firstRow).padStart(10, '0')}.safetensors`;
    const stored = await writeSafetensors(join(directory, file), {
      weight: { dims, data: block.weight },
      momentum: { dims, data: block.momentum },
    });
    rows.push({ file, firstRow, rows: block.rows, ...stored });
    onFile?.();
  }
  // All ranks have the same backbone, running statistics included, so one writes it.
  const file = 'backbone.safetensors';
  const backbone =
    rank === 0
      ? { file, ...(await writeSafetensors(join(directory, file), flatten(await session.saveBackbone()))) }
      : undefined;
  onFile?.();

  const everyRow = (await gatherJson(session, rows)).flat();
  if (backbone) {
    const manifest: CheckpointManifest = {
      schemaVersion: 1,
      job: options.job,
      time: options.time.toISOString(),
      step,
      stepsPerEpoch: session.stepsPerEpoch,
      worldSize: options.worldSize,
      seed: options.seed,
      numClasses: options.numClasses,
      embeddingDim: session.dim,
      backbone,
      rows: everyRow,
      history: options.history,
    };
    await writeAtomically(manifestPath(directory), `${JSON.stringify(manifest, null, 2)}\n`);
    await prune(root, options.keep);
  }
  // No rank continues before the checkpoint is complete.
  await session.barrier();
}

/** Prefix of the names of momentum tensors in backbone.safetensors. */
const MOMENTUM = 'momentum/';

function flatten(state: BackboneState): Record<string, FloatTensor> {
  const momentum = Object.entries(state.momentum).map(([name, tensor]) => [MOMENTUM + name, tensor] as const);
  return Object.fromEntries([...Object.entries(state.tensors), ...momentum]);
}

/** The inverse of flatten, for one name in backbone.safetensors. */
export function splitName(stored: string): ['tensors' | 'momentum', string] {
  return stored.startsWith(MOMENTUM) ? ['momentum', stored.slice(MOMENTUM.length)] : ['tensors', stored];
}
