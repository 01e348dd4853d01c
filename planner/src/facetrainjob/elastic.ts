/**
 * Elastic gangs (`trainers.elastic`): with how many ranks a job goes on when it cannot have all that its spec wishes,
 * and when it takes more.
 *
 * A change of the number is a new attempt: each rank knows the number from its environment. The trainers of the old
 * attempt get SIGTERM and write a checkpoint. Such an attempt is no restart.
 *
 * Down: ranks had no place for `scaleDownSeconds`, that is no node, or a quota refuses their pods. The gang goes on
 * with the ranks that have one. Without a user's change the number never falls below `minReplicas`; a gang that has
 * fewer places waits, as one without `elastic` does.
 *
 * Up: room is found before the gang is stopped for it. `scaleUpSeconds` after the start of an attempt, a pod for each
 * missing rank is created, with all that a trainer has, that does nothing but hold its place (`placeholder`). Once the
 * scheduler has given places to them, the gang is stopped, and only when its trainers have ended do the placeholders
 * give their places up. So the training does not stop for room that does not exist, also where an autoscaler makes it.
 * Room that is gone all the same when the gang comes costs `scaleDownSeconds`, and doubles the wait for the next try.
 *
 * Placeholders count in a ResourceQuota also while they are pending, which may last for ever. So there are none without
 * a place while such a quota refuses pods of another job: that one has nothing to go on with yet.
 */
import { MAX_REPLICAS, MAX_RESIZE_MESSAGE, MAX_RESIZES, type Scaling } from '@facetrain/api';
import { isAlive, type JobView } from '../attempt.ts';
import type { ObservedFaceTrainJob, ObservedPod } from '../observed.ts';
import { compact, truncate } from '../plain-data.ts';
import type { PlanEvent } from '../plan.ts';
import { lentPods } from '../queue.ts';
import { Reason } from '../reasons.ts';
import { allReady, hasBegun, isEnding, type Stage } from '../stage.ts';
import { secondsSince, soonest, timestamp } from '../time.ts';

/** Seconds for which the gang waits for the other placeholders to get places, when some have. */
const GATHER_SECONDS = 30;
/** The wait for the next try doubles at most so often. */
const MAX_DOUBLINGS = 5;

/**
 * Seconds beyond scaleDownSeconds for which the ranks of an elastic gang wait for each other at least. Otherwise those
 * with a place leave before the planner has given up the others.
 */
const RENDEZVOUS_MARGIN_SECONDS = 120;

/** Between two looks at whether other jobs wait for quota. */
const GIVE_WAY_SECONDS = 30;

type Job = Pick<ObservedFaceTrainJob, 'spec' | 'status' | 'pods' | 'othersWaitForQuota' | 'queue'>;

/** How long the ranks wait for each other at the start of an attempt. */
export function rendezvousTimeoutOf({ rendezvousTimeoutSeconds, elastic }: Job['spec']['trainers']): number {
  if (elastic === undefined) return rendezvousTimeoutSeconds;
  return Math.max(rendezvousTimeoutSeconds, elastic.scaleDownSeconds + RENDEZVOUS_MARGIN_SECONDS);
}

/** Number of ranks of the current attempt, or of the next one if none has begun. */
export function gangSize({ spec, status, pods, queue }: Job): number {
  const { elastic, replicas } = spec.trainers;
  if (elastic === undefined) return replicas;
  const trainers = pods.filter(({ placeholder }) => !placeholder);
  const newest = trainers.reduce((attempt, pod) => Math.max(attempt, pod.attempt), status.attempt ?? 0);
  const ofAttempt = trainers.filter(({ attempt }) => attempt === newest);
  const desired = newest === (status.attempt ?? 0) ? status.trainers?.desired : undefined;
  if (ofAttempt.length > 0 || (desired !== undefined && status.attemptStartTime !== undefined)) {
    // The status is written after the pods, some of which may not have been created. It may also be lost.
    const started = ofAttempt.find((pod) => pod.gangSize !== undefined)?.gangSize;
    return Math.min(started ?? desired ?? Math.max(...ofAttempt.map(({ rank }) => rank)) + 1, MAX_REPLICAS);
  }
  const isChanged = status.scaling !== undefined && status.scaling.replicas !== replicas;
  const isNew = desired === undefined || status.scaling === undefined || isChanged;
  const wanted = isNew ? replicas : Math.min(Math.max(desired, elastic.minReplicas), replicas);
  // Before Kueue has admitted the job, it begins with as many as it asks for.
  return Math.min(wanted, lentPods(spec.queue, queue) || wanted);
}

