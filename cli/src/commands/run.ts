/** `facetrain run`: a whole FaceTrainJob on this machine, by the operator's own planner. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';
import {
  ExitCode,
  type FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  OUTPUT,
  type Progress,
  parseStorageUri,
  type QuantizeJobStatus,
  TrainReport,
} from '@facetrain/api';
import { localEnvironment } from '../local/local-environment.ts';
import { freePorts } from '../local/ports.ts';
import { LocalFaceTrainJob, type Watcher } from '../local/process-executor.ts';
import { RunFolder } from '../local/run-folder.ts';
import { fileUri, readFaceTrainJob } from '../manifest.ts';
import { bytes, duration, percent, progressDetail, StatusLine, table } from '../terminal-output.ts';

export interface RunOptions {
  file: string;
  out?: string;
  fresh: boolean;
  /** Leaves out the quantization, whatever the manifest says. */
  trainOnly: boolean;
  signal: AbortSignal;
}

/** What `--json` prints. */
export interface RunResult {
  job: string;
  phase: 'Succeeded' | 'Failed';
  exitCode: number;
  message?: string;
  attempts: number;
  restarts: { count: number; lastReason?: string };
  out: string;
  seconds: number;
  train?: {
    steps: number;
    imagesPerSecond: number;
    lossFirst: number;
    lossLast: number;
    seconds: number;
    model: string;
  };
  evaluation: { set: string; pairs: number; accuracy: number; std: number }[];
  artifact?: {
    /** The folder, or the s3:// address. */
    dir: string;
    files: Record<string, { sha256: string; bytes: number }>;
    meanCosine: number;
    accuracyDrop: number | null;
    evaluation: { set: string; fp32: number; int7: number }[];
  };
}

/** The folder of a manifest's output on this machine. */
function outputFolder(job: FaceTrainJob): string {
  const location = parseStorageUri(job.spec.output.uri);
  if ((location.scheme === 'file' || location.scheme === 'hostpath') && isAbsolute(location.path)) return location.path;
  throw new FacetrainError({
    code: 'InvalidManifest',
    subject: 'spec.output.uri',
    found: job.spec.output.uri,
    allowed: 'must be a folder of this machine (file://) or given by --out',
  });
}

class Display implements Watcher {
  readonly line = new StatusLine();
  #phase = '';

