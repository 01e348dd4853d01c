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
import { isAlive, outcomeOf, viewOf, type JobView } from '../attempt.ts';
import { missing, nameTaken } from '../children.ts';
import { currentPods, olderObjects, olderPods } from '../cleanup.ts';
import type { WantedCondition } from '../conditions.ts';
import { secondsToDeadline } from '../deadlines.ts';
import type { Environment } from '../environment.ts';
import { eventsOf } from '../events.ts';
import { SETTLE_SECONDS } from '../failure.ts';
import type { ObservedFaceTrainJob } from '../observed.ts';
import type { Action } from '../plan.ts';
import type { PlanFaceTrainJob } from '../planner.ts';
import { ConditionType, Reason } from '../reasons.ts';
import { afterFailure, backingOff, failed, finished, late, stopping, suspended, type Stage } from '../stage.ts';
import { conditionsOf, lifecycle, phaseOf } from '../status.ts';
import { soonest, timestamp } from '../time.ts';
import { secondsToLive } from '../ttl.ts';
import { compact } from '../values.ts';
import { childrenOf, conflictIn, trainingDigest, type Attempt } from './children.ts';
import { gangOf } from './gang.ts';
import { findHang, progressOf, secondsToHang, type ProgressStatus } from './progress.ts';
import { afterTraining, quantizeChild, quantizeJobName } from './quantize.ts';
import { trainingSucceeded } from './success.ts';

export const planFaceTrainJob: PlanFaceTrainJob = (observed, now, environment) => {
  const { spec, status: before } = observed;
  if (isLeftAlone(observed)) return { actions: [], status: before, events: [], requeueAfterSeconds: null };

  const view = viewOf(observed, spec.trainers.replicas, now);
  const stage = stageOf(observed, view, environment);
  const ttl = stage.name === 'Succeeded' || stage.name === 'Failed' ? secondsToLive(spec.ttlSecondsAfterFinished, stage.name, before.completionTime, now) : null;
  const { status, progressDueIn } = statusOf(stage, observed, view);
  return {
    actions: ttl !== null && ttl <= 0 ? [{ type: 'deleteJob', reason: Reason.expired }] : actionsOf(stage, observed, view),
    status,
    events: eventsOf(before, status),
    requeueAfterSeconds: soonest(ttl, progressDueIn, secondsOf(stage, observed, view)),
  };
};

const OUR_NAME = 'facetrain.dev/operator';
/** Somebody may yet change what refuses the job, unseen by us. */
const REFUSED_RETRY_SECONDS = 60;

function isLeftAlone({ identity, spec }: ObservedFaceTrainJob): boolean {
  return identity.deletionTimestamp !== undefined || (spec.managedBy ?? OUR_NAME) !== OUR_NAME;
}

function stageOf(observed: ObservedFaceTrainJob, view: JobView, environment: Environment): Stage {
  return (
    finished(view) ??
    trained(observed, view) ??
    suspended(view) ??
    respecified(observed, view) ??
    failed(view) ??
    hung(observed, view) ??
    late(view) ??
    stopping(view) ??
    backingOff(view) ??
    active(observed, view, environment)
  );
}

/** Success comes before all that could end the attempt: what is done is done. */
function trained(observed: ObservedFaceTrainJob, view: JobView): Stage | null {
  const done = observed.status.trainingCompletionTime !== undefined || trainingSucceeded(observed.spec, view);
  return done ? afterTraining(observed, view) : null;
}

/** What is trained changed during a suspension that nobody saw: the pods do something else than the spec says. */
function respecified({ identity, spec, status }: ObservedFaceTrainJob, { ranks, others, attempt }: JobView): Stage | null {
  if (status.observedGeneration === identity.generation) return null;
  const digest = trainingDigest(spec);
  const changed = ranks.some((pod) => pod?.specDigest !== undefined && pod.specDigest !== digest) || others.some((pod) => pod.attempt === attempt);
  return changed ? { name: 'Replace', reason: Reason.specChanged, message: 'the spec was changed while the job was suspended' } : null;
}

function hung({ progress, spec, status }: ObservedFaceTrainJob, view: JobView): Stage | null {
  const failure = findHang(progress, spec, status, view);
  return failure && afterFailure(failure, view);
}

