/**
 * A queue of keys for workers (client-go's workqueue). A key is in the queue once, however often it is added. A key
 * that is added while a worker has it is queued again when that worker is done, so no two workers ever have the same
 * key.
 *
 * Keys that were added before the first worker came are the backlog: of a replica that has just started, or been
 * elected, all objects there are. Most of them need nothing. What changed last comes first, as it may be what the
 * former leader could not finish, and each second key is one that was added since.
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

const NO_METRICS: WorkQueueMetrics = { added() {}, retried() {}, taken() {}, done() {} };
const RETRY_BASE_MILLISECONDS = 5;
/** After the end of an outage, however long it was, a key is tried again within this time. */
const RETRY_MAX_MILLISECONDS = 30_000;

const now = (): number => performance.now() / 1000;

export class WorkQueue {
  /** Keys that wait for a worker, in order, each with the time (s) since when. */
  readonly #waiting = new Map<string, number>();
  /** The backlog, as `#waiting`; undefined until the first worker takes a key. */
  #backlog: Map<string, number> | undefined;
  /** The next key is one of the backlog, if both have one. */
  #isBacklogsTurn = false;
  /** Keys that workers have, each with the time (s) since when. */
  readonly #processing = new Map<string, number>();
  /** Keys that were added while a worker had them. */
  readonly #dirty = new Set<string>();
  /** Keys that are added at a later time (performance.now(), ms). */
  readonly #delayed = new Map<string, { at: number; timer: NodeJS.Timeout }>();
  readonly #retries = new Map<string, Backoff>();
  /** Workers that wait for a key. */
  readonly #takers: ((key: string | null) => void)[] = [];
  readonly #metrics: WorkQueueMetrics;
  #closed = false;

  constructor(metrics: WorkQueueMetrics = NO_METRICS) {
    this.#metrics = metrics;
  }

  /** How many keys wait for a worker. */
  get depth(): number {
    return this.#waiting.size + (this.#backlog?.size ?? 0);
  }
  /** For each key that a worker has: for how many seconds. */
  get working(): number[] {
    return [...this.#processing.values()].map((since) => now() - since);
  }

  add(key: string): void {
    if (this.#closed || this.#dirty.has(key)) return;
    const since = this.#waiting.get(key) ?? this.#backlog?.get(key);
    if (since === undefined) {
      this.#metrics.added();
      if (this.#processing.has(key)) this.#dirty.add(key);
      else this.#enqueue(key);
    } else if (this.#backlog === undefined) {
      this.#waiting.delete(key);
      this.#waiting.set(key, since);
    } else if (this.#backlog.delete(key)) {
      this.#waiting.set(key, since);
    }
  }

  /** Adds the key later. Of several calls for a key, the earliest time counts. */
  addAfter(key: string, milliseconds: number): void {
    if (this.#closed) return;
    if (milliseconds <= 0) return this.add(key);
    const at = performance.now() + milliseconds;
    const planned = this.#delayed.get(key);
    if (planned && planned.at <= at) return;
    clearTimeout(planned?.timer);
    const timer = setTimeout(
      () => {
        this.#delayed.delete(key);
        this.add(key);
      },
      Math.min(milliseconds, 2 ** 31 - 1),
    );
    this.#delayed.set(key, { at, timer });
  }

  /** Adds the key after a wait that doubles with each failure. */
  retry(key: string): void {
    const backoff = this.#retries.get(key) ?? new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
    this.#retries.set(key, backoff);
    this.#metrics.retried();
    this.addAfter(key, backoff.next());
  }

  /** Resets the key's backoff after a success. */
  forget(key: string): void {
    this.#retries.delete(key);
  }

  /** How often the key was retried since its last success. */
  failures(key: string): number {
    return this.#retries.get(key)?.failures ?? 0;
  }

  /** Resolves to a key, which no other worker gets until `done`; to null when the queue is closed. */
  take(): Promise<string | null> {
    if (this.#closed) return Promise.resolve(null);
    if (this.#backlog === undefined) {
      this.#backlog = new Map([...this.#waiting].reverse());
      this.#waiting.clear();
    }
    const isBacklogs = this.#backlog.size > 0 && (this.#isBacklogsTurn || this.#waiting.size === 0);
    this.#isBacklogsTurn = !isBacklogs;
    const keys = isBacklogs ? this.#backlog : this.#waiting;
    const [next] = keys;
    if (next === undefined) return new Promise((resolve) => this.#takers.push(resolve));
    keys.delete(next[0]);
    return Promise.resolve(this.#begin(...next));
  }

  /** The worker that took the key has finished. */
  done(key: string): void {
    const since = this.#processing.get(key);
    if (since === undefined) return;
    this.#processing.delete(key);
    this.#metrics.done(now() - since);
    if (this.#dirty.delete(key)) this.#enqueue(key);
  }

  /** Drops all waiting keys; `take` resolves to null from now on. Workers may finish the keys that they have. */
  close(): void {
    this.#closed = true;
    for (const { timer } of this.#delayed.values()) clearTimeout(timer);
    this.#delayed.clear();
    this.#waiting.clear();
    this.#backlog?.clear();
    this.#dirty.clear();
    for (const resolve of this.#takers.splice(0)) resolve(null);
  }

  #enqueue(key: string): void {
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
