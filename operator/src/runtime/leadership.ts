/**
 * The right to write, which a replica has from its election until its Lease may be another's.
 *
 * Every request of the part of the operator that acts goes through a client that this guards (Client.guardedBy). The
 * guard ends it in two ways. Its signal aborts requests under way and waits between tries when the loss is noticed. And
 * each request is checked against the clock at the moment in which it is written to its connection: a process that was
 * stopped (SIGSTOP, a paused virtual machine, a starved node) may run other callbacks before the timer that would
 * notice.
 *
 * The leadership is valid for renewDeadlineSeconds after the last successful renewal *began*. Others take the Lease
 * leaseDurationSeconds, which is longer, after they saw that renewal, which is later than its beginning.
 */
import type { Guard } from './client.ts';

/** The process no longer leads, or has never led: it must write nothing, and end. */
export class LeadershipLost extends Error {
  override readonly name = 'LeadershipLost';
}

/** A point in time by two clocks, in milliseconds. */
export interface Moment {
  /** Never goes back, but may stand still while the machine is suspended (CLOCK_MONOTONIC). */
  monotonic: number;
  /** Is set right after a suspension, and may jump. */
  wall: number;
}

export type Clock = () => Moment;
export const systemClock: Clock = () => ({ monotonic: performance.now(), wall: Date.now() });

export class Leadership implements Guard {
  readonly #over = new AbortController();
  readonly #clock: Clock;
  /** Longest time after a renewal, in milliseconds; Infinity without election. */
  readonly #limit: number;
  /** When the last renewal began; null: not elected yet. */
  #renewedAt: Moment | null;

  private constructor(limit: number, renewedAt: Moment | null, clock: Clock) {
    this.#limit = limit;
    this.#renewedAt = renewedAt;
    this.#clock = clock;
  }

  /** Of a replica that takes part in an election. It may write nothing before it is elected. */
  static byElection(renewDeadlineSeconds: number, clock: Clock = systemClock): Leadership {
    return new Leadership(1000 * renewDeadlineSeconds, null, clock);
  }

  /** Of the only replica there is: it leads from the start. */
  static withoutElection(): Leadership {
    return new Leadership(Infinity, systemClock(), systemClock);
  }

  /** Aborts when the leadership is over; its reason is a LeadershipLost. */
  get signal(): AbortSignal {
    return this.#over.signal;
  }

  get now(): Moment {
    return this.#clock();
  }

  /** Milliseconds until the leadership ends unless it is renewed; 0: it is over, or has not begun. */
  get millisecondsLeft(): number {
    if (this.#over.signal.aborted || this.#renewedAt === null) return 0;
    return Math.max(0, this.#limit - elapsed(this.#renewedAt, this.#clock()));
  }

  /** The Lease was taken or renewed by a request that began at this moment. */
  renewed(begun: Moment): void {
    this.#renewedAt = begun;
  }

  /** Ends the leadership for good. */
  end(cause: string): void {
    if (!this.#over.signal.aborted) this.#over.abort(new LeadershipLost(cause));
  }

  /** @throws LeadershipLost unless this replica leads at this moment */
  check(): void {
    if (this.#renewedAt === null && !this.#over.signal.aborted)
      throw new LeadershipLost('this replica has not been elected');
    if (this.millisecondsLeft > 0) return;
    this.end(`the lease was not renewed for ${this.#limit / 1000} s`);
    throw this.#over.signal.reason;
  }
}

/**
 * The longer of the times that have passed by both clocks. Each misses something: the one a suspension, the other a
 * clock that is set back. A clock that is set forward ends a leadership without need, and the pod starts again.
 */
const elapsed = (from: Moment, to: Moment): number => Math.max(to.monotonic - from.monotonic, to.wall - from.wall);
