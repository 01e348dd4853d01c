/**
 * A copy of a search's journal in the object store of the artifact: a new pod has an empty folder, and goes on from
 * there. An object cannot be appended to, so the whole journal replaces it, every half minute and when the quantizer is
 * stopped.
 *
 * Whoever wrote it, decisions of the same search are the same, so an old one can at worst be shorter. A write has the
 * condition that the object is the one that this process has read or written, or the beginning of its own text. So an
 * older quantizer that wakes takes nothing away, and leaves nothing behind once the newer one has deleted the object.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type Destination, SEARCH_JOURNAL } from '@facetrain/api';
import type { Program } from '../program/program.ts';
import { ObjectStore } from '../storage/object-store.ts';

/** Between the end of a write and the next one. */
const INTERVAL_MS = 30_000;
/** For how long a request is tried again. The search goes on meanwhile. */
const PATIENCE_MS = 20_000;
/** For how long the last write may take of the time that a stopped pod has. */
const LAST_WRITE_MS = 15_000;

interface Options {
  /** Milliseconds between two writes. */
  interval?: number;
}

export class StoredJournal {
  /** What the object was when it was opened. */
  readonly found: string;
  readonly #store: ObjectStore;
  readonly #log: Program['log'];
  readonly #interval: number;
  /** Of the object, as this process knows it; null: there is none. */
  #etag: string | null;
  #text: string;
  /** The number of characters of it that the object has; undefined: the object is another journal. */
  #stored: number | undefined;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();
  /** Somebody else has written the object. */
  #isLost = false;
  /** The store did not take the last write. */
  #isBehind = false;

  private constructor(
    store: ObjectStore,
    object: Awaited<ReturnType<ObjectStore['get']>>,
    log: Program['log'],
    interval: number,
  ) {
    this.#store = store;
    this.#log = log;
    this.#interval = interval;
    this.found = object ? new TextDecoder().decode(object.bytes) : '';
    this.#etag = object?.etag ?? null;
    this.#text = this.found;
    this.#stored = this.found.length;
  }

  /** @returns null when the store does not let itself be read: then nothing is kept there */
  static async open(
    { credentials = null, ...place }: Destination,
    log: Program['log'],
    { interval = INTERVAL_MS }: Options = {},
  ): Promise<StoredJournal | null> {
    const store = new ObjectStore({ ...place, credentials }, { patienceMs: PATIENCE_MS });
    try {
      return new StoredJournal(store, await store.get(SEARCH_JOURNAL), log, interval);
    } catch (error) {
      log.warn(`the search is kept in this pod only: ${(error as Error).message}`);
      store.close();
      return null;
    }
  }

  /** Begins with other text than what was found. */
  replace(text: string): void {
    if (text === this.#text) return;
    this.#text = text;
    this.#stored = undefined;
    this.#schedule();
  }

  append(text: string): void {
    this.#text += text;
    this.#schedule();
  }

  /** Writes what is left, unless that takes too long: the pod has little time when it is stopped. */
  async flush(): Promise<void> {
    clearTimeout(this.#timer);
    const last = this.#writing.then(() => this.#write());
    await Promise.race([last, delay(LAST_WRITE_MS, undefined, { ref: false })]);
  }

  /** Deletes the object, if it is the one that this process has written. */
  async remove(): Promise<void> {
    try {
      const object = await this.#store.head(SEARCH_JOURNAL);
      if (object && object.etag === this.#etag) await this.#store.delete([SEARCH_JOURNAL]);
    } catch (error) {
      this.#log.warn(`the journal of the search is left: ${(error as Error).message}`);
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#store.close();
  }

  #schedule(): void {
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#writing = this.#write().then(() => {
        this.#timer = undefined;
        if (this.#stored !== this.#text.length) this.#schedule();
      });
    }, this.#interval).unref();
  }

  async #write(): Promise<void> {
    const text = this.#text;
    if (this.#isLost || text.length === this.#stored) return;
    try {
      this.#etag = await this.#put(text);
      this.#stored = text.length;
      this.#isBehind = false;
    } catch (error) {
      // The next write has all that this one had.
      if (!this.#isBehind) this.#log.warn(`the search is kept in this pod only, for now: ${(error as Error).message}`);
      this.#isBehind = true;
    }
  }

  /** @returns the object's ETag */
  async #put(text: string): Promise<string | null> {
    const bytes = new TextEncoder().encode(text);
    for (let etag = this.#etag; ; ) {
      const written = await this.#store.put(SEARCH_JOURNAL, bytes, { etag }, 'application/x-ndjson');
      if (written !== undefined) return written;
      // It may have been a write of this process of which the answer was lost.
      const object = await this.#store.get(SEARCH_JOURNAL);
      const found = object && new TextDecoder().decode(object.bytes);
      if (found === text) return object!.etag;
      if (found === undefined || !text.startsWith(found)) {
        this.#isLost = true;
        this.#log.warn(`the search is kept in this pod only: ${this.#store.uri(SEARCH_JOURNAL)} has another writer`);
        return null;
      }
      etag = object!.etag;
    }
  }
}
