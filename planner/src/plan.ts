/**
 * What a planner answers, and nothing about how it is carried out.
 *
 * `plan(observed, now)` is pure. An executor runs the actions in order (some of them together: `together.ts`), stops at the first that fails, and writes the status last; then it emits the events. It may crash anywhere: the next plan, made from
 * what is really there, goes on.
 * An executor that finds a created object already there (its cache was stale) takes that for success. The status and the pods it shows a
 * planner must be at least as new as what it last wrote itself: from older ones an attempt could be made that is over.
 */
import type { ChildObject } from './objects.ts';

export type Action =
  | { type: 'create'; object: ChildObject }
  /** `uid` is a precondition: never delete a namesake. `force`: without waiting for a node that answers nobody. */
  | {
      type: 'delete';
      kind: 'Pod' | 'PodGroup' | 'ConfigMap' | 'NetworkPolicy';
      name: string;
      uid: string;
      reason: string;
      force?: true;
    }
  /** Merges `spec` into that of a child (RFC 7386: lists are replaced), and `labels` into its labels. */
  | {
      type: 'patch';
      kind: 'QuantizeJob' | 'Service' | 'NetworkPolicy';
      name: string;
      uid: string;
      spec: Record<string, unknown>;
      labels?: Record<string, string>;
    }
  /** The job itself, when its time to live is over. */
  | { type: 'deleteJob'; reason: string };

export interface PlanEvent {
  type: 'Normal' | 'Warning';
  reason: string;
  message: string;
}

export interface Plan<Status> {
  actions: Action[];
  /** The status to write; deeply equal to the observed one when there is nothing to write. */
  status: Status;
  /** To emit after the status was written. */
  events: PlanEvent[];
  /** Plan again after this long even if nothing is seen to change; null: only when something changes. */
  requeueAfterSeconds: number | null;
}
