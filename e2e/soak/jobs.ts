/** The jobs of a soak: FaceTrainJobs and QuantizeJobs of random kinds, some in a queue, and what became of each. */
import { faceTrainJobs, type JobObject, quantizeJobs } from '@facetrain/operator/controllers/resources';
import type { Client } from '@facetrain/operator/runtime/client';
import { controllerOf, type Resource } from '@facetrain/operator/runtime/resource';
import type { JobStatus } from '@facetrain/planner/attempt';
import { NAMESPACE, type PRIORITIES, QUEUE } from './cluster.ts';
import { OUTPUT_PATH } from './nodes.ts';
import type { Random } from './random.ts';

/** Of a gang. */
export const MAX_TRAINERS = 4;
const ELASTIC = { maxReplicas: MAX_TRAINERS, scaleDownSeconds: 3, scaleUpSeconds: 2 };
const DATASET = { uri: 'hostpath:///data/faces' };
/** What a pod asks for. */
const RESOURCES = { requests: { cpu: 1 } };
/** Never runs: its edits show whether the operator acts. */
const PROBE = 'probe';

/** Of a job of either kind. */
export const phaseOf = (status: JobStatus | undefined): string | undefined =>
  (status as { phase?: string } | undefined)?.phase;
export const hasEnded = ({ status }: JobObject): boolean => ['Succeeded', 'Failed'].includes(phaseOf(status) ?? '');

export const kindOf = ({ kind }: JobObject): Resource<JobObject> =>
  kind === 'QuantizeJob' ? quantizeJobs : faceTrainJobs;

export class Jobs {
  /** Uids of jobs that were created and not deleted, by name. */
  readonly created = new Map<string, string>();
  count = 0;
  deleted = 0;
  readonly #client: Client;
  readonly #random: Random;
  readonly #progressPort: number;

  constructor(client: Client, random: Random, progressPort: number) {
    this.#client = client;
    this.#random = random;
    this.#progressPort = progressPort;
  }

  /** Of both kinds, as they are stored; without the QuantizeJobs of trainings. */
  async list(): Promise<JobObject[]> {
    const all = await this.all();
    return all.filter((job) => job.metadata.name !== PROBE && controllerOf(job) === undefined);
  }

  async all(): Promise<JobObject[]> {
    const lists = [faceTrainJobs, quantizeJobs].map((kind) => this.#client.list(kind, NAMESPACE, {}));
    return (await Promise.all(lists)).flatMap(({ items }) => items ?? []);
  }

  /** Those that have not ended; none while the API server is away. */
  async open(): Promise<JobObject[]> {
    return (await this.list().catch(() => [])).filter((job) => !hasEnded(job));
  }

  /** Creates jobs until so many have not ended. */
  async refill(wanted: number): Promise<void> {
    const jobs = await this.list().catch(() => undefined);
    if (!jobs) return;
    for (let open = jobs.filter((job) => !hasEnded(job)).length; open < wanted; open++)
      await this.create(`job-${this.count}`);
  }

  async create(name: string): Promise<void> {
    const kind = this.#random.chance(0.15) ? 'QuantizeJob' : 'FaceTrainJob';
    const spec = { ...(kind === 'QuantizeJob' ? this.#quantization() : this.#training()), ...this.#queue() };
    this.count++;
    const job = { apiVersion: faceTrainJobs.apiVersion, kind, metadata: { name }, spec };
    const resource = kind === 'QuantizeJob' ? quantizeJobs : faceTrainJobs;
    const created = await this.#client.create(resource, NAMESPACE, job).catch(() => undefined);
    if (created) this.created.set(name, created.metadata.uid);
  }

  /** Deletes a job. `again`: another one of this name follows at once. */
  async remove(job: JobObject, again: boolean): Promise<void> {
    const { name, uid } = job.metadata;
    // First: the API server may delete the job though its answer does not come.
    this.created.delete(name);
    const gone = await this.#client.delete(kindOf(job), NAMESPACE, name, uid).then(
      () => true,
      () => false,
    );
    if (!gone) return;
    this.deleted++;
    if (again) await this.create(name);
  }

  async createProbe(): Promise<void> {
    const spec = { ...this.#training(), suspend: true, output: { uri: `hostpath://${OUTPUT_PATH}/${PROBE}` } };
    const job = { apiVersion: faceTrainJobs.apiVersion, kind: 'FaceTrainJob', metadata: { name: PROBE }, spec };
    await this.#client.create(faceTrainJobs, NAMESPACE, job);
  }

  /** Edits a job. @returns whether the operator has seen the edit; to be called until it has */
  async editProbe(): Promise<() => Promise<boolean>> {
    const spec = { progressDeadlineSeconds: 600 + Math.floor(performance.now() % 1e6) };
    const { metadata } = await this.#client.patch(faceTrainJobs, NAMESPACE, PROBE, { spec });
    return async () => {
      const { status } = await this.#client.get(faceTrainJobs, NAMESPACE, PROBE);
      return (status?.observedGeneration ?? 0) >= (metadata.generation ?? 0);
    };
  }

  #queue(): object {
    if (!this.#random.chance(0.35)) return {};
    const priorityClassName: keyof typeof PRIORITIES = this.#random.chance(0.25) ? 'high' : 'low';
    return { queue: { name: QUEUE, priorityClassName } };
  }

  #training(): object {
    const random = this.#random;
    const replicas = random.between(1, MAX_TRAINERS);
    return {
      dataset: DATASET,
      model: { backbone: 'mobilefacenet' },
      // No two jobs share a place, or one would wait for the other.
      output: { uri: random.chance(0.4) ? `s3://faces/${this.count}` : `hostpath://${OUTPUT_PATH}/${this.count}` },
      globalBatchSize: 48,
      trainers: {
        replicas,
        resources: RESOURCES,
        progressPort: this.#progressPort,
        ...(random.chance(0.3) && { elastic: { ...ELASTIC, minReplicas: random.between(1, Math.min(2, replicas)) } }),
      },
      failurePolicy: { maxRestarts: 100, nodeLostSeconds: random.between(1, 20) },
      ...(random.chance(0.25) && {
        quantize: {
          calibration: { dataset: DATASET },
          output: { uri: `hostpath:///data/int7/${this.count}` },
          quantizer: { resources: RESOURCES },
          failurePolicy: { maxRestarts: 100 },
        },
      }),
    };
  }

  #quantization(): object {
    return {
      model: { uri: 'hostpath:///data/model.onnx' },
      calibration: { dataset: DATASET },
      output: { uri: `hostpath:///data/int7/${this.count}` },
      quantizer: { resources: RESOURCES },
      failurePolicy: { maxRestarts: 100, nodeLostSeconds: this.#random.between(1, 20) },
    };
  }
}
