/** Progress of rank 0, as the planners read it. */
import type { Progress } from '@facetrain/api';
import type { ObservedProgress } from './observed.ts';

/** Converts the progress that rank 0 serves at /v1/progress: null becomes absent. */
export function observedProgress({
  job,
  waitsFor,
  step,
  totalSteps,
  epoch,
  imagesPerSecond,
  loss,
  etaSeconds,
  evaluations,
  checkpoint,
  setAside,
  activity,
}: Progress): ObservedProgress {
  return {
    attempt: job.attempt,
    ...(waitsFor !== undefined && { waitsFor }),
    step,
    totalSteps,
    epoch,
    ...(imagesPerSecond !== null && { imagesPerSecond }),
    ...(loss !== null && { loss }),
    ...(etaSeconds !== null && { etaSeconds }),
    evaluations,
    ...(checkpoint && { checkpoint }),
    ...(setAside && { setAside }),
    activity,
  };
}
