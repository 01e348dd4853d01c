/** The checkpoints of one job: which one training resumes from, and when the next is overdue. Formats: checkpoint/. */
import type { CheckpointManifest, TrainerConfig } from '@facetrain/api';
import type { TrainingSessionContract } from '@facetrain/native';
import { findNewest, openCheckpoint } from '../checkpoint/directory.ts';
import { loadCheckpoint } from '../checkpoint/load.ts';
import { saveCheckpoint } from '../checkpoint/save.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';

export class JobCheckpoints {
  readonly #session: TrainingSessionContract;
  readonly #config: TrainerConfig;
  readonly #size: { numClasses: number; totalSteps: number };
  readonly #ranks: Ranks;
  readonly #program: Program;
  /** The newest checkpoint; before the first one, the start of training. */
  #last = { step: 0, at: performance.now() };

  constructor(
    session: TrainingSessionContract,
    config: TrainerConfig,
    size: { numClasses: number; totalSteps: number },
    ranks: Ranks,
    program: Program,
  ) {
    this.#session = session;
    this.#config = config;
    this.#size = size;
    this.#ranks = ranks;
    this.#program = program;
  }

  /**
   * Loads the newest checkpoint into the session. A collective: to be called on every rank.
   * @returns its manifest; undefined when there is no checkpoint
   * @throws FacetrainError InvalidCheckpoint when it is damaged or does not fit this job; StorageFailed
   */
  async resume(): Promise<CheckpointManifest | undefined> {
    const { job, seed, checkpoint: settings } = this.#config;
    const { log, progress } = this.#program;
    // Rank 0 decides for all: on a network file system, other ranks may see an older state of the folder.
    const newest = this.#ranks.rank === 0 ? await findNewest(settings.directory) : undefined;
    const [step] = await gatherJson(this.#session, newest?.manifest.step ?? null);
    if (step === null || step === undefined) return undefined;

    const checkpoint = await openCheckpoint(settings.directory, step);
    await loadCheckpoint(this.#session, checkpoint, {
      name: settings.shared ? null : job.name,
      seed,
      numClasses: this.#size.numClasses,
      totalSteps: this.#size.totalSteps,
      onFile: () => progress.tick(),
    });
    const { manifest, directory } = checkpoint;
    this.#last = { step, at: performance.now() };
    progress.update({ checkpoint: { step, time: manifest.time } });
    // The uid is not compared: a job that was deleted and created again has a new one, and continues from the
    // checkpoint.
    const { job: writtenBy, worldSize } = manifest;
    log.info({ step, writtenBy, worldSize, directory }, 'resumed from a checkpoint');
    return manifest;
  }

  /** Whether everySeconds have passed since the last one. Always false on ranks other than 0: clocks differ. */
  isOverdue(): boolean {
    const { everySeconds } = this.#config.checkpoint;
    if (this.#ranks.rank !== 0 || everySeconds === null) return false;
    return performance.now() - this.#last.at >= everySeconds * 1000;
  }

  /**
   * Writes a checkpoint of `step` steps, unless there is one. A collective: to be called on every rank.
   * @throws FacetrainError DiskFull, StorageFailed
   */
  async save(step: number, history: CheckpointManifest['history']): Promise<void> {
    if (this.#last.step === step) return;
    const { job, seed, checkpoint: settings } = this.#config;
    const { log, progress } = this.#program;
    const { rank, size: worldSize } = this.#ranks;
    const time = new Date();
    progress.update({ stage: 'Checkpointing' });
    await saveCheckpoint(this.#session, {
      root: settings.directory,
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
