/**
 * How often a job may restart, and how soon.
 *
 * At most maxRestarts counted restarts lie within windowSeconds. Restarts that are not counted have no maximum.
 *
 * A gang stands still while it waits, so the next attempt starts at once after a restart that stands alone. Only
 * restarts in a row wait, since they show that the cause has stayed: 10 s after the second counted restart, then 20 s,
 * 40 s and so on; 5 s after the second that is not counted, then 10 s, 20 s and so on; at most 300 s. A row of counted
 * restarts ends where ten minutes lie between two of them, a row of others with an attempt that lasts for ten minutes.
 *
 * A loss that is not finite comes again at the same step: a restart repeats the same steps with the same numbers,
 * unless the cause was outside them (a broken GPU, for example). So it has one more try, and no third.
 */
import { type FailurePolicy, MAX_RESTART_MESSAGE, type Restarts } from '@facetrain/api';
import { actionFor, type Failure } from './failure.ts';
import { truncate } from './plain-data.ts';
import { Reason } from './reasons.ts';
import { secondsSince, timestamp } from './time.ts';

const BASE_DELAY_SECONDS = 10;
const MAX_DELAY_SECONDS = 300;
const UNCOUNTED_DELAY_SECONDS = 5;
/** The length of an attempt that ends a row of restarts. Kubernetes resets its backoffs after the same time. */
const ROW_END_SECONDS = 600;

/** `restarts`: the status after the restart. */
export type RestartDecision =
  | { action: 'restart'; restarts: Restarts }
  | { action: 'fail'; reason: string; message: string };

/**
 * Applies the failure policy.
 *
 * @param restarts those of the status, before this failure
 * @param startedAt when the attempt that failed was created; undefined: its pods were not all created yet
 * @param times for how many restarts the failure stands, if they count
 */
export function decideRestart(
  failure: Failure,
  policy: FailurePolicy,
  restarts: Restarts | undefined,
  now: Date,
  startedAt?: string,
  times = 1,
): RestartDecision {
  const { action, rule, isDefault } = actionFor(failure, policy);
  const message = rule === undefined ? failure.message : `${failure.message} (rule ${rule})`;
  if (action === 'FailJob') return { action: 'fail', reason: failure.reason, message };
  if (isDefault && failure.step !== undefined && failure.step === restarts?.lastNotANumberStep)
    return {
      action: 'fail',
      reason: failure.reason,
      message: `${message}; a restart has come to the same step and value`,
    };

  const recent = (restarts?.countedTimes ?? []).filter((time) => secondsSince(time, now) < policy.windowSeconds);
  const counted = action === 'Restart';
  if (counted && recent.length + times > policy.maxRestarts) {
    const allowance = `maxRestarts ${policy.maxRestarts} within ${policy.windowSeconds} s is used up`;
    return {
      action: 'fail',
      reason: Reason.maxRestarts,
      message: `${allowance}; at last ${failure.reason}: ${message}`,
    };
  }
  const time = timestamp(now);
  const rowBefore =
    startedAt !== undefined && secondsSince(startedAt, now) >= ROW_END_SECONDS ? 0 : (restarts?.disruptionsInRow ?? 0);
  const notANumberStep = failure.step ?? restarts?.lastNotANumberStep;
  return {
    action: 'restart',
    restarts: {
      count: (restarts?.count ?? 0) + (counted ? times : 0),
      countedTimes: counted ? [...recent, ...Array.from({ length: times }, () => time)] : recent,
      disruptions: (restarts?.disruptions ?? 0) + (counted ? 0 : 1),
      ...(restarts?.inPlace !== undefined && { inPlace: restarts.inPlace }),
      ...(!counted && { disruptionsInRow: rowBefore + 1 }),
      ...(notANumberStep !== undefined && { lastNotANumberStep: notANumberStep }),
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

function delaySeconds({ countedTimes, lastTime, disruptionsInRow = 1 }: Restarts): number {
  return countedTimes.at(-1) === lastTime
    ? growing(BASE_DELAY_SECONDS, rowLength(countedTimes))
    : growing(UNCOUNTED_DELAY_SECONDS, disruptionsInRow);
}

/** The number of counted restarts in the row that the last one ends. */
function rowLength(times: string[]): number {
  const before = times.findLastIndex(
    (time, index) => index > 0 && secondsSince(times[index - 1]!, new Date(time)) >= ROW_END_SECONDS,
  );
  return times.length - Math.max(before, 0);
}

/** The delay after the last restart of a row. */
const growing = (seconds: number, inRow: number): number =>
  inRow < 2 ? 0 : Math.min(seconds * 2 ** (inRow - 2), MAX_DELAY_SECONDS);
