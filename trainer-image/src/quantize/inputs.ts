/** Reads what a quantization needs and checks it, before the search starts. */
import { readFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import {
  ARTIFACT,
  counted,
  FacetrainError,
  type QuantizeConfig,
  type QuantizeReport,
  type StoredFile,
} from '@facetrain/api';
import {
  EMBEDDING_BATCH,
  type Graph,
  type GraphNode,
  inspectDataset,
  type LayerGraph,
  type Pictures,
  readPictures,
} from '@facetrain/native';
import { checkBadPictures } from '../dataset/dataset-preflight.ts';
import { drawPictures } from '../dataset/sample-indices.ts';
import { type FoundRange, withInputRange } from '../onnx/input-range.ts';
import { checkEmbeddingMemory } from '../onnx/memory.ts';
import { openModel } from '../onnx/open-model.ts';
import { CANONICAL_OPERATORS, FLOAT_OPERATORS } from '../onnx/operators.ts';
import { FORMAT_METADATA, type ModelFiles, type OnnxModel, readOnnx } from '../onnx/read.ts';
import type { Tail } from '../onnx/tail.ts';
import { withSubject } from '../onnx/with-subject.ts';
import type { Program } from '../program/program.ts';
import { makeFolder, storageError } from '../storage/atomic-files.ts';
import { digestBytes, digestFile } from '../storage/digest.ts';
import { checkDestination } from '../storage/publish.ts';
import { checkGateHasPairs } from '../verification/gate-pairs.ts';
import { readSet, type VerificationSet } from '../verification/verification-set.ts';
import { fold } from './fold.ts';
import { QUANTIZER_OPERATORS, type RealNode } from './onnx-to-layers.ts';
import { resized } from './resize.ts';

export interface SourceModel {
  graph: Graph;
  /** The same function, as the layers to be quantized. */
  layers: LayerGraph;
  /** Nodes that stay FP32. */
  real: RealNode[];
  /** Nodes that were folded into layers. */
  folded: NonNullable<QuantizeReport['folded']>;
  /** Whether the executor of eval and train runs the graph: it is one embedding, of operators that it knows. */
  executable: boolean;
  /** What the file's input is. */
  range: FoundRange;
  file: StoredFile;
  /** Files beside the model that hold its weights, by name. */
  externalData: Record<string, StoredFile>;
  /** What the graph does not compute any more (onnx/normalize.ts). */
  removed: string[];
  /** What the file has behind the graph's outputs. */
  tail?: Tail | undefined;
}

/** What may be in front of a tail: what layers are, or are written with (onnx/normalize.ts). */
export const COMPUTED: ReadonlySet<string> = new Set(QUANTIZER_OPERATORS);
const EXECUTED = new Set<string>([...CANONICAL_OPERATORS, ...FLOAT_OPERATORS]);

export type ReadModel = OnnxModel & ModelFiles;

/** @throws FacetrainError InvalidModel, also for an INT7 model; UnsupportedOperator, StorageFailed */
export async function readModel({
  path,
  output,
  inputSize,
}: Pick<QuantizeConfig['model'], 'path' | 'output' | 'inputSize'>): Promise<ReadModel> {
  const read = await readOnnx(path, { output, every: true, size: inputSize, computes: COMPUTED });
  if (read.metadata[FORMAT_METADATA] === undefined) return read;
  throw new FacetrainError({
    code: 'InvalidModel',
    subject: read.file,
    found: 'is quantized already',
    allowed: 'the FP32 model, of which the report of the quantization has the digest (source.sha256)',
  });
}

/** @param read what readModel gave, if the model was read before @throws FacetrainError as readModel */
export async function loadModel(
  { model, search }: Pick<QuantizeConfig, 'model' | 'search'>,
  read?: ReadModel,
): Promise<SourceModel> {
  const { removed, file, externalFiles, tail, ...found } = read ?? (await readModel(model));
  if (tail && search.strict) throw tailRefused(file, tail);
  const { graph, range } = withInputRange(found, { given: model.input, subject: file });
  if (graph.input.channels !== 3 && graph.input.channels !== 1) {
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: model.path,
      found: `an input of ${counted(graph.input.channels, 'channel')}`,
      allowed: 'one of 3, a color picture, or of 1, its gray',
    });
  }
  checkEmbeddingMemory(graph, file, EMBEDDING_BATCH);
  // Scales are tables by name, written to JSON: there this name stands for something else.
  if (graph.nodes.some(({ name, inputs, outputs }) => [name, ...inputs, ...outputs].includes('__proto__')))
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: model.path,
      found: 'has a node or a value called __proto__',
      allowed: 'another name for it',
    });
  // What the executor refuses is refused as eval and train do, if it is an embedding of operators that these read.
  const isExecuted = ({ op }: GraphNode) => EXECUTED.has(op) || !QUANTIZER_OPERATORS.includes(op);
  const executable = !graph.outputs && graph.input.channels === 3 && graph.nodes.every(isExecuted);
  if (executable) {
    const executor = await openModel(graph, file, { computeThreads: 1 });
    await executor.close();
  }
  try {
    const real: RealNode[] = [];
    const folded: SourceModel['folded'] = [];
    const layers = fold(graph, {
      strict: search.strict,
      onReal: (node) => real.push(node),
      onFold: (node, into) => folded.push({ node, into }),
    });
    const externalData: SourceModel['externalData'] = {};
    for (const path of externalFiles) externalData[relative(dirname(file), path)] = await digestFile(path);
    const digest = await digestFile(file);
    return { graph, range, layers, real, folded, executable, file: digest, externalData, removed, tail };
  } catch (error) {
    throw withSubject(model.path, error);
  }
}

