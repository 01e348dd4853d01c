/**
 * A job as the policies read it: the current attempt rank by rank, and the pods of earlier attempts.
 *
 * The attempt number in the status alone decides which pods may run. Pods of an older attempt are stopped, and no pod
 * of the current attempt is created while one of those is alive.
 */
import { createHash } from 'node:crypto';
import {
  type FaceTrainJobStatus,
  type FailurePolicy,
  isPlainObject,
  OPERATOR_NAME,
  type QuantizeJobStatus,
} from '@facetrain/api';
import type { JobKind } from './names.ts';
import type { JobIdentity, ObservedPod } from './observed.ts';
import { canonicalJson } from './plain-data.ts';
import { parseRanks } from './rank-set.ts';
import { inPresentStart } from './starts.ts';
import { secondsSince, soonest } from './time.ts';

/** Fields of the spec that both kinds of job have. */
export interface JobSpec {
  suspend: boolean;
  failurePolicy: FailurePolicy;
  activeDeadlineSeconds?: number | undefined;
  pendingDeadlineSeconds?: number | undefined;
  /** Of a FaceTrainJob. */
  trainers?: { ranksPerPod: number };
}
/** Fields of the status that both kinds of job have. */
export type JobStatus = Pick<
  FaceTrainJobStatus & QuantizeJobStatus,
  | 'observedGeneration'
  | 'conditions'
  | 'attempt'
  | 'startTime'
  | 'queuedTime'
  | 'queuedSeconds'
  | 'pendingTime'
  | 'attemptStartTime'
  | 'completionTime'
  | 'restarts'
  | 'refusal'
  | 'trainers'
>;

/** A job at the time of a plan, sorted by attempt and rank. */
export interface JobView {
  kind: JobKind;
  identity: JobIdentity;
  spec: JobSpec;
  status: JobStatus;
  now: Date;
  attempt: number;
  /** When the pods of the current attempt were all created; undefined before. */
  startedAt: string | undefined;
  /**
   * Pods of the current attempt by number, which is the rank unless a pod has several; for a pod that has succeeded
   * and was removed, its memory.
   */
  ranks: (ObservedPod | undefined)[];
  /** Pods of earlier attempts, and pods of the current one whose number is beyond the number of replicas. */
  otherPods: ObservedPod[];
  /** Pods of the current attempt that look for room for more ranks: facetrainjob/elastic.ts. */
  placeholders: ObservedPod[];
  /** The pod template tolerates unreachable nodes: Kubernetes evicts the pods after its tolerationSeconds. */
  toleratesNodeLoss: boolean;
  /** How many restarts of this attempt in its pods are counted: container-restarts.ts. */
  restartsInPlace: number;
  /** Since it was last started, the gang has done work that takes all of its ranks. */
  hasTrained: boolean;
  /** When the job was last seen at work; undefined: never, or work was seen that the status does not have yet. */
  lastActivity: string | undefined;
}

/**
 * Whether another controller manages the job, or it is being deleted. Its children are garbage-collected by owner
 * references. What is done for it all the same: multikueue.ts.
 */
export function isIgnored(job: { identity: JobIdentity; spec: { managedBy?: string | undefined } }): boolean {
  return job.identity.deletionTimestamp !== undefined || (job.spec.managedBy ?? OPERATOR_NAME) !== OPERATOR_NAME;
}

interface Observed {
  identity: JobIdentity;
  spec: JobSpec;
  status: JobStatus;
  pods: ObservedPod[];
}

/**
 * @param size number of pods in the gang
 * @param seen as in JobView
 */
