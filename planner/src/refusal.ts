/**
 * What happens while the API server refuses objects of an attempt: a ResourceQuota that is used up, a LimitRange, an
 * admission webhook.
 *
 * The operator asks again (requeue.ts). A gang that has some of its pods and gets no others holds what another gang may
 * need: two gangs of 8 pods under a quota for 8 would hold 5 and 3 for ever. So it lets go of its pods after a while: a
 * new attempt, which is not counted as a restart and begins after a delay that grows.
 *
 * Of several gangs that one quota refuses, the oldest is served first. A younger one creates no pods meanwhile, and
 * lets go of those that it has. The oldest holds its pods for longer, so that it gets those. When it cannot be whole
 * even then, it lets go, too, and until its next try the next oldest has its turn: a gang that is larger than the quota
 * does not block smaller ones for ever.
 */
import type { Refusal } from '@facetrain/api';
import type { JobStatus, JobView } from './attempt.ts';
import type { Blocker } from './blocker.ts';
import { findCondition } from './conditions.ts';
import { findFailure } from './failure.ts';
import type { QuotaRivals, RefusedChild } from './observed.ts';
import { truncate } from './plain-data.ts';
import { ConditionType, MAX_MESSAGE, Reason } from './reasons.ts';
import type { RefusedObject, Stage } from './stage.ts';
import { secondsSince, timestamp } from './time.ts';

/** Seconds without a new pod after which a gang that is not whole lets go of its pods. */
const RELEASE_SECONDS = 60;
/**
 * The same for the oldest of several gangs that one quota refuses: the others let go after RELEASE_SECONDS, and their
 * processes may take DEFAULT_TERMINATION_GRACE_SECONDS to end.
 */
const OLDEST_RELEASE_SECONDS = 240;
/** The delay before the next try: so many seconds after the first release, twice as many after the next. */
const BASE_DELAY_SECONDS = 30;
const MAX_DELAY_SECONDS = 300;

/** The words of the API server's admission plugin ResourceQuota: its name, and the resources. */
const EXCEEDED = /exceeded quota: ([^\s,]+), (requested: .*)$/s;
/** A quota that was just created, whose use has not been computed yet. */
const UNKNOWN = /(status unknown) for quota: ([^\s,]+)/;

/** apiserver/pkg/admission/plugin/webhook/errors: ToStatusErr. With failurePolicy Fail it is an internal error. */
const WEBHOOK = /failed calling webhook /;

/** Why an object was refused, as reason and message of a condition. */
export function refusalBlocker({ kind, name, message, failed }: RefusedChild): Blocker {
  const exceeded = EXCEEDED.exec(message);
  const quota = exceeded?.[1] ?? UNKNOWN.exec(message)?.[2];
  const text = exceeded
    ? `ResourceQuota ${quota} refuses ${kind} ${name}: ${exceeded[2]}`
    : `${kind} ${name}: ${message}`;
  const reason =
    failed === undefined ? Reason.childRefused : WEBHOOK.test(message) ? Reason.webhookFailed : Reason.createFailed;
  const refused = quota === undefined ? { reason } : { quota };
  return {
    reason: reasonOf(refused),
    message: text,
    refusal: { ...refused, message: truncate(text, MAX_MESSAGE) },
    // The quota is free again when other pods end.
    ...(quota !== undefined && { temporary: true }),
  };
}

/**
 * Whether pods that have ended use up the quota, so that they have to give way. Of pods, a quota counts only those that
 * have not ended, whatever the resource; but `count/pods` counts objects (Kubernetes' pkg/quota/v1/evaluator/core).
 * A ConfigMap stays as long as the pods of its attempt.
 */
export const countsEndedPods = (refusal: Pick<Refusal, 'quota' | 'message'> | undefined): boolean =>
  refusal?.quota !== undefined && /requested: (\S*,)?(count\/pods|(count\/)?configmaps)=/.test(refusal.message);

/** What an older gang makes this one wait for; null if it may ask for its pods. */
export function quotaBlocker({ status }: JobView, rivals: QuotaRivals | undefined): Blocker | null {
  const { refusal } = status;
  const older = rivals?.ahead[0];
  if (older === undefined || refusal?.quota === undefined) return null;
  const { quota, message } = refusal;
  return {
    reason: Reason.quotaExceeded,
    message: `${older} waits for ResourceQuota ${quota}, too, and is older: it comes first; ${message}`,
    refusal: { quota, message },
    temporary: true,
  };
}

