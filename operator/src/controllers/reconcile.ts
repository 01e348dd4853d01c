/**
 * The reconcilers of FaceTrainJobs and QuantizeJobs. A reconcile brings the objects of one job closer to its spec:
 *
 *   1. forget what is kept in memory of a job that was deleted,
 *      and the Workload of that job, once its pods have ended,
 *   2. observe: the job, its pods and other children from the caches; what the server refused, from the executor,
 *   3. plan: a pure function of `planner/`. A spec that does not parse gives a status with the reason, and no actions;
 *      one of a newer version, none of either for a while,
 *   4. execute the plan: actions, then the status, then the events.
 *
 * A reconcile is level-based, as in controller-runtime: its input is which job to look at, never what has changed.
 */
import { isIP } from 'node:net';
import {
  API_VERSION,
  FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  PROGRESS_PATH,
  parseDocument,
  QuantizeJob,
  type QuantizeJobStatus,
} from '@facetrain/api';
import type { JobStatus } from '@facetrain/planner/attempt';
import { createsPod } from '@facetrain/planner/concurrent-actions';
import type { Environment } from '@facetrain/planner/environment';
import { quantizeJobName } from '@facetrain/planner/facetrainjob/child-quantizejob';
import { planFaceTrainJob } from '@facetrain/planner/facetrainjob/plan-facetrainjob';
import { invalidStatus, isOfNewerVersion, refusalMessage } from '@facetrain/planner/invalid-spec';
import { eventsOf } from '@facetrain/planner/job-events';
import { CONTAINER, type JobKind } from '@facetrain/planner/names';
import type { ObservedFaceTrainJob, ObservedQuantizeJob, PodGroupApis } from '@facetrain/planner/observed';
import type { Plan } from '@facetrain/planner/plan';
import { planQuantizeJob } from '@facetrain/planner/quantizejob/plan-quantizejob';
import { Reason } from '@facetrain/planner/reasons';
import { timestamp } from '@facetrain/planner/time';
import { isApiError } from '../runtime/api-error.ts';
import type { Client } from '../runtime/client.ts';
import type { Reconcile } from '../runtime/controller.ts';
import type { EventRecorder } from '../runtime/event-recorder.ts';
import { FailingSince } from '../runtime/failing-since.ts';
import { controllerOf, keyOf, type Resource } from '../runtime/resource.ts';
import type { Caches } from './caches.ts';
import { KillCauses } from './kill-causes.ts';
import { identityOf, observeObject } from './observe.ts';
import { leftoversOf, objectsOf, podsOf, predecessorsOf } from './observe-job.ts';
import { ParsedSpecs } from './parsed-specs.ts';
import { Executor, type RejectedCreates } from './pod-executor.ts';
import type { PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import type { ProgressPoller } from './progress-poller.ts';
import { observeQueue, type QueueReferences, type QueueSpec, readReferences, releaseOrphans } from './queues.ts';
import { othersWaitForQuota, quotaRivals } from './quota-rivals.ts';
import { refuseRelativePaths } from './relative-paths.ts';
import { faceTrainJobs, type JobObject, type PodObject, quantizeJobs } from './resources.ts';
import type { SharedFolders } from './shared-folders.ts';

export interface ReconcilerOptions {
  client: Client;
  caches: Caches;
  nodesAndVolumes: PodNodesAndVolumes;
  folders: SharedFolders;
  events: EventRecorder;
  poller: ProgressPoller;
  environment: Environment;
  podGroupApis: PodGroupApis;
  servesRestartRules: boolean;
}

/** Reconciles that fail for this long are reported to the user. */
const PERSISTENT_MILLISECONDS = 10_000;

/**
 * How long a spec with fields that this operator does not know waits for a newer operator. In an upgrade the
 * CustomResourceDefinition comes first, with defaults for its new fields, and a replica of before may lead once more.
 */
const UPGRADE_MILLISECONDS = 120_000;
const UPGRADE_RETRY_SECONDS = 30;

/** The parts of a reconciler that are specific to a kind. */
interface KindOptions<Spec> {
  kind: JobKind;
  resource: Resource<JobObject>;
  /** @throws FacetrainError that names the field that is wrong */
  parse: (document: object, name: string) => { spec: Spec };
  plan: (job: JobObject, spec: Spec, observed: ObservedJob, now: Date) => Plan<JobStatus>;
  forget?: (key: string) => void;
}

/** What is observed for a job of either kind. */
interface ObservedJob {
  /** Input that the planners of both kinds share. */
  common: Pick<
    ObservedQuantizeJob,
    'identity' | 'pods' | 'objects' | 'predecessorPods' | 'jobsBefore' | 'refused' | 'queue'
  >;
  /** The pod of rank 0 of the current attempt. */
  rankZero: PodObject | undefined;
}

export function quantizeJobReconciler(options: ReconcilerOptions): Reconcile {
  return reconcilerOf(options, {
    kind: 'QuantizeJob',
    resource: quantizeJobs,
    parse: (document, name) => parseDocument(QuantizeJob, document, name, 'InvalidManifest'),
    plan: (job, spec, { common }, now) =>
      planQuantizeJob({ ...common, spec, status: (job.status ?? {}) as QuantizeJobStatus }, now, options.environment),
  });
}

export function faceTrainJobReconciler(options: ReconcilerOptions): Reconcile {
  const { caches, poller, environment, podGroupApis, servesRestartRules } = options;
  return reconcilerOf(options, {
    kind: 'FaceTrainJob',
    resource: faceTrainJobs,
    parse: (document, name) => parseDocument(FaceTrainJob, document, name, 'InvalidManifest'),
    plan(job, spec, { common, rankZero }, now) {
      const status = (job.status ?? {}) as FaceTrainJobStatus;
      const polled = pollProgress(poller, job, rankZero, spec.trainers.progressPort);
      const { child, quantizeJob } = observeQuantizeJob(caches, job);
      const rivals = quotaRivals(caches, job, now);
      const observed = {
        ...common,
        objects: child ? [...common.objects, child] : common.objects,
        spec,
        status,
        podGroupApis,
        servesRestartRules,
        ...(rivals && { quotaRivals: rivals }),
        ...(spec.trainers.elastic && othersWaitForQuota(caches, job) && { othersWaitForQuota: true as const }),
        ...polled,
        ...(quantizeJob && { quantizeJob }),
      };
      return planFaceTrainJob(observed, now, environment);
    },
    forget: (key) => poller.forget(key),
  });
}

function reconcilerOf<Spec extends QueueSpec>(options: ReconcilerOptions, kindOptions: KindOptions<Spec>): Reconcile {
  const { client, caches, nodesAndVolumes, folders, events, podGroupApis } = options;
  const { kind, resource, parse, plan, forget } = kindOptions;
  const executor = new Executor({ kind, resource, client, caches, events });
  const killCauses = new KillCauses(client);
  const specs = new ParsedSpecs<Spec>(kind, (document, name) => refuseRelativePaths(parse(document, name), name));
  /** By the job's key: the uid of the job that was reconciled last. */
  const uids = new Map<string, string>();
  /** Reconciles of a job, by its uid. */
  const failing = new FailingSince(PERSISTENT_MILLISECONDS);
  /** Specs with unknown fields, by the job's uid. */
  const newer = new FailingSince(UPGRADE_MILLISECONDS);

  const reconcile: Reconcile = async (key, log) => {
    const job = caches[kind].get(key);
    forgetIfReplaced(key, job?.metadata.uid);
    await releaseOrphans(client, caches, kind, key, job, log);
    if (!job) return { requeueAfterSeconds: null };
    const { uid, generation } = job.metadata;
    uids.set(key, uid);
    const jobLog = log.child({ uid, generation, attempt: job.status?.attempt ?? 0 });
    try {
      const requeueAfterSeconds = await executor.execute(job, await planFor(job), jobLog);
      failing.end(uid);
      return { requeueAfterSeconds };
    } catch (error) {
      if (!isApiError(error, 'Conflict')) reportIfPersistent(job, error as Error);
      throw error;
    }
  };

  /**
   * An Event for what no status shows, because no status could be written or none was planned: a deletion that a
   * webhook prevents, an error of ours. The recorder counts repetitions.
   */
  function reportIfPersistent({ metadata: { name, namespace, uid } }: JobObject, error: Error): void {
    if (!failing.lasts(uid)) return;
    events.emit(
      { apiVersion: API_VERSION, kind, name, namespace: namespace!, uid },
      { type: 'Warning', reason: Reason.reconcileFailed, action: 'Reconcile', message: error.message },
    );
  }

  /** Forgets an earlier job of this key: one that was deleted, or deleted and created again with another uid. */
  function forgetIfReplaced(key: string, uid: string | undefined): void {
    const known = uids.get(key);
    if (known === undefined || known === uid) return;
    executor.forget(known);
    folders.setStarting(known, false);
    failing.end(known);
    newer.end(known);
    killCauses.forget(known);
    specs.forget(known);
    forget?.(key);
    uids.delete(key);
  }

  function observe(job: JobObject, { refused, foreign }: RejectedCreates, references: QueueReferences): ObservedJob {
    const identity = identityOf(job);
    const pods = podsOf(caches, nodesAndVolumes, identity);
    const leftovers = leftoversOf(caches, podGroupApis, identity, kind);
    const known = new Set(leftovers.map(({ uid }) => uid));
    return {
      common: {
        identity,
        pods: pods.map(({ observed }) => killCauses.explain(identity.uid, observed)),
        objects: [
          ...objectsOf(caches, podGroupApis, identity, kind),
          ...leftovers,
          ...foreign.filter(({ uid }) => !known.has(uid)),
        ],
        predecessorPods: predecessorsOf(caches, identity, kind),
        jobsBefore: folders.jobsBefore(kind, job),
        queue: observeQueue(caches, kind, job, references),
        ...(refused && { refused }),
      },
      rankZero: pods.find(({ observed }) => observed.rank === 0 && observed.attempt === job.status?.attempt)?.object,
    };
  }

  async function planFor(job: JobObject): Promise<Plan<JobStatus>> {
    let now = new Date();
    try {
      const identity = identityOf(job);
      const spec = specs.get(job);
      newer.end(identity.uid);
      const rejected = await executor.rejectedCreates(identity);
      const references = await readReferences(client, caches, kind, job, spec);
      await killCauses.read(identity.uid, caches.Pod.indexed('job', identity.uid));
      // From here on in one turn of the event loop: see SharedFolders.setStarting.
      now = new Date();
      const made = plan(job, spec, observe(job, rejected, references), now);
      folders.setStarting(job.metadata.uid, made.actions.some(createsPod));
      return made;
    } catch (error) {
      folders.setStarting(job.metadata.uid, false);
      if (!(error instanceof FacetrainError)) throw error;
      const status = job.status ?? {};
      if (isOfNewerVersion(error.message) && !newer.lasts(job.metadata.uid))
        return { actions: [], status, events: [], requeueAfterSeconds: UPGRADE_RETRY_SECONDS };
      const message = refusalMessage(kind, error.message);
      const invalid = invalidStatus(status, identityOf(job).generation, message, now);
      return { actions: [], status: invalid, events: eventsOf(status, invalid), requeueAfterSeconds: null };
    }
  }

  return reconcile;
}

/**
 * Makes the poller request progress from rank 0 of the job's attempt.
 * @returns with the latest progress since the last restart that is counted: what the trainers did before it, the status
 *   would take for a sign that they work again
 */
function pollProgress(
  poller: ProgressPoller,
  job: JobObject,
  rankZero: PodObject | undefined,
  port: number,
): Pick<ObservedFaceTrainJob, 'progress' | 'progressWatch'> {
  const key = keyOf(job);
  const start = rankZero?.status?.containerStatuses?.find(({ name }) => name === CONTAINER)?.restartCount ?? 0;
  poller.setTarget(key, {
    uid: job.metadata.uid,
    attempt: job.status?.attempt ?? 0,
    start,
    url: rankZero ? progressUrl(rankZero, port) : null,
  });
  const { trainers } = (job.status ?? {}) as FaceTrainJobStatus;
  const { latest, watchedSince, isUnreadable } = poller.stateOf(key)!;
  return {
    progressWatch: { since: timestamp(watchedSince), isUnreadable },
    ...(latest && start >= (trainers?.containerRestarts ?? 0) && { progress: latest }),
  };
}

/** Link-local addresses (RFC 3927, RFC 4291): no pod has one, and clouds serve the credentials of a node there. */
const LINK_LOCAL = /^(169\.254\.|fe[89ab][0-9a-f]:)/i;

/** @returns null while the pod does not run, or is being deleted */
function progressUrl({ metadata, status }: PodObject, port: number): string | null {
  const { phase, podIP = '' } = status ?? {};
  if (phase !== 'Running' || metadata.deletionTimestamp !== undefined) return null;
  if (isIP(podIP) === 0 || LINK_LOCAL.test(podIP)) return null;
  return `http://${podIP.includes(':') ? `[${podIP}]` : podIP}:${port}${PROGRESS_PATH}`;
}

/** The QuantizeJob named NAME-quantize. Its spec and status are returned only if this FaceTrainJob owns it. */
function observeQuantizeJob(caches: Caches, job: JobObject) {
  const identity = identityOf(job);
  const { namespace } = identity;
  const found = caches.QuantizeJob.get(keyOf({ metadata: { namespace, name: quantizeJobName(identity) } }));
  if (!found) return {};
  const child = observeObject('QuantizeJob', found, identity, 'FaceTrainJob');
  if (controllerOf(found)?.uid !== identity.uid) return { child };
  const quantizeJob: ObservedFaceTrainJob['quantizeJob'] = {
    spec: { suspend: found.spec.suspend === true },
    status: (found.status ?? {}) as QuantizeJobStatus,
  };
  return { child, quantizeJob };
}
