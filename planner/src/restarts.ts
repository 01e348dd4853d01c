/**
 * How often a job may restart, and how soon.
 *
 * At most maxRestarts counted restarts lie within windowSeconds. The next attempt starts at once after the first
 * counted restart in the window, 10 s after the second, then 20 s, 40 s and so on, at most 300 s. After a restart that
 * is not counted it starts after 5 s, which limits the rate if every attempt is preempted at once.
 */
import { type FailurePolicy, MAX_RESTART_MESSAGE, type Restarts } from '@facetrain/api';
import { actionFor, type Failure } from './failure.ts';
import { truncate } from './plain-data.ts';
import { Reason } from './reasons.ts';
import { secondsSince, timestamp } from './time.ts';

const BASE_DELAY_SECONDS = 10;
const MAX_DELAY_SECONDS = 300;
const UNCOUNTED_DELAY_SECONDS = 5;

/** `restarts`: the status after the restart. */
export type RestartDecision =
  | { action: 'restart'; restarts: Restarts }
  | { action: 'fail'; reason: string; message: string };

/** Applies the failure policy. `restarts` are those of the status, before this failure. */
export function decideRestart(
  failure: Failure,
  policy: FailurePolicy,
  restarts: Restarts | undefined,
  now: Date,
): RestartDecision {
  const { action, rule } = actionFor(failure, policy);
  const message = rule === undefined ? failure.message : `${failure.message} (rule ${rule})`;
  if (action === 'FailJob') return { action: 'fail', reason: failure.reason, message };

  const recent = (restarts?.countedTimes ?? []).filter((time) => secondsSince(time, now) < policy.windowSeconds);
  const counted = action === 'Restart';
  if (counted && recent.length >= policy.maxRestarts) {
    const allowance = `maxRestarts ${policy.maxRestarts} within ${policy.windowSeconds} s is used up`;
    return {
      action: 'fail',
      reason: Reason.maxRestarts,
      message: `${allowance}; at last ${failure.reason}: ${message}`,
    };
  }
  const time = timestamp(now);
  return {
    action: 'restart',
    restarts: {
      count: (restarts?.count ?? 0) + (counted ? 1 : 0),
      countedTimes: counted ? [...recent, time] : recent,
      disruptions: (restarts?.disruptions ?? 0) + (counted ? 0 : 1),
      lastReason: failure.reason,
      lastMessage: truncate(message, MAX_RESTART_MESSAGE),
      ...(failure.exitCode !== undefined && { lastExitCode: failure.exitCode }),
      ...(failure.rank !== undefined && { lastRank: failure.rank }),
      ...(failure.node !== undefined && { lastNode: failure.node }),
      lastTime: time,
    },
  };
}

/** When the next attempt may start; null if there was no restart. */
export function backoffEnd(restarts: Restarts | undefined): Date | null {
  if (restarts?.lastTime === undefined) return null;
  return new Date(Date.parse(restarts.lastTime) + 1000 * delaySeconds(restarts));
}

function delaySeconds({ countedTimes, lastTime }: Restarts): number {
  if (countedTimes.at(-1) !== lastTime) return UNCOUNTED_DELAY_SECONDS;
  return countedTimes.length < 2 ? 0 : Math.min(BASE_DELAY_SECONDS * 2 ** (countedTimes.length - 2), MAX_DELAY_SECONDS);
}
