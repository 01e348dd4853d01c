/**
 * A controller: workers that take keys from a work queue and reconcile the object of each. A reconcile that fails is
 * tried again after an exponential backoff; one that succeeds may request to be repeated after some seconds.
 *
 * No two workers have the same key, so a reconcile needs no locks (controller-runtime, pkg/internal/controller).
 */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import { isApiError } from './api-error.ts';
import { LeadershipLost } from './leadership.ts';
import type { ControllerMetrics } from './metrics.ts';
import { splitKey } from './resource.ts';
import { WorkQueue } from './workqueue.ts';

/** `requeueAfterSeconds`: when to reconcile the key again without any change; null: only after a change. */
export type ReconcileResult = { requeueAfterSeconds: number | null };
export type Reconcile = (key: string, log: Logger) => Promise<ReconcileResult>;

export interface ControllerOptions {
  name: string;
  reconcile: Reconcile;
  workers: number;
  log: Logger;
  metrics: ControllerMetrics;
}

export class Controller {
  readonly name: string;
  readonly queue: WorkQueue;
  readonly #options: ControllerOptions;
  readonly #log: Logger;

  constructor(options: ControllerOptions) {
    this.name = options.name;
    this.#options = options;
    this.#log = options.log.child({ controller: options.name });
    this.queue = new WorkQueue(options.metrics.queue);
    options.metrics.observe(options.workers, this.queue);
  }

  /** Runs until the signal aborts, then until the reconciles that have begun are over. */
  async run(signal: AbortSignal): Promise<void> {
    const stop = () => this.queue.close();
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
    await Promise.all(Array.from({ length: this.#options.workers }, () => this.#work()));
  }

  async #work(): Promise<void> {
    for (let key = await this.queue.take(); key !== null; key = await this.queue.take()) {
      await this.#reconcile(key);
      this.queue.done(key);
    }
  }

  async #reconcile(key: string): Promise<void> {
    const { reconcile, metrics } = this.#options;
    const log = this.#log.child({ ...splitKey(key), reconcileID: randomUUID(), tries: this.queue.failures(key) + 1 });
    const end = metrics.begin();
    try {
      const { requeueAfterSeconds } = await reconcile(key, log);
      this.queue.forget(key);
      if (requeueAfterSeconds !== null) this.queue.addAfter(key, 1000 * requeueAfterSeconds);
      end(requeueAfterSeconds === null ? 'success' : 'requeue_after');
    } catch (error) {
      if (error instanceof LeadershipLost) return end('error');
      // A conflict is expected: another client changed the object. The next reconcile reads that change.
      if (isApiError(error, 'Conflict'))
        log.debug({ err: error }, 'the object has changed meanwhile; reconciling again');
      else log.error({ err: error }, 'reconcile failed; trying again');
      this.queue.retry(key);
      end(isApiError(error, 'Conflict') ? 'requeue' : 'error');
    }
  }
}