/** The gang lets go of its pods; null while it holds none, has all, or may still get the others. */
export function releasePods(view: JobView, blocker: Blocker, rivals: QuotaRivals | undefined): Stage | null {
  const { refusal } = blocker;
  const pods = view.ranks.filter((pod) => pod !== undefined).filter(({ removed }) => !removed);
  if (refusal === undefined || view.startedAt !== undefined) return null;
  const isOldest = rivals !== undefined && rivals.ahead.length === 0 && rivals.behind > 0;
  // Without pods it holds nothing but its turn.
  if (pods.length === 0 && !isOldest) return null;
  const patience = isOldest && pods.length > 0 ? OLDEST_RELEASE_SECONDS : RELEASE_SECONDS;
  const { pendingTime, refusal: before } = view.status;
  const turn = timestamp(nextTry(before) ?? new Date(pendingTime ?? view.now));
  const since = pods.length > 0 ? pods.map(({ createdAt }) => createdAt) : [turn];
  if (since.some((time) => secondsSince(time, view.now) < patience)) return null;
  const message =
    `the gang got no pod for ${patience} s and lets go of those that it has, ` +
    `${pods.length} of ${view.ranks.length}; ${blocker.message}`;
  return release(view, blocker.reason, message, refusal);
}

/**
 * Ranks that have waited in vain for those that the server refused leave with RendezvousTimeout. Nothing has failed:
 * the gang lets go of its pods.
 */
export function releaseAfterTimeout(view: JobView): Stage | null {
  const { refusal } = view.status;
  if (refusal === undefined || view.startedAt !== undefined) return null;
  const failure = findFailure(view);
  if (failure?.code !== 'RendezvousTimeout') return null;
  const message = `${failure.message}; not all ranks could be created: ${refusal.message}`;
  return release(view, reasonOf(refusal), message, refusal);
}

const release = (view: JobView, reason: string, message: string, refusal: RefusedObject): Stage => ({
  name: 'Release',
  reason,
  message,
  refusal: { ...refusal, releases: (view.status.refusal?.releases ?? 0) + 1, releaseTime: timestamp(view.now) },
});

/** The reason of a refusal that the status holds. */
const reasonOf = ({ quota, reason }: Pick<Refusal, 'quota' | 'reason'>): string =>
  quota === undefined ? (reason ?? Reason.childRefused) : Reason.quotaExceeded;

/** The wait after a release. */
export function awaitNextTry(view: JobView): Stage | null {
  const { refusal } = view.status;
  const end = nextTry(refusal);
  if (refusal === undefined || end === null || end <= view.now || view.ranks.some((pod) => pod !== undefined))
    return null;
  const times = refusal.releases === 1 ? 'once' : `${refusal.releases} times`;
  return {
    name: 'Waiting',
    reason: reasonOf(refusal),
    message: `the gang has let go of its pods ${times}; it tries again at ${timestamp(end)}; ${refusal.message}`,
    refusal,
    until: end,
  };
}

function nextTry(refusal: Refusal | undefined): Date | null {
  if (refusal?.releaseTime === undefined) return null;
  const delay = Math.min(BASE_DELAY_SECONDS * 2 ** (refusal.releases - 1), MAX_DELAY_SECONDS);
  return new Date(Date.parse(refusal.releaseTime) + 1000 * delay);
}

/** The ResourceQuota that a job waits for; undefined if it waits for none, or not before the time of its next try. */
function quotaWaitedFor({ refusal, conditions }: JobStatus, now: Date): string | undefined {
  if (findCondition(conditions, ConditionType.ready)?.reason !== Reason.quotaExceeded) return undefined;
  const end = nextTry(refusal);
  return end !== null && end > now ? undefined : refusal?.quota;
}

interface Rival {
  uid: string;
  /** Kind and name, for messages. */
  label: string;
  status: JobStatus;
}

/**
 * The jobs that wait for the ResourceQuota that refuses this job.
 * @param jobs FaceTrainJobs of the namespace that may start, the oldest first, with this job
 * @returns undefined if no quota refuses this job
 */
export function quotaRivalsOf(uid: string, jobs: Rival[], now: Date): QuotaRivals | undefined {
  const quota = jobs.find((job) => job.uid === uid)?.status.refusal?.quota;
  if (quota === undefined) return undefined;
  const waiting = jobs.filter((job) => job.uid === uid || quotaWaitedFor(job.status, now) === quota);
  const place = waiting.findIndex((job) => job.uid === uid);
  return { ahead: waiting.slice(0, place).map(({ label }) => label), behind: waiting.length - place - 1 };
}
