/**
 * Progress of the training in the status, and how a hang is detected.
 *
 * The status holds `activity`, the trainer's counter when it was last written, and `lastHeartbeatTime`, when the
 * counter was last observed to change. Progress alone is written at most every 10 s. It is written at once with a new
 * checkpoint, evaluation or damaged checkpoint, with the first work and the first step of an attempt, at the last step,
 * and with any other change of the status.
 */
import { isDeepStrictEqual } from 'node:util';
import {
  checkpointFolder,
  type FaceTrainJobSpec,
  type FaceTrainJobStatus,
  joinStorageUri,
  MAX_SET_ASIDE,
  type TrainingProgress,
} from '@facetrain/api';
import { hasSilentNode, type JobView } from '../attempt.ts';
import { findCondition } from '../conditions.ts';
import { gangStart } from '../container-restarts.ts';
import type { Failure } from '../failure.ts';
import type { ObservedFaceTrainJob, ObservedProgress } from '../observed.ts';
import { compact, rounded, truncate } from '../plain-data.ts';
import type { PlanEvent } from '../plan.ts';
import { ConditionType, MAX_MESSAGE, Reason } from '../reasons.ts';
import type { Stage } from '../stage.ts';
import { secondsSince, timestamp } from '../time.ts';
import { checkpointsUri } from '../written-places.ts';

const WRITE_INTERVAL_SECONDS = 10;
/** Between two statuses that count for how long a gang has not answered. */
const MIN_NOTE_SECONDS = 30;
/** A hundred years. */
const MAX_ETA_SECONDS = 3_153_600_000;

export type ProgressStatus = Pick<FaceTrainJobStatus, 'progress' | 'checkpoint' | 'damagedCheckpoints' | 'evaluations'>;

/**
 * Leaves out progress that was polled before the termination message that the status has. Once the pod of rank 0 is
 * gone, its message is gone with it, and the last answer to a poll is older.
 */
export function withoutStaleProgress(job: ObservedFaceTrainJob, { ranks, startedAt }: JobView): ObservedFaceTrainJob {
  const { progress: polled, ...others } = job;
  const known = job.status.progress;
  const isGone = ranks[0] === undefined || ranks[0].removed === true;
  if (!isGone || polled === undefined || startedAt === undefined || !isFromAttempt(known, startedAt)) return job;
  return polled.activity < (known.activity ?? 0) ? others : job;
}

/** @returns the newest progress, and the seconds until it has to be written; null if there is nothing new */
export function progressOf(
  observed: ObservedProgress | undefined,
  spec: FaceTrainJobSpec,
  status: FaceTrainJobStatus,
  view: JobView,
): { latest: ProgressStatus; dueInSeconds: number | null } {
  const { progress, checkpoint, damagedCheckpoints, evaluations } = status;
  const old = { progress, checkpoint, damagedCheckpoints, evaluations };
  // Progress is final once training has ended: its source, the termination message, is deleted with the pods.
  if (status.trainingCompletionTime !== undefined || status.completionTime !== undefined)
    return { latest: old, dueInSeconds: null };
  const stopped = checkpointOfStoppedPods(view, status);
  const known = stopped ? { ...old, checkpoint: checkpointStatus(spec, stopped) } : old;
  if (observed === undefined || observed.attempt !== view.attempt || view.startedAt === undefined)
    return { latest: known, dueInSeconds: stopped ? 0 : null };

  const latest = compact<ProgressStatus>({
    progress: hasMoved(observed, progress, view.startedAt)
      ? progressStatus(observed, heartbeatTime(view.startedAt, view.now))
      : progress,
    checkpoint: observed.checkpoint ? checkpointStatus(spec, observed.checkpoint) : known.checkpoint,
    damagedCheckpoints: withSetAside(damagedCheckpoints, observed.setAside),
    evaluations: observed.evaluations?.length ? observed.evaluations : evaluations,
  });
  if (isDeepStrictEqual(latest, compact<ProgressStatus>(old))) return { latest: old, dueInSeconds: null };

  const isFirst = !isFromAttempt(progress, view.startedAt);
  const urgent =
    (isFirst && (observed.activity > 0 || observed.step > 0)) ||
    !isDeepStrictEqual(latest.checkpoint, checkpoint) ||
    !isDeepStrictEqual(latest.damagedCheckpoints, damagedCheckpoints) ||
    !isDeepStrictEqual(latest.evaluations, evaluations) ||
    // hasTrained: a trainer that fails now can be started again in its pod.
    (observed.step > 0 && progress?.step === 0) ||
    (observed.step === observed.totalSteps && progress?.step !== observed.step);
  // A leader whose clock was ahead may have written a time that is yet to come.
  const age = Math.max(0, secondsSince(isFirst ? view.startedAt : progress.lastHeartbeatTime, view.now));
  return { latest, dueInSeconds: urgent ? 0 : Math.max(0, WRITE_INTERVAL_SECONDS - age) };
}

