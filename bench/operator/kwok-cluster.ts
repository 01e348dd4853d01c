/**
 * The cluster of the benchmark: a real API server and scheduler, and kwok nodes, which report every pod as running and
 * run nothing. There is no controller-manager, so nothing is garbage collected: `remove` deletes the children of a job.
 */
import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import type { FaceTrainJobStatus, Progress } from '@facetrain/api';
import {
  configMaps,
  faceTrainJobs,
  type JobObject,
  networkPolicies,
  type PodObject,
  pods,
  services,
} from '@facetrain/operator/controllers/resources';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import { Cache } from '@facetrain/operator/runtime/cache';
import { defineResource, type ObjectMeta, type Resource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { Label } from '@facetrain/planner/names';
import { pino } from 'pino';

export const NAMESPACE = 'default';
/** Label selector of all children of jobs. */
const CHILDREN = Label.jobUid;
const nodes = defineResource('v1', 'nodes');
/** Requests at the same time, when many objects are created or deleted. */
const PARALLEL = 32;
const STAGES = join(import.meta.dirname, 'kwok.yaml');
/** Loopback addresses, one for each pod, so that ProgressServer answers the operator's requests for progress. */
const POD_NETWORK = '127.64.0.0/10';
const PODS_A_NODE = 1000;
const DEADLINE_MILLISECONDS = 600_000;

export class BenchCluster {
  readonly plane: ControlPlane;
  readonly #progress: ProgressServer;
  readonly #stop = new AbortController();
  readonly #watched: Promise<void>[];
  readonly #waiting = new Set<() => void>();
  /** Names of the pods of each attempt (attemptKey). */
  readonly #pods = new Map<string, Set<string>>();
  readonly #running = new Set<string>();

  private constructor(plane: ControlPlane, progress: ProgressServer) {
    this.plane = plane;
    this.#progress = progress;
    const options = { client: plane.client, namespace: NAMESPACE, log: pino({ level: 'warn' }) };
    const podCache = new Cache({ ...options, resource: pods as Resource, labelSelector: CHILDREN, metadataOnly: true });
    podCache.onChange(({ object: { metadata }, deleted }) => {
      const attempt = attemptKey(metadata.labels![Label.jobName]!, Number(metadata.labels![Label.attempt]));
      const names = this.#pods.get(attempt) ?? new Set();
      if (deleted) names.delete(metadata.name);
      else this.#pods.set(attempt, names.add(metadata.name));
      this.#changed();
    });
    const jobCache = new Cache<JobObject>({ ...options, resource: faceTrainJobs });
    jobCache.onChange(({ object: { metadata, status }, deleted }) => {
      if (!deleted && (status as FaceTrainJobStatus | undefined)?.phase === 'Running') this.#running.add(metadata.name);
      else this.#running.delete(metadata.name);
      this.#changed();
    });
    this.#watched = [podCache, jobCache].map((cache) => cache.run(this.#stop.signal));
  }

  static async start(nodeCount: number): Promise<BenchCluster> {
    const plane = await ControlPlane.start();
    await plane.installCrds();
    const kubeconfig = await plane.kubeconfig();
    // Without client limits: the operator is measured, and must not wait for the scheduler.
    plane.run('kube-scheduler', [
      '--kubeconfig',
      kubeconfig,
      '--leader-elect=false',
      '--secure-port=0',
      '--kube-api-qps=5000',
      '--kube-api-burst=5000',
    ]);
    plane.run('kwok', ['--kubeconfig', kubeconfig, '--config', STAGES, '--manage-all-nodes', '--cidr', POD_NETWORK]);
    const cluster = new BenchCluster(plane, await ProgressServer.start(plane));
    for (let i = 0; i < nodeCount; i++) await cluster.#addNode(`node-${i}`);
    return cluster;
  }

  async #addNode(name: string): Promise<void> {
    const capacity = { cpu: '1000', memory: '4Ti', pods: String(PODS_A_NODE) };
    const status = { capacity, allocatable: capacity, conditions: [{ type: 'Ready', status: 'True' }] };
    await this.plane.client.post('/api/v1/nodes', { apiVersion: 'v1', kind: 'Node', metadata: { name }, status });
    // The controller-manager, which is missing here, would remove the taint of a new node.
    await this.plane.client.patch(nodes, null, name, { spec: { taints: null } });
  }

  /** @returns the created job */
  apply(name: string, replicas: number): Promise<JobObject> {
    return this.plane.client.create(faceTrainJobs, NAMESPACE, {
      apiVersion: faceTrainJobs.apiVersion,
      kind: 'FaceTrainJob',
      metadata: { name },
      spec: {
        dataset: { uri: 'hostpath:///data/faces' },
        model: { backbone: 'mobilefacenet' },
        output: { uri: `hostpath:///data/out/${name}` },
        globalBatchSize: 64,
        trainers: { replicas, progressPort: this.#progress.port },
      },
    });
  }

  async applyAll(names: string[], replicas: number): Promise<void> {
    await inParallel(names, (name) => this.apply(name, replicas));
  }

  /** Resolves when all pods of these attempts exist, to the time (performance.now()). */
  podsExist(jobs: string[], attempt: number, replicas: number): Promise<number> {
    return this.#when(
      () => jobs.every((job) => (this.#pods.get(attemptKey(job, attempt))?.size ?? 0) >= replicas),
      `${jobs.length} jobs have ${replicas} pods each`,
    );
  }

  /** Resolves when the phase of all these jobs is Running, to the time (performance.now()). */
  jobsRun(jobs: string[]): Promise<number> {
    return this.#when(() => jobs.every((job) => this.#running.has(job)), `${jobs.length} jobs run`);
  }

  isRunning(job: string): boolean {
    return this.#running.has(job);
  }

  /** Writes the status that a kubelet writes when a trainer has failed. */
  async failPod(name: string): Promise<void> {
    const terminated = { exitCode: 1, reason: 'Error', finishedAt: new Date().toISOString() };
    const containerStatuses = [
      { name: 'facetrain', ready: false, restartCount: 0, image: 'x', imageID: '', state: { terminated } },
    ];
    await this.plane.client.patch(
      pods,
      NAMESPACE,
      name,
      { status: { phase: 'Failed', conditions: [{ type: 'Ready', status: 'False' }], containerStatuses } },
      'status',
    );
  }

  /** The pods of a job as manifests of plain pods, without an owner. */
  async podTemplates(job: string): Promise<object[]> {
    const { items } = await this.plane.client.list<PodObject>(pods, NAMESPACE, {
      labelSelector: `${Label.jobName}=${job}`,
    });
    return items!.map(({ metadata, spec: { nodeName: _, ...spec } }) => ({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { labels: { ...withoutOwner(metadata.labels), [PLAIN]: '' } },
      spec,
    }));
  }

  /** Creates `count` pods as fast as the server accepts them. @returns the time in milliseconds */
  async createPlain(templates: object[], count: number): Promise<number> {
    const plain = Array.from({ length: count }, (_, i) => {
      const template = templates[i % templates.length] as { metadata: object };
      return { ...template, metadata: { ...template.metadata, name: `plain-${i}` } };
    });
    const start = performance.now();
    await inParallel(plain, (pod) => this.plane.client.create(pods, NAMESPACE, pod));
    return performance.now() - start;
  }

  /** Deletes these jobs and their children; resolves when their pods are gone. */
  async remove(jobs: string[]): Promise<void> {
    const names = new Set(jobs);
    await this.#delete(faceTrainJobs, {}, ({ name }) => names.has(name));
    const childKinds: Resource[] = [services, configMaps, networkPolicies, pods];
    const isOfJob = ({ labels }: ObjectMeta) => names.has(labels?.[Label.jobName] ?? '');
    for (const resource of childKinds) await this.#delete(resource, { labelSelector: CHILDREN }, isOfJob);
    await this.#when(
      () =>
        [...this.#pods].every(
          ([attempt, pods]) => pods.size === 0 || !names.has(attempt.slice(0, attempt.indexOf('/'))),
        ),
      'their pods are gone',
    );
  }

  async removePlain(): Promise<void> {
    await this.#delete(pods, { labelSelector: PLAIN }, () => true);
    await eventually(
      async () =>
        assert.equal(
          (await this.plane.client.list(pods as Resource, NAMESPACE, { labelSelector: PLAIN, limit: 1 }, true)).items
            ?.length ?? 0,
          0,
        ),
      120_000,
    );
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#watched);
    await this.#progress.stop();
    await this.plane.stop();
  }

  async #delete(
    resource: Resource,
    query: { labelSelector?: string },
    isSelected: (metadata: ObjectMeta) => boolean,
  ): Promise<void> {
    const { items } = await this.plane.client.list(resource, NAMESPACE, query, true);
    await inParallel(
      (items ?? []).filter(({ metadata }) => isSelected(metadata)),
      async ({ metadata: { name, uid } }) => {
        await this.plane.client.delete(resource, NAMESPACE, name, uid).catch((error: unknown) => {
          if (!isApiError(error, 'NotFound')) throw error;
        });
      },
    );
  }

  #when(check: () => boolean, what: string): Promise<number> {
    if (check()) return Promise.resolve(performance.now());
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => settle(() => reject(new Error(`not within ${DEADLINE_MILLISECONDS / 1000} s: ${what}`))),
        DEADLINE_MILLISECONDS,
      );
      const settle = (end: () => void) => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        end();
      };
      const look = () => {
        if (check()) settle(() => resolve(performance.now()));
      };
      this.#waiting.add(look);
    });
  }

  #changed(): void {
    for (const look of [...this.#waiting]) look();
  }
}

