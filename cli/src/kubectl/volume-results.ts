/**
 * Results in a PersistentVolumeClaim, read through a pod that lives as long as the command: it mounts the claim, serves
 * its files by HTTP, and the API server passes them on (the subresource pods/proxy). No other way into a volume needs
 * as little: kubectl cp wants a shell and tar in the image, and a log is cut off at 10 MiB.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { API_VERSION, CHECKPOINT_MANIFEST, checkpointStep, FacetrainError, parseStorageUri } from '@facetrain/api';
import { ApiError, isApiError } from '@facetrain/operator/runtime/api-error';
import { objectPath } from '@facetrain/operator/runtime/resource';
import { CONTAINER } from '@facetrain/planner/names';
import { inWords } from '../results/copy-results.ts';
import type { ListedCheckpoint, ResultSource } from '../results/result-source.ts';
import { type Cluster, type Job, type Pod, pods, refusal } from './cluster.ts';

const MOUNT = '/results';
/** Of the pod. */
const PORT = 8080;
/** If this command cannot delete the pod, it ends after so many seconds. */
const LIFE_SECONDS = 3_600;
const POLL_MILLISECONDS = 500;
/** A request that fails on its way (503 of the proxy, a broken connection) is repeated so often in a row. */
const TRIES = 10;
/** Of nobody: files of trainers can be read by all, and pods of a job run under this number by default, too. */
const USER = 65532;

interface OpenOptions {
  image: string | undefined;
  show: (detail: string) => void;
  signal: AbortSignal;
  /** Of the pod. Tests play it on this machine, where the default may be taken. */
  port?: number | undefined;
}

export class VolumeResults implements ResultSource {
  readonly uri: string;
  readonly #cluster: Cluster;
  readonly #pod: Pod;
  readonly #port: number;
  readonly #token: string;
  readonly #signal: AbortSignal;

  private constructor(
    uri: string,
    cluster: Cluster,
    pod: Pod,
    served: { port: number; token: string },
    signal: AbortSignal,
  ) {
    this.uri = uri;
    this.#cluster = cluster;
    this.#pod = pod;
    this.#port = served.port;
    this.#token = served.token;
    this.#signal = signal;
  }

  /** Creates the pod, and waits until it serves. The caller closes it. @throws FacetrainError InvalidArgument */
  static async open(cluster: Cluster, job: Job, uri: string, options: OpenOptions): Promise<VolumeResults> {
    const served = { port: options.port ?? PORT, token: randomBytes(16).toString('hex') };
    const sample = (await cluster.pods(job.metadata.uid))[0];
    const pod = await cluster.inWords('pod that reads the volume', () =>
      cluster.client.create(pods, cluster.namespace, podOf(job, sample, uri, served, options.image)),
    );
    const results = new VolumeResults(uri, cluster, pod, served, options.signal);
    try {
      await results.#untilServing(options.show);
      return results;
    } catch (error) {
      await results.close();
      throw error;
    }
  }

  async read(file: string): Promise<Uint8Array | undefined> {
    try {
      return await this.#bytes(`files/${file}`);
    } catch (error) {
      if (isApiError(error, 'NotFound')) return undefined;
      throw this.#cluster.words(`${this.uri}/${file}`, error);
    }
  }

