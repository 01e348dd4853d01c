/**
 * Polls rank 0 of each running gang for its progress, and keeps the latest answer. The operator pulls because the pods
 * have no credentials to write progress anywhere. A job is reconciled when an answer differs from the one before.
 *
 * Any image may answer, also one of another release. So the size and the time of an answer are bounded, no redirect is
 * followed, what is not a Progress is reported once for each start, and a rank that gives no answer is asked less and
 * less often, so that it does not delay those of other jobs.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { MAX_PROGRESS_BYTES, Progress } from '@facetrain/api';
import type { ObservedProgress } from '@facetrain/planner/observed';
import { observedProgress } from '@facetrain/planner/observed-progress';
import type { Logger } from 'pino';
import { Agent, request } from 'undici';

/** What is polled for a job: one attempt of it, from one start of rank 0 on. */
export interface ProgressTarget {
  uid: string;
  attempt: number;
  /** How often rank 0 was started again in its pod. */
  start?: number;
  /** Of /v1/progress on rank 0; null while rank 0 does not run. The latest answer is kept. */
  url: string | null;
}

/** What is known about the progress of a job. */
export interface PolledProgress {
  /** The latest answer; undefined before the first. */
  latest?: ObservedProgress;
  /** Since when this operator has looked at this start of rank 0. */
  watchedSince: Date;
  /** Rank 0 answers, and not with what this release reads. */
  isUnreadable: boolean;
}

interface Entry extends ProgressTarget, PolledProgress {
  /** An invalid answer was reported. */
  isReported?: boolean;
  /** Requests without a valid answer since the last one that had it. */
  failures: number;
  /** When it may be asked again, or was last asked, by performance.now(). Those that have waited longest come first. */
  nextAt: number;
}

export interface PollerOptions {
  log: Logger;
  everyMilliseconds: number;
  /** Called with the key of a job whose answer differs from the one before. */
  onChange: (key: string) => void;
  /** Called once for each start of a rank 0 that answers with something else than progress. */
  onInvalid: (key: string, target: ProgressTarget, problem: string) => void;
}

/** For the whole of an answer. */
const ANSWER_MILLISECONDS = 2_000;
/** Requests that are under way at the same time. */
const PARALLEL = 64;
/** Longest wait between two requests to a rank that does not answer. */
const MAX_WAIT_MILLISECONDS = 30_000;
/** Longest text of a problem, in characters. */
const MAX_PROBLEM = 300;

/** Rank 0 has answered, and not with its progress. */
class InvalidAnswer extends Error {}

export class ProgressPoller {
  /** By the job's key. */
  readonly #entries = new Map<string, Entry>();
  readonly #options: PollerOptions;
  /** Keys that are being asked. */
  readonly #asking = new Map<string, Promise<void>>();

  constructor(options: PollerOptions) {
    this.#options = options;
  }

  /**
   * Sets what is polled for a job from now on. One that is started again is asked at once. The answer of another job of
   * this name, of another attempt, or of the program before, is dropped.
   */
  setTarget(key: string, target: ProgressTarget): void {
    const before = this.#entries.get(key);
    const { uid, attempt, start, url } = target;
    if (before?.uid === uid && before.attempt === attempt && before.start === start) {
      if (before.url !== url) Object.assign(before, { url, failures: 0, nextAt: 0 });
    } else this.#entries.set(key, { ...target, watchedSince: new Date(), isUnreadable: false, failures: 0, nextAt: 0 });
  }

  /** About the job's target; undefined for a job without one. */
  stateOf(key: string): PolledProgress | undefined {
    return this.#entries.get(key);
  }

  forget(key: string): void {
    this.#entries.delete(key);
  }

