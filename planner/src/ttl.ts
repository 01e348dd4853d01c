/** When a finished job is deleted: ttlSecondsAfterFinished, by its outcome. */
import type { JobView } from './attempt.ts';
import type { Stage } from './stage.ts';
import { secondsSince } from './time.ts';

interface TimeToLive {
  succeeded?: number | undefined;
  failed?: number | undefined;
}

/** Seconds until a finished job is deleted; 0 or less if that is due; null if the job is not to be deleted. */
export function secondsToLive(stage: Stage, ttl: TimeToLive | undefined, { status, now }: JobView): number | null {
  const seconds = stage.name === 'Succeeded' ? ttl?.succeeded : stage.name === 'Failed' ? ttl?.failed : undefined;
  return seconds === undefined || status.completionTime === undefined
    ? null
    : seconds - secondsSince(status.completionTime, now);
}
