/** The operator as a whole: its caches, who is woken by what, and the two controllers. */
import { setTimeout as delay } from 'node:timers/promises';
import {
  API_VERSION,
  FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  OPERATOR_NAME,
  PROGRESS_PATH,
  parseDocument,
  QuantizeJob,
  type QuantizeJobStatus,
} from '@facetrain/api';
import type { JobStatus } from '@facetrain/planner/attempt';
import type { Environment } from '@facetrain/planner/environment';
import { quantizeJobName } from '@facetrain/planner/facetrainjob/child-quantizejob';
import { planFaceTrainJob } from '@facetrain/planner/facetrainjob/plan-facetrainjob';
import { invalidStatus } from '@facetrain/planner/invalid-spec';
import { eventsOf } from '@facetrain/planner/job-events';
import { type JobKind, Label } from '@facetrain/planner/names';
import type { JobIdentity, ObservedObject, ObservedPod } from '@facetrain/planner/observed';
import type { Plan } from '@facetrain/planner/plan';
import { planQuantizeJob } from '@facetrain/planner/quantizejob/plan-quantizejob';
import type { Logger } from 'pino';
import { ApiError, hasReason } from '../runtime/api-error.ts';
import { Backoff } from '../runtime/backoff.ts';
import { Cache } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import { Controller, type Reconcile } from '../runtime/controller.ts';
import { EventRecorder } from '../runtime/event-recorder.ts';
import { runManager } from '../runtime/manager.ts';
import type { Metrics } from '../runtime/metrics.ts';
import { controllerOf, type KubernetesObject, keyOf, type Resource, splitKey } from '../runtime/resource.ts';
import { identityOf, mayRun, observeObject, observePod } from './observe.ts';
import { ParsedSpecs } from './parsed-specs.ts';
import { Surroundings } from './pod-dependencies.ts';
import { Executor } from './pod-executor.ts';
import { ProgressPoller } from './progress-poller.ts';
import { refuseRelativePaths } from './relative-paths.ts';
import {
  configMaps,
  faceTrainJobs,
  type JobObject,
  networkPolicies,
  type PodObject,
  podGroups,
  pods,
  quantizeJobs,
  services,
} from './resources.ts';
import { folderIndexes, jobsAhead } from './shared-folders.ts';

export interface OperatorOptions {
  client: Client;
  metrics: Metrics;
  log: Logger;
  environment: Environment;
  /** null: all of them. */
  namespace: string | null;
  identity: string;
  /** null: this replica is the only one. */
  election: {
    namespace: string;
    name: string;
    durationSeconds?: number;
    renewDeadlineSeconds?: number;
    retrySeconds?: number;
  } | null;
  health: { host?: string; port: number };
  workers: number;
  progressSeconds: number;
  onListening?: (port: number) => void;
}

const CHILDREN = `app.kubernetes.io/managed-by=facetrain,${Label.jobUid}`;
const OBJECT_KINDS = ['Service', 'NetworkPolicy', 'ConfigMap', 'PodGroup'] as const;
const POD_GROUP_VERSIONS = ['v1beta1', 'v1'];
const RETRY_BASE_MILLISECONDS = 200;
const RETRY_MAX_MILLISECONDS = 10_000;

type Caches = Awaited<ReturnType<typeof makeCaches>>;