export function viewOf(
  kind: JobKind,
  { identity, spec, status, pods }: Observed,
  size: number,
  now: Date,
  toleratesNodeLoss: boolean,
  { hasTrained = false, lastActivity }: Partial<Pick<JobView, 'hasTrained' | 'lastActivity'>> = {},
): JobView {
  // A pod may belong to a later attempt than that of the status, if the status was lost or is stale. The pods decide.
  const attempt = pods.reduce((newest, pod) => Math.max(newest, pod.attempt), status.attempt ?? 0);
  const ranks = Array.from<ObservedPod | undefined>({ length: size });
  const otherPods: ObservedPod[] = [];
  const placeholders: ObservedPod[] = [];
  const waiting = { spec, now, lastActivity };
  const restartsInPlace = attempt === (status.attempt ?? 0) ? (status.trainers?.containerRestarts ?? 0) : 0;
  for (const observed of pods) {
    const pod = isLostBySilence(observed, waiting) ? { ...observed, lostNode: observed.silentNode!.reason } : observed;
    if (pod.attempt === attempt && pod.placeholder) placeholders.push(pod);
    else if (pod.attempt === attempt && pod.rank < size)
      ranks[pod.rank] = isAlive(pod) ? inPresentStart(pod, restartsInPlace, now) : pod;
    else otherPods.push(pod);
  }
  if (attempt === (status.attempt ?? 0))
    for (const rank of parseRanks(status.trainers?.completedRanks, size)) ranks[rank] ??= rememberedPod(rank, attempt);
  return {
    kind,
    identity,
    spec,
    status,
    now,
    attempt,
    startedAt: attempt === (status.attempt ?? 0) ? status.attemptStartTime : undefined,
    ranks,
    otherPods,
    placeholders,
    toleratesNodeLoss,
    restartsInPlace,
    hasTrained,
    lastActivity,
  };
}

/**
 * In place of the pod of a rank that has succeeded, after the pod was removed: by a pod garbage collector, by the drain
 * of its node, by a person. What was trained is not trained again.
 */
const rememberedPod = (rank: number, attempt: number): ObservedPod => ({
  name: '',
  uid: '',
  attempt,
  rank,
  phase: 'Succeeded',
  ready: false,
  deleting: false,
  disrupted: false,
  createdAt: '',
  removed: true,
});

/**
 * A gang that does nothing for this long has lost the trainer on its silent node, or cannot reach it. One step, or one
 * batch of an evaluation, seldom takes as long. A user who lets nodes be silent for longer than by default lets gangs
 * wait for them longer, too.
 */
const standstillSeconds = (nodeLostSeconds: number): number => Math.max(30, Math.ceil(nodeLostSeconds / 2));

/**
 * Seconds until a silent node counts as lost: after nodeLostSeconds, or as soon as its gang stands still. While the
 * gang trains, the trainer on that node is alive, as every step needs all ranks: only the kubelet is cut off.
 */
function secondsToSilenceLoss(
  { silentNode }: ObservedPod,
  { spec, now, lastActivity }: Pick<JobView, 'spec' | 'now' | 'lastActivity'>,
): number | null {
  if (silentNode === undefined) return null;
  const { nodeLostSeconds } = spec.failurePolicy;
  const left = nodeLostSeconds - secondsSince(silentNode.since, now);
  if (lastActivity === undefined) return left;
  return Math.min(left, standstillSeconds(nodeLostSeconds) - secondsSince(lastActivity, now));
}

function isLostBySilence(pod: ObservedPod, view: Pick<JobView, 'spec' | 'now' | 'lastActivity'>): boolean {
  const left = secondsToSilenceLoss(pod, view);
  return left !== null && left <= 0;
}

/** Seconds until a node that does not answer counts as lost; null if there is none. */
export const secondsToNodeLoss = (view: JobView): number | null =>
  soonest(
    ...[...view.ranks, ...view.otherPods, ...view.placeholders].map((pod) =>
      pod === undefined || pod.lostNode !== undefined || !isAlive(pod) ? null : secondsToSilenceLoss(pod, view),
    ),
  );

/** Whether a node of this attempt does not answer, and will count as lost if that lasts. */
export const hasSilentNode = ({ ranks, toleratesNodeLoss }: JobView): boolean =>
  !toleratesNodeLoss &&
  ranks.some((pod) => pod?.silentNode !== undefined && pod.lostNode === undefined && isAlive(pod));

/** Seconds after its creation in which a pod may be missing from the executor's cache. */
const CACHE_LAG_SECONDS = 5;

