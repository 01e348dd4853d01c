/**
 * Where checkpoints are written. The writer (save.ts) knows this interface only, which asks for no more than an object
 * store has: files that are written from beginning to end, and one file, the manifest, that makes them a checkpoint.
 */
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type AnyCheckpointManifest, CHECKPOINT_MANIFEST, checkpointFolder } from '@facetrain/api';
import { flushFolder, storageError, writeNew } from '../storage/atomic-files.ts';
import type { Fence } from '../storage/fence.ts';
import type { Warn } from '../storage/object-store.ts';
import {
  type Checkpoint,
  type CheckpointId,
  checkpointDirectory,
  checkpointId,
  checkSizes,
  completeSteps,
  type DamagedCheckpoint,
  findNewest,
  openCheckpoint,
  removeUnfinished,
} from './directory.ts';
import { type Evaluation, evaluationOf, meanAccuracy, noteEvaluation, readEvaluations } from './evaluations.ts';

/** A new file, which is written from beginning to end. */
export interface FileWriter {
  /** Appends bytes. @throws FacetrainError DiskFull, StorageFailed */
  write(bytes: Uint8Array): Promise<void>;
  /** When this returns, the file survives a loss of power. @throws FacetrainError DiskFull, StorageFailed */
  finish(): Promise<void>;
  /** Removes it again, finished or not. Does not throw. */
  discard(): Promise<void>;
}

export interface CheckpointTarget {
  /** Opens a new file of the checkpoint after `step` steps, on any rank. @throws FacetrainError StorageFailed */
  create(step: number, file: string): Promise<FileWriter>;
  /**
   * Makes a checkpoint of the files that the manifest names, all of which are finished. To be called on rank 0. From
   * the moment when it returns, readers find the checkpoint; a process that ends before leaves none.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed, also when a file is not there
   */
  complete(manifest: AnyCheckpointManifest): Promise<void>;
  /** Steps of the checkpoints that are complete, newest first. @throws FacetrainError StorageFailed */
  list(): Promise<number[]>;
  /** Which training wrote a checkpoint, and when; undefined when its manifest does not tell. */
  idOf(step: number): Promise<CheckpointId | undefined>;
  /** How checkpoints verify. @throws FacetrainError StorageFailed */
  evaluations(): Promise<Evaluation[]>;
  /** Deletes a checkpoint, at once for all readers. @throws FacetrainError FencedOff, StorageFailed */
  remove(step: number): Promise<void>;
  /** The error of an operation: FencedOff when that is why it failed. */
  explain(error: unknown): Promise<unknown>;
}

/** Where checkpoints are written and read: all that a job does with them. */
export interface CheckpointStore extends CheckpointTarget {
  /** The folder, or the URI of the prefix, for messages. */
  readonly name: string;
  /** Why it has not answered as it should for a while; null when it has. */
  readonly away: string | null;
  /** @throws as openCheckpoint */
  open(step: number): Promise<Checkpoint>;
  /**
   * The newest checkpoint, of which every file exists with its size. Digests are compared when it is loaded.
   * @param onDamaged is called for each damaged one that is newer, newest first, and takes it out of the way
   * @returns undefined when there is no checkpoint and never was one
   * @throws FacetrainError InvalidCheckpoint when all are damaged, or one is of another version; StorageFailed
   */
  findNewest(onDamaged: (damage: DamagedCheckpoint, step: number) => Promise<void>): Promise<Checkpoint | undefined>;
  /**
   * Takes a damaged checkpoint out of the way, and keeps it for people.
   * @returns the name that it has then; undefined when there is none of this step
   * @throws FacetrainError FencedOff, StorageFailed
   */
  setAside(step: number): Promise<string | undefined>;
  /**
   * Adds how a checkpoint verifies, in place of an earlier evaluation of that job and step. To be called on rank 0.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  noteEvaluation(added: Evaluation): Promise<void>;
  /**
   * Deletes what was never completed. To be called on one rank, while no rank writes.
   * @param warn gets why something stays that does no harm
   * @returns the folders deleted
   */
  removeUnfinished(warn: Warn): Promise<string[]>;
}

/** A folder of checkpoints behind a fence. A checkpoint is assembled inside the fence, and moved out as a whole. */
export class FolderTarget implements CheckpointStore {
  readonly away = null;
  readonly #fence: Fence;

  constructor(fence: Fence) {
    this.#fence = fence;
  }

  get name(): string {
    return this.#fence.folder;
  }

