/** For tests against a real API server: an operator in this process, jobs for it, and the part of the kubelet, which there is none of. */
import assert from 'node:assert/strict';
import type { FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import { pino } from 'pino';
import { clusterEnvironment } from '../controllers/cluster-environment.ts';
import { type OperatorOptions, runOperator } from '../controllers/operator.ts';
import { faceTrainJobs, type JobObject, pods, quantizeJobs } from '../controllers/resources.ts';
import { Client } from '../runtime/client.ts';
import { Metrics } from '../runtime/metrics.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import type { ControlPlane } from './control-plane.ts';
import { eventually } from './eventually.ts';
import { FaultProxy } from './fault-proxy.ts';

const silent = pino({ level: process.env.FACETRAIN_TEST_LOG ?? 'silent' });
/** Long enough for a list, a watch and a few writes; a write that should not be shows within it. */
const QUIET_MILLISECONDS = 1_500;

export const quiet = () => new Promise((resolve) => setTimeout(resolve, QUIET_MILLISECONDS));

export interface Replica {
  proxy: FaultProxy;
  /** Where /healthz, /readyz and /metrics are. */
  address: string;
  stop(): Promise<void>;
  /** From now on nothing that it sends arrives. */
  cutOff(): Promise<void>;
  ended: Promise<unknown>;
}

type Choices = Partial<Pick<OperatorOptions, 'identity' | 'election' | 'progressSeconds' | 'log' | 'namespace'>> & {
  /** Whose token it has; the administrator's if absent. */
  token?: string;
  /** Resolves before it is ready. */
  unready?: boolean;
  /** Sets up faults, before it sends anything. */
  through?: (proxy: FaultProxy) => void;
};

export async function startOperator(plane: ControlPlane, namespace: string, choices: Choices = {}): Promise<Replica> {
  const { token = plane.token, identity = 'a', unready = false, log = silent, through, ...more } = choices;
  const proxy = await FaultProxy.start(plane.server, plane.ca);
  through?.(proxy);
  const metrics = new Metrics();
  const client = new Client({
    server: proxy.server,
    credentials: async () => ({ authorization: `Bearer ${token}` }),
    onResponse: metrics.request,
  });
  const stop = new AbortController();
  const listening = Promise.withResolvers<number>();
  const ended = runOperator(
    {
      client,
      metrics,
      log: log.child({ replica: identity }),
      environment: clusterEnvironment('registry.example/trainer:1'),
      namespace,
      identity,
      election: null,
      health: { host: '127.0.0.1', port: 0 },
      workers: 4,
      progressSeconds: 60,
      onListening: listening.resolve,
      ...more,
    },
    stop.signal,
  ).catch((error: unknown) => error);
  const port = await Promise.race([listening.promise, ended.then((error) => Promise.reject(error as Error))]).catch(
    async (error: unknown) => {
      await proxy.close();
      throw error;
    },
  );
  const replica = {
    proxy,
    address: `http://127.0.0.1:${port}`,
    ended,
    async stop() {
      stop.abort();
      await ended;
      await proxy.close();
    },
    cutOff: () => proxy.close(),
  };
  if (!more.election && !unready)
    await eventually(async () => assert.equal((await fetch(`${replica.address}/readyz`)).status, 200));
  return replica;
}

interface KubeletWords {
  exitCode?: number;
  /** The termination message of our container. */
  message?: string | object;
  podIP?: string;
  /** Why our container waits. */
  waiting?: { reason: string; message?: string };
}

/** A namespace with an operator for it alone, which ends with the test. */
export class Scene {
  readonly plane: ControlPlane;
  readonly namespace: string;
  readonly operator: Replica;

  constructor(plane: ControlPlane, namespace: string, operator: Replica) {
    this.plane = plane;
    this.namespace = namespace;
    this.operator = operator;
  }

  static async open(
    t: { after(end: () => Promise<void>): void },
    plane: ControlPlane,
    namespace: string,
    choices: Choices = {},
  ): Promise<Scene> {
    await plane.createNamespace(namespace);
    const operator = await startOperator(plane, namespace, choices);
    t.after(() => operator.stop());
    return new Scene(plane, namespace, operator);
  }

  applyFaceTrainJob(name: string, spec: Record<string, unknown> = {}): Promise<JobObject> {
    const least = {
      dataset: { uri: 'pvc://data/faces' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: `pvc://data/out/${name}` },
      globalBatchSize: 64,
      trainers: { replicas: 2 },
    };
    return this.create(faceTrainJobs, {
      apiVersion: 'facetrain.dev/v1alpha1',
      kind: 'FaceTrainJob',
      metadata: { name },
      spec: { ...least, ...spec },
    });
  }

  applyQuantizeJob(name: string, spec: Record<string, unknown> = {}): Promise<JobObject> {
    const least = {
      model: { uri: 'pvc://data/model.onnx' },
      calibration: { dataset: { uri: 'pvc://data/faces' } },
      output: { uri: 'pvc://data/int7' },
    };
    return this.create(quantizeJobs, {
      apiVersion: 'facetrain.dev/v1alpha1',
      kind: 'QuantizeJob',
      metadata: { name },
      spec: { ...least, ...spec },
    });
  }

  create<T extends KubernetesObject>(resource: Resource<T>, object: object): Promise<T> {
    return this.plane.client.create(resource, this.namespace, object);
  }
  get<T extends KubernetesObject>(resource: Resource<T>, name: string): Promise<T> {
    return this.plane.client.get(resource, this.namespace, name);
  }
  patch<T extends KubernetesObject>(
    resource: Resource<T>,
    name: string,
    patch: object,
    subresource?: 'status',
  ): Promise<T> {
    return this.plane.client.patch(resource, this.namespace, name, patch, subresource);
  }
  async delete(resource: Resource, name: string): Promise<void> {
    const { metadata } = await this.get(resource, name);
    await this.plane.client.delete(resource, this.namespace, name, metadata.uid);
  }

  async statusOf(name: string): Promise<FaceTrainJobStatus> {
    return ((await this.get(faceTrainJobs, name)).status ?? {}) as FaceTrainJobStatus;
  }
  async quantizeStatusOf(name: string): Promise<QuantizeJobStatus> {
    return ((await this.get(quantizeJobs, name)).status ?? {}) as QuantizeJobStatus;
  }
  /** "reason: message" of a condition that is True (or what it is); undefined where there is none. */
  async saying(name: string, type: string, resource: Resource<JobObject> = faceTrainJobs): Promise<string | undefined> {
    const condition = (await this.get(resource, name)).status?.conditions?.find((one) => one.type === type);
    return condition && `${condition.reason}: ${condition.message}`;
  }

  async names(resource: Resource): Promise<string[]> {
    const { items } = await this.plane.client.list<KubernetesObject>(resource, this.namespace, {});
    return items!
      .map(({ metadata }) => metadata.name)
      .filter((name) => name !== 'kube-root-ca.crt')
      .sort();
  }
  async hasPods(...names: string[]): Promise<void> {
    await eventually(async () => assert.deepEqual(await this.names(pods), names));
  }

  /** What a scheduler would write. */
  async schedule(name: string, node: string): Promise<void> {
    const target = { apiVersion: 'v1', kind: 'Node', name: node };
    await this.plane.client.post(`/api/v1/namespaces/${this.namespace}/pods/${name}/binding`, {
      apiVersion: 'v1',
      kind: 'Binding',
      metadata: { name },
      target,
    });
  }

  /** What a kubelet would write. */
  async becomes(
    name: string,
    phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed',
    { exitCode, message, podIP, waiting }: KubeletWords = {},
  ): Promise<void> {
    const text = typeof message === 'object' ? JSON.stringify(message) : message;
    const terminated = {
      exitCode,
      reason: exitCode === 0 ? 'Completed' : 'Error',
      finishedAt: new Date().toISOString(),
      ...(text !== undefined && { message: text }),
    };
    const state =
      exitCode !== undefined
        ? { terminated }
        : phase === 'Pending'
          ? { waiting: waiting ?? { reason: 'ContainerCreating' } }
          : { running: {} };
    const ready = phase === 'Running';
    await this.patch(
      pods,
      name,
      {
        status: {
          phase,
          ...(podIP && { podIP, podIPs: [{ ip: podIP }] }),
          conditions: [
            { type: 'Ready', status: ready ? 'True' : 'False' },
            { type: 'PodScheduled', status: 'True' },
          ],
          containerStatuses: [{ name: 'facetrain', ready, restartCount: 0, image: 'x', imageID: '', state }],
        },
      },
      'status',
    );
  }
  async allBecome(...[phase, words]: [phase: 'Running' | 'Succeeded', words?: KubeletWords]): Promise<void> {
    for (const name of await this.names(pods))
      await this.becomes(name, phase, phase === 'Succeeded' ? { exitCode: 0, ...words } : words);
  }

  phaseIs(name: string, phase: string, resource: Resource<JobObject> = faceTrainJobs): Promise<void> {
    return eventually(async () => {
      const { status } = await this.get(resource, name);
      assert.equal((status as { phase?: string } | undefined)?.phase, phase, JSON.stringify(status?.conditions));
    });
  }
}
