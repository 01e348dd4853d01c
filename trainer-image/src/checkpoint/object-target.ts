/**
 * Checkpoints in an object store, behind the head of object-fence.ts: `step-XXXXXXXXXX/TOKEN-START/` with the same
 * files as a folder has. Every rank writes its own objects; rank 0 writes the manifest, and then lists the checkpoint
 * in the head. From that moment it counts. What the head does not list is none: what a process left that ended before.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type AnyCheckpointManifest, CHECKPOINT_MANIFEST, checkpointFolder } from '@facetrain/api';
import { KEPT_PREFIX } from '../storage/fence.ts';
import { CHECKPOINT_PREFIX, type Listed, type ObjectFence } from '../storage/object-fence.ts';
import type { Warn } from '../storage/object-store.ts';
import {
  type Checkpoint,
  type CheckpointId,
  type CheckpointSource,
  checkSizes,
  DamagedCheckpoint,
  firstWhole,
  invalid,
  parseCheckpoint,
  storedFiles,
} from './directory.ts';
import type { EditedFiles } from './edit-head.ts';
import { type Evaluation, withEvaluation } from './evaluations.ts';
import type { CheckpointStore, FileWriter } from './target.ts';

/** Objects of checkpoints, by what their names begin with. */
const OBJECT = /^(step-\d{10}\/(\d{10})-[0-9a-f-]{36})\//;
/** For how long training waits for the note of an evaluation, in milliseconds. */
const NOTE_MS = 2_000;

export class ObjectTarget implements CheckpointStore {
  readonly #fence: ObjectFence;

  constructor(fence: ObjectFence) {
    this.#fence = fence;
  }

  get name(): string {
    return this.#fence.store.uri('').replace(/\/$/, '');
  }

  get away(): string | null {
    return this.#fence.store.away;
  }

  async create(step: number, file: string): Promise<FileWriter> {
    return this.#fence.store.writer(`${this.#folder(step)}/${file}`);
  }

