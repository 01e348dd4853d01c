/**
 * The cluster of the benchmark: a real API server, controller manager and scheduler, and kwok nodes, which report every
 * pod as running and run nothing. What shares the API server with the operator in a real cluster does so here: the
 * controllers of Endpoints and of garbage, the scheduler's Events, an audit log. The operator has the ServiceAccount
 * and the RBAC of deploy/facetrain.yaml, and mounts a claim.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { type FaceTrainJobStatus, type Progress, progressAtStart } from '@facetrain/api';
import { faceTrainJobs, type JobObject, type PodObject, pods } from '@facetrain/operator/controllers/resources';
import { Cache } from '@facetrain/operator/runtime/cache';
import { defineResource, type KubernetesObject, type Resource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { CONTAINER, Label } from '@facetrain/planner/names';
import { type Logger, pino } from 'pino';
import { root, tools } from '../../hack/lib/paths.mjs';
import { AuditLog, POLICY } from './audit-log.ts';
import { Conditions } from './conditions.ts';
import { deleteAll, failPod, type Gangs, inParallel, NAMESPACE } from './gangs.ts';
import { cpuSecondsOf } from './process-usage.ts';

/** Of the operator, in deploy/facetrain.yaml. */
export const OPERATOR = { namespace: 'facetrain-system', account: 'facetrain' };
const CLAIM = 'faces';
/** Label selector of all children of jobs. */
const CHILDREN = Label.jobUid;
const STAGES = join(import.meta.dirname, 'kwok.yaml');
/**
 * Of every pod: an address of this machine, where ProgressServer answers for rank 0 of each job at the job's own port.
 * An Endpoints object takes no loopback address. Without a network (the address is of TEST-NET-1), nothing answers.
 */
const POD_ADDRESS =
  Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find(({ family, internal }) => family === 'IPv4' && !internal)?.address ?? '192.0.2.1';
/** Of a node: room for 10,000 pods with a GPU each on 200 nodes. */
const CAPACITY = { cpu: '128', memory: '1Ti', pods: '250', 'nvidia.com/gpu': '64' };
/** Without client limits that hide the operator's: it must not wait for the others. */
const UNLIMITED = ['--kube-api-qps=5000', '--kube-api-burst=5000'];
/**
 * Of a node, as kubelets report them: 50 images under two names each. They are most of a Node object, and nothing that
 * watches nodes should keep them.
 */
const IMAGES = Array.from({ length: 50 }, (_, i) => ({
  names: [
    `registry.example/team-${i % 7}/image-${i}@sha256:${i.toString(16).padStart(64, '0')}`,
    `registry.example/team-${i % 7}/image-${i}:2026.11.${i}`,
  ],
  sizeBytes: 100_000_000 + i,
}));

export class BenchCluster implements Gangs {
  readonly plane: ControlPlane;
  /** Requests of service accounts. */
  readonly audit: AuditLog;
  readonly #folder: string;
  /** Of the caches by which the benchmark watches. */
  readonly #options: { client: ControlPlane['client']; namespace: string; log: Logger };
  readonly #progress = new ProgressServers();
  readonly #stop = new AbortController();
  readonly #watched: Promise<void>[];
  readonly #conditions = new Conditions();
  /** Names of the pods of each attempt (attemptKey). */
  readonly #pods = new Map<string, Set<string>>();
  readonly #running = new Set<string>();

