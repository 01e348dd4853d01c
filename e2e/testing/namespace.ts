/** One namespace of a cluster, as a person uses it: by kubectl. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { eventually } from '@facetrain/operator/testing/eventually';
import { stringify } from 'yaml';
import { root } from '../../hack/lib/paths.mjs';
import type { Cluster } from '../cluster/cluster.ts';
import { command } from '../cluster/command.ts';
import { createNamespace, S3_KEYS, s3Endpoint } from '../cluster/install-facetrain.ts';

export const MINUTE = 60_000;

export type JobKind = 'facetrainjob' | 'quantizejob';
export type Kind = JobKind | 'pod' | 'event';

export interface Job {
  metadata: { name: string; uid?: string };
  spec: Record<string, any>;
  status?: Record<string, any>;
}

export interface Condition {
  type: string;
  status: string;
  reason: string;
  message: string;
}

export interface Event {
  type: string;
  reason: string;
  message: string;
}

export function condition(job: Job, type: string): Condition | undefined {
  return (job.status?.conditions as Condition[] | undefined)?.find((each) => each.type === type);
}

/** How often a job has been started again: restarts that counted, and those that did not. */
export function restartsOf({ status }: Job): { counted: number; disruptions: number } {
  return { counted: status?.restarts?.count ?? 0, disruptions: status?.restarts?.disruptions ?? 0 };
}

export class Namespace {
  readonly cluster: Cluster;
  readonly name: string;

  constructor(cluster: Cluster, name: string) {
    this.cluster = cluster;
    this.name = name;
  }

  /** A new namespace, with the Secret and the claim of cluster/namespace.yaml. */
  static async create(cluster: Cluster, name: string): Promise<Namespace> {
    await createNamespace(cluster, name);
    return new Namespace(cluster, name);
  }

  /** The folder of this machine that the claim "facetrain" of the namespace is. */
  get folder(): string {
    return join(this.cluster.shared, 'volumes', this.name);
  }

  /** @returns standard output @throws CommandError */
  kubectl(...args: string[]): Promise<string> {
    return this.cluster.kubectl('-n', this.name, ...args);
  }

  /** @returns standard output @throws CommandError with the API server's words when it refuses one of them */
  apply(...objects: object[]): Promise<string> {
    const input = objects.map((object) => stringify(object)).join('---\n');
    return this.cluster.run('kubectl', ['-n', this.name, 'apply', '-f', '-'], { input });
  }

  /**
   * Copies a part of a job's results out of the object store, by `kubectl facetrain fetch`, which compares digests.
   * @returns the folder that has it
   */
  async fetch(job: string, part: 'int7' | 'checkpoint', ...options: string[]): Promise<string> {
    const program = join(root, 'cli', 'src', 'kubectl-facetrain.ts');
    const to = join(this.cluster.shared, 'fetched', this.name, job);
    const place = ['--to', to, '--endpoint', s3Endpoint(this.cluster)];
    const namespace = ['--namespace', this.name, '--kubeconfig', this.cluster.kubeconfig];
    const argv = [process.execPath, program, 'fetch', job, part, ...place, ...namespace, '--json', ...options];
    return (JSON.parse(await command(argv, { env: S3_KEYS })) as { folder: string }).folder;
  }

  get<T = Job>(kind: Kind, name: string): Promise<T> {
    return this.cluster.client.raw<T>(`${this.#path(kind)}/${name}`);
  }

  /** @param selector of labels; absent: all objects of the kind */
  async list<T = Job>(kind: Kind, selector?: string): Promise<T[]> {
    const query = selector === undefined ? '' : `?labelSelector=${encodeURIComponent(selector)}`;
    return (await this.cluster.client.raw<{ items: T[] }>(`${this.#path(kind)}${query}`)).items;
  }

  patch(kind: Kind, name: string, change: object): Promise<string> {
    return this.kubectl('patch', kind, name, '--type=merge', '-p', JSON.stringify(change));
  }

  /** The events of one object, of any age. */
  async events(kind: string, name: string): Promise<Event[]> {
    const events = await this.list<Event & { involvedObject: { kind: string; name: string } }>('event');
    return events.filter(({ involvedObject: object }) => object.kind === kind && object.name === name);
  }

  /**
   * Waits until `check` returns without an error.
   * @throws after `milliseconds`, with its last error and what kubectl shows of all jobs, pods and events
   */
  async waitFor(
    name: string,
    check: (job: Job) => void | Promise<void>,
    { kind = 'facetrainjob', milliseconds = 10 * MINUTE }: Waiting = {},
  ): Promise<Job> {
    const checked = async () => {
      const job = await this.get(kind, name);
      await check(job);
      return job;
    };
    try {
      return await eventually(checked, milliseconds, POLL_MILLISECONDS);
    } catch (error) {
      throw new Error(`${name}: ${(error as Error).message}\n${await this.#described(kind, name)}`, { cause: error });
    }
  }

  /** Waits until a job is in a phase. @throws as `waitFor`, and at once when it is in another final phase */
  async reachesPhase(name: string, phase: string, options: Waiting = {}): Promise<Job> {
    const job = await this.waitFor(
      name,
      ({ status }) => assert(status?.phase === phase || FINAL.has(status?.phase), `is ${status?.phase}`),
      options,
    );
    if (job.status!.phase !== phase)
      assert.fail(`${name} is ${job.status!.phase}\n${await this.#described(options.kind ?? 'facetrainjob', name)}`);
    return job;
  }

  #path(kind: Kind): string {
    return `${GROUPS[kind]}/namespaces/${this.name}/${kind}s`;
  }

  async #described(kind: string, name: string): Promise<string> {
    const described = await this.kubectl('describe', kind, name).catch(String);
    const pods = await this.kubectl('get', 'pods', '-o', 'wide').catch(String);
    return `${described}\n${pods}`;
  }
}

export interface Waiting {
  kind?: JobKind;
  milliseconds?: number;
}

/** Many jobs are waited for at the same time. */
const POLL_MILLISECONDS = 250;
const FINAL = new Set(['Succeeded', 'Failed']);
const FACETRAIN = '/apis/facetrain.dev/v1alpha1';
const GROUPS = { facetrainjob: FACETRAIN, quantizejob: FACETRAIN, pod: '/api/v1', event: '/api/v1' };
