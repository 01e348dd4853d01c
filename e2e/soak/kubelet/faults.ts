/** What goes wrong on nodes with real kubelets, and what people do meanwhile. */
import { setTimeout as delay } from 'node:timers/promises';
import { type Cluster, CONTROL_PLANE } from '../../cluster/cluster.ts';
import { OPERATOR_NAMESPACE } from '../../cluster/install-facetrain.ts';
import type { Job, Namespace } from '../../testing/namespace.ts';
import { kubeletOf, processesOf, signal } from '../../testing/processes.ts';
import type { FaultOf, Faults } from '../fault-draw.ts';
import type { Random } from '../random.ts';

/** What faults act on. */
export interface Surroundings {
  cluster: Cluster;
  ns: Namespace;
  random: Random;
  /** Names of the jobs that may be disturbed. */
  jobs: string[];
  /** Workers whose kubelet or network is away. */
  away: Set<string>;
  /** Runs until it ends, beside others; the quiet time waits for it. */
  meanwhile: (work: () => Promise<unknown>) => void;
  /** Adds a worker. */
  addWorker: () => Promise<unknown>;
}

export interface Done {
  /** What was done. */
  words: string;
  /** Names of jobs that go on by themselves after it, and may be disturbed meanwhile. */
  jobs?: string[];
}

type Fault = FaultOf<Surroundings, Done>;

interface Pod {
  metadata: { name: string; labels: Record<string, string> };
  spec: { nodeName?: string };
  status: { phase: string };
}

const jobOf = ({ metadata: { labels } }: Pod): string => labels['facetrain.dev/job-name']!;

async function runningPods({ ns, jobs }: Surroundings): Promise<Pod[]> {
  const pods = await ns.list<Pod>('pod', 'facetrain.dev/job-kind=FaceTrainJob').catch(() => []);
  return pods.filter((pod) => pod.status.phase === 'Running' && jobs.includes(jobOf(pod)));
}
const somePod = async (around: Surroundings): Promise<Pod | undefined> => around.random.pick(await runningPods(around));

/** A worker that nothing is done to; undefined: none. Then pods go to the node of the control plane. */
const someWorker = ({ cluster, away, random }: Surroundings): string | undefined => {
  const up = cluster.nodeNames.filter((name) => name !== CONTROL_PLANE && !away.has(name));
  return random.pick(up);
};
const jobsOn = async (around: Surroundings, node: string): Promise<string[]> =>
  (await runningPods(around)).filter(({ spec }) => spec.nodeName === node).map(jobOf);

const shell = ({ cluster }: Surroundings, node: string, script: string): Promise<string> =>
  cluster.execute(node, ['sh', '-c', script]);

/** Ids of the processes of a pod's trainers; none when it has just ended. */
const trainersOf = ({ cluster }: Surroundings, { spec, metadata }: Pod): Promise<string[]> =>
  processesOf(cluster, spec.nodeName!, metadata.name).catch(() => []);

/** Something is done to a worker, and undone after a while. */
async function awayForAWhile(
  around: Surroundings,
  worker: string | undefined,
  seconds: number,
  act: (worker: string) => Promise<() => Promise<unknown>>,
): Promise<Done | undefined> {
  if (worker === undefined) return undefined;
  const jobs = await jobsOn(around, worker);
  around.away.add(worker);
  const undo = await act(worker);
  around.meanwhile(async () => {
    await delay(1000 * seconds);
    await undo();
    around.away.delete(worker);
  });
  return { words: `${worker} for ${seconds} s`, jobs };
}

/** Stops programs of a node, of which some may have ended. @returns lets them go on */
async function stop({ cluster }: Surroundings, node: string, ids: string[]): Promise<() => Promise<unknown>> {
  await signal(cluster, node, 'STOP', ids).catch(() => {});
  return () => signal(cluster, node, 'CONT', ids).catch(() => {});
}

