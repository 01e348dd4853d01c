/**
 * The fences around the two folders that a job writes to: that of its checkpoints and that of its output. Rank 0 claims
 * both; the others learn which fence the first has, since they write to it, too.
 */
import { randomUUID } from 'node:crypto';
import type { TrainerConfig } from '@facetrain/api';
import type { TrainingSessionContract } from '@facetrain/native';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import { Fence } from '../storage/fence.ts';

/** Between two looks whether a newer writer has claimed a folder, in milliseconds. */
const WATCH_MS = 30_000;

export class JobFolders {
  readonly #config: TrainerConfig;
  readonly #log: Program['log'];
  #checkpoints: Fence | undefined;
  #output: Fence | undefined;
  /** What the watch has found. */
  #lost: unknown;
  #watch: NodeJS.Timeout | undefined;
  #isLooking = false;

  constructor(config: TrainerConfig, { log }: Pick<Program, 'log'>) {
    this.#config = config;
    this.#log = log;
  }

  /** Around the folder of checkpoints; after claim() or share(). */
  get checkpoints(): Fence {
    return this.#checkpoints!;
  }

  /** Around the folder of the output; on rank 0, after claim(). */
  get output(): Fence {
    return this.#output!;
  }

  /**
   * Takes both folders from all earlier attempts. To be called on rank 0, before it reads or deletes anything there.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async claim(): Promise<void> {
    const { job, checkpoint, outputDirectory } = this.#config;
    const owner = { ...job, start: randomUUID() };
    this.#checkpoints = await Fence.claim(checkpoint.directory, owner);
    this.#output = await Fence.claim(outputDirectory, owner);
    this.#log.info({ fence: this.#checkpoints.number }, 'claimed the folders of checkpoints and output');
    this.#watch = setInterval(() => void this.#look(), WATCH_MS).unref();
  }

  /** Tells the other ranks of rank 0's claim. A collective: to be called on every rank. */
  async share(session: Pick<TrainingSessionContract, 'allGather'>): Promise<void> {
    const own = this.#checkpoints;
    const [claimed] = await gatherJson(session, own ? { number: own.number, start: own.start } : null);
    this.#checkpoints ??= Fence.of(this.#config.checkpoint.directory, claimed!);
  }

  /** @throws FacetrainError FencedOff when the watch has found a newer claim */
  throwIfLost(): void {
    if (this.#lost !== undefined) throw this.#lost;
  }

  /** The error of a training: FencedOff when a newer claim is why it failed, or why its peers are gone. */
  async explain(error: unknown): Promise<unknown> {
    const explained = (await this.#checkpoints?.explain(error)) ?? error;
    return (await this.#output?.explain(explained)) ?? explained;
  }

  stopWatching(): void {
    clearInterval(this.#watch);
  }

  async #look(): Promise<void> {
    // Storage that fails or hangs now is asked again. Requests to it must not pile up.
    if (this.#isLooking) return;
    this.#isLooking = true;
    const none = new Error();
    const found = await this.explain(none);
    if (found !== none) this.#lost = found;
    this.#isLooking = false;
  }
}
