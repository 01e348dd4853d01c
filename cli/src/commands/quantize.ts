/** `facetrain quantize`: quantizes a model file in this process, by the trainer program's quantize mode. */
import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { ArtifactManifest, DEFAULT_SEARCH, parseDocument, type QuantizeConfig } from '@facetrain/api';
import { createBoard } from '@facetrain/trainer/program/progress-board';
import { runQuantize } from '@facetrain/trainer/quantize/run-quantize';
import { readVerificationSet } from '@facetrain/trainer/verification/verification-set';
import { pino } from 'pino';
import { bytes, duration, progressDetail, type StatusLine, table } from '../terminal-output.ts';
import type { ChannelOrder } from './eval.ts';
import { metricsRows } from './metrics-rows.ts';

export interface QuantizeOptions {
  model: string;
  calibration: string;
  out: string;
  images: number;
  seed: number;
  rounds: number;
  /** Verification sets: .bin files. */
  pairs?: string[];
  channelOrder: ChannelOrder;
  /** Absent: one for each CPU. */
  threads?: number;
}

const job = { name: 'quantize', uid: 'local', attempt: 0 };

/** The rest is as spec.quantize has it by default. */
async function makeConfig({
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

/** Between updates of the status line. */
const UPDATE_MILLISECONDS = 200;

export async function quantize(options: QuantizeOptions, line: StatusLine, signal: AbortSignal) {
  const config = await makeConfig(options);
  const board = createBoard(job, 'Loading');
  const start = performance.now();
  const timer = setInterval(() => line.show(board.current.stage, progressDetail(board.current)), UPDATE_MILLISECONDS);
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
        ...metricsRows(metrics),
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
