/** Prometheus metrics under the names of controller-runtime and client-go, so that dashboards made for those work. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { DropCause } from './event-recorder.ts';
import type { WorkQueue, WorkQueueMetrics } from './workqueue.ts';

/** How a reconcile ended: the label `result` of controller_runtime_reconcile_total. */
export type ReconcileOutcome = 'success' | 'requeue' | 'requeue_after' | 'error';

export interface ControllerMetrics {
  queue: WorkQueueMetrics;
  /** Sets the queue and the number of workers that the gauges report. */
  observe(workers: number, queue: WorkQueue): void;
  /** To be called when a reconcile begins; the returned function when it ends. */
  begin(): (result: ReconcileOutcome) => void;
}

const RECONCILE_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const QUEUE_BUCKETS = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 60, 600];

export class Metrics {
  readonly registry = new Registry();
  readonly #queues = new Map<string, WorkQueue>();
  readonly #requests = this.#counter(
    'rest_client_requests_total',
    'Requests to the API server, by method and answer.',
    ['method', 'code'],
  );
  readonly #watchRestarts = this.#counter(
    'facetrain_watch_restarts_total',
    'Watches that ended in an error, by resource.',
    ['resource'],
  );
  readonly #droppedEvents = this.#counter(
    'facetrain_events_dropped_total',
    'Events that were not written: rate, an object had too many; queue, too many waited; error, the request failed.',
    ['cause'],
  );
  readonly #leader = this.#gauge('leader_election_master_status', '1 while this replica leads.', ['name']);
  readonly #reconciles = this.#counter('controller_runtime_reconcile_total', 'Reconciles, by how they ended.', [
    'controller',
    'result',
  ]);
  readonly #errors = this.#counter('controller_runtime_reconcile_errors_total', 'Reconciles that failed.', [
    'controller',
  ]);
  readonly #time = this.#histogram(
    'controller_runtime_reconcile_time_seconds',
    'Length of a reconcile.',
    ['controller'],
    RECONCILE_BUCKETS,
  );
  readonly #workers = this.#gauge('controller_runtime_max_concurrent_reconciles', 'Workers there are.', ['controller']);
  readonly #active = this.#gauge('controller_runtime_active_workers', 'Workers that work.', ['controller']);
  readonly #added = this.#counter('workqueue_adds_total', 'Keys added.', ['name']);
  readonly #retries = this.#counter('workqueue_retries_total', 'Keys added again after a failure.', ['name']);
  readonly #waited = this.#histogram(
    'workqueue_queue_duration_seconds',
    'Wait of a key for a worker.',
    ['name'],
    QUEUE_BUCKETS,
  );
  readonly #worked = this.#histogram('workqueue_work_duration_seconds', 'Work on a key.', ['name'], QUEUE_BUCKETS);

  constructor() {
    collectDefaultMetrics({ register: this.registry });
    this.#queueGauge('workqueue_depth', 'Keys that wait.', ({ depth }) => depth);
    this.#queueGauge(
      'workqueue_unfinished_work_seconds',
      'Sum over the keys in work of how long they have been.',
      ({ working }) => working.reduce((sum, age) => sum + age, 0),
    );
    this.#queueGauge(
      'workqueue_longest_running_processor_seconds',
      'How long the key longest in work has been.',
      ({ working }) => Math.max(0, ...working),
    );
  }

  countRequest = (method: string, code: number | '<error>'): void => this.#requests.inc({ method, code: String(code) });
  countWatchError = (resource: string): void => this.#watchRestarts.inc({ resource });
  countDroppedEvent = (cause: DropCause): void => this.#droppedEvents.inc({ cause });
  setLeading = (name: string, isLeading: boolean): void => this.#leader.set({ name }, isLeading ? 1 : 0);

  controller(controller: string): ControllerMetrics {
    const name = controller;
    this.#active.set({ controller }, 0);
    this.#errors.inc({ controller }, 0);
    return {
      queue: {
        added: () => this.#added.inc({ name }),
        retried: () => this.#retries.inc({ name }),
        taken: (waited) => this.#waited.observe({ name }, waited),
        done: (worked) => this.#worked.observe({ name }, worked),
      },
      observe: (workers, queue) => {
        this.#workers.set({ controller }, workers);
        this.#queues.set(name, queue);
      },
      begin: () => {
        const stop = this.#time.startTimer({ controller });
        this.#active.inc({ controller });
        return (result) => {
          stop();
          this.#active.dec({ controller });
          this.#reconciles.inc({ controller, result });
          if (result === 'error') this.#errors.inc({ controller });
        };
      },
    };
  }

  #queueGauge(name: string, help: string, value: (queue: WorkQueue) => number): void {
    const queues = this.#queues;
    new Gauge({
      name,
      help,
      labelNames: ['name'],
      registers: [this.registry],
      collect() {
        for (const [queue, of] of queues) this.set({ name: queue }, value(of));
      },
    });
  }
  #counter<L extends string>(name: string, help: string, labelNames: L[]): Counter<L> {
    return new Counter({ name, help, labelNames, registers: [this.registry] });
  }
  #gauge<L extends string>(name: string, help: string, labelNames: L[]): Gauge<L> {
    return new Gauge({ name, help, labelNames, registers: [this.registry] });
  }
  #histogram<L extends string>(name: string, help: string, labelNames: L[], buckets: number[]): Histogram<L> {
    return new Histogram({ name, help, labelNames, buckets, registers: [this.registry] });
  }
}
