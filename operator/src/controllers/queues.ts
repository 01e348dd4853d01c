/**
 * Kueue as a plan takes it: the Workloads of a job, and what they refer to. They come from their cache. Priority
 * classes and flavors are cluster-scoped and few, and are read when pods or a Workload are about to be made.
 *
 * A Workload of a deleted job has Kueue's finalizer. It stays, with its quota, until the job's pods have ended; then
 * `releaseOrphans` removes it.
 */
import type { FaceTrainJobSpec, Queue } from '@facetrain/api';
import { MULTIKUEUE, PREBUILT_LABEL } from '@facetrain/planner/multikueue';
import { firstPodOf, type JobKind, Label, workloadName } from '@facetrain/planner/names';
import type { ObservedQueue, ObservedWorkload, Placement } from '@facetrain/planner/observed';
import { QUEUE_LABEL } from '@facetrain/planner/queue';
import { WORKLOAD_FINALIZER } from '@facetrain/planner/workload';
import type { Logger } from 'pino';
import { ApiError, isApiError } from '../runtime/api-error.ts';
import type { Client } from '../runtime/client.ts';
import { LeadershipLost } from '../runtime/leadership.ts';
import { controllerOf, type KubernetesObject, keyOf, type Resource, splitKey } from '../runtime/resource.ts';
import { type Caches, jobNameIndexValue } from './caches.ts';
import { isPodAlive } from './observe.ts';
import {
  type JobObject,
  resourceFlavors,
  type WorkloadObject,
  workloadPriorityClasses,
  workloads,
} from './resources.ts';

/** What was read from the server for a plan. */
export type QueueReferences = Pick<ObservedQueue, 'priority' | 'flavors' | 'problem'>;

/** The fields of a spec that decide whether the job may make a Workload, or pods in a queue. */
export interface QueueSpec {
  queue?: Queue | undefined;
  managedBy?: string | undefined;
  trainers?: Pick<FaceTrainJobSpec['trainers'], 'replicas' | 'elastic'>;
}

/**
 * Reads what the Workloads of a job refer to, while they or pods may be made: the job has none, or an elastic gang
 * lacks some and may look for room. Nothing for a job without a queue.
 */
export async function readReferences(
  client: Pick<Client, 'get'>,
  caches: Pick<Caches, 'Workload'>,
  kind: JobKind,
  job: JobObject,
  { queue, trainers, managedBy }: QueueSpec,
): Promise<QueueReferences> {
  const nothing: QueueReferences = { flavors: {} };
  if (queue === undefined || !caches.Workload || isUnread(caches)) return nothing;
  const { attemptStartTime, completionTime, trainers: { desired = 0 } = {} } = job.status ?? {};
  const mayGrow = completionTime === undefined && trainers?.elastic !== undefined && desired < trainers.replicas;
  // The status of a job that MultiKueue has sent elsewhere is that of another cluster.
  if (attemptStartTime !== undefined && !mayGrow && managedBy !== MULTIKUEUE) return nothing;
  const made = workloadsOf(caches, kind, job).map(observeWorkload);
  const { priorityClassName } = queue;
  try {
    const priority =
      priorityClassName !== undefined && (mayGrow || !made.some(({ first }) => first === 0))
        ? (await read(client, 'WorkloadPriorityClass', workloadPriorityClasses, priorityClassName)).value
        : undefined;
    const names = new Set(made.flatMap(({ assignment }) => assignment?.flavors ?? []));
    const flavors = await Promise.all(
      [...names].map(async (name): Promise<[string, Placement]> => {
        const { spec = {} } = await read(client, 'ResourceFlavor', resourceFlavors, name);
        return [name, { nodeSelector: spec.nodeLabels ?? {}, tolerations: spec.tolerations ?? [] }];
      }),
    );
    return { flavors: Object.fromEntries(flavors), ...(priority !== undefined && { priority }) };
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    return { ...nothing, problem: error.message };
  }
}

/** An object that is not there, or that the operator may not read: until somebody changes that. */
class Unreadable extends Error {}

async function read<T extends KubernetesObject>(
  client: Pick<Client, 'get'>,
  kind: string,
  resource: Resource<T>,
  name: string,
): Promise<T> {
  try {
    return await client.get(resource, null, name);
  } catch (error) {
    if (error instanceof ApiError && isApiError(error, 'NotFound', 'Forbidden'))
      throw new Unreadable(`${kind} ${name}: ${error.serverMessage}`);
    throw error;
  }
}

const isUnread = ({ Workload }: Pick<Caches, 'Workload'>): boolean => Workload?.isSynced === false;

