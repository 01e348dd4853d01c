/** `facetrain run`: a whole FaceTrainJob on this machine, by the operator's own planner. */
import { isAbsolute, join, resolve } from 'node:path';
import {
  type FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  fileUri,
  type Progress,
  parseStorageUri,
  type QuantizeJobStatus,
  rankCount,
} from '@facetrain/api';
import { CONTAINER, type PlanEvent } from '@facetrain/planner';
import { completeSteps } from '@facetrain/trainer/checkpoint/directory';
import { checkInputs, checkQuantizationInputs } from '../local/check-inputs.ts';
import { localEnvironment } from '../local/local-environment.ts';
import { freePorts } from '../local/ports.ts';
import { type JobKind, type JobListener, LocalFaceTrainJob } from '../local/process-executor.ts';
import { RunFolder, STATE_FOLDER } from '../local/run-folder.ts';
import { readFaceTrainJob } from '../manifest.ts';
import { progressDetail, StatusLine } from '../terminal-output.ts';
import { makeKeptResult, makeRunResult, type RunResult } from './run-result.ts';

export interface RunOptions {
  file: string;
  /** Takes precedence over the manifest's spec.output. */
  out?: string;
  /** Starts anew, and removes what an earlier run has made. */
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
  const { signal } = options;
  const display = new Display();
  const job = await readJob(options, (line) => display.print(line));
  const out = outputFolder(job);
  const folder = await RunFolder.take(out, job, {
    fresh: options.fresh,
    signal,
    print: (line) => display.print(line),
    checkInputs: () => checkInputs(job, join(out, STATE_FOLDER), signal),
    checkQuantizationInputs: () => checkQuantizationInputs(job, join(out, STATE_FOLDER), signal),
  });
  try {
    display.announce(job, folder);
    return folder.mode === 'nothing' ? makeKeptResult(job, folder.paths) : await runIn(folder, job, display, signal);
  } finally {
    folder.release();
  }
}

async function runIn(folder: RunFolder, job: FaceTrainJob, display: Display, signal: AbortSignal): Promise<RunResult> {
  const startedAt = Date.now();
  const firstAttempt = folder.mode === 'quantize' ? null : folder.attempt;
  const local = await makeLocalJob(job, folder, display);
  try {
    await runToEnd(local, signal).finally(() => display.clear());
  } catch (error) {
    if (signal.aborted) display.print(await stoppedAt(local, folder));
    throw error;
  }
  const result = makeRunResult(job, local, folder.paths, firstAttempt, (Date.now() - startedAt) / 1000);
  await folder.recordEnd(result).catch((error: Error) => display.print(`Warning: not recorded: ${error.message}`));
  if (result.phase === 'Failed') display.printLogPaths(local);
  return result;
}

/** What the next run begins with, for who has stopped this one. */
async function stoppedAt({ quantizeJob }: LocalFaceTrainJob, { paths: { checkpoints } }: RunFolder): Promise<string> {
  if (quantizeJob) return 'Stopped: the same command goes on with the quantization';
  const [newest] = await completeSteps(checkpoints).catch(() => []);
  if (newest === undefined) return 'Stopped before the first checkpoint: the same command begins anew';
  return `Stopped: the same command goes on from the checkpoint of step ${newest}`;
}

/** The job as it can run here: fields that only a cluster has do not apply. */
async function readJob({ file, out, trainOnly }: RunOptions, print: (line: string) => void): Promise<FaceTrainJob> {
  const job = await readFaceTrainJob(file);
  const { spec } = job;
  if (out !== undefined) spec.output = { uri: fileUri(resolve(out)) };
  refuseObjectStore(spec);
  if (trainOnly) delete spec.quantize;
  if (spec.suspend) print('spec.suspend is for a cluster: the job starts now');
  spec.suspend = false;
  delete spec.managedBy;
  spec.gang.mode = 'None';
  spec.trainers = withRanksAsReplicas(spec.trainers);
  for (const fields of [spec.trainers, spec.quantize?.quantizer]) if (fields) dropForeignContainers(fields);
  return job;
}

/** A rank is a process here, also where pods have several. */
function withRanksAsReplicas(trainers: FaceTrainJob['spec']['trainers']): FaceTrainJob['spec']['trainers'] {
  const { ranksPerPod: count, elastic } = trainers;
  return {
    ...trainers,
    ranksPerPod: 1,
    replicas: rankCount(trainers),
    ...(elastic && {
      elastic: { ...elastic, minReplicas: elastic.minReplicas * count, maxReplicas: elastic.maxReplicas * count },
    }),
  };
}

/** Only containers that run our program have a process here. */
function dropForeignContainers({ podTemplate }: Pick<FaceTrainJob['spec']['trainers'], 'podTemplate'>): void {
  const pod = podTemplate?.spec as { containers?: { name?: string }[]; initContainers?: unknown } | undefined;
  if (!pod) return;
  delete pod.initContainers;
  pod.containers = pod.containers?.filter(({ name }) => name === CONTAINER) ?? [];
}

/** A run finds and removes its checkpoints on this machine. @throws FacetrainError InvalidManifest */
function refuseObjectStore({ checkpoint: { uri } }: FaceTrainJob['spec']): void {
  if (uri === undefined || parseStorageUri(uri).scheme !== 's3') return;
  throw new FacetrainError({
    code: 'InvalidManifest',
    subject: 'spec.checkpoint.uri',
    found: uri,
    allowed:
      '"facetrain run" keeps checkpoints in a folder (file:// or hostpath://); leave it out for one in the output',
  });
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
  folder: RunFolder,
  listener: JobListener,
): Promise<LocalFaceTrainJob> {
  const [rendezvous, progress] = (await freePorts(2)) as [number, number];
  const { uid, paths, trainersLock: lock, attempt, mode } = folder;
  const identity = { name: metadata.name, namespace: metadata.namespace ?? 'default', uid, generation: 1 };
  const environment = localEnvironment(paths.state, { rendezvous, progress });
  const options = { environment, folder: paths.state, progressPort: progress, lock, listener };
  return new LocalFaceTrainJob(identity, spec, options, {
    attempt,
    trained: mode === 'quantize',
    recordAttempt: (number) => folder.recordAttempt(number),
    recordTrained: () => folder.recordTrained(),
  });
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

  print(line: string): void {
    this.#line.print(line);
  }

  announce({ metadata, spec }: FaceTrainJob, { mode, paths: { out } }: RunFolder): void {
    const { replicas } = spec.trainers;
    const job = `FaceTrainJob ${metadata.name}`;
    const where = `on this machine: ${replicas} trainer${replicas === 1 ? '' : 's'}, results in ${out}`;
    this.#line.print(
      {
        begin: `Running ${job} ${where}`,
        continue: `Continuing ${job} from its newest checkpoint ${where}`,
        quantize: `Continuing ${job} with its quantization; the trained model is kept in ${out}`,
        nothing: `Nothing to do: ${job} has succeeded, with its results in ${out}; --fresh trains it anew`,
      }[mode],
    );
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

  /** Of the quantizer when there was one: the training has succeeded then. */
  printLogPaths({ pods, quantizeJob }: LocalFaceTrainJob): void {
    const logs = [...(quantizeJob ?? { pods }).pods.values()].map(({ logFile }) => logFile);
    process.stderr.write(`The log${logs.length === 1 ? '' : 's'} of the last attempt: ${logs.join(', ')}\n`);
  }

  clear(): void {
    this.#line.clear();
  }
}
