/** `facetrain quantize`: the quantizer's mode of the trainer program, in this process, for a model file. */
import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { ArtifactManifest, DEFAULT_SEARCH, parseDocument, type QuantizeConfig } from '@facetrain/api';
import { createBoard } from '@facetrain/trainer/program/progress-board';
import { runQuantize } from '@facetrain/trainer/quantize/run-quantize';
import { readVerificationSet } from '@facetrain/trainer/verification/set';
import { pino } from 'pino';
import { bytes, duration, percent, progressDetail, type StatusLine, table } from '../terminal-output.ts';
import type { ChannelOrder } from './eval.ts';

export interface QuantizeOptions {
  model: string;
  calibration: string;
  out: string;
  images: number;
  seed: number;
  rounds: number;
  /** Verification sets. */
  pairs?: string[];
  channelOrder: ChannelOrder;
  threads?: number;
}

const job = { name: 'quantize', uid: 'local', attempt: 0 };

/** The rest is as spec.quantize has it by default. */
async function configOf({
  model,
  calibration,
  out,
  images,
  seed,
  rounds,
  pairs = [],
  channelOrder,
  threads,
}: QuantizeOptions): Promise<QuantizeConfig> {
  const sets = await Promise.all(
    pairs.map(async (path) => ({ name: (await readVerificationSet(path)).name, path: resolve(path) })),
  );
  return {
    schemaVersion: 1,
    job,
    model: { path: resolve(model), channelOrder },
    calibration: { datasetPath: resolve(calibration), images, seed },
    search: { ...DEFAULT_SEARCH, rounds },
    evaluation: { sets },
    gate: { maxAccuracyDrop: null, minMeanCosine: null },
    publish: null,
    outputDirectory: resolve(out),
    computeThreads: threads ?? availableParallelism(),
    progress: null,
  };
}

/** Between looks at the board. */
const LOOK_MILLISECONDS = 200;

export async function quantize(options: QuantizeOptions, line: StatusLine, signal: AbortSignal) {
  const config = await configOf(options);
  const board = createBoard(job, 'Loading');
  const start = performance.now();
  const timer = setInterval(() => line.show(board.current.stage, progressDetail(board.current)), LOOK_MILLISECONDS);
  try {
    const report = await runQuantize(config, {
      log: pino({ level: 'warn' }, pino.destination(2)),
      progress: board,
      signal,
    });
    const file = join(config.outputDirectory, 'manifest.json');
    const { files } = parseDocument(
      ArtifactManifest,
      JSON.parse(await readFile(file, 'utf8')),
      file,
      'InvalidArtifact',
    );
    const { layers, metrics, source } = report;
    const seconds = (performance.now() - start) / 1000;
    const sum = Object.values(files).reduce((total, { bytes: size }) => total + size, 0);
    return {
      json: {
        layers,
        meanCosine: metrics.meanCosine,
        percentile1Cosine: metrics.percentile1Cosine,
        seconds,
        evaluation: metrics.comparisons,
        files,
      },
      text: table([
        ['Source', `${options.model} (${bytes(source.bytes)})`],
        ['Layers', `${layers.length}, in ${duration(seconds)}`],
        [
          'Embedding cosine',
          `${metrics.meanCosine.toFixed(4)} mean, ${metrics.percentile1Cosine.toFixed(4)} for the worst picture in a hundred`,
        ],
        ...metrics.comparisons.map(({ set, fp32, int7, pairs }): [string, string] => [
          `Accuracy on ${set}`,
          `${percent(fp32.accuracy)} FP32, ${percent(int7.accuracy)} INT7 (${pairs} pairs)`,
        ]),
        [
          'INT7 model',
          `${join(config.outputDirectory, 'model.int7.onnx')} (${bytes(files['model.int7.onnx']?.bytes ?? 0)})`,
        ],
        ['Report', join(config.outputDirectory, 'report.html')],
        ['All files', bytes(sum)],
      ]),
    };
  } finally {
    clearInterval(timer);
    line.clear();
  }
}
