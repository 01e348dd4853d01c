/**
 * Plans a FaceTrainJob.
 *
 *   Pending -> Running -> (Restarting -> Running)* -> Quantizing? -> Succeeded | Failed
 *
 * Suspended can follow any phase except Succeeded and Failed. The plan first decides the stage: the first check in
 * `stageOf` that returns one. Actions, status and events follow from it. stage.ts explains why a decision and its
 * actions are two plans.
 */
import { isDeepStrictEqual } from 'node:util';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { actionsOf } from '../actions.ts';
import { isAlive, isIgnored, type JobView, outcomeOf, viewOf } from '../attempt.ts';
import { blockedBy, findBlocker, missingChildren } from '../children.ts';
import { deletePlaceholders } from '../cleanup.ts';
import type { WantedCondition } from '../conditions.ts';
import type { Environment } from '../environment.ts';
import { eventsOf } from '../job-events.ts';
import { managedActions, managedStage, managedStatus, withoutPods } from '../multikueue.ts';
import { selectorLabels } from '../names.ts';
import type { ChildObject } from '../objects.ts';
import type { ObservedFaceTrainJob } from '../observed.ts';
import { compact } from '../plain-data.ts';
import type { Action, PlanFaceTrainJob } from '../plan.ts';
import { toleratesNodeLoss } from '../pod.ts';
import {
  awaitAdmission,
  evicted,
  growthWorkload,
  labelBlocker,
  placementOf,
  queueBlocker,
  quotaFor,
  staleGrowth,
  whatGrowthWaitsFor,
  workloadChildren,
  workloadUpdates,
} from '../queue.ts';
import { formatRanks } from '../rank-set.ts';
import { ConditionType, Reason } from '../reasons.ts';
import { awaitNextTry, countsEndedPods, quotaBlocker, releaseAfterTimeout, releasePods } from '../refusal.ts';
import { secondsToNextPlan } from '../requeue.ts';
import {
  backingOff,
  deadlineExceeded,
  failed,
  finished,
  hasBegun,
  notFollowed,
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
import {
  desiredAfter,
  gangSize,
  keepsAllowedPods,
  ranksToSearchFor,
  resized,
  scalingEvents,
  scalingOf,
  secondsToResize,
  uselessPlaceholders,
} from './elastic.ts';
import { findDeletedPodGroup, findPriorityMismatch, gangOf, missingPodsHint } from './gang.ts';
import {
  type Attempt,
  childrenOf,
  findConflict,
  networkUpdates,
  placeholdersOf,
  queuedGang,
  trainingDigest,
} from './gang-objects.ts';
import { trainingSucceeded } from './success.ts';
import {
  findHang,
  hasTrained,
  lastActivityOf,
  type ProgressStatus,
  progressOf,
  secondsToHang,
  setAsideEvents,
  unansweredAfter,
  whomRanksWaitFor,
  withoutStaleProgress,
} from './training-progress.ts';

/** The planner of FaceTrainJobs: see `PlanFaceTrainJob` in plan.ts. */
export const planFaceTrainJob: PlanFaceTrainJob = (input, now, environment) => {
  const { spec, status: before } = input;
  if (isIgnored(input)) {
    const { identity: job } = input;
    const size = spec.trainers.replicas;
    const gang = () => queuedGang({ job, spec, attempt: 0, size, gang: { mode: 'none' }, environment });
    const actions = managedActions('FaceTrainJob', input, gang, now);
    const { progress: _, ...others } = input;
    const idle = { ...others, pods: [], status: withoutPods(before) };
    const view = viewOf('FaceTrainJob', idle, gangSize(idle), now, false);
    const stage = managedStage(input, view, gang);
    return { actions, ...managedStatus(before, stage && statusOf(stage, idle, view).status) };
  }

  const tolerates = toleratesNodeLoss(spec.trainers.podTemplate);
  const seen = { hasTrained: hasTrained(input), lastActivity: lastActivityOf(input) };
  const view = viewOf('FaceTrainJob', input, gangSize(input), now, tolerates, seen);
  // The termination message of rank 0 is newer than anything that was polled.
  const finalProgress = view.ranks[0]?.result?.progress;
  const observed = finalProgress ? { ...input, progress: finalProgress } : withoutStaleProgress(input, view);
  const stage = stageOf(observed, view, environment);
  const { status, progressDueInSeconds } = statusOf(stage, observed, view);
  const isOver = before.trainingCompletionTime !== undefined || before.completionTime !== undefined;
  const ttl = secondsToLive(stage, spec.ttlSecondsAfterFinished, view);
  return {
    actions:
      ttl !== null && ttl <= 0
        ? [{ type: 'deleteJob', reason: Reason.expired }]
        : [
            ...actionsOf(stage, view, observed, spec.cleanPodPolicy, isOver, waitsForQuota(observed)),
            ...workloadUpdates(stage, view, spec.queue, spec.trainers.replicas, observed.queue, isOver),
          ],
    status,
    events: [...eventsOf(before, status), ...scalingEvents(before, status), ...setAsideEvents(before, status)],
    requeueAfterSeconds: soonest(
      ttl,
      progressDueInSeconds,
      secondsToHang(stage, observed, view),
      unansweredAfter(stage, observed, view).dueInSeconds,
      secondsToResize(stage, observed, view),
      secondsToNextPlan(stage, view),
    ),
  };
};

/**
 * A quota that counts ended pods, or ConfigMaps, may refuse the quantizer: the trainers, which are kept for their logs,
 * give way, and then their ConfigMap.
 */
const waitsForQuota = ({ quantizeJob }: ObservedFaceTrainJob): boolean =>
  quantizeJob?.status.completionTime === undefined && countsEndedPods(quantizeJob?.status.refusal);

function stageOf(observed: ObservedFaceTrainJob, view: JobView, environment: Environment): Stage {
  return (
    finished(view) ??
    afterTraining(observed, view) ??
    suspended(view) ??
    specChanged(trainingDigest(observed.spec), view, observed.objects) ??
    evicted(view, observed.spec.queue, observed.queue, observed.spec.trainers.elastic?.minReplicas) ??
    releaseAfterTimeout(view) ??
    failed(view) ??
    notFollowed(view) ??
    podGroupUnusable(observed, view) ??
    hung(observed, view) ??
    resized(observed, view) ??
    deadlineExceeded(view) ??
    stopping(view) ??
    backingOff(view) ??
    awaitNextTry(view) ??
    active(observed, view, environment)
  );
}

/** Checked before everything that could end the attempt: training that has succeeded is never repeated. */
function afterTraining(observed: ObservedFaceTrainJob, view: JobView): Stage | null {
  return isTrained(observed, view) ? stageAfterTraining(observed, view) : null;
}

const isTrained = ({ status, spec }: ObservedFaceTrainJob, view: JobView): boolean =>
  status.trainingCompletionTime !== undefined || trainingSucceeded(spec, view);

function hung(observed: ObservedFaceTrainJob, view: JobView): Stage | null {
  const failure = findHang(observed, view);
  return failure && stageAfterFailure(failure, view);
}

function podGroupUnusable({ objects }: ObservedFaceTrainJob, view: JobView): Stage | null {
  const failure = findDeletedPodGroup(view, objects) ?? findPriorityMismatch(view, objects);
  return failure && stageAfterFailure(failure, view);
}

function active(observed: ObservedFaceTrainJob, view: JobView, environment: Environment): Stage {
  const { identity, spec, objects, refused, predecessorPods, jobsBefore = [], quotaRivals, podGroupApis } = observed;
  const { queue } = observed;
  const gang = gangOf(spec, podGroupApis, view);
  const placement = spec.queue && queue && ((number: number) => placementOf(queue, number));
  const attempt: Attempt = {
    job: identity,
    spec,
    attempt: view.attempt,
    size: view.ranks.length,
    gang,
    restartsTrainers: observed.servesRestartRules ?? false,
    environment,
    ...(placement && { placement }),
  };
  const children = childrenOf(attempt);
  const create = missingChildren(children, view, objects);
  const queued = create.some(({ rank }) => rank !== undefined) ? queuedGang(attempt) : null;
  const workload = workloadChildren(view, queued, queue);
  // The QuantizeJob is created after the training. If its name is taken, users should know before days of training.
  const blocker =
    findBlocker({
      create: [...workload, ...create],
      reserved: [...workload, ...children, ...quantizeJobChildren(identity, spec)],
      objects,
      refused,
      predecessorPods,
      jobsBefore: hasBegun(view) ? [] : jobsBefore,
      findConflict: () => findConflict(attempt),
    }) ??
    labelBlocker(view, spec.queue, queue) ??
    queueBlocker(queued, queue) ??
    (create.length > 0 ? quotaBlocker(view, quotaRivals) : null);
  if (blocker) {
    const release = keepsAllowedPods(observed, view, blocker.refusal?.quota)
      ? null
      : releasePods(view, blocker, quotaRivals);
    return release ?? blockedBy(blocker, missingPodsHint(gang, view, spec));
  }
  const wait = awaitAdmission(view, queued, queue);
  if (wait) return wait;
  const { found, updates, lacks } = grow(observed, view, attempt);
  const waitsFor = [whomRanksWaitFor(observed, view), lacks].filter((text) => text !== undefined);
  return {
    name: 'Active',
    create: [...create.map(({ make }) => make()), ...found],
    updates: [
      ...networkUpdates(attempt, objects),
      ...deletePlaceholders(uselessPlaceholders(observed, view)),
      ...updates,
    ],
    ...(waitsFor.length > 0 && { waitsFor: waitsFor.join('; ') }),
  };
}

/**
 * What an elastic gang that has fewer pods than it wishes does for more: it asks for quota, and creates placeholders
 * for the pods that it has quota for. An object that was refused is tried again later: `scaling.refusedTime`.
 */
function grow(
  { refused, objects, ...observed }: ObservedFaceTrainJob,
  view: JobView,
  attempt: Attempt,
): { found: ChildObject[]; updates: Action[]; lacks: string | undefined } {
  const { spec, queue } = observed;
  if (spec.trainers.elastic === undefined || spec.trainers.replicas <= view.ranks.length)
    return { found: [], updates: [], lacks: undefined };
  const gang = queuedGang(attempt);
  const quota = quotaFor(gang, queue);
  const ranks = ranksToSearchFor(observed, view);
  const places = placeholdersOf(
    attempt,
    ranks.filter((rank) => rank < quota),
  );
  const growth = ranks.some((rank) => rank >= quota) ? growthWorkload(view, gang, queue) : null;
  const found = [...places, ...(growth ? [growth] : [])].filter(
    ({ kind, metadata: { name } }) =>
      kind !== refused?.kind && objects.every((object) => object.kind !== kind || object.name !== name),
  );
  return { found, updates: staleGrowth(gang, queue), lacks: whatGrowthWaitsFor(gang, queue) };
}

/**
 * The status, and in how many seconds newer progress has to be written (null: there is none). Progress that is not due
 * is left out, unless the status changes anyway.
 */
function statusOf(
  stage: Stage,
  observed: ObservedFaceTrainJob,
  view: JobView,
): { status: FaceTrainJobStatus; progressDueInSeconds: number | null } {
  const { status: before, progress, spec } = observed;
  const { latest, dueInSeconds } = progressOf(progress, spec, before, view);
  const isDeferred = dueInSeconds !== null && dueInSeconds > 0;
  const status = compose(stage, observed, view, isDeferred ? before : latest);
  if (isDeepStrictEqual(status, before)) return { status: before, progressDueInSeconds: dueInSeconds };
  return { status: isDeferred ? compose(stage, observed, view, latest) : status, progressDueInSeconds: null };
}

function compose(
  stage: Stage,
  observed: ObservedFaceTrainJob,
  view: JobView,
  { progress, checkpoint, damagedCheckpoints, evaluations }: ProgressStatus,
): FaceTrainJobStatus {
  const { identity, status: before, quantizeJob } = observed;
  // The outcome of a finished job is final, even if its pods were kept and still run.
  const trained =
    before.completionTime === undefined ? isTrained(observed, view) : before.trainingCompletionTime !== undefined;
  return compact<FaceTrainJobStatus>({
    ...lifecycleOf(stage, view),
    phase: phaseOf(stage, view),
    conditions: conditionsOf(stage, view, quantizationCondition(stage, observed)),
    trainingCompletionTime: before.trainingCompletionTime ?? (trained ? timestamp(view.now) : undefined),
    trainers: {
      ...countPods(stage, before, view),
      desired: desiredAfter(stage, observed, view),
      selector: selectorOf(identity),
    },
    scaling: scalingOf(stage, observed, view),
    // Training that does not continue has no estimated end.
    progress:
      progress && (trained || stage.name === 'Failed' || stage.name === 'Suspended')
        ? { ...progress, estimatedCompletionTime: undefined }
        : progress,
    unanswered: unansweredAfter(stage, observed, view).unanswered,
    checkpoint,
    damagedCheckpoints,
    evaluations,
    quantizeJobName: before.quantizeJobName ?? (stage.name === 'Quantizing' ? quantizeJobName(identity) : undefined),
    artifact: quantizeJob?.status.artifact ?? before.artifact,
  } as FaceTrainJobStatus);
}

/**
 * Counts the pods of the current attempt. Pods that have ended are still counted after they were deleted. The ranks
 * that have succeeded are remembered until the attempt is replaced.
 */
function countPods(
  stage: Stage,
  before: FaceTrainJobStatus,
  { ranks, restartsInPlace }: JobView,
): Omit<NonNullable<FaceTrainJobStatus['trainers']>, 'desired'> {
  const pods = ranks.filter((pod) => pod !== undefined);
  const count = (outcome: string) => pods.filter((pod) => outcomeOf(pod) === outcome).length;
  const isOver = before.trainingCompletionTime !== undefined || before.completionTime !== undefined;
  const ended = (kind: 'succeeded' | 'failed') => Math.max(count(kind), isOver ? (before.trainers?.[kind] ?? 0) : 0);
  const completed = ranks.flatMap((pod, rank) => (pod && outcomeOf(pod) === 'succeeded' ? [rank] : []));
  const isReplaced = ['Restart', 'Replace', 'Release'].includes(stage.name);
  const completedRanks = isReplaced ? undefined : formatRanks(completed);
  const containerRestarts = stage.name === 'RestartInPlace' ? stage.containerRestarts : restartsInPlace;
  return {
    active: pods.filter((pod) => isAlive(pod) && outcomeOf(pod) === null).length,
    ready: pods.filter((pod) => pod.phase === 'Running' && pod.ready).length,
    succeeded: ended('succeeded'),
    failed: ended('failed'),
    ...(completedRanks !== undefined && { completedRanks }),
    ...(!isReplaced && containerRestarts > 0 && { containerRestarts }),
  };
}

/** As kubectl writes a selector. */
const selectorOf = (job: ObservedFaceTrainJob['identity']): string =>
  Object.entries(selectorLabels(job))
    .map(([label, value]) => `${label}=${value}`)
    .join(',');

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
