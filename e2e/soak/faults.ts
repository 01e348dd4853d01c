/** What goes wrong in a soak, and what people do meanwhile. */
import { setTimeout as delay } from 'node:timers/promises';
import {
  faceTrainJobs,
  type JobObject,
  nodes,
  type PodObject,
  pods,
  type WorkloadObject,
  workloads,
} from '@facetrain/operator/controllers/resources';
import type { Client } from '@facetrain/operator/runtime/client';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { Label } from '@facetrain/planner/names';
import { type KeptKueue, NAMESPACE, setQuota, stopQueue, type Variant } from './cluster.ts';
import type { FaultOf, Faults } from './fault-draw.ts';
import { isQueued, type StoredHistory } from './history.ts';
import { type Jobs, kindOf, MAX_TRAINERS } from './jobs.ts';
import type { SimulatedNode, SimulatedNodes } from './nodes.ts';
import { LEASE_SECONDS, type OperatorReplica } from './operators.ts';
import type { Random } from './random.ts';
import type { Store } from './stored-checkpoints.ts';
import { TICK_MILLISECONDS, type TrainerProcess, type Trainers } from './trainers.ts';

/** What faults act on. */
export interface Surroundings {
  random: Random;
  plane: ControlPlane;
  client: Client;
  nodes: SimulatedNodes;
  trainers: Trainers;
  store: Store;
  replicas: OperatorReplica[];
  kueue: KeptKueue;
  history: StoredHistory;
  variant: Variant;
  jobs: Jobs;
  /**
   * Programs that were killed or frozen and have not come back; 'quota' while one is set, 'queue' while it is stopped.
   */
  away: Set<string>;
  /** Runs until it ends, beside others; the quiet time waits for it. */
  meanwhile: (work: () => Promise<unknown>) => void;
}

export interface Done {
  /** What was done. */
  words: string;
  /** Uids of jobs that go on by themselves after it, and may be disturbed meanwhile. */
  jobs?: string[];
  /** It may keep the operator from acting. */
  isOfOperator?: true;
}

type Fault = FaultOf<Surroundings, Done>;

/** Something was done to a process. */
const done = ({ identity: { podName, job } }: TrainerProcess, words = podName): Done => ({ words, jobs: [job.uid] });
const doneToPod = ({ metadata: { labels } }: PodObject, words: string): Done => ({
  words,
  jobs: [labels?.[Label.jobUid] ?? ''],
});
const jobsOn = ({ running }: SimulatedNode): string[] =>
  [...running.values()].flatMap(({ process: { end, identity } }) => (end ? [] : [identity.job.uid]));
/** Of jobs that write to the object store. */
const storedJobs = ({ trainers }: Surroundings): string[] =>
  trainers.running.flatMap(({ identity: { isStored, job } }) => (isStored ? [job.uid] : []));
const doneToOperator = (words: string): Done => ({ words, isOfOperator: true });

const running = ({ trainers, random }: Surroundings): TrainerProcess | undefined => random.pick(trainers.running);
const somePod = ({ nodes: { cache }, random }: Surroundings): PodObject | undefined =>
  random.pick([...cache.values()].filter(({ metadata }) => metadata.namespace === NAMESPACE));
const someNode = ({ nodes: all, random }: Surroundings): SimulatedNode | undefined => {
  const up = all.nodes.filter(({ state }) => state === 'up');
  // Some have to be left, or nothing happens any more.
  return up.length > all.nodes.length / 2 ? random.pick(up) : undefined;
};
async function leader(replicas: OperatorReplica[]): Promise<OperatorReplica | undefined> {
  const leading = await Promise.all(replicas.map((replica) => replica.isLeading()));
  return replicas.find((_, i) => leading[i]);
}

/** Sets something that is `away` then, and unsets it after a while. @returns whether it could be set */
async function setForAWhile(
  { away, meanwhile }: Surroundings,
  what: string,
  milliseconds: number,
  set: (isOn: boolean) => Promise<void>,
): Promise<boolean> {
  const isSet = await set(true).then(
    () => true,
    () => false,
  );
  if (!isSet) return false;
  away.add(what);
  meanwhile(async () => {
    await delay(milliseconds);
    away.delete(what);
    await set(false).catch(() => {});
  });
  return true;
}

/** A Workload that has quota. */
async function someWorkload({ client, random }: Surroundings): Promise<WorkloadObject | undefined> {
  const { items } = await client.list(workloads, NAMESPACE, {}).catch(() => ({ items: [] }));
  return random.pick((items ?? []).filter(({ status }) => status?.admission !== undefined));
}