  onStatus(
    kind: 'FaceTrainJob' | 'QuantizeJob',
    status: FaceTrainJobStatus | QuantizeJobStatus,
    progress: Progress | undefined,
  ): void {
    if (kind === 'FaceTrainJob') this.#phase = status.phase ?? '';
    else if (!status.phase || status.phase === 'Succeeded') return;
    if (kind === 'FaceTrainJob' && (this.#phase === 'Quantizing' || this.#phase === 'Succeeded')) return;
    if (progress) this.line.show(progress.stage, progressDetail(progress));
    else if (this.#phase === 'Pending' || this.#phase === 'Restarting') this.line.show(this.#phase, '');
  }

  onEvent(
    _kind: 'FaceTrainJob' | 'QuantizeJob',
    { type, reason, message }: { type: string; reason: string; message: string },
  ): void {
    // A condition's message begins with its reason, which often is the event's, too.
    this.line.print(
      `${type === 'Warning' ? 'Warning: ' : ''}${message.startsWith(`${reason}: `) ? message : `${reason}: ${message}`}`,
    );
  }
}

function readJson<T>(path: string, parse: (value: unknown) => T): T | undefined {
  return existsSync(path) ? parse(JSON.parse(readFileSync(path, 'utf8'))) : undefined;
}

function resultOf(job: FaceTrainJob, local: LocalFaceTrainJob, out: string, seconds: number): RunResult {
  const { status } = local;
  const failed = status.conditions?.find(({ type, status: holds }) => type === 'Failed' && holds === 'True');
  const report = readJson(join(out, OUTPUT.trainReport), (value) => TrainReport.parse(value));
  const { artifact } = status;
  const manifest = local.child?.manifest;
  const last = new Map((report?.evaluations ?? []).map((evaluation) => [evaluation.set, evaluation]));
  return {
    job: job.metadata.name,
    phase: failed ? 'Failed' : 'Succeeded',
    exitCode: failed ? local.failureExitCode : ExitCode.success,
    ...(failed ? { message: failed.message } : {}),
    attempts: (status.attempt ?? 0) + 1,
    restarts: {
      count: status.restarts?.count ?? 0,
      ...(status.restarts?.lastReason ? { lastReason: status.restarts.lastReason } : {}),
    },
    out,
    seconds,
    ...(report
      ? {
          train: {
            steps: report.steps,
            imagesPerSecond: report.imagesPerSecond,
            lossFirst: report.lossFirst,
            lossLast: report.lossLast,
            seconds: report.trainSeconds,
            model: join(out, report.model.path),
          },
        }
      : {}),
    evaluation: [...last.values()].map(({ set, pairs, accuracy, std }) => ({ set, pairs, accuracy, std: std ?? 0 })),
    ...(artifact && manifest
      ? {
          artifact: {
            dir: artifact.uri.replace(/^file:\/\//, ''),
            files: manifest.files,
            meanCosine: manifest.metrics.meanCosine,
            accuracyDrop: manifest.metrics.accuracyDrop,
            evaluation: manifest.metrics.comparisons.map(({ set, fp32, int7 }) => ({
              set,
              fp32: fp32.accuracy,
              int7: int7.accuracy,
            })),
          },
        }
      : {}),
  };
}

/** For people. */
export function summary(result: RunResult): string {
  const { train, artifact } = result;
  const rows: [string, string][] = [];
  rows.push([
    'Job',
    `${result.job}: ${result.phase} after ${duration(result.seconds)}${result.attempts > 1 ? `, in ${result.attempts} attempts (${result.restarts.lastReason ?? 'restarted'})` : ''}`,
  ]);
  if (result.message) rows.push(['Message', result.message]);
  if (train) {
    rows.push([
      'Training',
      `${train.steps} steps in ${duration(train.seconds)}, ${train.imagesPerSecond.toFixed(1)} images/s`,
    ]);
    rows.push(['Loss', `${train.lossFirst.toFixed(2)} at the start, ${train.lossLast.toFixed(2)} at the end`]);
  }
  for (const { set, pairs, accuracy, std } of result.evaluation) {
    const int7 = artifact?.evaluation.find((evaluation) => evaluation.set === set)?.int7;
    rows.push([
      `Accuracy on ${set}`,
      `${percent(accuracy)} ± ${(100 * std).toFixed(2)} FP32${int7 === undefined ? '' : `, ${percent(int7)} INT7`} (${pairs} pairs, 10-fold, flip)`,
    ]);
  }
  if (artifact) rows.push(['Embedding cosine', `${artifact.meanCosine.toFixed(4)} between FP32 and INT7, mean`]);
  if (train && existsSync(train.model))
    rows.push(['FP32 model', `${train.model} (${bytes(statSync(train.model).size)})`]);
  const int7 = artifact?.files['model.int7.onnx'];
  if (artifact && int7) rows.push(['INT7 model', `${join(artifact.dir, 'model.int7.onnx')} (${bytes(int7.bytes)})`]);
  const reports = [
    join(result.out, 'train-report.html'),
    ...(artifact ? [join(artifact.dir, 'report.html')] : []),
  ].filter((path) => existsSync(path));
  if (reports.length > 0) rows.push(['Reports', reports.join(', ')]);
  return `\n${table(rows)}`;
}

/**
 * @returns what came of it; a failed job is a result, not an error
 * @throws FacetrainError for what is refused before anything starts; the signal's reason when it was stopped
 */
export async function run({ file, out, fresh, trainOnly, signal }: RunOptions): Promise<RunResult> {
  const job = await readFaceTrainJob(file);
  if (out !== undefined) job.spec.output.uri = fileUri(out);
  if (trainOnly) delete job.spec.quantize;
  const folder = await RunFolder.take(outputFolder(job), job.spec, fresh);
  const started = Date.now();
  const display = new Display();
  display.line.print(
    `${folder.continued ? 'Continuing' : 'Running'} FaceTrainJob ${job.metadata.name} on this machine: ${job.spec.trainers.replicas} trainers, results in ${folder.out}`,
  );

  if (folder.replaced) display.line.print(`Removed what an earlier run had left in ${folder.out}`);

  const [rendezvous, progress] = (await freePorts(2)) as [number, number];
  const local = new LocalFaceTrainJob(
    { name: job.metadata.name, namespace: job.metadata.namespace ?? 'default', uid: folder.uid, generation: 1 },
    job.spec,
    {
      environment: localEnvironment(folder.folder, { rendezvous, progress }),
      folder: folder.folder,
      progressPort: progress,
      watcher: display,
    },
  );
  // However this process ends, no rank stays behind: each also notices by itself when its channel to here is gone.
  const killAll = () => local.running().forEach((pod) => pod.kill());
  process.once('exit', killAll);
  try {
    await local.run(signal);
  } catch (error) {
    await local.stop();
    throw error;
  } finally {
    process.off('exit', killAll);
    display.line.clear();
  }
  await folder.finish();
  const result = resultOf(job, local, folder.out, (Date.now() - started) / 1000);
  if (result.phase === 'Failed') {
    const logs = [...local.pods.values()].map((pod) => pod.logFile);
    process.stderr.write(`The log${logs.length === 1 ? '' : 's'} of the last attempt: ${logs.join(', ')}\n`);
  }
  return result;
}
