/**
 * JobSet beside the operator: its own manifests and ServiceAccount, its controller as a process. It runs only in its
 * turns, as it watches all pods of the cluster.
 *
 * Its certificate is given, as cert-manager would: the API server's own, by which its webhooks are called at an
 * address of this machine.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type PodObject, pods } from '@facetrain/operator/controllers/resources';
import { Cache } from '@facetrain/operator/runtime/cache';
import { defineResource, type KubernetesObject, type Resource } from '@facetrain/operator/runtime/resource';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { pino } from 'pino';
import { parseAllDocuments } from 'yaml';
import { freePorts } from '../../hack/lib/free-ports.mjs';
import { moduleFiles, tools } from '../../hack/lib/paths.mjs';
import { Conditions } from './conditions.ts';
import { deleteAll, failPod, type Gangs, inParallel, NAMESPACE } from './gangs.ts';
import { cpuSecondsOf, memoryOf } from './process-usage.ts';

const SYSTEM = 'jobset-system';
const ACCOUNT = 'jobset-controller-manager';
/** ServiceAccounts whose requests make the pods of a JobSet: its own, and that of the Job controller. */
export const JOBSET_ACCOUNTS = [`${SYSTEM}:${ACCOUNT}`, 'kube-system:job-controller'] as const;
const NAME_LABEL = 'jobset.sigs.k8s.io/jobset-name';
const ATTEMPT_LABEL = 'jobset.sigs.k8s.io/restart-attempt';
const START_MILLISECONDS = 60_000;
const CONTAINER = 'trainer';

const jobSets = defineResource<KubernetesObject & { spec: object }>('jobset.x-k8s.io/v1alpha2', 'jobsets');
const leases = defineResource<KubernetesObject>('coordination.k8s.io/v1', 'leases');

interface WebhookConfiguration {
  webhooks: { clientConfig: { service?: { path: string }; url?: string; caBundle?: string } }[];
}

/** Of a pod: its JobSet, how often that had restarted before, and its phase. */
interface Rank {
  job: string;
  attempt: number;
  phase: string | undefined;
}

export class JobSet implements Gangs {
  readonly #plane: ControlPlane;
  readonly #folder: string;
  readonly #args: string[];
  readonly #health: string;
  readonly #conditions = new Conditions();
  /** By name. */
  readonly #ranks = new Map<string, Rank>();
  readonly #sizes = new Map<string, number>();
  readonly #stop = new AbortController();
  readonly #watched: Promise<void>;
  #child: ChildProcess | undefined;

  private constructor(plane: ControlPlane, folder: string, args: string[], health: string) {
    this.#plane = plane;
    this.#folder = folder;
    this.#args = args;
    this.#health = health;
    const cache = new Cache<PodObject>({
      client: plane.client,
      namespace: NAMESPACE,
      log: pino({ level: 'warn' }),
      resource: pods,
      labelSelector: NAME_LABEL,
    });
    cache.onChange(({ object: { metadata, status }, deleted }) => {
      const { [NAME_LABEL]: job = '', [ATTEMPT_LABEL]: attempt } = metadata.labels ?? {};
      if (deleted) this.#ranks.delete(metadata.name);
      else this.#ranks.set(metadata.name, { job, attempt: Number(attempt), phase: status?.phase });
      this.#conditions.changed();
    });
    this.#watched = cache.run(this.#stop.signal);
  }

  /** Applies its manifests without the Deployment, in whose place `start` runs it. */
  static async install(plane: ControlPlane): Promise<JobSet> {
    const folder = await mkdtemp(join(tmpdir(), 'facetrain-jobset-'));
    const [healthPort, webhookPort] = await freePorts(2);
    const { cert, key } = await plane.certificate();
    await writeFile(join(folder, 'tls.crt'), cert);
    await writeFile(join(folder, 'tls.key'), key);
    await applyManifests(plane, `https://127.0.0.1:${webhookPort}`);
    const health = `127.0.0.1:${healthPort}`;
    const configuration = join(folder, 'config.yaml');
    await writeFile(
      configuration,
      JSON.stringify({
        apiVersion: 'config.jobset.x-k8s.io/v1alpha1',
        kind: 'Configuration',
        health: { healthProbeBindAddress: health },
        metrics: { bindAddress: '0' },
        webhook: { port: webhookPort, host: '127.0.0.1', certDir: folder },
        leaderElection: { leaderElect: true, resourceNamespace: SYSTEM },
        internalCertManagement: { enable: false },
      }),
    );
    const kubeconfig = await kubeconfigOf(plane, folder);
    // Its Deployment has this log level.
    const args = ['--config', configuration, '--kubeconfig', kubeconfig, '--zap-log-level=2'];
    return new JobSet(plane, folder, args, `http://${health}/readyz`);
  }

