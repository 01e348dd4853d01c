/** The checkpoints of one job: which one training resumes from, and when the next is overdue. Formats: checkpoint/. */
import { setTimeout as delay } from 'node:timers/promises';
import {
  type AnyCheckpointManifest,
  type CheckpointManifest,
  CurveEvaluation,
  type Curves,
  ExitCode,
  FacetrainError,
  MAX_SET_ASIDE,
  MAX_SET_ASIDE_REASON,
  ROWS_OPTIMIZER_NAMES,
  type TrainerConfig,
} from '@facetrain/api';
import { type Capabilities, capabilities, type TrainingSession, type TrainingSessionContract } from '@facetrain/native';
import { type Checkpoint, checkContent, checkpointDirectory, DamagedCheckpoint } from '../checkpoint/directory.ts';
import { evaluationOf } from '../checkpoint/evaluations.ts';
import { type FolderLabels, folderLabels, haveKeptLabels, labelsMoved, labelsOf } from '../checkpoint/folder-labels.ts';
import { type JobFacts, loadCheckpoint, rowsOptimizerOf, zeroRows } from '../checkpoint/load.ts';
import { type Identities, readIdentities } from '../checkpoint/retired.ts';
import { PendingCheckpoint } from '../checkpoint/save.ts';
import type { CheckpointStore } from '../checkpoint/target.ts';
import type { Preflight } from '../dataset/dataset-preflight.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';
import { type HeadFacts, headFacts, type KeptSteps } from './kept-steps.ts';

const done = Promise.resolve();
/** Between two looks whether a store is away, in milliseconds. */
const LOOK_EVERY_MS = 20;
/** Between two collectives of ranks that wait for storage, in milliseconds. */
const TELL_EVERY_MS = 2_000;

/** A checkpoint between its beginning and its completion. */
interface Flight {
  pending: PendingCheckpoint;
  time: Date;
  /** All ranks have written, and rank 0 knows of it. */
  isGathered: boolean;
  /** This rank has voted that it writes. */
  hasVoted: boolean;
  /** The votes of a step have said that a rank writes. */
  wasVoted: boolean;
}

/** The state from which a training goes on: of a checkpoint, or kept in memory. */
export interface ResumedState {
  /** Steps done. */
  step: number;
  history: CheckpointManifest['history'];
  /** Of the training up to this step, on rank 0; empty where a version of before did not record them. */
  curves: Curves;
  /** The newest checkpoint, of fewer steps where these were kept in memory; null if there is none. */
  checkpoint: HeadFacts | null;
}

/** What of a checkpoint the training itself does not need. */
export type Recorded = Pick<CheckpointManifest, 'history' | 'curves'>;

type DatasetFacts = Pick<Preflight, 'numClasses' | 'folders'> & { totalSteps: number };

type Session = TrainingSessionContract & Pick<TrainingSession, 'rowsPlacement'>;

export class JobCheckpoints {
  readonly #session: Session;
  readonly #store: CheckpointStore;
  readonly #config: TrainerConfig;
  readonly #dataset: DatasetFacts;
  /** Of an image folder. */
  readonly #labels: FolderLabels | null;
  readonly #ranks: Ranks;
  readonly #program: Program;
  /** The newest checkpoint that was begun; before the first one, the start of training. Its time is the manifest's. */
  #last: { step: number; at: number; time: string | undefined } = { step: 0, at: performance.now(), time: undefined };
  #inFlight: Flight | undefined;
  /** Of the checkpoint that training has resumed from. */
  #identities: Identities | undefined;
  /** How the CPUs of the ranks multiply bfloat16. */
  #processors: Capabilities['bf16'][] = [];
  readonly #statistics = { count: 0, stallSeconds: 0, whileTrainingWaited: 0 };

  constructor(
    session: Session,
    store: CheckpointStore,
    config: TrainerConfig,
    dataset: DatasetFacts,
    ranks: Ranks,
    program: Program,
  ) {
    this.#session = session;
    this.#store = store;
    this.#config = config;
    this.#dataset = dataset;
    this.#labels = ranks.rank === 0 && dataset.folders ? folderLabels(dataset.folders) : null;
    this.#ranks = ranks;
    this.#program = program;
  }

