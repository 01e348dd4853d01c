/**
 * Why a kubelet ended a container, in its words. When a probe or a hook fails, the status of the pod has only the exit
 * code that the signal left; the cause is in the Events about the pod: Killing ("Container facetrain failed liveness
 * probe": computePodActions of pkg/kubelet/kuberuntime) or FailedPostStartHook, and Unhealthy with the probe's answer.
 *
 * When no other container of the pod goes on, the kubelet stops the whole pod, and its Killing names no cause
 * ("Stopping container facetrain"). A liveness or startup probe that failed right before is the cause: the kubelet
 * kills at the failure that reaches failureThreshold, and asks that probe no more.
 *
 * Killing comes with the end of every pod of the cluster, so it is not watched. The Events about a pod are listed when
 * its program has left and nothing else says why; again for some seconds, as the kubelet sends Events and the status of
 * the pod independently of each other. The words stay with the end of a program that the kubelet has started again.
 */
import { isAlive } from '@facetrain/planner/attempt';
import { KILL_EVENT_WAIT_SECONDS } from '@facetrain/planner/failure';
import { CONTAINER } from '@facetrain/planner/names';
import type { ObservedPod } from '@facetrain/planner/observed';
import { secondsSince } from '@facetrain/planner/time';
import { isApiError } from '../runtime/api-error.ts';
import type { Client } from '../runtime/client.ts';
import { LeadershipLost } from '../runtime/leadership.ts';
import { observePod } from './observe.ts';
import { type PodEvent, type PodObject, podEvents, timeOfEvent } from './resources.ts';

/** Pods of a job whose Events are listed: a signal ends all ranks of a gang, and the first to end has the cause. */
const MAX_PODS = 4;
/** Of the answer, which delays the reconcile. */
const ANSWER_MILLISECONDS = 3_000;
/** Whoever may create Events can make any number of them, of any length. */
const MAX_EVENTS = 100;
const MAX_WORDS = 500;
/** From a probe's last failure to the kubelet's Killing, both by the node's clock. The pod's worker may be busy. */
const PROBE_TO_KILLING_MILLISECONDS = 30_000;

interface Answer {
  /** Of the program about whose end the Events were listed. */
  finishedAt: string | undefined;
  cause: string | undefined;
  /** An Event about the end of the program may have come later. */
  isEarly: boolean;
}

export class KillCauses {
  readonly #client: Pick<Client, 'list'>;
  /** By the job's uid, then by the pod's. */
  readonly #answers = new Map<string, Map<string, Answer>>();

  constructor(client: Pick<Client, 'list'>) {
    this.#client = client;
  }

  /** Lists the Events about pods of a job that have ended without a cause. @throws LeadershipLost */
  async read(jobUid: string, pods: PodObject[]): Promise<void> {
    const known = this.#answers.get(jobUid);
    const answers = new Map<string, Answer>();
    const unexplained = pods
      .filter((object) => endOfProgram(object) !== undefined)
      .flatMap((object) => {
        const end = endedProgram(observePod(object));
        return end && isUnexplained(end) ? [{ object, finishedAt: end.finishedAt ?? '' }] : [];
      })
      .sort((a, b) => a.finishedAt.localeCompare(b.finishedAt));
    const read = async (pod: PodObject) => {
      const { uid } = pod.metadata;
      const earlier = known?.get(uid);
      const isCurrent =
        earlier !== undefined &&
        earlier.finishedAt === endOfProgram(pod)!.finishedAt &&
        (earlier.cause !== undefined || !earlier.isEarly);
      const answer = isCurrent ? earlier : await this.#answer(pod);
      if (answer) answers.set(uid, answer);
    };
    await Promise.all(unexplained.slice(0, MAX_PODS).map(({ object }) => read(object)));
    if (answers.size > 0) this.#answers.set(jobUid, answers);
    else this.#answers.delete(jobUid);
  }

  /** The pod, with the cause of its end as its message if one was found. */
  explain(jobUid: string, pod: ObservedPod): ObservedPod {
    const { cause: message, finishedAt } = this.#answers.get(jobUid)?.get(pod.uid) ?? {};
    const end = endedProgram(pod);
    if (message === undefined || !end || end.finishedAt !== finishedAt || !isUnexplained(end)) return pod;
    if (end === pod) return { ...pod, message };
    const restarts = pod.containerRestarts!;
    return { ...pod, containerRestarts: { ...restarts, lastEnd: { ...restarts.lastEnd, message } } };
  }

