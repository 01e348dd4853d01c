/** The kinds that the operator reads and writes, and the fields of them that it reads. */
import { API_VERSION, type Condition } from '@facetrain/api';
import type { JobStatus } from '@facetrain/planner/attempt';
import { QUEUED_POD_GROUP_APIS } from '@facetrain/planner/facetrainjob/gang';
import type { ChildObject } from '@facetrain/planner/objects';
import type { Placement, PodGroupReader } from '@facetrain/planner/observed';
import { defineResource, type KubernetesObject, type Resource } from '../runtime/resource.ts';

/** A job of either kind as the server has it. Its spec is not parsed yet; its status was written by the operator. */
export interface JobObject extends KubernetesObject {
  spec: Record<string, unknown>;
  status?: JobStatus;
}

export interface ContainerStatus {
  name: string;
  state?: {
    waiting?: { reason?: string; message?: string };
    running?: object;
    terminated?: {
      exitCode: number;
      reason?: string;
      message?: string;
      startedAt?: string | null;
      finishedAt?: string | null;
    };
  };
  /** Of the container before. */
  lastState?: Pick<NonNullable<ContainerStatus['state']>, 'terminated'>;
  restartCount?: number;
}

export interface PodObject extends KubernetesObject {
  spec: {
    nodeName?: string;
    priority?: number;
    schedulingGroup?: object;
    volumes?: { persistentVolumeClaim?: { claimName: string } }[];
    initContainers?: { name: string; restartPolicy?: string }[];
    containers?: {
      name: string;
      restartPolicyRules?: { action: string; exitCodes?: { operator: string; values: number[] } }[];
    }[];
  };
  status?: {
    phase?: string;
    reason?: string;
    message?: string;
    podIP?: string;
    conditions?: { type: string; status: string; reason?: string; message?: string }[];
    initContainerStatuses?: ContainerStatus[];
    containerStatuses?: ContainerStatus[];
  };
}

export interface PodGroupObject extends KubernetesObject {
  spec?: { priority?: number };
}

export interface NodeObject extends KubernetesObject {
  spec?: { taints?: { key: string }[] };
  status?: { conditions?: { type: string; status: string; reason?: string; lastTransitionTime?: string }[] };
}

/** In the core API, not events.k8s.io: only there can a field selector pick the events of one kind of object. */
export interface PodEvent extends KubernetesObject {
  /** `fieldPath`: the container, as in spec.containers{facetrain}. */
  involvedObject: { namespace?: string; name: string; uid?: string; fieldPath?: string };
  reason: string;
  message?: string;
  lastTimestamp?: string | null;
  /** Of an event that was written through events.k8s.io, instead of `lastTimestamp`. */
  eventTime?: string | null;
  series?: { lastObservedTime?: string };
}

/** When an Event was last seen, in ms. The two APIs of Events have different fields for it. */
export const timeOfEvent = ({ metadata, lastTimestamp, eventTime, series }: PodEvent): number =>
  Date.parse(series?.lastObservedTime ?? lastTimestamp ?? eventTime ?? metadata.creationTimestamp);

/** Kueue's request for quota, with the fields that are read. */
export interface WorkloadObject extends KubernetesObject {
  spec: { active?: boolean; podSets?: { count?: number; minCount?: number }[] };
  status?: {
    conditions?: Condition[];
    reclaimablePods?: { count: number }[];
    admission?: {
      podSetAssignments?: { count?: number; flavors?: Record<string, string>; topologyAssignment?: object }[];
    };
    admissionChecks?: { name: string; state: string; message?: string; podSetUpdates?: Placement[] }[];
  };
}

/** Kueue's description of nodes; cluster-scoped. */
export interface ResourceFlavorObject extends KubernetesObject {
  spec?: { nodeLabels?: Record<string, string>; tolerations?: Record<string, unknown>[] };
}

export const faceTrainJobs = defineResource<JobObject>(API_VERSION, 'facetrainjobs');
export const quantizeJobs = defineResource<JobObject>(API_VERSION, 'quantizejobs');
export const pods = defineResource<PodObject>('v1', 'pods');
export const services = defineResource('v1', 'services');
export const configMaps = defineResource('v1', 'configmaps');
export const networkPolicies = defineResource('networking.k8s.io/v1', 'networkpolicies');
export const nodes = defineResource<NodeObject>('v1', 'nodes');
export const claims = defineResource('v1', 'persistentvolumeclaims');
export const podEvents = defineResource<PodEvent>('v1', 'events');
export const podGroups = (apiVersion: string): Resource<PodGroupObject> => defineResource(apiVersion, 'podgroups');

export const workloads = defineResource<WorkloadObject>('kueue.x-k8s.io/v1beta2', 'workloads');
export const resourceFlavors = defineResource<ResourceFlavorObject>('kueue.x-k8s.io/v1beta2', 'resourceflavors');
export const workloadPriorityClasses = defineResource<KubernetesObject & { value: number }>(
  'kueue.x-k8s.io/v1beta2',
  'workloadpriorityclasses',
);

/** @param apiVersion of a PodGroup, a kind of several API groups */
export function resourceOf(kind: ChildObject['kind'], apiVersion?: string): Resource {
  switch (kind) {
    case 'Pod':
      return pods;
    case 'Service':
      return services;
    case 'ConfigMap':
      return configMaps;
    case 'NetworkPolicy':
      return networkPolicies;
    case 'QuantizeJob':
      return quantizeJobs;
    case 'Workload':
      return workloads;
    case 'PodGroup':
      if (apiVersion === undefined) throw new Error('a PodGroup was planned without its apiVersion');
      return podGroups(apiVersion);
  }
}

/** Names of the caches of PodGroups, by who reads them. */
export const POD_GROUP_CACHES = {
  Native: 'PodGroup',
  KAI: 'KaiPodGroup',
  Volcano: 'VolcanoPodGroup',
} as const satisfies Record<PodGroupReader, string>;

/** Name of the cache with the children of a kind. */
export type CacheName = ChildObject['kind'] | (typeof POD_GROUP_CACHES)[PodGroupReader];

/** @param apiVersion as for resourceOf */
export function cacheOf(kind: ChildObject['kind'], apiVersion?: string): CacheName {
  if (kind !== 'PodGroup') return kind;
  if (apiVersion === QUEUED_POD_GROUP_APIS.KAI) return POD_GROUP_CACHES.KAI;
  return apiVersion === QUEUED_POD_GROUP_APIS.Volcano ? POD_GROUP_CACHES.Volcano : POD_GROUP_CACHES.Native;
}
