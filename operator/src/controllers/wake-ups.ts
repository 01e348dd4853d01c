/**
 * Which change makes which job be reconciled: event handlers, in controller-runtime's words. Each adds the job's key to
 * the queue of its controller.
 *
 * | change | jobs that are reconciled |
 * | --- | --- |
 * | a FaceTrainJob or a QuantizeJob, in any way | the job itself |
 * | a Pod, Service, ConfigMap, NetworkPolicy, PodGroup, Workload or QuantizeJob, in any way | its controller, a job |
 * | a job ends, is suspended, stalls or is deleted; a pod ends or is deleted | the jobs that wait for its folder |
 * | a Node is lost, is ready again or is deleted | the jobs of the pods on it |
 * | a PersistentVolumeClaim is created or deleted | the jobs of the pending pods that mount it |
 * | Workloads are listed for the first time | the jobs with a queue |
 * | a Workload without an owner, in any way | the job of its labels, for which MultiKueue has made it |
 * | an Event that warns about a pod is created or counted up | the job of its pod |
 *
 * The job that is the controller is found by its name, so objects of a deleted job wake the next job of that name,
 * which waits for their end. Besides, ProgressPoller reports new progress of a FaceTrainJob, and every plan may request
 * another reconcile after some seconds. A job that waits for what is not watched (a quota, an object of another owner)
 * relies on that.
 */
import { API_VERSION } from '@facetrain/api';
import { type JobKind, Label } from '@facetrain/planner/names';
import { controllerOf, type KubernetesObject, keyOf, splitKey } from '../runtime/resource.ts';
import type { Caches } from './caches.ts';
import type { PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import type { SharedFolders } from './shared-folders.ts';

/** @param key namespace and name of the job (keyOf) */
export type Enqueue = (kind: JobKind, key: string) => void;

/** To be called before the caches run: the objects of their first lists count as changes. */
export function registerWakeUps(
  caches: Caches,
  nodesAndVolumes: PodNodesAndVolumes,
  folders: SharedFolders,
  enqueue: Enqueue,
): void {
  for (const kind of ['FaceTrainJob', 'QuantizeJob'] as const)
    caches[kind].onChange(({ object }) => enqueue(kind, keyOf(object)));
  for (const cache of Object.values(caches))
    cache.onChange(({ object }: { object: KubernetesObject }) => enqueueOwner(object, enqueue));
  caches.Workload?.onChange(({ object }) => {
    const { namespace, labels } = object.metadata;
    const { [Label.jobKind]: kind, [Label.jobName]: name } = labels ?? {};
    if (controllerOf(object) !== undefined || name === undefined) return;
    if (kind === 'FaceTrainJob' || kind === 'QuantizeJob')
      enqueue(kind, keyOf({ metadata: { namespace: namespace!, name } }));
  });
  // Those that have no Workload yet are found by no change of one.
  void caches.Workload?.synced.then(() => {
    for (const kind of ['FaceTrainJob', 'QuantizeJob'] as const)
      for (const job of caches[kind].values()) if (job.spec.queue !== undefined) enqueue(kind, keyOf(job));
  });
  folders.onRelease(enqueue);
  nodesAndVolumes.listen({
    onNode(name) {
      const pods = caches.Pod.indexed('node', name);
      for (const pod of pods) enqueueOwner(pod, enqueue);
      return pods.length > 0;
    },
    onPod(key) {
      const pod = caches.Pod.get(key);
      if (pod) enqueueOwner(pod, enqueue);
    },
    pods: () => caches.Pod.values(),
  });
}

/** Enqueues the job that is the object's controller (metadata.ownerReferences); an owner is in the same namespace. */
function enqueueOwner(object: KubernetesObject, enqueue: Enqueue): void {
  const owner = controllerOf(object);
  if (owner?.apiVersion !== API_VERSION || (owner.kind !== 'FaceTrainJob' && owner.kind !== 'QuantizeJob')) return;
  enqueue(owner.kind, keyOf({ metadata: { ...splitKey(keyOf(object)), name: owner.name } }));
}
