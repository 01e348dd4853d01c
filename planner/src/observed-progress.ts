/** Progress of rank 0, in the form that the planners read. */
import type { Progress } from '@facetrain/api';
import type { ObservedProgress } from './observed.ts';

/** What rank 0 served at /v1/progress, as a planner is shown it. */
export function observedProgress({
  job,
  step,
  totalSteps,
  epoch,
  imagesPerSecond,
  loss,
  etaSeconds,
  evaluations,
  checkpoint,
  activity,
}: Progress): ObservedProgress {
  return {
    attempt: job.attempt,
    step,
    totalSteps,
    epoch,
    ...(imagesPerSecond !== null && { imagesPerSecond }),
    ...(loss !== null && { loss }),
    ...(etaSeconds !== null && { etaSeconds }),
    evaluations,
    ...(checkpoint && { checkpoint }),
    activity,
  };
}
