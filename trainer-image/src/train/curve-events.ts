/**
 * The event files for TensorBoard while training goes on, so that they also exist of a training that fails or is
 * stopped. They are written in the background: storage that is slow or fails costs them, and no step.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError, OUTPUT } from '@facetrain/api';
import type { Program } from '../program/program.ts';
import { eventFile } from '../report/event-file.ts';
import { curveEvents, type ReportedCurves } from '../report/report-events.ts';
import type { OutputPlace } from '../storage/output-place.ts';

/** Between two writes, unless there is an evaluation. */
const EVERY_MS = 60_000;
/** How long the end of a process waits for the last write. */
const LAST_WRITE_MS = 5_000;

/** An event file has the name of the attempt that writes it: a reader of an earlier one's begins anew. */
interface EventSource {
  job: string;
  startedAt: Date;
}

/**
 * Writes the one event file of a place: those of earlier attempts have the same curves, up to where this one began.
 * @throws FacetrainError FencedOff, DiskFull, StorageFailed
 */
export async function writeEvents(
  output: OutputPlace,
  { job, startedAt }: EventSource,
  events: ReturnType<typeof curveEvents>,
): Promise<void> {
  const started = Math.floor(startedAt.getTime() / 1000);
  await output.replaceFolder(OUTPUT.tensorboard, `events.out.tfevents.${started}.${job}`, eventFile(events, started));
}

export class CurveEvents implements AsyncDisposable {
  readonly #output: OutputPlace | null;
  readonly #source: EventSource;
  readonly #curves: (isLast: boolean) => ReportedCurves;
  readonly #log: Program['log'];
  #writing: Promise<void> = Promise.resolve();
  #isWriting = false;
  #isClosed = false;
  #hasWarned = false;
  #writtenAt = performance.now();

  /**
   * @param output null: on ranks other than 0, which write nothing
   * @param curves without an interval that may go on, unless it is the last call: what readers have read stays
   */
  constructor(
    output: OutputPlace | null,
    source: EventSource,
    curves: (isLast: boolean) => ReportedCurves,
    log: Program['log'],
  ) {
    this.#output = output;
    this.#source = source;
    this.#curves = curves;
    this.#log = log;
  }

  /** Begins to write, unless a write has not ended. */
  write(): void {
    if (!this.#isWriting) this.#writing = this.#write();
  }

  writeFromTimeToTime(): void {
    if (performance.now() - this.#writtenAt >= EVERY_MS) this.write();
  }

  /** Waits for a write that was begun, and writes no more: the report follows. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#writing;
  }

  /** The last write of a process that ends without a report. */
  async [Symbol.asyncDispose](): Promise<void> {
    const timer = new AbortController();
    const last = this.#writing.then(() => this.#write(true));
    await Promise.race([last, delay(LAST_WRITE_MS, undefined, { signal: timer.signal }).catch(() => {})]);
    timer.abort();
  }

  async #write(isLast = false): Promise<void> {
    if (!this.#output || this.#isClosed) return;
    const curves = this.#curves(isLast);
    if (curves.history.length === 0) return;
    this.#isWriting = true;
    try {
      await writeEvents(this.#output, this.#source, curveEvents(curves));
    } catch (error) {
      // What follows from it, such as the end of a rank whose place is taken, is found where checkpoints are written.
      const isFencedOff = error instanceof FacetrainError && error.code === 'FencedOff';
      if (!this.#hasWarned && !isFencedOff)
        this.#log.warn({ folder: OUTPUT.tensorboard }, `no event file: ${(error as Error).message}`);
      this.#hasWarned = true;
    } finally {
      this.#isWriting = false;
      this.#writtenAt = performance.now();
    }
  }
}
