/** The result of a run: one object for programs, a table for people. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import {
  ARTIFACT,
  counted,
  type EvaluationReport,
  ExitCode,
  type FaceTrainJob,
  isHardlyToldApart,
  OUTPUT,
} from '@facetrain/api';
import { type ArtifactSummary, readArtifactManifest } from '../local/artifact-manifest.ts';
import type { LocalFaceTrainJob } from '../local/process-executor.ts';
import { hasArtifact, type RunPaths } from '../local/run-files.ts';
import { readTrainReport } from '../local/train-report.ts';
import { bytes, duration, percent, table } from '../terminal-output.ts';

/** What `--json` prints. */
export interface RunResult {
  job: string;
  phase: 'Succeeded' | 'Failed';
  exitCode: number;
  message?: string;
  /** Of this invocation. 0: nothing was trained, since the model of an earlier one was kept. */
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
  /** `alike`: all pictures have nearly the same embedding. */
  evaluation: { set: string; pairs: number; accuracy: number; std: number; alike?: true }[];
  artifact?: {
    /** The folder, or the s3:// address. */
    dir: string;
    files: Record<string, { sha256: string; bytes: number }>;
    meanCosine: number;
    accuracyDrop: number | null;
    evaluation: { set: string; fp32: number; int7: number }[];
  };
  /** The folder with the curves for TensorBoard, where training ended without a report. */
  curves?: string;
  /** Paths of the reports for people; that of the quantization also when the gate was missed. */
  reports: string[];
}

/**
 * @param out the folder with the results
 * @param firstAttempt the number of the attempt that this invocation began with; null when it has not trained
 */
export function makeRunResult(
  job: FaceTrainJob,
  local: LocalFaceTrainJob,
  { out, artifact }: RunPaths,
  firstAttempt: number | null,
  seconds: number,
): RunResult {
  const { status, quantizeJob } = local;
  const failed = status.conditions?.find(({ type, status: holds }) => type === 'Failed' && holds === 'True');
  const { exitCode: failureCode, killedBy } = local.failure;
  const exitCode = failed ? failureCode : ExitCode.success;
  const hasReport = quantizeJob !== undefined && (!failed || exitCode === ExitCode.gateFailed);
  return {
    job: job.metadata.name,
    phase: failed ? 'Failed' : 'Succeeded',
    exitCode,
    ...(failed ? { message: killedBy ? `${failed.message}; ${killedBy}` : failed.message } : {}),
    attempts: firstAttempt === null ? 0 : (status.attempt ?? 0) - firstAttempt + 1,
    restarts: {
      count: status.restarts?.count ?? 0,
      ...(status.restarts?.lastReason ? { lastReason: status.restarts.lastReason } : {}),
    },
    out,
    seconds,
    ...trainResult(out),
    ...artifactResult(status.artifact?.uri, quantizeJob?.manifest),
    ...curvesIn(out),
    reports: reportsIn(
      out,
      hasReport ? (exitCode === ExitCode.gateFailed ? join(artifact, ARTIFACT.rejected) : artifact) : undefined,
    ),
  };
}

/** The result of an earlier invocation, read from its files: nothing was done in this one. */
export function makeKeptResult(job: FaceTrainJob, { out, artifact }: RunPaths): RunResult {
  const uri = job.spec.quantize?.output?.uri ?? artifact;
  return {
    job: job.metadata.name,
    phase: 'Succeeded',
    exitCode: ExitCode.success,
    attempts: 0,
    restarts: { count: 0 },
    out,
    seconds: 0,
    ...trainResult(out),
    ...artifactResult(uri, readArtifactManifest(artifact)),
    reports: reportsIn(out, hasArtifact(artifact) ? artifact : undefined),
  };
}

/** @param folder the one with the report of a quantization of this run */
function reportsIn(out: string, folder: string | undefined): string[] {
  const paths = [join(out, OUTPUT.trainReportHtml), ...(folder ? [join(folder, ARTIFACT.reportHtml)] : [])];
  return paths.filter((path) => existsSync(path));
}

