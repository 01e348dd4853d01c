/**
 * What to do about a FaceTrainJob.
 *
 *   Pending -> Running -> (Restarting -> Running)* -> Quantizing? -> Succeeded | Failed, with Suspended reachable from any but the last two
 *
 * First the stage is decided, by the first of a list of questions that has an answer; then actions and status follow from it. See
 * stage.ts for why a decision and its consequences are two plans.
 */
import { isDeepStrictEqual } from 'node:util';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { actionsOf } from '../actions.ts';
import { isAlive, isIgnored, type JobView, outcomeOf, viewOf } from '../attempt.ts';
import { blockedBy, findBlocker, missingChildren } from '../children.ts';
import type { WantedCondition } from '../conditions.ts';
import type { Environment } from '../environment.ts';
import { eventsOf } from '../job-events.ts';
import type { ObservedFaceTrainJob } from '../observed.ts';
import { compact } from '../plain-data.ts';
import type { PlanFaceTrainJob } from '../plan.ts';
import { toleratesNodeLoss } from '../pod.ts';
import { ConditionType, Reason } from '../reasons.ts';
import { secondsToNextPlan } from '../requeue.ts';
import {
  backingOff,
  deadlineExceeded,
  failed,
  finished,
  hasBegun,
  type Stage,
  specChanged,
  stageAfterFailure,
  stopping,
  suspended,
} from '../stage.ts';
import { conditionsOf, lifecycleOf, phaseOf } from '../status.ts';
import { soonest, timestamp } from '../time.ts';
import { secondsToLive } from '../ttl.ts';
import { quantizeJobChildren, quantizeJobName, stageAfterTraining } from './child-quantizejob.ts';
import { findDeletedPodGroup, gangOf, missingPodsHint } from './gang.ts';
import { type Attempt, childrenOf, findConflict, networkUpdates, trainingDigest } from './gang-objects.ts';
import { trainingSucceeded } from './success.ts';
import { findHang, type ProgressStatus, progressOf, secondsToHang } from './training-progress.ts';

export const planFaceTrainJob: PlanFaceTrainJob = (seen, now, environment) => {
  const { spec, status: before } = seen;
  if (isIgnored(seen)) return { actions: [], status: before, events: [], requeueAfterSeconds: null };

  const view = viewOf(seen, spec.trainers.replicas, now, toleratesNodeLoss(spec.trainers.podTemplate));
  const last = view.ranks[0]?.result?.progress;
  const observed = last ? { ...seen, progress: last } : seen;
  const stage = stageOf(observed, view, environment);
  const { status, progressDueIn } = statusOf(stage, observed, view);
  const isOver = before.trainingCompletionTime !== undefined || before.completionTime !== undefined;
  const ttl = secondsToLive(stage, spec.ttlSecondsAfterFinished, view);
  return {
    actions:
      ttl !== null && ttl <= 0
        ? [{ type: 'deleteJob', reason: Reason.expired }]
        : actionsOf(stage, view, observed.objects, spec.cleanPodPolicy, isOver),
    status,
    events: eventsOf(before, status),
    // What was written may start a clock, so the next plan looks at it.
    requeueAfterSeconds:
      status === before
        ? soonest(ttl, progressDueIn, secondsToHang(stage, observed, view), secondsToNextPlan(stage, view))
        : 0,
  };
};

function stageOf(observed: ObservedFaceTrainJob, view: JobView, environment: Environment): Stage {
  return (
    finished(view) ??
    trained(observed, view) ??
    suspended(view) ??
    specChanged(trainingDigest(observed.spec), view, observed.objects) ??
    failed(view) ??
    ungrouped(observed, view) ??
    hung(observed, view) ??
    deadlineExceeded(view) ??
    stopping(view) ??
    backingOff(view) ??
    active(observed, view, environment)
  );
}

/** Success comes before all that could end the attempt: what is done is done. */
function trained(observed: ObservedFaceTrainJob, view: JobView): Stage | null {
  return isTrained(observed, view) ? stageAfterTraining(observed, view) : null;
}

const isTrained = ({ status, spec }: ObservedFaceTrainJob, view: JobView): boolean =>
  status.trainingCompletionTime !== undefined || trainingSucceeded(spec, view);

function hung(observed: ObservedFaceTrainJob, view: JobView): Stage | null {
  const failure = findHang(observed, view);
  return failure && stageAfterFailure(failure, view);
}

function ungrouped({ objects }: ObservedFaceTrainJob, view: JobView): Stage | null {
  const failure = findDeletedPodGroup(view, objects);
  return failure && stageAfterFailure(failure, view);
}

