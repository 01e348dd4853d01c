/**
 * `checkpoint.inMemory`: each rank keeps the state after its last two steps in a folder in memory, which outlives a
 * restart of its container in its pod. A gang that is started again goes on from there, not from its newest checkpoint.
 *
 * The newest steps that ranks have kept differ by one at most (native/train/kept_steps.h). They go on from the newest
 * one that all have. A rank without it, whose pod is new or whose file is another job's, sends all to the checkpoint.
 * So does a checkpoint that `facetrain head` has changed since: it has the identities that are trained from now on.
 */
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type AnyCheckpointManifest,
  type CheckpointManifest,
  type CurveInterval,
  type Curves,
  FacetrainError,
  type Precision,
  type TrainerConfig,
} from '@facetrain/api';
import { addonDigest, type KeptStep, type TrainingSessionContract } from '@facetrain/native';
import type { Identities } from '../checkpoint/retired.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';

type History = CheckpointManifest['history'];

/** Of Note, the file of identities and that of curves. Files of another format are forgotten. */
const FORMAT = 3;

/** What is kept with a step beside the state. */
interface Note {
  /**
   * Drawn when the state was first kept. States of different trainings of one job are never mixed: on a GPU two of them
   * need not be equal.
   */
  lineage: string;
  precision: Precision;
  hasIdentities: boolean;
  history: History;
  /** The newest of the curves: those before it are in a file. */
  interval: CurveInterval | null;
  /** That the training began with; null if it began without one. */
  checkpoint: HeadFacts | null;
}

interface KeptCurves {
  lineage: string;
  curves: Curves;
}

/** A checkpoint, and what an edit by `facetrain head` changes about it. */
export interface HeadFacts {
  step: number;
  numClasses: number;
  classesAdded: boolean;
  /** Digest of the classes that are no longer trained; null: none. */
  retired: string | null;
}

export function headFacts(manifest: AnyCheckpointManifest): HeadFacts {
  const { step, numClasses } = manifest;
  const edited = manifest.schemaVersion === 1 ? undefined : manifest;
  return {
    step,
    numClasses,
    classesAdded: edited?.classesAdded === true,
    retired: edited?.retired?.sha256 ?? null,
  };
}

/**
 * Whether a checkpoint was edited after a training began, or after that training wrote it.
 * @param begun the checkpoint that the training began with; null if it began without one
 * @param numClasses of the training
 */
export function wasEdited(newest: HeadFacts, begun: HeadFacts | null, numClasses: number): boolean {
  const wanted = newest.step === begun?.step ? begun.numClasses : numClasses;
  return (
    newest.numClasses !== wanted ||
    newest.classesAdded !== (begun?.classesAdded ?? false) ||
    newest.retired !== (begun?.retired ?? null)
  );
}

export interface RecalledState {
  step: number;
  history: History;
  /** Up to this step, on rank 0. */
  curves: Curves;
  /** Of the checkpoint that the training began with; undefined if it began without one. */
  identities: Identities | undefined;
}

/** The newest step that all ranks have of one training; null if there is none. @param ranks what each has */
export function newestCommonStep(ranks: readonly Pick<Note & KeptStep, 'step' | 'lineage'>[][]): number | null {
  const [first = [], ...others] = ranks;
  const common = first.filter(({ step, lineage }) =>
    others.every((kept) => kept.some((other) => other.step === step && other.lineage === lineage)),
  );
  return common.length === 0 ? null : Math.max(...common.map(({ step }) => step));
}

export class KeptSteps {
  readonly #session: TrainingSessionContract;
  readonly #program: Pick<Program, 'log'>;
  readonly #path: string;
  readonly #rank: number;
  readonly #numClasses: number;
  /** What this rank has of a former process. */
  #found: KeptStep[] = [];
  #isKeeping: boolean;
  #isKeepingCurves: boolean;
  #note: Omit<Note, 'history' | 'interval'> | undefined;

  private constructor(
    session: TrainingSessionContract,
    directory: string | null,
    numClasses: number,
    { rank }: Ranks,
    program: Pick<Program, 'log'>,
  ) {
    this.#session = session;
    this.#program = program;
    this.#rank = rank;
    this.#numClasses = numClasses;
    this.#path = join(directory ?? '', `rank-${rank}`);
    this.#isKeeping = directory !== null;
    this.#isKeepingCurves = rank === 0;
  }

  /** A collective if the configuration names a folder: to be called on every rank. */
  static async open(
    session: TrainingSessionContract,
    config: TrainerConfig,
    size: { numClasses: number; totalSteps: number },
    ranks: Ranks,
    program: Pick<Program, 'log'>,
  ): Promise<KeptSteps> {
    const { memoryDirectory } = config.checkpoint;
    const kept = new KeptSteps(session, memoryDirectory, size.numClasses, ranks, program);
    if (memoryDirectory !== null) await kept.#open(memoryDirectory, config, size, ranks);
    return kept;
  }