  /** Polls until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    // No connection is kept: the address of a pod that has ended may be another's.
    const agent = new Agent({
      pipelining: 0,
      maxResponseSize: MAX_PROGRESS_BYTES,
      connect: { timeout: ANSWER_MILLISECONDS },
      headersTimeout: ANSWER_MILLISECONDS,
      bodyTimeout: ANSWER_MILLISECONDS,
    });
    let due: [string, Entry][] = [];
    const askNext = (): void => {
      while (!signal.aborted && this.#asking.size < PARALLEL) {
        const next = due.pop();
        if (next === undefined) return;
        const [key, entry] = next;
        if (entry.url === null || this.#asking.has(key) || this.#entries.get(key) !== entry) continue;
        const asking = this.#poll(key, entry, agent, signal).finally(() => {
          this.#asking.delete(key);
          askNext();
        });
        this.#asking.set(key, asking);
      }
    };
    while (!signal.aborted) {
      due = this.#due().reverse();
      askNext();
      await delay(this.#options.everyMilliseconds, undefined, { signal }).catch(() => {});
    }
    await Promise.all(this.#asking.values());
    await agent.destroy();
  }

  /** Whom to ask: those that answered the last time first, and of these the one that was asked longest ago. */
  #due(): [string, Entry][] {
    const now = performance.now();
    return [...this.#entries]
      .filter(([key, { url, nextAt }]) => url !== null && nextAt <= now && !this.#asking.has(key))
      .sort(([, one], [, other]) => one.failures - other.failures || one.nextAt - other.nextAt);
  }

  /** @param entry what is asked for; it is no longer in the map if the target has changed meanwhile */
  async #poll(key: string, entry: Entry, agent: Agent, signal: AbortSignal): Promise<void> {
    const { log, everyMilliseconds, onChange, onInvalid } = this.#options;
    entry.nextAt = performance.now();
    try {
      const progress = await ask(entry.url!, agent, signal);
      entry.failures = 0;
      entry.isUnreadable = false;
      // The address may belong to another pod by now.
      if (progress.job.uid !== entry.uid || progress.job.attempt !== entry.attempt) return;
      const isNew = entry.latest?.activity !== progress.activity || entry.latest.step !== progress.step;
      entry.latest = observedProgress(progress);
      if (isNew && this.#entries.get(key) === entry) onChange(key);
    } catch (error) {
      log.debug({ err: error, job: key }, 'no progress from rank 0');
      const wait = Math.min(everyMilliseconds * 2 ** entry.failures++, MAX_WAIT_MILLISECONDS);
      entry.nextAt = performance.now() + wait;
      if (!(error instanceof InvalidAnswer) || this.#entries.get(key) !== entry) return;
      entry.isUnreadable = true;
      if (entry.isReported) return;
      entry.isReported = true;
      const { uid, attempt, url } = entry;
      onInvalid(key, { uid, attempt, url }, error.message.slice(0, MAX_PROBLEM));
    }
  }
}

/** @throws InvalidAnswer for an answer that is no progress; other errors where there is none, or not in time */
async function ask(url: string, dispatcher: Agent, signal: AbortSignal): Promise<Progress> {
  const { statusCode, body } = await request(url, {
    dispatcher,
    signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MILLISECONDS)]),
  });
  if (statusCode !== 200) {
    body.on('error', () => {}).destroy(); // Destroying emits an error, which would end the process.
    if (statusCode >= 300 && statusCode < 400)
      throw new InvalidAnswer(`HTTP ${statusCode}; redirects are not followed`);
    throw new Error(`HTTP ${statusCode}`);
  }
  const text = await body.text().catch((error: unknown) => {
    if ((error as { code?: string }).code !== 'UND_ERR_RES_EXCEEDED_MAX_SIZE') throw error;
    throw new InvalidAnswer(`more than ${MAX_PROGRESS_BYTES} bytes`);
  });
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new InvalidAnswer(`no JSON: ${(error as Error).message}`);
  }
  const { data, error } = Progress.safeParse(content);
  if (data) return data;
  const { path, message } = error.issues[0]!;
  throw new InvalidAnswer(`${path.length > 0 ? path.join('.') : 'the document'}: ${message}`);
}
