/** The checkpoints of one job: which one training resumes from, and when the next is overdue. Formats: checkpoint/. */
import { basename } from 'node:path';
import {
  type CheckpointManifest,
  ExitCode,
  FacetrainError,
  MAX_SET_ASIDE,
  MAX_SET_ASIDE_REASON,
  type TrainerConfig,
} from '@facetrain/api';
import type { TrainingSessionContract } from '@facetrain/native';
import {
  type Checkpoint,
  checkContent,
  checkpointDirectory,
  DamagedCheckpoint,
  filesOf,
  findNewest,
  openCheckpoint,
} from '../checkpoint/directory.ts';
import { type JobFacts, loadCheckpoint } from '../checkpoint/load.ts';
import { saveCheckpoint } from '../checkpoint/save.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';
import type { Fence } from '../storage/fence.ts';

export class JobCheckpoints {
  readonly #session: TrainingSessionContract;
  readonly #fence: Fence;
  readonly #config: TrainerConfig;
  readonly #size: { numClasses: number; totalSteps: number };
  readonly #ranks: Ranks;
  readonly #program: Program;
  /** The newest checkpoint; before the first one, the start of training. */
  #last = { step: 0, at: performance.now() };

  constructor(
    session: TrainingSessionContract,
    fence: Fence,
    config: TrainerConfig,
    size: { numClasses: number; totalSteps: number },
    ranks: Ranks,
    program: Program,
  ) {
    this.#session = session;
    this.#fence = fence;
    this.#config = config;
    this.#size = size;
    this.#ranks = ranks;
    this.#program = program;
  }

  /**
   * Loads the newest checkpoint that is intact into the session. Damaged ones are renamed, and kept for people. A
   * collective: to be called on every rank.
   * @returns its manifest; undefined when there is no checkpoint
   * @throws FacetrainError InvalidCheckpoint when it does not fit this job, or all are damaged; FencedOff,
   * StorageFailed
   */
  async resume(): Promise<CheckpointManifest | undefined> {
    const { job, seed, checkpoint: settings } = this.#config;
    const { log, progress } = this.#program;
    for (;;) {
      // Rank 0 decides for all: on a network file system, other ranks may see an older state of the folder.
      const newest =
        this.#ranks.rank === 0
          ? await findNewest(settings.directory, (damage, directory) => this.#setAside(damage, directory))
          : undefined;
      const [step] = await gatherJson(this.#session, newest?.manifest.step ?? null);
      if (step === null || step === undefined) return undefined;

      const loaded = await this.#load(step, {
        name: settings.shared ? null : job.name,
        seed,
        numClasses: this.#size.numClasses,
        totalSteps: this.#size.totalSteps,
        onFile: () => progress.tick(),
      });
      if (!loaded) continue;
      const { manifest, directory } = loaded;
      this.#last = { step, at: performance.now() };
      progress.update({ checkpoint: { step, time: manifest.time } });
      // The uid is not compared: a job that was deleted and created again has a new one, and continues from the
      // checkpoint.
      const { job: writtenBy, worldSize } = manifest;
      log.info({ step, writtenBy, worldSize, directory }, 'resumed from a checkpoint');
      return manifest;
    }
  }

  /** A collective. @returns undefined when the checkpoint is damaged, and rank 0 has set it aside */
  async #load(step: number, expected: JobFacts): Promise<Checkpoint | undefined> {
    const { directory: root } = this.#config.checkpoint;
    let loaded: Checkpoint | undefined;
    let damage: DamagedCheckpoint | undefined;
    try {
      loaded = await openCheckpoint(root, step);
      await loadCheckpoint(this.#session, loaded, expected);
    } catch (error) {
      if (!(error instanceof DamagedCheckpoint)) throw error;
      damage = error;
    }
    const found = await gatherJson(this.#session, damage ? { file: damage.file, message: damage.message } : null);
    const reporter = found.findIndex((each) => each !== null);
    if (reporter === -1) return loaded;
    // A rank that reads something else than rank 0 has a fault of its own. That is no reason to lose a checkpoint.
    const [confirmed] = await gatherJson(this.#session, await this.#confirm(step, found[reporter]!.file));
    if (confirmed) return undefined;
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: checkpointDirectory(root, step),
      found: `rank 0 finds it intact, rank ${reporter} does not (${found[reporter]!.message})`,
      allowed: 'one folder with the same content for all ranks',
      exitCode: ExitCode.failure,
    });
  }

  /** On rank 0: whether a file of a checkpoint is damaged. If it is, the checkpoint is set aside. */
  async #confirm(step: number, file: string): Promise<boolean> {
    if (this.#ranks.rank !== 0) return false;
    const { directory: root } = this.#config.checkpoint;
    try {
      const checkpoint = await openCheckpoint(root, step);
      for (const stored of filesOf(checkpoint)) if (stored.file === file) await checkContent(checkpoint, stored);
      return false;
    } catch (error) {
      if (!(error instanceof DamagedCheckpoint)) throw error;
      await this.#setAside(error, checkpointDirectory(root, step));
      return true;
    }
  }

  async #setAside({ message }: DamagedCheckpoint, directory: string): Promise<void> {
    const { log, progress } = this.#program;
    const kept = await this.#fence.setAside(directory);
    log.warn({ directory, kept }, `set aside a damaged checkpoint: ${message}`);
    if (kept === undefined) return;
    const { setAside = [] } = progress.current;
    const entry = { folder: basename(kept), reason: message.slice(0, MAX_SET_ASIDE_REASON) };
    progress.update({ setAside: [...setAside, entry].slice(-MAX_SET_ASIDE) });
  }

  /** Whether everySeconds have passed since the last one. Always false on ranks other than 0: clocks differ. */
  isOverdue(): boolean {
    const { everySeconds } = this.#config.checkpoint;
    if (this.#ranks.rank !== 0 || everySeconds === null) return false;
    return performance.now() - this.#last.at >= everySeconds * 1000;
  }

  /**
   * Writes a checkpoint of `step` steps, unless there is one. A collective: to be called on every rank.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async save(step: number, history: CheckpointManifest['history']): Promise<void> {
    if (this.#last.step === step) return;
    const { job, seed, checkpoint: settings } = this.#config;
    const { log, progress } = this.#program;
    const { rank, size: worldSize } = this.#ranks;
    const time = new Date();
    progress.update({ stage: 'Checkpointing' });
    await saveCheckpoint(this.#session, {
      fence: this.#fence,
      keep: settings.keep,
      job: { name: job.name, uid: job.uid },
      step,
      seed,
      numClasses: this.#size.numClasses,
      history,
      time,
      rank,
      worldSize,
      onFile: () => progress.tick(),
    });
    this.#last = { step, at: performance.now() };
    progress.update({ checkpoint: { step, time: time.toISOString() } });
    log[rank === 0 ? 'info' : 'debug']({ step }, 'checkpoint written');
  }
}
