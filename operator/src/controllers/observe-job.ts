/**
 * What exists for one job, read from the caches: its pods, its other children, and pods of earlier jobs of its name.
 */
import { type JobKind, Label } from '@facetrain/planner/names';
import type {
  JobIdentity,
  ObservedObject,
  ObservedPod,
  PodGroupApis,
  PodGroupReader,
} from '@facetrain/planner/observed';
import { controllerOf, type KubernetesObject } from '../runtime/resource.ts';
import { type Caches, jobNameIndexValue } from './caches.ts';
import { isPodAlive, observeObject, observePod } from './observe.ts';
import type { PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import { POD_GROUP_CACHES, type PodObject } from './resources.ts';

/**
 * Kinds of children besides pods. A FaceTrainJob's QuantizeJob is found by its name instead, in the jobs' own cache.
 */
const OBJECT_KINDS = ['Service', 'NetworkPolicy', 'ConfigMap', 'Workload'] as const;
const READERS = Object.keys(POD_GROUP_CACHES) as PodGroupReader[];

/** The pods whose controller is this job: as the server has them, and as the planner takes them. */
export function podsOf(
  caches: Caches,
  nodesAndVolumes: PodNodesAndVolumes,
  { uid }: JobIdentity,
): { object: PodObject; observed: ObservedPod }[] {
  return caches.Pod.indexed('job', uid).flatMap((object) => {
    const observed = controllerOf(object)?.uid === uid ? observePod(object, nodesAndVolumes) : null;
    return observed ? [{ object, observed }] : [];
  });
}

/** The children of these kinds, but for PodGroups, and all PodGroups, that an index of the caches finds. */
function childrenBy(
  caches: Caches,
  podGroupApis: PodGroupApis,
  kinds: readonly ('Pod' | (typeof OBJECT_KINDS)[number])[],
  index: 'job' | 'name',
  value: string,
): { kind: ObservedObject['kind']; apiVersion?: string; object: KubernetesObject }[] {
  const found = (name: keyof Caches) => (caches[name]?.indexed(index, value) ?? []) as KubernetesObject[];
  return [
    ...kinds.flatMap((kind) => found(kind).map((object) => ({ kind, object }))),
    ...READERS.flatMap((reader) =>
      found(POD_GROUP_CACHES[reader]).map((object) => ({
        kind: 'PodGroup' as const,
        apiVersion: podGroupApis[reader]!,
        object,
      })),
    ),
  ];
}

export const objectsOf = (
  caches: Caches,
  podGroupApis: PodGroupApis,
  job: JobIdentity,
  jobKind: JobKind,
): ObservedObject[] =>
  childrenBy(caches, podGroupApis, OBJECT_KINDS, 'job', job.uid).map(({ kind, apiVersion, object }) =>
    observeObject(kind, object, job, jobKind, apiVersion),
  );

/** Kinds of which a job makes objects for each attempt, beside PodGroups. The others have one name for every job. */
const ATTEMPT_KINDS = ['Pod', 'ConfigMap'] as const;

/**
 * What a job of this kind and name that was deleted before this one was created has left of its attempts, and what does
 * not run. This job may never need those names, so it would not come upon them.
 */
export const leftoversOf = (
  caches: Caches,
  podGroupApis: PodGroupApis,
  job: JobIdentity,
  jobKind: JobKind,
): ObservedObject[] =>
  childrenBy(caches, podGroupApis, ATTEMPT_KINDS, 'name', jobNameIndexValue(jobKind, job.namespace, job.name))
    // Nearly all are the job's own, in every reconcile: they are not looked at further.
    .filter(({ object }) => controllerOf(object)?.uid !== job.uid)
    .filter(({ kind, object }) => kind !== 'Pod' || !isPodAlive(object as PodObject))
    .map(({ kind, apiVersion, object }) => observeObject(kind, object, job, jobKind, apiVersion))
    .filter(({ leftover }) => leftover);

/** Pods that may still run, of a job of this kind and name that was deleted before this one was created. */
export function predecessorsOf(caches: Caches, job: JobIdentity, kind: JobKind): ObservedObject[] {
  return caches.Pod.indexed('name', jobNameIndexValue(kind, job.namespace, job.name))
    .filter((pod) => pod.metadata.labels?.[Label.jobUid] !== job.uid && isPodAlive(pod))
    .map((pod) => observeObject('Pod', pod, job, kind));
}
