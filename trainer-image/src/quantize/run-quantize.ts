/**
 * The quantize mode: reads an ONNX model, writes `model.int7.onnx` with its scales, reports and manifest, checks the
 * gate and publishes. The same configuration and input files give the same output, byte for byte.
 */
import { randomUUID } from 'node:crypto';
import { access, statfs } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ARTIFACT,
  type Destination,
  FacetrainError,
  joinStorageUri,
  type Metrics,
  PAPER_SEARCH,
  parseStorageUri,
  type QuantizeConfig,
  type QuantizeReport,
} from '@facetrain/api';
import {
  addonDigest,
  Int7FileModel,
  Int7Model,
  type LayerGraph,
  LayerModel,
  Model,
  type Pictures,
  type SearchResult,
  searchScales,
} from '@facetrain/native';
import { countParameters } from '../onnx/describe.ts';
import type { Tail } from '../onnx/tail.ts';
import { withSubject } from '../onnx/with-subject.ts';
import type { Program } from '../program/program.ts';
import { isStop } from '../program/stop-signal.ts';
import { histogram } from '../report/histogram.ts';
import { Fence } from '../storage/fence.ts';
import { publish, withdraw } from '../storage/publish.ts';
import { isMisdirected, withRetries } from '../storage/retries.ts';
import { isOfCredentials, mayRotate } from '../storage/s3.ts';
import { digestOf, manifestFile, modelFile, reportFiles, scalesFile } from './artifact-files.ts';
import { checkFolded, checkOutputs, checkWritten } from './check-models.ts';
import { type CheckSourceOptions, checkFound, checkNumbers, checkSource } from './check-source.ts';
import { checkGate, concatenate } from './compare.ts';
import { compareOnPictures, compareOnSets, splitError } from './compare-models.ts';
import { disposable } from './disposable.ts';
import {
  type Calibration,
  checkOutput,
  checkSetsHaveEmbedding,
  loadCalibration,
  loadModel,
  loadSets,
  type ReadModel,
} from './inputs.ts';
import { onnxToLayers } from './onnx-to-layers.ts';
import { predictedLatency } from './predicted-latency.ts';
import { SearchJournal, searchKey } from './search-journal.ts';
import { StoredJournal } from './stored-journal.ts';
import { TimeLeft } from './time-left.ts';
import { thumbnails, worstPictures } from './worst-pictures.ts';

/**
 * @param read the model, if readModel has read it before
 * @throws FacetrainError for refused input, before the search starts; GateFailed when a bound is missed: the reports
 * alone are then written and published, under `rejected/`; FencedOff when a newer quantizer has
 * taken over the output folder
 */
export async function runQuantize(config: QuantizeConfig, program: Program, read?: ReadModel): Promise<QuantizeReport> {
  const { log, progress, signal } = program;
  const computeThreads = config.computeThreads ?? availableParallelism();

  // ---- Preflight and calibration pictures. All input is validated here. ----
  progress.update({ stage: 'Loading' });
  const source = await loadModel(config, read);
  checkSetsHaveEmbedding(config, source.graph);
  const sets = await loadSets(config);
  await checkOutput(config, signal);
  const { pictures, compared, facts: calibration } = await loadCalibration(config, source.graph, program);
  await using fp32 = disposable(
    await openChecked(source, pictures, { subject: config.model.path, computeThreads, signal, log }),
  );
  checkNumbers(source.layers, config.model.path);
  log.info(
    { layers: source.layers.layers.length, calibration: calibration.images, sets: sets.map(({ name }) => name) },
    'quantizing',
  );
  for (const { node, reason } of source.real) log.info({ reason }, `${node} stays FP32`);
  for (const { node, reason } of source.tail?.causes ?? [])
    log.info({ reason }, `${node} and what reads of it stay FP32`);

  // ---- From here on the output folder is this quantizer's. ----
  const output = await Fence.claim(config.outputDirectory, { ...config.job, start: randomUUID() });
  try {
    return await quantizeInto(
      output,
      { source, sets, pictures, compared, calibration, fp32: fp32.model },
      config,
      program,
    );
  } catch (error) {
    // One that was frozen may find the files of a newer one in the place of its own.
    throw isStop(error, signal) ? error : await output.explain(error);
  }
}

/**
 * The folded layers in FP32, after the graph was checked on pictures, and that folding has not changed it.
 * @throws FacetrainError as checkSource and checkFolded; InvalidModel when folding has made weights that are not finite
 */
