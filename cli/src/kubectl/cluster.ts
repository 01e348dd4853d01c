/** The cluster of a kubeconfig, and the jobs and pods in one namespace of it. Every error is in words for the user. */
import {
  API_VERSION,
  type Condition,
  type FaceTrainJobStatus,
  FacetrainError,
  type QuantizeJobStatus,
} from '@facetrain/api';
import { ApiError, isApiError } from '@facetrain/operator/runtime/api-error';
import { Client } from '@facetrain/operator/runtime/client';
import { type KubeContext, readKubeConfig } from '@facetrain/operator/runtime/kubeconfig';
import { defineResource, type KubernetesObject } from '@facetrain/operator/runtime/resource';
import { CONTAINER, firstPodOf, Label } from '@facetrain/planner/names';

/** The options of every command. */
export interface ClusterOptions {
  namespace?: string;
  context?: string;
  kubeconfig?: string;
}

export interface Job extends KubernetesObject {
  spec: Record<string, unknown>;
  status?: FaceTrainJobStatus;
}

export interface QuantizeJob extends KubernetesObject {
  spec: Record<string, unknown>;
  status?: QuantizeJobStatus;
}

export type FoundJob = { kind: 'FaceTrainJob'; job: Job } | { kind: 'QuantizeJob'; job: QuantizeJob };

/** Kueue's request for quota. */
export interface Workload extends KubernetesObject {
  spec: { active?: boolean; podSets?: { count?: number }[] };
  status?: {
    conditions?: Condition[];
    admission?: { podSetAssignments?: { count?: number }[] };
    reclaimablePods?: { count: number }[];
  };
}

interface ContainerState {
  waiting?: { reason?: string; message?: string };
  running?: object;
  terminated?: { exitCode: number; reason?: string; message?: string };
}

interface Container {
  name: string;
  args?: string[];
  restartPolicyRules?: { exitCodes?: { values: number[] } }[];
}

export interface Pod extends KubernetesObject {
  spec: { nodeName?: string; containers?: Container[] };
  status?: {
    phase?: string;
    reason?: string;
    message?: string;
    conditions?: { type: string; status: string; reason?: string; message?: string }[];
    containerStatuses?: {
      name: string;
      state?: ContainerState;
      /** Of the container before. */
      lastState?: ContainerState;
      restartCount?: number;
    }[];
  };
}

export interface Event extends KubernetesObject {
  type?: string;
  reason?: string;
  message?: string;
  count?: number;
  lastTimestamp?: string | null;
  eventTime?: string | null;
}

export const jobs = defineResource<Job>(API_VERSION, 'facetrainjobs');
export const quantizeJobs = defineResource<QuantizeJob>(API_VERSION, 'quantizejobs');
export const pods = defineResource<Pod>('v1', 'pods');
const events = defineResource<Event>('v1', 'events');
const workloads = defineResource<Workload>('kueue.x-k8s.io/v1beta2', 'workloads');

export const refusal = (subject: string, found: string, allowed: string, cause?: unknown) =>
  new FacetrainError({ code: 'InvalidArgument', subject, found, allowed, cause });

/** What may be the name of an object. Anything else would make another path of the API. */
const NAME = /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/;

export class Cluster {
  readonly client: Client;
  readonly namespace: string;
  readonly #context: KubeContext;

  private constructor(context: KubeContext, namespace: string) {
    this.client = new Client(context.connection);
    this.namespace = namespace;
    this.#context = context;
  }

  /**
   * The namespace is that of the option, else of the context, else `default`.
   *
   * @throws FacetrainError InvalidArgument for a kubeconfig that cannot be used
   */
  static async open({ namespace, context, kubeconfig }: ClusterOptions): Promise<Cluster> {
    try {
      const found = await readKubeConfig({ file: kubeconfig, context });
      const name = namespace ?? found.namespace ?? 'default';
      if (!NAME.test(name)) throw refusal('namespace', JSON.stringify(name), 'lower-case letters, digits and "-"');
      return new Cluster(found, name);
    } catch (error) {
      if ((error as Error).name !== 'KubeConfigError') throw error;
      throw refusal('kubeconfig', (error as Error).message, 'choose by --kubeconfig and --context', error);
    }
  }

  close(): Promise<void> {
    return this.client.close();
  }

  /** @throws FacetrainError InvalidArgument when there is none of this name: it lists those that there are */
  async job(name: string): Promise<Job> {
    return (await this.#faceTrainJob(name)) ?? this.#refuseName(name);
  }

  /** The FaceTrainJob of this name, else the QuantizeJob. @throws as `job` when there is neither */
  async jobOfEitherKind(name: string): Promise<FoundJob> {
    const training = await this.#faceTrainJob(name);
    if (training) return { kind: 'FaceTrainJob', job: training };
    const quantization = (await this.quantizeJobs()).find(({ metadata }) => metadata.name === name);
    return quantization ? { kind: 'QuantizeJob', job: quantization } : this.#refuseName(name);
  }

  async #refuseName(name: string): Promise<never> {
    const names = (await this.jobs()).map(({ metadata }) => metadata.name);
    const some = names.length === 0 ? 'it has none' : `there are ${names.slice(0, 20).join(', ')}`;
    throw refusal(`FaceTrainJob ${name}`, `not found in namespace ${this.namespace}`, `${some}; -n names another one`);
  }

