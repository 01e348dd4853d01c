/**
 * The caches that every reconcile reads: one for each kind, with the indexes by which objects are found.
 *
 * - FaceTrainJob: all is kept. Indexes: places, `quota` and `refusedIn` (quota-rivals.ts).
 * - QuantizeJob: all is kept. Indexes: places, `refusedIn`.
 * - Pod: metadata with the one annotation that is read, of its status what the planner reads, names of its node and its
 * claims, priority, group, restart rules. Indexes: places, `node`.
 * - PodGroup: metadata, status, priority; those of KAI Scheduler and Volcano: metadata.
 * - Workload: metadata, status, whether it is active.
 * - Service, ConfigMap, NetworkPolicy: metadata.
 *
 * The indexes of all children are `job` (uid) and `name` (kind and name of the job).
 * The indexes of places are `writes` and `writesBelow` of shared-folders.ts: where an object writes to.
 *
 * Of all but the jobs, only objects with the operator's labels are listed and watched.
 */
import { Annotation, type JobKind, Label, MANAGED_BY } from '@facetrain/planner/names';
import type { Logger } from 'pino';
import { Cache } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import type { Cluster } from './cluster-discovery.ts';
import { refusedIn, waitedForQuota } from './quota-rivals.ts';
import {
  type ContainerStatus,
  configMaps,
  faceTrainJobs,
  networkPolicies,
  POD_GROUP_CACHES,
  type PodGroupObject,
  type PodObject,
  podGroups,
  pods,
  quantizeJobs,
  services,
  type WorkloadObject,
  workloads,
} from './resources.ts';
import { faceTrainJobPlaces, podPlaces, quantizeJobPlaces } from './shared-folders.ts';

export interface CachesOptions {
  client: Pick<Client, 'list' | 'watch'>;
  /** null: all namespaces. */
  namespace: string | null;
  log: Logger;
  /** Called when a list or a watch of a kind (by its plural) has failed. */
  onWatchError: (plural: string) => void;
}

export type Caches = ReturnType<typeof makeCaches>;

type PodStatus = NonNullable<PodObject['status']>;

const CHILDREN_SELECTOR = `${MANAGED_BY.label}=${MANAGED_BY.value},${Label.jobUid}`;

/**
 * @param served what the cluster serves besides: the apiVersions of PodGroups, and whether Kueue's Workloads
 */
export function makeCaches(
  { client, namespace, log, onWatchError }: CachesOptions,
  { podGroupApis, servesWorkloads }: Pick<Cluster, 'podGroupApis' | 'servesWorkloads'>,
) {
  const common = <T extends KubernetesObject>(resource: Resource<T>) => ({
    client,
    resource,
    namespace,
    log,
    onWatchError: () => onWatchError(resource.plural),
  });
  const byJob = { job: ({ metadata }: KubernetesObject) => metadata.labels?.[Label.jobUid] };
  const children = <T extends KubernetesObject>(resource: Resource<T>) => ({
    ...common(resource),
    labelSelector: CHILDREN_SELECTOR,
    indexes: { ...byJob, name: jobNameOf },
  });
  const metadataOf = (resource: Resource) => new Cache({ ...children(resource), metadataOnly: true });
  return {
    FaceTrainJob: new Cache({
      ...common(faceTrainJobs),
      indexes: { ...faceTrainJobPlaces, quota: waitedForQuota, refusedIn },
    }),
    QuantizeJob: new Cache({ ...common(quantizeJobs), indexes: { ...quantizeJobPlaces, refusedIn } }),
    Pod: new Cache({
      ...children(pods),
      strip: stripPod,
      indexes: { ...children(pods).indexes, node: ({ spec }: PodObject) => spec.nodeName, ...podPlaces },
    }),
    Service: metadataOf(services),
    ConfigMap: metadataOf(configMaps),
    NetworkPolicy: metadataOf(networkPolicies),
    ...(servesWorkloads && {
      Workload: new Cache({
        ...children(workloads),
        strip: stripWorkload,
      }),
    }),
    ...(podGroupApis.Native !== undefined && {
      [POD_GROUP_CACHES.Native]: new Cache({ ...children(podGroups(podGroupApis.Native)), strip: stripPodGroup }),
    }),
    ...(podGroupApis.KAI !== undefined && { [POD_GROUP_CACHES.KAI]: metadataOf(podGroups(podGroupApis.KAI)) }),
    ...(podGroupApis.Volcano !== undefined && {
      [POD_GROUP_CACHES.Volcano]: metadataOf(podGroups(podGroupApis.Volcano)),
    }),
  };
}

