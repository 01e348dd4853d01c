/**
 * The folder that the trainers of a job write to, and the processes that write there, for property tests. The rules are
 * those of trainer-image/src/storage/fence.ts and trainer-image/src/checkpoint:
 *
 * - A process claims the folder with the next number, unless an attempt after its own has claimed it. From then on
 *   every older process is fenced off: what it has staged is gone, and nothing of it comes to its place any more.
 * - It continues from the newest checkpoint, removes what others have left unfinished, trains, and writes a checkpoint
 *   in two steps: files are staged, and later moved to their place. Between the two it may be frozen for any time.
 *
 * Without fences (`fenced: false`) the rules are those of a folder that relies on the planner alone: it has no claims
 * that are enforced, and unfinished files of others lie where everyone writes.
 */

/** A checkpoint in its place, which the next process may continue from. */
interface Checkpoint {
  step: number;
  /** Number of the claim of its writer. */
  writer: number;
  /** All that its manifest lists is there. */
  complete: boolean;
}

/** Rank 0 of an attempt, from its start to its end. It may outlive its pod. */
export interface WriterProcess {
  attempt: number;
  claim: number | null;
  step: number;
  staged: { step: number; complete: boolean } | null;
  /** Why it has ended; null while it may still write. */
  ended: 'succeeded' | 'fenced off' | 'killed' | null;
}

/** What a process does next. Each is one access to the storage, or a part of one. */
export type WriterStep = 'claim' | 'train' | 'stage' | 'publish' | 'export';

/** What must never happen. */
export type Violation =
  /** A process finds a checkpoint of which a part is missing. It sets it aside, and takes the one before. */
  | 'damaged checkpoint'
  /** A process continues from before a step that the newest process of its time had saved. */
  | 'step lost'
  /** A process continues from a checkpoint of one that was not the newest, though the newest had written some. */
  | 'base of a zombie'
  /** The model was written by a process that was not the newest. */
  | 'model of a zombie'
  /** A process of the newest attempt cannot write. */
  | 'newest fenced off';

/** That a process trains between two checkpoints. */
export const STEPS = 10;

export class CheckpointFolder {
  readonly fenced: boolean;
  readonly violations = new Set<Violation>();
  /** Number of the claim of the process that wrote the model. */
  modelWriter: number | null = null;
  #claims: { number: number; attempt: number }[] = [];
  /** Newest first. */
  #checkpoints: Checkpoint[] = [];
  /** The last checkpoint that the newest process of its time has written. */
  #saved: { step: number; writer: number } | null = null;
  #writers: WriterProcess[] = [];

  constructor(fenced: boolean) {
    this.fenced = fenced;
  }

  /** Number of the newest claim; 0 before the first. */
  get newest(): number {
    return this.#claims.at(-1)?.number ?? 0;
  }

  start(attempt: number): WriterProcess {
    const process: WriterProcess = { attempt, claim: null, step: 0, staged: null, ended: null };
    this.#writers.push(process);
    return process;
  }

  /** Lets a process do a step, if it is alive and has come that far. */
  act(process: WriterProcess, step: WriterStep): void {
    if (process.ended !== null) return;
    if (step === 'claim') return process.claim === null ? this.#claim(process) : undefined;
    if (process.claim === null) return;
    switch (step) {
      case 'train':
        process.step += STEPS;
        return;
      case 'stage':
        process.staged = { step: process.step, complete: true };
        return;
      case 'publish':
        if (process.staged && this.#mayWrite(process)) this.#publish(process.claim, process.staged);
        process.staged = null;
        return;
      case 'export':
        if (!this.#mayWrite(process)) return;
        if (process.claim !== this.newest) this.violations.add('model of a zombie');
        this.modelWriter = process.claim;
    }
  }

  #claim(process: WriterProcess): void {
    if (this.fenced && this.#claims.some(({ attempt }) => attempt > process.attempt)) return this.#fenceOff(process);
    process.claim = this.newest + 1;
    this.#claims.push({ number: process.claim, attempt: process.attempt });
    // What others have staged is removed. Without a fence they do not notice, and publish what is no longer complete.
    for (const other of this.#writers) if (other !== process && other.staged) other.staged.complete = false;
    if (this.#checkpoints.some(({ complete }) => !complete)) this.violations.add('damaged checkpoint');
    this.#checkpoints = this.#checkpoints.filter(({ complete }) => complete);
    const [base] = this.#checkpoints;
    if (this.#saved) {
      if ((base?.step ?? 0) < this.#saved.step) this.violations.add('step lost');
      if (base && base.writer !== this.#saved.writer) this.violations.add('base of a zombie');
    }
    process.step = base?.step ?? 0;
  }

  #mayWrite(process: WriterProcess): boolean {
    if (!this.fenced || process.claim === this.newest) return true;
    this.#fenceOff(process);
    return false;
  }

  #fenceOff(process: WriterProcess): void {
    process.ended = 'fenced off';
    if (process.attempt >= Math.max(...this.#writers.map(({ attempt }) => attempt)))
      this.violations.add('newest fenced off');
  }

  /** A checkpoint of the same step is replaced; of the others the newest are kept. */
  #publish(writer: number, { step, complete }: { step: number; complete: boolean }): void {
    this.#checkpoints = [...this.#checkpoints.filter((other) => other.step !== step), { step, writer, complete }]
      .sort((a, b) => b.step - a.step)
      .slice(0, 3);
    if (writer === this.newest) this.#saved = { step, writer };
  }
}