  /**
   * Loads the newest checkpoint that is intact into the session, unless newer steps were kept in memory. Damaged ones
   * are renamed, and kept for people. A collective: to be called on every rank.
   * @returns undefined when there is no state to go on from
   * @throws FacetrainError InvalidCheckpoint when it does not fit this job, or all are damaged; InvalidDataset when its
   * labels are no longer whose they were; FencedOff, StorageFailed
   */
  async resume(kept: KeptSteps): Promise<ResumedState | undefined> {
    const { job, model, seed, precision, checkpoint: settings } = this.#config;
    const { log, progress } = this.#program;
    this.#processors = [...new Set(await gatherJson(this.#session, capabilities().bf16))].toSorted();
    for (;;) {
      // Rank 0 decides for all: on a network file system, other ranks may see an older state of the folder.
      const newest =
        this.#ranks.rank === 0
          ? await this.#store.findNewest((damage, step) => this.#setAside(damage, step))
          : undefined;
      const own = newest
        ? { head: headFacts(newest.manifest), time: newest.manifest.time, labels: labelsOf(newest.manifest) }
        : null;
      const [found] = await gatherJson(this.#session, own);
      const head = found?.head ?? null;
      if (found) this.#checkLabels(found.head.step, found.labels);
      const recalled = await kept.recall(head);
      if (recalled) {
        this.#last = { step: head?.step ?? 0, at: performance.now(), time: found?.time };
        if (found) progress.update({ checkpoint: { step: found.head.step, time: found.time } });
        this.#identities = recalled.identities;
        if (recalled.identities) await this.#retire();
        return { ...recalled, checkpoint: head };
      }
      if (!head) return undefined;
      const { step } = head;

      const loaded = await this.#load(step, {
        name: settings.shared ? null : job.name,
        seed,
        precision,
        numClasses: this.#dataset.numClasses,
        mayAddClasses: model.numClasses !== null,
        totalSteps: this.#dataset.totalSteps,
        onBlock: () => progress.tick(),
      });
      if (!loaded) continue;
      const { manifest, directory } = loaded;
      this.#last = { step, at: performance.now(), time: manifest.time };
      progress.update({ checkpoint: { step, time: manifest.time } });
      // The uid is not compared: a job that was deleted and created again has a new one, and continues from the
      // checkpoint.
      const { job: writtenBy, worldSize } = manifest;
      const { precision: used } = this.#session;
      log.info({ step, writtenBy, worldSize, precision: used, directory }, 'resumed from a checkpoint');
      if (manifest.numClasses < this.#dataset.numClasses)
        log.info({ from: manifest.numClasses, to: this.#dataset.numClasses }, 'added classes, with rows from the seed');
      this.#logConversion(manifest);
      this.#logSettings(manifest);
      // Retired classes that the checkpoint has no row of: the session has drawn them from the seed.
      const retired = this.#identities!.retired.map((each) => each.class);
      await zeroRows(
        this.#session,
        retired.filter((id) => id >= manifest.numClasses),
      );
      await this.#retire();
      this.#logProcessors(manifest);
      return { step, history: manifest.history, curves: await this.#curvesOf(manifest), checkpoint: head };
    }
  }

  /** A checkpoint's curves, with the evaluation of its own step, which was made after it. */
  async #curvesOf({ job, step, time, ...manifest }: AnyCheckpointManifest): Promise<Curves> {
    const stored = manifest.schemaVersion === 2 ? manifest.curves : undefined;
    const curves = stored ?? { attempts: [], intervals: [], evaluations: [] };
    if (this.#ranks.rank !== 0) return curves;
    const noted = evaluationOf(await this.#store.evaluations(), { job: job.name, step, time });
    const sets = noted?.sets ?? [];
    // A version of before has noted accuracies only.
    const own = sets.flatMap((result) => CurveEvaluation.safeParse({ ...result, step }).data ?? []);
    return { ...curves, evaluations: [...curves.evaluations, ...own] };
  }

  /** @throws FacetrainError InvalidDataset, on every rank alike */
  #checkLabels(step: number, labels: FolderLabels | null): void {
    const { folders } = this.#dataset;
    if (!folders) return;
    if (labels && !haveKeptLabels(folders, labels)) throw labelsMoved(this.#config.dataset.path, folders, labels, step);
    if (!labels && this.#ranks.rank === 0)
      this.#program.log.warn({ step }, 'a former version wrote the checkpoint: it does not say whose its labels are');
  }

  /** What has changed about the head since its training began; undefined without a checkpoint. */
  get identities(): Identities | undefined {
    return this.#identities;
  }

  async #retire(): Promise<void> {
    const { retired } = this.#identities!;
    if (retired.length === 0) return;
    await this.#session.retire(retired);
    const removed = retired.filter(({ into }) => into === null).length;
    this.#program.log.info({ removed, merged: retired.length - removed }, 'identities that are no longer trained');
  }

  /** What a training may change when it goes on, by the job's fields. */
  get #settings(): Record<string, string> {
    const { loss, optimizer } = this.#config;
    const { type, ...margin } = loss.margin;
    return {
      'loss.margin': [type, ...Object.entries(margin).map((value) => value.join(' '))].join(', '),
      'loss.scale': String(loss.scale),
      'loss.gradient': loss.gradient,
      'loss.sampleRate': String(loss.sampleRate),
      'loss.rows.placement': this.#session.rowsPlacement,
      'optimizer.rowUpdate': optimizer.rowUpdate,
    };
  }

  #logSettings({ step, stepsPerEpoch, ...manifest }: AnyCheckpointManifest): void {
    const { log } = this.#program;
    const before = (manifest.schemaVersion === 2 && manifest.settings) || {};
    for (const [setting, to] of Object.entries(this.#settings)) {
      const from = before[setting];
      if (from !== undefined && from !== to) log.info({ setting, from, to }, 'a setting is another than before');
    }
    const { stepsPerEpoch: now } = this.#session;
    if (now !== stepsPerEpoch)
      log.info(
        { stepsPerEpoch: { from: stepsPerEpoch, to: now }, epoch: { from: step / stepsPerEpoch, to: step / now } },
        'the dataset has another number of pictures: epochs, schedule and sampleRateChanges count by the new steps',
      );
  }

  /** Undefined where the bits do not depend on it. */
  get #bf16(): Capabilities['bf16'][] | undefined {
    const { device, precision } = this.#session;
    return device === 'cpu' && precision === 'bf16' ? this.#processors : undefined;
  }

  #logProcessors(manifest: AnyCheckpointManifest): void {
    const from = manifest.schemaVersion === 2 ? manifest.bf16 : undefined;
    const to = this.#bf16;
    if (!from || !to || from.join() === to.join()) return;
    this.#program.log[this.#ranks.rank === 0 ? 'warn' : 'debug'](
      { from, to },
      'other processors than before multiply bfloat16: the model will differ by rounding from one trained on either',
    );
  }

