/**
 * Writes Events, which users read in `kubectl describe`. An event that repeats within some minutes is counted up in its
 * series; a token bucket for each object limits how many events it can cause (client-go's EventSourceObjectSpamFilter).
 *
 * Events are best effort: an error is logged, and the caller never waits.
 */
import { randomUUID } from 'node:crypto';
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

/** The API's limit of a note, in bytes. */
const MAX_NOTE = 1024;
/** An event that repeats within this time belongs to the same series. */
const SERIES_MILLISECONDS = 360_000;
/** The token bucket of an object: its size, and the time in which it gains a token. */
const BURST = 25;
const REFILL_MILLISECONDS = 60_000;
/** Series, and buckets, that are kept in memory. */
const MAX_ENTRIES = 4096;

const microTime = (date: Date): string => date.toISOString().replace('Z', '000Z');

export interface RecorderOptions {
  client: Pick<Client, 'create' | 'patch'>;
  /** Name of the program (reportingController), and of this replica (reportingInstance). */
  controller: string;
  instance: string;
  log: Logger;
  now?: () => Date;
}

export class EventRecorder {
  readonly #options: RecorderOptions;
  readonly #now: () => Date;
  readonly #series = new Map<string, Series>();
  readonly #buckets = new Map<string, { tokens: number; at: number }>();
  /** Ends when the last emitted event has been sent. Events are sent one after the other. */
  #sending: Promise<void> = Promise.resolve();

  constructor(options: RecorderOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => new Date());
  }

  /** Sends an event in the background, unless the subject has had too many. */
  emit(subject: EventSubject, content: EventContent): void {
    if (!this.#isAllowed(subject.uid)) return;
    this.#sending = this.#sending
      .then(() => this.#send(subject, content))
      .catch((error: unknown) => this.#options.log.warn({ err: error, event: content.reason }, 'event not written'));
  }

  /** Resolves when every event emitted so far has been sent. */
  flush(): Promise<void> {
    return this.#sending;
  }

  async #send(subject: EventSubject, content: EventContent): Promise<void> {
    const { client } = this.#options;
    const { type, reason, action, message } = content;
    const now = this.#now();
    const key = JSON.stringify([subject.uid, type, reason, message]);
    const series = this.#series.get(key);
    if (series && now.getTime() - series.at < SERIES_MILLISECONDS) {
      Object.assign(series, { count: series.count + 1, at: now.getTime() });
      try {
        await client.patch(events, series.namespace, series.name, {
          series: { count: series.count, lastObservedTime: microTime(now) },
        });
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
    });
    setNewest(this.#series, key, { namespace: subject.namespace, name, count: 1, at: now.getTime() });
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
