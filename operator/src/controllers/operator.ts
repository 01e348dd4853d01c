/**
 * The operator as a whole: `runOperator` serves the probes and finds out what the cluster serves; `runParts` builds the
 * parts for that, in the order of their dependencies. Each part has a separate file: cluster-discovery.ts, caches.ts,
 * reconcile.ts, wake-ups.ts; ../runtime/manager.ts starts and stops them.
 */
import { API_VERSION, OPERATOR_NAME, PROGRESS_PATH } from '@facetrain/api';
import type { Environment } from '@facetrain/planner/environment';
import { Reason } from '@facetrain/planner/reasons';
import type { Logger } from 'pino';
import { type Client, untilAborted } from '../runtime/client.ts';
import { Controller, type Reconcile } from '../runtime/controller.ts';
import { EventRecorder } from '../runtime/event-recorder.ts';
import { HealthServer } from '../runtime/health.ts';
import type { ElectionTimes } from '../runtime/leader-election.ts';
import { Leadership, LeadershipLost } from '../runtime/leadership.ts';
import { runManager } from '../runtime/manager.ts';
import type { Metrics } from '../runtime/metrics.ts';
import { splitKey } from '../runtime/resource.ts';
import { makeCaches } from './caches.ts';
import { type Cluster, clusterChanged, discoverCluster } from './cluster-discovery.ts';
import { ProgressPoller } from './progress-poller.ts';
import { faceTrainJobReconciler, quantizeJobReconciler } from './reconcile.ts';
import { SharedFolders } from './shared-folders.ts';
import { type Enqueue, registerWakeUps } from './wake-ups.ts';

export interface OperatorOptions {
  client: Client;
  metrics: Metrics;
  log: Logger;
  environment: Environment;
  /** null: all namespaces. */
  namespace: string | null;
  /** Name of this replica: holder of the Lease, reportingInstance of events. Unique among replicas and restarts. */
  identity: string;
  /** The Lease by which replicas elect a leader; null: this replica is the only one. */
  election: (ElectionTimes & { namespace: string; name: string }) | null;
  health: { host?: string; port: number };
  /** Jobs of each kind that are reconciled at the same time. */
  workers: number;
  /** Seconds between two requests for the progress of a job. */
  progressSeconds: number;
  /** Milliseconds between two requests for what the cluster serves; default 30,000. */
  discoveryMilliseconds?: number;
  onListening?: (port: number) => void;
}

const DISCOVERY_MILLISECONDS = 30_000;
/** The API's limit for reportingInstance, in characters. */
const MAX_INSTANCE = 128;

/**
 * Runs until the signal aborts. While the API server cannot be reached it lives, and is not ready: the kubelet must not
 * start a container again for a fault that is elsewhere.
 *
 * @throws LeadershipLost when another replica may lead. It waits for nothing then, as the process has to end
 */
export async function runOperator(options: OperatorOptions, signal: AbortSignal): Promise<void> {
  const { client, metrics, log, namespace } = options;
  const onWatchError = (plural: string) => metrics.countWatchError(plural);
  const starting = { alive: {}, ready: { discovery: () => 'the API server has not answered yet' } };
  const health = new HealthServer({ ...options.health, registry: metrics.registry, ...starting });
  const port = await health.listen();
  options.onListening?.(port);
  log.info({ port }, 'probes and metrics are served');
  let isLost = false;
  try {
    while (!signal.aborted) {
      health.checks = starting;
      const cluster = await discoverCluster({ client, namespace, log, onWatchError }, signal);
      if (cluster === null) break;
      const changed = new AbortController();
      const either = AbortSignal.any([signal, changed.signal]);
      const every = options.discoveryMilliseconds ?? DISCOVERY_MILLISECONDS;
      const reader = client.guardedBy(untilAborted(either));
      const following = clusterChanged({ client: reader, log, namespace }, cluster, every, either);
      void following.then(() => changed.abort());
      try {
        await runParts(options, cluster, health, either);
      } finally {
        changed.abort();
      }
    }
  } catch (error) {
    isLost = error instanceof LeadershipLost;
    throw error;
  } finally {
    const closing = Promise.all([health.close(), client.close()]);
    if (isLost) closing.catch(() => {});
    else {
      await closing;
      log.info('stopped');
    }
  }
}

