/**
 * A job's folder of checkpoints: `step-XXXXXXXXXX/` with `manifest.json` and the files that it names. A checkpoint gets
 * that name when it is complete, and is never changed after (save.ts). A folder without a manifest is no checkpoint: a
 * former version of Facetrain did not finish it.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import {
  CHECKPOINT_MANIFEST,
  CheckpointManifest,
  checkpointFolder,
  FacetrainError,
  parseDocument,
  type StoredFile,
} from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';
import { digestFile } from '../storage/digest.ts';
import { type Fence, KEPT_PREFIX } from '../storage/fence.ts';

const STEP_FOLDER = /^step-(\d{10})$/;

export interface Checkpoint {
  directory: string;
  manifest: CheckpointManifest;
}

/**
 * A checkpoint is not what it was when it was written: a file is missing, cut off or changed. Errors of the storage
 * itself are StorageFailed, and may be gone at the next try.
 */
export class DamagedCheckpoint extends FacetrainError {
  /** Name of the file in the checkpoint's folder. */
  readonly file: string;

  constructor(path: string, field: string, found: string, allowed: string) {
    super({ code: 'InvalidCheckpoint', subject: field ? `${path}: ${field}` : path, found, allowed });
    this.file = basename(path);
  }
}

export function checkpointDirectory(root: string, step: number): string {
  return join(root, checkpointFolder(step));
}

export function manifestPath(directory: string): string {
  return join(directory, CHECKPOINT_MANIFEST);
}

/** Steps of the folders with a manifest, newest first. @throws FacetrainError StorageFailed */
export async function completeSteps(root: string): Promise<number[]> {
  return (await stepFolders(root)).filter(({ complete }) => complete).map(({ step }) => step);
}

/**
 * The newest checkpoint, of which every file exists with its size. Digests are compared when it is loaded.
 * @param onDamaged is called for each damaged one that is newer, newest first, and takes it out of the way
 * @returns undefined when there is no checkpoint and never was one
 * @throws FacetrainError InvalidCheckpoint when all are damaged, or one is of another version; StorageFailed
 */
export async function findNewest(
  root: string,
  onDamaged: (damage: DamagedCheckpoint, directory: string) => Promise<void>,
): Promise<Checkpoint | undefined> {
  for (const step of await completeSteps(root)) {
    try {
      const checkpoint = await openCheckpoint(root, step);
      for (const file of filesOf(checkpoint)) await checkSize(checkpoint, file);
      return checkpoint;
    } catch (error) {
      if (!(error instanceof DamagedCheckpoint)) throw error;
      await onDamaged(error, checkpointDirectory(root, step));
    }
  }
  // From here training would begin anew, and nobody would notice that days of it are lost.
  const damaged = (await list(root)).filter((name) => name.startsWith(KEPT_PREFIX));
  if (damaged.length === 0) return undefined;
  throw invalid(
    root,
    `all checkpoints are damaged (${damaged.sort().reverse().join(', ')})`,
    'put an intact copy of one in their place, or delete them to start from step 0',
  );
}

/**
 * @throws DamagedCheckpoint when there is no manifest, or it is not one or contradicts itself;
 * FacetrainError InvalidCheckpoint when another version of Facetrain wrote it; StorageFailed
 */
export async function openCheckpoint(root: string, step: number): Promise<Checkpoint> {
  const directory = checkpointDirectory(root, step);
  const path = manifestPath(directory);
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new DamagedCheckpoint(path, '', `not JSON (${error.message})`, 'a checkpoint’s manifest');
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new DamagedCheckpoint(path, '', 'no such file', 'a manifest');
    throw storageError(path, error);
  }
  const manifest = parseManifest(value, path);
  if (manifest.step !== step)
    throw new DamagedCheckpoint(path, 'step', String(manifest.step), `${step}, as the folder’s name says`);
  let row = 0;
  for (const { file, firstRow, rows } of manifest.rows) {
    if (firstRow !== row)
      throw new DamagedCheckpoint(
        path,
        'rows',
        `${file} starts at row ${firstRow}`,
        `row ${row}: neither gaps nor overlaps`,
      );
    row += rows;
  }
  if (row !== manifest.numClasses)
    throw new DamagedCheckpoint(path, 'rows', `${row} rows`, `${manifest.numClasses}, one for each class`);
  const checkpoint = { directory, manifest };
  for (const { file } of filesOf(checkpoint)) {
    if (!/^[A-Za-z0-9][-A-Za-z0-9._]*$/.test(file))
      throw new DamagedCheckpoint(path, '', `the file name ${JSON.stringify(file)}`, 'a name without a folder');
  }
  return checkpoint;
}

