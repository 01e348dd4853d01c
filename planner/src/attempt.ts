/**
 * A job as the policies look at it: its current attempt, rank by rank, and what is left of earlier ones.
 *
 * The number of the attempt in the status is the only memory that decides which pods may live: pods of an older one are
 * stopped, and none of the current one is made while one of those is alive.
 */
import { createHash } from 'node:crypto';
import { type FaceTrainJobStatus, type FailurePolicy, OPERATOR_NAME, type QuantizeJobStatus } from '@facetrain/api';
import type { JobIdentity, ObservedPod } from './observed.ts';
import { canonicalJson } from './plain-data.ts';
import { secondsSince } from './time.ts';

/** What both kinds of job have. */
export interface JobSpec {
  suspend: boolean;
  failurePolicy: FailurePolicy;
  activeDeadlineSeconds?: number | undefined;
  pendingDeadlineSeconds?: number | undefined;
}
export type JobStatus = Pick<
  FaceTrainJobStatus & QuantizeJobStatus,
  'observedGeneration' | 'conditions' | 'attempt' | 'startTime' | 'attemptStartTime' | 'completionTime' | 'restarts'
>;

export interface JobView {
  identity: JobIdentity;
  spec: JobSpec;
  status: JobStatus;
  now: Date;
  attempt: number;
  /** When all pods of the current attempt had been created; undefined before. */
  startedAt: string | undefined;
  /** Pods of the current attempt by rank. */
  ranks: (ObservedPod | undefined)[];
  /** Pods of earlier attempts, and of the current one with a rank that there should not be. */
  otherPods: ObservedPod[];
  /** A lost node is left to Kubernetes, which will evict its pods: the job says itself how long to wait. */
  toleratesNodeLoss: boolean;
}

/** Jobs that somebody else takes care of, and jobs that go: owner references take their children along. */
export function isIgnored(job: { identity: JobIdentity; spec: { managedBy?: string | undefined } }): boolean {
  return job.identity.deletionTimestamp !== undefined || (job.spec.managedBy ?? OPERATOR_NAME) !== OPERATOR_NAME;
}

interface Observed {
  identity: JobIdentity;
  spec: JobSpec;
  status: JobStatus;
  pods: ObservedPod[];
}

export function viewOf(
  { identity, spec, status, pods }: Observed,
  size: number,
  now: Date,
  toleratesNodeLoss: boolean,
): JobView {
  // A pod of a later attempt than the status knows: the status was lost, or is not the newest. What runs is what counts.
  const attempt = pods.reduce((newest, pod) => Math.max(newest, pod.attempt), status.attempt ?? 0);
  const ranks = Array.from<ObservedPod | undefined>({ length: size });
  const otherPods: ObservedPod[] = [];
  for (const pod of pods) {
    if (pod.attempt === attempt && pod.rank < size) ranks[pod.rank] = pod;
    else otherPods.push(pod);
  }
  return {
    identity,
    spec,
    status,
    now,
    attempt,
    startedAt: attempt === (status.attempt ?? 0) ? status.attemptStartTime : undefined,
    ranks,
    otherPods,
    toleratesNodeLoss,
  };
}

/** How long a pod that was created may stay out of sight of an executor that reads from a cache. */
const CACHE_LAG_SECONDS = 5;

/** All pods of the attempt were created, long enough ago that one which is not seen is gone. */
export function creationIsOver(view: JobView): boolean {
  return view.startedAt !== undefined && secondsSince(view.startedAt, view.now) >= CACHE_LAG_SECONDS;
}

/** How a pod's program ended, if it did. A helper container may go on; the pod is alive then all the same. */
export function outcomeOf(pod: ObservedPod): 'succeeded' | 'failed' | null {
  if (pod.exitCode !== undefined) return pod.exitCode === 0 ? 'succeeded' : 'failed';
  return pod.phase === 'Succeeded' ? 'succeeded' : pod.phase === 'Failed' ? 'failed' : null;
}

/** Whether something of the pod may still run. A phase that we do not know counts as alive: better to wait than to run twice. */
export const isAlive = (pod: Pick<ObservedPod, 'phase'>): boolean =>
  pod.phase !== 'Succeeded' && pod.phase !== 'Failed';

const KNOWN_PHASES = new Set<string>(['Pending', 'Running', 'Succeeded', 'Failed']);
/** Nobody knows how the pod is. */
export const isUnknown = (pod: ObservedPod): boolean => !KNOWN_PHASES.has(pod.phase);

/**
 * Of what decides a training's result. Pods carry it, so that a change made during a suspension which nobody saw (the
 * operator was away) is noticed. It is only compared when the spec's generation moved, so that a new version of the operator, with
 * other defaults, leaves running jobs alone.
 */
export function specDigest(parts: unknown): string {
  return createHash('sha256').update(canonicalJson(parts)).digest('hex').slice(0, 16);
}