  async #open(
    directory: string,
    config: TrainerConfig,
    size: { numClasses: number; totalSteps: number },
    ranks: Ranks,
  ): Promise<void> {
    const facts = { format: FORMAT, config, size, ranks: [ranks.rank, ranks.size], addon: addonDigest() };
    const identity = createHash('sha256').update(JSON.stringify(facts)).digest('hex');
    try {
      await mkdir(directory, { recursive: true });
      this.#found = await this.#session.openKeptSteps(this.#path, identity);
    } catch (error) {
      this.#stop(error);
    }
    const keeping = await gatherJson(this.#session, this.#isKeeping);
    if (this.#isKeeping && !keeping.every(Boolean)) {
      this.#isKeeping = false;
      this.#program.log.warn({ rank: keeping.indexOf(false) }, 'no steps are kept in memory: a rank cannot keep them');
    }
  }

  /**
   * Goes back to the newest step that all ranks have kept, if it is newer than the newest checkpoint, which has not
   * been edited meanwhile. A collective: to be called on every rank.
   * @param newest that checkpoint, the same on every rank; null if there is none
   */
  async recall(newest: HeadFacts | null): Promise<RecalledState | undefined> {
    if (!this.#isKeeping) return undefined;
    const notes = new Map(this.#found.map(({ step, note }) => [step, JSON.parse(note) as Note]));
    const own = [...notes].map(([step, { lineage }]) => ({ step, lineage }));
    const step = newestCommonStep(await gatherJson(this.#session, own));
    const { log } = this.#program;
    const level = this.#rank === 0 ? 'info' : 'debug';
    const checkpoint = newest?.step ?? null;
    if (step === null || step <= (checkpoint ?? 0)) {
      log[level]({ kept: own.map((one) => one.step), checkpoint }, 'no newer steps in the memory of all ranks');
      return undefined;
    }
    const { history, interval, ...note } = notes.get(step)!;
    if (newest && wasEdited(newest, note.checkpoint, this.#numClasses)) {
      log[level](
        { step, checkpoint },
        'the identities of the newest checkpoint were edited: forgot the steps in memory',
      );
      return undefined;
    }
    const identities = note.hasIdentities ? await this.#readIdentities(note.lineage) : undefined;
    // First: it resets the loss scale, which recall() sets.
    await this.#session.usePrecision(note.precision);
    await this.#session.recall(step);
    this.#note = note;
    log[level]({ step, checkpoint }, 'went on from memory');
    return { step, history, curves: await this.#recallCurves(step, note.lineage, interval), identities };
  }

  /**
   * Keeps the state after `step` steps, which is not a recalled one. A collective: to be called on every rank.
   * @param checkpoint that the training begins with; null if it begins without one
   */
  async begin(
    step: number,
    { history, interval }: Pick<Note, 'history' | 'interval'>,
    identities: Identities | undefined,
    checkpoint: HeadFacts | null,
  ): Promise<void> {
    if (!this.#isKeeping) return;
    const [lineage] = await gatherJson(this.#session, randomUUID());
    const { precision } = this.#session;
    const note = { lineage: lineage!, precision, hasIdentities: identities !== undefined, checkpoint };
    try {
      // Its name is new: what a former training has kept stays whole until keepAll() forgets it.
      if (identities) await writeFile(this.#identitiesPath(note.lineage), JSON.stringify(identities));
      await this.#session.keepAll({ step, note: JSON.stringify({ ...note, history, interval } satisfies Note) });
      this.#note = note;
    } catch (error) {
      this.#stop(error);
    }
  }

  /** Keeps the state after `step` steps: the step after the one that was begun with, kept or recalled last. */
  async keep(step: number, kept: Pick<Note, 'history' | 'interval'>): Promise<void> {
    if (!this.#isKeeping) return;
    try {
      await this.#session.keep({ step, note: JSON.stringify({ ...this.#note!, ...kept } satisfies Note) });
    } catch (error) {
      this.#stop(error);
    }
  }

  /**
   * Keeps the curves, which are too long for the note of each step: to be called after keep() when an interval has
   * ended, and when there is something else new. Rank 0 alone has them. Without room for them, steps are kept without.
   */
  async keepCurves(curves: () => Curves): Promise<void> {
    if (!this.#isKeeping || !this.#isKeepingCurves) return;
    const written = `${this.#curvesPath}.new`;
    try {
      await writeFile(written, JSON.stringify({ lineage: this.#note!.lineage, curves: curves() } satisfies KeptCurves));
      await rename(written, this.#curvesPath);
    } catch (error) {
      this.#isKeepingCurves = false;
      this.#program.log.warn({ file: this.#curvesPath }, `no curves are kept in memory: ${(error as Error).message}`);
    }
  }

  async #recallCurves(step: number, lineage: string, interval: CurveInterval | null): Promise<Curves> {
    const none: Curves = { attempts: [], intervals: [], evaluations: [] };
    if (this.#rank !== 0) return none;
    const text = await readFile(this.#curvesPath, 'utf8').catch(() => 'null');
    const kept = JSON.parse(text) as KeptCurves | null;
    const { attempts, intervals, evaluations } = kept?.lineage === lineage ? kept.curves : none;
    const begin = interval ? interval.step - interval.steps : step;
    return {
      attempts,
      intervals: [...intervals.filter((each) => each.step <= begin), ...(interval ? [interval] : [])],
      evaluations: evaluations.filter((each) => each.step <= step),
    };
  }

  /** The training goes on: it has its checkpoints. */
  #stop(error: unknown): void {
    const isOfStorage = error instanceof FacetrainError && ['StorageFailed', 'DiskFull'].includes(error.code);
    if (!isOfStorage && !(error instanceof Error && 'syscall' in error)) throw error;
    this.#isKeeping = false;
    this.#program.log.warn({ folder: this.#path }, `no more steps are kept in memory: ${error.message}`);
  }

  async #readIdentities(lineage: string): Promise<Identities> {
    return JSON.parse(await readFile(this.#identitiesPath(lineage), 'utf8')) as Identities;
  }

  get #curvesPath(): string {
    return `${this.#path}-curves.json`;
  }

  #identitiesPath(lineage: string): string {
    return `${this.#path}-identities-${lineage}.json`;
  }
}
