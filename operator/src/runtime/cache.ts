/**
 * A local copy of the server's objects of one kind. It is filled by a list, and kept up to date by a watch that starts
 * at the resourceVersion of the list (client-go's reflector and indexer in one).
 *
 * It recovers from every error by itself. A watch that ends is opened again at the version of its last event. If the
 * server no longer has that version (410), everything is listed again. After any other error it retries with a backoff.
 *
 * `put` adds the server's answer to a write at once, so that a reconcile reads its own writes. For that the cache
 * compares resourceVersions: those of one kind are numbers that grow (KEP-5504). An older event never replaces a newer
 * object. `put` ignores an object whose version the watch has already reached: if it is not in the cache, it was
 * deleted.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { ApiError, isExpired } from './api-error.ts';
import { Backoff } from './backoff.ts';
import type { Client, ListAnswer, WatchLine } from './client.ts';
import { type KubernetesObject, keyOf, type Resource } from './resource.ts';

/** `old`: the object before the change, if there was one. `deleted`: `object` is its last state. */
export type Change<T> = { object: T; old: T | undefined; deleted: boolean };
/** @returns the value, or the values, under which the object is found; undefined: it is not in the index */
export type Index<T> = (object: T) => string | readonly string[] | undefined;

export interface CacheOptions<T extends KubernetesObject> {
  client: Pick<Client, 'list' | 'watch'>;
  resource: Resource<T>;
  /** null: all namespaces, or a cluster-scoped kind. */
  namespace: string | null;
  labelSelector?: string;
  fieldSelector?: string;
  /** Request only the metadata of the objects. */
  metadataOnly?: boolean;
  /** Removes fields that are not read, to save memory. managedFields are always removed. */
  strip?: (object: T) => T;
  /**
   * The first list, too, comes in pages, for a kind with many or large objects: the server ignores the limit of a list
   * that it answers from its cache at any version.
   */
  inPages?: boolean;
  indexes?: Record<string, Index<T>>;
  log: Logger;
  /**
   * The server ends a watch after a time between this and twice this; default 300. Set a shorter time for a kind
   * without bookmarks: the client treats a silent watch as a dead connection (WATCH_SILENCE_MILLISECONDS).
   */
  watchSeconds?: number;
  /** How long a refresh waits for the watch before it lists; default CATCH_UP_MILLISECONDS. */
  catchUpMilliseconds?: number;
  /** Called when a list or a watch has failed. */
  onWatchError?: (error: unknown) => void;
  retry?: Backoff;
}

/** Objects in one answer to a list. */
const PAGE = 500;
const RETRY_BASE_MILLISECONDS = 200;
const RETRY_MAX_MILLISECONDS = 30_000;
/**
 * As in client-go: watches end after 5 to 10 minutes, each at its own time, so that they spread over the API servers.
 */
const WATCH_SECONDS = 300;
/** A watch that lasted this long has not failed, even if it had no event. */
const LASTED_MILLISECONDS = 1_000;
/** A watch is behind by milliseconds, unless its server is cut off or starved. */
const CATCH_UP_MILLISECONDS = 1_000;
/** In place of the version of an object that was deleted. */
const GONE = -1n;
/** A server that restarts is not yet a problem. */
const TOLERATED_SECONDS = 5;

export class Cache<T extends KubernetesObject> {
  readonly #options: CacheOptions<T>;
  readonly #objects = new Map<string, T>();
  readonly #indexes = new Map<string, { indexValue: Index<T>; entries: Map<string, Set<string>> }>();
  readonly #listeners: ((change: Change<T>) => void)[] = [];
  readonly #retry: Backoff;
  readonly #synced = Promise.withResolvers<void>();
  /** Keys of objects that `put` added since the last list began: they may be newer than that list. */
  readonly #written = new Set<string>();
  /**
   * resourceVersion of the last list or event. '0': the server may answer a list from its cache; '': the list must be
   * the newest.
   */
  #version = '0';
  #isSynced = false;
  /** That of `run`. */
  #signal: AbortSignal | undefined;
  #refreshing: Promise<void> | undefined;
  /** What the watch has not brought yet of what `refresh` found: a version of each object, or GONE. */
  #behind: { version: bigint; objects: Map<string, bigint>; caughtUp: () => void } | undefined;
  /** Asks `run` for a list; until that is complete. */
  #relist: PromiseWithResolvers<void> | undefined;
  /** Ends what `run` is waiting for, a watch or a pause. */
  #interrupt = () => {};
  /** Since when the server has not answered, by performance.now(). */
  #failingSince: number | undefined;