  private constructor(plane: ControlPlane, audit: AuditLog, folder: string) {
    this.plane = plane;
    this.audit = audit;
    this.#folder = folder;
    this.#options = { client: plane.client, namespace: NAMESPACE, log: pino({ level: 'warn' }) };
    const podCache = new Cache({
      ...this.#options,
      resource: pods as Resource,
      labelSelector: CHILDREN,
      metadataOnly: true,
    });
    podCache.onChange(({ object: { metadata }, deleted }) => {
      const labels = metadata.labels!;
      const job = { name: labels[Label.jobName]!, uid: labels[Label.jobUid]!, attempt: Number(labels[Label.attempt]) };
      if (!deleted) this.#progress.set(job);
      const attempt = attemptKey(job.name, job.attempt);
      const names = this.#pods.get(attempt) ?? new Set();
      if (deleted) names.delete(metadata.name);
      else this.#pods.set(attempt, names.add(metadata.name));
      this.#conditions.changed();
    });
    const jobCache = new Cache<JobObject>({ ...this.#options, resource: faceTrainJobs });
    jobCache.onChange(({ object: { metadata, status }, deleted }) => {
      if (!deleted && (status as FaceTrainJobStatus | undefined)?.phase === 'Running') this.#running.add(metadata.name);
      else this.#running.delete(metadata.name);
      this.#conditions.changed();
    });
    this.#watched = [podCache, jobCache].map((cache) => cache.run(this.#stop.signal));
  }

  static async start(nodeCount: number): Promise<BenchCluster> {
    const folder = await mkdtemp(join(tmpdir(), 'facetrain-bench-'));
    const policy = join(folder, 'audit.yaml');
    const log = join(folder, 'audit.json');
    await writeFile(policy, JSON.stringify(POLICY));
    const plane = await ControlPlane.start([
      `--audit-policy-file=${policy}`,
      `--audit-log-path=${log}`,
      '--audit-log-mode=batch',
      '--audit-log-batch-max-wait=1s',
      '--audit-log-batch-throttle-enable=false',
      '--audit-log-batch-buffer-size=100000',
      '--disable-admission-plugins=TaintNodesByCondition',
    ]);
    await installOperator(plane);
    const kubeconfig = await plane.kubeconfig();
    const common = ['--kubeconfig', kubeconfig, '--leader-elect=false', '--secure-port=0', ...UNLIMITED];
    plane.run('kube-scheduler', common);
    plane.run('kube-controller-manager', [
      ...common,
      '--use-service-account-credentials',
      '--controllers=*',
      // kwok's nodes renew no lease.
      '--node-monitor-grace-period=48h',
      // JobSet's pods come from Jobs: more of them at a time than the 5 that are the default.
      '--concurrent-job-syncs=20',
    ]);
    const stages = join(folder, 'kwok.yaml');
    await writeFile(stages, (await readFile(STAGES, 'utf8')).replaceAll('POD_ADDRESS', POD_ADDRESS));
    plane.run('kwok', ['--kubeconfig', kubeconfig, '--config', stages, '--manage-all-nodes']);
    const cluster = new BenchCluster(plane, new AuditLog(log), folder);
    await cluster.addNodes(0, nodeCount);
    await cluster.#addClaim();
    return cluster;
  }

  /** Adds the nodes of these numbers, `to` not included. */
  async addNodes(from: number, to: number): Promise<void> {
    await inParallel(
      Array.from({ length: to - from }, (_, i) => `node-${from + i}`),
      (name) => this.#addNode(name),
    );
  }

  async #addNode(name: string): Promise<void> {
    const metadata = { name, labels: { 'kubernetes.io/hostname': name, 'kubernetes.io/os': 'linux' } };
    const conditions = [{ type: 'Ready', status: 'True' }];
    const status = { capacity: CAPACITY, allocatable: CAPACITY, conditions, images: IMAGES };
    await this.plane.client.post('/api/v1/nodes', { apiVersion: 'v1', kind: 'Node', metadata, status });
  }

  /** A volume that is bound from the start, so that no job waits for it. */
  async #addClaim(): Promise<void> {
    const size = { storage: '1Gi' };
    const spec = { accessModes: ['ReadWriteMany'], storageClassName: '' };
    await this.plane.client.post('/api/v1/persistentvolumes', {
      apiVersion: 'v1',
      kind: 'PersistentVolume',
      metadata: { name: CLAIM },
      spec: { ...spec, capacity: size, hostPath: { path: '/data' }, claimRef: { namespace: NAMESPACE, name: CLAIM } },
    });
    await this.plane.client.post(`/api/v1/namespaces/${NAMESPACE}/persistentvolumeclaims`, {
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { name: CLAIM },
      spec: { ...spec, volumeName: CLAIM, resources: { requests: size } },
    });
    await eventually(async () => {
      const claim = await this.plane.client.get(claims, NAMESPACE, CLAIM);
      assert.equal(claim.status?.phase, 'Bound');
    }, 60_000);
  }

  /** @returns the created job */
  async apply(name: string, replicas: number): Promise<JobObject> {
    const progressPort = await this.#progress.portOf(name);
    return this.plane.client.create(faceTrainJobs, NAMESPACE, {
      apiVersion: faceTrainJobs.apiVersion,
      kind: 'FaceTrainJob',
      metadata: { name },
      spec: {
        dataset: { uri: `pvc://${CLAIM}/ms1m` },
        model: { backbone: 'iresnet50' },
        output: { uri: `pvc://${CLAIM}/out/${name}` },
        globalBatchSize: replicas * 16,
        gang: { mode: 'None' },
        trainers: {
          replicas,
          progressPort,
          resources: { limits: { 'nvidia.com/gpu': '1' } },
        },
      },
    });
  }

  async applyAll(names: string[], replicas: number): Promise<void> {
    await inParallel(names, (name) => this.apply(name, replicas));
  }