type Storage = 'etcd' | 'kube-apiserver';

/** Something is done to a program of the control plane, unless it or the other one is away. */
async function interrupt(
  { random, meanwhile, away }: Surroundings,
  name: Storage,
  longest: number,
  act: (name: Storage, milliseconds: number) => Promise<void>,
): Promise<Done | undefined> {
  const milliseconds = random.between(0, longest);
  if (away.has('etcd') || away.has('kube-apiserver')) return undefined;
  away.add(name);
  meanwhile(() => act(name, milliseconds).finally(() => away.delete(name)));
  return doneToOperator(`for ${(milliseconds / 1000).toFixed(1)} s`);
}

/** It is away for up to so many milliseconds. */
const restart =
  (name: Storage, longest: number): Fault =>
  (around) =>
    interrupt(around, name, longest, (...args) => around.plane.restart(...args));

/** A write that waits in it for longer could be done after another replica has taken the Lease. */
const FROZEN_MILLISECONDS = 4_000;
const freeze =
  (name: Storage): Fault =>
  (around) =>
    interrupt(around, name, FROZEN_MILLISECONDS, (...args) => around.plane.freeze(...args));

/** Each with its weight. */
export const FAULTS: Faults<Surroundings, Done> = {
  'kill a trainer': [
    10,
    async (around) => {
      const process = running(around);
      process?.kill();
      return process && done(process);
    },
  ],
  'a trainer fails': [
    6,
    async (around) => {
      const process = running(around);
      process?.fail(1, 'Internal', 'made up by the soak');
      return process && done(process);
    },
  ],
  'freeze a trainer': [
    6,
    async (around) => {
      const process = running(around);
      if (process) process.frozen = around.random.between(1_000, 20_000) / TICK_MILLISECONDS;
      return process && done(process, `${process.identity.podName} for ${Math.round(process.frozen / 10)} s`);
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
      const jobs = jobsOn(node);
      node.lose(true);
      meanwhile(async () => {
        await delay(frozen + random.between(1_000, 5_000));
        node.comeBack();
      });
      return { words: `${process.identity.podName} on ${node.name}, frozen for ${Math.round(frozen / 1000)} s`, jobs };
    },
  ],
  'delete a pod': [
    8,
    async (around) => {
      const pod = somePod(around);
      const grace = around.random.chance(0.3) ? 0 : undefined;
      if (pod) await around.client.delete(pods, NAMESPACE, pod.metadata.name, pod.metadata.uid, grace).catch(() => {});
      return pod && doneToPod(pod, `${pod.metadata.name}${grace === 0 ? ', at once' : ''}`);
    },
  ],
  'evict a pod': [
    5,
    async (around) => {
      const pod = somePod(around);
      if (!pod) return undefined;
      const { name } = pod.metadata;
      await around.client
        .post(`/api/v1/namespaces/${NAMESPACE}/pods/${name}/eviction`, {
          apiVersion: 'policy/v1',
          kind: 'Eviction',
          metadata: { name, namespace: NAMESPACE },
        })
        .catch(() => {});
      return doneToPod(pod, name);
    },
  ],
  'a kubelet evicts a pod': [
    4,
    async (around) => {
      const process = running(around);
      const node = process && around.nodes.nodes.find((one) => one.running.has(process.identity.podUid));
      node?.evict(process!.identity.podUid);
      return process && done(process);
    },
  ],
  'cut a node off': [
    5,
    async (around) => {
      const node = someNode(around);
      if (!node) return undefined;
      const withPower = around.random.chance(0.6);
      const milliseconds = around.random.between(2_000, 30_000);
      const jobs = jobsOn(node);
      node.lose(withPower);
      around.meanwhile(async () => {
        await delay(milliseconds);
        node.comeBack();
      });
      const goOn = withPower ? ', its processes go on' : '';
      return { words: `${node.name} for ${Math.round(milliseconds / 1000)} s${goOn}`, jobs };
    },
  ],
  'remove a node': [
    2,
    async (around) => {
      const node = someNode(around);
      if (!node) return undefined;
      const jobs = jobsOn(node);
      node.lose(around.random.chance(0.5));
      const object = await around.client.get(nodes, null, node.name).catch(() => undefined);
      if (object) await around.client.delete(nodes, null, node.name, object.metadata.uid).catch(() => {});
      const milliseconds = around.random.between(2_000, 15_000);
      around.meanwhile(async () => {
        await delay(milliseconds);
        node.comeBack();
      });
      return { words: node.name, jobs };
    },
  ],
  'kill the leader': [
    5,
    async ({ replicas }) => {
      const replica = await leader(replicas);
      replica?.kill();
      return replica && doneToOperator(replica.name);
    },
  ],
  'freeze the leader': [
    3,
    async ({ replicas, random, meanwhile }) => {
      const replica = await leader(replicas);
      const milliseconds = random.between(500, 2_000 * LEASE_SECONDS);
      if (replica) meanwhile(() => replica.freeze(milliseconds));
      return replica && doneToOperator(`${replica.name} for ${Math.round(milliseconds / 1000)} s`);
    },
  ],
  'jump a clock': [
    3,
    async ({ replicas, random }) => {
      const replica = random.pick(replicas)!;
      const seconds = random.between(-120, 300);
      replica.shiftClock(1000 * seconds);
      return doneToOperator(`${replica.name} to ${seconds} s`);
    },
  ],
  'kill the API server': [2, restart('kube-apiserver', 5_000)],
  'kill etcd': [2, restart('etcd', 3_000)],
  'freeze the API server': [2, freeze('kube-apiserver')],
  'freeze etcd': [1, freeze('etcd')],
  'kill the object store': [
    2,
    async (around) => {
      const { store, random, away, meanwhile } = around;
      const milliseconds = random.between(0, 10_000);
      if (away.has('store')) return undefined;
      away.add('store');
      meanwhile(() => store.server.restart(milliseconds).finally(() => away.delete('store')));
      return { words: `for ${Math.round(milliseconds / 1000)} s`, jobs: storedJobs(around) };
    },
  ],
  'freeze the object store': [
    2,
    async (around) => {
      const { store, random, away, meanwhile } = around;
      const milliseconds = random.between(500, 10_000);
      if (away.has('store')) return undefined;
      away.add('store');
      meanwhile(() => store.server.freeze(milliseconds).finally(() => away.delete('store')));
      return { words: `for ${Math.round(milliseconds / 1000)} s`, jobs: storedJobs(around) };
    },
  ],
  'the object store fails': [
    5,
    async (around) => {
      const { store, random } = around;
      const fate = random.pick(['slow', 'cut', 'lost', 'tired'] as const)!;
      const times = random.between(1, 60);
      store.fail(fate, times);
      return { words: `${times} requests: ${fate}`, jobs: storedJobs(around) };
    },
  ],
  'drop watches': [
    4,
    async ({ replicas, random }) => {
      const replica = random.pick(replicas)!;
      return doneToOperator(`${replica.proxy.dropWatches()} of ${replica.name}`);
    },
  ],
  'compact etcd': [
    3,
    async ({ history }) => {
      const { revision } = history;
      const isDone = await history.compact().then(
        () => true,
        () => false,
      );
      return isDone ? doneToOperator(`up to revision ${revision}`) : undefined;
    },
  ],
  'let watches expire': [
    3,
    async ({ replicas, random, history, meanwhile, variant: { watchCache } }) => {
      const replica = random.pick(replicas)!;
      const milliseconds = random.between(500, 5_000);
      const hold = replica.proxy.hold('GET', /[?&]watch=true/);
      const count = replica.proxy.dropWatches();
      meanwhile(async () => {
        await delay(milliseconds);
        // What a cache still has, a compaction of etcd takes from nobody.
        if (watchCache) replica.proxy.fail('GET', /[?&]watch=true/, 410, { times: count });
        else await history.compact().catch(() => {});
        hold.release();
      });
      return doneToOperator(`${count} of ${replica.name}, closed for ${milliseconds} ms`);
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
      return doneToOperator(`${times} times ${code} for ${method} of ${replica.name}`);
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
      return doneToOperator(`${method} of ${replica.name} for ${milliseconds} ms`);
    },
  ],
  'kill Kueue': [
    2,
    async ({ kueue, random }) => {
      const milliseconds = random.between(0, 5_000);
      kueue.kill(milliseconds);
      return { words: `for ${Math.round(milliseconds / 1000)} s` };
    },
  ],
  'stop the queue': [
    2,
    async (around) => {
      const { client, random, away, trainers } = around;
      const { cache } = around.nodes;
      if (away.has('queue')) return undefined;
      const milliseconds = random.between(1_000, 8_000);
      const isStopped = await setForAWhile(around, 'queue', milliseconds, (isOn) => stopQueue(client, isOn));
      if (!isStopped) return undefined;
      const queued = new Set([...cache.values()].filter(isQueued).map(({ metadata }) => metadata.uid));
      const jobs = trainers.running.flatMap(({ identity: { podUid, job } }) => (queued.has(podUid) ? [job.uid] : []));
      return { words: `for ${Math.round(milliseconds / 1000)} s`, jobs };
    },
  ],
  'deactivate a Workload': [
    2,
    async (around) => {
      const workload = await someWorkload(around);
      if (!workload) return undefined;
      const { name, labels } = workload.metadata;
      const milliseconds = around.random.between(100, 8_000);
      const setActive = (active: boolean) =>
        around.client.patch(workloads, NAMESPACE, name, { spec: { active } }).catch(() => {});
      await setActive(false);
      around.meanwhile(async () => {
        await delay(milliseconds);
        await setActive(true);
      });
      return { words: `${name} for ${milliseconds} ms`, jobs: [labels?.[Label.jobUid] ?? ''] };
    },
  ],
  'delete a Workload': [
    2,
    async (around) => {
      const workload = await someWorkload(around);
      if (!workload) return undefined;
      const { name, uid, labels } = workload.metadata;
      await around.client.delete(workloads, NAMESPACE, name, uid).catch(() => {});
      return { words: name, jobs: [labels?.[Label.jobUid] ?? ''] };
    },
  ],
  'suspend a job': [
    4,
    async ({ client, random, jobs, meanwhile }) => {
      const job = random.pick((await jobs.open()).filter(({ spec }) => spec.suspend !== true));
      if (!job) return undefined;
      const { name } = job.metadata;
      const milliseconds = random.between(100, 8_000);
      const patch = (spec: object) => client.patch(kindOf(job), NAMESPACE, name, { spec }).catch(() => {});
      // The learning rate decides what is trained; it can change in a suspension alone.
      const learningRate = random.chance(0.5) ? { optimizer: { learningRate: 0.01 + random.next() } } : {};
      await patch({ suspend: true });
      meanwhile(async () => {
        await delay(milliseconds);
        if (job.kind === 'FaceTrainJob') await patch(learningRate);
        await patch({ suspend: false });
      });
      return { words: `${name} for ${milliseconds} ms` };
    },
  ],
  'scale a job': [
    4,
    async ({ client, random, jobs }) => {
      const isElastic = ({ spec }: JobObject) => (spec.trainers as { elastic?: object } | undefined)?.elastic;
      const job = random.pick((await jobs.open()).filter(isElastic));
      const replicas = random.between(1, MAX_TRAINERS);
      if (!job) return undefined;
      const { name } = job.metadata;
      await client.patch(faceTrainJobs, NAMESPACE, name, { spec: { trainers: { replicas } } }).catch(() => {});
      return { words: `${name} to ${replicas}` };
    },
  ],
  'a quota for fewer pods': [
    3,
    async (around) => {
      const { client, random, away } = around;
      const { cache } = around.nodes;
      if (away.has('quota')) return undefined;
      const used = [...cache.values()].filter((pod) => pod.metadata.namespace === NAMESPACE).length;
      const limit = random.between(MAX_TRAINERS, Math.max(MAX_TRAINERS, used));
      const milliseconds = random.between(3_000, 20_000);
      const isSet = await setForAWhile(around, 'quota', milliseconds, (isOn) => setQuota(client, isOn ? limit : null));
      if (!isSet) return undefined;
      return { words: `${limit} of ${used} for ${Math.round(milliseconds / 1000)} s` };
    },
  ],
  'edit a job': [
    3,
    async ({ client, random, jobs }) => {
      const job = random.pick((await jobs.open()).filter(({ kind }) => kind === 'FaceTrainJob'));
      if (!job) return undefined;
      const spec = { progressDeadlineSeconds: random.between(600, 3_600) };
      await client.patch(faceTrainJobs, NAMESPACE, job.metadata.name, { spec }).catch(() => {});
      return { words: job.metadata.name };
    },
  ],
  'delete a job': [
    2,
    async ({ random, jobs }) => {
      const job = random.pick(await jobs.open());
      const again = random.chance(0.5);
      if (job) await jobs.remove(job, again);
      return job && { words: `${job.metadata.name}${again ? ', and make it again' : ''}` };
    },
  ],
};
