/** When things happened to a job: as watches of its objects show them, the container runtime and the trainers' logs. */
import assert from 'node:assert/strict';
import type { Job, Namespace } from '@facetrain/e2e/testing/namespace';
import { faceTrainJobs, nodes, type PodObject as OperatorPod, pods } from '@facetrain/operator/controllers/resources';
import { Cache } from '@facetrain/operator/runtime/cache';
import { eventually } from '@facetrain/operator/testing/eventually';
import { silentLog } from '@facetrain/operator/testing/silent-log';

export type PodObject = OperatorPod & {
  status?: { containerStatuses?: { containerID?: string }[]; initContainerStatuses?: { containerID?: string }[] };
};

/** The start of a trainer. Times in milliseconds of this machine's clock. */
export interface FirstStep {
  /** When its container was started, and the container before it that fetches data. */
  started: number;
  fetchStarted?: number;
  fetchEnded?: number;
  /** When it had trained its first step, and how long each part took until then. */
  time: number;
  seconds: Record<'program' | 'preflight' | 'rendezvous' | 'loading' | 'step', number>;
}

const LONGEST_MILLISECONDS = 300_000;
/** Seldom: kubectl takes processor time, of which the trainers' start has less then. */
const POLL_MILLISECONDS = 1000;

interface Waiter {
  check: () => boolean;
  resolve: (time: number) => void;
}

/** A job with its pods, and the nodes of the cluster, as the API server reports each change. */
export class Watched {
  readonly #caches;
  readonly #job: string;
  readonly #end = new AbortController();
  readonly #waiters = new Set<Waiter>();

  private constructor({ cluster: { client }, name: namespace }: Namespace, job: string) {
    this.#job = `${namespace}/${job}`;
    const shared = { client, log: silentLog };
    this.#caches = {
      jobs: new Cache({ ...shared, resource: faceTrainJobs, namespace, fieldSelector: `metadata.name=${job}` }),
      pods: new Cache({ ...shared, resource: pods, namespace, labelSelector: `facetrain.dev/job-name=${job}` }),
      nodes: new Cache({ ...shared, resource: nodes, namespace: null }),
    };
  }

  static async start(ns: Namespace, job: string): Promise<Watched> {
    const watched = new Watched(ns, job);
    const caches = Object.values(watched.#caches);
    for (const cache of caches) {
      cache.onChange(() => watched.#look());
      void cache.run(watched.#end.signal);
    }
    await Promise.all(caches.map(({ synced }) => synced));
    return watched;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end.abort();
  }

  get job(): Job | undefined {
    return this.#caches.jobs.get(this.#job) as Job | undefined;
  }

  pods(): PodObject[] {
    return [...this.#caches.pods.values()];
  }

  pod(name: string): PodObject | undefined {
    return this.pods().find(({ metadata }) => metadata.name === name);
  }

  /** Whether Kubernetes does not know if the node is ready. */
  isSilent(node: string): boolean {
    const conditions = this.#caches.nodes.get(`/${node}`)?.status?.conditions;
    return conditions?.find(({ type }) => type === 'Ready')?.status === 'Unknown';
  }

  /** @returns the time at which the check first holds, in milliseconds @throws when it does not within five minutes */
  until(check: () => boolean): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    const timer = setTimeout(() => reject(new Error(`waited too long for ${check}`)), LONGEST_MILLISECONDS);
    void promise.finally(() => clearTimeout(timer)).catch(() => {});
    this.#waiters.add({ check, resolve });
    this.#look();
    return promise;
  }

  #look(): void {
    for (const waiter of this.#waiters)
      if (waiter.check()) {
        waiter.resolve(Date.now());
        this.#waiters.delete(waiter);
      }
  }

  /** When the trainer's container was started, and when it ended (0: it runs), by its runtime. */
  containerTimes(
    ns: Namespace,
    { spec, status }: PodObject,
    id = status!.containerStatuses![0]!.containerID,
  ): Promise<{ started: number; ended: number }> {
    return containerTimes(ns, spec.nodeName!, id!);
  }

  /** How a trainer came to its first step, once it has. */
  async firstStep(ns: Namespace, { metadata, spec }: PodObject): Promise<FirstStep> {
    const line = await eventually(
      async () => {
        const log = await ns.kubectl('logs', metadata.name);
        return log.split('\n').find((each) => each.includes('"startSeconds"')) ?? assert.fail(log);
      },
      LONGEST_MILLISECONDS,
      POLL_MILLISECONDS,
    );
    const { time, startSeconds } = JSON.parse(line) as { time: string; startSeconds: FirstStep['seconds'] };
    const pod = this.pod(metadata.name)!;
    const { started } = await this.containerTimes(ns, pod);
    const fetch = pod.status!.initContainerStatuses?.[0]?.containerID;
    const before = fetch === undefined ? undefined : await containerTimes(ns, spec.nodeName!, fetch);
    return {
      started,
      ...(before && { fetchStarted: before.started, fetchEnded: before.ended }),
      time: new Date(time).getTime(),
      seconds: startSeconds,
    };
  }
}

/** containerd's record of a container, which has more digits than the status of its pod. */
async function containerTimes(ns: Namespace, node: string, id: string): Promise<{ started: number; ended: number }> {
  const folder = '/var/lib/containerd/io.containerd.grpc.v1.cri/containers';
  const text = await ns.cluster.execute(node, ['cat', `${folder}/${id.replace('containerd://', '')}/status`]);
  const { StartedAt, FinishedAt } = JSON.parse(text) as { StartedAt: number; FinishedAt: number };
  return { started: StartedAt / 1e6, ended: FinishedAt / 1e6 };
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}