/** Runs the caches and the controllers until the signal aborts. */
async function runParts(
  options: OperatorOptions,
  { podGroupApis, servesWorkloads, servesRestartRules, nodesAndVolumes }: Cluster,
  health: HealthServer,
  signal: AbortSignal,
): Promise<void> {
  const { client, metrics, log, environment, namespace, identity, election } = options;
  const onWatchError = (plural: string) => metrics.countWatchError(plural);
  log.info(
    { podGroupApis, servesWorkloads, servesRestartRules, namespace },
    podGroupApis.Native === undefined
      ? 'the cluster serves no PodGroup: gangs start as plain pods unless their jobs say otherwise'
      : 'gangs start by PodGroup',
  );

  const enqueue: Enqueue = (kind, key) => controllers[kind].queue.add(key);
  const caches = makeCaches({ client, namespace, log, onWatchError }, { podGroupApis, servesWorkloads });
  const leadership = election ? Leadership.byElection(election.renewDeadlineSeconds) : Leadership.withoutElection();
  /** For all that acts. The caches read with the other one: they are filled before this replica is elected. */
  const leader = client.guardedBy(leadership);
  const events = new EventRecorder({
    client: leader,
    controller: OPERATOR_NAME,
    instance: identity.slice(0, MAX_INSTANCE),
    log,
    onDrop: metrics.countDroppedEvent,
  });
  const poller = new ProgressPoller({
    log,
    everyMilliseconds: 1000 * options.progressSeconds,
    onChange: (key) => enqueue('FaceTrainJob', key),
    onInvalid: (key, { uid, attempt }, problem) =>
      events.emit(
        { apiVersion: API_VERSION, kind: 'FaceTrainJob', ...splitKey(key), uid },
        {
          type: 'Warning',
          reason: Reason.invalidProgress,
          action: 'Poll',
          message:
            `rank 0 of attempt ${attempt} answered ${PROGRESS_PATH} with no progress of this release, ` +
            `so none is shown, and no hang is noticed: ${problem}`,
        },
      ),
  });

  const folders = new SharedFolders(caches);
  const parts = {
    client: leader,
    caches,
    nodesAndVolumes,
    folders,
    events,
    poller,
    environment,
    podGroupApis,
    servesRestartRules,
  };
  const makeController = (name: string, reconcile: Reconcile) =>
    new Controller({ name, reconcile, workers: options.workers, log, metrics: metrics.controller(name) });
  const controllers = {
    FaceTrainJob: makeController('facetrainjob', faceTrainJobReconciler(parts)),
    QuantizeJob: makeController('quantizejob', quantizeJobReconciler(parts)),
  };

  registerWakeUps(caches, nodesAndVolumes, folders, enqueue);
  // Kueue converts stored Workloads: while it is down, they may not be readable. Jobs without a queue go on. PodGroups
  // of KAI Scheduler and Volcano are gone once these are uninstalled.
  const { Workload, KaiPodGroup, VolcanoPodGroup, ...needed } = caches;

  await runManager(
    {
      client,
      caches: needed,
      optionalCaches: {
        ...nodesAndVolumes.caches,
        ...(Workload && { Workload }),
        ...(KaiPodGroup && { KaiPodGroup }),
        ...(VolcanoPodGroup && { VolcanoPodGroup }),
      },
      controllers: Object.values(controllers),
      events,
      metrics,
      log,
      health,
      election: election && { ...election, identity, leadership },
      whileLeading: (leading) => poller.run(leading),
    },
    signal,
  );
}
