/**
 * A training that has ended before, and whose end nobody saw: its pods were removed, or the operator was away, between
 * the last write and the report of success. It is not done again.
 */
import { isDeepStrictEqual } from 'node:util';
import { OUTPUT, type Progress, type TrainerConfig, TrainReport } from '@facetrain/api';
import type { ProgressChange } from '../program/program.ts';
import type { OutputPlace } from '../storage/output-place.ts';

/**
 * The report of the same job and the same configuration, if the model that it describes is there, unchanged. The
 * number of ranks does not matter: this attempt would begin at the last checkpoint, and write the same model.
 *
 * @throws FacetrainError StorageFailed
 */
export async function finishedTraining(output: OutputPlace, config: TrainerConfig): Promise<TrainReport | undefined> {
  const report = await readReport(output);
  if (!report || !isDeepStrictEqual(whatIsTrained(report.config), whatIsTrained(config))) return undefined;
  const { path, sha256, bytes } = report.model;
  const found = await output.digest(path);
  return found?.sha256 === sha256 && found.bytes === bytes ? report : undefined;
}

/**
 * The progress of a training at its end, from its report.
 * @param checkpoint the newest one, if it is still there
 */
export function finalProgress(report: TrainReport, checkpoint: Progress['checkpoint']): ProgressChange {
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
async function readReport(output: OutputPlace): Promise<TrainReport | undefined> {
  const bytes = await output.read(OUTPUT.trainReport);
  if (!bytes) return undefined;
  try {
    return TrainReport.parse(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    return undefined;
  }
}
