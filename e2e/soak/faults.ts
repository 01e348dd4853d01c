/** What goes wrong in a soak, and what people do meanwhile. */
import { setTimeout as delay } from 'node:timers/promises';
import { faceTrainJobs, type JobObject, nodes, type PodObject, pods } from '@facetrain/operator/controllers/resources';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import type { Client } from '@facetrain/operator/runtime/client';
import { defineResource } from '@facetrain/operator/runtime/resource';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import type { SimulatedNode, SimulatedNodes } from './nodes.ts';
import { LEASE_SECONDS, type OperatorReplica } from './operators.ts';
import type { Random } from './random.ts';
import type { Store } from './stored-checkpoints.ts';
import { TICK_MILLISECONDS, type TrainerProcess, type Trainers } from './trainers.ts';

/** Of a gang. */
export const MAX_TRAINERS = 4;
/** Name of the ResourceQuota. */
const QUOTA = 'pods';

/** What faults act on. */
export interface Surroundings {
  random: Random;
  plane: ControlPlane;
  client: Client;
  nodes: SimulatedNodes;
  trainers: Trainers;
  store: Store;
  replicas: OperatorReplica[];
  namespace: string;
  /** Jobs that have not ended, as they are stored. */
  jobs: () => Promise<JobObject[]>;
  /** Deletes a job. `again`: another one of this name follows at once. */
  remove: (job: JobObject, again: boolean) => Promise<void>;
  /** Programs that were killed or frozen and have not come back; 'quota' while one is set. */
  away: Set<string>;
  /** Runs until it ends, beside others; the quiet time waits for it. */
  meanwhile: (work: () => Promise<unknown>) => void;
}

/** @returns what was done, in words; undefined: there was nothing to do it to */
type Fault = (surroundings: Surroundings) => Promise<string | undefined>;

const running = ({ trainers, random }: Surroundings): TrainerProcess | undefined => random.pick(trainers.running);
const somePod = ({ nodes: { cache }, random, namespace }: Surroundings): PodObject | undefined =>
  random.pick([...cache.values()].filter(({ metadata }) => metadata.namespace === namespace));
const someNode = ({ nodes: all, random }: Surroundings): SimulatedNode | undefined => {
  const up = all.nodes.filter(({ state }) => state === 'up');
  // Some have to be left, or nothing happens any more.
  return up.length > all.nodes.length / 2 ? random.pick(up) : undefined;
};
async function leader(replicas: OperatorReplica[]): Promise<OperatorReplica | undefined> {
  const leading = await Promise.all(replicas.map((replica) => replica.isLeading()));
  return replicas.find((_, i) => leading[i]);
}

const quotas = defineResource('v1', 'resourcequotas');

/** Sets how many pods may be in the namespace; null: any number. */
export async function setQuota(client: Client, namespace: string, limit: number | null): Promise<void> {
  const existing = await client.get(quotas, namespace, QUOTA).catch((error) => {
    if (!isApiError(error, 'NotFound')) throw error;
  });
  if (limit === null) {
    if (existing) await client.delete(quotas, namespace, QUOTA, existing.metadata.uid);
    return;
  }
  const spec = { hard: { pods: String(limit) } };
  if (existing) await client.patch(quotas, namespace, QUOTA, { spec });
  else
    await client.create(quotas, namespace, {
      apiVersion: 'v1',
      kind: 'ResourceQuota',
      metadata: { name: QUOTA },
      spec,
    });
}

/** A program of the control plane is away for up to so many milliseconds, if none is. */
async function restart(
  { plane, random, meanwhile, away }: Surroundings,
  name: 'etcd' | 'kube-apiserver',
  longest: number,
): Promise<string | undefined> {
  const milliseconds = random.between(0, longest);
  if (away.has('etcd') || away.has('kube-apiserver')) return undefined;
  away.add(name);
  meanwhile(() => plane.restart(name, milliseconds).finally(() => away.delete(name)));
  return `for ${Math.round(milliseconds / 1000)} s`;
}