async function openChecked(
  { graph, layers, executable }: Inputs['source'],
  pictures: Pictures,
  options: CheckSourceOptions,
): Promise<LayerModel> {
  if (!executable) return await openOthers(graph, layers, pictures, options);
  await using original = disposable(await Model.open(graph, options));
  await checkSource(graph, original.model, pictures, options);
  const fp32 = await LayerModel.open(layers, options).catch((error: unknown) => {
    throw withSubject(options.subject, error);
  });
  try {
    await checkFolded(original.model, fp32, pictures, options);
    return fp32;
  } catch (error) {
    await fp32.close();
    throw error;
  }
}

/** As openChecked, for a graph that no executor but that of the layers runs: folding alone can be checked. */
async function openOthers(
  graph: Inputs['source']['graph'],
  layers: LayerGraph,
  pictures: Pictures,
  options: CheckSourceOptions,
): Promise<LayerModel> {
  const open = (read: () => LayerGraph) =>
    LayerModel.open(read(), options).catch((error: unknown) => {
      throw withSubject(options.subject, error);
    });
  await using original = disposable(await open(() => onnxToLayers(graph)));
  const fp32 = await open(() => layers);
  try {
    await checkOutputs(original.model, pictures, options);
    await checkFolded(original.model, fp32, pictures, options);
    return fp32;
  } catch (error) {
    await fp32.close();
    throw error;
  }
}

interface Inputs {
  source: Awaited<ReturnType<typeof loadModel>>;
  sets: Awaited<ReturnType<typeof loadSets>>;
  pictures: Pictures;
  compared: Calibration['compared'];
  calibration: Calibration['facts'];
  fp32: LayerModel;
}