function tailRefused(file: string, { causes }: Tail): FacetrainError {
  const MOST = 5;
  const shown = causes.slice(0, MOST).map(({ node, reason }) => `${node}: ${reason}`);
  const more = causes.length > MOST ? `, and ${causes.length - MOST} nodes more` : '';
  return new FacetrainError({
    code: 'UnsupportedOperator',
    subject: file,
    found: `ends with ${shown.join('; ')}${more}`,
    allowed: 'layers that can be quantized; or no search.strict (--strict), so that these nodes stay FP32',
  });
}

/** @throws FacetrainError InvalidConfig when the gate needs an evaluation set and there is none */
export function checkGateHasSets({ evaluation, gate }: Pick<QuantizeConfig, 'evaluation' | 'gate'>): void {
  if (evaluation.sets.length > 0) return;
  for (const bound of ['maxAccuracyDrop', 'maxTarDrop', 'maxGroupAccuracyDrop', 'maxGroupTarDrop'] as const)
    if (typeof gate[bound] === 'number')
      throw new FacetrainError({
        code: 'InvalidConfig',
        subject: `gate.${bound}`,
        found: `${gate[bound]} without any evaluation set`,
        allowed: 'evaluation.sets (--pairs) to measure accuracy on, or no bound',
      });
}

/** @throws FacetrainError InvalidConfig when pictures are stretched, and there are sets, whose faces would not be */
export function checkResize({ calibration, evaluation }: Pick<QuantizeConfig, 'calibration' | 'evaluation'>): void {
  if (!calibration.resize || evaluation.sets.length === 0) return;
  throw new FacetrainError({
    code: 'InvalidConfig',
    subject: 'calibration.resize',
    found: 'true, and evaluation sets',
    allowed: 'calibration pictures of the size of the sets’ faces (no --resize), or no evaluation sets (--pairs)',
  });
}

/** @throws FacetrainError InvalidConfig when there are sets, and the model has no embedding to verify faces by */
export function checkSetsHaveEmbedding({ evaluation, model }: QuantizeConfig, { outputs }: Graph): void {
  if (!outputs || evaluation.sets.length === 0) return;
  throw new FacetrainError({
    code: 'InvalidConfig',
    subject: model.path,
    found: `outputs ${outputs.map(({ name }) => `"${name}"`).join(', ')}, and evaluation sets`,
    allowed: 'one embedding [N, d] (--output, model.output), or no evaluation sets',
  });
}

/**
 * @throws FacetrainError InvalidConfig when the gate needs a set and there is none, or none with enough pairs;
 *   InvalidVerificationSet
 */
export async function loadSets(config: QuantizeConfig): Promise<VerificationSet[]> {
  checkGateHasSets(config);
  checkResize(config);
  const sets = await Promise.all(config.evaluation.sets.map(readSet));
  checkGateHasPairs(config.gate, sets);
  return sets;
}

/**
 * Makes the output folder, and checks that no file of another program is in the way and that the destination can be
 * reached.
 * @throws FacetrainError InvalidArtifact, StorageFailed
 */
export async function checkOutput(
  { outputDirectory, publish: destination }: QuantizeConfig,
  signal: AbortSignal,
): Promise<void> {
  try {
    await makeFolder(outputDirectory);
  } catch (error) {
    throw storageError(outputDirectory, error);
  }
  await refuseForeignFiles(outputDirectory);
  if (destination) await checkDestination(destination, signal);
}

