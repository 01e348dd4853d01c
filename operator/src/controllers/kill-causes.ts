/**
 * Why a kubelet ended a container, in its words. When a probe or a hook fails, the status of the pod has only the exit
 * code that the signal left; the cause is in the Events about the pod: Killing ("Container facetrain failed liveness
 * probe": computePodActions of pkg/kubelet/kuberuntime) or FailedPostStartHook, and Unhealthy with the probe's answer.
 *
 * Killing comes with the end of every pod of the cluster, so it is not watched. The Events about a pod are listed when
 * its program has left and nothing else says why.
 */
import type { ObservedPod } from '@facetrain/planner/observed';
import type { Client } from '../runtime/client.ts';
import { LeadershipLost } from '../runtime/leadership.ts';
import { type PodEvent, podEvents } from './resources.ts';

/** Pods of a job whose Events are listed: a signal ends all ranks of a gang, and the first to end has the cause. */
const MAX_PODS = 4;

interface Answer {
  /** Of the pod for which the Events were listed. */
  resourceVersion: string | undefined;
  cause: string | undefined;
}

export interface EndedPod {
  object: { metadata: { resourceVersion?: string } };
  observed: ObservedPod;
}

export class KillCauses {
  readonly #client: Pick<Client, 'list'>;
  /** By the job's uid, then by the pod's. */
  readonly #answers = new Map<string, Map<string, Answer>>();

  constructor(client: Pick<Client, 'list'>) {
    this.#client = client;
  }

  /** Lists the Events about pods of a job that have ended without a cause. @throws LeadershipLost */
  async read(job: { uid: string; namespace: string }, pods: EndedPod[]): Promise<void> {
    const known = this.#answers.get(job.uid);
    const answers = new Map<string, Answer>();
    const unexplained = pods
      .filter(({ observed }) => isUnexplained(observed))
      .sort((a, b) => (a.observed.finishedAt ?? '').localeCompare(b.observed.finishedAt ?? ''));
    for (const { object, observed } of unexplained.slice(0, MAX_PODS)) {
      const { resourceVersion } = object.metadata;
      const earlier = known?.get(observed.uid);
      const isCurrent = earlier && (earlier.cause !== undefined || earlier.resourceVersion === resourceVersion);
      const answer = isCurrent ? earlier : { resourceVersion, cause: await this.#cause(job.namespace, observed.uid) };
      answers.set(observed.uid, answer);
    }
    if (answers.size > 0) this.#answers.set(job.uid, answers);
    else this.#answers.delete(job.uid);
  }

  /** The pod, with the cause of its end as its message if one was found. */
  explain(jobUid: string, pod: ObservedPod): ObservedPod {
    const cause = this.#answers.get(jobUid)?.get(pod.uid)?.cause;
    return cause === undefined || !isUnexplained(pod) ? pod : { ...pod, message: cause };
  }

  forget(jobUid: string): void {
    this.#answers.delete(jobUid);
  }

  async #cause(namespace: string, uid: string): Promise<string | undefined> {
    try {
      const { items } = await this.#client.list(podEvents, namespace, { fieldSelector: `involvedObject.uid=${uid}` });
      return causeIn(items ?? []);
    } catch (error) {
      if (error instanceof LeadershipLost) throw error;
      return undefined; // The operator may not read Events, or the server fails. The failure is reported without words.
    }
  }
}

const isUnexplained = ({ exitCode = 0, reason = 'Error', ...pod }: ObservedPod): boolean =>
  exitCode !== 0 &&
  reason === 'Error' &&
  pod.message === undefined &&
  pod.termination === undefined &&
  !pod.disrupted &&
  !pod.deleting;

/** The cause that the Events about one pod name; undefined if they name none. */
export function causeIn(events: PodEvent[]): string | undefined {
  const last = (reason: string, message: RegExp) =>
    events.filter((event) => event.reason === reason && message.test(event.message ?? '')).at(-1)?.message;
  const killing = last('Killing', /failed (liveness|startup) probe/);
  if (killing === undefined) return last('FailedPostStartHook', /./);
  const answer = last('Unhealthy', killing.includes('startup') ? /^Startup probe/ : /^Liveness probe/);
  return answer === undefined ? killing : `${killing} (${answer.trim()})`;
}