/**
 * Now, but not before the start of the attempt: the leader that wrote `startedAt` may have had a clock that was ahead,
 * and a heartbeat from before it would be taken for that of an earlier attempt.
 */
const heartbeatTime = (startedAt: string, now: Date): Date => new Date(Math.max(now.getTime(), Date.parse(startedAt)));

const isFromAttempt = (progress: TrainingProgress | undefined, startedAt: string): progress is TrainingProgress =>
  progress !== undefined && Date.parse(progress.lastHeartbeatTime) >= Date.parse(startedAt);

function hasMoved(observed: ObservedProgress, progress: TrainingProgress | undefined, startedAt: string): boolean {
  return (
    !isFromAttempt(progress, startedAt) || progress.activity !== observed.activity || progress.step !== observed.step
  );
}

function progressStatus(
  { step, totalSteps, epoch, imagesPerSecond, loss, etaSeconds, activity }: ObservedProgress,
  now: Date,
): TrainingProgress {
  return compact<TrainingProgress>({
    step,
    totalSteps,
    epoch,
    percent: totalSteps === 0 ? 0 : Math.min(100, Math.floor((100 * step) / totalSteps)),
    imagesPerSecond: imagesPerSecond === undefined ? undefined : rounded(imagesPerSecond, 4),
    loss: loss === undefined ? undefined : rounded(loss, 6),
    // The first steps may be slow, so that the estimate is later than any time that can be written.
    estimatedCompletionTime:
      etaSeconds === undefined || etaSeconds > MAX_ETA_SECONDS
        ? undefined
        : timestamp(new Date(now.getTime() + 1000 * etaSeconds)),
    activity,
    lastHeartbeatTime: timestamp(now),
  });
}

type Checkpoint = NonNullable<ObservedProgress['checkpoint']>;

const checkpointStatus = (spec: FaceTrainJobSpec, { step, time }: Checkpoint): FaceTrainJobStatus['checkpoint'] =>
  compact({ uri: joinStorageUri(checkpointsUri(spec), checkpointFolder(step)), step, time });

/**
 * The checkpoint that pods of a stopped attempt report in their termination messages, if it is newer than that of the
 * status.
 */
function checkpointOfStoppedPods({ otherPods }: JobView, { checkpoint }: FaceTrainJobStatus): Checkpoint | undefined {
  const newest = otherPods
    .flatMap(({ result }) => result?.progress?.checkpoint ?? [])
    .sort((a, b) => b.step - a.step)[0];
  return newest && newest.step > (checkpoint?.step ?? -1) ? newest : undefined;
}

type DamagedCheckpoints = FaceTrainJobStatus['damagedCheckpoints'];

/** Those of earlier attempts stay: they lie in the folder of checkpoints until somebody deletes them. */
function withSetAside(known: DamagedCheckpoints = [], reported: DamagedCheckpoints = []): DamagedCheckpoints {
  const added = reported.filter(({ folder }) => !known.some((each) => each.folder === folder));
  const all = [...known, ...added].slice(-MAX_SET_ASIDE);
  return all.length === 0 ? undefined : all;
}

/** An event for each checkpoint that was found damaged since `before`. */
export function setAsideEvents(before: FaceTrainJobStatus, after: FaceTrainJobStatus): PlanEvent[] {
  return (after.damagedCheckpoints ?? [])
    .filter(({ folder }) => !before.damagedCheckpoints?.some((each) => each.folder === folder))
    .map(({ folder, reason }) => ({
      type: 'Warning',
      reason: Reason.checkpointSetAside,
      message: truncate(`${folder}: ${reason}; training continues from the checkpoint before it`, MAX_MESSAGE),
    }));
}

/**
 * When the job was last seen at work, in any attempt; undefined: never, or work was seen that the status does not have
 * yet, or this operator has not asked the gang yet, which may have worked on while there was no operator.
 */
export function lastActivityOf({ progress: observed, status }: ObservedFaceTrainJob): string | undefined {
  const { progress } = status;
  const begun = gangStart(status);
  if (progress === undefined || (observed === undefined && begun !== undefined)) return undefined;
  if (observed && (observed.activity !== progress.activity || observed.step !== progress.step)) return undefined;
  return begun !== undefined && begun > progress.lastHeartbeatTime ? begun : progress.lastHeartbeatTime;
}

/**
 * Whether the status has a step of the gang since its last start. Each step takes all ranks. Activity alone does not
 * say so: rank 0 also counts that it waits for the others.
 */
export function hasTrained({ status }: ObservedFaceTrainJob): boolean {
  const begun = gangStart(status);
  const { step = 0, lastHeartbeatTime } = status.progress ?? {};
  return step > 0 && begun !== undefined && lastHeartbeatTime !== undefined && lastHeartbeatTime > begun;
}

/** Words for a gang whose trainers run and have not met: rank 0 knows who has not come. */
export function whomRanksWaitFor({ progress }: ObservedFaceTrainJob, { attempt }: JobView): string | undefined {
  if (progress?.attempt !== attempt || progress.waitsFor === undefined) return undefined;
  return `rank 0 waits for ${progress.waitsFor}; the logs of the other ranks say whom they wait for`;
}

