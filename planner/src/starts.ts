/** A pod as it is in the present start of its gang: container-restarts.ts. */
import type { ObservedPod } from './observed.ts';
import { secondsSince } from './time.ts';

/** Exit code of a program that SIGKILL ended: 128 + 9. */
export const KILLED = 137;

/**
 * Seconds in which the kubelet starts a container again: it takes one to three. Where images are always pulled, a
 * registry that is away can hold it up.
 */
export const RESTART_SECONDS = 30;

/**
 * @param pod that goes on: what ended another is said by its own status
 * @param counted how many restarts of the gang in its pods are counted
 * @returns the pod with the end of its program in this start, if it has ended
 */
export function inPresentStart(pod: ObservedPod, counted: number, now: Date): ObservedPod {
  if (!pod.containerRestarts) return pod;
  const { count, lastEnd, isRunning, isGone } = pod.containerRestarts;
  // It runs on, and has to lose its peers first; or the end of the pod follows, with the reason.
  if (count < counted || isGone) return { ...pod, ready: false };
  if (pod.exitCode !== undefined || lastEnd === undefined) return pod;
  if (count > counted) return { ...pod, ...lastEnd, ready: false, restarted: true };
  const isLate =
    !isRunning && lastEnd.finishedAt !== undefined && secondsSince(lastEnd.finishedAt, now) >= RESTART_SECONDS;
  return isLate ? { ...pod, ...lastEnd, ready: false } : pod;
}
