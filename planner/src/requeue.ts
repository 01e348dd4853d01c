/** When to look again although nothing is seen to change: for every clock that runs in a stage. */
import { type JobView, outcomeOf } from './attempt.ts';
import { secondsToCleanup } from './cleanup.ts';
import { secondsToDeadline } from './deadlines.ts';
import { ROOT_CAUSE_WAIT_SECONDS } from './failure.ts';
import type { Stage } from './stage.ts';
import { soonest } from './time.ts';

/** Objects that nobody watches for this job may go, unseen by us. */
const WAITING_RETRY_SECONDS = 5;
/** Somebody may yet change what refuses the job, unseen by us. */
const REFUSED_RETRY_SECONDS = 60;

export function secondsToNextPlan(stage: Stage, view: JobView): number | null {
  switch (stage.name) {
    case 'Refused':
      return soonest(REFUSED_RETRY_SECONDS, secondsToDeadline(view), secondsToCleanup(view));
    case 'Waiting':
      return soonest(WAITING_RETRY_SECONDS, secondsToDeadline(view));
    case 'Backoff':
      return soonest((stage.until.getTime() - view.now.getTime()) / 1000, secondsToDeadline(view));
    case 'Stopping':
      return soonest(secondsToDeadline(view), secondsToCleanup(view));
    case 'Active': {
      const settles = view.ranks.some((pod) => pod && outcomeOf(pod) === 'failed') ? ROOT_CAUSE_WAIT_SECONDS : null;
      return soonest(settles, secondsToDeadline(view));
    }
    default:
      return secondsToCleanup(view);
  }
}