  async complete(manifest: AnyCheckpointManifest): Promise<void> {
    const { step, job, time } = manifest;
    const listed: Listed = { step, folder: this.#folder(step), job: job.name, time };
    const checkpoint = this.#checkpoint(listed, manifest);
    // A rank whose store is not the one of rank 0 would leave a manifest without its files.
    await checkSizes(checkpoint);
    const bytes = new TextEncoder().encode(`${JSON.stringify(manifest, null, 2)}\n`);
    await this.#fence.store.put(`${listed.folder}/${CHECKPOINT_MANIFEST}`, bytes, undefined, 'application/json');
    await this.#fence.change(({ checkpoints }) => ({
      checkpoints: [...checkpoints.filter((each) => each.step !== step), listed],
    }));
  }

  async list(): Promise<number[]> {
    return (await this.#listed()).map(({ step }) => step);
  }

  async idOf(step: number): Promise<CheckpointId | undefined> {
    const listed = (await this.#listed()).find((each) => each.step === step);
    return listed && { job: listed.job, step, time: listed.time };
  }

  async evaluations(): Promise<Evaluation[]> {
    return (await this.#fence.head()).evaluations;
  }

  /** A store that is away does not keep the training: it is told later. */
  async noteEvaluation(added: Evaluation): Promise<void> {
    const noted = this.#fence.change(({ evaluations, checkpoints }) => ({
      evaluations: withEvaluation(
        evaluations,
        added,
        checkpoints.map(({ step }) => step),
      ),
    }));
    // What fails after that fails at the next checkpoint, too.
    noted.catch(() => {});
    await Promise.race([noted, delay(NOTE_MS, undefined, { ref: false })]);
  }

  async remove(step: number): Promise<void> {
    const removed = await this.#take(step);
    if (removed) await this.#fence.store.delete(await this.#fence.store.list(`${removed.folder}/`));
  }

  async setAside(step: number): Promise<string | undefined> {
    const kept = await this.#take(step, true);
    // The name that a folder would have; its objects stay where they are.
    return kept && `${KEPT_PREFIX}${checkpointFolder(step)}.${String(this.#fence.number).padStart(10, '0')}`;
  }

  async open(step: number): Promise<Checkpoint> {
    const listed = (await this.#listed()).find((each) => each.step === step);
    const path = this.#fence.store.uri(`${listed?.folder ?? checkpointFolder(step)}/${CHECKPOINT_MANIFEST}`);
    const found = listed && (await this.#fence.store.get(`${listed.folder}/${CHECKPOINT_MANIFEST}`));
    if (!found) throw new DamagedCheckpoint(path, '', 'no such object', 'a manifest');
    return this.#checkpoint(listed, parseCheckpoint(new TextDecoder().decode(found.bytes), path, step));
  }

  async findNewest(onDamaged: (damage: DamagedCheckpoint, step: number) => Promise<void>) {
    const found = await firstWhole(await this.list(), (step) => this.open(step), onDamaged);
    if (found) return found;
    const { damaged } = await this.#fence.head();
    if (damaged.length === 0) return undefined;
    // From here training would begin anew, and nobody would notice that days of it are lost.
    throw invalid(
      this.name,
      `all checkpoints are damaged (${damaged.map(({ folder }) => folder).join(', ')})`,
      'a prefix with an intact checkpoint; delete the prefix to start from step 0',
    );
  }

  /**
   * A checkpoint in the place of another of the same step: it counts from finish() on, and then the objects of the
   * other are deleted. The store copies the files that do not change.
   * @throws FacetrainError FencedOff, StorageFailed
   */
  edit(step: number): EditedFiles {
    const { store } = this.#fence;
    const folder = this.#folder(step);
    const written = new Set<string>();
    return {
      write: async (file, content) => {
        written.add(file);
        const writer = store.writer(`${folder}/${file}`);
        try {
          await content((bytes) => writer.write(bytes));
          await writer.finish();
        } catch (error) {
          await writer.discard();
          throw error;
        }
      },
      finish: async (manifest) => {
        const before = (await this.#listed()).find((each) => each.step === step);
        if (!before || before.folder === folder) throw new TypeError(`step ${step} is no earlier process' checkpoint`);
        for (const { file, bytes } of storedFiles({ manifest }))
          if (!written.has(file)) await store.copy(`${before.folder}/${file}`, `${folder}/${file}`, bytes);
        await this.complete(manifest);
        await store.delete(await store.list(`${before.folder}/`));
      },
    };
  }

  /** Names of checkpoints that were set aside, below the prefix. @throws FacetrainError FencedOff, StorageFailed */
  async damaged(): Promise<string[]> {
    return (await this.#fence.head()).damaged.map(({ folder }) => folder);
  }

  /**
   * Deletes objects that the head does not list, and aborts uploads: all that older starts have left. To be called
   * after the claim, on rank 0.
   */
  async removeUnfinished(warn: Warn): Promise<string[]> {
    const { store, number } = this.#fence;
    const names = await store.list(CHECKPOINT_PREFIX);
    // Read after that: this process may have been frozen, and the head then shows who writes what it has seen.
    const { checkpoints, damaged } = await this.#fence.head();
    const kept = new Set([...checkpoints, ...damaged].map(({ folder }) => folder));
    const isLeft = (name: string) => {
      const [, folder, token] = OBJECT.exec(name) ?? [];
      return folder !== undefined && !kept.has(folder) && Number(token) < number;
    };
    const left = names.filter(isLeft);
    await store.delete(left);
    await store.abortUploads(CHECKPOINT_PREFIX, isLeft, warn);
    return [...new Set(left.map((name) => store.uri(OBJECT.exec(name)![1]!)))];
  }

  explain(error: unknown): Promise<unknown> {
    return this.#fence.explain(error);
  }

  #folder(step: number): string {
    return `${checkpointFolder(step)}/${this.#fence.suffix}`;
  }

  #checkpoint({ folder }: Listed, manifest: AnyCheckpointManifest): Checkpoint {
    const { store } = this.#fence;
    const source: CheckpointSource = {
      size: async (file) => (await store.head(`${folder}/${file}`))?.bytes,
      read: (file, into, position) => store.read(`${folder}/${file}`, into, position),
    };
    return { directory: store.uri(folder), manifest, source };
  }

  /** Newest first. */
  async #listed(): Promise<Listed[]> {
    return [...(await this.#fence.head()).checkpoints].sort((a, b) => b.step - a.step);
  }

  /** Takes a checkpoint from the list: it counts no more. */
  async #take(step: number, isDamaged = false): Promise<Listed | undefined> {
    const taken = (await this.#listed()).find((each) => each.step === step);
    if (!taken) return undefined;
    await this.#fence.change(({ checkpoints, damaged }) => ({
      checkpoints: checkpoints.filter((each) => each.step !== step),
      damaged: isDamaged && damaged.every(({ folder }) => folder !== taken.folder) ? [...damaged, taken] : damaged,
    }));
    return taken;
  }
}
