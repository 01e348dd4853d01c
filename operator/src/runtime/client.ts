/**
 * A client of the API server: raw JSON in and out, over one pool of connections for requests and one for watches.
 *
 * An answer of 429, or of 5xx with a Retry-After header, is tried again for some seconds (client-go does the same);
 * nothing else is. Any other answer than 2xx becomes an ApiError.
 *
 * `guardedBy` makes a client that stops when the process may no longer write: leadership.ts.
 */
import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { createSecureContext } from 'node:tls';
import { Agent, type Dispatcher, ProxyAgent } from 'undici';
import { ApiError } from './api-error.ts';
import { hasEnd, linesOf } from './lines.ts';
import { collectionPath, type KubernetesObject, objectPath, type Resource } from './resource.ts';

export type Query = Record<string, string | number | boolean | undefined>;
type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';

export interface Tls {
  ca?: string | Buffer;
  cert?: string | Buffer;
  key?: string | Buffer;
  rejectUnauthorized?: boolean;
  servername?: string;
}

export interface ClientOptions {
  /** http(s)://host:port, and the path prefix of the API where there is one. */
  server: string;
  tls?: Tls;
  /** URL of a proxy (http, https or socks5) for all connections. */
  proxy?: string;
  /** Returns the headers that authenticate a request. Called for each request, as tokens rotate. */
  credentials?: () => Promise<Record<string, string>>;
  /** Called for every answer, and with '<error>' for a request without one. */
  onResponse?: (method: string, code: number | '<error>') => void;
}

/** Decides whether requests may be sent. */
export interface Guard {
  /** Ends requests under way, and the waits between two tries. */
  readonly signal: AbortSignal;
  /** Called before each try, and again as it is written to its connection. @throws when it must not be sent */
  check(): void;
}

/** A guard that refuses requests once the signal has aborted. */
export const untilAborted = (signal: AbortSignal): Guard => ({ signal, check: () => signal.throwIfAborted() });

export interface ListAnswer<T> {
  metadata: { resourceVersion: string; continue?: string };
  /** null: an empty list, when only metadata was asked for. */
  items: T[] | null;
}

