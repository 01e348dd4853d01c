/** What the API server has, as the planners want to see it. */
import { API_VERSION } from '@facetrain/api';
import { isAlive } from '@facetrain/planner/attempt';
import { CONTAINER, type JobKind, Label } from '@facetrain/planner/names';
import type { JobIdentity, ObservedObject, ObservedPod } from '@facetrain/planner/observed';
import { readTermination } from '@facetrain/planner/read-termination';
import { controllerOf, type KubernetesObject } from '../runtime/resource.ts';
import { isPending, type Surroundings } from './pod-dependencies.ts';
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
    ...(deletionTimestamp !== undefined && { deleting: true }),
  };
}

/** Null for a pod whose labels are not those that we give. */
export function observePod(pod: PodObject, around?: Pick<Surroundings, 'lostNode' | 'hindrance'>): ObservedPod | null {
  const { metadata, spec, status = {} } = pod;
  const attempt = number(metadata.labels?.[Label.attempt]);
  const rank = number(metadata.labels?.[Label.rank]);
  if (attempt === null || rank === null) return null;
  const { conditions = [], containerStatuses = [], initContainerStatuses = [] } = status;
  const isTrue = (type: string) =>
    conditions.some((condition) => condition.type === type && condition.status === 'True');
  const ours = containerStatuses.find(({ name }) => name === CONTAINER)?.state?.terminated;
  // A pod whose fetch failed never started our container: the fetch is what ended it.
  const ended =
    ours ??
    initContainerStatuses
      .map(({ state }) => state?.terminated)
      .find((terminated) => terminated !== undefined && terminated.exitCode !== 0);
  const reason = status.reason ?? ended?.reason;
  const said = waitsFor(status);
  const hindrance = isPending(pod) ? around?.hindrance(pod) : undefined;
  const waiting = spec.nodeName === undefined ? (hindrance ?? said) : (said ?? hindrance);
  const lostNode = spec.nodeName === undefined ? undefined : around?.lostNode(spec.nodeName);
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
  };
}

/** Its processes are there, or may yet be. */
export const mayRun = ({ status }: PodObject): boolean => isAlive({ phase: status?.phase ?? 'Pending' });

function waitsFor({
  conditions = [],
  containerStatuses = [],
  initContainerStatuses = [],
}: NonNullable<PodObject['status']>): ObservedPod['waiting'] {
  const unscheduled = conditions.find(({ type, status }) => type === 'PodScheduled' && status === 'False');
  const waiting =
    unscheduled ??
    [...initContainerStatuses, ...containerStatuses]
      .map(({ state }) => state?.waiting)
      .find((wait) => wait && !ON_ITS_WAY.has(wait.reason ?? ''));
  return waiting && { reason: waiting.reason ?? 'Waiting', message: waiting.message ?? '' };
}

/** What every pod goes through. */
const ON_ITS_WAY = new Set(['ContainerCreating', 'PodInitializing']);

function number(label: string | undefined): number | null {
  return label !== undefined && /^\d+$/.test(label) ? Number(label) : null;
}