  constructor(options: CacheOptions<T>) {
    this.#options = options;
    if (options.inPages) this.#version = '';
    this.#retry = options.retry ?? new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
    for (const [name, indexValue] of Object.entries(options.indexes ?? {}))
      this.#indexes.set(name, { indexValue, entries: new Map() });
  }

  /** Resolves when the first list is complete. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }
  get isSynced(): boolean {
    return this.#isSynced;
  }
  /** Why the cache may be out of date; undefined while it is not. */
  get problem(): string | undefined {
    if (!this.#isSynced) return 'not listed yet';
    if (this.#failingSince === undefined) return undefined;
    const seconds = (performance.now() - this.#failingSince) / 1000;
    return seconds < TOLERATED_SECONDS ? undefined : `not watched for ${Math.round(seconds)} s`;
  }
  get size(): number {
    return this.#objects.size;
  }

  get(key: string): T | undefined {
    return this.#objects.get(key);
  }
  values(): IterableIterator<T> {
    return this.#objects.values();
  }
  /** The objects for which the index function returns this value, alone or in a list, in the order of their keys. */
  indexed(index: string, value: string): T[] {
    const keys = this.#indexes.get(index)!.entries.get(value) ?? [];
    return [...keys].sort().map((key) => this.#objects.get(key)!);
  }

  /** Adds a function that is called after every change; the objects of the first list are changes, too. */
  onChange(listener: (change: Change<T>) => void): void {
    this.#listeners.push(listener);
  }

  /** Adds the server's answer to a write. Ignored if the watch has already reached its version. */
  put(object: T): void {
    if (!this.#isSynced || versionOf(object) <= BigInt(this.#version || 0)) return;
    this.#written.add(keyOf(object));
    this.#set(object);
  }

  /**
   * Catches up with what is stored now: a watch may lag behind. Only metadata is listed, which takes a fraction of the
   * time; what is newer than the cache, the watch brings within a moment. If it does not, because its API server is cut
   * off from etcd or the store has gone back to a backup, everything is listed again.
   *
   * @returns when the cache has it; never, after `run` has ended
   */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#catchUp()
      .catch(() => false)
      .then((isCaughtUp) => (isCaughtUp ? undefined : this.#listAgain()))
      .finally(() => (this.#refreshing = undefined));
    return this.#refreshing;
  }

  #listAgain(): Promise<void> {
    this.#relist ??= Promise.withResolvers();
    const { promise } = this.#relist;
    this.#interrupt();
    return promise;
  }

  /** @returns whether the cache has all that was stored when this began */
  async #catchUp(): Promise<boolean> {
    if (!this.#isSynced) return false;
    const known = BigInt(this.#version);
    const stored = new Map<string, bigint>();
    let version = 0n;
    for await (const page of this.#pages('', { metadataOnly: true, signal: this.#signal })) {
      for (const item of page.items ?? []) stored.set(keyOf(item), versionOf(item));
      version = BigInt(page.metadata.resourceVersion);
    }
    if (version < known) return false;
    // From here to the wait nothing comes between. A watch that is past this version has brought all before it.
    if (BigInt(this.#version) >= version) return true;
    const objects = new Map<string, bigint>();
    for (const [key, each] of stored) {
      const own = this.#objects.get(key);
      if (!own || versionOf(own) < each) objects.set(key, each);
    }
    for (const [key, own] of this.#objects) if (!stored.has(key) && versionOf(own) <= version) objects.set(key, GONE);
    if (objects.size === 0) return true;
    const timer = new AbortController();
    const caughtUp = new Promise<true>((resolve) => {
      this.#behind = { version, objects, caughtUp: () => resolve(true) };
    });
    const { catchUpMilliseconds = CATCH_UP_MILLISECONDS } = this.#options;
    const late = delay(catchUpMilliseconds, false, { signal: timer.signal }).catch(() => false);
    try {
      return await Promise.race([caughtUp, late]);
    } finally {
      timer.abort();
      this.#behind = undefined;
    }
  }

  /** Lists and watches until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    let isListed = false;
    this.#signal = signal;
    while (!signal.aborted) {
      const interruption = new AbortController();
      const interruptible = AbortSignal.any([signal, interruption.signal]);
      try {
        const relist = this.#relist;
        if (!isListed || relist) {
          if (relist) this.#version = '';
          await this.#list(signal);
          isListed = true;
          relist?.resolve();
          if (relist === this.#relist) this.#relist = undefined;
        }
        this.#interrupt = () => interruption.abort();
        if (this.#relist === undefined) await this.#watch(interruptible);
      } catch (error) {
        if (signal.aborted) return;
        if (interruptible.aborted) continue;
        this.#options.onWatchError?.(error);
        this.#failingSince ??= performance.now();
        if (isExpired(error)) {
          isListed = false;
          // With a version, the server could answer from a cache that is as old as the watch was.
          this.#version = '';
        }
        const wait = this.#retry.next();
        this.#options.log.warn(
          { resource: this.#options.resource.plural, err: error, retryInMs: Math.round(wait) },
          isExpired(error) ? 'watch is too far behind; listing again' : 'watch failed',
        );
        this.#interrupt = () => interruption.abort();
        await delay(wait, undefined, { signal: interruptible }).catch(() => {});
      }
    }
  }

  /** The pages of a list. @param version as resourceVersion of the first; '': the newest */
  async *#pages(
    version: string,
    { metadataOnly, signal }: { metadataOnly: boolean; signal: AbortSignal | undefined },
  ): AsyncGenerator<ListAnswer<T>> {
    const { client, resource, namespace, labelSelector, fieldSelector } = this.#options;
    let continueToken: string | undefined;
    do {
      const query = {
        limit: PAGE,
        labelSelector,
        fieldSelector,
        continue: continueToken,
        resourceVersion: continueToken === undefined && version !== '' ? version : undefined,
      };
      const page = await client.list(resource, namespace, query, metadataOnly, signal);
      yield page;
      continueToken = page.metadata.continue || undefined;
    } while (continueToken !== undefined);
  }

  async #list(signal: AbortSignal): Promise<void> {
    const { metadataOnly = false } = this.#options;
    const listed = new Map<string, T>();
    let version = '';
    this.#written.clear();
    for await (const { metadata, items } of this.#pages(this.#version, { metadataOnly, signal })) {
      for (const item of items ?? []) listed.set(keyOf(item), this.#strip(item));
      version = metadata.resourceVersion;
    }
    this.#version = version;
    // The list replaces objects even if its versions are older: the server may have been restored from a backup.
    const isNewer = (key: string, old: T) => this.#written.has(key) && versionOf(old) > BigInt(version);
    for (const [key, old] of this.#objects)
      if (!isNewer(key, old) && (!listed.has(key) || versionOf(old) > versionOf(listed.get(key)!)))
        this.#remove(key, old);
    for (const object of listed.values()) this.#set(object);
    this.#isSynced = true;
    this.#synced.resolve();
    this.#noteVersion();
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const {
      client,
      resource,
      namespace,
      labelSelector,
      fieldSelector,
      metadataOnly,
      watchSeconds = WATCH_SECONDS,
    } = this.#options;
    const timeoutSeconds = Math.round(watchSeconds * (1 + Math.random()));
    const query = {
      labelSelector,
      fieldSelector,
      allowWatchBookmarks: true,
      resourceVersion: this.#version,
      timeoutSeconds,
    };
    const begun = performance.now();
    let lineCount = 0;
    const onOpen = () => (this.#failingSince = undefined);
    for await (const line of client.watch(resource, namespace, query, signal, metadataOnly, onOpen)) {
      this.#apply(line);
      if (lineCount++ === 0) this.#retry.reset();
    }
    // Without a wait, a watch that the server ends at once and without an event would be opened in a busy loop.
    if (lineCount > 0 || signal.aborted) return;
    if (performance.now() - begun >= LASTED_MILLISECONDS) this.#retry.reset();
    else await delay(this.#retry.next(), undefined, { signal }).catch(() => {});
  }

  #apply(line: WatchLine<T>): void {
    if (line.type === 'ERROR')
      throw ApiError.fromBody(
        `watch ${this.#options.resource.plural}`,
        line.object.code ?? 500,
        JSON.stringify(line.object),
      );
    const { object, type } = line;
    if (type === 'DELETED') {
      const key = keyOf(object);
      const old = this.#objects.get(key);
      if (old && versionOf(old) <= versionOf(object)) this.#remove(key, object);
    } else if (type !== 'BOOKMARK') {
      this.#set(object);
    }
    this.#version = object.metadata.resourceVersion;
    const { objects } = this.#behind ?? {};
    const key = keyOf(object);
    const needed = objects?.get(key);
    if (needed !== undefined && (needed === GONE ? type === 'DELETED' : versionOf(object) >= needed))
      objects!.delete(key);
    this.#noteVersion();
  }

  /** `#version` has changed. */
  #noteVersion(): void {
    if (this.#behind === undefined) return;
    const { version, objects, caughtUp } = this.#behind;
    if (objects.size === 0 || BigInt(this.#version) >= version) caughtUp();
  }

  #set(object: T): void {
    const kept = this.#strip(object);
    const key = keyOf(kept);
    const old = this.#objects.get(key);
    if (old && versionOf(old) >= versionOf(kept)) return;
    this.#objects.set(key, kept);
    for (const { indexValue, entries } of this.#indexes.values())
      moveKey(entries, key, old && indexValue(old), indexValue(kept));
    this.#notify({ object: kept, old, deleted: false });
  }

  #strip(object: T): T {
    const { metadataOnly, strip } = this.#options;
    const { apiVersion, kind } = object;
    const { managedFields: _, ...metadata } = object.metadata as T['metadata'] & { managedFields?: unknown };
    if (metadataOnly) return { apiVersion, kind, metadata } as unknown as T;
    return strip ? strip({ ...object, metadata }) : { ...object, metadata };
  }

  #remove(key: string, last: T): void {
    const old = this.#objects.get(key)!;
    this.#objects.delete(key);
    for (const { indexValue, entries } of this.#indexes.values()) moveKey(entries, key, indexValue(old), undefined);
    this.#notify({ object: last, old, deleted: true });
  }

  #notify(change: Change<T>): void {
    for (const listener of this.#listeners) {
      try {
        listener(change);
      } catch (error) {
        this.#options.log.error({ resource: this.#options.resource.plural, err: error }, 'a listener threw');
      }
    }
  }
}

const versionOf = ({ metadata }: KubernetesObject): bigint => BigInt(metadata.resourceVersion);

/** Moves an object's key from the entries of its old index values to those of its new ones. */
function moveKey(
  entries: Map<string, Set<string>>,
  key: string,
  from: ReturnType<Index<never>>,
  to: ReturnType<Index<never>>,
): void {
  if (from === to) return;
  for (const value of valuesOf(from)) {
    const set = entries.get(value);
    set?.delete(key);
    if (set?.size === 0) entries.delete(value);
  }
  for (const value of valuesOf(to)) {
    const set = entries.get(value) ?? new Set();
    entries.set(value, set.add(key));
  }
}

const valuesOf = (value: ReturnType<Index<never>>): readonly string[] =>
  value === undefined ? [] : typeof value === 'string' ? [value] : value;