/** Runs until the signal says stop. @throws LeadershipLost when another replica may lead */
export async function runOperator(options: OperatorOptions, signal: AbortSignal): Promise<void> {
  const { client, metrics, log, identity, election, health, workers, progressSeconds } = options;
  const found = await begin(options, signal);
  if (!found) return;
  const { podGroupApi, surroundings } = found;
  log.info(
    { podGroupApi, namespace: options.namespace },
    podGroupApi === null ? 'the cluster serves no PodGroup: gangs start as plain pods' : 'gangs start by PodGroup',
  );
  const caches = makeCaches(options, podGroupApi);
  const events = new EventRecorder({ client, controller: OPERATOR_NAME, instance: identity.slice(0, 128), log });
  const poller = new ProgressPoller(log, 1000 * progressSeconds, (job) => wake(...fromProgressKey(job)));

  const controllers = {
    FaceTrainJob: new Controller({
      name: 'facetrainjob',
      reconcile: reconcilerOf('FaceTrainJob', faceTrainJobs, caches.FaceTrainJob),
      workers,
      log,
      metrics: metrics.controller('facetrainjob'),
    }),
    QuantizeJob: new Controller({
      name: 'quantizejob',
      reconcile: reconcilerOf('QuantizeJob', quantizeJobs, caches.QuantizeJob),
      workers,
      log,
      metrics: metrics.controller('quantizejob'),
    }),
  };
  const specs = {
    FaceTrainJob: new ParsedSpecs('FaceTrainJob', (document, name) =>
      refuseRelativePaths(parseDocument(FaceTrainJob, document, name, 'InvalidManifest'), name),
    ),
    QuantizeJob: new ParsedSpecs('QuantizeJob', (document, name) =>
      refuseRelativePaths(parseDocument(QuantizeJob, document, name, 'InvalidManifest'), name),
    ),
  };
  const wake = (kind: JobKind, key: string) => controllers[kind].queue.add(key);
  for (const kind of ['FaceTrainJob', 'QuantizeJob'] as const)
    caches[kind].onChange(({ object }) => wake(kind, keyOf(object)));
  for (const cache of Object.values(caches))
    cache.onChange(({ object }: { object: KubernetesObject }) => wakeOwner(object, wake));
  surroundings.listen(
    (node) => {
      const there = caches.Pod.indexed('node', node);
      for (const pod of there) wakeOwner(pod, wake);
      return there.length > 0;
    },
    (key) => {
      const pod = caches.Pod.get(key);
      if (pod) wakeOwner(pod, wake);
    },
    () => caches.Pod.values(),
  );

  function reconcilerOf<K extends JobKind>(kind: K, resource: Resource<JobObject>, jobs: Cache<JobObject>): Reconcile {
    const executor = new Executor({ kind, resource, client, caches, events, podGroupApi });
    const uids = new Map<string, string>();
    return async (key, keyLog) => {
      const job = jobs.get(key);
      if (uids.has(key) && uids.get(key) !== job?.metadata.uid) {
        executor.forget(uids.get(key)!);
        specs[kind].forget(uids.get(key)!);
        poller.forget(progressKey(kind, key));
        uids.delete(key);
      }
      if (!job) return { requeueAfterSeconds: null };
      uids.set(key, job.metadata.uid);
      const { uid, generation } = job.metadata;
      const jobLog = keyLog.child({ uid, generation, attempt: job.status?.attempt ?? 0 });
      const plan = await planOf(kind, job, executor);
      return { requeueAfterSeconds: await executor.execute(job, plan, jobLog) };
    };
  }

  async function planOf(kind: JobKind, job: JobObject, executor: Executor): Promise<Plan<JobStatus>> {
    const now = new Date();
    const identity = identityOf(job);
    const status = job.status ?? {};
    try {
      const { refused, foreign } = await executor.memory(identity);
      const observedPods = podsOf(caches, surroundings, identity);
      const common = {
        identity,
        pods: observedPods.map(({ observed }) => observed),
        objects: [...objectsOf(caches, identity, kind), ...foreign],
        predecessors: predecessorsOf(caches, identity, kind),
        ...(refused && { refused }),
      };
      if (kind === 'QuantizeJob') {
        return planQuantizeJob(
          { ...common, spec: specs.QuantizeJob.of(job), status: status as QuantizeJobStatus },
          now,
          options.environment,
        );
      }
      const spec = specs.FaceTrainJob.of(job);
      const rankZero = observedPods.find(({ observed }) => observed.rank === 0 && observed.attempt === status.attempt);
      const url = rankZero && progressUrl(rankZero.object, spec.trainers.progressPort);
      const progress = poller.follow(progressKey(kind, keyOf(job)), {
        uid: identity.uid,
        attempt: status.attempt ?? 0,
        url: url ?? null,
      });
      const child = caches.QuantizeJob.get(
        keyOf({ metadata: { namespace: identity.namespace, name: quantizeJobName(identity) } }),
      );
      const isOurs = child !== undefined && controllerOf(child)?.uid === identity.uid;
      const quantizeJob = isOurs && {
        spec: { suspend: child.spec.suspend === true },
        status: (child.status ?? {}) as QuantizeJobStatus,
      };
      const objects = child ? [...common.objects, observeObject('QuantizeJob', child, identity, kind)] : common.objects;
      return planFaceTrainJob(
        {
          ...common,
          jobsBefore: jobsAhead(caches, job),
          objects,
          spec,
          status: status as FaceTrainJobStatus,
          podGroupApi,
          ...(progress && { progress }),
          ...(quantizeJob && { quantizeJob }),
        },
        now,
        options.environment,
      );
    } catch (error) {
      if (!(error instanceof FacetrainError)) throw error;
      const invalid = invalidStatus(status, identity.generation, error.message, now);
      return { actions: [], status: invalid, events: eventsOf(status, invalid), requeueAfterSeconds: null };
    }
  }

  await runManager(
    {
      client,
      caches: { ...caches, ...surroundings.caches },
      controllers: Object.values(controllers),
      events,
      metrics,
      log,
      health,
      election: election && { ...election, identity },
      whileLeading: (leading) => poller.run(leading),
      ...(options.onListening && { onListening: options.onListening }),
    },
    signal,
  );
}

