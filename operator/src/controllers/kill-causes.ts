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
 * the pod independently of each other.
 */
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
  /** Of the pod for which the Events were listed. */
  resourceVersion: string | undefined;
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
      .filter(hasFailedProgram)
      .flatMap((object) => {
        const observed = observePod(object);
        return observed && isUnexplained(observed) ? [{ object, finishedAt: observed.finishedAt ?? '' }] : [];
      })
      .sort((a, b) => a.finishedAt.localeCompare(b.finishedAt));
    const read = async ({ metadata }: PodObject, finishedAt: string) => {
      const earlier = known?.get(metadata.uid);
      const isCurrent =
        earlier &&
        (earlier.cause !== undefined || (earlier.resourceVersion === metadata.resourceVersion && !earlier.isEarly));
      const isEarly = secondsSince(finishedAt, new Date()) < KILL_EVENT_WAIT_SECONDS;
      const answer = isCurrent ? earlier : await this.#answer(metadata, isEarly);
      if (answer) answers.set(metadata.uid, answer);
    };
    await Promise.all(unexplained.slice(0, MAX_PODS).map(({ object, finishedAt }) => read(object, finishedAt)));
    if (answers.size > 0) this.#answers.set(jobUid, answers);
    else this.#answers.delete(jobUid);
  }

  /** The pod, with the cause of its end as its message if one was found. */
  explain(jobUid: string, pod: ObservedPod): ObservedPod {
    const cause = this.#answers.get(jobUid)?.get(pod.uid)?.cause;
    return cause === undefined || !isUnexplained(pod) ? pod : { ...pod, message: cause };
  }

  forget(jobUid: string): void {
    this.#answers.delete(jobUid);
  }

  /** @returns undefined when the server does not answer: the next reconcile asks again */
  async #answer(
    { namespace, uid, resourceVersion }: PodObject['metadata'],
    isEarly: boolean,
  ): Promise<Answer | undefined> {
    const query = { fieldSelector: `involvedObject.uid=${uid}`, limit: MAX_EVENTS };
    try {
      const timeout = AbortSignal.timeout(ANSWER_MILLISECONDS);
      const { items } = await this.#client.list(podEvents, namespace!, query, false, timeout);
      return { resourceVersion, cause: causeIn(items ?? []), isEarly };
    } catch (error) {
      if (error instanceof LeadershipLost) throw error;
      return isApiError(error, 'Forbidden') ? { resourceVersion, cause: undefined, isEarly: false } : undefined;
    }
  }
}

const hasFailedProgram = ({ status }: PodObject): boolean =>
  status?.containerStatuses?.some(({ name, state }) => name === CONTAINER && state?.terminated) ?? false;

/** The end of the trainer's container for which the status has no cause. A pod that ends may still get one. */
const isUnexplained = ({ exitCode = 0, reason = 'Error', ...pod }: ObservedPod): boolean =>
  (exitCode > 128 || (exitCode !== 0 && pod.phase === 'Failed')) &&
  reason === 'Error' &&
  pod.container === undefined &&
  pod.message === undefined &&
  pod.termination === undefined &&
  !pod.disrupted &&
  !pod.deleting;

/** The cause that the Events about a pod name for the end of the trainer's container; undefined if they name none. */
export function causeIn(events: PodEvent[]): string | undefined {
  const ours = events.filter(({ involvedObject }) => involvedObject.fieldPath === `spec.containers{${CONTAINER}}`);
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