function parseManifest(value: unknown, path: string): CheckpointManifest {
  try {
    return parseDocument(CheckpointManifest, value, path, 'InvalidCheckpoint');
  } catch (error) {
    const { schemaVersion } = Object(value) as { schemaVersion?: unknown };
    // A newer version may read it: it is not damaged.
    if (!(error instanceof FacetrainError) || (typeof schemaVersion === 'number' && schemaVersion !== 1)) throw error;
    throw new DamagedCheckpoint(path, error.subject.slice(path.length + 2), error.found, error.allowed);
  }
}

/** A file of a checkpoint, as its manifest names it. */
export type CheckpointFile = StoredFile & { file: string };

export const filesOf = ({ manifest }: Checkpoint): CheckpointFile[] => [manifest.backbone, ...manifest.rows];

/** @throws DamagedCheckpoint when a file is missing or has another size; StorageFailed */
export async function checkSize({ directory }: Checkpoint, { file, bytes }: CheckpointFile): Promise<void> {
  const path = join(directory, file);
  let found: number;
  try {
    found = (await stat(path)).size;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw storageError(path, error);
    throw new DamagedCheckpoint(path, '', 'no such file', 'the file that the manifest names');
  }
  if (found !== bytes) throw new DamagedCheckpoint(path, '', `${found} bytes`, `${bytes}, as the manifest says`);
}

/** @throws DamagedCheckpoint when a file is not what the manifest says; StorageFailed */
export async function checkContent(checkpoint: Checkpoint, stored: CheckpointFile): Promise<void> {
  await checkSize(checkpoint, stored);
  const path = join(checkpoint.directory, stored.file);
  const { sha256 } = await digestFile(path);
  if (sha256 !== stored.sha256)
    throw new DamagedCheckpoint(path, '', `the digest ${sha256}`, `${stored.sha256}, as the manifest says`);
}

/**
 * Deletes the folders without a manifest, which a former version left. To be called on one rank, while no rank writes.
 * @returns the folders deleted
 */
export async function removeUnfinished(root: string, fence: Fence): Promise<string[]> {
  const folders = (await stepFolders(root)).filter(({ complete }) => !complete).map(({ directory }) => directory);
  for (const directory of folders) await fence.remove(directory);
  return folders;
}

/**
 * Deletes all but the newest `keep` complete checkpoints of a job. Those of other jobs, from which this one may have
 * continued, do not count and stay; so do those whose manifest does not tell the job.
 * @param job its name. The uid is not compared: a job that was deleted and created again goes on with its checkpoints
 * @throws FacetrainError FencedOff, StorageFailed
 */
export async function prune(root: string, keep: number, job: string, fence: Fence): Promise<void> {
  const steps = await completeSteps(root);
  if (steps.length <= keep) return;
  const authors = await Promise.all(steps.map((step) => authorOf(root, step)));
  const own = steps.filter((_, index) => authors[index] === job);
  for (const step of own.slice(keep)) await fence.remove(checkpointDirectory(root, step));
}

/** Name of the job that wrote a checkpoint; undefined when its manifest is damaged or of another version. */
async function authorOf(root: string, step: number): Promise<string | undefined> {
  try {
    return (await openCheckpoint(root, step)).manifest.job.name;
  } catch (error) {
    if (error instanceof FacetrainError && error.code === 'InvalidCheckpoint') return undefined;
    throw error;
  }
}

async function stepFolders(root: string): Promise<{ step: number; directory: string; complete: boolean }[]> {
  const names = await list(root);
  const folders = names.flatMap((name) => {
    const match = STEP_FOLDER.exec(name);
    return match ? [{ step: Number(match[1]), directory: join(root, name) }] : [];
  });
  const found = await Promise.all(
    folders.map(async (folder) => ({
      ...folder,
      complete: (await list(folder.directory)).includes(CHECKPOINT_MANIFEST),
    })),
  );
  return found.sort((a, b) => b.step - a.step);
}

/** Names in a folder; none when it does not exist. */
async function list(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw storageError(directory, error);
  }
}

export function invalid(subject: string, found: string, allowed: string): FacetrainError {
  return new FacetrainError({ code: 'InvalidCheckpoint', subject, found, allowed });
}
