/**
 * A job's folder of checkpoints: `step-XXXXXXXXXX/manifest.json` and the files that it names. A folder without a
 * manifest is no checkpoint: it was never finished, or is being deleted.
 */
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  CHECKPOINT_MANIFEST,
  CheckpointManifest,
  checkpointFolder,
  FacetrainError,
  parseDocument,
} from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';

const STEP_FOLDER = /^step-(\d{10})$/;

export interface Checkpoint {
  directory: string;
  manifest: CheckpointManifest;
}

export function checkpointDirectory(root: string, step: number): string {
  return join(root, checkpointFolder(step));
}

export function manifestPath(directory: string): string {
  return join(directory, CHECKPOINT_MANIFEST);
}

/** Steps of the complete checkpoints, newest first. @throws FacetrainError StorageFailed */
export async function completeSteps(root: string): Promise<number[]> {
  return (await stepFolders(root)).filter(({ complete }) => complete).map(({ step }) => step);
}

/**
 * The newest complete checkpoint. A damaged one is an error: resuming from an older one would lose work unnoticed.
 * @throws FacetrainError InvalidCheckpoint
 */
export async function findNewest(root: string): Promise<Checkpoint | undefined> {
  const [step] = await completeSteps(root);
  return step === undefined ? undefined : openCheckpoint(root, step);
}

/** @throws FacetrainError InvalidCheckpoint when the manifest is not one or contradicts itself */
export async function openCheckpoint(root: string, step: number): Promise<Checkpoint> {
  const directory = checkpointDirectory(root, step);
  const path = manifestPath(directory);
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    if (error instanceof SyntaxError) throw invalid(path, `not JSON (${error.message})`, 'a checkpoint’s manifest');
    throw storageError(path, error);
  }
  const manifest = parseDocument(CheckpointManifest, value, path, 'InvalidCheckpoint');
  if (manifest.step !== step)
    throw invalid(`${path}: step`, String(manifest.step), `${step}, as the folder’s name says`);
  let row = 0;
  for (const { file, firstRow, rows } of manifest.rows) {
    if (firstRow !== row)
      throw invalid(`${path}: rows`, `${file} starts at row ${firstRow}`, `row ${row}: neither gaps nor overlaps`);
    row += rows;
  }
  if (row !== manifest.numClasses)
    throw invalid(`${path}: rows`, `${row} rows`, `${manifest.numClasses}, one for each class`);
  for (const { file } of [manifest.backbone, ...manifest.rows]) {
    if (!/^[A-Za-z0-9][-A-Za-z0-9._]*$/.test(file))
      throw invalid(path, `the file name ${JSON.stringify(file)}`, 'a name without a folder');
  }
  return { directory, manifest };
}

/**
 * Deletes the checkpoints that earlier attempts did not finish. To be called on one rank, while no rank writes.
 * @returns the folders deleted
 */
export async function removeUnfinished(root: string): Promise<string[]> {
  const folders = (await stepFolders(root)).filter(({ complete }) => !complete).map(({ directory }) => directory);
  for (const directory of folders) await remove(directory);
  return folders;
}

/**
 * Deletes all but the newest `keep` complete checkpoints; the manifest first, so a half-deleted one is no checkpoint.
 */
export async function prune(root: string, keep: number): Promise<void> {
  for (const step of (await completeSteps(root)).slice(keep)) {
    const directory = checkpointDirectory(root, step);
    await remove(manifestPath(directory));
    await remove(directory);
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

async function remove(path: string): Promise<void> {
  try {
    await rm(path, { recursive: true, force: true });
  } catch (error) {
    throw storageError(path, error);
  }
}

export function invalid(subject: string, found: string, allowed: string): FacetrainError {
  return new FacetrainError({ code: 'InvalidCheckpoint', subject, found, allowed });
}