  /** loss.rows.precision and optimizer may have changed: loading has converted the class centres. */
  #logConversion(manifest: AnyCheckpointManifest): void {
    const stored = manifest.schemaVersion === 1 ? 'float32' : manifest.rows.tensors[0]!.dtype;
    const { dtype } = this.#session.rowTensors[0]!;
    if (stored !== dtype) this.#program.log.info({ from: stored, to: dtype }, 'converted the class centres');
    const [from, to] = [rowsOptimizerOf(manifest), ROWS_OPTIMIZER_NAMES[this.#session.rowsOptimizer]];
    if (from !== to)
      this.#program.log.info({ from, to }, 'the optimizer of the class centres is another: its state starts anew');
  }

  /** A collective. @returns undefined when the checkpoint is damaged, and rank 0 has set it aside */
  async #load(step: number, expected: JobFacts): Promise<Checkpoint | undefined> {
    let loaded: Checkpoint | undefined;
    let damage: DamagedCheckpoint | undefined;
    try {
      loaded = await this.#store.open(step);
      await loadCheckpoint(this.#session, loaded, expected);
      this.#identities = await readIdentities(loaded);
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
      subject: checkpointDirectory(this.#store.name, step),
      found: `rank 0 finds it intact, rank ${reporter} does not (${found[reporter]!.message})`,
      allowed: 'one folder with the same content for all ranks',
      exitCode: ExitCode.failure,
    });
  }

  /** On rank 0: whether a file of a checkpoint is damaged. If it is, the checkpoint is set aside. */
  async #confirm(step: number, file: string): Promise<boolean> {
    if (this.#ranks.rank !== 0) return false;
    try {
      const checkpoint = await this.#store.open(step);
      await checkContent(checkpoint, file);
      return false;
    } catch (error) {
      if (!(error instanceof DamagedCheckpoint)) throw error;
      await this.#setAside(error, step);
      return true;
    }
  }

  async #setAside({ message }: DamagedCheckpoint, step: number): Promise<void> {
    const { log, progress } = this.#program;
    const kept = await this.#store.setAside(step);
    log.warn({ step, kept }, `set aside a damaged checkpoint: ${message}`);
    if (kept === undefined) return;
    const { setAside = [] } = progress.current;
    const entry = { folder: kept, reason: message.slice(0, MAX_SET_ASIDE_REASON) };
    progress.update({ setAside: [...setAside, entry].slice(-MAX_SET_ASIDE) });
  }

