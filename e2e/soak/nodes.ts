/**
 * Nodes that run pods without containers: each has a kubelet, which registers it, renews its Lease, starts the
 * processes (trainers.ts) of the pods that are bound to it, and reports how they are. A node can lose its connection to
 * the API server while its processes go on, or its power.
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { PROGRESS_PATH } from '@facetrain/api';
import { isPodAlive } from '@facetrain/operator/controllers/observe';
import { type ContainerStatus, nodes, type PodObject, pods } from '@facetrain/operator/controllers/resources';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import { Cache } from '@facetrain/operator/runtime/cache';
import type { Client } from '@facetrain/operator/runtime/client';
import { leases } from '@facetrain/operator/runtime/leader-election';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { silentLog } from '@facetrain/operator/testing/silent-log';
import { CONTAINER, Label } from '@facetrain/planner/names';
import { type ProcessIdentity, TICK_MILLISECONDS, type TrainerProcess, type Trainers } from './trainers.ts';

/** Between two renewals of a node's Lease. The controller manager's grace period has to be longer. */
const HEARTBEAT_MILLISECONDS = 2_000;
/** Of the nodes: folder of the outputs of jobs that write to no object store. */
export const OUTPUT_PATH = '/data/out';
const CAPACITY = { cpu: '64', memory: '256Gi', pods: '200' };

/** A pod that a kubelet has started. */
interface Running {
  process: TrainerProcess;
  address: string;
  /** What was last written to the API server. */
  reported: 'nothing' | 'running' | 'ended';
  /** How often its process was started again, and how the one before ended. */
  restarts: number;
  lastEnd?: object;
  /** By performance.now(), of the last process. */
  endedAt?: number;
  /** The kubelet evicts the pod. `isGone`: it has reported that it finds nothing of the container. */
  eviction?: { isGone: boolean };
}

/** Between two starts in one pod, after the first. */
const BACKOFF_MILLISECONDS = 10_000;

export type NodeState = 'up' | 'unreachable' | 'off';

/** The kubelet of one node, and the machine below it. */
export class SimulatedNode {
  readonly name: string;
  state: NodeState = 'up';
  /** By the uid of their pod. Processes that a kubelet has not stopped yet may have no pod any more. */
  readonly running = new Map<string, Running>();
  #heartbeatAt = 0;
  #isBusy = false;

  constructor(name: string) {
    this.name = name;
  }

  /** Cuts the node off; `withPower`: its processes go on. */
  lose(withPower: boolean): void {
    this.state = withPower ? 'unreachable' : 'off';
    if (withPower) return;
    for (const { process } of this.running.values()) process.kill();
    this.running.clear();
  }

  /** The kubelet reaches the API server again, and catches up. */
  comeBack(): void {
    this.state = 'up';
    this.#heartbeatAt = 0;
  }

  /** The kubelet evicts a pod that runs, as it exceeds its own limit of disk. */
  evict(uid: string): void {
    const running = this.running.get(uid);
    if (running?.reported !== 'running' || running.process.end) return;
    running.process.kill();
    running.eviction = { isGone: false };
  }

