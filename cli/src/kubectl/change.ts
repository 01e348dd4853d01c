/** `kubectl facetrain suspend`, `resume` and `restart`. */
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError, OPERATOR_NAME } from '@facetrain/api';
import type { Outcome } from '../command-action.ts';
import { type Cluster, isAlive, isFinished, type Job, jobs } from './cluster.ts';

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
 * it. Such a restart does not count.
 *
 * @throws FacetrainError InvalidArgument as setSuspended; also when the signal aborts the wait: the job stays suspended
 */
export async function restart(
  cluster: Cluster,
  name: string,
  show: (detail: string) => void,
  signal: AbortSignal,
): Promise<Outcome> {
  const job = await changeable(cluster, name);
  if (job.spec.suspend === true) throw refusal(name, 'is suspended', `\`kubectl facetrain resume ${name}\` starts it`);
  await patch(cluster, job, true);
  for (;;) {
    const [now, pods] = await Promise.all([cluster.job(name), cluster.pods(job.metadata.uid)]);
    const alive = pods.filter(isAlive).length;
    if (now.metadata.uid !== job.metadata.uid || isFinished(now))
      throw refusal(name, 'has ended meanwhile', 'see status');
    if (now.status?.phase === 'Suspended' && alive === 0) break;
    show(`${alive} pods have not ended`);
    await delay(POLL_MILLISECONDS, undefined, { signal }).catch(() => {
      throw refusal(name, 'is suspended, and its restart was stopped', `\`kubectl facetrain resume ${name}\` goes on`);
    });
  }
  await patch(cluster, job, false);
  return { json: { job: name, changed: true }, text: `FaceTrainJob ${name} restarts from its newest checkpoint\n` };
}

const refusal = (name: string, found: string, allowed: string) =>
  new FacetrainError({ code: 'InvalidArgument', subject: `FaceTrainJob ${name}`, found, allowed });

async function changeable(cluster: Cluster, name: string): Promise<Job> {
  const job = await cluster.job(name);
  if (isFinished(job)) throw refusal(name, `has ended (${job.status!.phase})`, 'apply it again under another name');
  const { managedBy = OPERATOR_NAME } = job.spec;
  if (managedBy !== OPERATOR_NAME) throw refusal(name, `is managed by ${String(managedBy)}`, 'change it there');
  return job;
}

/** The uid is a precondition: a job that was made anew under this name is another one. */
const patch = (cluster: Cluster, { metadata: { name, uid } }: Job, suspend: boolean): Promise<Job> =>
  cluster.inWords(`FaceTrainJob ${name}`, () =>
    cluster.client.patch(jobs, cluster.namespace, name, { metadata: { uid }, spec: { suspend } }),
  );
