/**
 * The quantize mode: an ONNX model in, `model.int7.onnx` with its scales, reports and manifest out, judged and published.
 *
 * What can be refused is refused before the search starts. The files are a function of the configuration and of what it names, to the byte.
 */

import { createHash } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { FacetrainError, type QuantizeConfig, type QuantizeReport, type StorageAddress } from '@facetrain/api';
import {
  type Embedder,
  type Graph,
  Int7Model,
  inspectDataset,
  type LayerGraph,
  LayerModel,
  Model,
  type Pictures,
  readPictures,
  type Scales,
  type SearchResult,
  searchScales,
} from '@facetrain/native';
import { sampleIndices } from '../dataset/sample-indices.ts';
import { countParameters } from '../onnx/describe.ts';
import { readOnnx } from '../onnx/read.ts';
import type { Program } from '../program/program.ts';
import { makeFolder, storageError, writeAtomically } from '../storage/atomic-files.ts';
import { digestFile } from '../storage/digest.ts';
import { checkDestination, publish } from '../storage/publish.ts';
import { patiently } from '../storage/retries.ts';
import { evaluateSet } from '../verification/evaluate-set.ts';
import { readVerificationSet, type VerificationSet } from '../verification/set.ts';
import {
  MANIFEST,
  MODEL,
  manifestFile,
  modelFile,
  REPORTS,
  reportFiles,
  scalesFile,
  stored,
} from './artifact-files.ts';
import { compareModels, cosines, joined, judge, type SetEmbeddings, summarize } from './compare.ts';
import { fold } from './fold.ts';
import { decodeInt7 } from './qdq.ts';

const SCALES = 'scales.json';

/**
 * Quantizes, compares, judges, writes and publishes.
 * @throws FacetrainError GateFailed when a bound is missed: the reports are written, and published under `rejected/`; there is no manifest
 */
export async function runQuantize(config: QuantizeConfig, program: Program): Promise<QuantizeReport> {
  const { log, progress, signal } = program;
  const threads = config.computeThreads ?? availableParallelism();
  progress.update({ stage: 'Loading' });
  const source = await loadModel(config);
  const sets = await loadSets(config);
  await checkOutput(config, signal);
  const calibration = await loadCalibration(config, source.graph, program);
  await using fp32 = closing(await LayerModel.open(source.layers, { computeThreads: threads }));
  await checkFolded(source.graph, fp32.model, calibration.pictures, threads, signal);
  log.info(
    {
      layers: source.layers.layers.length,
      calibration: calibration.pictures.count,
      sets: sets.map(({ name }) => name),
    },
    'quantizing',
  );

  const found = await search(config, source.layers, calibration.pictures, threads, program);
  const bytes = modelFile(found.graph, found.scales, {
    source: source.file.sha256,
    calibration: calibration.sha256,
    channelOrder: config.model.channelOrder,
  });
  // A manifest from before vouches for files that are about to change.
  await rm(join(config.outputDirectory, MANIFEST), { force: true });
  await writeAtomically(join(config.outputDirectory, MODEL), bytes);

  progress.update({ stage: 'Comparing', step: 0, totalSteps: 0 });
  await using int7 = closing(await openWritten(join(config.outputDirectory, MODEL), threads));
  await checkWritten(int7.model, found, calibration.pictures, threads, signal);
  const metrics =
    sets.length > 0
      ? await compareOnSets(config, sets, source.graph, fp32.model, int7.model, program)
      : await compareOnPictures(calibration.pictures, fp32.model, int7.model, program);

  const { images, seed, sha256 } = calibration;
  const report: QuantizeReport = {
    schemaVersion: 1,
    job: config.job,
    source: { ...source.file, channelOrder: config.model.channelOrder, parameters: countParameters(source.graph) },
    model: stored(bytes),
    calibration: { images, seed, sha256 },
    search: config.search,
    layers: found.layers.map((layer) => ({
      ...layer,
      kind: found.graph.layers.find(({ name }) => name === layer.name)!.kind,
    })),
    metrics,
    gate: judge(config.gate, metrics),
  };
  progress.update({ stage: 'Publishing' });
  await deliver(config, report, found.scales, program);
  progress.update({ stage: 'Done' });
  log.info(
    { meanCosine: metrics.meanCosine, accuracyDrop: metrics.accuracyDrop, directory: config.outputDirectory },
    'quantized',
  );
  return report;
}