  /** One round of the kubelet. What the API server refuses is tried again in the next. */
  async sync(client: Client, cache: Cache<PodObject>, start: (pod: PodObject) => Running | null): Promise<void> {
    if (this.state !== 'up' || this.#isBusy || !cache.isSynced || cache.problem !== undefined) return;
    this.#isBusy = true;
    try {
      if (performance.now() - this.#heartbeatAt >= HEARTBEAT_MILLISECONDS) await this.#heartbeat(client);
      const bound = cache.indexed('node', this.name);
      const uids = new Set(bound.map(({ metadata }) => metadata.uid));
      for (const [uid, { process }] of this.running) {
        if (uids.has(uid)) continue;
        process.kill();
        this.running.delete(uid);
      }
      for (const pod of bound) await this.#syncPod(client, pod, start);
    } catch {
      // The API server is away, or somebody changed the object meanwhile: the next round looks again.
    } finally {
      this.#isBusy = false;
    }
  }

  async #heartbeat(client: Client): Promise<void> {
    const now = new Date().toISOString();
    const ready = { type: 'Ready', status: 'True', reason: 'KubeletReady', lastHeartbeatTime: now };
    const status = { capacity: CAPACITY, allocatable: CAPACITY, conditions: [ready] };
    const renewTime = now.replace(/(\.\d{3})Z$/, '$1000Z');
    try {
      const node = await client.get(nodes, null, this.name);
      const before = node.status?.conditions?.find(({ type }) => type === 'Ready');
      if (before?.status !== 'True')
        await client.patch(
          nodes,
          null,
          this.name,
          { status: { ...status, conditions: [{ ...ready, lastTransitionTime: now }] } },
          'status',
        );
      await client.patch(leases, 'kube-node-lease', this.name, { spec: { renewTime } });
    } catch (error) {
      if (!isApiError(error, 'NotFound')) throw error;
      const object = { apiVersion: 'v1', kind: 'Node', metadata: { name: this.name } };
      await client.post('/api/v1/nodes', { ...object, status }).catch(ignoreExisting);
      const spec = { holderIdentity: this.name, leaseDurationSeconds: 40, renewTime };
      const lease = { apiVersion: leases.apiVersion, kind: 'Lease', metadata: { name: this.name }, spec };
      await client.create(leases, 'kube-node-lease', lease).catch(ignoreExisting);
      return; // The heartbeat follows in the next round.
    }
    this.#heartbeatAt = performance.now();
  }

  async #syncPod(client: Client, pod: PodObject, start: (pod: PodObject) => Running | null): Promise<void> {
    const { uid, deletionTimestamp } = pod.metadata;
    const hasEnded = !isPodAlive(pod);
    let running = this.running.get(uid);
    if (!running && !hasEnded) {
      if (pod.status?.phase === 'Running') {
        // The machine was off meanwhile.
        return void (await report(client, pod, { address: null, restarts: 0 }, { exitCode: 137 }, true));
      }
      if (deletionTimestamp === undefined) {
        const started = start(pod);
        if (!started) return;
        running = started;
        this.running.set(uid, running);
      }
    }
    if (running?.reported === 'nothing' && running.process.end === undefined && deletionTimestamp === undefined) {
      await report(client, pod, running);
      running.reported = 'running';
    }
    if (running && deletionTimestamp !== undefined) running.process.isStopping = true;
    if (running?.eviction && !hasEnded) {
      const { isGone } = running.eviction;
      await reportEviction(client, pod, running, isGone);
      if (isGone) running.reported = 'ended';
      running.eviction.isGone = true;
      return;
    }
    if (running?.process.end && running.reported !== 'ended') {
      if (!hasEnded) running.lastEnd = await report(client, pod, running, running.process.end);
      running.reported = 'ended';
      running.endedAt = performance.now();
    } else if (running?.process.end && deletionTimestamp === undefined && startsAgain(pod, running.process.end)) {
      const wait = running.restarts === 0 ? 0 : BACKOFF_MILLISECONDS;
      const started = performance.now() - running.endedAt! >= wait ? start(pod) : null;
      if (started)
        Object.assign(running, { process: started.process, reported: 'nothing', restarts: running.restarts + 1 });
    }
    if (deletionTimestamp !== undefined && (!running || running.reported === 'ended')) {
      await client.delete(pods, pod.metadata.namespace!, pod.metadata.name, uid, 0);
      this.running.delete(uid);
    }
  }
}

const ignoreExisting = (error: unknown): void => {
  if (!isApiError(error, 'AlreadyExists')) throw error;
};

/** By the rules of the pod's container. */
const startsAgain = ({ spec }: PodObject, { exitCode }: NonNullable<TrainerProcess['end']>): boolean =>
  spec.containers?.some(({ restartPolicyRules = [] }) =>
    restartPolicyRules.some(({ exitCodes }) => exitCodes?.values.includes(exitCode)),
  ) ?? false;

/**
 * Writes that a pod is evicted: first, as a kubelet that finds nothing of the container that ran, and would start it
 * again by the rules of the pod; then that the pod has ended.
 */
async function reportEviction(
  client: Client,
  pod: PodObject,
  { restarts, lastEnd }: Pick<Running, 'restarts' | 'lastEnd'>,
  hasEnded: boolean,
): Promise<void> {
  const unknown = { exitCode: 137, reason: 'ContainerStatusUnknown', message: 'The container could not be located' };
  await writeStatus(client, pod, {
    phase: hasEnded ? 'Failed' : 'Running',
    ...(hasEnded && {
      reason: 'Evicted',
      message: 'Pod ephemeral local storage usage exceeds the total limit of containers 20Mi.',
    }),
    container: {
      restartCount: restarts + (lastEnd ? 0 : 1),
      state: { waiting: { reason: 'ContainerCreating' } },
      lastState: lastEnd ?? { terminated: unknown },
    },
  });
}

/**
 * Writes how a pod's process is, or how it has ended.
 *
 * @param isOver nothing is started again
 * @returns the end as it was written
 */
async function report(
  client: Client,
  pod: PodObject,
  { address, restarts, lastEnd }: Pick<Running, 'restarts' | 'lastEnd'> & { address: string | null },
  end?: TrainerProcess['end'],
  isOver = false,
): Promise<object> {
  const goesOn = end === undefined || (!isOver && startsAgain(pod, end));
  const terminated = end && {
    exitCode: end.exitCode,
    reason: end.exitCode === 0 ? 'Completed' : 'Error',
    finishedAt: new Date().toISOString(),
    ...(end.message && { message: JSON.stringify(end.message) }),
  };
  const state = terminated ? { terminated } : { running: {} };
  await writeStatus(client, pod, {
    phase: goesOn ? 'Running' : end.exitCode === 0 ? 'Succeeded' : 'Failed',
    ...(address && { podIP: address, podIPs: [{ ip: address }] }),
    container: { restartCount: restarts, state, ...(lastEnd && { lastState: lastEnd }) },
  });
  return state;
}

