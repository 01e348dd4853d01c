/**
 * A training that has ended before, and whose end nobody saw: its pods were removed, or the operator was away, between
 * the last write and the report of success. It is not done again.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { FacetrainError, OUTPUT, type Progress, type TrainerConfig, TrainReport } from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';
import { digestFile } from '../storage/digest.ts';

/**
 * The report of the same job and the same configuration, if the model that it describes is there, unchanged.
 * @param trainers ranks of this attempt
 * @throws FacetrainError StorageFailed
 */
export async function finishedTraining(config: TrainerConfig, trainers: number): Promise<TrainReport | undefined> {
  const report = await readReport(join(config.outputDirectory, OUTPUT.trainReport));
  if (
    !report ||
    report.trainers !== trainers ||
    !isDeepStrictEqual(whatIsTrained(report.config), whatIsTrained(config))
  )
    return undefined;
  const { path, sha256, bytes } = report.model;
  try {
    const found = await digestFile(join(config.outputDirectory, path));
    return found.sha256 === sha256 && found.bytes === bytes ? report : undefined;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/**
 * The progress of a training at its end, from its report.
 * @param checkpoint the newest one, if it is still there
 */
export function finalProgress(
  report: TrainReport,
  checkpoint: Progress['checkpoint'],
): Omit<Progress, 'schemaVersion' | 'job' | 'activity'> {
  const newest = new Map(report.evaluations.map((result) => [result.set, result]));
  return {
    stage: 'Done',
    step: report.steps,
    totalSteps: report.steps,
    epoch: report.config.epochs,
    imagesPerSecond: report.imagesPerSecond,
    stageSeconds: report.stageSeconds,
    loss: report.lossLast,
    learningRate: null,
    etaSeconds: 0,
    evaluations: [...newest.values()].map(({ set, step, accuracy, std }) => ({ set, step, accuracy, std })),
    checkpoint,
  };
}

/** Without what differs between attempts, and what only says where progress is served. */
function whatIsTrained({ job, progress: _, ...config }: TrainerConfig) {
  return { ...config, job: { ...job, attempt: 0 } };
}

/** @returns undefined when there is no report, or none that this version can read */
async function readReport(path: string): Promise<TrainReport | undefined> {
  try {
    return TrainReport.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (error) {
    const cause = storageError(path, error);
    if (cause instanceof FacetrainError && !isMissing(cause)) throw cause;
    return undefined;
  }
}

function isMissing(error: unknown): boolean {
  const cause = error instanceof FacetrainError ? (error.cause as NodeJS.ErrnoException) : undefined;
  return cause?.code === 'ENOENT';
}