  async create(step: number, file: string): Promise<FileWriter> {
    const folder = this.#staged(step);
    await makeStaged(folder);
    return createFile(folder, file);
  }

  async complete(manifest: AnyCheckpointManifest): Promise<void> {
    const directory = this.#staged(manifest.step);
    // A rank whose folder is not the one of rank 0 would leave a manifest without its files.
    await checkSizes({ directory, manifest });
    await writeNew(join(directory, CHECKPOINT_MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
    await flushFolder(directory);
    await this.#fence.check();
    await this.#fence.moveOut(directory, checkpointDirectory(this.#fence.folder, manifest.step));
  }

  list(): Promise<number[]> {
    return completeSteps(this.#fence.folder);
  }

  open(step: number): Promise<Checkpoint> {
    return openCheckpoint(this.#fence.folder, step);
  }

  findNewest(onDamaged: (damage: DamagedCheckpoint, step: number) => Promise<void>): Promise<Checkpoint | undefined> {
    return findNewest(this.#fence.folder, onDamaged);
  }

  async setAside(step: number): Promise<string | undefined> {
    const kept = await this.#fence.setAside(checkpointDirectory(this.#fence.folder, step));
    return kept && basename(kept);
  }

  removeUnfinished(): Promise<string[]> {
    return removeUnfinished(this.#fence.folder, this.#fence);
  }

  idOf(step: number): Promise<CheckpointId | undefined> {
    return checkpointId(this.#fence.folder, step);
  }

  evaluations(): Promise<Evaluation[]> {
    return readEvaluations(this.#fence.folder);
  }

  noteEvaluation(added: Evaluation): Promise<void> {
    return noteEvaluation(this.#fence, added);
  }

  remove(step: number): Promise<void> {
    return this.#fence.remove(checkpointDirectory(this.#fence.folder, step));
  }

  explain(error: unknown): Promise<unknown> {
    return this.#fence.explain(error);
  }

  #staged(step: number): string {
    return join(this.#fence.path, checkpointFolder(step));
  }
}

/** Which checkpoints of a job stay. */
export interface Retention {
  /** The newest. */
  keep: number;
  /** Of the others, those of the best mean accuracy; those that were not evaluated are none of them. */
  keepBest: number;
}

/**
 * Deletes the complete checkpoints of a job that are not to be kept. Those of other jobs, from which this one may have
 * continued, do not count and stay; so do those whose manifest does not tell the job.
 * @param job its name. The uid is not compared: a job that was deleted and created again goes on with its checkpoints
 * @throws FacetrainError FencedOff, StorageFailed
 */
export async function prune(target: CheckpointTarget, { keep, keepBest }: Retention, job: string): Promise<void> {
  const steps = await target.list();
  if (steps.length <= keep) return;
  const all = await Promise.all(steps.map((step) => target.idOf(step)));
  const older = all.flatMap((id) => (id?.job === job ? id : [])).slice(keep);
  const best = keepBest > 0 ? bestOf(older, await target.evaluations()).slice(0, keepBest) : [];
  for (const { step } of older) if (!best.includes(step)) await target.remove(step);
}

/** Steps by falling accuracy; of equal ones the later first. Without those that have none. */
function bestOf(checkpoints: readonly CheckpointId[], evaluations: readonly Evaluation[]): number[] {
  const found = checkpoints.flatMap((id) => evaluationOf(evaluations, id) ?? []);
  return found.toSorted((a, b) => meanAccuracy(b) - meanAccuracy(a) || b.step - a.step).map(({ step }) => step);
}

/** Several ranks make it. Not its parents: those of a fence that was removed must not come back. */
async function makeStaged(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw storageError(path, error);
  }
}

async function createFile(folder: string, name: string): Promise<FileWriter> {
  const path = join(folder, name);
  let file: FileHandle;
  try {
    file = await open(path, 'wx');
  } catch (error) {
    throw storageError(path, error);
  }
  const guarded = async (work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      throw storageError(path, error);
    }
  };
  return {
    write: (bytes) =>
      guarded(async () => {
        for (let done = 0; done < bytes.byteLength; ) done += (await file.write(bytes, done)).bytesWritten;
      }),
    finish: () =>
      guarded(async () => {
        await file.sync();
        await file.close();
        await flushFolder(folder);
      }),
    discard: async () => {
      // Closing a second time does nothing.
      await file.close().catch(() => {});
      await rm(path, { force: true }).catch(() => {});
    },
  };
}
