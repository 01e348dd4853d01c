/**
 * Polls rank 0 of each running gang for its progress, and keeps the latest answer. The operator pulls because the pods
 * have no credentials to write progress anywhere. A job is reconciled when an answer differs from the one before.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { Progress } from '@facetrain/api';
import type { ObservedProgress } from '@facetrain/planner/observed';
import { observedProgress } from '@facetrain/planner/observed-progress';
import type { Logger } from 'pino';
import { request } from 'undici';

/** What is polled for a job: one attempt of it. */
export interface ProgressTarget {
  uid: string;
  attempt: number;
  /** Of /v1/progress on rank 0; null while rank 0 does not run. The latest answer is kept. */
  url: string | null;
}

interface Entry extends ProgressTarget {
  latest?: ObservedProgress;
}

const ANSWER_MILLISECONDS = 2_000;
/** Requests that are under way at the same time. */
const PARALLEL = 32;

export class ProgressPoller {
  /** By the job's key. */
  readonly #entries = new Map<string, Entry>();
  readonly #log: Logger;
  readonly #everyMilliseconds: number;
  readonly #onChange: (key: string) => void;

  /** @param onChange called with the key of a job whose answer differs from the one before */
  constructor(log: Logger, everyMilliseconds: number, onChange: (key: string) => void) {
    this.#log = log;
    this.#everyMilliseconds = everyMilliseconds;
    this.#onChange = onChange;
  }

  /**
   * Sets what is polled for a job from now on. The answer of another job of this name, or of another attempt, is
   * dropped.
   */
  setTarget(key: string, target: ProgressTarget): void {
    const before = this.#entries.get(key);
    const latest = before?.uid === target.uid && before.attempt === target.attempt ? before.latest : undefined;
    this.#entries.set(key, { ...target, ...(latest && { latest }) });
  }

  /** The latest answer of the job's target; undefined before the first. */
  latest(key: string): ObservedProgress | undefined {
    return this.#entries.get(key)?.latest;
  }

  forget(key: string): void {
    this.#entries.delete(key);
  }

  /** Polls until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const keys = [...this.#entries].flatMap(([key, { url }]) => (url === null ? [] : [key]));
      await Promise.all(
        Array.from({ length: PARALLEL }, async () => {
          for (let key = keys.pop(); key !== undefined && !signal.aborted; key = keys.pop()) await this.#poll(key);
        }),
      );
      await delay(this.#everyMilliseconds, undefined, { signal }).catch(() => {});
    }
  }

  async #poll(key: string): Promise<void> {
    const target = this.#entries.get(key);
    if (!target?.url) return;
    try {
      const { statusCode, body } = await request(target.url, {
        headersTimeout: ANSWER_MILLISECONDS,
        bodyTimeout: ANSWER_MILLISECONDS,
        signal: AbortSignal.timeout(ANSWER_MILLISECONDS),
      });
      if (statusCode !== 200) throw new Error(`HTTP ${statusCode}: ${(await body.text()).slice(0, 200)}`);
      const progress = Progress.parse(await body.json());
      // The address may belong to another pod by now.
      if (progress.job.uid !== target.uid || progress.job.attempt !== target.attempt) return;
      const entry = this.#entries.get(key);
      // The target may have changed while the request was under way.
      if (entry?.uid !== target.uid || entry.attempt !== target.attempt) return;
      const isNew = entry.latest?.activity !== progress.activity || entry.latest.step !== progress.step;
      entry.latest = observedProgress(progress);
      if (isNew) this.#onChange(key);
    } catch (error) {
      this.#log.debug({ err: error, job: key }, 'no progress from rank 0');
    }
  }
}
