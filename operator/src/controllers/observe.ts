/** Objects of the API server, translated to what the planners take. Pure functions of one object each. */
import { API_VERSION } from '@facetrain/api';
import { isAlive } from '@facetrain/planner/attempt';
import { CONTAINER, type JobKind, Label } from '@facetrain/planner/names';
import type { JobIdentity, ObservedObject, ObservedPod } from '@facetrain/planner/observed';
import { readTermination } from '@facetrain/planner/read-termination';
import { controllerOf, type KubernetesObject } from '../runtime/resource.ts';
import { isPending, type PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import type { PodObject } from './resources.ts';

export function identityOf({ metadata }: KubernetesObject): JobIdentity {
  const { name, namespace, uid, generation = 0, deletionTimestamp } = metadata;
  return { name, namespace: namespace!, uid, generation, deletionTimestamp };
}

/** @param jobKind of `job` */
export function observeObject(
  kind: ObservedObject['kind'],
  object: KubernetesObject,
  job: JobIdentity,
  jobKind: JobKind,
): ObservedObject {
  const { name, uid, labels, deletionTimestamp } = object.metadata;
  const specDigest = labels?.[Label.specDigest];
  const controller = controllerOf(object);
  const owned = controller?.uid === job.uid;
  const leftover =
    !owned && controller?.apiVersion === API_VERSION && controller.kind === jobKind && controller.name === job.name;
  return {
    kind,
    name,
    uid,
    owned,
    ...(leftover && { leftover }),
    ...(specDigest !== undefined && { specDigest }),
    ...priorityOf(object),
    ...(deletionTimestamp !== undefined && { deleting: true }),
  };
}

/**
 * @param nodesAndVolumes what is known of the pod's node, claims and mounts
 * @returns null for a pod without the labels of its attempt and rank
 */
export function observePod(
  pod: PodObject,
  nodesAndVolumes?: Pick<PodNodesAndVolumes, 'lostNode' | 'pendingReason'>,
): ObservedPod | null {
  const { metadata, spec, status = {} } = pod;
  const attempt = numberIn(metadata.labels?.[Label.attempt]);
  const rank = numberIn(metadata.labels?.[Label.rank]);
  if (attempt === null || rank === null) return null;
  const isTrue = (type: string) =>
    status.conditions?.some((condition) => condition.type === type && condition.status === 'True') ?? false;
  const ended = terminationOf(status);
  const reason = status.reason ?? ended?.reason;
  const waiting = waitingOf(pod, nodesAndVolumes);
  const lostNode = spec.nodeName === undefined ? undefined : nodesAndVolumes?.lostNode(spec.nodeName);
  const specDigest = metadata.labels?.[Label.specDigest];
  return {
    name: metadata.name,
    uid: metadata.uid,
    attempt,
    rank,
    phase: status.phase ?? 'Pending',
    ready: isTrue('Ready'),
    deleting: metadata.deletionTimestamp !== undefined,
    disrupted: isTrue('DisruptionTarget'),
    createdAt: metadata.creationTimestamp,
    ...(spec.nodeName !== undefined && { node: spec.nodeName }),
    ...(ended?.finishedAt && { finishedAt: ended.finishedAt }),
    ...(ended && { exitCode: ended.exitCode }),
    ...(reason !== undefined && reason !== 'Completed' && { reason }),
    ...(ended?.message !== undefined && readTermination(ended.message)),
    ...(waiting && { waiting }),
    ...(lostNode !== undefined && { lostNode }),
    ...(specDigest !== undefined && { specDigest }),
    ...priorityOf(pod),
  };
}

/** `spec.priority` of a pod or a PodGroup: the API server's admission sets it from the PriorityClass. */
function priorityOf(object: KubernetesObject): { priority?: number } {
  const { priority } = (object as { spec?: { priority?: unknown } }).spec ?? {};
  return typeof priority === 'number' ? { priority } : {};
}

/** Its processes run, or may yet run: it has neither succeeded nor failed. */
export const isPodAlive = ({ status }: PodObject): boolean => isAlive({ phase: status?.phase ?? 'Pending' });

/**
 * How the trainer's container ended, or the first init container that failed: after a failed fetch no trainer starts.
 */
function terminationOf({ containerStatuses = [], initContainerStatuses = [] }: NonNullable<PodObject['status']>) {
  return (
    containerStatuses.find(({ name }) => name === CONTAINER)?.state?.terminated ??
    initContainerStatuses
      .map(({ state }) => state?.terminated)
      .find((terminated) => terminated !== undefined && terminated.exitCode !== 0)
  );
}

/**
 * Why a pod waits: by its own status, or by its claims and mounts. Before the pod has a node, claims and mounts come
 * first, as the scheduler does not name a missing claim; later the kubelet's report in the status comes first.
 */
function waitingOf(
  pod: PodObject,
  nodesAndVolumes: Pick<PodNodesAndVolumes, 'pendingReason'> | undefined,
): ObservedPod['waiting'] {
  const own = ownWaiting(pod.status ?? {});
  const volumes = isPending(pod) ? nodesAndVolumes?.pendingReason(pod) : undefined;
  return pod.spec.nodeName === undefined ? (volumes ?? own) : (own ?? volumes);
}

function ownWaiting({
  conditions = [],
  containerStatuses = [],
  initContainerStatuses = [],
}: NonNullable<PodObject['status']>): ObservedPod['waiting'] {
  const unscheduled = conditions.find(({ type, status }) => type === 'PodScheduled' && status === 'False');
  const waiting =
    unscheduled ??
    [...initContainerStatuses, ...containerStatuses]
      .map(({ state }) => state?.waiting)
      .find((state) => state && !NORMAL_START.has(state.reason ?? ''));
  return waiting && { reason: waiting.reason ?? 'Waiting', message: waiting.message ?? '' };
}

/** Reasons that every container waits for while its pod starts. */
const NORMAL_START = new Set(['ContainerCreating', 'PodInitializing']);

function numberIn(label: string | undefined): number | null {
  return label !== undefined && /^\d+$/.test(label) ? Number(label) : null;
}
