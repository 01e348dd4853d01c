/**
 * The fences around the two places that a job writes to: that of its checkpoints and that of its output, each a folder
 * or a prefix of an object store. Rank 0 claims both; the others learn which fence the first has, since they write to
 * it, too.
 */
import { randomUUID } from 'node:crypto';
import { FacetrainError, type ObjectStorePlace, type TrainerConfig } from '@facetrain/api';
import type { TrainingSessionContract } from '@facetrain/native';
import { ObjectTarget } from '../checkpoint/object-target.ts';
import { type CheckpointStore, FolderTarget } from '../checkpoint/target.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import { Fence, FencedOff, type Owner } from '../storage/fence.ts';
import { ObjectFence } from '../storage/object-fence.ts';
import { ObjectStore } from '../storage/object-store.ts';
import { FolderOutput, ObjectOutput, type OutputPlace } from '../storage/output-place.ts';

/** Between two looks whether a newer writer has claimed a folder, in milliseconds. */
const WATCH_MS = 30_000;

/**
 * Longest time for which share() looks, in milliseconds: some network file systems remember for seconds that a name was
 * not there.
 */
const PATIENCE_MS = 30_000;

/** Most ranks that an error names. */
const MAX_NAMED = 5;

/** Of the program: where it waits for a store, it shows that it lives. */
type Parts = Pick<Program, 'log'> & { progress?: Pick<Program['progress'], 'tick'> };

export class JobFolders {
  readonly #config: TrainerConfig;
  readonly #program: Parts;
  readonly #stores: ObjectStore[] = [];
  #checkpoints: Fence | ObjectFence | undefined;
  #output: Fence | ObjectFence | undefined;
  #outputPlace: OutputPlace | undefined;
  /** What the watch has found. */
  #lost: unknown;
  #watch: NodeJS.Timeout | undefined;
  #isLooking = false;

  constructor(config: TrainerConfig, program: Parts) {
    this.#config = config;
    this.#program = program;
  }

  /** Where checkpoints are; after share(). */
  checkpoints(): CheckpointStore {
    const fence = this.#checkpoints!;
    return fence instanceof ObjectFence ? new ObjectTarget(fence) : new FolderTarget(fence);
  }

  /** Where the output is; on rank 0, after claim(). */
  get output(): OutputPlace {
    return this.#outputPlace!;
  }

  /**
   * Takes both folders from all earlier attempts. To be called on rank 0, before it reads or deletes anything there.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async claim(): Promise<void> {
    const { job, checkpoint, outputDirectory, outputStore } = this.#config;
    const owner = { ...job, start: randomUUID() };
    this.#checkpoints = await this.#claim(checkpoint.directory, checkpoint.store, owner);
    this.#output = await this.#claim(outputDirectory, outputStore, owner);
    this.#outputPlace =
      this.#output instanceof ObjectFence ? await ObjectOutput.open(this.#output) : new FolderOutput(this.#output);
    this.#program.log.info({ fence: this.#checkpoints.number }, 'claimed the folders of checkpoints and output');
    this.#watch = setInterval(() => void this.#look(), WATCH_MS).unref();
  }

  async #claim(folder: string, place: ObjectStorePlace | null, owner: Owner): Promise<Fence | ObjectFence> {
    return place ? ObjectFence.claim(this.#open(place), owner) : Fence.claim(folder, owner);
  }

  #open(place: ObjectStorePlace): ObjectStore {
    const { log, progress } = this.#program;
    const store = new ObjectStore(place, {
      onRetry: ({ message }, milliseconds) => {
        progress?.tick();
        log.warn(
          { milliseconds: Math.round(milliseconds) },
          `the object store does not answer as it should: ${message}`,
        );
      },
    });
    this.#stores.push(store);
    return store;
  }

  /**
   * Tells the other ranks of rank 0's claim, and checks that all ranks have one folder for checkpoints. A collective:
   * to be called on every rank.
   * @param maxPatienceMs for how long a rank looks for what rank 0 has made, unless its peers count it as lost before
   * @throws FacetrainError StorageFailed, on every rank, when one has another folder; FencedOff
   */
  async share(session: Pick<TrainingSessionContract, 'allGather'>, maxPatienceMs = PATIENCE_MS): Promise<void> {
    const { directory, store } = this.#config.checkpoint;
    const patienceMs = Math.min(maxPatienceMs, (this.#config.collectiveTimeoutSeconds * 1000) / 2);
    const own = this.#checkpoints;
    const [claimed] = await gatherJson(session, own ? { number: own.number, start: own.start } : null);
    const fence = own ?? (store ? ObjectFence.of(this.#open(store), claimed!) : Fence.of(directory, claimed!));
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
      allowed: store
        ? 'one object store for all ranks'
        : 'one folder for all ranks, on storage that their nodes share (not a folder of each node)',
    });
  }

  /** @throws FacetrainError FencedOff when the watch has found a newer claim */
  throwIfLost(): void {
    if (this.#lost !== undefined) throw this.#lost;
  }

  /**
   * The error of a training: FencedOff when a newer claim is why it failed, or why its peers are gone. PeerLost when
   * that claim is of rank 0 of the same attempt: its container was started again in its pod, before this rank noticed
   * that it was gone.
   */
  async explain(error: unknown): Promise<unknown> {
    const ofCheckpoints = (await this.#checkpoints?.explain(error)) ?? error;
    const explained = (await this.#output?.explain(ofCheckpoints)) ?? ofCheckpoints;
    const { uid, attempt } = this.#config.job;
    const isRankZero = this.#output !== undefined;
    const owner = explained instanceof FencedOff ? explained.owner : undefined;
    if (isRankZero || owner?.uid !== uid || owner.attempt !== attempt) return explained;
    if (error instanceof FacetrainError && error.code === 'PeerLost') return error;
    return new FacetrainError({
      code: 'PeerLost',
      subject: 'rank 0',
      found: 'it was started again while this rank went on',
      allowed: 'this rank has to start again, too',
      cause: explained,
    });
  }

  /** Ends the watch, and the connections. */
  close(): void {
    clearInterval(this.#watch);
    for (const store of this.#stores) store.close();
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