function makeCaches({ client, namespace, log, metrics }: OperatorOptions, podGroupApi: string | null) {
  const indexes = { job: ({ metadata }: KubernetesObject) => metadata.labels?.[Label.jobUid] };
  const of = <T extends KubernetesObject>(resource: Resource<T>) => ({
    client,
    resource,
    namespace,
    log,
    onRestart: () => metrics.watchRestarted(resource.plural),
  });
  const children = <T extends KubernetesObject>(resource: Resource<T>) => ({
    ...of(resource),
    labelSelector: CHILDREN,
    indexes,
  });
  const metadata = (resource: Resource) => new Cache({ ...children(resource), metadataOnly: true });
  return {
    FaceTrainJob: new Cache({ ...of(faceTrainJobs), indexes: folderIndexes }),
    QuantizeJob: new Cache(of(quantizeJobs)),
    Pod: new Cache({
      ...children(pods),
      strip: withoutContent,
      indexes: { ...indexes, name: jobNameOf, node: ({ spec }: PodObject) => spec.nodeName },
    }),
    Service: metadata(services),
    ConfigMap: metadata(configMaps),
    NetworkPolicy: metadata(networkPolicies),
    ...(podGroupApi !== null && { PodGroup: metadata(podGroups(podGroupApi)) }),
  };
}

/** Of thousands of pods, the specs are most of the memory. */
function withoutContent(pod: PodObject): PodObject {
  const { nodeName, volumes = [] } = pod.spec;
  const claims = volumes.flatMap(({ persistentVolumeClaim }) =>
    persistentVolumeClaim ? [{ persistentVolumeClaim }] : [],
  );
  return {
    ...pod,
    spec: { ...(nodeName !== undefined && { nodeName }), ...(claims.length > 0 && { volumes: claims }) },
  };
}

/** What must be known before anything can begin. A server that does not answer is asked again: it may be starting, as after an upgrade. @returns null when the signal came first */
async function begin({ client, namespace, log, metrics }: OperatorOptions, signal: AbortSignal) {
  const retry = new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
  while (!signal.aborted) {
    try {
      const podGroupApi = await servedPodGroup(client);
      return {
        podGroupApi,
        surroundings: await Surroundings.open({
          client,
          namespace,
          log,
          onRestart: (plural) => metrics.watchRestarted(plural),
        }),
      };
    } catch (error) {
      if (error instanceof ApiError && error.status < 500) throw error;
      const wait = retry.next();
      log.warn({ err: error, retryInMs: Math.round(wait) }, 'the API server does not answer');
      await delay(wait, undefined, { signal }).catch(() => {});
    }
  }
  return null;
}

async function servedPodGroup(client: Client): Promise<string | null> {
  for (const version of POD_GROUP_VERSIONS) {
    try {
      const { resources } = await client.raw<{ resources: { name: string }[] }>(`/apis/scheduling.k8s.io/${version}`);
      if (resources.some(({ name }) => name === 'podgroups')) return `scheduling.k8s.io/${version}`;
    } catch (error) {
      if (!hasReason(error, 'NotFound')) throw error;
    }
  }
  return null;
}

function podsOf(
  caches: Caches,
  surroundings: Surroundings,
  { uid }: JobIdentity,
): { object: PodObject; observed: ObservedPod }[] {
  return caches.Pod.indexed('job', uid).flatMap((object) => {
    const observed = controllerOf(object)?.uid === uid ? observePod(object, surroundings) : null;
    return observed ? [{ object, observed }] : [];
  });
}

function objectsOf(caches: Caches, identity: JobIdentity, jobKind: JobKind): ObservedObject[] {
  return OBJECT_KINDS.flatMap((kind) =>
    (caches[kind]?.indexed('job', identity.uid) ?? []).map((object) => observeObject(kind, object, identity, jobKind)),
  );
}

function predecessorsOf(caches: Caches, { namespace, name, uid }: JobIdentity, kind: JobKind): string[] {
  const pods = caches.Pod.indexed('name', `${kind} ${namespace}/${name}`);
  return pods
    .filter((pod) => pod.metadata.labels?.[Label.jobUid] !== uid && mayRun(pod))
    .map(({ metadata }) => metadata.name);
}

const jobNameOf = ({ metadata: { namespace, labels } }: KubernetesObject): string =>
  `${labels?.[Label.jobKind]} ${namespace}/${labels?.[Label.jobName]}`;

/** Where rank 0 serves; undefined while, or once, it does not. */
function progressUrl({ metadata, status }: PodObject, port: number): string | undefined {
  const { phase, podIP } = status ?? {};
  if (phase !== 'Running' || podIP === undefined || metadata.deletionTimestamp !== undefined) return undefined;
  return `http://${podIP.includes(':') ? `[${podIP}]` : podIP}:${port}${PROGRESS_PATH}`;
}

const progressKey = (kind: JobKind, key: string): string => `${kind} ${key}`;
function fromProgressKey(key: string): [JobKind, string] {
  const [kind, job] = key.split(' ') as [JobKind, string];
  return [kind, job];
}

function wakeOwner(object: KubernetesObject, wake: (kind: JobKind, key: string) => void): void {
  const owner = controllerOf(object);
  if (owner?.apiVersion !== API_VERSION || (owner.kind !== 'FaceTrainJob' && owner.kind !== 'QuantizeJob')) return;
  wake(owner.kind, keyOf({ metadata: { ...splitKey(keyOf(object)), name: owner.name } }));
}