/** Searches, writes the artifact into the fenced folder, checks the gate and publishes. */
async function quantizeInto(
  output: Fence,
  { source, sets, pictures, compared, calibration, fp32 }: Inputs,
  config: QuantizeConfig,
  program: Program,
): Promise<QuantizeReport> {
  const { log, progress, signal } = program;
  const { outputDirectory, publish: destination } = config;
  const computeThreads = config.computeThreads ?? availableParallelism();

  // ---- The search for scales ----
  const isStored = destination !== null && parseStorageUri(destination.uri).scheme === 's3';
  using stored = isStored ? await StoredJournal.open(destination, log) : null;
  const journal = await SearchJournal.open(
    output,
    searchKey(source.layers, pictures, calibration.sha256, config.search, addonDigest()),
    log,
    stored,
  );
  const found = await search(config, source.layers, pictures, computeThreads, program, journal);
  checkFound(found.layers, config.model.path);
  checkNumbers(found.graph, config.model.path);

  // ---- The model file. Nothing is written before the gate is passed: an artifact of an earlier run may be there. ----
  const origin = {
    source: source.file.sha256,
    calibration: calibration.sha256,
    channelOrder: config.model.channelOrder,
  };
  const modelBytes = modelFile(found.graph, found.scales, origin, 'onnxruntime', source.tail);

  // ---- Check and comparison, of the model as the C library reads it from its file's bytes ----
  progress.update({ stage: 'Comparing', step: 0, totalSteps: 0, etaSeconds: null });
  await using int7 = disposable(await Int7FileModel.open(modelBytes, { subject: ARTIFACT.model, computeThreads }));
  await checkWritten(ARTIFACT.model, int7.model, found, pictures, { computeThreads, signal });
  const { metrics, scores, sources } =
    sets.length > 0
      ? await compareOnSets(config, sets, source.graph, fp32, int7.model, program)
      : await compareOnPictures(compared, source.graph, fp32, int7.model, program);
  const errorSplit = await splitError(found, compared, source.graph, fp32, int7.model, { computeThreads, signal });

  const paperSearch = config.comparePaper
    ? await comparePaper({ source, sets, pictures, compared, fp32 }, config, program)
    : undefined;

  // ---- The report ----
  const models = {
    [ARTIFACT.model]: modelBytes,
    [ARTIFACT.tensorRtModel]: modelFile(found.graph, found.scales, origin, 'tensorrt', source.tail),
  };
  const worst = worstPictures(sources);
  const report: QuantizeReport = {
    schemaVersion: 1,
    job: config.job,
    source: {
      ...source.file,
      ...(Object.keys(source.externalData).length > 0 && { externalData: source.externalData }),
      channelOrder: config.model.channelOrder,
      input: source.range,
      parameters: countParameters(source.graph),
      ...(source.removed.length > 0 && { removed: source.removed }),
    },
    model: digestOf(modelBytes),
    calibration,
    search: reported(config.search),
    ...(source.real.length > 0 && { realNodes: source.real }),
    ...(source.tail && { tail: tailOf(source.tail, source.graph) }),
    folded: source.folded,
    layers: found.layers.map((layer) => ({
      ...layer,
      kind: found.graph.layers.find(({ name }) => name === layer.name)!.kind,
    })),
    errorSplit,
    sizes: sizesOf(source, found.graph, models),
    latency: predictedLatency(
      found.graph,
      found.layers.reduce((sum, { macs }) => sum + macs, 0),
    ),
    ...(scores.length > 0 && { scores }),
    angles: histogram(concatenate(sources.map(({ cosines }) => cosines.map(degrees)))),
    worstPictures: worst,
    metrics,
    ...(paperSearch && { paperSearch }),
    gate: checkGate(config.gate, metrics),
  };
  progress.update({ stage: 'Publishing' });
  const write = async (folder: string, files: Record<string, Uint8Array | string>) => {
    for (const [name, content] of Object.entries(files)) await output.write(join(folder, name), content);
  };

  // ---- The gate ----
  const reports = reportFiles(report, await thumbnails(worst, sets, compared));
  if (!report.gate.passed) {
    const folder = join(outputDirectory, ARTIFACT.rejected);
    await write(folder, reports);
    if (destination) {
      const uri = joinStorageUri(destination.uri, ARTIFACT.rejected);
      await upload(folder, Object.keys(reports), { ...destination, uri }, program);
    }
    await journal.remove();
    throw new FacetrainError({
      code: 'GateFailed',
      subject: `gate of job ${config.job.name}`,
      found: report.gate.failures.join('; '),
      allowed: 'metrics within the bounds of gate; the report shows each layer',
    });
  }

  // ---- The files ----
  const files = {
    ...models,
    [ARTIFACT.scales]: scalesFile(found.scales),
    ...reports,
  };
  // The manifest of an earlier run describes files that change now.
  await output.remove(join(outputDirectory, ARTIFACT.manifest));
  await write(outputDirectory, files);
  // Reports of a model that missed its gate before: where an artifact is, they would be about another model.
  const rejected = Object.keys(reports).map((name) => join(ARTIFACT.rejected, name));
  for (const path of rejected.map((name) => join(outputDirectory, name))) {
    const isThere = await access(path).then(
      () => true,
      () => false,
    );
    if (isThere) await output.remove(path);
  }

  // ---- The manifest. It is written and published last: it exists only if the other files are complete. ----
  const listed = Object.fromEntries(Object.entries(files).map(([name, content]) => [name, digestOf(content)]));
  await output.write(join(outputDirectory, ARTIFACT.manifest), manifestFile(report, listed));
  // An object store has no fence: the check has to do.
  await output.check();
  if (destination) {
    await retried(() => withdraw(rejected, destination, signal), destination, program);
    await upload(outputDirectory, [...Object.keys(listed), ARTIFACT.manifest], destination, program);
  }
  // Until here a quantizer that is stopped, or that cannot publish, would otherwise search again.
  await journal.remove();
  progress.update({ stage: 'Done' });
  log.info(
    { meanCosine: metrics.meanCosine, accuracyDrop: metrics.accuracyDrop, directory: outputDirectory },
    'quantized',
  );
  return report;
}

/** How close to FP32 a model is whose scales the paper's search alone has found. Of it nothing is written. */
async function comparePaper(
  { source, sets, pictures, compared, fp32 }: Omit<Inputs, 'calibration'>,
  config: QuantizeConfig,
  program: Program,
): Promise<Metrics> {
  const computeThreads = config.computeThreads ?? availableParallelism();
  const onPaper = { ...config, search: { ...config.search, ...PAPER_SEARCH } };
  const found = await search(onPaper, source.layers, pictures, computeThreads, program);
  program.progress.update({ stage: 'Comparing', step: 0, totalSteps: 0, etaSeconds: null });
  await using int7 = disposable(await Int7Model.open(found.graph, found.scales, { computeThreads }));
  const { metrics } =
    sets.length > 0
      ? await compareOnSets(config, sets, source.graph, fp32, int7.model, program)
      : await compareOnPictures(compared, source.graph, fp32, int7.model, program);
  return metrics;
}

