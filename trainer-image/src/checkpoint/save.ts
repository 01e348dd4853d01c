/**
 * Writes a checkpoint: every rank its own class centres, rank 0 also the backbone, all of them into the folder of the
 * gang's fence (storage/fence.ts). When every file of every rank is on disk, rank 0 adds the manifest and moves the
 * folder to its place. So a process that ends at any moment leaves a complete checkpoint or none, and a process of an
 * older attempt leaves none.
 */
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CHECKPOINT_MANIFEST, type CheckpointManifest, checkpointFolder } from '@facetrain/api';
import type { BackboneState, TrainingSessionContract } from '@facetrain/native';
import { gatherJson } from '../program/gather-json.ts';
import { flushFolder, storageError, writeNew } from '../storage/atomic-files.ts';
import type { Fence } from '../storage/fence.ts';
import { checkpointDirectory, checkSize, filesOf, prune } from './directory.ts';
import { type FloatTensor, writeSafetensors } from './safetensors.ts';

/** Most rows in a file. With 512 values each, weights and momentum take 256 MiB. */
const BLOCK_ROWS = 65_536;

export interface SaveOptions {
  /** Around the job's folder of checkpoints; the same on every rank. */
  fence: Fence;
  /** Complete checkpoints of the job to keep, this one included. */
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
 * @throws FacetrainError FencedOff, DiskFull or StorageFailed
 */
export async function saveCheckpoint(session: TrainingSessionContract, options: SaveOptions): Promise<void> {
  const { fence, step } = options;
  const staged = join(fence.path, checkpointFolder(step));
  const written: string[] = [];
  try {
    await saveStaged(session, staged, written, options);
  } catch (error) {
    // They may be what fills the disk. The files of other ranks are left to them: they may still be writing.
    for (const path of written) await rm(path, { force: true }).catch(() => {});
    throw await fence.explain(error);
  }
  // No rank continues before the checkpoint is complete.
  await session.barrier();
}

/** @param written receives the paths of the files that this rank has written */
async function saveStaged(
  session: TrainingSessionContract,
  staged: string,
  written: string[],
  options: SaveOptions,
): Promise<void> {
  const { fence, step, rank, onFile } = options;
  const root = fence.folder;
  await makeStaged(staged);

  const rows: CheckpointManifest['rows'] = [];
  const end = session.rowRange.firstRow + session.rowRange.rows;
  for (let firstRow = session.rowRange.firstRow; firstRow < end; firstRow += BLOCK_ROWS) {
    const block = await session.saveRows(firstRow, Math.min(BLOCK_ROWS, end - firstRow));
    const dims = [block.rows, session.dim];
    const file = `rows-${String(firstRow).padStart(10, '0')}.safetensors`;
    const stored = await writeSafetensors(join(staged, file), {
      weight: { dims, data: block.weight },
      momentum: { dims, data: block.momentum },
    });
    written.push(join(staged, file));
    rows.push({ file, firstRow, rows: block.rows, ...stored });
    onFile?.();
  }
  // All ranks have the same backbone, running statistics included, so one writes it.
  const file = 'backbone.safetensors';
  const backbone =
    rank === 0
      ? { file, ...(await writeSafetensors(join(staged, file), flatten(await session.saveBackbone()))) }
      : undefined;
  if (backbone) written.push(join(staged, file));
  onFile?.();
  await flushFolder(staged);

  const everyRow = (await gatherJson(session, rows)).flat();
  if (!backbone) return;
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
  // A rank whose folder is not the one of rank 0 would leave a manifest without its files.
  const checkpoint = { directory: staged, manifest };
  for (const stored of filesOf(checkpoint)) await checkSize(checkpoint, stored);
  await writeNew(join(staged, CHECKPOINT_MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
  await flushFolder(staged);
  await fence.check();
  await fence.moveOut(staged, checkpointDirectory(root, step));
  // The new checkpoint is on disk, and its name, too: only now older ones may go.
  await prune(root, options.keep, options.job.name, fence);
}

/** Several ranks make it. Not its parents: those of a fence that was removed must not come back. */
async function makeStaged(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw storageError(path, error);
  }
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
