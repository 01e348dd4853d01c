/** `facetrain run`: a whole FaceTrainJob on this machine, by the operator's own planner. */
import { isAbsolute } from 'node:path';
import {
  type FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  type Progress,
  parseStorageUri,
  type QuantizeJobStatus,
} from '@facetrain/api';
import type { PlanEvent } from '@facetrain/planner';
import { localEnvironment } from '../local/local-environment.ts';
import { freePorts } from '../local/ports.ts';
import { type JobKind, type JobListener, LocalFaceTrainJob } from '../local/process-executor.ts';
import { RunFolder } from '../local/run-folder.ts';
import { fileUri, readFaceTrainJob } from '../manifest.ts';
import { progressDetail, StatusLine } from '../terminal-output.ts';
import { makeRunResult, type RunResult } from './run-result.ts';

export interface RunOptions {
  file: string;
  /** Takes precedence over the manifest's spec.output. */
  out?: string;
  /** Removes what an unfinished run has left. */
  fresh: boolean;
  /** Leaves out the quantization, also if the manifest has one. */
  trainOnly: boolean;
  signal: AbortSignal;
}

/**
 * @returns the result of the job; a failed job is a result, not an error
 * @throws FacetrainError for what is refused before anything starts; the signal's reason when it was stopped
 */
export async function run(options: RunOptions): Promise<RunResult> {
  const job = await readJob(options);
  const folder = await RunFolder.take(outputFolder(job), job.spec, options.fresh);
  const display = new Display();
  display.announce(job, folder);
  const startedAt = Date.now();
  const local = await makeLocalJob(job, folder, display);
  await runToEnd(local, options.signal).finally(() => display.clear());
  await folder.markFinished();
  const result = makeRunResult(job, local, folder.out, (Date.now() - startedAt) / 1000);
  if (result.phase === 'Failed') display.printLogPaths(local);
  return result;
}

async function readJob({ file, out, trainOnly }: RunOptions): Promise<FaceTrainJob> {
  const job = await readFaceTrainJob(file);
  if (out !== undefined) job.spec.output.uri = fileUri(out);
  if (trainOnly) delete job.spec.quantize;
  return job;
}

/** The folder of a manifest's output on this machine. @throws FacetrainError InvalidManifest */
function outputFolder({ spec: { output } }: FaceTrainJob): string {
  const location = parseStorageUri(output.uri);
  if ((location.scheme === 'file' || location.scheme === 'hostpath') && isAbsolute(location.path)) return location.path;
  throw new FacetrainError({
    code: 'InvalidManifest',
    subject: 'spec.output.uri',
    found: output.uri,
    allowed: 'must be a folder of this machine (file:// or hostpath://) or given by --out',
  });
}

/** Takes free ports: those of the manifest are for pods, and another program of this machine may have them. */
async function makeLocalJob(
  { metadata, spec }: FaceTrainJob,
  { uid, stateFolder }: RunFolder,
  listener: JobListener,
): Promise<LocalFaceTrainJob> {
  const [rendezvous, progress] = (await freePorts(2)) as [number, number];
  const identity = { name: metadata.name, namespace: metadata.namespace ?? 'default', uid, generation: 1 };
  const environment = localEnvironment(stateFolder, { rendezvous, progress });
  return new LocalFaceTrainJob(identity, spec, { environment, folder: stateFolder, progressPort: progress, listener });
}

/**
 * Runs the job. Its processes end with this one, also when that fails. After SIGKILL they stop because the IPC channel
 * to this process closes.
 */
async function runToEnd(local: LocalFaceTrainJob, signal: AbortSignal): Promise<void> {
  const killAll = () => local.running().forEach((pod) => pod.kill());
  process.once('exit', killAll);
  try {
    await local.run(signal);
  } catch (error) {
    await local.stop();
    throw error;
  } finally {
    process.off('exit', killAll);
  }
}

/** Shows a run on standard error: one line with the progress, which is rewritten, and a line for each event. */
class Display implements JobListener {
  readonly #line = new StatusLine();
  #phase = '';

  announce({ metadata, spec }: FaceTrainJob, { continued, replaced, out }: RunFolder): void {
    const verb = continued ? 'Continuing' : 'Running';
    const { replicas } = spec.trainers;
    const trainers = `${replicas} trainer${replicas === 1 ? '' : 's'}`;
    this.#line.print(`${verb} FaceTrainJob ${metadata.name} on this machine: ${trainers}, results in ${out}`);
    if (replaced) this.#line.print(`Removed what an earlier run had left in ${out}`);
  }

  /** Shows the progress of the training, and then that of the quantization. */
  onStatus(kind: JobKind, status: FaceTrainJobStatus | QuantizeJobStatus, progress: Progress | undefined): void {
    if (kind === 'FaceTrainJob') {
      this.#phase = status.phase ?? '';
      if (this.#phase === 'Quantizing' || this.#phase === 'Succeeded') return;
    } else if (!status.phase || status.phase === 'Succeeded') return;
    if (progress) this.#line.show(progress.stage, progressDetail(progress));
    else if (this.#phase === 'Pending' || this.#phase === 'Restarting') this.#line.show(this.#phase, '');
  }

  onEvent(_kind: JobKind, { type, reason, message }: PlanEvent): void {
    // The message of a condition begins with a reason, often the same as the event's.
    const text = message.startsWith(`${reason}: `) ? message : `${reason}: ${message}`;
    this.#line.print(`${type === 'Warning' ? 'Warning: ' : ''}${text}`);
  }

  printLogPaths({ pods }: LocalFaceTrainJob): void {
    const logs = [...pods.values()].map(({ logFile }) => logFile);
    process.stderr.write(`The log${logs.length === 1 ? '' : 's'} of the last attempt: ${logs.join(', ')}\n`);
  }

  clear(): void {
    this.#line.clear();
  }
}
