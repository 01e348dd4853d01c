/** What a finished training leaves: model/backbone.onnx, train-report.html, and train-report.json last, which vouches for the others. */
import { join } from 'node:path';
import type { TrainReport } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { countParameters } from '../onnx/describe.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { trainReportHtml } from '../report/train-report-html.ts';
import { writeAtomically } from '../storage/atomic-files.ts';
import { digestBytes } from '../storage/digest.ts';

const MODEL = 'model/backbone.onnx';

/** @throws FacetrainError DiskFull, StorageFailed */
export async function writeModel(directory: string, graph: Graph): Promise<TrainReport['model']> {
  const bytes = encodeOnnx(graph);
  await writeAtomically(join(directory, MODEL), bytes);
  return { path: MODEL, ...digestBytes(bytes), parameters: countParameters(graph), embeddingDim: graph.output.dim };
}

/** @throws FacetrainError DiskFull, StorageFailed */
export async function writeReport(directory: string, report: TrainReport): Promise<void> {
  await writeAtomically(join(directory, 'train-report.html'), trainReportHtml(report));
  await writeAtomically(join(directory, 'train-report.json'), `${JSON.stringify(report, null, 2)}\n`);
}
