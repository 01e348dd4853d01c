/** When a finished job is deleted, by how it ended. */
import { secondsSince } from './time.ts';

export interface TimeToLive {
  succeeded?: number | undefined;
  failed?: number | undefined;
}

/** Seconds left to a finished job, 0 or less when it is to go; null: it stays. */
export function secondsToLive(ttl: TimeToLive | undefined, outcome: 'Succeeded' | 'Failed', completionTime: string | undefined, now: Date): number | null {
  const seconds = outcome === 'Succeeded' ? ttl?.succeeded : ttl?.failed;
  return seconds === undefined || completionTime === undefined ? null : seconds - secondsSince(completionTime, now);
}
