/** `kubectl facetrain suspend`, `resume` and `restart`. */
import { setTimeout as delay } from 'node:timers/promises';
import { OPERATOR_NAME } from '@facetrain/api';
import { isAlive } from '@facetrain/planner/attempt';
import type { Outcome } from '../command-action.ts';
import { type Cluster, isFinished, type Job, jobs, refusal } from './cluster.ts';

const POLL_MILLISECONDS = 500;

/** Sets `spec.suspend`. @throws FacetrainError InvalidArgument for a job that has ended or is managed by another */
export async function setSuspended(cluster: Cluster, name: string, suspend: boolean): Promise<Outcome> {
  const job = await changeable(cluster, name);
  const text = suspend ? 'suspended' : 'resumed';
  if ((job.spec.suspend === true) === suspend)
    return {
      json: { job: name, changed: false },
      text: `FaceTrainJob ${name} is ${suspend ? text : 'not suspended'}\n`,
    };
  await patch(cluster, job, suspend);
  const after = suspend ? '; its pods write a checkpoint and end' : '';
  return { json: { job: name, changed: true }, text: `FaceTrainJob ${name} ${text}${after}\n` };
}

/**
 * Ends the attempt with a checkpoint and begins another: suspends the job, waits until its pods have ended, and resumes
 * it. Such a restart does not count. Of a job that has trained, the quantization begins anew. A job in a queue gives
 * its quota back and waits for it again.
 *
 * @throws FacetrainError InvalidArgument as setSuspended; also when the wait or the resumption fails, or the signal
 *   aborts: the job stays suspended
 */
export async function restart(
  cluster: Cluster,
  name: string,
  show: (detail: string) => void,
  signal: AbortSignal,
): Promise<Outcome> {
  const job = await changeable(cluster, name);
  if (job.spec.suspend === true)
    throw refusalOf(name, 'is suspended', `\`kubectl facetrain resume ${name}\` starts it`);
  await patch(cluster, job, true);
  let after: 'ended' | 'training' | 'quantization';
  try {
    after = await suspension(cluster, job, show, signal);
    if (after !== 'ended') await patch(cluster, job, false);
  } catch (error) {
    const why = signal.aborted ? '' : `: ${(error as Error).message}`;
    const found = `is suspended, and its restart was stopped${why}`;
    throw refusalOf(name, found, `\`kubectl facetrain resume ${name}\` goes on`, error);
  }
  if (after === 'ended') throw refusalOf(name, 'has ended meanwhile', 'see status');
  const how = after === 'training' ? 'from its newest checkpoint' : 'its quantization';
  const { name: queue } = (job.spec.queue ?? {}) as { name?: string };
  const queues = queue === undefined ? '' : ` once queue ${queue} admits it again: a suspension gives its quota back`;
  return { json: { job: name, changed: true }, text: `FaceTrainJob ${name} restarts ${how}${queues}\n` };
}

/** Waits until a job is suspended and its pods have ended. @returns what goes on when it is resumed */
async function suspension(
  cluster: Cluster,
  { metadata: { name, uid } }: Job,
  show: (detail: string) => void,
  signal: AbortSignal,
): Promise<'ended' | 'training' | 'quantization'> {
  for (;;) {
    const now = await cluster.job(name);
    if (now.metadata.uid !== uid || isFinished(now)) return 'ended';
    const { phase, quantizeJobName } = now.status ?? {};
    const child = quantizeJobName === undefined ? undefined : await cluster.quantizeJob(quantizeJobName);
    const owners = child ? [now, child] : [now];
    const pods = await Promise.all(owners.map(({ metadata }) => cluster.pods(metadata.uid)));
    const alive = pods.flat().filter(({ status }) => isAlive(status)).length;
    // The job is Suspended before its QuantizeJob has seen that it is to be.
    const isSuspended = phase === 'Suspended' && (!child || child.status?.phase === 'Suspended');
    if (isSuspended && alive === 0) return child ? 'quantization' : 'training';
    show(`${alive} pods have not ended`);
    await delay(POLL_MILLISECONDS, undefined, { signal });
  }
}

const refusalOf = (name: string, found: string, allowed: string, cause?: unknown) =>
  refusal(`FaceTrainJob ${name}`, found, allowed, cause);

async function changeable(cluster: Cluster, name: string): Promise<Job> {
  const job = await cluster.job(name);
  if (isFinished(job)) throw refusalOf(name, `has ended (${job.status!.phase})`, 'apply it again under another name');
  const { managedBy = OPERATOR_NAME } = job.spec;
  if (managedBy !== OPERATOR_NAME) throw refusalOf(name, `is managed by ${String(managedBy)}`, 'change it there');
  return job;
}

/** The uid is a precondition: a job that was made anew under this name is another one. */
const patch = (cluster: Cluster, { metadata: { name, uid } }: Job, suspend: boolean): Promise<Job> =>
  cluster.inWords(`FaceTrainJob ${name}`, () =>
    cluster.client.patch(jobs, cluster.namespace, name, { metadata: { uid }, spec: { suspend } }),
  );
