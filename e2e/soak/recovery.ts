/**
 * How long jobs take after a fault until they run again, and the operator until it acts again. By kind of fault, as a
 * table. Times are those of performance.now().
 */
import type { JobStatus } from '@facetrain/planner/attempt';
import { phaseOf } from './jobs.ts';

/** A job that a fault has not disturbed after this time will not be disturbed by it: nodes are given up sooner. */
const LIMIT_MILLISECONDS = 45_000;

/** What faults of one kind did. */
export interface FaultSummary {
  fault: string;
  count: number;
  /** Jobs that were disturbed and went on, or replicas that were away: each is one recovery. */
  recoveries: number;
  /** Of the recoveries; null without any. */
  medianSeconds: number | null;
  longestSeconds: number | null;
}

/** A job that a fault has hit. */
interface Hit {
  fault: string;
  uid: string;
  at: number;
  /** It does not run any more. */
  isDown: boolean;
}

type State = { phase: string | undefined; starts: number };

export class Recovery {
  readonly #counts = new Map<string, number>();
  readonly #seconds = new Map<string, number[]>();
  readonly #states = new Map<string, State>();
  /** Of the jobs, by their keys. */
  readonly #uids = new Map<string, string>();
  #hits: Hit[] = [];

  /** @param uids of the jobs that the fault has hit */
  fault(fault: string, uids: readonly string[], at: number): void {
    this.#counts.set(fault, (this.#counts.get(fault) ?? 0) + 1);
    for (const uid of new Set(uids)) {
      const state = this.#states.get(uid);
      if (state) this.#hits.push({ fault, uid, at, isDown: state.phase !== 'Running' });
    }
  }

  /** The operator has acted again, so long after the fault. */
  acted(fault: string, milliseconds: number): void {
    this.#seconds.set(fault, [...(this.#seconds.get(fault) ?? []), milliseconds / 1000]);
  }

  /** A job is not there any more. */
  deleted(key: string): void {
    const uid = this.#uids.get(key) ?? '';
    this.#uids.delete(key);
    this.#states.delete(uid);
    this.#hits = this.#hits.filter((hit) => hit.uid !== uid);
  }

  /**
   * A job has changed.
   *
   * @param key of the job, also of another one of this name later
   */
  status(key: string, uid: string, status: JobStatus, at: number): void {
    this.#uids.set(key, uid);
    const before = this.#states.get(uid);
    const phase = phaseOf(status);
    const state = { phase, starts: (status.attempt ?? 0) + (status.restarts?.inPlace ?? 0) };
    this.#states.set(uid, state);
    this.#hits = this.#hits.filter((hit) => {
      if (hit.uid !== uid) return true;
      // Who suspends a job does not wait for it.
      if (phase === 'Suspended') return false;
      if (!hit.isDown && at - hit.at > LIMIT_MILLISECONDS) return false;
      const goesOn = phase === 'Running' || phase === 'Quantizing' || phase === 'Succeeded';
      hit.isDown ||= !goesOn || state.starts > (before?.starts ?? 0);
      if (!hit.isDown || !goesOn) return true;
      this.acted(hit.fault, at - hit.at);
      return false;
    });
  }

  /** The most frequent first. */
  summary(): FaultSummary[] {
    return [...this.#counts]
      .sort(([, a], [, b]) => b - a)
      .map(([fault, count]) => {
        const seconds = (this.#seconds.get(fault) ?? []).sort((a, b) => a - b);
        return {
          fault,
          count,
          recoveries: seconds.length,
          medianSeconds: seconds[Math.floor((seconds.length - 1) / 2)] ?? null,
          longestSeconds: seconds.at(-1) ?? null,
        };
      });
  }
}
