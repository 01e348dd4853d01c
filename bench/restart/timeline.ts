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

const FIRST_STEP_MILLISECONDS = 300_000;

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
    const conditions = this.#caches.nodes.get(node)?.status?.conditions;
    return conditions?.find(({ type }) => type === 'Ready')?.status === 'Unknown';
  }

  /** @returns the time at which the check first holds, in milliseconds */
  until(check: () => boolean): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<number>();
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

  /** How a trainer came to its first step, once it has. */
  async firstStep(ns: Namespace, { metadata, spec }: PodObject): Promise<FirstStep> {
    const pod = this.pod(metadata.name)!;
    const [own] = pod.status!.containerStatuses!;
    const [fetch] = pod.status!.initContainerStatuses ?? [];
    const times = async (id: string) => {
      const file = `/var/lib/containerd/io.containerd.grpc.v1.cri/containers/${id.replace('containerd://', '')}/status`;
      return JSON.parse(await ns.cluster.execute(spec.nodeName!, ['cat', file])) as Record<string, number>;
    };
    const { StartedAt } = await times(own!.containerID!);
    const before = fetch?.containerID === undefined ? undefined : await times(fetch.containerID);
    const line = await eventually(async () => {
      const log = await ns.kubectl('logs', metadata.name);
      return log.split('\n').find((each) => each.includes('"startSeconds"')) ?? assert.fail(log);
    }, FIRST_STEP_MILLISECONDS);
    const { time, startSeconds } = JSON.parse(line) as { time: string; startSeconds: FirstStep['seconds'] };
    return {
      started: fromNanoseconds(StartedAt!),
      ...(before && {
        fetchStarted: fromNanoseconds(before.StartedAt!),
        fetchEnded: fromNanoseconds(before.FinishedAt!),
      }),
      time: new Date(time).getTime(),
      seconds: startSeconds,
    };
  }
}

const fromNanoseconds = (time: number): number => time / 1e6;

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}