/** A program is killed; the node starts it again after a second. */
const killProgram = (program: string, where: (around: Surroundings) => string | undefined): Fault => {
  return async (around) => {
    const node = where(around);
    if (node === undefined) return undefined;
    // Its whole command line: names of processes are cut after 15 letters.
    const found = await shell(around, node, `pkill -KILL -f '^([^ ]*/)?${program}( |$)' && echo killed || true`);
    return found === '' ? undefined : { words: node };
  };
};
const ofControlPlane = (program: string): Fault => killProgram(program, () => CONTROL_PLANE);

/** The network of a node drops what comes from these. OUTPUT: the node's own programs; FORWARD: its pods. */
const drop = (chain: 'OUTPUT' | 'FORWARD', rule: string) => (action: 'I' | 'D') =>
  `iptables -${action} ${chain} ${rule} -j DROP`;
const KUBELET_TO_API = drop('OUTPUT', '-p tcp --dport 6443');
const PODS = drop('FORWARD', '');

/** Each with its weight. */
export const FAULTS: Faults<Surroundings, Done> = {
  'kill a trainer': [
    10,
    async (around) => {
      const pod = await somePod(around);
      const ids = pod && (await trainersOf(around, pod));
      if (!ids?.length) return undefined;
      await signal(around.cluster, pod!.spec.nodeName!, 'KILL', ids).catch(() => {});
      return { words: pod!.metadata.name, jobs: [jobOf(pod!)] };
    },
  ],
  'freeze a trainer': [
    4,
    async (around) => {
      const pod = await somePod(around);
      const ids = pod && (await trainersOf(around, pod));
      if (!ids?.length) return undefined;
      const seconds = around.random.between(1, 15);
      const goOn = await stop(around, pod!.spec.nodeName!, ids);
      around.meanwhile(async () => {
        await delay(1000 * seconds);
        await goOn();
      });
      return { words: `${pod!.metadata.name} for ${seconds} s`, jobs: [jobOf(pod!)] };
    },
  ],
  'kill the runtime’s process of a pod': [
    3,
    async (around) => {
      const pod = await somePod(around);
      const [id] = (pod && (await trainersOf(around, pod))) ?? [];
      if (id === undefined) return undefined;
      const step = `p=$(ps -o ppid= -p $p | tr -d ' '); echo "$p $(ps -o comm= -p $p)"`;
      const parents = `p=${id}; while [ "$p" -gt 1 ]; do ${step}; done`;
      const found = await shell(around, pod!.spec.nodeName!, parents).catch(() => '');
      const shim = /^(\d+) containerd-shim/m.exec(found)?.[1];
      if (shim === undefined) return undefined;
      await signal(around.cluster, pod!.spec.nodeName!, 'KILL', [shim]).catch(() => {});
      return { words: pod!.metadata.name, jobs: [jobOf(pod!)] };
    },
  ],
  'delete a pod': [
    6,
    async (around) => {
      const pod = await somePod(around);
      const force = around.random.chance(0.4) ? ['--force', '--grace-period=0'] : [];
      if (!pod) return undefined;
      await around.ns.kubectl('delete', 'pod', pod.metadata.name, '--wait=false', ...force).catch(() => {});
      return { words: `${pod.metadata.name} ${force.join(' ')}`, jobs: [jobOf(pod)] };
    },
  ],
  'a pod fills its disk': [
    3,
    async (around) => {
      const pod = await somePod(around);
      if (!pod) return undefined;
      const fill = ['dd', 'if=/dev/zero', 'of=/tmp/big', 'bs=1M', 'count=400'];
      around.meanwhile(() => around.ns.kubectl('exec', pod.metadata.name, '--', ...fill).catch(() => {}));
      return { words: pod.metadata.name, jobs: [jobOf(pod)] };
    },
  ],
  'kill a kubelet': [5, killProgram('/opt/kubernetes/kubelet', someWorker)],
  'kill containerd': [4, killProgram('containerd', someWorker)],
  'freeze a kubelet': [
    5,
    async (around) => {
      const worker = someWorker(around);
      const id = worker && (await kubeletOf(around.cluster, worker).catch(() => ''));
      if (!id) return undefined;
      const seconds = around.random.between(3, 60);
      return awayForAWhile(around, worker, seconds, (node) => stop(around, node, [id]));
    },
  ],
  'trainers sleep on a node that is given up': [
    6,
    async (around) => {
      const worker = someWorker(around);
      const pods = (await runningPods(around)).filter(({ spec }) => spec.nodeName === worker);
      const trainers = (await Promise.all(pods.map((pod) => trainersOf(around, pod)))).flat();
      const kubelet = worker && (await kubeletOf(around.cluster, worker).catch(() => ''));
      if (!kubelet || trainers.length === 0) return undefined;
      // They wake before the kubelet, which would end those whose pods are gone.
      const seconds = around.random.between(25, 45);
      return awayForAWhile(around, worker, seconds, async () => {
        const wake = await stop(around, worker, trainers);
        const goOn = await stop(around, worker, [kubelet]);
        return async () => {
          await wake();
          await delay(around.random.between(0, 10_000));
          await goOn();
        };
      });
    },
  ],
  'cut a node off': [
    6,
    async (around) => {
      const worker = someWorker(around);
      const rules = around.random.chance(0.5) ? [KUBELET_TO_API] : [KUBELET_TO_API, PODS];
      const seconds = around.random.between(3, 60);
      const done = await awayForAWhile(around, worker, seconds, async (node) => {
        for (const rule of rules) await shell(around, node, rule('I'));
        return async () => {
          for (const rule of rules) await shell(around, node, rule('D')).catch(() => {});
        };
      });
      return done && { ...done, words: `${done.words}${rules.length > 1 ? ', with its pods' : ''}` };
    },
  ],
  'a node loses its power': [
    2,
    async (around) => {
      const worker = someWorker(around);
      if (worker === undefined) return undefined;
      const jobs = await jobsOn(around, worker);
      await around.cluster.killNode(worker);
      // One of the same name comes soon: before or after Kubernetes has noticed.
      const seconds = around.random.between(0, 20);
      around.meanwhile(async () => {
        await delay(1000 * seconds);
        await around.addWorker();
      });
      return { words: `${worker}, another one ${seconds} s later`, jobs };
    },
  ],
  'kill the API server': [3, ofControlPlane('/opt/kubernetes/kube-apiserver')],
  'kill etcd': [3, ofControlPlane('/opt/kubernetes/etcd')],
  'kill the controllers': [1, ofControlPlane('/opt/kubernetes/kube-controller-manager')],
  'kill the scheduler': [1, ofControlPlane('/opt/kubernetes/kube-scheduler')],
  'kill the object store': [3, ofControlPlane('/opt/kubernetes/versitygw')],
  'delete a pod of the operator': [
    3,
    async ({ cluster, random }) => {
      const names = await cluster
        .kubectl('-n', OPERATOR_NAMESPACE, 'get', 'pods', '-o', 'jsonpath={.items[*].metadata.name}')
        .catch(() => '');
      const name = random.pick(names.split(' ').filter(Boolean));
      if (name === undefined) return undefined;
      const force = random.chance(0.5) ? ['--force', '--grace-period=0'] : [];
      await cluster.kubectl('-n', OPERATOR_NAMESPACE, 'delete', 'pod', name, '--wait=false', ...force).catch(() => {});
      return { words: `${name} ${force.join(' ')}` };
    },
  ],
  'suspend a job': [
    3,
    async ({ ns, random, jobs, meanwhile }) => {
      const job = random.pick(jobs)!;
      const seconds = random.between(1, 20);
      const isSet = await suspend(ns, job, true);
      if (!isSet) return undefined;
      meanwhile(async () => {
        await delay(1000 * seconds);
        await suspend(ns, job, false);
      });
      return { words: `${job} for ${seconds} s` };
    },
  ],
  'scale the elastic job': [
    3,
    async ({ ns, random }) => {
      const replicas = random.between(1, 3);
      await ns.kubectl('scale', 'facetrainjob/elastic', `--replicas=${replicas}`).catch(() => {});
      return { words: `to ${replicas}` };
    },
  ],
};

/** @returns whether the API server has taken it */
export const suspend = (ns: Namespace, job: Job['metadata']['name'], value: boolean): Promise<boolean> =>
  ns.patch('facetrainjob', job, { spec: { suspend: value } }).then(
    () => true,
    () => false,
  );
