/** What a finished training writes: model/backbone.onnx, train-report.html, and train-report.json last. */
import { INPUT_RANGES, OUTPUT, type TrainerConfig, type TrainReport } from '@facetrain/api';
import type { Graph, TrainingSessionContract } from '@facetrain/native';
import type { Preflight } from '../dataset/dataset-preflight.ts';
import { CHANNEL_ORDER_METADATA, type ChannelOrder } from '../onnx/channel-order.ts';
import { countParameters } from '../onnx/describe.ts';
import { forChannels, rangeMetadata } from '../onnx/input-range.ts';
import { encodeOnnx } from '../onnx/write.ts';
import type { Ranks } from '../program/ranks.ts';
import { reportEvents } from '../report/report-events.ts';
import { trainReportHtml } from '../report/train-report-html.ts';
import { digestBytes } from '../storage/digest.ts';
import type { OutputPlace } from '../storage/output-place.ts';
import type { BadPictures } from './bad-pictures.ts';
import { writeEvents } from './curve-events.ts';
import type { Evaluator } from './evaluator.ts';
import type { History } from './history.ts';
import type { JobCheckpoints, ResumedState } from './job-checkpoints.ts';

/**
 * Writes the model to the fenced place. The report of an earlier training goes first: it describes another model.
 * @throws FacetrainError FencedOff, DiskFull, StorageFailed
 */
export async function writeModel(
  output: OutputPlace,
  graph: Graph,
  channelOrder: ChannelOrder,
): Promise<TrainReport['model']> {
  const { channels, file } = graph.input;
  // Backbones that we build read -1..1.
  const range = file ?? forChannels(INPUT_RANGES['-1..1'], channels, 'a backbone');
  const bytes = encodeOnnx(graph, { metadata: { ...rangeMetadata(range), [CHANNEL_ORDER_METADATA]: channelOrder } });
  await output.revoke(OUTPUT.trainReport);
  await output.write(OUTPUT.model, bytes);
  return {
    path: OUTPUT.model,
    ...digestBytes(bytes),
    parameters: countParameters(graph),
    embeddingDim: graph.output.dim,
  };
}

export interface FinishedTraining {
  startedAt: Date;
  dataset: Preflight & { totalSteps: number };
  model: TrainReport['model'];
  ranks: Ranks;
  session: Pick<TrainingSessionContract, 'device' | 'precision'>;
  /** Over all attempts; undefined unless the precision is fp16. */
  skippedSteps: number | undefined;
  /** The state that this process started from. */
  resumed: ResumedState | undefined;
  history: History;
  evaluator: Evaluator;
  badPictures: Pick<BadPictures, 'report'>;
  checkpoints: JobCheckpoints['statistics'];
}

/** The report of a training that has ended now. */
export function trainReport(config: TrainerConfig, finished: FinishedTraining): TrainReport {
  const { startedAt, dataset, model, ranks, session, resumed, history, evaluator, badPictures, checkpoints } = finished;
  const { skippedSteps } = finished;
  return {
    schemaVersion: 1,
    job: config.job,
    startedAt: startedAt.toISOString(),
    finishedAt: new Date().toISOString(),
    dataset: {
      path: config.dataset.path,
      images: dataset.images,
      identities: dataset.identities,
      badPictures: badPictures.report,
    },
    model,
    trainers: ranks.size,
    device: session.device,
    precision: session.precision,
    ...(skippedSteps !== undefined && { skippedSteps }),
    steps: dataset.totalSteps,
    resumedFromStep: resumed?.step ?? null,
    attempts: history.curves.attempts,
    checkpoints,
    trainSeconds: history.trainSeconds,
    imagesPerSecond: history.imagesPerSecond,
    stageSeconds: history.stageSeconds,
    lossFirst: history.lossFirst!,
    lossLast: history.lossLast!,
    history: history.intervals,
    evaluations: evaluator.results,
    config,
  };
}

/**
 * Writes both reports, and between them the events for TensorBoard. A reader that finds train-report.json can rely on
 * all other files.
 * @throws FacetrainError FencedOff, DiskFull, StorageFailed
 */
export async function writeReport(output: OutputPlace, report: TrainReport): Promise<void> {
  await output.write(OUTPUT.trainReportHtml, trainReportHtml(report));
  await writeEvents(output, { job: report.job.name, startedAt: new Date(report.startedAt) }, reportEvents(report));
  await output.write(
    OUTPUT.trainReport,
    `${JSON.stringify(report, null, 2)}
`,
  );
}
