/**
 * Plans a QuantizeJob: a gang of one rank, which publishes an artifact.
 *
 *   Pending -> Running -> (Restarting -> Running)* -> Succeeded | Failed
 *
 * Suspended can follow any phase except Succeeded and Failed. The plan first decides the stage: the first check in
 * `stageOf` that returns one. Actions, status and events follow from it.
 */
import { isDeepStrictEqual } from 'node:util';
import type { QuantizeJobStatus, QuantizePhase } from '@facetrain/api';
import { actionsOf } from '../actions.ts';
import { isIgnored, type JobView, outcomeOf, viewOf } from '../attempt.ts';
import { blockedBy, findBlocker, missingChildren } from '../children.ts';
import type { Environment } from '../environment.ts';
import { eventsOf } from '../job-events.ts';
import { managedActions, managedStage, managedStatus, withoutPods } from '../multikueue.ts';
import type { ObservedQuantizeJob } from '../observed.ts';
import { compact } from '../plain-data.ts';
import type { PlanQuantizeJob } from '../plan.ts';
import { toleratesNodeLoss } from '../pod.ts';
import {
  awaitAdmission,
  evicted,
  labelBlocker,
  placementOf,
  queueBlocker,
  workloadChildren,
  workloadUpdates,
} from '../queue.ts';
import { Reason } from '../reasons.ts';
import { secondsToNextPlan } from '../requeue.ts';
import {
  backingOff,
  deadlineExceeded,
  failed,
  finished,
  hasBegun,
  type Stage,
  specChanged,
  stopping,
  suspended,
} from '../stage.ts';
import { conditionsOf, lifecycleOf, phaseOf } from '../status.ts';
import { soonest } from '../time.ts';
import { secondsToLive } from '../ttl.ts';
import { type Attempt, childrenOf, findConflict, quantizationDigest, queuedGang } from './quantizer-objects.ts';

/** The planner of QuantizeJobs: see `PlanQuantizeJob` in plan.ts. */
export const planQuantizeJob: PlanQuantizeJob = (observed, now, environment) => {
  const { spec, status: before } = observed;
  if (isIgnored(observed)) {
    const gang = () => queuedGang({ job: observed.identity, spec, attempt: 0, environment });
    const actions = managedActions('QuantizeJob', observed, gang, now);
    const idle = { ...observed, pods: [], status: withoutPods(before) };
    const view = viewOf('QuantizeJob', idle, 1, now, false);
    const stage = managedStage(observed, view, gang);
    return { actions, ...managedStatus(before, stage && statusOf(stage, idle, view)) };
  }

  const view = viewOf('QuantizeJob', observed, 1, now, toleratesNodeLoss(spec.quantizer.podTemplate));
  const stage = stageOf(observed, view, environment);
  const status = statusOf(stage, observed, view);
  const isOver = before.completionTime !== undefined;
  const ttl = secondsToLive(stage, spec.ttlSecondsAfterFinished, view);
  return {
    actions:
      ttl !== null && ttl <= 0
        ? [{ type: 'deleteJob', reason: Reason.expired }]
        : [
            ...actionsOf(stage, view, observed, 'Running', isOver),
            ...workloadUpdates(stage, view, spec.queue, 1, observed.queue, isOver),
          ],
    status,
    events: eventsOf(before, status),
    requeueAfterSeconds: soonest(ttl, secondsToNextPlan(stage, view)),
  };
};

function stageOf(observed: ObservedQuantizeJob, view: JobView, environment: Environment): Stage {
  return (
    finished(view) ??
    published(view) ??
    suspended(view) ??
    specChanged(quantizationDigest(observed.spec), view, observed.objects) ??
    evicted(view, observed.spec.queue, observed.queue) ??
    failed(view) ??
    deadlineExceeded(view) ??
    stopping(view) ??
    backingOff(view) ??
    active(observed, view, environment)
  );
}

/** Checked before everything that could end the attempt: an artifact is never published twice. */
function published({ ranks: [pod] }: JobView): Stage | null {
  return pod && outcomeOf(pod) === 'succeeded'
    ? { name: 'Succeeded', message: 'the INT7 artifact is published' }
    : null;
}

function active(
  { identity, spec, objects, refused, predecessorPods, jobsBefore = [], queue }: ObservedQuantizeJob,
  view: JobView,
  environment: Environment,
): Stage {
  const placement = spec.queue && queue && placementOf(queue);
  const attempt: Attempt = { job: identity, spec, attempt: view.attempt, environment, ...(placement && { placement }) };
  const children = childrenOf(attempt);
  const create = missingChildren(children, view, objects);
  const gang = create.some(({ rank }) => rank !== undefined) ? queuedGang(attempt) : null;
  const workload = workloadChildren(view, gang, queue);
  const blocker =
    findBlocker({
      create: [...workload, ...create],
      reserved: [...workload, ...children],
      objects,
      refused,
      predecessorPods,
      jobsBefore: hasBegun(view) ? [] : jobsBefore,
      findConflict: () => findConflict(attempt),
    }) ??
    labelBlocker(view, spec.queue, queue) ??
    queueBlocker(gang, queue);
  if (blocker) return blockedBy(blocker);
  return awaitAdmission(view, gang, queue) ?? { name: 'Active', create: create.map(({ make }) => make()) };
}

function statusOf(stage: Stage, { spec, status: before }: ObservedQuantizeJob, view: JobView): QuantizeJobStatus {
  const published = view.ranks[0]?.result?.artifact;
  const status = compact<QuantizeJobStatus>({
    ...lifecycleOf(stage, view),
    phase: phaseOf(stage, view) as QuantizePhase,
    conditions: conditionsOf(stage, view),
    artifact:
      stage.name === 'Succeeded'
        ? published
          ? { uri: spec.output.uri, ...published }
          : (before.artifact ?? { uri: spec.output.uri })
        : before.artifact,
  } as QuantizeJobStatus);
  return isDeepStrictEqual(status, before) ? before : status;
}