  /**
   * Whether everySeconds have passed since the last one. Always false on ranks other than 0: clocks differ. Also false
   * while one is being written, for which the next one would have to wait.
   */
  isOverdue(): boolean {
    const { everySeconds } = this.#config.checkpoint;
    if (this.#ranks.rank !== 0 || everySeconds === null || this.#inFlight) return false;
    return performance.now() - this.#last.at >= everySeconds * 1000;
  }

  /**
   * This rank's vote for the next step: whether it still writes. The first vote after begin() is always yes, so that
   * advance() does not take the votes of an earlier step for those about this checkpoint.
   */
  voteWriting(): boolean {
    const flight = this.#inFlight;
    if (!flight || flight.isGathered) return false;
    const isFirst = !flight.hasVoted;
    flight.hasVoted = true;
    return isFirst || !flight.pending.isWritten;
  }

  /**
   * Notes how the state after `step` steps verifies, if there is a checkpoint of it, complete or on its way: for
   * `keepBest`, and for the curves of an attempt that goes on from this step. To be called on every rank.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async noteEvaluation(step: number, results: readonly CurveEvaluation[]): Promise<void> {
    const sets = results.filter((result) => result.step === step).map(({ step: _, ...result }) => result);
    const { time } = this.#last;
    if (this.#ranks.rank !== 0 || sets.length === 0 || this.#last.step !== step || time === undefined) return;
    await this.#store.noteEvaluation({ job: this.#config.job.name, step, time, sets });
  }

  /** What the progress and the report say: of this attempt. */
  get statistics(): { count: number; stallSeconds: number; whileTrainingWaited: number } {
    return { ...this.#statistics };
  }

  /** @throws FacetrainError FencedOff, DiskFull, StorageFailed when a write in the background has failed */
  throwIfFailed(): void {
    this.#inFlight?.pending.throwIfFailed();
  }

  /**
   * Begins a checkpoint of `step` steps, unless there is one, and returns when training may go on: when the state is
   * copied, or, without memory for a copy, when this rank has written it. The former one is completed before. A
   * collective: to be called on every rank.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async begin(step: number, recorded: Recorded): Promise<void> {
    if (this.#last.step === step) return;
    await this.#whileTrainingWaits(async () => {
      if (await this.#mustSkip(step)) return;
      await this.#finish();
      await this.#begin(step, recorded);
    });
  }

  /**
   * Waits for the checkpoint in flight, but not for a store that is away: training then goes on without a newer one. A
   * collective where there is such a store.
   */
  async #mustSkip(step: number): Promise<boolean> {
    if (this.#config.checkpoint.store === null) return false;
    const flight = this.#inFlight;
    let away: { rank: number; reason: string }[];
    for (;;) {
      flight?.pending.throwIfFailed();
      // Gathered: rank 0 completes it, and has it in flight until then.
      const isBusy =
        flight !== undefined && this.#inFlight === flight && (flight.isGathered || !flight.pending.isWritten);
      const states = await gatherJson(this.#session, { isBusy, reason: isBusy ? this.#store.away : null });
      if (states.some((rank) => rank.isBusy)) {
        away = states.flatMap(({ reason }, rank) => (reason === null ? [] : [{ rank, reason }]));
        if (away.length > 0) break;
        await delay(LOOK_EVERY_MS);
      } else if (flight && !flight.isGathered) {
        await this.#gather(flight);
      } else {
        return false;
      }
    }
    const { log } = this.#program;
    log[this.#ranks.rank === 0 ? 'warn' : 'debug'](
      { step, waiting: flight?.pending.step, away },
      'left a checkpoint out: the object store is away, and the one before it waits for it',
    );
    return true;
  }

  /**
   * Completes the checkpoint in flight, if all ranks have written it; rank 0 does that while training goes on. To be
   * called on every rank after each step, with the votes of all.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async advance(votes: { writing: boolean }): Promise<void> {
    const flight = this.#inFlight;
    if (!flight || flight.isGathered) return;
    if (votes.writing) flight.wasVoted = true;
    else if (flight.wasVoted) await this.#whileTrainingWaits(() => this.#gather(flight));
  }

  /**
   * As advance(), where no step brings the votes: an evaluation may take as long as many steps, and what ends it must
   * not cost the checkpoint before it. A collective: to be called on every rank.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async advanceWithoutStep(): Promise<void> {
    const flight = this.#inFlight;
    if (!flight || flight.isGathered) return;
    const written = await gatherJson(this.#session, flight.pending.isWritten);
    if (written.every(Boolean)) await this.#gather(flight);
  }

  /**
   * Writes a checkpoint of `step` steps, unless there is one, and returns when it is complete. A collective: to be
   * called on every rank.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async save(step: number, recorded: Recorded): Promise<void> {
    await this.#whileTrainingWaits(async () => {
      await this.#finish();
      if (this.#last.step !== step) await this.#begin(step, recorded);
      await this.#finish();
      // No rank continues before the checkpoint is complete.
      await this.#session.barrier();
    });
  }

  async #begin(step: number, recorded: Recorded): Promise<void> {
    const { job, seed, checkpoint: settings } = this.#config;
    const { log, progress } = this.#program;
    const { rank, size: worldSize } = this.#ranks;
    const time = new Date();
    const begunAt = performance.now();
    const lossScale = await this.#session.lossScale();
    const normStatistics = await this.#session.normStatistics();
    const copy = await this.#session.copyState({ backbone: rank === 0 });
    const pending = new PendingCheckpoint(this.#session, copy, {
      target: this.#store,
      retention: settings,
      job: { name: job.name, uid: job.uid },
      step,
      seed,
      numClasses: this.#dataset.numClasses,
      ...recorded,
      ...(this.#identities && { identities: this.#identities }),
      labels: this.#labels,
      settings: this.#settings,
      bf16: this.#bf16,
      lossScale,
      normStatistics,
      time,
      rank,
      worldSize,
      onBlock: () => progress.tick(),
    });
    this.#last = { step, at: begunAt, time: time.toISOString() };
    this.#inFlight = { pending, time, isGathered: false, hasVoted: false, wasVoted: false };
    if (!copy) {
      this.#statistics.whileTrainingWaited += 1;
      if (this.#statistics.whileTrainingWaited === 1)
        log.warn({ step }, 'no memory for a copy of the state: training waits while this rank writes its checkpoints');
    }
    // A store may be away for longer than the others wait in the next step.
    if (settings.store) await this.#untilAll(copy ? done : pending.written, () => copy !== null || pending.isWritten);
    else if (!copy) await pending.written;
  }

  /** Waits until the checkpoint in flight is complete on all ranks. A collective: to be called on every rank. */
  async #finish(): Promise<void> {
    const flight = this.#inFlight;
    // On ranks other than 0 there is none any more when all is gathered.
    const needsGather = flight !== undefined && !flight.isGathered;
    if (needsGather) {
      await this.#untilAll(flight.pending.written, () => flight.pending.isWritten);
      await this.#gather(flight);
    }
    const completed = flight?.pending.completed ?? done;
    await this.#untilAll(completed, () => !flight?.isGathered || this.#inFlight !== flight);
    if (flight) this.#complete(flight);
  }

  /**
   * Waits for something that each rank does. Storage may be away for longer than ranks wait for each other in a
   * collective: so they tell each other from time to time that they still wait.
   */
  async #untilAll(work: Promise<unknown>, isDone: () => boolean): Promise<void> {
    for (;;) {
      const timer = new AbortController();
      try {
        await Promise.race([work, delay(TELL_EVERY_MS, undefined, { signal: timer.signal }).catch(() => {})]);
      } finally {
        timer.abort();
      }
      if ((await gatherJson(this.#session, isDone())).every(Boolean)) return;
    }
  }

  async #gather(flight: Flight): Promise<void> {
    await flight.pending.gather();
    flight.isGathered = true;
    if (this.#ranks.rank !== 0) this.#complete(flight);
    // What fails is thrown by throwIfFailed() and by #finish().
    else
      flight.pending.completed.then(
        () => this.#complete(flight),
        () => {},
      );
  }

  #complete(flight: Flight): void {
    if (this.#inFlight !== flight) return;
    this.#inFlight = undefined;
    this.#statistics.count += 1;
    const { log, progress } = this.#program;
    const { step } = flight.pending;
    const time = flight.time.toISOString();
    progress.update({ checkpoint: { step, time }, checkpoints: this.statistics });
    log[this.#ranks.rank === 0 ? 'info' : 'debug'](
      { step, seconds: (performance.now() - this.#last.at) / 1000, whileAtStep: progress.current.step },
      'checkpoint written',
    );
  }

  async #whileTrainingWaits(work: () => Promise<void>): Promise<void> {
    const { progress } = this.#program;
    const start = performance.now();
    progress.update({ stage: 'Checkpointing' });
    await work();
    this.#statistics.stallSeconds += (performance.now() - start) / 1000;
    progress.update({ checkpoints: this.statistics });
  }
}
