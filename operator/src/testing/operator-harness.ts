/** For tests against a real API server: an operator in this process, jobs for it, and a fake kubelet. */
import assert from 'node:assert/strict';
import type { FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import { clusterEnvironment } from '../controllers/cluster-environment.ts';
import { type OperatorOptions, runOperator } from '../controllers/operator.ts';
import { faceTrainJobs, type JobObject, pods, quantizeJobs } from '../controllers/resources.ts';
import { Client } from '../runtime/client.ts';
import { Metrics } from '../runtime/metrics.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import type { ControlPlane } from './control-plane.ts';
import { eventually } from './eventually.ts';
import { type FakePhase, type FakePodStatus, setPodStatus } from './fake-kubelet.ts';
import { FaultProxy } from './fault-proxy.ts';
import { silentLog } from './silent-log.ts';

/** Enough for a list, a watch and a few writes. */
const SETTLE_MILLISECONDS = 1_500;

/** Waits until a write that the operator must not make would have been made. */
export const settle = () => new Promise((resolve) => setTimeout(resolve, SETTLE_MILLISECONDS));

/** A running operator. */
export interface Replica {
  proxy: FaultProxy;
  /** Base URL of /healthz, /readyz and /metrics. */
  address: string;
  stop(): Promise<void>;
  /** Closes its connection to the API server; it is never opened again. */
  cutOff(): Promise<void>;
  /** Resolves when it has ended, to its error if it threw one. */
  ended: Promise<unknown>;
}

type StartOptions = Partial<
  Pick<OperatorOptions, 'identity' | 'election' | 'progressSeconds' | 'discoveryMilliseconds' | 'log' | 'namespace'>
> & {
  /** Its bearer token; by default the administrator's. */
  token?: string;
  /** Do not wait for /readyz. */
  skipReadyCheck?: boolean;
  /** Called before the operator starts, to set up faults. */
  setUpProxy?: (proxy: FaultProxy) => void;
};

export async function startOperator(
  plane: ControlPlane,
  namespace: string,
  options: StartOptions = {},
): Promise<Replica> {
  const {
    token = plane.token,
    identity = 'a',
    skipReadyCheck = false,
    log = silentLog,
    setUpProxy,
    ...overrides
  } = options;
  const proxy = await FaultProxy.start(plane.server, plane.ca);
  setUpProxy?.(proxy);
  const metrics = new Metrics();
  const client = new Client({
    server: proxy.server,
    credentials: async () => ({ authorization: `Bearer ${token}` }),
    onResponse: metrics.countRequest,
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
      ...overrides,
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
  if (!overrides.election && !skipReadyCheck) {
    let failure: unknown;
    void ended.then((error) => (failure = error));
    await eventually(async () => {
      if (failure === undefined) assert.equal((await fetch(`${replica.address}/readyz`)).status, 200);
    });
    if (failure !== undefined) {
      await proxy.close();
      throw failure;
    }
  }
  return replica;
}

/** A namespace with an operator that watches it alone, and what tests do and expect in it. */
export class TestNamespace {
  readonly plane: ControlPlane;
  readonly namespace: string;
  readonly operator: Replica;

  constructor(plane: ControlPlane, namespace: string, operator: Replica) {
    this.plane = plane;
    this.namespace = namespace;
    this.operator = operator;
  }

  /** Creates the namespace and starts the operator, which stops when the test ends. */
  static async open(
    t: { after(end: () => Promise<void>): void },
    plane: ControlPlane,
    namespace: string,
    options: StartOptions = {},
  ): Promise<TestNamespace> {
    await plane.createNamespace(namespace);
    const operator = await startOperator(plane, namespace, options);
    t.after(() => operator.stop());
    return new TestNamespace(plane, namespace, operator);
  }

  applyFaceTrainJob(name: string, spec: Record<string, unknown> = {}): Promise<JobObject> {
    const required = {
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
      spec: { ...required, ...spec },
    });
  }

  applyQuantizeJob(name: string, spec: Record<string, unknown> = {}): Promise<JobObject> {
    const required = {
      model: { uri: 'pvc://data/model.onnx' },
      calibration: { dataset: { uri: 'pvc://data/faces' } },
      output: { uri: 'pvc://data/int7' },
    };
    return this.create(quantizeJobs, {
      apiVersion: 'facetrain.dev/v1alpha1',
      kind: 'QuantizeJob',
      metadata: { name },
      spec: { ...required, ...spec },
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
    subresource?: 'status' | 'scale',
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
  /** "reason: message" of a condition, whatever its status; undefined: there is none. */
  async conditionText(
    name: string,
    type: string,
    resource: Resource<JobObject> = faceTrainJobs,
  ): Promise<string | undefined> {
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
  async waitForPods(...names: string[]): Promise<void> {
    await eventually(async () => assert.deepEqual(await this.names(pods), names));
  }

  /** Binds the pod to a node, as a scheduler does. */
  async schedule(name: string, node: string): Promise<void> {
    const target = { apiVersion: 'v1', kind: 'Node', name: node };
    await this.plane.client.post(`/api/v1/namespaces/${this.namespace}/pods/${name}/binding`, {
      apiVersion: 'v1',
      kind: 'Binding',
      metadata: { name },
      target,
    });
  }

  /** Writes what a kubelet would write. */
  setPodStatus(name: string, phase: FakePhase, status?: FakePodStatus): Promise<void> {
    return setPodStatus(this.plane.client, this.namespace, name, phase, status);
  }
  async setAllPodStatuses(phase: 'Running' | 'Succeeded', status?: FakePodStatus): Promise<void> {
    for (const name of await this.names(pods))
      await this.setPodStatus(name, phase, phase === 'Succeeded' ? { exitCode: 0, ...status } : status);
  }

  waitForPhase(name: string, phase: string, resource: Resource<JobObject> = faceTrainJobs): Promise<void> {
    return eventually(async () => {
      const { status } = await this.get(resource, name);
      assert.equal((status as { phase?: string } | undefined)?.phase, phase, JSON.stringify(status?.conditions));
    });
  }
}
