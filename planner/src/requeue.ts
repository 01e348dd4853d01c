/** When to plan again without an observed change: at the end of the first timer that runs in a stage. */
import { type JobView, outcomeOf, secondsToNodeLoss, secondsToPodLoss } from './attempt.ts';
import { secondsToCleanup } from './cleanup.ts';
import { secondsToStart } from './container-restarts.ts';
import { secondsToDeadline } from './deadlines.ts';
import { ROOT_CAUSE_WAIT_SECONDS } from './failure.ts';
import type { Stage } from './stage.ts';
import { soonest } from './time.ts';

/** An executor may plan a job when another one gives up what it waits for; this is for what it does not notice. */
const WAITING_RETRY_SECONDS = 5;
/** The cause of a refusal (a webhook, an object of another owner) may end without an observed change. */
const REFUSED_RETRY_SECONDS = 30;
/** A quota is free again when any pod of the namespace ends. */
const QUOTA_RETRY_SECONDS = 15;

/** @returns null if no timer runs */
export const secondsToNextPlan = (stage: Stage, view: JobView): number | null =>
  soonest(secondsToNodeLoss(view), secondsInStage(stage, view));

function secondsInStage(stage: Stage, view: JobView): number | null {
  switch (stage.name) {
    case 'Blocked':
      return soonest(REFUSED_RETRY_SECONDS, secondsToDeadline(view), secondsToCleanup(view));
    case 'Waiting':
      return soonest(
        stage.until ? secondsUntil(stage.until, view.now) : stage.refusal ? QUOTA_RETRY_SECONDS : WAITING_RETRY_SECONDS,
        secondsToDeadline(view),
      );
    case 'Backoff':
      return soonest(secondsUntil(stage.until, view.now), secondsToDeadline(view));
    case 'Stopping':
      return soonest(secondsToDeadline(view), secondsToCleanup(view));
    case 'Active': {
      const rootCauseWait = view.ranks.some((pod) => pod && outcomeOf(pod) === 'failed')
        ? ROOT_CAUSE_WAIT_SECONDS
        : null;
      return soonest(rootCauseWait, secondsToStart(view), secondsToPodLoss(view), secondsToDeadline(view));
    }
    default:
      return secondsToCleanup(view);
  }
}

const secondsUntil = (time: Date, now: Date): number => (time.getTime() - now.getTime()) / 1000;