/** A value of the index `name` of children. It finds those of every job that has had this name, whatever its uid. */
export const jobNameIndexValue = (kind: JobKind, namespace: string, name: string): string =>
  `${kind} ${namespace}/${name}`;

const jobNameOf = ({ metadata: { namespace, labels } }: KubernetesObject): string =>
  jobNameIndexValue(labels?.[Label.jobKind] as JobKind, namespace!, labels?.[Label.jobName] ?? '');

/** Keeps the fields of a pod's spec that are read: with thousands of pods, whole specs would be most of the memory. */
function stripPod(pod: PodObject): PodObject {
  const { nodeName, priority, schedulingGroup, volumes = [], initContainers = [], containers = [] } = pod.spec;
  const claimVolumes = volumes.flatMap(({ persistentVolumeClaim }) =>
    persistentVolumeClaim ? [{ persistentVolumeClaim }] : [],
  );
  const sidecars = initContainers.flatMap(({ name, restartPolicy }) =>
    restartPolicy === undefined ? [] : [{ name, restartPolicy }],
  );
  const restarted = containers.flatMap(({ name, restartPolicyRules }) =>
    restartPolicyRules === undefined ? [] : [{ name, restartPolicyRules }],
  );
  const { annotations, ...metadata } = pod.metadata;
  const writesTo = annotations?.[Annotation.writesTo];
  return {
    ...pod,
    metadata: { ...metadata, ...(writesTo !== undefined && { annotations: { [Annotation.writesTo]: writesTo } }) },
    ...(pod.status && { status: stripPodStatus(pod.status) }),
    spec: {
      ...(nodeName !== undefined && { nodeName }),
      ...(priority !== undefined && { priority }),
      ...(schedulingGroup !== undefined && { schedulingGroup }),
      ...(claimVolumes.length > 0 && { volumes: claimVolumes }),
      ...(sidecars.length > 0 && { initContainers: sidecars }),
      ...(restarted.length > 0 && { containers: restarted }),
    },
  };
}

/** Keeps what PodObject lists. The rest (images, volumes and resources of containers, times) is most of a status. */
function stripPodStatus(status: PodStatus): PodStatus {
  const { phase, reason, message, podIP, conditions, initContainerStatuses, containerStatuses } = status;
  const containers = (all: ContainerStatus[]) =>
    all.map(({ name, state, lastState, restartCount }) => ({
      name,
      ...(state && { state }),
      ...(lastState?.terminated && { lastState: { terminated: lastState.terminated } }),
      ...(restartCount && { restartCount }),
    }));
  return {
    ...(phase !== undefined && { phase }),
    ...(reason !== undefined && { reason }),
    ...(message !== undefined && { message }),
    ...(podIP !== undefined && { podIP }),
    ...(conditions && {
      conditions: conditions.map((condition) => ({
        type: condition.type,
        status: condition.status,
        ...(condition.reason !== undefined && { reason: condition.reason }),
        ...(condition.message !== undefined && { message: condition.message }),
      })),
    }),
    ...(initContainerStatuses && { initContainerStatuses: containers(initContainerStatuses) }),
    ...(containerStatuses && { containerStatuses: containers(containerStatuses) }),
  };
}

function stripPodGroup(group: PodGroupObject): PodGroupObject {
  const { priority } = group.spec ?? {};
  return { ...group, spec: priority === undefined ? {} : { priority } };
}

/** The pod templates of a Workload are most of it, and are not read. */
function stripWorkload({ spec: { active, podSets = [] }, ...workload }: WorkloadObject): WorkloadObject {
  const counts = podSets.map(({ count = 1, minCount }) => ({ count, ...(minCount !== undefined && { minCount }) }));
  return { ...workload, spec: { ...(active !== undefined && { active }), podSets: counts } };
}
