/**
 * Writes Events, which users read in `kubectl describe`. An event that repeats within some minutes is counted up in its
 * series; a token bucket for each object limits how many events it can cause (client-go's EventSourceObjectSpamFilter).
 *
 * Events are best effort: an error is logged, and the caller never waits. They wait in a queue of limited length, in
 * which equal events are one. What does not fit, and what the server does not take, is dropped and counted.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { isApiError } from './api-error.ts';
import type { Client } from './client.ts';
import { defineResource, type KubernetesObject } from './resource.ts';

export interface EventSubject {
  apiVersion: string;
  kind: string;
  namespace: string;
  name: string;
  uid: string;
}
export interface EventContent {
  type: 'Normal' | 'Warning';
  reason: string;
  /** What the controller did or tried. */
  action: string;
  message: string;
}

export interface EventObject extends KubernetesObject {
  type: string;
  reason: string;
  note: string;
  regarding: EventSubject;
  series?: { count: number; lastObservedTime: string };
}
export const events = defineResource<EventObject>('events.k8s.io/v1', 'events');

/** An Event on the server, how often it was emitted, and when last (ms since the epoch). */
interface Series {
  namespace: string;
  name: string;
  count: number;
  at: number;
}

/** An event that has not been sent, and how often it was emitted meanwhile. */
interface Pending {
  subject: EventSubject;
  content: EventContent;
  count: number;
}

/** Why an event was dropped: its object has had too many, the queue is full, or the request to write it failed. */
export type DropCause = 'rate' | 'queue' | 'error';

/** The API's limit of a note, in bytes. */
const MAX_NOTE = 1024;
/** An event that repeats within this time belongs to the same series. */
const SERIES_MILLISECONDS = 360_000;
/** The token bucket of an object: its size, and the time in which it gains a token. */
const BURST = 25;
const REFILL_MILLISECONDS = 60_000;
/** Different events that wait to be sent. Each object has at most BURST of them. */
const MAX_PENDING = 1000;
/** Longest wait for the queue to be sent, at the end of the program. */
const FLUSH_MILLISECONDS = 5_000;
/** Series, and buckets, that are kept in memory. */
const MAX_ENTRIES = 4096;

const microTime = (date: Date): string => date.toISOString().replace('Z', '000Z');

export interface RecorderOptions {
  client: Pick<Client, 'create' | 'patch'>;
  /** Name of the program (reportingController), and of this replica (reportingInstance). */
  controller: string;
  instance: string;
  log: Logger;
  /** Called for each event that is not sent. */
  onDrop?: (cause: DropCause) => void;
  now?: () => Date;
}

export class EventRecorder {
  readonly #options: RecorderOptions;
  readonly #now: () => Date;
  readonly #series = new Map<string, Series>();
  readonly #buckets = new Map<string, { tokens: number; at: number }>();
  /** By what makes events equal, in the order in which they are sent. */
  readonly #pending = new Map<string, Pending>();
  /** Ends when the queue is empty; null while it is. Events are sent one after the other. */
  #sending: Promise<void> | null = null;

  constructor(options: RecorderOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => new Date());
  }

  /** Sends an event in the background, unless the subject has had too many. */
  emit(subject: EventSubject, content: EventContent): void {
    if (!this.#isAllowed(subject.uid)) return this.#options.onDrop?.('rate');
    const { type, reason, message } = content;
    const key = JSON.stringify([subject.uid, type, reason, message]);
    const pending = this.#pending.get(key);
    if (pending) pending.count++;
    else if (this.#pending.size >= MAX_PENDING) this.#options.onDrop?.('queue');
    else {
      this.#pending.set(key, { subject, content, count: 1 });
      this.#sending ??= this.#sendAll();
    }
  }

  /** Resolves when every event emitted so far has been sent, or after this time. */
  async flush(limitMilliseconds = FLUSH_MILLISECONDS): Promise<void> {
    const over = new AbortController();
    await Promise.race([this.#sending, delay(limitMilliseconds, undefined, { signal: over.signal }).catch(() => {})]);
    over.abort();
  }

  async #sendAll(): Promise<void> {
    // Events of one turn of the event loop are put together first.
    await Promise.resolve();
    for (const [key, pending] of this.#pending) {
      this.#pending.delete(key);
      await this.#send(key, pending).catch((error: unknown) => {
        this.#options.log.warn({ err: error, event: pending.content.reason }, 'event not written');
        for (let count = 0; count < pending.count; count++) this.#options.onDrop?.('error');
      });
    }
    this.#sending = null;
  }

  async #send(key: string, { subject, content, count }: Pending): Promise<void> {
    const { client } = this.#options;
    const { type, reason, action, message } = content;
    const now = this.#now();
    const series = this.#series.get(key);
    if (series && now.getTime() - series.at < SERIES_MILLISECONDS) {
      const newCount = series.count + count;
      try {
        await client.patch(events, series.namespace, series.name, {
          series: { count: newCount, lastObservedTime: microTime(now) },
        });
        Object.assign(series, { count: newCount, at: now.getTime() });
        return;
      } catch (error) {
        if (!isApiError(error, 'NotFound')) throw error; // its TTL is over on the server: create it again
      }
    }
    const name = `${subject.name}.${randomUUID().slice(0, 13)}`;
    await client.create(events, subject.namespace, {
      apiVersion: events.apiVersion,
      kind: 'Event',
      metadata: { name, namespace: subject.namespace },
      eventTime: microTime(now),
      reportingController: this.#options.controller,
      reportingInstance: this.#options.instance,
      type,
      reason,
      action,
      note: shorten(message),
      regarding: subject,
      ...(count > 1 && { series: { count, lastObservedTime: microTime(now) } }),
    });
    setNewest(this.#series, key, { namespace: subject.namespace, name, count, at: now.getTime() });
  }

  #isAllowed(uid: string): boolean {
    const at = this.#now().getTime();
    const before = this.#buckets.get(uid) ?? { tokens: BURST, at };
    const tokens = Math.min(BURST, before.tokens + (at - before.at) / REFILL_MILLISECONDS);
    setNewest(this.#buckets, uid, { tokens: tokens < 1 ? tokens : tokens - 1, at });
    return tokens >= 1;
  }
}

/** Sets the entry as the newest, and deletes the oldest when there are more than MAX_ENTRIES. */
function setNewest<V>(map: Map<string, V>, key: string, value: V): void {
  map.delete(key);
  map.set(key, value);
  if (map.size > MAX_ENTRIES) map.delete(map.keys().next().value!);
}

/** Cuts the message to MAX_NOTE bytes of UTF-8, without half a character at its end. */
function shorten(message: string): string {
  const bytes = Buffer.from(message);
  return bytes.length <= MAX_NOTE
    ? message
    : `${bytes
        .subarray(0, MAX_NOTE - 8)
        .toString()
        .replace(/\uFFFD+$/, '')}…`;
}
