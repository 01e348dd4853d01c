/** What is deleted once an attempt is over. Only what the status already calls over: the evidence was used. */
import { isAlive, type JobView, outcomeOf } from './attempt.ts';
import { attemptName } from './names.ts';
import type { ObservedObject, ObservedPod } from './observed.ts';
import type { Action } from './plan.ts';
import { Reason } from './reasons.ts';
import { secondsSince, soonest } from './time.ts';

export type CleanPodPolicy = 'All' | 'Running' | 'None';

/** A kubelet tells the end of a program some moments before that of its pod, unless helper containers go on. A pod that is deleted in between takes its log along. */
const POD_END_SECONDS = 5;

/** How long the end of a pod may still be waited for, its program having ended; null: it has ended, or has to be ended. */
function secondsToPodEnd(pod: ObservedPod, now: Date): number | null {
  if (
    !isAlive(pod) ||
    pod.deleting ||
    pod.lostNode !== undefined ||
    outcomeOf(pod) === null ||
    pod.finishedAt === undefined
  )
    return null;
  const age = secondsSince(pod.finishedAt, now);
  return age >= 0 && age < POD_END_SECONDS ? POD_END_SECONDS - age : null;
}

/** Seconds until a pod whose end was waited for is ended. */
export const secondsToCleanup = ({ ranks, otherPods, now }: JobView): number | null =>
  soonest(...[...ranks, ...otherPods].map((pod) => (pod === undefined ? null : secondsToPodEnd(pod, now))));

const mustBeStopped = (pod: ObservedPod, now: Date): boolean => isAlive(pod) && secondsToPodEnd(pod, now) === null;

/** Pods of earlier attempts. Those that ended stay for their logs, but of the last attempt alone, or a job that restarts often would fill the cluster. */
export function deleteOlderPods(view: JobView, policy: CleanPodPolicy): Action[] {
  return view.otherPods
    .filter((pod) => mustBeStopped(pod, view.now) || policy === 'All' || pod.attempt < view.attempt - 1)
    .flatMap(deletePod);
}

/** Pods of the current attempt, when it was the last. */
export function deleteCurrentPods(view: JobView, policy: CleanPodPolicy): Action[] {
  if (policy === 'None') return [];
  return view.ranks
    .filter((pod) => pod !== undefined && (mustBeStopped(pod, view.now) || policy === 'All'))
    .flatMap((pod) => deletePod(pod!));
}

/** ConfigMaps and PodGroups of earlier attempts of which no pod is left; Kubernetes keeps a PodGroup until then anyway. */
export function deleteOlderObjects(view: JobView, objects: ObservedObject[]): Action[] {
  const left = new Set([...view.otherPods, ...view.ranks].map((pod) => pod && attemptName(view.identity, pod.attempt)));
  return objects.flatMap(({ kind, name, uid, owned }): Action[] => {
    if (!owned || (kind !== 'ConfigMap' && kind !== 'PodGroup') || left.has(name)) return [];
    const attempt = attemptOf(name, view);
    return attempt === null || attempt >= view.attempt
      ? []
      : [{ type: 'delete', kind, name, uid, reason: Reason.attemptOver }];
  });
}

function attemptOf(name: string, view: JobView): number | null {
  const prefix = `${view.identity.name}-`;
  const number = name.startsWith(prefix) ? name.slice(prefix.length) : '';
  return /^\d+$/.test(number) ? Number(number) : null;
}

function deletePod({ name, uid, deleting, lostNode }: ObservedPod): Action[] {
  // Nobody is left to end it; without force it would stay for as long as its node does.
  if (lostNode !== undefined) return [{ type: 'delete', kind: 'Pod', name, uid, reason: Reason.nodeLost, force: true }];
  return deleting ? [] : [{ type: 'delete', kind: 'Pod', name, uid, reason: Reason.attemptOver }];
}