  async copy(file: string, to: string): Promise<void> {
    if (existsSync(to)) return; // An earlier call has copied it. Its digest is compared by the caller.
    const partial = `${to}.partial`;
    for (let tries = 1, before = 0; ; tries++) {
      const from = existsSync(partial) ? statSync(partial).size : 0;
      if (from > before) tries = 1;
      before = from;
      try {
        await this.#append(file, from, partial);
        return await inWords(to, () => rename(partial, to));
      } catch (error) {
        // What is wrong on this machine, such as a full disk, is a FacetrainError.
        const isBroken = !(error instanceof FacetrainError) && 'code' in (error as Error);
        const mayPass = error instanceof ApiError ? error.status >= 500 : isBroken;
        if (this.#signal.aborted || !mayPass || tries === TRIES)
          throw this.#cluster.words(`${this.uri}/${file}`, error);
        await delay(POLL_MILLISECONDS * tries, undefined, { signal: this.#signal });
      }
    }
  }

  async #append(file: string, from: number, path: string): Promise<void> {
    const written = await inWords(path, () => open(path, 'a'));
    try {
      for await (const part of this.#get(`files/${file}`, from)) await inWords(path, () => written.writeFile(part));
      await inWords(path, () => written.sync());
    } finally {
      await written.close();
    }
  }

  async checkpoints(): Promise<ListedCheckpoint[]> {
    const names = JSON.parse((await this.#bytes('list')).toString()) as string[];
    const found: ListedCheckpoint[] = [];
    for (const folder of names) {
      const step = checkpointStep(folder);
      // A folder without a manifest is no checkpoint.
      if (step !== undefined && (await this.read(`${folder}/${CHECKPOINT_MANIFEST}`))) found.push({ step, folder });
    }
    return found.sort((a, b) => b.step - a.step);
  }

  async close(): Promise<void> {
    const { name, uid } = this.#pod.metadata;
    await this.#cluster.client.delete(pods, this.#cluster.namespace, name, uid, 1).catch((error: unknown) => {
      if (!isApiError(error, 'NotFound')) throw this.#cluster.words(`pod ${name}: delete it`, error);
    });
  }

  async #bytes(path: string): Promise<Buffer> {
    const parts: Buffer[] = [];
    for await (const part of this.#get(path)) parts.push(part);
    return Buffer.concat(parts);
  }

  #get(path: string, from = 0): AsyncGenerator<Buffer> {
    const { namespace, client } = this.#cluster;
    const pod = objectPath(pods, namespace, `${this.#pod.metadata.name}:${this.#port}`);
    return client.stream(`${pod}/proxy/${this.#token}/${path}`, from > 0 ? { from } : {}, this.#signal);
  }

  async #untilServing(show: (detail: string) => void): Promise<void> {
    const { name } = this.#pod.metadata;
    for (;;) {
      const pod = await this.#cluster.inWords(`pod ${name}`, () =>
        this.#cluster.client.get(pods, this.#cluster.namespace, name),
      );
      const { phase = 'Pending', conditions = [], containerStatuses = [] } = pod.status ?? {};
      const { waiting, terminated } = containerStatuses.find((one) => one.name === CONTAINER)?.state ?? {};
      if (phase === 'Failed' || phase === 'Succeeded')
        throw refusal(
          `pod ${name}`,
          `it ended before it served (${terminated?.message ?? pod.status?.message ?? phase})`,
          'a trainers’ image of this release, by --image',
        );
      if (phase === 'Running' && (await this.#isServing())) return;
      const unplaced = conditions.find(({ type, status }) => type === 'PodScheduled' && status === 'False');
      const reason = waiting?.message ?? waiting?.reason ?? unplaced?.message ?? phase;
      show(`waiting for pod ${name}: ${reason}`);
      await delay(POLL_MILLISECONDS, undefined, { signal: this.#signal });
    }
  }

  /** @throws FacetrainError when the user may not */
  async #isServing(): Promise<boolean> {
    try {
      await this.#bytes('list');
      return true;
    } catch (error) {
      if (error instanceof ApiError && error.status < 500)
        throw this.#cluster.words(`files of pod ${this.#pod.metadata.name}`, error);
      return false;
    }
  }
}

interface PodSpec {
  containers?: { name: string; image?: string }[];
  [field: string]: unknown;
}

/** What of a trainer's pod decides where a pod may run and what it may pull. */
const PLACEMENT = ['imagePullSecrets', 'nodeSelector', 'tolerations', 'securityContext', 'serviceAccountName'] as const;

/** @param sample a pod of the job; its image is used */
function podOf(
  job: Job,
  sample: Pod | undefined,
  uri: string,
  { port, token }: { port: number; token: string },
  givenImage: string | undefined,
): object {
  const { name, uid } = job.metadata;
  const location = parseStorageUri(uri);
  if (location.scheme !== 'pvc') throw new TypeError(`${uri} is in no claim`);
  const spec = (sample?.spec ?? {}) as PodSpec;
  const image = givenImage ?? spec.containers?.find((one) => one.name === CONTAINER)?.image;
  if (image === undefined)
    throw refusal(
      `FaceTrainJob ${name}`,
      'it has no pods any more, which would tell the image',
      '--image with the trainers’ image',
    );
  const placement = Object.fromEntries(PLACEMENT.flatMap((field) => (spec[field] ? [[field, spec[field]]] : [])));
  const resources = { cpu: '500m', memory: '256Mi' };
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      generateName: `${name.slice(0, 40)}-fetch-`,
      // It goes with the job.
      ownerReferences: [{ apiVersion: API_VERSION, kind: 'FaceTrainJob', name, uid }],
    },
    spec: {
      securityContext: { runAsNonRoot: true, runAsUser: USER, seccompProfile: { type: 'RuntimeDefault' } },
      ...placement,
      restartPolicy: 'Never',
      automountServiceAccountToken: false,
      activeDeadlineSeconds: LIFE_SECONDS,
      terminationGracePeriodSeconds: 1,
      containers: [
        {
          name: CONTAINER,
          image,
          // Not by subPath: the kubelet would make a folder that is not there.
          args: ['serve', '--folder', join(MOUNT, location.path), '--port', String(port)],
          env: [{ name: 'FACETRAIN_SERVE_TOKEN', value: token }],
          ports: [{ containerPort: port }],
          resources: { requests: { ...resources, cpu: '100m' }, limits: resources },
          securityContext: {
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ['ALL'] },
          },
          volumeMounts: [{ name: 'results', mountPath: MOUNT, readOnly: true }],
        },
      ],
      volumes: [{ name: 'results', persistentVolumeClaim: { claimName: location.claim } }],
    },
  };
}
