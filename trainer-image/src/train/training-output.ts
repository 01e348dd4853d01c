/** What a finished training leaves: model/backbone.onnx, train-report.html, and train-report.json last, which vouches for the others. */
import { join } from 'node:path';
import { OUTPUT, type TrainReport } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { countParameters } from '../onnx/describe.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { trainReportHtml } from '../report/train-report-html.ts';
import { writeAtomically } from '../storage/atomic-files.ts';
import { digestBytes } from '../storage/digest.ts';

/** @throws FacetrainError DiskFull, StorageFailed */
export async function writeModel(directory: string, graph: Graph): Promise<TrainReport['model']> {
  const bytes = encodeOnnx(graph);
  await writeAtomically(join(directory, OUTPUT.model), bytes);
  return {
    path: OUTPUT.model,
    ...digestBytes(bytes),
    parameters: countParameters(graph),
    embeddingDim: graph.output.dim,
  };
}

/** @throws FacetrainError DiskFull, StorageFailed */
export async function writeReport(directory: string, report: TrainReport): Promise<void> {
  await writeAtomically(join(directory, OUTPUT.trainReportHtml), trainReportHtml(report));
  await writeAtomically(join(directory, OUTPUT.trainReport), `${JSON.stringify(report, null, 2)}\n`);
}