const PLAIN = 'facetrain.dev/bench-plain';
/** The labels without the one by which the operator would take the pod for its own. */
const withoutOwner = (labels: Record<string, string> = {}) =>
  Object.fromEntries(Object.entries(labels).filter(([name]) => name !== Label.jobUid));
const attemptKey = (job: string, attempt: number): string => `${job}/${attempt}`;

/** Answers /v1/progress for every pod, always with step 0. The pod is found by the address of the request. */
class ProgressServer {
  readonly #plane: ControlPlane;
  readonly #jobs = new Map<string, Promise<Progress['job'] | undefined>>();
  readonly #server: Server;

  private constructor(plane: ControlPlane) {
    this.#plane = plane;
    this.#server = createServer((request, response) => {
      const address = request.socket.localAddress!;
      const known = this.#jobs.get(address) ?? this.#jobAt(address).catch(() => undefined);
      this.#jobs.set(address, known);
      void known.then((job) => {
        if (!job) return response.writeHead(503).end();
        const noProgress = {
          imagesPerSecond: null,
          loss: null,
          learningRate: null,
          etaSeconds: null,
          evaluations: [],
          checkpoint: null,
        };
        const progress: Progress = {
          schemaVersion: 1,
          job,
          stage: 'Loading',
          step: 0,
          totalSteps: 100,
          epoch: 0,
          activity: 0,
          ...noProgress,
        };
        return response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(progress));
      });
    });
  }

  static async start(plane: ControlPlane): Promise<ProgressServer> {
    const server = new ProgressServer(plane);
    await new Promise<void>((resolve) => server.#server.listen(0, '0.0.0.0', resolve));
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async #jobAt(address: string): Promise<Progress['job'] | undefined> {
    const { items } = await this.#plane.client.list(
      pods as Resource,
      null,
      { fieldSelector: `status.podIP=${address}`, labelSelector: CHILDREN },
      true,
    );
    const labels = items?.[0]?.metadata.labels;
    return (
      labels && { name: labels[Label.jobName]!, uid: labels[Label.jobUid]!, attempt: Number(labels[Label.attempt]) }
    );
  }
}

async function inParallel<T>(items: T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const left = items.values();
  await Promise.all(
    Array.from({ length: PARALLEL }, async () => {
      for (const item of left) await work(item);
    }),
  );
}