  forget(jobUid: string): void {
    this.#answers.delete(jobUid);
  }

  /** @returns undefined when the server does not answer: the next reconcile asks again */
  async #answer(pod: PodObject): Promise<Answer | undefined> {
    const { namespace, uid } = pod.metadata;
    const { startedAt, finishedAt } = endOfProgram(pod)!;
    const isEarly = finishedAt !== undefined && secondsSince(finishedAt, new Date()) < KILL_EVENT_WAIT_SECONDS;
    const query = { fieldSelector: `involvedObject.uid=${uid}`, limit: MAX_EVENTS };
    try {
      const timeout = AbortSignal.timeout(ANSWER_MILLISECONDS);
      const { items } = await this.#client.list(podEvents, namespace!, query, false, timeout);
      return { finishedAt, cause: causeIn(items ?? [], startedAt), isEarly };
    } catch (error) {
      if (error instanceof LeadershipLost) throw error;
      return isApiError(error, 'Forbidden') ? { finishedAt, cause: undefined, isEarly: false } : undefined;
    }
  }
}

/** When the trainer's container last ran before its last end, also of one that the kubelet has started again since. */
function endOfProgram({ status }: PodObject): { startedAt?: string; finishedAt?: string } | undefined {
  const { state, lastState } = status?.containerStatuses?.find(({ name }) => name === CONTAINER) ?? {};
  const end = state?.terminated ?? lastState?.terminated;
  // The API server writes null for a time that the kubelet does not know.
  const { startedAt, finishedAt } = end ?? {};
  return end && { ...(startedAt && { startedAt }), ...(finishedAt && { finishedAt }) };
}

/** The pod with the last end of its program. */
function endedProgram(pod: ObservedPod | null): ObservedPod | undefined {
  if (!pod || pod.exitCode !== undefined || !isAlive(pod)) return pod ?? undefined;
  const { lastEnd, isGone } = pod.containerRestarts ?? {};
  return lastEnd && !isGone ? { ...pod, ...lastEnd } : undefined;
}

/** The end of the trainer's container for which the status has no cause. A pod that ends may still get one. */
const isUnexplained = ({ exitCode = 0, reason = 'Error', ...pod }: ObservedPod): boolean =>
  (exitCode > 128 || (exitCode !== 0 && pod.phase === 'Failed')) &&
  reason === 'Error' &&
  pod.container === undefined &&
  pod.message === undefined &&
  pod.termination === undefined &&
  !pod.disrupted &&
  !pod.deleting;

/**
 * The cause that the Events about a pod name for the end of the trainer's container; undefined if they name none.
 *
 * @param startedAt when the container started: the kubelet may have ended others in the pod before
 */
export function causeIn(events: PodEvent[], startedAt?: string): string | undefined {
  const ours = events.filter(
    (event) =>
      event.involvedObject.fieldPath === `spec.containers{${CONTAINER}}` &&
      (startedAt === undefined || timeOfEvent(event) >= Date.parse(startedAt)),
  );
  const last = (reason: string, message: RegExp) =>
    ours
      .filter((event) => event.reason === reason && message.test(wordsOf(event)))
      .reduce<PodEvent | undefined>((a, b) => (a && timeOfEvent(a) > timeOfEvent(b) ? a : b), undefined);
  const killing = last('Killing', /./);
  const named = killing && /failed (liveness|startup) probe/.exec(wordsOf(killing))?.[1];
  const unhealthy = last('Unhealthy', new RegExp(`^${named ?? '(liveness|startup)'} probe`, 'i'));
  const answer = unhealthy && wordsOf(unhealthy);
  let cause: string | undefined;
  if (named) cause = answer === undefined ? wordsOf(killing) : `${wordsOf(killing)} (${answer})`;
  else cause = last('FailedPostStartHook', /./)?.message ?? (hasKilled(unhealthy, killing) ? answer : undefined);
  return cause?.slice(0, MAX_WORDS);
}

/** The message without the words that a kubelet puts in front when it joins events that are alike. */
const wordsOf = ({ message = '' }: PodEvent): string =>
  message.replace(/^\(combined from similar events\): /, '').trim();

/** Whether a kubelet's Killing followed a failed probe at once. */
const hasKilled = (unhealthy: PodEvent | undefined, killing: PodEvent | undefined): boolean =>
  unhealthy !== undefined &&
  killing !== undefined &&
  timeOfEvent(killing) - timeOfEvent(unhealthy) <= PROBE_TO_KILLING_MILLISECONDS;
