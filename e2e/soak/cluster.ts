/**
 * What the jobs of a soak run on: a real etcd, API server, scheduler, controllers and Kueue, with simulated nodes. The
 * seed decides which features of the API server are on.
 */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import type { Client } from '@facetrain/operator/runtime/client';
import { defineResource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { createKueueObject, createLocalQueue, startKueue } from '@facetrain/operator/testing/kueue';
import { Random } from './random.ts';

export const NAMESPACE = 'soak';
/** Name of the LocalQueue of jobs, and of the ClusterQueue behind it. */
export const QUEUE = 'team';
/** For so many pods the queue has quota; each asks for one CPU. */
export const QUEUE_PODS = 6;
export const PRIORITIES = { low: 1, high: 10 } as const;
/** For so long Kueue may leave its liveness probe without an answer. */
const KUEUE_SILENT_MILLISECONDS = 15_000;
/** Between two looks whether Kueue still runs. */
const WATCH_MILLISECONDS = 1_000;

/** What a seed decides about the cluster. */
export interface Variant {
  /** The API server serves PodGroups, and the scheduler places gangs as a whole; else gangs are plain pods. */
  nativeGangs: boolean;
  /** Without one, each watch reads from etcd, and expires when etcd is compacted. */
  watchCache: boolean;
}

/** Of its own: these choices must not change which faults follow. */
export function variantOf(seed: number): Variant {
  const random = new Random(seed ^ 0xc1a57e7);
  return { nativeGangs: random.chance(0.5), watchCache: random.chance(0.5) };
}

/** The apiVersion of PodGroups, where they are served. */
export const POD_GROUP_API = 'scheduling.k8s.io/v1beta1';
const GANG_GATE = '--feature-gates=GenericWorkload=true';

/**
 * @param users whose requests are written to the audit log: the operator's replicas
 * @param folder for the audit log
 * @returns also the address of Kueue's probes
 */
export async function startCluster(
  { nativeGangs, watchCache }: Variant,
  users: string[],
  folder: string,
): Promise<{ plane: ControlPlane; audit: string; probes: string }> {
  const audit = join(folder, 'audit.log');
  const policy = join(folder, 'policy.yaml');
  await writeFile(policy, JSON.stringify(auditPolicy(users)));
  const gates = nativeGangs ? [GANG_GATE] : [];
  const plane = await ControlPlane.start(
    [
      `--audit-policy-file=${policy}`,
      `--audit-log-path=${audit}`,
      // In megabytes: one file, however long the soak is. The default begins another one after 100.
      '--audit-log-maxsize=1000000',
      '--storage-media-type=application/json',
      // Compacted by a fault, when the check of the history has read what is dropped.
      '--etcd-compaction-interval=0',
      `--watch-cache=${watchCache}`,
      ...gates,
      ...(nativeGangs ? [`--runtime-config=${POD_GROUP_API}=true`] : []),
    ],
    true,
  );
  await plane.installCrds();
  await plane.createNamespace(NAMESPACE);
  const kubeconfig = await plane.kubeconfig();
  const common = ['--kubeconfig', kubeconfig, '--leader-elect=false', '--secure-port=0', ...gates];
  plane.run('kube-scheduler', common);
  plane.run('kube-controller-manager', [
    ...common,
    '--controllers=garbage-collector-controller,node-lifecycle-controller,taint-eviction-controller,' +
      `resourcequota-controller${nativeGangs ? ',podgroup-protection-controller' : ''}`,
    // What a quota counts of deleted pods comes free with it.
    '--resource-quota-sync-period=2s',
    '--node-monitor-period=1s',
    '--node-monitor-grace-period=8s',
    // What the garbage collector looks at, and what it deletes.
    '-v=2',
  ]);
  const probes = await startKueue(plane);
  await makeQueue(plane);
  return { plane, audit, probes };
}

const auditPolicy = (users: string[]): object => ({
  apiVersion: 'audit.k8s.io/v1',
  kind: 'Policy',
  omitStages: ['RequestReceived', 'ResponseStarted'],
  rules: [
    {
      level: 'Request',
      users,
      verbs: ['create', 'update', 'patch', 'delete'],
      resources: [{ group: 'coordination.k8s.io', resources: ['leases'] }],
    },
    // Reads, too: they may be refused for want of a right.
    { level: 'Metadata', users },
    { level: 'None' },
  ],
});

async function makeQueue(plane: ControlPlane): Promise<void> {
  const flavor = 'any';
  await createKueueObject(plane, 'ResourceFlavor', flavor, { spec: {} });
  for (const [name, value] of Object.entries(PRIORITIES))
    await createKueueObject(plane, 'WorkloadPriorityClass', name, { value });
  const resources = [{ name: 'cpu', nominalQuota: String(QUEUE_PODS) }];
  await createKueueObject(plane, 'ClusterQueue', QUEUE, {
    spec: {
      namespaceSelector: {},
      preemption: { withinClusterQueue: 'LowerPriority' },
      resourceGroups: [{ coveredResources: ['cpu'], flavors: [{ name: flavor, resources }] }],
    },
  });
  await createLocalQueue(plane, NAMESPACE, QUEUE, QUEUE);
}

const clusterQueues = defineResource('kueue.x-k8s.io/v1beta2', 'clusterqueues');

/** Stops the queue, and takes the quota of all its jobs back; or opens it again. */
export async function stopQueue(client: Client, isStopped: boolean): Promise<void> {
  const stopPolicy = isStopped ? 'HoldAndDrain' : 'None';
  await client.patch(clusterQueues, null, QUEUE, { spec: { stopPolicy } });
}

const quotas = defineResource('v1', 'resourcequotas');
/** Name of the ResourceQuota. */
const QUOTA = 'pods';

/** Sets how many pods may be in the namespace; null: any number. */
export async function setQuota(client: Client, limit: number | null): Promise<void> {
  const existing = await client.get(quotas, NAMESPACE, QUOTA).catch((error) => {
    if (!isApiError(error, 'NotFound')) throw error;
  });
  if (limit === null) {
    if (existing) await client.delete(quotas, NAMESPACE, QUOTA, existing.metadata.uid);
    return;
  }
  const spec = { hard: { pods: String(limit) } };
  if (existing) await client.patch(quotas, NAMESPACE, QUOTA, { spec });
  else
    await client.create(quotas, NAMESPACE, {
      apiVersion: 'v1',
      kind: 'ResourceQuota',
      metadata: { name: QUOTA },
      spec,
    });
}

/**
 * Starts Kueue again when it has ended or no longer answers, as a kubelet does: one that starts while no API server
 * answers ends, or stays without doing anything.
 */
export class KeptKueue {
  readonly #plane: ControlPlane;
  readonly #probes: string;
  readonly #timer: NodeJS.Timeout;
  /** By performance.now(): it is not started before. */
  #away = 0;
  /** By performance.now(): when it answered last, or was started. */
  #alive = performance.now();

  /** @param probes their address */
  constructor(plane: ControlPlane, probes: string) {
    this.#plane = plane;
    this.#probes = probes;
    this.#timer = setInterval(() => void this.#look(), WATCH_MILLISECONDS);
  }

  async #look(): Promise<void> {
    const now = performance.now();
    if (!this.#plane.isRunning('kueue')) {
      if (now < this.#away) return;
      this.#alive = now;
      await this.#plane.restart('kueue');
    } else if (await this.#answers()) this.#alive = performance.now();
    else if (now - this.#alive > KUEUE_SILENT_MILLISECONDS) this.kill(0);
  }

  async #answers(): Promise<boolean> {
    try {
      return (await fetch(`${this.#probes}/healthz`, { signal: AbortSignal.timeout(WATCH_MILLISECONDS) })).ok;
    } catch {
      return false;
    }
  }

  /** @param milliseconds for which it is away */
  kill(milliseconds: number): void {
    this.#away = performance.now() + milliseconds;
    if (this.#plane.isRunning('kueue')) process.kill(this.#plane.pids.kueue!, 'SIGKILL');
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}