/** Files whose names other programs use, too, with fields that each version of ours has written. */
const COMMON_NAMES: [name: string, isOurs: (fields: Record<string, unknown>) => boolean][] = [
  [ARTIFACT.manifest, ({ kind }) => kind === 'facetrain-int7'],
  [ARTIFACT.report, (fields) => 'layers' in fields && 'gate' in fields],
  [ARTIFACT.scales, (fields) => 'tensors' in fields && 'weights' in fields],
];

/** A quantizer replaces the files of an earlier artifact. Those of another program are not to be lost. */
async function refuseForeignFiles(folder: string): Promise<void> {
  for (const [name, isOurs] of COMMON_NAMES) {
    const file = join(folder, name);
    const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw storageError(file, error);
    });
    if (text !== undefined && !isOurs(jsonFields(text)))
      throw new FacetrainError({
        code: 'InvalidArtifact',
        subject: file,
        found: 'is not of an INT7 artifact, and would be replaced',
        allowed: 'another folder for the output; or move the file away',
      });
  }
}

function jsonFields(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text)) as Record<string, unknown>;
  } catch {
    return {};
  }
}

export interface Calibration {
  pictures: Pictures;
  /** What both models are compared on when there are no evaluation sets. */
  compared: {
    pictures: Pictures;
    /** The number of each picture in the dataset. */
    numbers: number[];
    source: 'heldOut' | 'calibration';
  };
  /** For the report: how many pictures, drawn with which seed, and the digest of their pixels. */
  facts: { images: number; seed: number; sha256: string };
}

/**
 * Checks the dataset for calibration without decoding it.
 * @param input of the model; undefined when it is not known yet, or pictures of another size are stretched to it
 * @param maxBadPictures the share of its pictures that may be bad
 * @returns how many pictures it has
 * @throws FacetrainError InvalidDataset
 */
export async function checkCalibration(
  datasetPath: string,
  input: Graph['input'] | undefined,
  maxBadPictures: number,
  signal: AbortSignal,
): Promise<number> {
  const refuse = (found: string, allowed: string) =>
    new FacetrainError({ code: 'InvalidDataset', subject: datasetPath, found, allowed });
  const dataset = await inspectDataset(datasetPath, { decode: 'none', signal });
  if (dataset.images === 0) throw refuse('no pictures', 'one at least, to calibrate on');
  if (input && (dataset.height !== input.height || dataset.width !== input.width))
    throw refuse(
      `pictures of ${dataset.height} x ${dataset.width}`,
      `the ${input.height} x ${input.width} of the model’s input, or calibration.resize (--resize)`,
    );
  checkBadPictures(datasetPath, dataset, maxBadPictures);
  return dataset.images;
}

/** @throws FacetrainError InvalidDataset */
export async function loadCalibration(
  { calibration, evaluation, model }: QuantizeConfig,
  { input }: Graph,
  { log, signal }: Program,
): Promise<Calibration> {
  const { datasetPath, images, seed, maxBadPictures, resize = false } = calibration;
  const there = await checkCalibration(datasetPath, resize ? undefined : input, maxBadPictures, signal);
  const sample = drawPictures(there, images, seed, evaluation.sets.length === 0);
  if (sample.calibration.length < images)
    log.warn(
      `calibrating on ${counted(sample.calibration.length, 'picture')} instead of ${images}: the dataset has ${there}` +
        (sample.heldOut.length > 0 ? `, and ${sample.heldOut.length} are held out to measure on` : ''),
    );
  const read = async (indices: number[]) => {
    const pictures = await readPictures(datasetPath, indices, { channelOrder: model.channelOrder, signal });
    const { bad } = pictures;
    for (const { name, reason } of bad) log.warn({ picture: name, reason }, 'left out a bad picture');
    checkBadPictures(datasetPath, { bad: bad.length, badPictures: bad, images: there }, maxBadPictures);
    if (pictures.count === 0) checkBadPictures(datasetPath, { bad: bad.length, badPictures: bad, images: there }, 0);
    const left = new Set(bad.map(({ picture }) => picture));
    return {
      pictures: resize ? resized(pictures, input) : pictures,
      numbers: indices.filter((index) => !left.has(index)),
    };
  };
  const { pictures, numbers } = await read(sample.calibration);
  const { sha256 } = digestBytes(pictures.data);
  return {
    pictures,
    compared:
      sample.heldOut.length > 0
        ? { ...(await read(sample.heldOut)), source: 'heldOut' }
        : { pictures, numbers, source: 'calibration' },
    facts: { images: pictures.count, seed, sha256 },
  };
}