/** A rank has a node, or its process has run: also a remembered one. */
const hasPlace = (pod: ObservedPod | undefined): boolean =>
  pod !== undefined && (pod.node !== undefined || pod.phase !== 'Pending');

/** The scheduler has given the placeholder a place. One whose program has ended had one. */
const holdsPlace = (pod: ObservedPod): boolean =>
  pod.node !== undefined && !pod.rejected && !pod.deleting && pod.lostNode === undefined;

/** The attempt that follows with another number of ranks; null: the gang stays as it is. */
export function resized(observed: ObservedFaceTrainJob, view: JobView): Stage | null {
  const { elastic, replicas } = observed.spec.trainers;
  if (elastic === undefined || !hasBegun(view) || isEnding(view)) return null;
  const size = view.ranks.length;
  if (replicas < size)
    return resize(replicas, Reason.scaledDown, `spec.trainers.replicas is ${replicas}, and the gang has ${size} pods`);
  const lack = lackOfPlaces(observed, view);
  if (lack !== null && lack.secondsLeft <= 0)
    return resize(
      lack.places,
      Reason.scaledDown,
      `${size - lack.places} of ${size} pods had no place for ${elastic.scaleDownSeconds} s${lack.why}; ` +
        `the gang goes on with ${lack.places}`,
    );
  const room = foundRoom(observed, view);
  return room !== null && room.secondsLeft <= 0
    ? resize(
        size + room.places,
        Reason.scaledUp,
        `there is room for ${room.places} more; the gang goes on with ${size + room.places} of ${replicas} pods`,
      )
    : null;
}

const resize = (trainers: number, reason: Reason, message: string): Stage => ({
  name: 'Replace',
  reason,
  message: truncate(message, MAX_RESIZE_MESSAGE),
  trainers,
});

/**
 * How many ranks of a gang that is not whole have places, and after how many seconds it goes on with them. null: it has
 * all, or fewer than minReplicas, or lacks some for another cause.
 */
function lackOfPlaces(
  { spec, status, quotaRivals }: ObservedFaceTrainJob,
  view: JobView,
): { places: number; secondsLeft: number; why: string } | null {
  const { elastic } = spec.trainers;
  if (elastic === undefined || isEnding(view)) return null;
  const { minReplicas, scaleDownSeconds } = elastic;
  const existing = view.ranks.filter((pod) => pod !== undefined);
  const isWhole = view.startedAt !== undefined;
  // An older job that the same quota refuses comes first: refusal.ts.
  const isRefused = !isWhole && status.refusal?.quota !== undefined && (quotaRivals?.ahead.length ?? 0) === 0;
  if (!isWhole && !isRefused) return null;
  const placed = isRefused ? existing : existing.filter(hasPlace);
  const waiting = isRefused ? existing : existing.filter((pod) => !hasPlace(pod));
  if (placed.length < minReplicas || placed.length === view.ranks.length || waiting.length === 0) return null;
  const waited = Math.min(...waiting.map(({ createdAt }) => secondsSince(createdAt, view.now)));
  const words = isRefused ? status.refusal?.message : waiting.find((pod) => pod.waiting)?.waiting?.message;
  return {
    places: placed.length,
    secondsLeft: scaleDownSeconds - waited,
    why: words === undefined ? '' : ` (${words})`,
  };
}

/**
 * Whether the gang keeps the pods that a quota has allowed, although it refuses others: they are enough to go on with,
 * and no other job comes first.
 */