/** Each with its weight. */
const FAULTS: Record<string, [number, Fault]> = {
  'kill a trainer': [
    10,
    async (around) => {
      const process = running(around);
      process?.kill();
      return process?.identity.podName;
    },
  ],
  'a trainer fails': [
    6,
    async (around) => {
      const process = running(around);
      process?.fail(1, 'Internal', 'made up by the soak');
      return process?.identity.podName;
    },
  ],
  'freeze a trainer': [
    6,
    async (around) => {
      const process = running(around);
      if (process) process.frozen = around.random.between(1_000, 20_000) / TICK_MILLISECONDS;
      return process && `${process.identity.podName} for ${Math.round(process.frozen / 10)} s`;
    },
  ],
  'a trainer outlives its pod': [
    5,
    async ({ trainers, nodes: { nodes: all }, random, meanwhile }) => {
      const writers = trainers.running.filter(({ writer }) => writer !== undefined);
      // A write that is on its way comes to its end when the process wakes, in the time of the next attempt.
      const process = random.pick(writers.filter(({ isBusy }) => isBusy)) ?? random.pick(writers);
      const node = process && all.find(({ running }) => running.has(process.identity.podUid));
      if (!process || node?.state !== 'up') return undefined;
      const frozen = random.between(8_000, 30_000);
      process.frozen = frozen / TICK_MILLISECONDS;
      node.lose(true);
      meanwhile(async () => {
        await delay(frozen + random.between(1_000, 5_000));
        node.comeBack();
      });
      return `${process.identity.podName} on ${node.name}, frozen for ${Math.round(frozen / 1000)} s`;
    },
  ],
  'delete a pod': [
    8,
    async (around) => {
      const pod = somePod(around);
      const grace = around.random.chance(0.3) ? 0 : undefined;
      if (pod)
        await around.client.delete(pods, around.namespace, pod.metadata.name, pod.metadata.uid, grace).catch(() => {});
      return pod && `${pod.metadata.name}${grace === 0 ? ', at once' : ''}`;
    },
  ],
  'evict a pod': [
    5,
    async (around) => {
      const pod = somePod(around);
      if (!pod) return undefined;
      const { name } = pod.metadata;
      await around.client
        .post(`/api/v1/namespaces/${around.namespace}/pods/${name}/eviction`, {
          apiVersion: 'policy/v1',
          kind: 'Eviction',
          metadata: { name, namespace: around.namespace },
        })
        .catch(() => {});
      return name;
    },
  ],
  'a kubelet evicts a pod': [
    4,
    async (around) => {
      const process = running(around);
      const node = process && around.nodes.nodes.find((one) => one.running.has(process.identity.podUid));
      node?.evict(process!.identity.podUid);
      return process?.identity.podName;
    },
  ],
  'cut a node off': [
    5,
    async (around) => {
      const node = someNode(around);
      if (!node) return undefined;
      const withPower = around.random.chance(0.6);
      const milliseconds = around.random.between(2_000, 30_000);
      node.lose(withPower);
      around.meanwhile(async () => {
        await delay(milliseconds);
        node.comeBack();
      });
      return `${node.name} for ${Math.round(milliseconds / 1000)} s${withPower ? ', its processes go on' : ''}`;
    },
  ],
  'remove a node': [
    2,
    async (around) => {
      const node = someNode(around);
      if (!node) return undefined;
      node.lose(around.random.chance(0.5));
      const object = await around.client.get(nodes, null, node.name).catch(() => undefined);
      if (object) await around.client.delete(nodes, null, node.name, object.metadata.uid).catch(() => {});
      const milliseconds = around.random.between(2_000, 15_000);
      around.meanwhile(async () => {
        await delay(milliseconds);
        node.comeBack();
      });
      return node.name;
    },
  ],
  'kill the leader': [
    5,
    async ({ replicas }) => {
      const replica = await leader(replicas);
      replica?.kill();
      return replica?.name;
    },
  ],
  'freeze the leader': [
    3,
    async ({ replicas, random, meanwhile }) => {
      const replica = await leader(replicas);
      const milliseconds = random.between(500, 2_000 * LEASE_SECONDS);
      if (replica) meanwhile(() => replica.freeze(milliseconds));
      return replica && `${replica.name} for ${Math.round(milliseconds / 1000)} s`;
    },
  ],
  'jump a clock': [
    3,
    async ({ replicas, random }) => {
      const replica = random.pick(replicas)!;
      const seconds = random.between(-120, 300);
      replica.shiftClock(1000 * seconds);
      return `${replica.name} to ${seconds} s`;
    },
  ],
  'kill the API server': [2, (around) => restart(around, 'kube-apiserver', 5_000)],
  'kill etcd': [2, (around) => restart(around, 'etcd', 3_000)],
  'kill the object store': [
    2,
    async ({ store, random, away, meanwhile }) => {
      const milliseconds = random.between(0, 10_000);
      if (away.has('store')) return undefined;
      away.add('store');
      meanwhile(() => store.server.restart(milliseconds).finally(() => away.delete('store')));
      return `for ${Math.round(milliseconds / 1000)} s`;
    },
  ],
  'freeze the object store': [
    2,
    async ({ store, random, away, meanwhile }) => {
      const milliseconds = random.between(500, 10_000);
      if (away.has('store')) return undefined;
      away.add('store');
      meanwhile(() => store.server.freeze(milliseconds).finally(() => away.delete('store')));
      return `for ${Math.round(milliseconds / 1000)} s`;
    },
  ],
  'the object store fails': [
    5,
    async ({ store, random }) => {
      const fate = random.pick(['slow', 'cut', 'lost', 'tired'] as const)!;
      const times = random.between(1, 60);
      store.fail(fate, times);
      return `${times} requests: ${fate}`;
    },
  ],
  'drop watches': [
    4,
    async ({ replicas, random }) => {
      const replica = random.pick(replicas)!;
      return `${replica.proxy.dropWatches()} of ${replica.name}`;
    },
  ],
  'answer with errors': [
    6,
    async ({ replicas, random }) => {
      const replica = random.pick(replicas)!;
      const method = random.pick(['GET', 'POST', 'PATCH', 'DELETE', 'PUT'])!;
      // A conflict is the answer to a write only. An operator that starts ends with an error when a read is refused so.
      const code = random.pick(method === 'GET' ? [429, 500, 503, 504] : [429, 500, 503, 504, 409])!;
      const times = random.between(1, 20);
      const headers: Record<string, string> = random.chance(0.5) ? { 'retry-after': '1' } : {};
      replica.proxy.fail(method, /./, code, { times, headers });
      return `${times} times ${code} for ${method} of ${replica.name}`;
    },
  ],
  'hold requests back': [
    3,
    async ({ replicas, random, meanwhile }) => {
      const replica = random.pick(replicas)!;
      const method = random.pick(['GET', 'POST', 'PATCH', 'DELETE'])!;
      // Longer ones could reach the server after another replica has taken the Lease, as no real network would delay
      // them.
      const milliseconds = random.between(200, 1_000);
      const hold = replica.proxy.hold(method, /facetrain|pods|configmaps|services/);
      meanwhile(async () => {
        await delay(milliseconds);
        hold.release();
      });
      return `${method} of ${replica.name} for ${milliseconds} ms`;
    },
  ],
  'suspend a job': [
    4,
    async ({ client, namespace, random, jobs, meanwhile }) => {
      const job = random.pick((await jobs()).filter(({ spec }) => spec.suspend !== true));
      if (!job) return undefined;
      const { name } = job.metadata;
      const milliseconds = random.between(100, 8_000);
      // The learning rate decides what is trained; it can change in a suspension alone.
      const learningRate = random.chance(0.5) ? { optimizer: { learningRate: 0.01 + random.next() } } : {};
      await client.patch(faceTrainJobs, namespace, name, { spec: { suspend: true } }).catch(() => {});
      meanwhile(async () => {
        await delay(milliseconds);
        await client.patch(faceTrainJobs, namespace, name, { spec: learningRate }).catch(() => {});
        await client.patch(faceTrainJobs, namespace, name, { spec: { suspend: false } }).catch(() => {});
      });
      return `${name} for ${milliseconds} ms`;
    },
  ],
  'scale a job': [
    4,
    async ({ client, namespace, random, jobs }) => {
      const isElastic = ({ spec }: JobObject) => (spec.trainers as { elastic?: object }).elastic !== undefined;
      const job = random.pick((await jobs()).filter(isElastic));
      const replicas = random.between(1, MAX_TRAINERS);
      if (!job) return undefined;
      await client
        .patch(faceTrainJobs, namespace, job.metadata.name, { spec: { trainers: { replicas } } })
        .catch(() => {});
      return `${job.metadata.name} to ${replicas}`;
    },
  ],
  'a quota for fewer pods': [
    3,
    async ({ client, namespace, random, nodes: { cache }, away, meanwhile }) => {
      if (away.has('quota')) return undefined;
      const used = [...cache.values()].filter((pod) => pod.metadata.namespace === namespace).length;
      const limit = random.between(MAX_TRAINERS, Math.max(MAX_TRAINERS, used));
      const milliseconds = random.between(3_000, 20_000);
      const isSet = await setQuota(client, namespace, limit).then(
        () => true,
        () => false,
      );
      if (!isSet) return undefined;
      away.add('quota');
      meanwhile(async () => {
        await delay(milliseconds);
        away.delete('quota');
        await setQuota(client, namespace, null).catch(() => {});
      });
      return `${limit} of ${used} for ${Math.round(milliseconds / 1000)} s`;
    },
  ],
  'edit a job': [
    3,
    async ({ client, namespace, random, jobs }) => {
      const job = random.pick(await jobs());
      if (!job) return undefined;
      const spec = { progressDeadlineSeconds: random.between(600, 3_600) };
      await client.patch(faceTrainJobs, namespace, job.metadata.name, { spec }).catch(() => {});
      return job.metadata.name;
    },
  ],
  'delete a job': [
    2,
    async ({ random, jobs, remove }) => {
      const job = random.pick(await jobs());
      const again = random.chance(0.5);
      if (job) await remove(job, again);
      return job && `${job.metadata.name}${again ? ', and make it again' : ''}`;
    },
  ],
};

export const faultNames: readonly string[] = Object.keys(FAULTS);

/** Does something at random. @returns its name and what it was done to; undefined: nothing was done */
export async function doFault(around: Surroundings): Promise<{ name: string; words: string } | undefined> {
  const total = Object.values(FAULTS).reduce((sum, [weight]) => sum + weight, 0);
  let left = around.random.next() * total;
  for (const [name, [weight, fault]] of Object.entries(FAULTS)) {
    left -= weight;
    if (left >= 0) continue;
    const words = await fault(around);
    return words === undefined ? undefined : { name, words };
  }
  return undefined;
}
