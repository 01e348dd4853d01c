/** `facetrain quantize`: quantizes a model file in this process, by the trainer program's quantize mode. */
import { existsSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import {
  ARTIFACT,
  ArtifactManifest,
  counted,
  DEFAULT_SEARCH,
  FacetrainError,
  hasBounds,
  type Metrics,
  OUTPUT,
  PAPER_SEARCH,
  parseDocument,
  type QuantizeConfig,
  type QuantizeReport,
} from '@facetrain/api';
import { type ChannelOrder, channelOrderOf } from '@facetrain/trainer/onnx/channel-order';
import { UniqueNames } from '@facetrain/trainer/onnx/unique-names';
import { createBoard } from '@facetrain/trainer/program/progress-board';
import { type ReadModel, readModel } from '@facetrain/trainer/quantize/inputs';
import { runQuantize } from '@facetrain/trainer/quantize/run-quantize';
import { readVerificationSet } from '@facetrain/trainer/verification/verification-set';
import { artifactFiles, hasArtifact, listing } from '../local/run-files.ts';
import { bytes, duration, progressDetail, type StatusLine, table, warningsOn } from '../terminal-output.ts';
import { DEFAULT_ORDER, givenRange, type InputRangeOptions, inputText } from './input-range.ts';
import { MEASURED_ON, metricsRows } from './metrics-rows.ts';

/** Bounds that the INT7 model must keep, as spec.quantize.gate has them; absent: not checked. */
interface GateOptions {
  maxAccuracyDrop?: number;
  maxTarDrop?: number;
  maxGroupAccuracyDrop?: number;
  maxGroupTarDrop?: number;
  minMeanCosine?: number;
  minWorstCosine?: number;
  minTop1Agreement?: number;
}

export interface QuantizeOptions extends InputRangeOptions, GateOptions {
  model: string;
  calibration: string;
  out: string;
  images: number;
  seed: number;
  rounds: number;
  /** By the paper alone: no zero points, no balanced ranges, no corrected biases, 7 bits. */
  paperSearch?: boolean;
  /** Compare with a model of that search. */
  comparePaper?: boolean;
  /** Share of the multiply-accumulates of which the activations may have 8 bits. */
  budget: number;
  /** Stretch the calibration pictures to the size of the model's input. */
  resize?: boolean;
  /** Share of the calibration pictures that may be bad. */
  maxBadPictures: number;
  /** Verification sets: .bin files. */
  pairs?: string[];
  /** Groups of their pairs: a text file for each set, in the same order. */
  groups?: string[];
  /** Absent: as the file's metadata says it, else DEFAULT_CHANNEL_ORDER. */
  channelOrder?: ChannelOrder;
  /** The output to keep; absent: all. */
  output?: string;
  /** Of the pictures, where the model leaves it free. */
  inputSize?: { height: number; width: number };
  /** Refuse a model of which a node would stay FP32. */
  strict: boolean;
  /** Absent: one for each CPU. */
  threads?: number;
  /** For the activations of all pictures, in bytes; absent: as QuantizeConfig has it. */
  memory?: number;
  /** Replace the artifact that the folder holds. */
  fresh: boolean;
}

const JOB = { name: 'quantize', uid: 'local', attempt: 0 };
/** Between updates of the status line. */
const UPDATE_MILLISECONDS = 200;

export async function quantize(options: QuantizeOptions, line: StatusLine, signal: AbortSignal) {
  // Before the model is read for the order of its colors, which may take seconds.
  refuseToReplace(resolve(options.out), options.fresh, line);
  const { model, output, inputSize } = options;
  // Its metadata says the order of its colors.
  const read =
    options.channelOrder === undefined
      ? await readModel({ path: model, ...(output !== undefined && { output }), ...(inputSize && { inputSize }) })
      : undefined;
  const config = await makeConfig(options, read);
  const start = performance.now();
  const report = await runWithStatusLine(config, read, line, signal);
  const files = await readArtifactFiles(config.outputDirectory);
  const { layers, metrics, source } = report;
  const seconds = (performance.now() - start) / 1000;
  return {
    json: {
      layers,
      realNodes: report.realNodes ?? [],
      ...(report.tail && { tail: report.tail }),
      outputs: metrics.outputs ?? [],
      meanCosine: metrics.meanCosine,
      percentile1Cosine: metrics.percentile1Cosine,
      seconds,
      evaluation: metrics.comparisons,
      ...(report.paperSearch && { paperSearch: report.paperSearch }),
      gate: report.gate,
      files,
    },
    text: table([
      ['Source', `${options.model} (${bytes(source.bytes)})`],
      ...(source.input ? [['Input', inputText(source.input, source.channelOrder)] as [string, string]] : []),
      ['Layers', `${layers.length}, in ${duration(seconds)}`],
      ...(report.realNodes ?? []).map(({ node, reason }): [string, string] => ['In FP32', `${node}: ${reason}`]),
      ...(report.tail ? tailRows(report.tail) : []),
      ...metricsRows(metrics),
      ...(report.paperSearch ? paperRows(report.paperSearch) : []),
      ...gateRows(report.gate),
      ...fileRows(config.outputDirectory, files),
    ]),
  };
}

/**
 * The quantizer overwrites files of an artifact's names. One that was interrupted leaves a model without a manifest.
 * @throws FacetrainError InvalidArgument for an artifact without `fresh`, and for files that are no artifact
 */
function refuseToReplace(folder: string, fresh: boolean, line: StatusLine): void {
  const files = artifactFiles(folder);
  const wasInterrupted =
    !hasArtifact(folder) && existsSync(join(folder, ARTIFACT.model)) && existsSync(join(folder, OUTPUT.fences));
  if (files.length === 0 || wasInterrupted) return;
  const isOurs = isArtifact(join(folder, ARTIFACT.manifest));
  if (!fresh || !isOurs)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: folder,
      found: `holds ${files.map(({ path }) => basename(path)).join(', ')}${isOurs ? '' : ', not of an INT7 artifact'}`,
      allowed: `choose another folder with --out${isOurs ? ', or replace these files with --fresh' : ''}`,
    });
  line.print('--fresh replaces:');
  for (const text of listing(files)) line.print(`  ${text}`);
}

