/**
 * What the status tells of training, and how a hang is noticed.
 *
 * The status is the memory: `activity` is the trainer's counter as it was last written, and `lastHeartbeatTime` when it was
 * last found to have moved. Progress alone is written at most every 10 s; a new checkpoint or evaluation, the first sign
 * of an attempt, the last step, or any other change of the status take it along at once.
 */
import { isDeepStrictEqual } from 'node:util';
import {
  checkpointFolder,
  type FaceTrainJobSpec,
  type FaceTrainJobStatus,
  joinStorageUri,
  type TrainingProgress,
} from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import { findCondition } from '../conditions.ts';
import type { Failure } from '../failure.ts';
import type { ObservedFaceTrainJob, ObservedProgress } from '../observed.ts';
import { compact, rounded } from '../plain-data.ts';
import { ConditionType, Reason } from '../reasons.ts';
import type { Stage } from '../stage.ts';
import { secondsSince, timestamp } from '../time.ts';
import { checkpointsUri } from './make-trainer-config.ts';

const WRITE_INTERVAL_SECONDS = 10;

export type ProgressStatus = Pick<FaceTrainJobStatus, 'progress' | 'checkpoint' | 'evaluations'>;

/** @returns the newest progress, and how urgent it is to write it: seconds it may wait, null if there is nothing new. */
export function progressOf(
  observed: ObservedProgress | undefined,
  spec: FaceTrainJobSpec,
  status: FaceTrainJobStatus,
  view: JobView,
): { latest: ProgressStatus; dueInSeconds: number | null } {
  const { progress, checkpoint, evaluations } = status;
  const old = { progress, checkpoint, evaluations };
  // A trained or finished job learns nothing more: its pods go, and with them what they have said last.
  if (status.trainingCompletionTime !== undefined || status.completionTime !== undefined)
    return { latest: old, dueInSeconds: null };
  const left = checkpointOfStoppedPods(view, status);
  const known = left ? { ...old, checkpoint: checkpointStatus(spec, left) } : old;
  if (observed === undefined || observed.attempt !== view.attempt || view.startedAt === undefined)
    return { latest: known, dueInSeconds: left ? 0 : null };

  const latest = compact<ProgressStatus>({
    progress: hasMoved(observed, progress, view.startedAt) ? progressStatus(observed, view.now) : progress,
    checkpoint: observed.checkpoint ? checkpointStatus(spec, observed.checkpoint) : known.checkpoint,
    evaluations: observed.evaluations?.length ? observed.evaluations : evaluations,
  });
  if (isDeepStrictEqual(latest, compact<ProgressStatus>(old))) return { latest: old, dueInSeconds: null };

  const urgent =
    !isFromAttempt(progress, view.startedAt) ||
    !isDeepStrictEqual(latest.checkpoint, checkpoint) ||
    !isDeepStrictEqual(latest.evaluations, evaluations) ||
    (observed.step === observed.totalSteps && progress.step !== observed.step);
  return {
    latest,
    dueInSeconds: urgent ? 0 : Math.max(0, WRITE_INTERVAL_SECONDS - secondsSince(progress.lastHeartbeatTime, view.now)),
  };
}

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
    estimatedCompletionTime:
      etaSeconds === undefined ? undefined : timestamp(new Date(now.getTime() + 1000 * etaSeconds)),
    activity,
    lastHeartbeatTime: timestamp(now),
  });
}

type Checkpoint = NonNullable<ObservedProgress['checkpoint']>;

const checkpointStatus = (spec: FaceTrainJobSpec, { step, time }: Checkpoint): FaceTrainJobStatus['checkpoint'] =>
  compact({ uri: joinStorageUri(checkpointsUri(spec), checkpointFolder(step)), step, time });

/** The checkpoint of an attempt that was told to stop, if it is newer than the one that is known. */
function checkpointOfStoppedPods({ otherPods }: JobView, { checkpoint }: FaceTrainJobStatus): Checkpoint | undefined {
  const left = otherPods.flatMap(({ result }) => result?.progress?.checkpoint ?? []).sort((a, b) => b.step - a.step)[0];
  return left && left.step > (checkpoint?.step ?? -1) ? left : undefined;
}

/** A gang that does nothing. */
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

/** Seconds until a gang that goes on doing nothing counts as hung. */
export const secondsToHang = (stage: Stage, observed: ObservedFaceTrainJob, view: JobView): number | null =>
  stage.name === 'Active' ? secondsBeforeHang(observed, view) : null;

/** The clock starts when all ranks are there, or every wait for a place would look like a hang. */
function secondsBeforeHang(
  { progress: observed, spec, status: { progress, conditions } }: ObservedFaceTrainJob,
  view: JobView,
): number | null {
  if (view.startedAt === undefined) return null;
  if (observed?.attempt === view.attempt && hasMoved(observed, progress, view.startedAt))
    return spec.progressDeadlineSeconds;
  const ready = findCondition(conditions, ConditionType.podsReady);
  // The heartbeat counts as soon as there is one; what is older than the attempt is a sign of the one before.
  const signs = [progress?.lastHeartbeatTime, ready?.status === 'True' ? ready.lastTransitionTime : undefined];
  const since = signs.find((time) => time !== undefined && Date.parse(time) >= Date.parse(view.startedAt!));
  return since === undefined ? null : spec.progressDeadlineSeconds - secondsSince(since, view.now);
}