/** A line of a watch. The object of an ERROR is a Status. */
export type WatchLine<T> =
  | { type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK'; object: T }
  | { type: 'ERROR'; object: { code?: number; reason?: string; message?: string } };

/** Accept header for metadata only, for kinds whose content is not read. */
export const METADATA_ONLY = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1';
const METADATA_LIST = 'application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1';

const MAX_CONNECTIONS = 16;
/**
 * An idle connection is kept this long. It must be less than in the server and its load balancer, or a request could be
 * sent on a connection that is being closed.
 */
const IDLE_MILLISECONDS = 30_000;
const MAX_TRIES = 8;
/**
 * A request is tried again for this long at most, in milliseconds, and not at all if the server asks for a longer wait:
 * the caller then reports the server's words, instead of holding a worker.
 */
const RETRY_MILLISECONDS = 15_000;
const ANSWER_MILLISECONDS = 60_000;
/** The server sends a bookmark every minute to a watch without events. A watch that is silent for longer is dead. */
export const WATCH_SILENCE_MILLISECONDS = 150_000;

interface Pools {
  requests: Dispatcher;
  watches: Dispatcher;
}

export class Client {
  readonly #origin: string;
  readonly #prefix: string;
  readonly #requests: Dispatcher;
  readonly #watches: Dispatcher;
  readonly #options: ClientOptions;
  readonly #guard: Guard | undefined;

  /** @param guarded the client whose connections this one shares, and what guards its requests: for `guardedBy` */
  constructor(options: ClientOptions, guarded?: { pools: Pools; guard: Guard }) {
    const url = new URL(options.server);
    this.#origin = url.origin;
    this.#prefix = url.pathname.replace(/\/$/, '');
    this.#options = options;
    this.#guard = guarded?.guard;
    if (guarded) {
      this.#requests = guarded.pools.requests;
      this.#watches = guarded.pools.watches;
      return;
    }
    // One context for all connections: parsing the certificates takes as long as a TLS handshake.
    const connect =
      url.protocol === 'https:' ? { ...options.tls, secureContext: createSecureContext(options.tls) } : {};
    const { proxy } = options;
    const pool = (limits: Agent.Options): Dispatcher =>
      proxy === undefined
        ? new Agent({ ...limits, connect })
        : new ProxyAgent({ ...limits, uri: proxy, requestTls: connect });
    // HTTP/1.1, where a stalled watch cannot block requests that share its connection.
    this.#requests = pool({
      connections: MAX_CONNECTIONS,
      allowH2: false,
      keepAliveTimeout: IDLE_MILLISECONDS,
    });
    this.#watches = pool({ allowH2: false });
  }

  /** A client of the same server, over the same connections, all of whose requests need the guard's consent. */
  guardedBy(guard: Guard): Client {
    return new Client(this.#options, { pools: { requests: this.#requests, watches: this.#watches }, guard });
  }

  /** A client of the same server over connections of its own: it waits for no request of this one. Close it. */
  apart(): Client {
    return new Client(this.#options);
  }

  get<T extends KubernetesObject>(resource: Resource<T>, namespace: string | null, name: string): Promise<T> {
    return this.#json<T>('GET', objectPath(resource, namespace, name));
  }

  list<T extends KubernetesObject>(
    resource: Resource<T>,
    namespace: string | null,
    query: Query,
    metadataOnly = false,
    signal?: AbortSignal,
  ): Promise<ListAnswer<T>> {
    return this.#json('GET', collectionPath(resource, namespace), {
      query,
      ...(metadataOnly && { accept: METADATA_LIST }),
      ...(signal && { signal }),
    });
  }

  /** @param strict whether a field that the server does not know is an error; otherwise it is dropped */
  create<T extends KubernetesObject>(
    resource: Resource<T>,
    namespace: string,
    object: object,
    strict = false,
  ): Promise<T> {
    return this.#json<T>('POST', collectionPath(resource, namespace), {
      body: object,
      ...(strict && { query: { fieldValidation: 'Strict' } }),
    });
  }

  /** Replaces the object. @throws ApiError Conflict when its resourceVersion is no longer that of `object` */
  replace<T extends KubernetesObject>(
    resource: Resource<T>,
    namespace: string,
    name: string,
    object: object,
  ): Promise<T> {
    return this.#json<T>('PUT', objectPath(resource, namespace, name), { body: object });
  }

  /** A JSON merge patch. With metadata.resourceVersion in it, an object that has changed since gives a Conflict. */
  patch<T extends KubernetesObject>(
    resource: Resource<T>,
    namespace: string | null,
    name: string,
    patch: object,
    subresource?: 'status' | 'scale',
  ): Promise<T> {
    const path = objectPath(resource, namespace, name);
    return this.#json<T>('PATCH', subresource ? `${path}/${subresource}` : path, {
      body: patch,
      contentType: 'application/merge-patch+json',
    });
  }

  /**
   * @param graceSeconds 0: without waiting for the kubelet; absent: the object's own grace period
   * @returns the object, while it still exists, or a Status
   */
  delete(
    resource: Resource,
    namespace: string | null,
    name: string,
    uid: string,
    graceSeconds?: number,
  ): Promise<Partial<KubernetesObject>> {
    const grace = graceSeconds === undefined ? {} : { gracePeriodSeconds: graceSeconds };
    const body = {
      apiVersion: 'v1',
      kind: 'DeleteOptions',
      propagationPolicy: 'Background',
      preconditions: { uid },
      ...grace,
    };
    return this.#json('DELETE', objectPath(resource, namespace, name), { body });
  }

  /** Reads any path, such as /version or /apis/scheduling.k8s.io. */
  raw<T>(path: string): Promise<T> {
    return this.#json<T>('GET', path);
  }

  /** Posts to any path: creates a cluster-scoped object, or a subresource. */
  post<T>(path: string, body: object): Promise<T> {
    return this.#json<T>('POST', path, { body });
  }

  /**
   * Yields the lines of a watch, until the server or the network ends it.
   *
   * @param onOpen called when the server has accepted the watch; its first line may come much later
   */
  async *watch<T extends KubernetesObject>(
    resource: Resource<T>,
    namespace: string | null,
    query: Query,
    signal: AbortSignal,
    metadataOnly = false,
    onOpen?: () => void,
  ): AsyncGenerator<WatchLine<T>> {
    const path = collectionPath(resource, namespace);
    const { statusCode, body } = await this.#send(this.#watches, 'GET', path, {
      query: { ...query, watch: true },
      signal,
      bodyTimeout: WATCH_SILENCE_MILLISECONDS,
      ...(metadataOnly && { accept: METADATA_ONLY }),
    });
    if (statusCode !== 200) throw ApiError.fromBody(`watch ${path}`, statusCode, await body.text());
    onOpen?.();
    for await (const line of linesOf(body as AsyncIterable<Buffer>))
      if (hasEnd(line) && line.length > 1) yield JSON.parse(line.toString()) as WatchLine<T>;
  }

  /**
   * Yields an answer that is no JSON as it comes, such as the log of a container. It may be silent for any time.
   *
   * @throws ApiError for any other answer than 2xx
   */
  async *stream(path: string, query: Query, signal: AbortSignal): AsyncGenerator<Buffer> {
    const { statusCode, body } = await this.#send(this.#watches, 'GET', path, {
      query,
      signal,
      accept: '*/*',
      bodyTimeout: 0,
    });
    if (statusCode >= 300) throw ApiError.fromBody(`GET ${path}`, statusCode, await body.text());
    yield* body as AsyncIterable<Buffer>;
  }

  /** Ends all requests and watches, also those of the clients that share the connections. */
  async close(): Promise<void> {
    await Promise.all([this.#requests.destroy(), this.#watches.destroy()]);
  }

  async #json<T>(
    method: Method,
    path: string,
    options: { query?: Query; body?: object; contentType?: string; accept?: string; signal?: AbortSignal } = {},
  ): Promise<T> {
    const signals = [this.#guard?.signal, options.signal].filter((one) => one !== undefined);
    const signal = signals.length > 0 ? AbortSignal.any(signals) : undefined;
    const giveUpAt = performance.now() + RETRY_MILLISECONDS;
    try {
      for (let tries = 1; ; tries++) {
        const { statusCode, headers, body } = await this.#send(this.#requests, method, path, {
          ...options,
          ...(signal && { signal }),
        });
        const text = await body.text();
        if (statusCode < 300) return JSON.parse(text) as T;
        const wait = retryAfter(statusCode, headers['retry-after']);
        if (wait === null || tries === MAX_TRIES || performance.now() + 1000 * wait > giveUpAt)
          throw ApiError.fromBody(`${method} ${path}`, statusCode, text);
        await delay(1000 * wait, undefined, signal && { signal });
      }
    } catch (error) {
      // The reason why the guard ended the request, in place of an AbortError.
      this.#guard?.check();
      throw error;
    }
  }

  async #send(
    dispatcher: Dispatcher,
    method: Method,
    path: string,
    {
      query = {},
      body,
      contentType = 'application/json',
      accept = 'application/json',
      signal,
      bodyTimeout = ANSWER_MILLISECONDS,
    }: {
      query?: Query;
      body?: object;
      contentType?: string;
      accept?: string;
      signal?: AbortSignal;
      /** Longest silence within the answer, in milliseconds; 0: any. */
      bodyTimeout?: number;
    },
  ): Promise<Dispatcher.ResponseData> {
    const guard = this.#guard;
    const search = new URLSearchParams(
      Object.entries(query).flatMap(([name, value]) =>
        value === undefined ? [] : [[name, String(value)] as [string, string]],
      ),
    );
    const credentials = await this.#options.credentials?.();
    guard?.check();
    const text = body && JSON.stringify(body);
    try {
      const answer = await dispatcher.request({
        origin: this.#origin,
        path: `${this.#prefix}${path}${search.size > 0 ? `?${search}` : ''}`,
        method,
        headers: {
          accept,
          'user-agent': 'facetrain-operator',
          ...(text !== undefined && {
            'content-type': contentType,
            'content-length': String(Buffer.byteLength(text)),
          }),
          ...credentials,
        },
        ...(text !== undefined && { body: guard ? checkedBody(text, guard) : text }),
        ...(signal && { signal }),
        // With each request: undici does not give the options of a pool to the connections through a SOCKS proxy.
        headersTimeout: ANSWER_MILLISECONDS,
        bodyTimeout,
      });
      this.#options.onResponse?.(method, answer.statusCode);
      return answer;
    } catch (error) {
      this.#options.onResponse?.(method, '<error>');
      throw error;
    }
  }
}

/**
 * A body that asks the guard when its connection takes it. A request may have waited until then for a free connection,
 * or for a TLS handshake. Undici writes the headers together with the first part of the body, so a request that the
 * guard refuses is not sent at all. Every write of this client has a body.
 */
function checkedBody(text: string, guard: Guard): Readable {
  async function* body(): AsyncGenerator<string> {
    guard.check();
    yield text;
  }
  // Undici takes any async iterable; its types do not say so. A real Readable would be read ahead of the write.
  return body() as unknown as Readable;
}

/** @returns seconds to wait before the request is sent again; null: it is not sent again */
function retryAfter(code: number, header: string | string[] | undefined): number | null {
  if (code === 429 && header === undefined) return 1;
  if (code !== 429 && (code < 500 || header === undefined)) return null;
  const seconds = Number(header);
  return Number.isFinite(seconds) ? Math.max(seconds, 0.05) : 1;
}
