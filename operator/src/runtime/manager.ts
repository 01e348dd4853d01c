/**
 * The order in which the parts of a program start and stop (controller-runtime's manager).
 *
 * Start: caches, leader election, the caches once more, workers. Stop: workers finish the reconciles that have begun,
 * events are sent, the Lease is released, then the caches end. Probes and connections outlive it, so that it can be run
 * again.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Cache } from './cache.ts';
import type { Client } from './client.ts';
import type { Controller } from './controller.ts';
import type { EventRecorder } from './event-recorder.ts';
import type { Check, HealthServer } from './health.ts';
import { type ElectionOptions, LeaderElection } from './leader-election.ts';
import { LeadershipLost } from './leadership.ts';
import type { Metrics } from './metrics.ts';

export interface ManagerOptions {
  client: Client;
  // biome-ignore lint/suspicious/noExplicitAny: caches of different kinds; a Cache is invariant in its kind
  caches: Record<string, Cache<any>>;
  /** Of kinds that the program can do without: they are given a moment to fill, and no probe depends on them. */
  // biome-ignore lint/suspicious/noExplicitAny: as above
  optionalCaches?: Record<string, Cache<any>>;
  controllers: Controller[];
  events: EventRecorder;
  metrics: Metrics;
  log: Logger;
  /** It is served already. */
  health: HealthServer;
  /** null: no election, this replica is the only one. */
  election: Omit<ElectionOptions, 'client' | 'log' | 'onChange'> | null;
  /** Default: OPTIONAL_MILLISECONDS. */
  optionalMilliseconds?: number;
  /** Runs while this replica leads, beside the controllers. */
  whileLeading?: (signal: AbortSignal) => Promise<void>;
}

/**
 * How long the start waits for optional caches, once the others are filled. Normally they fill as fast, and then the
 * first reconciles know all; one that cannot be listed must not hold them up.
 */
const OPTIONAL_MILLISECONDS = 5_000;
/** A reconcile takes milliseconds. One that has not ended after this time never will: the probe fails. */
const STUCK_SECONDS = 600;

/** Resolves when the signal aborts. */
const once = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

/**
 * Runs until the signal aborts.
 *
 * @throws LeadershipLost when another replica may lead: this process must end. It waits for nothing then.
 */
export async function runManager(options: ManagerOptions, signal: AbortSignal): Promise<void> {
  const { client, caches, optionalCaches = {}, controllers, events, metrics, log, health, election } = options;
  const stuck: Check = () => {
    const longest = Math.max(0, ...controllers.flatMap(({ queue }) => queue.working));
    return longest > STUCK_SECONDS ? `a reconcile has been running for ${Math.round(longest)} s` : undefined;
  };
  const ready = Object.fromEntries(
    Object.entries(caches).map(([name, cache]): [string, Check] => [name, () => cache.problem]),
  );
  health.checks = { alive: { workers: stuck }, ready };
  if (signal.aborted) return;
  const watching = new AbortController();
  const watches = Object.values({ ...caches, ...optionalCaches }).map((cache) => cache.run(watching.signal));
  // Hundreds of creates may wait for connections to a slow server, for longer than a leader may wait for a renewal.
  const electing = client.apart();
  let isLost = false;
  try {
    const stopped = once(signal);
    const fill = async (
      of: (cache: (typeof caches)[string]) => Promise<void>,
      stopped: Promise<unknown>,
    ): Promise<void> => {
      const all = (some: ManagerOptions['caches']) => Promise.all(Object.values(some).map(of));
      const optional = all(optionalCaches);
      await Promise.race([all(caches), stopped]);
      const filled = new AbortController();
      const limit = delay(options.optionalMilliseconds ?? OPTIONAL_MILLISECONDS, undefined, { signal: filled.signal });
      await Promise.race([optional, stopped, limit.catch(() => {})]);
      filled.abort();
    };
    await fill(({ synced }) => synced, stopped);
    if (signal.aborted) return;
    log.info('caches are synced');
    const work = async (working: AbortSignal) => {
      // Until just now another replica may have led. What it wrote last, the watches may not have brought yet, and a
      // plan that is made without it could create the pods of an attempt that is over.
      if (election !== null) await fill((cache) => cache.refresh(), once(working));
      if (working.aborted) return;
      await Promise.all([...controllers.map((controller) => controller.run(working)), options.whileLeading?.(working)]);
      await events.flush();
    };
    if (election === null) await work(signal);
    else
      await new LeaderElection({
        ...election,
        client: electing,
        log,
        onChange: (isLeading) => metrics.setLeading(election.name, isLeading),
      }).lead(signal, work);
  } catch (error) {
    isLost = error instanceof LeadershipLost;
    throw error;
  } finally {
    watching.abort();
    await electing.close();
    if (!isLost) await Promise.all(watches);
  }
}
