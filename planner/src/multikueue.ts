/**
 * Jobs that MultiKueue (sigs.k8s.io/kueue) sends to another cluster, by its adapter for external frameworks
 * (pkg/controller/admissionchecks/multikueue).
 *
 * On the manager cluster a job has `managedBy: kueue.x-k8s.io/multikueue`. The operator makes its Workload there and
 * nothing else. MultiKueue copies the Workload to the worker clusters. Where it is admitted first, it makes the job,
 * without `managedBy` and with a label that names the Workload (PREBUILT_LABEL): the operator of that cluster adopts
 * the Workload instead of making one (queue.ts). The status of the job is copied back, as a whole, so the operator of
 * the manager writes none but while there is no job on a worker: then it says why (managedStage).
 *
 * | on the manager | the Workload |
 * | --- | --- |
 * | absent | is made |
 * | asks for other pods than the job, without quota | is made anew |
 * | evicted, and the job has no pods any more by its copied status | gives its quota back |
 * | the job is suspended | is deleted: MultiKueue deletes the job on the worker, whose pods write a checkpoint |
 * | the job is over, and MultiKueue has written Finished | loses the finalizer |
 */
import { isDeepStrictEqual } from 'node:util';
import type { JobStatus, JobView } from './attempt.ts';
import { blockedBy } from './children.ts';
import { findCondition } from './conditions.ts';
import { eventsOf } from './job-events.ts';
import type { JobKind } from './names.ts';
import type { JobIdentity, ObservedQueue } from './observed.ts';
import type { Action, Plan } from './plan.ts';
import { awaitAdmission, isForOtherPods, labelBlocker, queueBlocker } from './queue.ts';
import { ConditionType, Reason } from './reasons.ts';
import type { Stage } from './stage.ts';
import {
  conditionOf,
  deletion,
  holds,
  makeWorkload,
  patchOf,
  type QueuedGang,
  release,
  returnedQuota,
} from './workload.ts';

/** `managedBy` of a job that MultiKueue sends elsewhere (apis/kueue/v1beta2, MultiKueueControllerName). */
export const MULTIKUEUE = 'kueue.x-k8s.io/multikueue';

/** On a job that MultiKueue has made: the name of its Workload (pkg/controller/constants, PrebuiltWorkloadLabel). */
export const PREBUILT_LABEL = 'kueue.x-k8s.io/prebuilt-workload-name';

/** A job of the manager cluster. */
interface ManagedJob {
  identity: JobIdentity;
  spec: { managedBy?: string | undefined; suspend: boolean };
  status: JobStatus;
  queue?: ObservedQueue;
}

/**
 * Why a job of the manager cluster runs on no worker. null: it may, or another controller manages it, and its status is
 * not ours to write.
 *
 * MultiKueue copies no status while the Workload has no quota or is gone, nor before its admission check is Ready, when
 * it makes the job on the worker.
 *
 * @param view without what the copied status says of pods
 */
export function managedStage({ spec, queue }: ManagedJob, view: JobView, gang: () => QueuedGang | null): Stage | null {
  if (spec.managedBy !== MULTIKUEUE || view.identity.deletionTimestamp !== undefined) return null;
  if (queue?.workloads !== 'Listed' || view.status.completionTime !== undefined) return null;
  const { workload } = queue;
  if (spec.suspend) return workload === undefined ? { name: 'Suspended' } : null;
  const maySend = workload !== undefined && holds(workload, 'QuotaReserved');
  const isSent =
    maySend && (holds(workload, 'Evicted') || holds(workload, 'Admitted') || workload.checks.some(isReady));
  if (isSent || (workload && holds(workload, 'Finished'))) return null;
  const wanted = gang();
  const blocker = labelBlocker(view, wanted?.queue, queue) ?? queueBlocker(wanted, queue);
  if (blocker) return blockedBy(blocker);
  const wait = awaitAdmission(view, wanted, queue);
  return wait?.name === 'Queued' ? { ...wait, actions: [] } : wait;
}

const isReady = ({ state }: { state: string }): boolean => state === 'Ready';

/** The copied status of a job that runs on no worker any more. */
export function withoutPods<Status extends JobStatus>({ attemptStartTime: _, ...status }: Status) {
  return status as Omit<Status, 'attemptStartTime'>;
}

/** The part of a plan that says what `managedStage` has found. @param status of that stage; null: it found nothing */
export function managedStatus<Status extends JobStatus>(
  before: Status,
  status: Status | null,
): Omit<Plan<Status>, 'actions'> {
  if (status === null || isDeepStrictEqual(status, before))
    return { status: before, events: [], requeueAfterSeconds: null };
  return { status, events: eventsOf(before, status), requeueAfterSeconds: null };
}

/**
 * What is done for a job that another controller manages.
 *
 * @param gang what the job would run here
 */
export function managedActions(
  kind: JobKind,
  { identity, spec, status, queue }: ManagedJob,
  gang: () => QueuedGang | null,
  now: Date,
): Action[] {
  if (spec.managedBy !== MULTIKUEUE || identity.deletionTimestamp !== undefined || queue?.workloads !== 'Listed')
    return [];
  const { workload } = queue;
  if (workload?.deleting) return release(workload, Reason.attemptOver);
  if (spec.suspend) return workload ? [deletion(workload, Reason.notWanted)] : [];
  if (status.completionTime !== undefined)
    return workload && holds(workload, 'Finished') ? release(workload, Reason.over) : [];
  const wanted = gang();
  if (wanted === null || queue.problem !== undefined) return [];
  if (workload === undefined)
    return [{ type: 'create', object: makeWorkload({ kind, identity }, wanted, queue.priority) }];
  const isReserved = holds(workload, 'QuotaReserved');
  if (!isReserved && isForOtherPods(wanted, queue, workload)) return [deletion(workload, Reason.specChanged)];
  const eviction = conditionOf(workload, 'Evicted');
  if (eviction?.status !== 'True' || !isReserved || mayHavePods(status)) return [];
  return [patchOf(workload, Reason.queueEvicted, { status: returnedQuota(workload, { now }, eviction) })];
}

/** Whether the job has pods on a worker cluster, as far as its copied status says. */
function mayHavePods({ attemptStartTime, conditions }: JobStatus): boolean {
  const reason = findCondition(conditions, ConditionType.ready)?.reason;
  return attemptStartTime !== undefined || reason === Reason.stopping || reason === Reason.queueEvicted;
}
