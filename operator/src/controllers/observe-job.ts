/**
 * What exists for one job, read from the caches: its pods, its other children, and pods of earlier jobs of its name.
 */
import { type JobKind, Label } from '@facetrain/planner/names';
import type { JobIdentity, ObservedObject, ObservedPod } from '@facetrain/planner/observed';
import { controllerOf, type KubernetesObject } from '../runtime/resource.ts';
import { type Caches, jobNameIndexValue } from './caches.ts';
import { isPodAlive, observeObject, observePod } from './observe.ts';
import type { PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import type { PodObject } from './resources.ts';

/**
 * Kinds of children besides pods. A FaceTrainJob's QuantizeJob is found by its name instead, in the jobs' own cache.
 */
const OBJECT_KINDS = ['Service', 'NetworkPolicy', 'ConfigMap', 'PodGroup', 'Workload'] as const;

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

export function objectsOf(caches: Caches, job: JobIdentity, jobKind: JobKind): ObservedObject[] {
  return OBJECT_KINDS.flatMap((kind) =>
    (caches[kind]?.indexed('job', job.uid) ?? []).map((object) => observeObject(kind, object, job, jobKind)),
  );
}

/** Kinds of which a job makes objects for each attempt. The others' names are the same for every job of its name. */
const ATTEMPT_KINDS = ['Pod', 'ConfigMap', 'PodGroup'] as const;

/**
 * What a job of this kind and name that was deleted before this one was created has left of its attempts, and what does
 * not run. This job may never need those names, so it would not come upon them.
 */
export const leftoversOf = (caches: Caches, job: JobIdentity, kind: JobKind): ObservedObject[] =>
  ATTEMPT_KINDS.flatMap((each) =>
    ((caches[each]?.indexed('name', jobNameIndexValue(kind, job.namespace, job.name)) ?? []) as KubernetesObject[])
      .filter((object) => each !== 'Pod' || !isPodAlive(object as PodObject))
      .map((object) => observeObject(each, object, job, kind))
      .filter(({ leftover }) => leftover),
  );

/** Pods that may still run, of a job of this kind and name that was deleted before this one was created. */
export function predecessorsOf(caches: Caches, job: JobIdentity, kind: JobKind): ObservedObject[] {
  return caches.Pod.indexed('name', jobNameIndexValue(kind, job.namespace, job.name))
    .filter((pod) => pod.metadata.labels?.[Label.jobUid] !== job.uid && isPodAlive(pod))
    .map((pod) => observeObject('Pod', pod, job, kind));
}
