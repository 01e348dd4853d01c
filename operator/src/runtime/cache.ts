/**
 * A copy of the server's objects of one kind, which keeps itself up to date: a list, then a watch from where the list was.
 *
 * It goes on after any error: a watch that ends is opened again where it stopped; one that starts too far back (410) becomes a new
 * list; all else waits and tries again. Nobody has to look after it.
 *
 * What its owner writes is put here at once (`put`), so that a reader sees its own writes. That works because resource
 * versions of one kind are numbers that grow: an older event never hides a newer object, and what the watch has passed and is not
 * here was deleted.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { ApiError, isExpired } from './api-error.ts';
import { Backoff } from './backoff.ts';
import type { Client, WatchLine } from './client.ts';
import { type KubernetesObject, keyOf, type Resource } from './resource.ts';

export type Change<T> = { object: T; old: T | undefined; deleted: boolean };
export type Index<T> = (object: T) => string | undefined;

export interface CacheOptions<T extends KubernetesObject> {
  client: Pick<Client, 'list' | 'watch'>;
  resource: Resource<T>;
  /** null: all of them. */
  namespace: string | null;
  labelSelector?: string;
  fieldSelector?: string;
  /** Keep metadata only, which is all that is sent then. */
  metadataOnly?: boolean;
  /** Takes away what nobody reads, before it is kept; who set which field (managedFields) is never kept. */
  strip?: (object: T) => T;
  indexes?: Record<string, Index<T>>;
  log: Logger;
  /** Watches end by themselves after this long, and up to twice as long; 300 if absent. Shorter where the server sends no bookmarks, whose silence the client would take for a dead connection. */
  watchSeconds?: number;
  /** Told of every list after the first, and why. */
  onRestart?: (error: unknown) => void;
  retry?: Backoff;
}

const PAGE = 500;
const RETRY_BASE_MILLISECONDS = 200;
const RETRY_MAX_MILLISECONDS = 30_000;
/** Watches end by themselves after 5 to 10 minutes, not all at once, so that they spread over the API servers. */
const WATCH_SECONDS = 300;
/** One that lasted has not failed, even if the server had nothing to say. */
const LASTED_MILLISECONDS = 1_000;

export class Cache<T extends KubernetesObject> {
  readonly #options: CacheOptions<T>;
  readonly #objects = new Map<string, T>();
  readonly #indexes = new Map<string, { of: Index<T>; entries: Map<string, Set<string>> }>();
  readonly #listeners: ((change: Change<T>) => void)[] = [];
  readonly #retry: Backoff;
  readonly #synced = Promise.withResolvers<void>();
  /** Put here since the last list began: newer than that list, perhaps. */
  readonly #written = new Set<string>();
  /** How far the list and the watch have come; '' asks for the newest there is. */
  #version = '0';
  #isSynced = false;

  constructor(options: CacheOptions<T>) {
    this.#options = options;
    this.#retry = options.retry ?? new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
    for (const [name, of] of Object.entries(options.indexes ?? {})) this.#indexes.set(name, { of, entries: new Map() });
  }

  /** Resolves once the first list is here. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }
  get isSynced(): boolean {
    return this.#isSynced;
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
  /** Objects for which the index function gave this value, by name. */
  indexed(index: string, value: string): T[] {
    const keys = this.#indexes.get(index)!.entries.get(value) ?? [];
    return [...keys].sort().map((key) => this.#objects.get(key)!);
  }

  /** Called after every change, the objects of the first list included. */
  onChange(listener: (change: Change<T>) => void): void {
    this.#listeners.push(listener);
  }

  /** Something that the server answered to a write. */
  put(object: T): void {
    if (!this.#isSynced || versionOf(object) <= BigInt(this.#version || 0)) return;
    this.#written.add(keyOf(object));
    this.#set(object);
  }

  /** Lists and watches until the signal says stop. */
  async run(signal: AbortSignal): Promise<void> {
    let listed = false;
    while (!signal.aborted) {
      try {
        if (!listed) {
          await this.#list();
          listed = true;
        }
        await this.#watch(signal);
      } catch (error) {
        if (signal.aborted) return;
        this.#options.onRestart?.(error);
        if (isExpired(error)) {
          listed = false;
          // A list may be served from a copy that is as old as the watch was; '' asks for the newest.
          this.#version = '';
        }
        const wait = this.#retry.next();
        this.#options.log.warn(
          { resource: this.#options.resource.plural, err: error, retryInMs: Math.round(wait) },
          isExpired(error) ? 'watch is too far behind; listing again' : 'watch failed',
        );
        await delay(wait, undefined, { signal }).catch(() => {});
      }
    }
  }

  async #list(): Promise<void> {
    const { client, resource, namespace, labelSelector, fieldSelector, metadataOnly } = this.#options;
    const found = new Map<string, T>();
    let more: string | undefined;
    let version: string;
    this.#written.clear();
    do {
      const query = {
        limit: PAGE,
        labelSelector,
        fieldSelector,
        continue: more,
        resourceVersion: more === undefined && this.#version !== '' ? this.#version : undefined,
      };
      const { metadata, items } = await client.list(resource, namespace, query, metadataOnly);
      for (const item of items ?? []) found.set(keyOf(item), item);
      version = metadata.resourceVersion;
      more = metadata.continue || undefined;
    } while (more !== undefined);
    this.#version = version;
    // What the list says holds even where its versions are older: a server may have been restored from a backup.
    const isNewer = (key: string, old: T) => this.#written.has(key) && versionOf(old) > BigInt(version);
    for (const [key, old] of this.#objects)
      if (!isNewer(key, old) && (!found.has(key) || versionOf(old) > versionOf(found.get(key)!)))
        this.#remove(key, old);
    for (const object of found.values()) this.#set(object);
    this.#isSynced = true;
    this.#synced.resolve();
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
    let lines = 0;
    for await (const line of client.watch(resource, namespace, query, signal, metadataOnly)) {
      this.#take(line);
      if (lines++ === 0) this.#retry.reset();
    }
    // One that the server ends at once, with nothing said, would spin.
    if (lines > 0 || signal.aborted) return;
    if (performance.now() - begun >= LASTED_MILLISECONDS) this.#retry.reset();
    else await delay(this.#retry.next(), undefined, { signal }).catch(() => {});
  }

  #take(line: WatchLine<T>): void {
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
  }

  #set(object: T): void {
    const kept = this.#strip(object);
    const key = keyOf(kept);
    const old = this.#objects.get(key);
    if (old && versionOf(old) >= versionOf(kept)) return;
    this.#objects.set(key, kept);
    for (const { of, entries } of this.#indexes.values()) move(entries, key, old && of(old), of(kept));
    this.#tell({ object: kept, old, deleted: false });
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
    for (const { of, entries } of this.#indexes.values()) move(entries, key, of(old), undefined);
    this.#tell({ object: last, old, deleted: true });
  }

  #tell(change: Change<T>): void {
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

function move(entries: Map<string, Set<string>>, key: string, from: string | undefined, to: string | undefined): void {
  if (from === to) return;
  if (from !== undefined) {
    const set = entries.get(from);
    set?.delete(key);
    if (set?.size === 0) entries.delete(from);
  }
  if (to !== undefined) {
    const set = entries.get(to) ?? new Set();
    entries.set(to, set.add(key));
  }
}