  async #faceTrainJob(name: string): Promise<Job | undefined> {
    if (!NAME.test(name)) return undefined;
    return this.inWords(`FaceTrainJob ${name}`, () =>
      this.client.get(jobs, this.namespace, name).catch((error: unknown) => {
        if (!isApiError(error, 'NotFound')) throw error;
        return undefined;
      }),
    );
  }

  /** All QuantizeJobs of the namespace, by name; empty where the user may not read them. */
  quantizeJobs(): Promise<QuantizeJob[]> {
    return this.inWords(`QuantizeJobs in namespace ${this.namespace}`, async () => {
      const { items } = await this.client.list(quantizeJobs, this.namespace, {}).catch((error: unknown) => {
        if (!isApiError(error, 'Forbidden')) throw error;
        return { items: [] };
      });
      return items ?? [];
    });
  }

  /** All FaceTrainJobs of the namespace, by name. */
  jobs(): Promise<Job[]> {
    return this.inWords(`FaceTrainJobs in namespace ${this.namespace}`, async () => {
      const { items } = await this.client.list(jobs, this.namespace, {});
      return items ?? [];
    });
  }

  /** The pods of a job of either kind, the newest attempt first, by number. */
  async pods(uid: string): Promise<Pod[]> {
    const found = await this.inWords('pods', async () => {
      const { items } = await this.client.list(pods, this.namespace, { labelSelector: `${Label.jobUid}=${uid}` });
      return items ?? [];
    });
    return found.sort((a, b) => attemptOf(b) - attemptOf(a) || numberOf(a) - numberOf(b));
  }

  quantizeJob(name: string): Promise<QuantizeJob | undefined> {
    return this.inWords(`QuantizeJob ${name}`, () =>
      this.client.get(quantizeJobs, this.namespace, name).catch((error: unknown) => {
        if (!isApiError(error, 'NotFound')) throw error;
        return undefined;
      }),
    );
  }

  /** The Workloads of a job, in the order of their pods; empty where there are none, or the user may not read them. */
  async workloads(uid: string): Promise<Workload[]> {
    try {
      const labelSelector = `${Label.jobUid}=${uid}`;
      const { items } = await this.client.list(workloads, this.namespace, { labelSelector });
      return (items ?? []).sort((a, b) => firstPodOf(a.metadata.name) - firstPodOf(b.metadata.name));
    } catch (error) {
      if (isApiError(error, 'Forbidden', 'NotFound')) return [];
      return this.inWords('workloads', () => Promise.reject(error as Error));
    }
  }

  /** Warnings about an object, the newest last; empty where the user may not read Events. */
  async warnings(uid: string): Promise<Event[]> {
    try {
      const { items } = await this.client.list(events, this.namespace, { fieldSelector: `involvedObject.uid=${uid}` });
      return (items ?? [])
        .filter(({ type }) => type === 'Warning')
        .sort((a, b) => timeOfEvent(a).localeCompare(timeOfEvent(b)));
    } catch (error) {
      if (isApiError(error, 'Forbidden')) return [];
      return this.inWords('events', () => Promise.reject(error as Error));
    }
  }

  /** Runs requests, and puts what goes wrong into words. @throws FacetrainError */
  async inWords<T>(subject: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw this.words(subject, error);
    }
  }

  /** An error of a request in words; any other error as it is, also one that is in words. */
  words(subject: string, error: unknown): unknown {
    if (error instanceof FacetrainError) return error;
    const { name, connection } = this.#context;
    const where = `context ${name} (${connection.server})`;
    if (error instanceof ApiError) {
      const { status, serverMessage } = error;
      if (status === 401) return refusal(where, 'the API server refuses the credentials', 'log in again', error);
      if (status === 404 && /requested resource|page not found/.test(serverMessage))
        return refusal(where, 'the cluster serves no FaceTrainJob', 'install Facetrain, or choose by --context', error);
      const allowed = status === 403 ? 'ask for the permission' : 'see `kubectl facetrain status`';
      return refusal(subject, serverMessage, allowed, error);
    }
    const { code } = ((error as Error).cause ?? error) as { code?: unknown };
    if (typeof code === 'string' && /^(E[A-Z]+|UND_ERR_\w+|CERT_\w+|\w+_CERT\w*)$/.test(code))
      return refusal(where, `cannot be reached: ${(error as Error).message || code}`, 'choose by --context', error);
    return error;
  }
}

const numberIn = (pod: Pod, label: string): number => Number(pod.metadata.labels?.[label] ?? 0);
export const attemptOf = (pod: Pod): number => numberIn(pod, Label.attempt);
export const numberOf = (pod: Pod): number => numberIn(pod, Label.rank);

/** The ranks of a trainer's pod: one, or as many as the arguments of its program say. */
export function ranksOf(pod: Pod): { first: number; count: number } {
  const { args = [] } = pod.spec.containers?.find(({ name }) => name === CONTAINER) ?? {};
  const count = args[1] === '--ranks' ? Number(args[2]) : 1;
  return { first: numberOf(pod) * count, count };
}

/** In words: rank 3, ranks 8-15. */
export function ranksText(pod: Pod): string {
  const { first, count } = ranksOf(pod);
  return count === 1 ? `rank ${first}` : `ranks ${first}-${first + count - 1}`;
}

/** A pod that holds the place of a trainer for the next attempt: it has no log. */
export const isPlaceholder = (pod: Pod): boolean => pod.metadata.labels?.[Label.placeholder] === 'true';

export const timeOfEvent = ({ metadata, lastTimestamp, eventTime }: Event): string =>
  lastTimestamp ?? eventTime ?? metadata.creationTimestamp;

/** Whether the job has succeeded or failed. */
export const isFinished = ({ status }: Job | QuantizeJob): boolean => status?.completionTime !== undefined;

/** The condition Ready, in whose words it stands what a job waits for. */
export const readyOf = ({ status }: { status?: { conditions?: Condition[] | undefined } }): Condition | undefined =>
  status?.conditions?.find(({ type }) => type === 'Ready');
