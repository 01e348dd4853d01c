/** Workers that take keys from a queue and bring what is behind each where it should be, again and again until it is there. */
import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import { hasReason } from './api-error.ts';
import type { ControllerMetrics } from './metrics.ts';
import { splitKey } from './resource.ts';
import { WorkQueue } from './workqueue.ts';

/** When to look at the key again although nothing is seen to change; null: then only. */
export type Outcome = { requeueAfterSeconds: number | null };
export type Reconcile = (key: string, log: Logger) => Promise<Outcome>;

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

  /** Works until the signal says stop, then finishes what it has begun. */
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
      // A conflict is no error: somebody was faster, and the next look sees what they did.
      if (hasReason(error, 'Conflict'))
        log.debug({ err: error }, 'somebody changed the object meanwhile; looking again');
      else log.error({ err: error }, 'reconcile failed; trying again');
      this.queue.retry(key);
      end(hasReason(error, 'Conflict') ? 'requeue' : 'error');
    }
  }
}
