/**
 * Deletions after the end of an attempt. An attempt is over once the observed status has a higher number, or an
 * outcome. Until then its pods are kept: the planner reads from them why the attempt ended.
 */
import { isAlive, type JobView, outcomeOf, willStartAgain } from './attempt.ts';
import { attemptOfName } from './names.ts';
import type { ObservedObject, ObservedPod } from './observed.ts';
import type { Action } from './plan.ts';
import { Reason } from './reasons.ts';
import { secondsSince, soonest } from './time.ts';

/** `spec.cleanPodPolicy` of a FaceTrainJob. */
export type CleanPodPolicy = 'All' | 'Running' | 'None';

/**
 * Seconds for a pod to end after its program has. The kubelet reports the end of the container some moments before the
 * pod's final phase. A pod that is deleted in between loses its log. With sidecars that still run, the pod does not end
 * by itself.
 */
const POD_END_SECONDS = 5;

/** Seconds that a pod whose program has ended may still take; null if the pod has ended, or has to be deleted. */
export function secondsToPodEnd(pod: ObservedPod, now: Date): number | null {
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

/** Seconds until the first pod has used up its time to end; null if none is waited for. */
export const secondsToCleanup = ({ ranks, otherPods, now }: JobView): number | null =>
  soonest(...[...ranks, ...otherPods].map((pod) => (pod === undefined ? null : secondsToPodEnd(pod, now))));

const mustBeStopped = (pod: ObservedPod, now: Date): boolean =>
  isAlive(pod) && (willStartAgain(pod) || secondsToPodEnd(pod, now) === null);

/**
 * Deletes pods of earlier attempts. Pods that have ended stay for their logs, but only those of the previous attempt:
 * else a job that restarts often would fill the cluster.
 */
export function deleteOlderPods(view: JobView, policy: CleanPodPolicy): Action[] {
  // Placeholders hold the room for the next gang until the trainers have written their checkpoint and ended.
  const isTraining = view.otherPods.some((pod) => !pod.placeholder && isAlive(pod));
  return view.otherPods
    .filter((pod) => !pod.placeholder || !isTraining)
    .filter((pod) => mustBeStopped(pod, view.now) || policy === 'All' || pod.attempt < view.attempt - 1)
    .flatMap(deletePod);
}

/** Deletes the pods that hold places for ranks that will not come. */
export const deletePlaceholders = (pods: ObservedPod[]): Action[] => pods.flatMap(deletePod);

/**
 * Deletes pods of the current attempt, after it was the last one. Policy None keeps all but those in which the kubelet
 * would start trainers again for ever; pods that were made for this policy have no such rules.
 */
export function deleteCurrentPods(view: JobView, policy: CleanPodPolicy): Action[] {
  return view.ranks
    .filter((pod) => pod !== undefined && !pod.removed && (mustBeStopped(pod, view.now) || policy === 'All'))
    .filter((pod) => policy !== 'None' || pod!.containerRestarts !== undefined)
    .flatMap((pod) => deletePod(pod!));
}

/**
 * Deletes ConfigMaps of earlier attempts without pods, and PodGroups without pods that run: ended pods stay for their
 * logs and need no group.
 *
 * @param kindsOfLast kinds whose objects of the current attempt go, too, after it was the last one
 */
export function deleteOlderObjects(
  view: JobView,
  objects: ObservedObject[],
  kindsOfLast: readonly ObservedObject['kind'][],
): Action[] {
  const pods = [...view.otherPods, ...view.ranks].filter((pod) => pod !== undefined && !pod.removed) as ObservedPod[];
  const attemptsOf = (some: ObservedPod[]) => new Set(some.map(({ attempt }) => attempt));
  const users = { ConfigMap: attemptsOf(pods), PodGroup: attemptsOf(pods.filter(isAlive)) };
  return objects.flatMap((object): Action[] => {
    const { kind, name, owned, deleting } = object;
    if (!owned || deleting || (kind !== 'ConfigMap' && kind !== 'PodGroup')) return [];
    const attempt = attemptOfName(name, view.identity);
    const isOld = attempt !== null && (attempt < view.attempt || kindsOfLast.includes(kind));
    return isOld && !users[kind].has(attempt) ? [deleteObject(object, Reason.attemptOver)] : [];
  });
}

/**
 * Deletes what a deleted job of the same name has left. The garbage collector does so, too, but never hears of the
 * deletion if the job was created again while its watch was away: docs/decisions/0049-what-a-deleted-job-has-left.md.
 */
export const deleteLeftovers = (objects: ObservedObject[]): Action[] =>
  objects
    .filter(({ leftover, deleting }) => leftover && !deleting)
    .map((object) => deleteObject(object, Reason.jobDeleted));

const deleteObject = ({ kind, apiVersion, name, uid }: ObservedObject, reason: string): Action => ({
  type: 'delete',
  kind,
  ...(apiVersion !== undefined && { apiVersion }),
  name,
  uid,
  reason,
});

function deletePod({ name, uid, deleting, lostNode }: ObservedPod): Action[] {
  // The kubelet is gone: without force the pod stays until its Node object is deleted.
  if (lostNode !== undefined) return [{ type: 'delete', kind: 'Pod', name, uid, reason: Reason.nodeLost, force: true }];
  return deleting ? [] : [{ type: 'delete', kind: 'Pod', name, uid, reason: Reason.attemptOver }];
}