async function loadModel({ model }: QuantizeConfig) {
  const { graph } = await readOnnx(model.path);
  if (graph.input.channels !== 3) {
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: model.path,
      found: `an input of ${graph.input.channels} channels`,
      allowed: 'one of 3, a colour picture',
    });
  }
  try {
    return { graph, layers: fold(graph), file: await digestFile(model.path) };
  } catch (error) {
    if (!(error instanceof FacetrainError)) throw error;
    const { code, found, allowed, cause } = error;
    throw new FacetrainError({ code, subject: `${model.path}: ${error.subject}`, found, allowed, cause });
  }
}

async function loadSets({ evaluation, gate }: QuantizeConfig): Promise<VerificationSet[]> {
  if (gate.maxAccuracyDrop !== null && evaluation.sets.length === 0) {
    throw new FacetrainError({
      code: 'InvalidConfig',
      subject: 'gate.maxAccuracyDrop',
      found: `${gate.maxAccuracyDrop} without any evaluation set`,
      allowed: 'evaluation.sets to measure accuracy on, or no bound',
    });
  }
  return Promise.all(evaluation.sets.map(async ({ name, path }) => ({ ...(await readVerificationSet(path)), name })));
}

/** The places that will be written to. */
async function checkOutput(
  { outputDirectory, publish: destination }: QuantizeConfig,
  signal: AbortSignal,
): Promise<void> {
  try {
    await makeFolder(outputDirectory);
  } catch (error) {
    throw storageError(outputDirectory, error);
  }
  if (destination) await checkDestination(destination, signal);
}

async function loadCalibration({ calibration, model }: QuantizeConfig, { input }: Graph, { log, signal }: Program) {
  const { datasetPath, images, seed } = calibration;
  const dataset = await inspectDataset(datasetPath, { decode: 'none', signal });
  if (dataset.images === 0)
    throw new FacetrainError({
      code: 'InvalidDataset',
      subject: datasetPath,
      found: 'no pictures',
      allowed: 'one at least, to calibrate on',
    });
  if (dataset.height !== input.height || dataset.width !== input.width) {
    throw new FacetrainError({
      code: 'InvalidDataset',
      subject: datasetPath,
      found: `pictures of ${dataset.height} x ${dataset.width}`,
      allowed: `the ${input.height} x ${input.width} of the model’s input`,
    });
  }
  if (dataset.images < images)
    log.warn({ wanted: images, there: dataset.images }, 'calibrating on all pictures there are');
  const pictures = await readPictures(datasetPath, sampleIndices(dataset.images, images, seed), {
    channelOrder: model.channelOrder,
    signal,
  });
  return { pictures, images: pictures.count, seed, sha256: createHash('sha256').update(pictures.data).digest('hex') };
}

const STAGES = { equalizing: 'Equalizing', searching: 'Searching' } as const;

async function search(
  config: QuantizeConfig,
  layers: LayerGraph,
  pictures: Pictures,
  computeThreads: number,
  { log, progress, signal }: Program,
): Promise<SearchResult> {
  const start = performance.now();
  progress.update({ stage: config.search.equalize ? 'Equalizing' : 'Searching' });
  const found = await searchScales(layers, pictures, {
    ...config.search,
    computeThreads,
    signal,
    onProgress: ({ stage, done, total }) => progress.update({ stage: STAGES[stage], step: done, totalSteps: total }),
  });
  log.info({ seconds: (performance.now() - start) / 1000 }, 'scales found');
  return found;
}

/** The INT7 model as anybody will have it: from its file alone. */
async function openWritten(path: string, computeThreads: number): Promise<Int7Model> {
  const { layers, scales } = decodeInt7((await readOnnx(path)).graph);
  return Int7Model.open(layers, scales, { computeThreads });
}

/** Few pictures find whatever is wrong: every layer's numbers go into each. */
function firstFew(pictures: Pictures): Pictures {
  const count = Math.min(pictures.count, 4);
  return { ...pictures, count, data: pictures.data.subarray(0, count * pictures.height * pictures.width * 3) };
}

/** Relative to the largest value of an embedding: two orders of magnitude above what 32 bits and another order of sums explain. */
const FOLDING_TOLERANCE = 1e-3;

/** Folding must not change the function: the layers against the graph as it came, in an executor that knows nothing of them. */
async function checkFolded(
  graph: Graph,
  layers: Embedder,
  pictures: Pictures,
  computeThreads: number,
  signal: AbortSignal,
): Promise<void> {
  await using model = closing(await Model.open(graph, { computeThreads }));
  const [expected, found] = [
    await model.model.embed(firstFew(pictures), { signal }),
    await layers.embed(firstFew(pictures), { signal }),
  ];
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (!expected.every((value, index) => Math.abs(value - found[index]!) <= FOLDING_TOLERANCE * largest))
    throw new Error('folding has changed the model');
}