function curvesIn(out: string): Pick<RunResult, 'curves'> {
  const curves = join(out, OUTPUT.tensorboard);
  return existsSync(curves) && !existsSync(join(out, OUTPUT.trainReportHtml)) ? { curves } : {};
}

function trainResult(out: string): Pick<RunResult, 'train' | 'evaluation'> {
  const report = readTrainReport(out);
  if (!report) return { evaluation: [] };
  const { steps, imagesPerSecond, lossFirst, lossLast, trainSeconds, model } = report;
  return {
    train: { steps, imagesPerSecond, lossFirst, lossLast, seconds: trainSeconds, model: join(out, model.path) },
    evaluation: lastEvaluations(report.evaluations),
  };
}

/** The newest evaluation of each set; a report has them in the order of their steps. */
function lastEvaluations(evaluations: EvaluationReport[]): RunResult['evaluation'] {
  const last = new Map(evaluations.map((evaluation) => [evaluation.set, evaluation]));
  return [...last.values()].map((evaluation) => {
    const { set, pairs, accuracy, std = 0 } = evaluation;
    return { set, pairs, accuracy, std, ...(isHardlyToldApart(evaluation) && { alike: true as const }) };
  });
}

function artifactResult(uri: string | undefined, manifest: ArtifactSummary | undefined): Pick<RunResult, 'artifact'> {
  if (uri === undefined || !manifest) return {};
  const { metrics, files } = manifest;
  return {
    artifact: {
      dir: uri.replace(/^file:\/\//, ''),
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
  const after = seconds > 0 ? ` after ${duration(seconds)}` : ' in an earlier run';
  return [
    ['Job', `${job}: ${phase}${after}${inAttempts}`],
    ...(message ? ([['Message', message]] satisfies Rows) : []),
  ];
}

function trainingRows({ train }: RunResult): Rows {
  if (!train) return [];
  const { steps, seconds, imagesPerSecond, lossFirst, lossLast } = train;
  return [
    ['Training', `${counted(steps, 'step')} in ${duration(seconds)}, ${imagesPerSecond.toFixed(1)} images/s`],
    ['Loss', `${lossFirst.toFixed(2)} at the start, ${lossLast.toFixed(2)} at the end`],
  ];
}

function accuracyRows({ evaluation, artifact }: RunResult): Rows {
  const rows: Rows = evaluation.map(({ set, pairs, accuracy, std }) => {
    const int7 = artifact?.evaluation.find((one) => one.set === set)?.int7;
    const ofInt7 = int7 === undefined ? '' : `, ${percent(int7)} INT7`;
    return [
      `Accuracy on ${set}`,
      `${percent(accuracy)} ± ${(100 * std).toFixed(2)} FP32${ofInt7} (${counted(pairs, 'pair')}, 10-fold, flip)`,
    ];
  });
  if (evaluation.some(({ alike }) => alike))
    rows.push(['Warning', 'the model hardly tells pictures apart: it needs more training, or the training collapsed']);
  if (artifact) rows.push(['Embedding cosine', `${artifact.meanCosine.toFixed(4)} between FP32 and INT7, mean`]);
  return rows;
}

function fileRows({ train, artifact, curves, reports }: RunResult): Rows {
  const rows: Rows = [];
  if (train && existsSync(train.model))
    rows.push(['FP32 model', `${train.model} (${bytes(statSync(train.model).size)})`]);
  const int7 = artifact?.files[ARTIFACT.model];
  if (artifact && int7) rows.push(['INT7 model', `${join(artifact.dir, ARTIFACT.model)} (${bytes(int7.bytes)})`]);
  if (curves !== undefined) rows.push(['Curves', `${curves}: of the steps until then, for TensorBoard`]);
  if (reports.length > 0) rows.push(['Reports', reports.join(', ')]);
  return rows;
}