function isArtifact(manifest: string): boolean {
  try {
    const { kind } = Object(JSON.parse(readFileSync(manifest, 'utf8'))) as { kind?: unknown };
    return kind === 'facetrain-int7';
  } catch {
    return false;
  }
}

/** What no option names is the default of spec.quantize. */
async function makeConfig(options: QuantizeOptions, read: ReadModel | undefined): Promise<QuantizeConfig> {
  const { model, calibration, out, images, seed, rounds, budget, maxBadPictures } = options;
  const { pairs = [], groups = [], output, threads, memory, inputSize, strict } = options;
  const channelOrder = options.channelOrder ?? (read && channelOrderOf(read.metadata)) ?? DEFAULT_ORDER;
  // The report finds pictures by the name of their set.
  const names = new UniqueNames([]);
  if (groups.length > 0 && groups.length !== pairs.length)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--groups',
      found: `${counted(groups.length, 'file')} for ${counted(pairs.length, 'set')}`,
      allowed: 'one for each set of --pairs, in their order',
    });
  const sets = (await Promise.all(pairs.map(readVerificationSet))).map(({ name, path }, index) => ({
    name: names.take(name),
    path: resolve(path),
    ...(groups[index] !== undefined && { groups: resolve(groups[index]) }),
  }));
  return {
    schemaVersion: 1,
    job: JOB,
    model: {
      path: resolve(model),
      ...(output !== undefined && { output }),
      ...(inputSize && { inputSize }),
      channelOrder,
      input: givenRange(options),
    },
    calibration: {
      ...{ datasetPath: resolve(calibration), images, seed, maxBadPictures },
      ...(options.resize && { resize: true as const }),
    },
    search: { ...DEFAULT_SEARCH, rounds, budget, strict, ...(options.paperSearch && PAPER_SEARCH) },
    ...(options.comparePaper && { comparePaper: true }),
    evaluation: { sets },
    gate: gateOf(options),
    publish: null,
    outputDirectory: resolve(out),
    ...(memory !== undefined && { searchMemoryBytes: memory }),
    computeThreads: threads ?? availableParallelism(),
    progress: null,
  };
}