export function keepsAllowedPods(observed: ObservedFaceTrainJob, view: JobView, quota: string | undefined): boolean {
  const { elastic } = observed.spec.trainers;
  const existing = view.ranks.filter((pod) => pod !== undefined).length;
  return (
    elastic !== undefined &&
    quota !== undefined &&
    existing >= elastic.minReplicas &&
    (observed.quotaRivals?.ahead.length ?? 0) === 0
  );
}

/** For how many more ranks there are places, and after how many seconds the gang takes them; null: for none. */
function foundRoom(
  { spec, queue }: ObservedFaceTrainJob,
  view: JobView,
): { places: number; secondsLeft: number } | null {
  if (isEnding(view)) return null;
  const missing = spec.trainers.replicas - view.ranks.length;
  const mayRun = Math.min(spec.trainers.replicas, lentPods(spec.queue, queue));
  const holders = view.placeholders.filter(({ rank }) => rank < mayRun);
  const places = holders.filter(holdsPlace).length;
  if (places === 0) return null;
  const youngest = Math.min(...holders.map(({ createdAt }) => secondsSince(createdAt, view.now)));
  return { places, secondsLeft: places === missing ? 0 : GATHER_SECONDS - youngest };
}

/** Seconds until placeholders are created; null: the gang lacks no rank, or is not whole. */
function secondsToSearch({ spec, status }: Job, view: JobView): number | null {
  const { elastic, replicas } = spec.trainers;
  const { startedAt, now } = view;
  if (elastic === undefined || replicas <= view.ranks.length || startedAt === undefined) return null;
  if (!allReady(view) || isEnding(view)) return null;
  const next = nextSearch(elastic, scalingNow({ spec, status }, view), startedAt);
  return Math.max((next.getTime() - now.getTime()) / 1000, 0);
}

/** When a gang that began with fewer ranks than it wishes looks for room for the others; it may look longer already. */
export function nextSearch(
  { scaleUpSeconds }: Pick<NonNullable<Job['spec']['trainers']['elastic']>, 'scaleUpSeconds'>,
  { askedTime, refusedTime, failedGrowths = 0 }: Partial<Scaling> = {},
  startedAt: string,
): Date {
  const started = Date.parse(startedAt);
  // A user who asks for more does not wait.
  const isAsked = askedTime !== undefined && Date.parse(askedTime) >= started;
  const wait = isAsked ? 0 : scaleUpSeconds * 2 ** Math.min(failedGrowths, MAX_DOUBLINGS);
  const afterRefusal = refusedTime === undefined ? 0 : Date.parse(refusedTime) + 1000 * scaleUpSeconds;
  return new Date(Math.max(started + 1000 * wait, afterRefusal));
}

/** Ranks for which placeholders should exist, beside those that do, as far as there is quota for them. */
export function ranksToSearchFor(observed: Job, view: JobView): number[] {
  if (secondsToSearch(observed, view) !== 0 || observed.othersWaitForQuota) return [];
  const { replicas } = observed.spec.trainers;
  const missing = Array.from({ length: replicas - view.ranks.length }, (_, index) => view.ranks.length + index);
  return missing.filter((rank) => view.placeholders.every((pod) => pod.rank !== rank));
}

/**
 * Placeholders that are not wanted any more: of ranks that are not wished, or for which Kueue lends no quota any more,
 * that have ended without a place and may be tried again, or that have no place while another job waits for the quota
 * in which they count.
 */
export function uselessPlaceholders(
  { spec, queue, othersWaitForQuota }: Pick<ObservedFaceTrainJob, 'spec' | 'queue' | 'othersWaitForQuota'>,
  view: JobView,
): ObservedPod[] {
  const { elastic, replicas } = spec.trainers;
  const lent = lentPods(spec.queue, queue);
  return view.placeholders.filter(
    (pod) =>
      !pod.deleting &&
      (elastic === undefined ||
        pod.rank >= replicas ||
        pod.rank >= lent ||
        pod.lostNode !== undefined ||
        (othersWaitForQuota && isAlive(pod) && pod.node === undefined) ||
        (!isAlive(pod) && !holdsPlace(pod) && secondsSince(pod.createdAt, view.now) >= elastic.scaleUpSeconds)),
  );
}

