/**
 * What a planner returns, and what it may rely on from the executor that carries a plan out.
 *
 * An executor runs the actions in order (some of them concurrently: see concurrent-actions.ts), stops at the first that
 * fails, and writes the status last. It may write the status although a patchWorkload, which comes last, has failed:
 * the next plan has that again. Then it emits the events. It may crash anywhere: the next plan is made from what
 * exists by then.
 *
 * If a create reports that the object exists, the executor's cache was stale, and the executor treats that as success.
 * The status and the pods that it passes to a planner must be at least as new as its own last write. From older ones a
 * planner could start an attempt that is already over.
 */
import type { FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import type { Environment } from './environment.ts';
import type { ChildObject, OwnerReference } from './objects.ts';
import type { ObservedFaceTrainJob, ObservedQuantizeJob } from './observed.ts';

/** A change that an executor makes. */
export type Action =
  | { type: 'create'; object: ChildObject }
  /**
   * `uid` is a precondition: another object of the same name is never deleted. `force`: grace period 0, for a lost
   * node.
   */
  | {
      type: 'delete';
      kind: ChildObject['kind'];
      /** Of a PodGroup. */
      apiVersion?: string;
      name: string;
      uid: string;
      reason: string;
      force?: true;
    }
  /**
   * Merges `spec` into the spec of a child (JSON Merge Patch, RFC 7386: lists are replaced), `labels` into its labels.
   */
  | {
      type: 'patch';
      kind: 'QuantizeJob' | 'Service' | 'NetworkPolicy';
      name: string;
      uid: string;
      spec: Record<string, unknown>;
      labels?: Record<string, string>;
    }
  /**
   * Changes the Workload of a job, if it still has this resourceVersion: Kueue writes the same lists. `status` is
   * merged into its status (RFC 7386), `finalizers` and `ownerReferences` replace its own, `labels` are merged into
   * them.
   */
  | {
      type: 'patchWorkload';
      kind: 'Workload';
      name: string;
      uid: string;
      resourceVersion: string;
      reason: string;
      status?: Record<string, unknown>;
      finalizers?: string[];
      ownerReferences?: OwnerReference[];
      labels?: Record<string, string>;
    }
  /** Deletes the job itself, at the end of ttlSecondsAfterFinished. */
  | { type: 'deleteJob'; reason: string };

/** A Kubernetes event about the job. */
export interface PlanEvent {
  type: 'Normal' | 'Warning';
  reason: string;
  message: string;
}

/** What to do next about a job. */
export interface Plan<Status> {
  actions: Action[];
  /** The status to write. It is the observed object itself when nothing has to be written. */
  status: Status;
  /** To emit once the status is written. */
  events: PlanEvent[];
  /**
   * Plan again after this many seconds even if no change is observed; null: only after a change. Of the timers that run
   * already: when a new status is written, which may start others, plan again at once.
   */
  requeueAfterSeconds: number | null;
}

/** Plans a FaceTrainJob. Pure: no clock, no randomness, no I/O. The same arguments give the same plan. */
export type PlanFaceTrainJob = (
  observed: ObservedFaceTrainJob,
  now: Date,
  environment: Environment,
) => Plan<FaceTrainJobStatus>;

/** Plans a QuantizeJob; pure as well. */
export type PlanQuantizeJob = (
  observed: ObservedQuantizeJob,
  now: Date,
  environment: Environment,
) => Plan<QuantizeJobStatus>;
