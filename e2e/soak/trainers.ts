/**
 * Trainers without a model: what the processes of gangs do as others see it. They wait for each other, claim the folder
 * of checkpoints, count steps, save, end together, and stop when they are told to. A gang saves to a
 * `CheckpointFolder`, which has the rules of the real one, or to a real object store; both note what must never happen.
 * A process may outlive its pod.
 */
import { ExitCode, FacetrainError, type Progress, progressAtStart } from '@facetrain/api';
import { CheckpointFolder, STEPS, type WriterProcess } from '@facetrain/planner/testing/checkpoint-folder';
import type { Random } from './random.ts';
import { type Store, StoredCheckpoints } from './stored-checkpoints.ts';

/** Of one tick: milliseconds. */
export const TICK_MILLISECONDS = 100;
/** Between two of them a gang saves; at this many it exports. */
const SAVES = 8;
/** For ten steps. */
const TRAIN_TICKS = 6;
/** How long a process waits for a peer that is not there, in ticks. */
const PEER_TICKS = 15;
/** How long a gang waits until it is whole, in ticks. */
const RENDEZVOUS_TICKS = 600;
/** Between the files of a checkpoint and its manifest. */
const SAVE_TICKS = 2;
const QUANTIZE_TICKS = 20;

export interface ProcessIdentity {
  podName: string;
  podUid: string;
  job: { kind: 'FaceTrainJob' | 'QuantizeJob'; name: string; uid: string };
  attempt: number;
  rank: number;
  world: number;
  /** It holds the place of a trainer, and does nothing else. */
  isPlaceholder: boolean;
  /** Its job writes to the object store. */
  isStored: boolean;
}

export interface End {
  exitCode: number;
  /** Termination message. */
  message?: object;
}

export class TrainerProcess {
  readonly identity: ProcessIdentity;
  end: End | undefined;
  /** It got SIGTERM. */
  isStopping = false;
  /** Ticks for which it does nothing: SIGSTOP, a machine that swaps, a GPU that hangs. */
  frozen = 0;
  /** The processes that it has met, by rank. One that is started again in its pod meets others that are, too. */
  peers: TrainerProcess[] | undefined;
  /** Of rank 0, once the gang is whole. */
  writer: WriterProcess | undefined;
  activity = 0;
  waited = 0;
  ticks = 0;
  /** An access to the storage has not ended. */
  isBusy = false;

  constructor(identity: ProcessIdentity) {
    this.identity = identity;
  }

  /** SIGKILL: it says nothing. */
  kill(): void {
    this.end ??= { exitCode: 137 };
    if (this.writer) this.writer.ended ??= 'killed';
  }

  fail(exitCode: number, code: string, message: string): void {
    this.end ??= { exitCode, message: { code, message } };
    if (this.writer) this.writer.ended ??= 'killed';
  }
}

/** All processes of all jobs, and the folders that they write to. */
export class Trainers {
  readonly processes = new Set<TrainerProcess>();
  /** By the uid of a FaceTrainJob. */
  readonly folders = new Map<string, CheckpointFolder | StoredCheckpoints>();
  /** Highest step of a checkpoint that any process saved, by the uid of a job. */
  readonly saved = new Map<string, number>();
  /** Uids of QuantizeJobs whose process has published. */
  readonly published = new Set<string>();
  readonly #random: Random;
  readonly #store: Store;

  constructor(random: Random, store: Store) {
    this.#random = random;
    this.#store = store;
  }

  start(identity: ProcessIdentity): TrainerProcess {
    const process = new TrainerProcess(identity);
    this.processes.add(process);
    return process;
  }

  /** Those that have not ended. */
  get running(): TrainerProcess[] {
    return [...this.processes].filter(({ end }) => end === undefined);
  }

  tick(): void {
    for (const { end, writer, identity } of this.processes)
      if (end && writer && identity.isStored) (this.folders.get(identity.job.uid) as StoredCheckpoints).end(writer);
    for (const process of this.running) {
      if (process.frozen > 0) process.frozen--;
      else if (process.end !== undefined) continue;
      else if (process.identity.isPlaceholder) {
        if (process.isStopping) process.end = { exitCode: ExitCode.preempted };
      } else if (process.identity.job.kind === 'QuantizeJob') this.#quantize(process);
      else this.#train(process);
    }
  }

  progressOf(process: TrainerProcess): Progress {
    const { job, attempt } = process.identity;
    const step = process.writer?.step ?? 0;
    const saved = this.saved.get(job.uid);
    return {
      ...progressAtStart({ name: job.name, uid: job.uid, attempt }, process.writer ? 'Training' : 'Rendezvous'),
      step,
      totalSteps: STEPS * SAVES,
      epoch: step / STEPS,
      checkpoint: saved === undefined ? null : { step: saved, time: new Date().toISOString() },
      activity: process.activity,
    };
  }