  /** Resolves when it serves its webhooks. */
  async start(): Promise<void> {
    // It does not release its lease when it ends.
    const { items } = await this.#plane.client.list(leases as Resource, SYSTEM, {});
    for (const { metadata } of items ?? [])
      await this.#plane.client.delete(leases as Resource, SYSTEM, metadata.name, metadata.uid);
    const log = join(this.#folder, 'jobset.log');
    const file = openSync(log, 'w');
    const child = spawn(join(tools, 'jobset'), this.#args, { stdio: ['ignore', file, file] });
    closeSync(file);
    const kill = () => child.kill('SIGKILL');
    process.once('exit', kill);
    child.once('exit', () => process.off('exit', kill));
    this.#child = child;
    await eventually(async () => {
      assert.equal((await fetch(this.#health)).status, 200);
    }, START_MILLISECONDS).catch(async (error: unknown) => {
      throw new Error(`JobSet does not start: ${(await readFile(log, 'utf8')).slice(-3000)}`, { cause: error });
    });
    await eventually(async () => {
      const leading = (await this.#plane.client.list(leases as Resource, SYSTEM, {})).items ?? [];
      assert.equal(leading.length, 1);
    }, START_MILLISECONDS);
  }

  /** Ends the process; what it has created stays. */
  async stop(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    await ended;
  }

  async close(): Promise<void> {
    await this.stop();
    this.#stop.abort();
    await this.#watched;
    await rm(this.#folder, { recursive: true, force: true });
  }

  cpuSeconds(): Promise<number> {
    return cpuSecondsOf(this.#child!.pid!);
  }

  async memory(): Promise<number> {
    return (await memoryOf(this.#child!.pid!)).now;
  }

  async apply(name: string, replicas: number): Promise<void> {
    this.#sizes.set(name, replicas);
    const container = { name: CONTAINER, image: 'trainer', resources: { limits: { 'nvidia.com/gpu': '1' } } };
    const template = { spec: { restartPolicy: 'Never', containers: [container] } };
    const job = { parallelism: replicas, completions: replicas, backoffLimit: 0, template };
    await this.#plane.client.create(jobSets, NAMESPACE, {
      apiVersion: jobSets.apiVersion,
      kind: 'JobSet',
      metadata: { name },
      spec: {
        failurePolicy: { maxRestarts: 10 },
        replicatedJobs: [{ name: 'w', replicas: 1, template: { spec: job } }],
      },
    });
  }

  async applyAll(names: string[], replicas: number): Promise<void> {
    await inParallel(names, (name) => this.apply(name, replicas));
  }

  podsExist(jobs: string[], attempt: number, replicas: number): Promise<number> {
    return this.#conditions.when(
      () =>
        this.#haveRanks(
          jobs,
          () => replicas,
          (rank) => rank.attempt === attempt,
        ),
      `${jobs.length} JobSets have ${replicas} pods each`,
    );
  }

  /** A pod's phase is all that counts, where a FaceTrainJob's status has to say it. */
  jobsRun(jobs: string[]): Promise<number> {
    return this.#conditions.when(
      () =>
        this.#haveRanks(
          jobs,
          (job) => this.#sizes.get(job)!,
          ({ phase }) => phase === 'Running',
        ),
      `${jobs.length} JobSets run`,
    );
  }

  async failOne(job: string): Promise<void> {
    const [name] = [...this.#ranks].find(([, rank]) => rank.job === job)!;
    await failPod(this.#plane, name, CONTAINER);
  }

  async remove(jobs: string[]): Promise<void> {
    const names = new Set(jobs);
    await deleteAll(this.#plane, jobSets as Resource, {}, ({ name }) => names.has(name));
    await this.#conditions.when(
      () => [...this.#ranks.values()].every(({ job }) => !names.has(job)),
      'the pods of JobSets are gone',
    );
  }

  #haveRanks(jobs: string[], size: (job: string) => number, counts: (rank: Rank) => boolean): boolean {
    const found = new Map<string, number>();
    for (const rank of this.#ranks.values()) if (counts(rank)) found.set(rank.job, (found.get(rank.job) ?? 0) + 1);
    return jobs.every((job) => (found.get(job) ?? 0) >= size(job));
  }
}

async function applyManifests(plane: ControlPlane, webhooks: string): Promise<void> {
  const kubectl = join(tools, 'kubectl');
  const manifests = execFileSync(kubectl, ['kustomize', join(moduleFiles('jobset'), 'default')], {
    stdio: ['ignore', 'pipe', 'ignore'],
    encoding: 'utf8',
  });
  const objects = parseAllDocuments(manifests).map(
    (document) => document.toJS() as KubernetesObject & { kind: string },
  );
  const installed = objects.filter(({ kind }) => kind !== 'Deployment');
  for (const object of installed.filter(({ kind }) => kind.endsWith('WebhookConfiguration')))
    for (const { clientConfig } of (object as unknown as WebhookConfiguration).webhooks) {
      clientConfig.url = `${webhooks}${clientConfig.service!.path}`;
      clientConfig.caBundle = Buffer.from(plane.ca).toString('base64');
      delete clientConfig.service;
    }
  const input = installed.map((object) => JSON.stringify(object)).join('\n---\n');
  const options = ['--kubeconfig', await plane.kubeconfig(), 'apply', '--server-side', '-f', '-'];
  execFileSync(kubectl, options, { input, stdio: ['pipe', 'ignore', 'inherit'] });
  await eventually(() => plane.client.raw('/apis/jobset.x-k8s.io/v1alpha2/jobsets'), START_MILLISECONDS);
}

/** @returns the path of a kubeconfig with the token of JobSet's ServiceAccount */
async function kubeconfigOf(plane: ControlPlane, folder: string): Promise<string> {
  const { folder: mounted } = await plane.serviceAccount(SYSTEM, ACCOUNT);
  const file = join(folder, 'kubeconfig');
  const cluster = { server: plane.server, 'certificate-authority-data': Buffer.from(plane.ca).toString('base64') };
  await writeFile(
    file,
    JSON.stringify({
      'current-context': 'c',
      contexts: [{ name: 'c', context: { cluster: 'c', user: 'u' } }],
      clusters: [{ name: 'c', cluster }],
      users: [{ name: 'u', user: { tokenFile: join(mounted, 'token') } }],
    }),
  );
  return file;
}
