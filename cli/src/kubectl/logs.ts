/** `kubectl facetrain logs`: the log of one rank. With `follow` it goes on with the rank's pod of the next attempt. */
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError } from '@facetrain/api';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import { objectPath } from '@facetrain/operator/runtime/resource';
import { CONTAINER } from '@facetrain/planner/names';
import {
  attemptOf,
  type Cluster,
  isFinished,
  isPlaceholder,
  type Job,
  type Pod,
  pods as podResource,
  rankOf,
} from './cluster.ts';

export interface LogsOptions {
  rank: number;
  /** Default: the newest that has a pod of the rank. */
  attempt?: number;
  /** The quantizer's log in place of a trainer's. */
  quantizer?: boolean;
  follow?: boolean;
  /** Lines from the end; default: all. */
  tail?: number;
}

const RETRY_MILLISECONDS = 1_000;

/**
 * Writes the log to `write` until it ends; with `follow` until the job does, or the signal aborts.
 *
 * @param announce called with a line about which pod's log follows
 * @throws FacetrainError InvalidArgument when there is no such pod; with `follow`, when there will be none
 */
export async function writeLogs(
  cluster: Cluster,
  name: string,
  options: LogsOptions,
  write: (data: Buffer) => Promise<void>,
  announce: (line: string) => void,
  signal: AbortSignal,
): Promise<void> {
  /** The attempt whose log was written last. */
  let last: number | undefined;
  let announced: string | undefined;
  for (;;) {
    const job = await cluster.job(name);
    const owner = options.quantizer
      ? await quantizeJobUid(cluster, job.status?.quantizeJobName, name)
      : job.metadata.uid;
    const all = (await cluster.pods(owner)).filter((pod) => !isPlaceholder(pod));
    const pod = all.find(
      (one) =>
        rankOf(one) === (options.quantizer ? 0 : options.rank) &&
        (options.attempt === undefined
          ? last === undefined || attemptOf(one) > last
          : attemptOf(one) === options.attempt),
    );
    if (pod) {
      const isPlaced = pod.spec.nodeName !== undefined;
      const line = `${pod.metadata.name}: attempt ${attemptOf(pod)}${isPlaced ? '' : '; it has no node yet'}`;
      if (line !== announced) announce(line);
      announced = line;
      // The API server answers with an empty log for a pod without a node.
      const hasStarted = isPlaced && (await writeLog(cluster, pod, options, write, signal));
      if (hasStarted) last = attemptOf(pod);
    } else if (last === undefined && (!options.follow || neverComes(job, options))) throw noPod(name, all, options);
    if (!options.follow || signal.aborted || isFinished(job) || (options.attempt !== undefined && last !== undefined))
      return;
    await delay(RETRY_MILLISECONDS, undefined, { signal });
  }
}

/** Whether no attempt of the job has the rank, as its spec is now. */
function neverComes({ spec }: Job, { rank, quantizer }: LogsOptions): boolean {
  const { replicas = 1, elastic } = (spec.trainers ?? {}) as { replicas?: number; elastic?: { maxReplicas?: number } };
  return !quantizer && rank >= Math.max(replicas, elastic?.maxReplicas ?? 0);
}

async function quantizeJobUid(cluster: Cluster, quantizeJob: string | undefined, name: string): Promise<string> {
  const found = quantizeJob === undefined ? undefined : await cluster.quantizeJob(quantizeJob);
  if (found) return found.metadata.uid;
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: `FaceTrainJob ${name}`,
    found: 'has no QuantizeJob yet',
    allowed: 'it gets one after the training, if spec.quantize is set',
  });
}

function noPod(name: string, pods: Pod[], { rank, attempt, quantizer }: LogsOptions): FacetrainError {
  const wanted = `${quantizer ? 'quantizer' : `rank ${rank}`}${attempt === undefined ? '' : ` of attempt ${attempt}`}`;
  const known = pods.map((pod) => `${rankOf(pod)} of attempt ${attemptOf(pod)}`).slice(0, 20);
  return new FacetrainError({
    code: 'InvalidArgument',
    subject: `FaceTrainJob ${name}`,
    found: `no pod of ${wanted}`,
    allowed: known.length === 0 ? 'it has no pods' : `there are pods of ranks ${known.join(', ')}`,
  });
}

/** @returns whether there was a log; with `follow`, a container that has not started is waited for */
async function writeLog(
  cluster: Cluster,
  pod: Pod,
  { follow = false, tail }: LogsOptions,
  write: (data: Buffer) => Promise<void>,
  signal: AbortSignal,
): Promise<boolean> {
  const path = `${objectPath(podResource, cluster.namespace, pod.metadata.name)}/log`;
  try {
    for await (const data of cluster.client.stream(path, { container: CONTAINER, follow, tailLines: tail }, signal))
      await write(data);
    return true;
  } catch (error) {
    if (signal.aborted) return true;
    // The kubelet's words for a container that waits.
    if (follow && isApiError(error, 'BadRequest', 'NotFound')) return false;
    throw cluster.words(`log of ${pod.metadata.name}`, error);
  }
}
