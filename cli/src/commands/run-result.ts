/** The result of a run: one object for programs, a table for people. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ARTIFACT, ExitCode, type FaceTrainJob, OUTPUT, TrainReport } from '@facetrain/api';
import type { LocalFaceTrainJob } from '../local/process-executor.ts';
import { bytes, duration, percent, table } from '../terminal-output.ts';

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
    /** Path of the FP32 model. */
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

/** @param out the folder with the results */
export function makeRunResult(job: FaceTrainJob, local: LocalFaceTrainJob, out: string, seconds: number): RunResult {
  const { status } = local;
  const failed = status.conditions?.find(({ type, status: holds }) => type === 'Failed' && holds === 'True');
  const report = readTrainReport(out);
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
    ...(report ? { train: trainResult(report, out) } : {}),
    evaluation: report ? lastEvaluations(report) : [],
    ...artifactResult(local),
  };
}

function readTrainReport(out: string): TrainReport | undefined {
  const file = join(out, OUTPUT.trainReport);
  return existsSync(file) ? TrainReport.parse(JSON.parse(readFileSync(file, 'utf8'))) : undefined;
}

function trainResult(report: TrainReport, out: string): NonNullable<RunResult['train']> {
  const { steps, imagesPerSecond, lossFirst, lossLast, trainSeconds, model } = report;
  return { steps, imagesPerSecond, lossFirst, lossLast, seconds: trainSeconds, model: join(out, model.path) };
}

/** The newest evaluation of each set; a report has them in the order of their steps. */
function lastEvaluations({ evaluations }: TrainReport): RunResult['evaluation'] {
  const last = new Map(evaluations.map((evaluation) => [evaluation.set, evaluation]));
  return [...last.values()].map(({ set, pairs, accuracy, std }) => ({ set, pairs, accuracy, std: std ?? 0 }));
}

function artifactResult({ status, quantizeJob }: LocalFaceTrainJob): Pick<RunResult, 'artifact'> {
  const manifest = quantizeJob?.manifest;
  if (!status.artifact || !manifest) return {};
  const { metrics, files } = manifest;
  return {
    artifact: {
      dir: status.artifact.uri.replace(/^file:\/\//, ''),
      files,
      meanCosine: metrics.meanCosine,
      accuracyDrop: metrics.accuracyDrop,
      evaluation: metrics.comparisons.map(({ set, fp32, int7 }) => ({
        set,
        fp32: fp32.accuracy,
        int7: int7.accuracy,
      })),
    },
  };
}

/** The table for people. */
export function summary(result: RunResult): string {
  return `\n${table([...jobRows(result), ...trainingRows(result), ...accuracyRows(result), ...fileRows(result)])}`;
}

type Rows = [name: string, value: string][];

function jobRows({ job, phase, seconds, attempts, restarts, message }: RunResult): Rows {
  const inAttempts = attempts > 1 ? `, in ${attempts} attempts (${restarts.lastReason ?? 'restarted'})` : '';
  return [
    ['Job', `${job}: ${phase} after ${duration(seconds)}${inAttempts}`],
    ...(message ? ([['Message', message]] satisfies Rows) : []),
  ];
}

function trainingRows({ train }: RunResult): Rows {
  if (!train) return [];
  const { steps, seconds, imagesPerSecond, lossFirst, lossLast } = train;
  return [
    ['Training', `${steps} steps in ${duration(seconds)}, ${imagesPerSecond.toFixed(1)} images/s`],
    ['Loss', `${lossFirst.toFixed(2)} at the start, ${lossLast.toFixed(2)} at the end`],
  ];
}

function accuracyRows({ evaluation, artifact }: RunResult): Rows {
  const rows: Rows = evaluation.map(({ set, pairs, accuracy, std }) => {
    const int7 = artifact?.evaluation.find((one) => one.set === set)?.int7;
    const ofInt7 = int7 === undefined ? '' : `, ${percent(int7)} INT7`;
    return [
      `Accuracy on ${set}`,
      `${percent(accuracy)} ± ${(100 * std).toFixed(2)} FP32${ofInt7} (${pairs} pairs, 10-fold, flip)`,
    ];
  });
  if (artifact) rows.push(['Embedding cosine', `${artifact.meanCosine.toFixed(4)} between FP32 and INT7, mean`]);
  return rows;
}

function fileRows({ train, artifact, out }: RunResult): Rows {
  const rows: Rows = [];
  if (train && existsSync(train.model))
    rows.push(['FP32 model', `${train.model} (${bytes(statSync(train.model).size)})`]);
  const int7 = artifact?.files[ARTIFACT.model];
  if (artifact && int7) rows.push(['INT7 model', `${join(artifact.dir, ARTIFACT.model)} (${bytes(int7.bytes)})`]);
  const reports = [join(out, OUTPUT.trainReportHtml), ...(artifact ? [join(artifact.dir, ARTIFACT.reportHtml)] : [])];
  const written = reports.filter((path) => existsSync(path));
  if (written.length > 0) rows.push(['Reports', written.join(', ')]);
  return rows;
}