/** Kueue as the planner takes it. In one turn of the event loop with the plan. */
export function observeQueue(
  caches: Pick<Caches, 'Workload'>,
  kind: JobKind,
  job: JobObject,
  references: QueueReferences,
): ObservedQueue {
  const { [PREBUILT_LABEL]: prebuilt, [QUEUE_LABEL]: label } = job.metadata.labels ?? {};
  // Without the list, the Workload of a gang that runs would be taken for a deleted one.
  if (isUnread(caches)) return { workloads: 'NotListed', flavors: {}, ...(label !== undefined && { label }) };
  const made = workloadsOf(caches, kind, job).map(observeWorkload);
  const workload = made.find(({ first }) => first === 0);
  const growth = made.filter(({ first }) => first > 0);
  return {
    workloads: caches.Workload === undefined ? 'NotServed' : 'Listed',
    ...references,
    ...(label !== undefined && { label }),
    ...(prebuilt !== undefined && { prebuilt }),
    ...(workload && { workload }),
    ...(growth.length > 0 && { growth }),
  };
}

/** The Workloads that belong to the job, under the names that the planner gives them. */
function workloadsOf(
  { Workload }: Pick<Caches, 'Workload'>,
  kind: JobKind,
  { metadata: { namespace, name, uid, labels } }: JobObject,
): WorkloadObject[] {
  const own = (Workload?.indexed('job', uid) ?? []).filter(
    (workload) =>
      controllerOf(workload)?.uid === uid &&
      workload.metadata.name === workloadName(kind, { name }, firstPodOf(workload.metadata.name)),
  );
  // Until the job has adopted it, it has the labels of the job of the manager cluster.
  const prebuilt =
    labels?.[PREBUILT_LABEL] === workloadName(kind, { name })
      ? Workload?.get(keyOf({ metadata: { namespace: namespace!, name: workloadName(kind, { name }) } }))
      : undefined;
  return prebuilt && controllerOf(prebuilt) === undefined ? [...own, prebuilt] : own;
}

/** A Workload as the planner takes it; of one podSet, the only one that the operator asks for. */
export function observeWorkload(workload: WorkloadObject): ObservedWorkload {
  const { metadata, spec, status = {} } = workload;
  const { name, uid, resourceVersion, generation = 0, deletionTimestamp, finalizers = [], labels } = metadata;
  const assignment = status.admission?.podSetAssignments?.[0];
  const { count = 1, minCount } = spec.podSets?.[0] ?? {};
  const digest = labels?.[Label.specDigest];
  return {
    name,
    uid,
    resourceVersion,
    generation,
    deleting: deletionTimestamp !== undefined,
    finalizers,
    first: firstPodOf(name),
    count,
    ...(minCount !== undefined && { minCount }),
    reclaimable: status.reclaimablePods?.[0]?.count ?? 0,
    active: spec.active !== false,
    ...(controllerOf(workload) === undefined && { orphan: true as const }),
    conditions: status.conditions ?? [],
    ...(digest !== undefined && { specDigest: digest }),
    ...(assignment && {
      assignment: {
        ...(assignment.count !== undefined && { count: assignment.count }),
        flavors: [...new Set(Object.values(assignment.flavors ?? {}))],
        hasTopology: assignment.topologyAssignment !== undefined,
      },
    }),
    checks: (status.admissionChecks ?? []).map(({ name, state, message = '', podSetUpdates: [update] = [] }) => ({
      name,
      state,
      message,
      ...(update && { update }),
    })),
  };
}

/**
 * Deletes the Workloads of jobs of this key that are gone, or are being deleted, once their pods have ended. A job that
 * is deleted in the foreground stays until its Workload is gone.
 *
 * @param job the job that has the key now. It goes on when a Workload cannot be released: its next reconcile tries
 * again
 */
export async function releaseOrphans(
  client: Pick<Client, 'delete' | 'patch'>,
  caches: Pick<Caches, 'Pod' | 'Workload'>,
  kind: JobKind,
  key: string,
  job: JobObject | undefined,
  log: Pick<Logger, 'warn'>,
): Promise<void> {
  const { namespace, name } = splitKey(key);
  const living = job?.metadata.deletionTimestamp === undefined ? job?.metadata.uid : undefined;
  for (const workload of caches.Workload?.indexed('name', jobNameIndexValue(kind, namespace, name)) ?? []) {
    // MultiKueue has made it, for a job that it makes next.
    if (controllerOf(workload) === undefined) continue;
    const { metadata } = workload;
    const jobUid = metadata.labels?.[Label.jobUid] ?? '';
    if (jobUid === living || caches.Pod.indexed('job', jobUid).some(isPodAlive)) continue;
    const { uid, resourceVersion, finalizers = [], deletionTimestamp } = metadata;
    try {
      if (deletionTimestamp === undefined) await client.delete(workloads, namespace, metadata.name, uid);
      else if (finalizers.includes(WORKLOAD_FINALIZER))
        await client.patch(workloads, namespace, metadata.name, {
          metadata: {
            uid,
            resourceVersion,
            finalizers: finalizers.filter((finalizer) => finalizer !== WORKLOAD_FINALIZER),
          },
        });
    } catch (error) {
      // It is gone, or Kueue has changed it: then its change brings the job back here.
      if (isApiError(error, 'NotFound', 'Conflict')) continue;
      if (living === undefined || error instanceof LeadershipLost) throw error;
      log.warn({ err: error, workload: metadata.name }, 'the Workload of an earlier job is not released');
    }
  }
}