function active(
  { identity, spec, objects, refused, predecessors, jobsBefore = [], podGroupApi }: ObservedFaceTrainJob,
  view: JobView,
  environment: Environment,
): Stage {
  const gang = gangOf(spec, podGroupApi);
  const attempt: Attempt = { job: identity, spec, attempt: view.attempt, gang, environment };
  const children = childrenOf(attempt);
  const create = missingChildren(children, view, objects);
  // The QuantizeJob comes much later, but a name that it cannot have should be told before days of training.
  const refusal = findBlocker({
    create,
    reserved: [...children, ...quantizeJobChildren(identity, spec)],
    objects,
    refused,
    predecessors,
    jobsBefore: hasBegun(view) ? [] : jobsBefore,
    findConflict: () => findConflict(attempt),
  });
  if (refusal) return blockedBy(refusal, missingPodsHint(gang, view));
  return { name: 'Active', create: create.map(({ make }) => make()), updates: networkUpdates(attempt, objects) };
}

/** The status, and how long newer progress was held back (null: none was). */
function statusOf(
  stage: Stage,
  observed: ObservedFaceTrainJob,
  view: JobView,
): { status: FaceTrainJobStatus; progressDueIn: number | null } {
  const { status: before, progress, spec } = observed;
  const { latest, dueInSeconds } = progressOf(progress, spec, before, view);
  const held = dueInSeconds !== null && dueInSeconds > 0;
  const status = compose(stage, observed, view, held ? before : latest);
  if (isDeepStrictEqual(status, before)) return { status: before, progressDueIn: dueInSeconds };
  return { status: held ? compose(stage, observed, view, latest) : status, progressDueIn: null };
}

function compose(
  stage: Stage,
  observed: ObservedFaceTrainJob,
  view: JobView,
  { progress, checkpoint, evaluations }: ProgressStatus,
): FaceTrainJobStatus {
  const { identity, status: before, quantizeJob } = observed;
  // A finished job learns nothing more: its pods may have been spared, and go on.
  const trained =
    before.completionTime === undefined ? isTrained(observed, view) : before.trainingCompletionTime !== undefined;
  return compact<FaceTrainJobStatus>({
    ...lifecycleOf(stage, view),
    phase: phaseOf(stage, view),
    conditions: conditionsOf(stage, view, quantizationCondition(stage, observed)),
    trainingCompletionTime: before.trainingCompletionTime ?? (trained ? timestamp(view.now) : undefined),
    trainers: countPods(before, view),
    // What does not go on has no end to expect.
    progress:
      progress && (trained || stage.name === 'Failed' || stage.name === 'Suspended')
        ? { ...progress, estimatedCompletionTime: undefined }
        : progress,
    checkpoint,
    evaluations,
    quantizeJobName: before.quantizeJobName ?? (stage.name === 'Quantizing' ? quantizeJobName(identity) : undefined),
    artifact: quantizeJob?.status.artifact ?? before.artifact,
  } as FaceTrainJobStatus);
}

/** Pods of the current attempt; those that ended still count after they were cleaned up. */
function countPods(before: FaceTrainJobStatus, { ranks }: JobView): NonNullable<FaceTrainJobStatus['trainers']> {
  const pods = ranks.filter((pod) => pod !== undefined);
  const count = (outcome: string) => pods.filter((pod) => outcomeOf(pod) === outcome).length;
  const isOver = before.trainingCompletionTime !== undefined || before.completionTime !== undefined;
  const ended = (kind: 'succeeded' | 'failed') => Math.max(count(kind), isOver ? (before.trainers?.[kind] ?? 0) : 0);
  return {
    desired: ranks.length,
    active: pods.filter((pod) => isAlive(pod) && outcomeOf(pod) === null).length,
    ready: pods.filter((pod) => pod.phase === 'Running' && pod.ready).length,
    succeeded: ended('succeeded'),
    failed: ended('failed'),
  };
}

function quantizationCondition(stage: Stage, { spec, quantizeJob }: ObservedFaceTrainJob): WantedCondition[] {
  const type = ConditionType.quantizationSucceeded;
  if (!spec.quantize) return [];
  if (stage.name === 'Quantizing')
    return [{ type, status: 'Unknown', reason: Reason.quantizing, message: 'the QuantizeJob has not ended' }];
  switch (quantizeJob?.status.phase) {
    case 'Succeeded':
      return [{ type, status: 'True', reason: Reason.succeeded, message: 'the INT7 artifact is published' }];
    case 'Failed':
      return [
        {
          type,
          status: 'False',
          reason: Reason.quantizationFailed,
          message: stage.name === 'Failed' ? stage.message : 'the QuantizeJob failed',
        },
      ];
    default:
      return [];
  }
}