  /** The processes of the same attempt, by rank: the last that was started. */
  #gang({ identity }: TrainerProcess): (TrainerProcess | undefined)[] {
    const gang: (TrainerProcess | undefined)[] = Array.from({ length: identity.world });
    for (const process of this.processes) {
      const { job, attempt, rank, isPlaceholder } = process.identity;
      if (job.uid === identity.job.uid && attempt === identity.attempt && !isPlaceholder) gang[rank] = process;
    }
    return gang;
  }

  #train(process: TrainerProcess): void {
    const { identity } = process;
    const gang = this.#gang(process);
    const rank0 = gang[0];
    if (process.isStopping) return this.#alone(process, () => this.#stop(process));
    // A process that has outlived its pod, and whose rank has another one: its peers do not find it.
    if (gang[identity.rank] !== process || gang.some((peer) => peer === undefined)) {
      process.waited++;
      if (process.writer !== undefined || process.waited > RENDEZVOUS_TICKS)
        process.fail(ExitCode.peerLost, 'PeerLost', 'not all ranks have come');
      return;
    }
    if (rank0?.end?.exitCode === ExitCode.success) {
      process.end = { exitCode: ExitCode.success };
      return;
    }
    const met = process.peers;
    const stuck = gang.some((peer, rank) => peer!.end !== undefined || (met && met[rank] !== peer));
    process.waited = stuck ? process.waited + 1 : 0;
    if (stuck) {
      if (process.waited > PEER_TICKS) process.fail(ExitCode.peerLost, 'PeerLost', 'a rank no longer answers');
      return;
    }
    if (!met && (gang as TrainerProcess[]).some(({ peers }) => peers && peers[identity.rank] !== process)) return;
    process.peers ??= gang as TrainerProcess[];
    if (identity.rank !== 0 || gang.some((peer) => peer!.frozen > 0)) return;
    this.#alone(process, () => this.#advance(process));
  }

  /** Runs what may take longer than a tick, unless the process has not ended the last. */
  #alone(process: TrainerProcess, work: () => Promise<void>): void {
    if (process.isBusy) return;
    process.isBusy = true;
    void work()
      .catch((error: unknown) => {
        if (!(error instanceof FacetrainError)) throw error;
        process.fail(error.exitCode, error.code, error.message);
      })
      .finally(() => {
        process.isBusy = false;
      });
  }

  /** A tick of the whole gang, by rank 0. */
  async #advance(process: TrainerProcess): Promise<void> {
    const { job, attempt } = process.identity;
    const folder = this.#folder(process);
    if (process.writer === undefined) {
      const writer = folder.start(attempt, () => process.frozen > 0);
      process.writer = writer;
      await folder.act(writer, 'claim');
      // What it continues from is saved, even if its writer was killed before it knew.
      if (process.identity.isStored && writer.step > 0) this.#noteSaved(job.uid, writer.step);
    } else if (process.writer.staged) {
      if (process.ticks++ >= SAVE_TICKS) await this.#publish(process, folder);
    } else if (process.writer.step >= STEPS * SAVES) {
      await folder.act(process.writer, 'export');
      if (process.writer.ended === null) {
        process.writer.ended = 'succeeded';
        process.end = { exitCode: ExitCode.success, message: { progress: this.progressOf(process) } };
      }
    } else if (process.ticks++ >= TRAIN_TICKS + this.#random.between(0, 3)) {
      process.ticks = 0;
      await folder.act(process.writer, 'train');
      await folder.act(process.writer, 'stage');
      process.activity++;
    }
    if (process.writer.ended === 'fenced off')
      process.fail(ExitCode.fencedOff, 'FencedOff', 'another attempt has claimed the folder');
  }

  #folder({ identity: { job, isStored } }: TrainerProcess): CheckpointFolder | StoredCheckpoints {
    const known = this.folders.get(job.uid);
    if (known) return known;
    const folder = isStored ? new StoredCheckpoints(this.#store, job.uid) : new CheckpointFolder(true);
    this.folders.set(job.uid, folder);
    return folder;
  }

  #noteSaved(uid: string, step: number): void {
    this.saved.set(uid, Math.max(step, this.saved.get(uid) ?? 0));
  }

  async #publish(process: TrainerProcess, folder: CheckpointFolder | StoredCheckpoints): Promise<void> {
    const writer = process.writer!;
    process.ticks = 0;
    const step = writer.staged!.step;
    await folder.act(writer, 'publish');
    if (writer.ended !== null) return;
    this.#noteSaved(process.identity.job.uid, step);
    process.activity++;
  }

  /** SIGTERM: rank 0 saves, then all end. */
  async #stop(process: TrainerProcess): Promise<void> {
    const { writer, identity } = process;
    const folder = this.folders.get(identity.job.uid);
    if (writer && folder && writer.ended === null && process.ticks++ < SAVE_TICKS) return;
    // Without a claim it has nothing to save.
    if (writer && folder && writer.ended === null && writer.claim !== null) {
      if (!writer.staged) await folder.act(writer, 'stage');
      // Not when another attempt has claimed the folder meanwhile.
      if (writer.staged) await this.#publish(process, folder);
      if (writer.ended === 'fenced off')
        process.fail(ExitCode.fencedOff, 'FencedOff', 'another attempt has claimed the folder');
    }
    if (process.end !== undefined) return;
    if (writer) writer.ended ??= 'killed';
    process.end = {
      exitCode: ExitCode.preempted,
      ...(identity.rank === 0 && { message: { progress: this.progressOf(process) } }),
    };
  }

  #quantize(process: TrainerProcess): void {
    if (process.isStopping) process.end = { exitCode: ExitCode.preempted };
    else if (process.ticks++ >= QUANTIZE_TICKS) {
      this.published.add(process.identity.job.uid);
      process.end = { exitCode: ExitCode.success };
    }
  }
}