/** The file must be the very model that the search has found. */
async function checkWritten(
  written: Embedder,
  { graph, scales }: { graph: LayerGraph; scales: Scales },
  pictures: Pictures,
  computeThreads: number,
  signal: AbortSignal,
): Promise<void> {
  await using searched = closing(await Int7Model.open(graph, scales, { computeThreads }));
  const [expected, found] = [
    await searched.model.embed(firstFew(pictures), { signal }),
    await written.embed(firstFew(pictures), { signal }),
  ];
  if (!expected.every((value, index) => value === found[index]))
    throw new Error(`${MODEL} gives other embeddings than the model that was written to it`);
}

async function compareOnSets(
  { model }: QuantizeConfig,
  sets: VerificationSet[],
  { input }: Graph,
  fp32: Embedder,
  int7: Embedder,
  { progress, signal }: Program,
) {
  const compared = [];
  for (const set of sets) {
    const embeddings = async (embedder: Embedder): Promise<SetEmbeddings> => {
      const options = { input, channelOrder: model.channelOrder, flip: false, signal, onBatch: () => progress.tick() };
      return {
        plain: await evaluateSet(embedder, set, options),
        mirrored: await evaluateSet(mirrored(embedder), set, options),
      };
    };
    compared.push(compareModels(set.name, set.same, fp32.dim, await embeddings(fp32), await embeddings(int7)));
  }
  return summarize(
    compared.map(({ comparison }) => comparison),
    joined(compared.map((one) => one.cosines)),
  );
}

async function compareOnPictures(pictures: Pictures, fp32: Embedder, int7: Embedder, { progress, signal }: Program) {
  const options = { signal, onBatch: () => progress.tick() };
  return summarize([], cosines(await fp32.embed(pictures, options), await int7.embed(pictures, options), fp32.dim));
}

/** Embeds mirror images, so that each has an embedding of its own to compare. */
function mirrored(embedder: Embedder): Embedder {
  return {
    dim: embedder.dim,
    embed: (pictures, options) => embedder.embed(mirrorImages(pictures), options),
    close: () => embedder.close(),
  };
}

function mirrorImages(pictures: Pictures): Pictures {
  const { count, height, width } = pictures;
  const data = new Uint8Array(pictures.data.length);
  for (let row = 0; row < count * height; ++row) {
    for (let column = 0; column < width; ++column) {
      const from = (row * width + column) * 3;
      data.set(pictures.data.subarray(from, from + 3), (row * width + width - 1 - column) * 3);
    }
  }
  return { ...pictures, data };
}

/** Writes what belongs to the verdict, the manifest last and only for a model that passed, and publishes it. */
async function deliver(
  config: QuantizeConfig,
  report: QuantizeReport,
  scales: Scales,
  { log, signal }: Program,
): Promise<void> {
  const { outputDirectory, publish: destination } = config;
  // Hours of search are behind it.
  const send = (names: string[], to: StorageAddress) =>
    patiently(() => publish(outputDirectory, names, to, signal), {
      signal,
      onWait: ({ message }, milliseconds) => log.warn({ retryInMs: milliseconds }, message),
    });
  const contents: Record<string, string> = { [SCALES]: scalesFile(scales), ...reportFiles(report) };
  for (const [name, content] of Object.entries(contents)) await writeAtomically(join(outputDirectory, name), content);
  if (!report.gate.passed) {
    // Beside an artifact that may stand there from before, not over it.
    if (destination) await send(REPORTS, { ...destination, uri: `${destination.uri.replace(/\/+$/, '')}/rejected` });
    throw new FacetrainError({
      code: 'GateFailed',
      subject: `gate of job ${config.job.name}`,
      found: report.gate.failures.join('; '),
      allowed: 'the bounds of gate; the report has every layer',
    });
  }
  const files = {
    [MODEL]: report.model,
    ...Object.fromEntries(Object.entries(contents).map(([name, content]) => [name, stored(content)])),
  };
  await writeAtomically(join(outputDirectory, MANIFEST), manifestFile(report, files));
  if (destination) await send([...Object.keys(files), MANIFEST], destination);
}

/** A model that closes at the end of the scope. */
function closing<T extends Embedder>(model: T): { model: T } & AsyncDisposable {
  return { model, [Symbol.asyncDispose]: () => model.close() };
}