  /** Resolves when all pods of these attempts exist, to the time (performance.now()). */
  podsExist(jobs: string[], attempt: number, replicas: number): Promise<number> {
    return this.#conditions.when(
      () => jobs.every((job) => (this.#pods.get(attemptKey(job, attempt))?.size ?? 0) >= replicas),
      `${jobs.length} jobs have ${replicas} pods each`,
    );
  }

  /** Resolves when the phase of all these jobs is Running, to the time (performance.now()). */
  jobsRun(jobs: string[]): Promise<number> {
    return this.#conditions.when(() => jobs.every((job) => this.#running.has(job)), `${jobs.length} jobs run`);
  }

  isRunning(job: string): boolean {
    return this.#running.has(job);
  }

  async failOne(job: string): Promise<void> {
    const names = [...this.#pods].flatMap(([attempt, pods]) => (attempt.startsWith(`${job}/`) ? [...pods] : []));
    await failPod(this.plane, names.at(-1)!, CONTAINER);
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

  /**
   * Creates `count` pods as fast as the server accepts them.
   *
   * @returns milliseconds until all exist, and until all run
   */
  async createPlain(templates: object[], count: number): Promise<{ created: number; running: number }> {
    const plain = Array.from({ length: count }, (_, i) => {
      const template = templates[i % templates.length] as { metadata: object };
      return { ...template, metadata: { ...template.metadata, name: `plain-${i}` } };
    });
    const running = new Set<string>();
    const stop = new AbortController();
    const cache = new Cache({ ...this.#options, resource: pods, labelSelector: PLAIN });
    cache.onChange(({ object: { metadata, status } }) => {
      if (status?.phase === 'Running') running.add(metadata.name);
      this.#conditions.changed();
    });
    const watching = cache.run(stop.signal);
    await cache.synced;
    const start = performance.now();
    await inParallel(plain, (pod) => this.plane.client.create(pods, NAMESPACE, pod));
    const created = performance.now() - start;
    const end = await this.#conditions.when(() => running.size >= count, `${count} plain pods run`);
    stop.abort();
    await watching;
    return { created, running: end - start };
  }

  /** Deletes these jobs; resolves when their pods are gone, which the garbage collector deletes. */
  async remove(jobs: string[]): Promise<void> {
    const names = new Set(jobs);
    await deleteAll(this.plane, faceTrainJobs as Resource, {}, ({ name }) => names.has(name));
    await this.#conditions.when(
      () =>
        [...this.#pods].every(
          ([attempt, pods]) => pods.size === 0 || !names.has(attempt.slice(0, attempt.indexOf('/'))),
        ),
      'their pods are gone',
    );
  }

  async removePlain(): Promise<void> {
    await deleteAll(this.plane, pods as Resource, { labelSelector: PLAIN });
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
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** CPU time that the programs of the control plane have used since their start, in seconds. */
  async cpuSeconds(): Promise<Record<string, number>> {
    const times = Object.entries(this.plane.pids).map(async ([name, pid]) => [name, await cpuSecondsOf(pid)] as const);
    return Object.fromEntries(await Promise.all(times));
  }
}

/** Applies deploy/facetrain.yaml without the Deployment, in whose place OperatorProcess runs, and makes NAMESPACE. */
async function installOperator(plane: ControlPlane): Promise<void> {
  const documents = (await readFile(join(root, 'deploy', 'facetrain.yaml'), 'utf8')).split('\n---\n');
  const input = documents.filter((text) => !/^kind: Deployment$/m.test(text)).join('\n---\n');
  const options = ['--kubeconfig', await plane.kubeconfig(), 'apply', '--server-side', '-f', '-'];
  execFileSync(join(tools, 'kubectl'), options, { input, stdio: ['pipe', 'ignore', 'inherit'] });
  await eventually(() => plane.client.raw('/apis/facetrain.dev/v1alpha1/facetrainjobs'), 60_000);
  await plane.createNamespace(NAMESPACE);
}

const claims = defineResource<KubernetesObject & { status?: { phase?: string } }>('v1', 'persistentvolumeclaims');

const PLAIN = 'facetrain.dev/bench-plain';
/** The labels without the one by which the operator would take the pod for its own. */
const withoutOwner = (labels: Record<string, string> = {}) =>
  Object.fromEntries(Object.entries(labels).filter(([name]) => name !== Label.jobUid));
const attemptKey = (job: string, attempt: number): string => `${job}/${attempt}`;

/** Answers /v1/progress for rank 0 of each job, always with step 0: a server for each job, with a port of its own. */
class ProgressServers {
  /** By the job's name. */
  readonly #servers = new Map<string, Server>();
  readonly #jobs = new Map<string, Progress['job']>();

  /** From now on this attempt answers. */
  set(job: Progress['job']): void {
    this.#jobs.set(job.name, job);
  }

  async portOf(name: string): Promise<number> {
    const server = this.#servers.get(name) ?? createServer((_, response) => this.#answer(name, response));
    this.#servers.set(name, server);
    if (!server.listening) await new Promise<void>((resolve) => server.listen(0, '0.0.0.0', resolve));
    return (server.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    const closing = [...this.#servers.values()].map(async (server) => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });
    await Promise.all(closing);
  }

  #answer(name: string, response: ServerResponse): void {
    const job = this.#jobs.get(name);
    if (!job) return void response.writeHead(503).end();
    const progress = { ...progressAtStart(job, 'Loading'), totalSteps: 100 };
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(progress));
  }
}
