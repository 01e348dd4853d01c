/** `kubectl facetrain progress`: a bar that follows the status of a job until it ends. */
import { setTimeout as delay } from 'node:timers/promises';
import { ExitCode } from '@facetrain/api';
import type { Outcome } from '../command-action.ts';
import { oneLine, type StatusLine } from '../terminal-output.ts';
import { type Cluster, isFinished, type Job, jobs, readyOf } from './cluster.ts';
import { bar, speedAndTime } from './progress-bar.ts';

/** Between two watches: the server ends each after some time. */
const RETRY_MILLISECONDS = 1_000;
const WATCH_SECONDS = 300;

/** @returns the end of the job; exit code 1 if it failed @throws FacetrainError InvalidArgument for no such job */
export async function followProgress(
  cluster: Cluster,
  name: string,
  line: StatusLine,
  signal: AbortSignal,
): Promise<Outcome> {
  let job = await cluster.job(name);
  while (!isFinished(job)) {
    show(job, line);
    const query = {
      fieldSelector: `metadata.name=${name}`,
      resourceVersion: job.metadata.resourceVersion,
      timeoutSeconds: WATCH_SECONDS,
    };
    try {
      for await (const { type, object } of cluster.client.watch(jobs, cluster.namespace, query, signal)) {
        if (type === 'ERROR' || type === 'DELETED') break;
        job = object as Job;
        if (isFinished(job)) break;
        show(job, line);
      }
    } catch (error) {
      if (signal.aborted) throw error;
    }
    if (isFinished(job)) break;
    await delay(RETRY_MILLISECONDS, undefined, { signal });
    job = await cluster.job(name);
  }
  const { phase, progress } = job.status!;
  const ready = readyOf(job);
  return {
    json: { job: name, phase, progress },
    text: `FaceTrainJob ${name} ${phase}${ready ? `: ${oneLine(ready.message)}` : ''}\n`,
    exitCode: phase === 'Failed' ? ExitCode.failure : ExitCode.success,
  };
}

/** The bar, once there is progress; before it, what the job waits for. */
function show(job: Job, line: StatusLine): void {
  const { phase = 'Pending', progress } = job.status ?? {};
  const ready = readyOf(job);
  const detail = progress
    ? `${bar(progress)} ${speedAndTime(progress)}`
    : ready
      ? `${ready.reason}: ${ready.message}`
      : 'the operator has not seen it yet';
  line.show(phase, detail);
}
