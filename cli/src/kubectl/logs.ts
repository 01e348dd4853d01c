/**
 * `kubectl facetrain logs`: the log of one rank. With `follow` it goes on when the rank is started again, in its pod or
 * in that of the next attempt.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError } from '@facetrain/api';
import { ApiError, isApiError } from '@facetrain/operator/runtime/api-error';
import type { Query } from '@facetrain/operator/runtime/client';
import { hasEnd, linesOf } from '@facetrain/operator/runtime/lines';
import { objectPath } from '@facetrain/operator/runtime/resource';
import { isAlive } from '@facetrain/planner/attempt';
import { CONTAINER } from '@facetrain/planner/names';
import {
  attemptOf,
  type Cluster,
  isFinished,
  isPlaceholder,
  type Job,
  type Pod,
  pods as podResource,
  ranksOf,
  ranksText,
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

/** How far the log of a pod was written, by the time stamps that the kubelet puts before lines. */
interface Position {
  pod: string;
  /** Of the last line; undefined: no line was written. */
  time?: string;
  /** Number of lines of that time. */
  lines: number;
}

/**
 * Writes the log to `write` until it ends; with `follow` until the job does, or the signal aborts. A log that ends
 * while its container runs (the API server or a proxy on the way was restarted, or the log was rotated) is asked for
 * again, from where it ended.
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
  let position: Position | undefined;
  for (;;) {
    const { kind, job } = await cluster.jobOfEitherKind(name);
    const isQuantizer = kind === 'QuantizeJob' || options.quantizer === true;
    const owner =
      kind === 'FaceTrainJob' && isQuantizer
        ? await quantizeJobUid(cluster, job.status?.quantizeJobName, name)
        : job.metadata.uid;
    const all = (await cluster.pods(owner)).filter((pod) => !isPlaceholder(pod));
    const pod = all.find(
      (one) =>
        (isQuantizer || hasRank(one, options.rank)) &&
        (options.attempt === undefined
          ? last === undefined || attemptOf(one) > last
          : attemptOf(one) === options.attempt),
    );
    if (pod) {
      const isPlaced = pod.spec.nodeName !== undefined;
      const line = `${pod.metadata.name}: attempt ${attemptOf(pod)}${isPlaced ? '' : '; it has no node yet'}`;
      if (line !== announced) announce(line);
      announced = line;
      if (position?.pod !== pod.metadata.uid) position = { pod: pod.metadata.uid, lines: 0 };
      // The API server answers with an empty log for a pod without a node.
      const hasStarted = isPlaced && (await writeLog(cluster, pod, options, position, write, signal));
      // What was asked for after the container had ended is all.
      if (hasStarted && hasEnded(pod)) last = attemptOf(pod);
    } else if (last === undefined && (!options.follow || (!isQuantizer && neverComes(job, options))))
      throw noPod(`${kind} ${name}`, all, { ...options, quantizer: isQuantizer });
    const isLast = isFinished(job) || (options.attempt !== undefined && last !== undefined);
    if (!options.follow || signal.aborted || (isLast && (pod === undefined || hasEnded(pod)))) return;
    await delay(RETRY_MILLISECONDS, undefined, { signal });
  }
}

function hasRank(pod: Pod, rank: number): boolean {
  const { first, count } = ranksOf(pod);
  return rank >= first && rank < first + count;
}

interface Trainers {
  replicas?: number;
  ranksPerPod?: number;
  elastic?: { maxReplicas?: number };
}

/** Whether no attempt of the job has the rank, as its spec is now. */
function neverComes({ spec }: Pick<Job, 'spec'>, { rank }: LogsOptions): boolean {
  const { replicas = 1, ranksPerPod = 1, elastic } = (spec.trainers ?? {}) as Trainers;
  return rank >= Math.max(replicas, elastic?.maxReplicas ?? 0) * ranksPerPod;
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

function noPod(subject: string, pods: Pod[], { rank, attempt, quantizer }: LogsOptions): FacetrainError {
  const wanted = `${quantizer ? 'quantizer' : `rank ${rank}`}${attempt === undefined ? '' : ` of attempt ${attempt}`}`;
  const known = pods.map((pod) => `${ranksText(pod)} of attempt ${attemptOf(pod)}`).slice(0, 20);
  return new FacetrainError({
    code: 'InvalidArgument',
    subject,
    found: `no pod of ${wanted}`,
    allowed: known.length === 0 ? 'it has no pods' : `there are pods of ${known.join(', ')}`,
  });
}

/** Whether nothing more is written to the log: its container has ended, and the kubelet does not start it again. */
function hasEnded({ spec, status }: Pod): boolean {
  if (!isAlive(status)) return true;
  const ended = status?.containerStatuses?.find(({ name }) => name === CONTAINER)?.state?.terminated;
  const rules = spec.containers?.find(({ name }) => name === CONTAINER)?.restartPolicyRules ?? [];
  return ended !== undefined && !rules.some(({ exitCodes }) => exitCodes?.values.includes(ended.exitCode));
}

/**
 * @param position is moved on
 * @returns whether there was a log; with `follow`, a container that has not started is waited for
 */
async function writeLog(
  cluster: Cluster,
  pod: Pod,
  { follow = false, tail, rank, quantizer }: LogsOptions,
  position: Position,
  write: (data: Buffer) => Promise<void>,
  signal: AbortSignal,
): Promise<boolean> {
  const path = `${objectPath(podResource, cluster.namespace, pod.metadata.name)}/log`;
  const isShared = !quantizer && ranksOf(pod).count > 1;
  const isOurs = (line: Buffer) => !isShared || mayBeOf(line, rank);
  const read = (query: Query, at = position) => {
    const stamped = follow && { timestamps: true };
    const lines = linesOf(cluster.client.stream(path, { container: CONTAINER, ...query, ...stamped }, signal));
    return follow ? newLines(lines, at, hasEnded(pod)) : lines;
  };
  try {
    // The API server counts the lines of all ranks.
    if (isShared && tail !== undefined && position.time === undefined) {
      const last: Buffer[] = [];
      // Of a log that breaks off no line is written, and none counts as written.
      const end = { ...position };
      for await (const line of read({}, end)) if (isOurs(line) && last.push(line) > tail) last.shift();
      Object.assign(position, end);
      for (const line of last) await write(line);
      if (!follow) return true;
    }
    const from = position.time !== undefined ? { sinceTime: position.time } : isShared ? {} : { tailLines: tail };
    for await (const line of read({ ...from, ...(follow && { follow }) })) if (isOurs(line)) await write(line);
    return true;
  } catch (error) {
    if (signal.aborted) return true;
    // The kubelet's words for a container that waits.
    if (follow && isApiError(error, 'BadRequest', 'NotFound')) return false;
    // A connection that broke. If the API server is away, the next request says so.
    if (follow && position.time !== undefined && !(error instanceof ApiError)) return false;
    throw cluster.words(`log of ${pod.metadata.name}`, error);
  }
}

/**
 * Whether a line in the log of a pod with several ranks is not another rank's. The pod writes the ranks' lines of JSON
 * as they are, with their rank in them, and begins others with it (trainer-image/src/program/rank-processes.ts); its
 * own lines name no rank.
 */
function mayBeOf(line: Buffer, rank: number): boolean {
  const [, inJson, before] = /^(?:\{.*?"rank":(\d+)[,}]|rank (\d+): )/.exec(line.toString()) ?? [];
  const named = inJson ?? before;
  return named === undefined || Number(named) === rank;
}

const TIME_STAMP = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d/;

/**
 * The lines of a log with time stamps that come after the position, without the stamps. The API server takes only whole
 * seconds as sinceTime, so lines of the same second come again.
 *
 * @param isWhole whether no more is written. Else a line that is cut off at the end is left out: it comes again
 */
async function* newLines(lines: AsyncIterable<Buffer>, position: Position, isWhole: boolean): AsyncGenerator<Buffer> {
  const { time: begin = '', lines: known } = position;
  let atBegin = 0;
  for await (const line of lines) {
    if (!isWhole && !hasEnd(line)) return;
    const end = line.indexOf(' ');
    const time = line.subarray(0, Math.max(end, 0)).toString();
    // The kubelet's own words, such as "failed to create fsnotify watcher: too many open files".
    if (!TIME_STAMP.test(time)) {
      yield line;
      continue;
    }
    // The kubelet writes all stamps in one zone and with nine digits.
    if (time < begin || (time === begin && begin !== '' && ++atBegin <= known)) continue;
    if (time === position.time) position.lines += 1;
    else Object.assign(position, { time, lines: 1 });
    yield line.subarray(end + 1);
  }
}