/** The tail as the report has it. */
function tailOf(
  { causes, operators }: Tail,
  { outputs, output }: Inputs['source']['graph'],
): NonNullable<QuantizeReport['tail']> {
  return { inputs: (outputs ?? [output]).map(({ name }) => name), operators, causes };
}

/** Options of the search as the report has them: a budget of 0 is left out, as in reports from before it. */
function reported({ budget, ...search }: QuantizeConfig['search']): QuantizeReport['search'] {
  return { ...search, ...(budget > 0 && { budget }) };
}

/** Sizes of the model files, and the aim: a quarter of FP32, and 16 bytes a channel for scales and bias. */
function sizesOf(
  { file, externalData }: Inputs['source'],
  { layers }: LayerGraph,
  models: Record<string, Uint8Array>,
): NonNullable<QuantizeReport['sizes']> {
  const fp32 = Object.values(externalData).reduce((sum, { bytes }) => sum + bytes, file.bytes);
  const channels = layers.reduce((sum, layer) => sum + ('bias' in layer ? layer.bias.length : 0), 0);
  return {
    channels,
    aimBytes: Math.round(fp32 / 4) + 16 * channels,
    files: Object.fromEntries(Object.entries(models).map(([name, { length }]) => [name, length])),
  };
}

const degrees = (cosine: number) => (Math.acos(Math.min(Math.max(cosine, -1), 1)) * 180) / Math.PI;

/** Of the activations of all pictures, in a search. */
const DEFAULT_MEMORY_BYTES = 2 * 2 ** 30;
/** Type of such a file system, of statfs(2). */
const TMPFS = 0x01021994;

const STAGES = { equalizing: 'Equalizing', searching: 'Searching' } as const;

async function search(
  config: QuantizeConfig,
  layers: LayerGraph,
  pictures: Pictures,
  computeThreads: number,
  { log, progress, signal }: Program,
  journal?: SearchJournal,
): Promise<SearchResult> {
  const start = performance.now();
  progress.update({ stage: config.search.equalize ? 'Equalizing' : 'Searching' });
  const decided = journal?.decided ?? [];
  if (decided.length > 0) log.info({ decisions: decided.length }, 'going on with an interrupted search');
  const estimate = new TimeLeft();
  // What an interrupted search had decided takes no time, so it says nothing about the rest.
  let isNew = false;
  try {
    const found = await searchScales(layers, pictures, {
      ...config.search,
      memoryBytes:
        config.searchMemoryBytes ?? Math.min(DEFAULT_MEMORY_BYTES, Math.floor(process.availableMemory() / 2)),
      temporaryDirectory: await folderForActivations(),
      computeThreads,
      signal,
      decided,
      onDecisions: (made) => {
        isNew ||= made.length > 0;
        journal?.add(made);
      },
      onProgress: ({ stage, done, total }) =>
        progress.update({
          ...{ stage: STAGES[stage], step: done, totalSteps: total },
          etaSeconds: stage === 'searching' && isNew ? estimate.seconds(done, total, performance.now()) : null,
        }),
    });
    log.info({ seconds: (performance.now() - start) / 1000 }, 'scales found');
    return found;
  } finally {
    await journal?.close();
  }
}

/** Publishes files of a folder. */
function upload(folder: string, names: string[], to: Destination, program: Program): Promise<unknown> {
  return retried(
    () => publish(folder, names, to, { signal: program.signal, warn: (message) => program.log.warn(message) }),
    to,
    program,
  );
}

/** $TMPDIR, or else /tmp; on a system that has that in memory, /var/tmp. */
async function folderForActivations(): Promise<string> {
  if (process.env.TMPDIR) return tmpdir();
  // A folder that is not there matters only to a search that needs one.
  const system = await statfs(tmpdir()).catch(() => undefined);
  return system?.type === TMPFS ? '/var/tmp' : tmpdir();
}

/**
 * Changes the destination, with retries for as long as trainers have: the search before may have taken hours. It could
 * be reached before that, so its address is right. The files of a mounted Secret follow a change of the credentials
 * within minutes, as the token of a pod's identity does.
 */
function retried<T>(change: () => Promise<T>, to: Destination, { log, signal }: Program): Promise<T> {
  return withRetries(change, {
    signal,
    mayPass: ({ cause }) => isMisdirected(cause) || (mayRotate(to) && isOfCredentials(cause)),
    onRetry: ({ message }, milliseconds) => log.warn({ retryInMs: milliseconds }, message),
  });
}
