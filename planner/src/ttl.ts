/** When a finished job is deleted, by how it ended. */
import type { JobView } from './attempt.ts';
import type { Stage } from './stage.ts';
import { secondsSince } from './time.ts';

interface TimeToLive {
  succeeded?: number | undefined;
  failed?: number | undefined;
}

/** Seconds left to a finished job, 0 or less when it is to go; null: it stays. */
export function secondsToLive(stage: Stage, ttl: TimeToLive | undefined, { status, now }: JobView): number | null {
  const seconds = stage.name === 'Succeeded' ? ttl?.succeeded : stage.name === 'Failed' ? ttl?.failed : undefined;
  return seconds === undefined || status.completionTime === undefined
    ? null
    : seconds - secondsSince(status.completionTime, now);
}
