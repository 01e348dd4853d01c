/**
 * Asks rank 0 of each running gang for its progress, every few seconds, and keeps the last answer: the pods have no credentials to write it
 * anywhere. Who follows a job is told when an answer differs from the one before.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { Progress } from '@facetrain/api';
import type { ObservedProgress } from '@facetrain/planner/observed';
import { observedProgress } from '@facetrain/planner/observed-progress';
import type { Logger } from 'pino';
import { request } from 'undici';

export interface Followed {
  uid: string;
  attempt: number;
  /** Of /v1/progress; null when nobody serves it (any more): the last answer stands. */
  url: string | null;
}

interface Entry extends Followed {
  answer?: ObservedProgress;
}

const ANSWER_MILLISECONDS = 2_000;
const PARALLEL = 32;

export class ProgressPoller {
  readonly #entries = new Map<string, Entry>();
  readonly #log: Logger;
  readonly #everyMilliseconds: number;
  readonly #onNews: (key: string) => void;

  constructor(log: Logger, everyMilliseconds: number, onNews: (key: string) => void) {
    this.#log = log;
    this.#everyMilliseconds = everyMilliseconds;
    this.#onNews = onNews;
  }

  /** @returns the last answer of this attempt */
  follow(key: string, followed: Followed): ObservedProgress | undefined {
    const before = this.#entries.get(key);
    const answer = before?.uid === followed.uid && before.attempt === followed.attempt ? before.answer : undefined;
    this.#entries.set(key, { ...followed, ...(answer && { answer }) });
    return answer;
  }

  forget(key: string): void {
    this.#entries.delete(key);
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const keys = [...this.#entries].flatMap(([key, { url }]) => (url === null ? [] : [key]));
      await Promise.all(
        Array.from({ length: PARALLEL }, async () => {
          for (let key = keys.pop(); key !== undefined && !signal.aborted; key = keys.pop()) await this.#ask(key);
        }),
      );
      await delay(this.#everyMilliseconds, undefined, { signal }).catch(() => {});
    }
  }

  async #ask(key: string): Promise<void> {
    const asked = this.#entries.get(key);
    if (!asked?.url) return;
    try {
      const { statusCode, body } = await request(asked.url, {
        headersTimeout: ANSWER_MILLISECONDS,
        bodyTimeout: ANSWER_MILLISECONDS,
        signal: AbortSignal.timeout(ANSWER_MILLISECONDS),
      });
      if (statusCode !== 200) throw new Error(`HTTP ${statusCode}: ${(await body.text()).slice(0, 200)}`);
      const progress = Progress.parse(await body.json());
      if (progress.job.uid !== asked.uid || progress.job.attempt !== asked.attempt) return; // the address is another pod's by now
      const entry = this.#entries.get(key);
      if (entry?.uid !== asked.uid || entry.attempt !== asked.attempt) return;
      const isNews = entry.answer?.activity !== progress.activity || entry.answer.step !== progress.step;
      entry.answer = observedProgress(progress);
      if (isNews) this.#onNews(key);
    } catch (error) {
      this.#log.debug({ err: error, job: key }, 'rank 0 told no progress');
    }
  }
}
