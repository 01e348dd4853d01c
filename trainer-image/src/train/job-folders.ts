/**
 * The fences around the two folders that a job writes to: that of its checkpoints and that of its output. Rank 0 claims
 * both; the others learn which fence the first has, since they write to it, too.
 */
import { randomUUID } from 'node:crypto';
import { FacetrainError, type TrainerConfig } from '@facetrain/api';
import type { TrainingSessionContract } from '@facetrain/native';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import { Fence } from '../storage/fence.ts';

/** Between two looks whether a newer writer has claimed a folder, in milliseconds. */
const WATCH_MS = 30_000;

/**
 * Longest time for which share() looks, in milliseconds: some network file systems remember for seconds that a name was
 * not there.
 */
const PATIENCE_MS = 30_000;

/** Most ranks that an error names. */
const MAX_NAMED = 5;

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

  /**
   * Tells the other ranks of rank 0's claim, and checks that all ranks have one folder for checkpoints. A collective:
   * to be called on every rank.
   * @param maxPatienceMs for how long a rank looks for what rank 0 has made, unless its peers count it as lost before
   * @throws FacetrainError StorageFailed, on every rank, when one has another folder; FencedOff
   */
  async share(session: Pick<TrainingSessionContract, 'allGather'>, maxPatienceMs = PATIENCE_MS): Promise<void> {
    const { directory } = this.#config.checkpoint;
    const patienceMs = Math.min(maxPatienceMs, (this.#config.collectiveTimeoutSeconds * 1000) / 2);
    const own = this.#checkpoints;
    const [claimed] = await gatherJson(session, own ? { number: own.number, start: own.start } : null);
    const fence = own ?? Fence.of(directory, claimed!);
    const isVisible = await fence.isVisible(patienceMs);
    const visible = await gatherJson(session, isVisible);
    // In another folder, explain() would say that this rank was fenced off.
    if (isVisible) this.#checkpoints = fence;
    const without = visible.flatMap((each, rank) => (each ? [] : [rank]));
    if (without.length === 0) return;
    if (own) await own.check();
    const named = without.slice(0, MAX_NAMED).join(', ') + (without.length > MAX_NAMED ? ', …' : '');
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: directory,
      found: `rank ${named} of ${visible.length} does not find there what rank 0 has written`,
      allowed: 'one folder for all ranks, on storage that their nodes share (not a folder of each node)',
    });
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