/** A gang that made no progress for progressDeadlineSeconds. */
export function findHang(observed: ObservedFaceTrainJob, view: JobView): Failure | null {
  const left = secondsBeforeHang(observed, view);
  if (left === null || left > 0) return null;
  const { progress } = observed.status;
  const where = progress === undefined ? '' : ` since step ${progress.step}`;
  return {
    reason: Reason.progressDeadline,
    message: `no sign of progress${where} for progressDeadlineSeconds ${observed.spec.progressDeadlineSeconds}`,
    disruption: false,
    ruleReasons: [Reason.progressDeadline],
  };
}

/** Seconds until the gang counts as hung, if it makes no progress; null if that is not checked now. */
export const secondsToHang = (stage: Stage, observed: ObservedFaceTrainJob, view: JobView): number | null =>
  stage.name === 'Active' ? secondsBeforeHang(observed, view) : null;

/**
 * Whether a gang may count as hung now. While a node does not answer, nodeLostSeconds decides how long its gang may
 * stand still, and the restart that follows is no fault of the training. What answers and cannot be read is alive: the
 * liveness probe looks after it.
 */
const mayHang = ({ progressWatch: watch }: ObservedFaceTrainJob, view: JobView): boolean =>
  view.startedAt !== undefined && !hasSilentNode(view) && !watch?.isUnreadable;

/** When the gang was last seen at work, or all its ranks were ready: waiting to be scheduled is not a hang. */
function lastSign({ status }: ObservedFaceTrainJob, view: JobView): string | undefined {
  const { progress, conditions } = status;
  const ready = findCondition(conditions, ConditionType.podsReady);
  // The heartbeat, or before the first one the time of PodsReady. Times before this attempt belong to the previous one.
  const times = [progress?.lastHeartbeatTime, ready?.status === 'True' ? ready.lastTransitionTime : undefined];
  const seen = times.find((time) => time !== undefined && Date.parse(time) >= Date.parse(view.startedAt!));
  // Trainers that were started again in their pods have their time anew.
  const restarted = view.restartsInPlace > 0 ? status.restarts?.lastTime : undefined;
  return seen !== undefined && restarted !== undefined && restarted > seen ? restarted : seen;
}

/**
 * For how long the gang was asked without an answer. The time does not count in which nobody has asked: an operator
 * that was away for longer would restart every gang when it comes back. What former leaders have counted is in the
 * status, or each new one would begin anew.
 *
 * @returns null: the gang has answered this leader, or nobody asks it. `own`: what the status does not have yet
 */
function askedInVain(
  { progress: observed, progressWatch: watch, status: { unanswered } }: ObservedFaceTrainJob,
  sign: string,
  view: JobView,
): { before: Unanswered | undefined; own: number } | null {
  if (watch === undefined || observed?.attempt === view.attempt) return null;
  const before = unanswered !== undefined && unanswered.time >= sign ? unanswered : undefined;
  const since = [before?.time, watch.since].reduce<string>(
    (last, time) => (time !== undefined && time > last ? time : last),
    sign,
  );
  return { before, own: Math.max(0, secondsSince(since, view.now)) };
}

function secondsBeforeHang(job: ObservedFaceTrainJob, view: JobView): number | null {
  const { progress: observed, spec, status } = job;
  if (!mayHang(job, view)) return null;
  if (observed?.attempt === view.attempt && hasMoved(observed, status.progress, view.startedAt!))
    return spec.progressDeadlineSeconds;
  const sign = lastSign(job, view);
  if (sign === undefined) return null;
  const asked = askedInVain(job, sign, view);
  const seconds = asked ? (asked.before?.seconds ?? 0) + asked.own : secondsSince(sign, view.now);
  return spec.progressDeadlineSeconds - seconds;
}

type Unanswered = NonNullable<FaceTrainJobStatus['unanswered']>;

/**
 * `status.unanswered`, and the seconds until more has to be written to it (null: nothing). A leader writes it ten times
 * at most until the deadline, so a change of leader prolongs that by a tenth.
 */
export function unansweredAfter(
  stage: Stage,
  job: ObservedFaceTrainJob,
  view: JobView,
): { unanswered: Unanswered | undefined; dueInSeconds: number | null } {
  const nothing = { unanswered: undefined, dueInSeconds: null };
  if (stage.name !== 'Active' || !mayHang(job, view)) return nothing;
  const sign = lastSign(job, view);
  const asked = sign === undefined ? null : askedInVain(job, sign, view);
  if (asked === null) return nothing;
  const { before, own } = asked;
  const interval = Math.max(MIN_NOTE_SECONDS, job.spec.progressDeadlineSeconds / 10);
  if (own < interval) return { unanswered: before, dueInSeconds: interval - own };
  const seconds = Math.round((before?.seconds ?? 0) + own);
  return { unanswered: { seconds, time: timestamp(view.now) }, dueInSeconds: interval };
}