function active({ identity, spec, objects, podGroupApi }: ObservedFaceTrainJob, view: JobView, environment: Environment): Stage {
  const gang = gangOf(spec, podGroupApi);
  if (gang.mode === 'unavailable') return { name: 'Refused', reason: Reason.gangUnavailable, message: 'spec.gang.mode: Native; the cluster serves no scheduling.k8s.io PodGroup, so use Auto or None' };

  const context: Attempt = { job: identity, spec, attempt: view.attempt, gang, environment };
  const children = childrenOf(context);
  const create = missing(children, view, objects);
  // The QuantizeJob comes much later, but a name that it cannot have should be told before days of training.
  const taken = nameTaken([...children, ...quantizeChild(identity, spec)], objects);
  if (taken && (create.length > 0 || view.startedAt === undefined)) return { name: 'Refused', ...taken };
  const conflict = create.length > 0 ? conflictIn(context) : null;
  if (conflict !== null) return { name: 'Refused', reason: Reason.invalidSpec, message: conflict };
  return { name: 'Active', create: create.map(({ make }) => make()) };
}

function actionsOf(stage: Stage, { spec, status, objects }: ObservedFaceTrainJob, view: JobView): Action[] {
  const policy = spec.cleanPodPolicy;
  const cleanup = [...olderPods(view, policy), ...olderObjects(view, objects)];
  switch (stage.name) {
    case 'Restart':
    case 'Replace':
      return [];
    case 'Active':
      return [...cleanup, ...stage.create.map((object): Action => ({ type: 'create', object }))];
    case 'Quantizing':
      return [...stage.actions, ...(status.trainingCompletionTime === undefined ? [] : [...cleanup, ...currentPods(view, policy === 'None' ? 'Running' : policy)])];
    case 'Succeeded':
    case 'Failed':
      return status.completionTime === undefined ? [] : [...cleanup, ...currentPods(view, policy)];
    default:
      return cleanup;
  }
}

function secondsOf(stage: Stage, { progress, spec, status }: ObservedFaceTrainJob, view: JobView): number | null {
  switch (stage.name) {
    case 'Restart':
    case 'Replace':
      return 0;
    case 'Refused':
      return REFUSED_RETRY_SECONDS;
    case 'Backoff':
      return soonest((stage.until.getTime() - view.now.getTime()) / 1000, secondsToDeadline(view));
    case 'Stopping':
      return secondsToDeadline(view);
    case 'Active': {
      const settling = view.ranks.some((pod) => pod && outcomeOf(pod) === 'failed') ? SETTLE_SECONDS : null;
      return soonest(settling, secondsToDeadline(view), secondsToHang(progress, spec, status, view));
    }
    default:
      return null;
  }
}

/** The status, and how long newer progress was held back (null: none was). */
function statusOf(stage: Stage, observed: ObservedFaceTrainJob, view: JobView): { status: FaceTrainJobStatus; progressDueIn: number | null } {
  const { status: before, progress, spec } = observed;
  const { latest, dueIn } = progressOf(progress, spec, before, view);
  const held = dueIn !== null && dueIn > 0;
  const status = compose(stage, observed, view, held ? before : latest);
  if (isDeepStrictEqual(status, before)) return { status: before, progressDueIn: dueIn };
  return { status: held ? compose(stage, observed, view, latest) : status, progressDueIn: null };
}

function compose(stage: Stage, observed: ObservedFaceTrainJob, view: JobView, { progress, checkpoint, evaluations }: ProgressStatus): FaceTrainJobStatus {
  const { identity, status: before, quantizeJob } = observed;
  const trainingIsOver = stage.name === 'Quantizing' || stage.name === 'Succeeded';
  return compact<FaceTrainJobStatus>({
    ...lifecycle(stage, view),
    phase: phaseOf(stage, view),
    conditions: conditionsOf(stage, view, quantizationCondition(stage, observed)),
    trainingCompletionTime: before.trainingCompletionTime ?? (trainingIsOver ? timestamp(view.now) : undefined),
    trainers: countPods(before, view),
    progress: trainingIsOver && progress ? { ...progress, estimatedCompletionTime: undefined } : progress,
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
  if (stage.name === 'Quantizing') return [{ type, status: 'Unknown', reason: Reason.quantizing, message: 'the QuantizeJob has not ended' }];
  switch (quantizeJob?.status.phase) {
    case 'Succeeded':
      return [{ type, status: 'True', reason: Reason.succeeded, message: 'the INT7 artifact is published' }];
    case 'Failed':
      return [{ type, status: 'False', reason: Reason.quantizationFailed, message: stage.name === 'Failed' ? stage.message : 'the QuantizeJob failed' }];
    default:
      return [];
  }
}