/** Whether all pods of the attempt were created so long ago that a pod which is not observed has been deleted. */
export function creationIsOver(view: Pick<JobView, 'startedAt' | 'now'>): boolean {
  return view.startedAt !== undefined && secondsSince(view.startedAt, view.now) >= CACHE_LAG_SECONDS;
}

/** Seconds until a pod that is not observed counts as deleted; null if none is missing, or some were never created. */
export const secondsToPodLoss = ({ startedAt, ranks, now }: JobView): number | null =>
  startedAt === undefined || creationIsOver({ startedAt, now }) || ranks.every((pod) => pod !== undefined)
    ? null
    : CACHE_LAG_SECONDS - secondsSince(startedAt, now);

/** How a pod's program ended; null while it runs. A sidecar may still run, and then the pod is alive. */
export function outcomeOf(pod: ObservedPod): 'succeeded' | 'failed' | null {
  if (pod.exitCode !== undefined) return pod.exitCode === 0 ? 'succeeded' : 'failed';
  return pod.phase === 'Succeeded' ? 'succeeded' : pod.phase === 'Failed' ? 'failed' : null;
}

/**
 * Whether a container of the pod may still run. An unknown phase counts as alive: two attempts must never run together.
 */
export const isAlive = ({ phase }: { phase?: string | undefined } = {}): boolean =>
  phase !== 'Succeeded' && phase !== 'Failed';

/** Whether the kubelet starts a program again that has ended, in a pod that goes on. */
export const willStartAgain = ({ containerRestarts, exitCode, ...pod }: ObservedPod): boolean =>
  isAlive(pod) && exitCode !== undefined && (containerRestarts?.exitCodes.includes(exitCode) ?? false);

/** The reason for which a pod waits while its init containers do their work. */
export const INITIALIZING = 'PodInitializing';

/** The first pod that Kubernetes says waits for something; if possible for more than its init containers. */
export const firstWaiting = (ranks: JobView['ranks']): ObservedPod | undefined =>
  ranks.find((pod) => pod?.waiting && pod.waiting.reason !== INITIALIZING) ?? ranks.find((pod) => pod?.waiting);

const KNOWN_PHASES = new Set<string>(['Pending', 'Running', 'Succeeded', 'Failed']);
/** Whether the pod's phase is Unknown, or a word that we do not know. */
export const isUnknown = (pod: ObservedPod): boolean => !KNOWN_PHASES.has(pod.phase);

/**
 * Which digests can be compared: those that `fieldsDigest` made in the same way. To be changed with whatever changes
 * the digest of a stored spec: a default, or a field that joins TRAINING_FIELDS or QUANTIZATION_FIELDS. Otherwise the
 * next edit of a running job, of any field, replaces its attempt.
 */
const DIGEST_FORMAT = '4-';

/**
 * Digest of the fields that decide the result of an attempt: TRAINING_FIELDS or QUANTIZATION_FIELDS of a spec. Pods
 * carry it as a label, so that a change during a suspension is noticed even if the operator was down meanwhile.
 *
 * Values that are the defaults are left out: a field that a later version adds, with a default, changes no digest, so
 * an upgrade of the operator does not replace running jobs.
 *
 * @param spec without the defaults of its schema: `withoutDefaults` of the api
 */
export function fieldsDigest(spec: unknown, fields: readonly string[]): string {
  const valueAt = (path: string) =>
    path.split('.').reduce<unknown>((value, key) => (isPlainObject(value) ? value[key] : undefined), spec);
  return `${DIGEST_FORMAT}${specDigest(Object.fromEntries(fields.map((path) => [path, valueAt(path)])))}`;
}

/** Whether two digests tell two specs apart. Those of a former version of the operator do not. */
export const differ = (made: string, wanted: string): boolean => made.startsWith(DIGEST_FORMAT) && made !== wanted;

/** Digest of plain data, for a label: 16 hexadecimal digits. */
export const specDigest = (data: unknown): string =>
  createHash('sha256').update(canonicalJson(data)).digest('hex').slice(0, 16);