function gateOf(options: GateOptions): QuantizeConfig['gate'] {
  const { maxAccuracyDrop = null, minMeanCosine = null, maxTarDrop, maxGroupAccuracyDrop } = options;
  const { maxGroupTarDrop, minWorstCosine, minTop1Agreement } = options;
  return {
    ...{ maxAccuracyDrop, minMeanCosine },
    ...(maxTarDrop !== undefined && { maxTarDrop }),
    ...(maxGroupAccuracyDrop !== undefined && { maxGroupAccuracyDrop }),
    ...(maxGroupTarDrop !== undefined && { maxGroupTarDrop }),
    ...(minWorstCosine !== undefined && { minWorstCosine }),
    ...(minTop1Agreement !== undefined && { minTop1Agreement }),
  };
}

async function runWithStatusLine(
  config: QuantizeConfig,
  read: ReadModel | undefined,
  line: StatusLine,
  signal: AbortSignal,
): Promise<QuantizeReport> {
  const board = createBoard(JOB, 'Loading');
  const timer = setInterval(() => line.show(board.current.stage, progressDetail(board.current)), UPDATE_MILLISECONDS);
  try {
    return await runQuantize(config, { log: warningsOn(line), progress: board, signal }, read);
  } finally {
    clearInterval(timer);
    line.clear();
  }
}

/** The files that the artifact's manifest names, with their sizes and digests. */
async function readArtifactFiles(folder: string): Promise<ArtifactManifest['files']> {
  const file = join(folder, ARTIFACT.manifest);
  const manifest: unknown = JSON.parse(await readFile(file, 'utf8'));
  return parseDocument(ArtifactManifest, manifest, file, 'InvalidArtifact').files;
}

/** Of a model by the paper's search alone. */
function paperRows(metrics: Metrics): [string, string][] {
  return metricsRows(metrics)
    .filter(([what]) => what !== MEASURED_ON)
    .map(([what, found]) => ['By the paper alone', `${what}: ${found}`]);
}

/** The tail: first the nodes for whose sake it is there. The report has all. */
function tailRows({ inputs, operators, causes }: NonNullable<QuantizeReport['tail']>): [string, string][] {
  const MOST = 5;
  const more = causes.length - MOST;
  return [
    ...causes.slice(0, MOST).map(({ node, reason }): [string, string] => ['In the tail', `${node}: ${reason}`]),
    ...(more > 0 ? [['In the tail', `${more} such nodes more`] as [string, string]] : []),
    ['Tail', `${operators}: in FP32, for ONNX Runtime. Our runtime gives ${inputs.join(', ')}`],
  ];
}

/** Of a gate that was passed: a missed one ends the command with an error. */
function gateRows(gate: QuantizeReport['gate']): [string, string][] {
  if (!hasBounds(gate)) return [];
  return [['Gate', ['passed', ...(gate.notJudged ?? [])].join('; ')]];
}

function fileRows(folder: string, files: ArtifactManifest['files']): [string, string][] {
  const total = Object.values(files).reduce((sum, file) => sum + file.bytes, 0);
  return [
    ['INT7 model', `${join(folder, ARTIFACT.model)} (${bytes(files[ARTIFACT.model]?.bytes ?? 0)})`],
    ['Report', join(folder, ARTIFACT.reportHtml)],
    ['All files', bytes(total)],
  ];
}
