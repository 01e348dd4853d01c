/** What the command line reads in train-report.json. A later version may have added fields to the rest of it. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { OUTPUT, TrainReport } from '@facetrain/api';
import { digestFile } from '@facetrain/trainer/storage/digest';

const Summary = TrainReport.pick({
  job: true,
  model: true,
  steps: true,
  imagesPerSecond: true,
  trainSeconds: true,
  lossFirst: true,
  lossLast: true,
  evaluations: true,
}).loose();
type Summary = ReturnType<typeof Summary.parse>;

/** @returns undefined when there is none, or a damaged one, which is written again with the model */
export function readTrainReport(out: string): Summary | undefined {
  const file = join(out, OUTPUT.trainReport);
  if (!existsSync(file)) return undefined;
  try {
    return Summary.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    return undefined;
  }
}

/** Whether the model is there as its report describes it. */
export async function isModelWhole(out: string): Promise<boolean> {
  const report = readTrainReport(out);
  const model = join(out, OUTPUT.model);
  return report !== undefined && existsSync(model) && (await digestFile(model)).sha256 === report.model.sha256;
}

/** The uid of the run that has written the report; undefined when there is none. */
export const writerOfModel = (out: string): string | undefined => readTrainReport(out)?.job.uid;