/** `status.trainers.desired` after this plan. */
export function desiredAfter(stage: Stage, { spec }: Pick<ObservedFaceTrainJob, 'spec'>, view: JobView): number {
  if (stage.name === 'Replace' && stage.trainers !== undefined) return stage.trainers;
  // A job that is resumed, or is lent its quota again, begins with all that it wishes.
  const isPaused = stage.name === 'Suspended' || (stage.name === 'Replace' && stage.reason === Reason.queueEvicted);
  return isPaused ? spec.trainers.replicas : view.ranks.length;
}

/** `status.scaling` before what this stage changes. */
function scalingNow({ spec, status }: Pick<Job, 'spec' | 'status'>, { now }: JobView): Scaling | undefined {
  const { elastic, replicas } = spec.trainers;
  const before = status.scaling;
  if (elastic === undefined) return undefined;
  if (before === undefined) return { replicas, resizes: 0, failedGrowths: 0, history: [] };
  return before.replicas === replicas
    ? before
    : { ...before, replicas, askedTime: timestamp(now), failedGrowths: 0, refusedTime: undefined };
}

/** `status.scaling` after this plan; undefined for a job that is not elastic. */
export function scalingOf(stage: Stage, observed: ObservedFaceTrainJob, view: JobView): Scaling | undefined {
  const { status, refused } = observed;
  if (status.trainingCompletionTime !== undefined || status.completionTime !== undefined) return status.scaling;
  const scaling = scalingNow(observed, view);
  if (scaling === undefined) return undefined;
  const last = scaling.history.at(-1);
  const grew = last?.attempt === view.attempt && last.reason === Reason.scaledUp;
  if (stage.name === 'Replace' && stage.trainers !== undefined) {
    const isFailedGrowth = grew && stage.trainers < view.ranks.length;
    const { trainers, reason, message } = stage;
    const entry = { attempt: view.attempt + 1, trainers, time: timestamp(view.now), reason, message };
    return compact<Scaling>({
      ...scaling,
      resizes: scaling.resizes + 1,
      failedGrowths: scaling.failedGrowths + (isFailedGrowth && scaling.replicas >= view.ranks.length ? 1 : 0),
      history: [...scaling.history, entry].slice(-MAX_RESIZES),
    });
  }
  // The room that was found was there.
  const failedGrowths = grew && stage.name === 'Active' && allReady(view) ? 0 : scaling.failedGrowths;
  const wasRefused =
    stage.name === 'Active' &&
    refused !== undefined &&
    refused.kind === 'Pod' &&
    ranksToSearchFor(observed, view).length > 0;
  return compact<Scaling>({ ...scaling, failedGrowths, ...(wasRefused && { refusedTime: timestamp(view.now) }) });
}

/** Seconds until the number of ranks may change, or room is looked for; null if no such timer runs. */
export function secondsToResize(stage: Stage, observed: ObservedFaceTrainJob, view: JobView): number | null {
  if (stage.name !== 'Active' && stage.name !== 'Waiting') return null;
  const search = secondsToSearch(observed, view);
  return soonest(
    lackOfPlaces(observed, view)?.secondsLeft ?? null,
    foundRoom(observed, view)?.secondsLeft ?? null,
    search === 0 ? null : search,
    search === 0 && view.placeholders.every((pod) => pod.node === undefined) ? GIVE_WAY_SECONDS : null,
  );
}

/** An event for each change of the number of ranks. */
export function scalingEvents(
  { scaling: before }: ObservedFaceTrainJob['status'],
  { scaling: after }: ObservedFaceTrainJob['status'],
): PlanEvent[] {
  const last = after?.history.at(-1);
  if (last === undefined || after?.resizes === before?.resizes) return [];
  return [{ type: 'Normal', reason: last.reason, message: last.message }];
}