/** Writes a pod's status as a kubelet does. Conditions of others, such as DisruptionTarget, stay. */
async function writeStatus(
  client: Client,
  { metadata, status }: PodObject,
  { container, ...fields }: { phase: string; container: Omit<ContainerStatus, 'name'> } & Record<string, unknown>,
): Promise<void> {
  const ready = container.state?.running !== undefined;
  const conditions = (status?.conditions ?? []).filter(({ type }) => type !== 'Ready');
  await client.patch(
    pods,
    metadata.namespace!,
    metadata.name,
    {
      metadata: { resourceVersion: metadata.resourceVersion },
      status: {
        ...fields,
        conditions: [...conditions, { type: 'Ready', status: ready ? 'True' : 'False' }],
        containerStatuses: [{ name: CONTAINER, ready, image: 'x', imageID: '', ...container }],
      },
    },
    'status',
  );
}

/** All nodes, and the addresses of their pods, at which rank 0 serves its progress. */
export class SimulatedNodes {
  readonly nodes: SimulatedNode[];
  /** Of the pods of all nodes. */
  readonly cache: Cache<PodObject>;
  readonly #client: Client;
  readonly #trainers: Trainers;
  readonly #progress: Server;
  readonly #stop = new AbortController();
  readonly #watched: Promise<void>;
  readonly #timer: NodeJS.Timeout;
  #addresses = 0;

  private constructor(plane: ControlPlane, trainers: Trainers, count: number, progress: Server) {
    this.#client = plane.client;
    this.#trainers = trainers;
    this.#progress = progress;
    this.nodes = Array.from({ length: count }, (_, i) => new SimulatedNode(`node-${i}`));
    this.cache = new Cache<PodObject>({
      client: plane.client,
      resource: pods,
      namespace: null,
      indexes: { node: ({ spec }) => spec.nodeName },
      log: silentLog,
    });
    this.#watched = this.cache.run(this.#stop.signal);
    progress.on('request', (request, response) => {
      const address = request.socket.localAddress?.replace(/^::ffff:/, '');
      for (const node of this.nodes)
        for (const running of node.running.values()) {
          if (running.address !== address || running.process.end || request.url !== PROGRESS_PATH) continue;
          if (node.state !== 'up') return void request.socket.destroy();
          const body = JSON.stringify(trainers.progressOf(running.process));
          return void response.writeHead(200, { 'content-type': 'application/json' }).end(body);
        }
      request.socket.destroy();
    });
    this.#timer = setInterval(() => {
      trainers.tick();
      for (const node of this.nodes) void node.sync(this.#client, this.cache, (pod) => this.#start(pod));
    }, TICK_MILLISECONDS);
  }

  static async start(plane: ControlPlane, trainers: Trainers, count: number): Promise<SimulatedNodes> {
    await plane.createNamespace('kube-node-lease').catch(ignoreExisting);
    const progress = createServer();
    await new Promise<void>((resolve) => progress.listen(0, '0.0.0.0', resolve));
    return new SimulatedNodes(plane, trainers, count, progress);
  }

  /** Where rank 0 of each job serves its progress. */
  get progressPort(): number {
    return (this.#progress.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#stop.abort();
    await this.#watched;
    await new Promise<void>((resolve) => {
      this.#progress.close(() => resolve());
      this.#progress.closeAllConnections();
    });
  }

  #start(pod: PodObject): Running | null {
    const identity = identityOf(pod);
    if (identity === null) return null;
    const index = this.#addresses++;
    const address = `127.${64 + ((index >> 16) & 63)}.${(index >> 8) & 255}.${index & 255 || 1}`;
    return { process: this.#trainers.start(identity), address, reported: 'nothing', restarts: 0 };
  }
}

/** @returns null for a pod that is not of a job */
function identityOf({ metadata, spec }: PodObject): ProcessIdentity | null {
  const labels = metadata.labels ?? {};
  const kind = labels[Label.jobKind];
  if (kind !== 'FaceTrainJob' && kind !== 'QuantizeJob') return null;
  const { containers, volumes } = spec as {
    containers?: { env?: { name: string; value?: string }[] }[];
    volumes?: { hostPath?: { path: string } }[];
  };
  const world = containers?.[0]?.env?.find(({ name }) => name === 'WORLD_SIZE')?.value;
  return {
    podName: metadata.name,
    podUid: metadata.uid,
    job: { kind, name: labels[Label.jobName]!, uid: labels[Label.jobUid]! },
    attempt: Number(labels[Label.attempt]),
    rank: Number(labels[Label.rank]),
    world: Number(world ?? 1),
    isPlaceholder: labels[Label.placeholder] === 'true',
    isStored: !volumes?.some(({ hostPath }) => hostPath?.path.startsWith(OUTPUT_PATH)),
  };
}
