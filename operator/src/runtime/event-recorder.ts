/**
 * What people read in `kubectl describe`. An event that repeats is counted in its series, and one object may not flood the server.
 * Events are a courtesy: an error is logged and forgotten, and nobody waits.
 */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import { hasReason } from './api-error.ts';
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
  /** What the controller was doing. */
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

interface Series {
  namespace: string;
  name: string;
  count: number;
  at: number;
}

/** The server's limit, in bytes. */
const MAX_NOTE = 1024;
/** A series goes on when the event comes again within this time. */
const SERIES_MILLISECONDS = 360_000;
/** Events of one object: so many at once, and then one in so much time. */
const BURST = 25;
const REFILL_MILLISECONDS = 60_000;
const MAX_REMEMBERED = 4096;

const microTime = (date: Date): string => date.toISOString().replace('Z', '000Z');

export interface RecorderOptions {
  client: Pick<Client, 'create' | 'patch'>;
  /** Name of the program, and of this replica of it. */
  controller: string;
  instance: string;
  log: Logger;
  now?: () => Date;
}

export class EventRecorder {
  readonly #options: RecorderOptions;
  readonly #now: () => Date;
  readonly #series = new Map<string, Series>();
  readonly #allowance = new Map<string, { tokens: number; at: number }>();
  #last: Promise<void> = Promise.resolve();

  constructor(options: RecorderOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => new Date());
  }

  emit(subject: EventSubject, content: EventContent): void {
    if (!this.#isAllowed(subject.uid)) return;
    this.#last = this.#last
      .then(() => this.#send(subject, content))
      .catch((error: unknown) => this.#options.log.warn({ err: error, event: content.reason }, 'event not written'));
  }

  /** Resolves when all that was emitted has been sent. */
  flush(): Promise<void> {
    return this.#last;
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
        if (!hasReason(error, 'NotFound')) throw error; // the server has forgotten it: begin anew
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
    remember(this.#series, key, { namespace: subject.namespace, name, count: 1, at: now.getTime() });
  }

  #isAllowed(uid: string): boolean {
    const at = this.#now().getTime();
    const before = this.#allowance.get(uid) ?? { tokens: BURST, at };
    const tokens = Math.min(BURST, before.tokens + (at - before.at) / REFILL_MILLISECONDS);
    remember(this.#allowance, uid, { tokens: tokens < 1 ? tokens : tokens - 1, at });
    return tokens >= 1;
  }
}

/** Puts the newest last, and forgets the oldest of too many. */
function remember<V>(map: Map<string, V>, key: string, value: V): void {
  map.delete(key);
  map.set(key, value);
  if (map.size > MAX_REMEMBERED) map.delete(map.keys().next().value!);
}

function shorten(message: string): string {
  const bytes = Buffer.from(message);
  return bytes.length <= MAX_NOTE
    ? message
    : `${bytes
        .subarray(0, MAX_NOTE - 8)
        .toString()
        .replace(/\uFFFD+$/, '')}…`;
}
