/**
 * Keys that wait for a worker. A key waits once however often it is added; one that is being worked on and is added again
 * waits until that work is done: no two workers ever have the same key.
 */
import { Backoff } from './backoff.ts';

export interface WorkQueueMetrics {
  added(): void;
  retried(): void;
  /** A worker took a key that had waited this long, in seconds. */
  taken(waited: number): void;
  /** Work took this long, in seconds. */
  done(worked: number): void;
}

const SILENT: WorkQueueMetrics = { added() {}, retried() {}, taken() {}, done() {} };
const RETRY_BASE_MILLISECONDS = 5;
const RETRY_MAX_MILLISECONDS = 120_000;

const now = (): number => performance.now() / 1000;

export class WorkQueue {
  /** Keys that wait, with the time since when, in the order of their coming. */
  readonly #waiting = new Map<string, number>();
  readonly #processing = new Map<string, number>();
  /** Added while they were worked on. */
  readonly #again = new Set<string>();
  readonly #later = new Map<string, { at: number; timer: NodeJS.Timeout }>();
  readonly #retries = new Map<string, Backoff>();
  readonly #takers: ((key: string | null) => void)[] = [];
  readonly #metrics: WorkQueueMetrics;
  #closed = false;

  constructor(metrics: WorkQueueMetrics = SILENT) {
    this.#metrics = metrics;
  }

  get depth(): number {
    return this.#waiting.size;
  }
  /** Seconds for which each key in work has been worked on. */
  get working(): number[] {
    return [...this.#processing.values()].map((since) => now() - since);
  }

  add(key: string): void {
    if (this.#closed || this.#waiting.has(key) || this.#again.has(key)) return;
    this.#metrics.added();
    if (this.#processing.has(key)) this.#again.add(key);
    else this.#offer(key);
  }

  /** Adds the key after a while. Of several whiles the one that is over first counts. */
  addAfter(key: string, milliseconds: number): void {
    if (this.#closed) return;
    if (milliseconds <= 0) return this.add(key);
    const at = performance.now() + milliseconds;
    const planned = this.#later.get(key);
    if (planned && planned.at <= at) return;
    clearTimeout(planned?.timer);
    const timer = setTimeout(
      () => {
        this.#later.delete(key);
        this.add(key);
      },
      Math.min(milliseconds, 2 ** 31 - 1),
    );
    this.#later.set(key, { at, timer });
  }

  /** Adds the key after a wait that doubles with each failure. */
  retry(key: string): void {
    const backoff = this.#retries.get(key) ?? new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
    this.#retries.set(key, backoff);
    this.#metrics.retried();
    this.addAfter(key, backoff.next());
  }

  /** The key's work went well. */
  forget(key: string): void {
    this.#retries.delete(key);
  }

  /** How often the key's work has failed since it last went well. */
  failures(key: string): number {
    return this.#retries.get(key)?.failures ?? 0;
  }

  /** Resolves to a key that is the caller's alone until `done`, or to null once the queue is closed. */
  take(): Promise<string | null> {
    if (this.#closed) return Promise.resolve(null);
    const [next] = this.#waiting;
    if (next === undefined) return new Promise((resolve) => this.#takers.push(resolve));
    this.#waiting.delete(next[0]);
    return Promise.resolve(this.#begin(...next));
  }

  done(key: string): void {
    const since = this.#processing.get(key);
    if (since === undefined) return;
    this.#processing.delete(key);
    this.#metrics.done(now() - since);
    if (this.#again.delete(key)) this.#offer(key);
  }

  /** No key is handed out any more; what is being worked on may be finished. */
  close(): void {
    this.#closed = true;
    for (const { timer } of this.#later.values()) clearTimeout(timer);
    this.#later.clear();
    this.#waiting.clear();
    this.#again.clear();
    for (const resolve of this.#takers.splice(0)) resolve(null);
  }

  #offer(key: string): void {
    const taker = this.#takers.shift();
    if (taker) taker(this.#begin(key, now()));
    else if (!this.#closed) this.#waiting.set(key, now());
  }

  #begin(key: string, since: number): string {
    this.#metrics.taken(now() - since);
    this.#processing.set(key, now());
    return key;
  }
}
