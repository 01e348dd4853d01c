/** Objects of the API server, translated to what the planners take. Pure functions of one object each. */
import { API_VERSION } from '@facetrain/api';
import { INITIALIZING, isAlive } from '@facetrain/planner/attempt';
import { isGone, NORMAL_START } from '@facetrain/planner/gone-containers';
import { CONTAINER, type JobKind, Label } from '@facetrain/planner/names';
import type { JobIdentity, ObservedObject, ObservedPod } from '@facetrain/planner/observed';
import { isFetchContainer } from '@facetrain/planner/pod-storage';
import { readTermination } from '@facetrain/planner/read-termination';
import { controllerOf, type KubernetesObject } from '../runtime/resource.ts';
import { isPending, type PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import type { ContainerStatus, PodObject } from './resources.ts';

export function identityOf({ metadata }: KubernetesObject): JobIdentity {
  const { name, namespace, uid, generation = 0, deletionTimestamp } = metadata;
  return { name, namespace: namespace!, uid, generation, deletionTimestamp };
}

/**
 * @param jobKind of `job`
 * @param apiVersion of a PodGroup: objects in lists do not say theirs
 */
export function observeObject(
  kind: ObservedObject['kind'],
  object: KubernetesObject,
  job: JobIdentity,
  jobKind: JobKind,
  apiVersion?: string,
): ObservedObject {
  const { name, uid, labels, deletionTimestamp } = object.metadata;
  const specDigest = labels?.[Label.specDigest];
  const controller = controllerOf(object);
  const owned = controller?.uid === job.uid;
  const leftover =
    !owned && controller?.apiVersion === API_VERSION && controller.kind === jobKind && controller.name === job.name;
  return {
    kind,
    ...(apiVersion !== undefined && { apiVersion }),
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
  nodesAndVolumes?: Pick<PodNodesAndVolumes, 'lostNode' | 'silentNode' | 'pendingReason'>,
): ObservedPod | null {
  const { metadata, spec, status = {} } = pod;
  const attempt = numberIn(metadata.labels?.[Label.attempt]);
  const rank = numberIn(metadata.labels?.[Label.rank]);
  if (attempt === null || rank === null) return null;
  const isTrue = (type: string) =>
    status.conditions?.some((condition) => condition.type === type && condition.status === 'True') ?? false;
  const gangSize = numberIn(metadata.labels?.[Label.gangSize]);
  const waiting = waitingOf(pod, nodesAndVolumes);
  const lostNode = spec.nodeName === undefined ? undefined : nodesAndVolumes?.lostNode(spec.nodeName);
  const silentNode = spec.nodeName === undefined ? undefined : nodesAndVolumes?.silentNode(spec.nodeName);
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
    ...endOf(pod),
    ...restartsOf(pod),
    ...(waiting && { waiting }),
    ...(lostNode !== undefined && { lostNode }),
    ...(silentNode && { silentNode }),
    ...(specDigest !== undefined && { specDigest }),
    ...priorityOf(pod),
    ...(metadata.labels?.[Label.placeholder] === 'true' && { placeholder: true as const }),
    ...(gangSize !== null && gangSize > 0 && { gangSize }),
    podGroup: podGroupOf(pod),
  };
}

/** Others may have put the pod into a group of their own: KAI's podgrouper does, where the pod has its scheduler. */
function podGroupOf({ metadata, spec }: PodObject): NonNullable<ObservedPod['podGroup']> {
  if (spec.schedulingGroup !== undefined) return 'Native';
  const reader = metadata.labels?.[Label.podGroup];
  return reader === 'KAI' || reader === 'Volcano' ? reader : 'None';
}

/** `spec.priority` of a pod or a PodGroup: the API server's admission sets it from the PriorityClass. */
function priorityOf(object: KubernetesObject): { priority?: number } {
  const { priority } = (object as { spec?: { priority?: unknown } }).spec ?? {};
  return typeof priority === 'number' ? { priority } : {};
}

/** Its processes run, or may yet run: it has neither succeeded nor failed. */
export const isPodAlive = ({ status }: PodObject): boolean => isAlive(status);

type End = Pick<
  ObservedPod,
  | 'exitCode'
  | 'finishedAt'
  | 'container'
  | 'foreignContainer'
  | 'reason'
  | 'message'
  | 'rejected'
  | 'termination'
  | 'result'
>;

/**
 * How a pod ended, or how its program ended while the pod still runs. Words of the whole pod (Evicted, OutOfcpu, with
 * `status.message`) come before those of a container: they say why the container was ended.
 */
function endOf(pod: PodObject): End {
  const { status = {} } = pod;
  const ours = endedContainerOfOurs(status);
  const terminated = ours?.state?.terminated;
  const ofPod = {
    ...(status.reason !== undefined && { reason: status.reason }),
    ...messageOf(status),
    ...(isRejected(status) && { rejected: true as const }),
  };
  if (terminated)
    return { ...endOfProgram(terminated), ...(ours.name !== CONTAINER && { container: ours.name }), ...ofPod };
  const foreign = status.phase === 'Failed' && status.reason === undefined ? failedInitContainer(pod) : undefined;
  return { ...(foreign && { foreignContainer: foreign }), ...ofPod };
}

type Terminated = NonNullable<NonNullable<ContainerStatus['state']>['terminated']>;

const endOfProgram = ({ exitCode, finishedAt, reason, message }: Terminated): End => ({
  exitCode,
  ...(finishedAt && { finishedAt }),
  ...(reason !== undefined && reason !== 'Completed' && { reason }),
  ...(message !== undefined && readTermination(message)),
  ...(message !== undefined && isOfRuntime(reason) && { message: lastLines(message) }),
});

/**
 * By the rules of the pod as the server has it: one that does not serve them has dropped them. The kubelet of an older
 * release ignores them, and then the pod ends.
 */
function restartsOf({ spec, status }: PodObject): Pick<ObservedPod, 'containerRestarts'> {
  const rules = spec.containers?.find(({ name }) => name === CONTAINER)?.restartPolicyRules ?? [];
  const exitCodes = rules.flatMap(({ action, exitCodes }) =>
    action === 'Restart' && exitCodes?.operator === 'In' ? exitCodes.values : [],
  );
  if (exitCodes.length === 0) return {};
  const container = status?.containerStatuses?.find(({ name }) => name === CONTAINER);
  const lastEnd = container?.lastState?.terminated;
  return {
    containerRestarts: {
      exitCodes,
      count: container?.restartCount ?? 0,
      isRunning: container?.state?.running !== undefined,
      ...(lastEnd && { lastEnd: endOfProgram(lastEnd) }),
      ...(container && isGone(container) && { isGone: true }),
    },
  };
}

/**
 * The trainer's container, or the first container that failed to fetch: after that no trainer starts. Other containers
 * have exit codes of their own meaning, and what their end does to the pod is in its phase: a sidecar that fails (an
 * init container with restartPolicy Always) is started again, and no other init container is.
 */
function endedContainerOfOurs({
  containerStatuses = [],
  initContainerStatuses = [],
}: NonNullable<PodObject['status']>) {
  return (
    containerStatuses.find(({ name, state }) => name === CONTAINER && state?.terminated) ??
    initContainerStatuses.find(
      ({ name, state }) => isFetchContainer(name) && state?.terminated && state.terminated.exitCode !== 0,
    )
  );
}

/** The init container of the template because of which a pod has failed. */
function failedInitContainer({ spec, status }: PodObject): ObservedPod['foreignContainer'] {
  const failed = status?.initContainerStatuses?.find(
    ({ name, state }) => state?.terminated && state.terminated.exitCode !== 0 && !isSidecar(spec, name),
  );
  if (!failed) return undefined;
  const { exitCode, reason, message } = failed.state!.terminated!;
  return {
    name: failed.name,
    exitCode,
    ...(reason !== undefined && { reason }),
    ...(message && { message: lastLines(message) }),
  };
}

const isSidecar = ({ initContainers = [] }: PodObject['spec'], name: string): boolean =>
  initContainers.some((container) => container.name === name && container.restartPolicy === 'Always');

/** Whether a container's termination message is the runtime's: it could not start the program. */
const isOfRuntime = (reason: string | undefined): boolean =>
  reason === 'StartError' || reason === 'ContainerCannotRun' || reason === 'ContainerStatusUnknown';

/** The kubelet's words about a pod, or those of the component that set DisruptionTarget. */
function messageOf({ message, conditions }: NonNullable<PodObject['status']>): { message?: string } {
  if (message) return { message: message.trim() };
  const target = conditions?.find(({ type, status }) => type === 'DisruptionTarget' && status === 'True');
  if (!target?.reason) return {};
  return { message: target.message ? `${target.reason}: ${target.message}` : target.reason };
}

/** The kubelet refused the pod: `rejectPod` of pkg/kubelet/kubelet.go writes this message, and no container status. */
const isRejected = ({ phase, message, containerStatuses = [] }: NonNullable<PodObject['status']>): boolean =>
  phase === 'Failed' &&
  (message?.startsWith('Pod was rejected: ') ?? false) &&
  containerStatuses.every(({ state }) => !state?.running && !state?.terminated);

/** Characters of a container's words that are shown: the end of its log may be 80 lines long. */
const MAX_WORDS = 500;

/** The end of a text, as one line. */
function lastLines(text: string): string {
  const line = text.trim().replaceAll(/\s*\n\s*/g, ' | ');
  return line.length <= MAX_WORDS ? line : `…${line.slice(-MAX_WORDS)}`;
}

/**
 * Why a pod waits: by its own status, or by its claims and mounts. Before the pod has a node, claims and mounts come
 * first, as the scheduler does not name a missing claim; later the kubelet's report in the status comes first.
 */
function waitingOf(
  pod: PodObject,
  nodesAndVolumes: Pick<PodNodesAndVolumes, 'pendingReason'> | undefined,
): ObservedPod['waiting'] {
  const own = isPending(pod) ? ownWaiting(pod) : undefined;
  const volumes = isPending(pod) ? nodesAndVolumes?.pendingReason(pod) : undefined;
  return pod.spec.nodeName === undefined ? (volumes ?? own) : (own ?? volumes);
}

function ownWaiting({ spec, status = {} }: PodObject): ObservedPod['waiting'] {
  const { conditions = [], containerStatuses = [], initContainerStatuses = [] } = status;
  const unscheduled = conditions.find(({ type, status }) => type === 'PodScheduled' && status === 'False');
  if (unscheduled) return { reason: unscheduled.reason ?? 'Waiting', message: unscheduled.message ?? '' };
  const isInit = (container: ContainerStatus) => initContainerStatuses.includes(container);
  const label = (container: ContainerStatus) =>
    `${isInit(container) ? 'init container' : 'container'} ${container.name}`;
  for (const container of [...initContainerStatuses, ...containerStatuses]) {
    const { reason = 'Waiting', message = '' } = container.state?.waiting ?? { reason: INITIALIZING };
    if (NORMAL_START.has(reason)) continue;
    return { reason, message: container.name === CONTAINER ? message : `${label(container)}: ${message}` };
  }
  const running = initContainerStatuses.find(({ name, state }) => state?.running && !isSidecar(spec, name));
  return running && { reason: INITIALIZING, message: `${label(running)} runs` };
}

/** @returns null for a label that is no number of ours: anybody who may create pods can write one */
function numberIn(label: string | undefined): number | null {
  return label !== undefined && /^\d{1,9}$/.test(label) ? Number(label) : null;
}
