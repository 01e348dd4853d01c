/** Reads what a quantization needs and checks it, before the search starts. */
import { createHash } from 'node:crypto';
import { FacetrainError, type QuantizeConfig, type StoredFile } from '@facetrain/api';
import { type Graph, inspectDataset, type LayerGraph, type Pictures, readPictures } from '@facetrain/native';
import { drawPictures } from '../dataset/sample-indices.ts';
import { readOnnx } from '../onnx/read.ts';
import type { Program } from '../program/program.ts';
import { makeFolder, storageError } from '../storage/atomic-files.ts';
import { digestFile } from '../storage/digest.ts';
import { checkDestination } from '../storage/publish.ts';
import { readVerificationSet, type VerificationSet } from '../verification/verification-set.ts';
import { fold } from './fold.ts';

export interface SourceModel {
  graph: Graph;
  /** The same function, as the layers to be quantized. */
  layers: LayerGraph;
  file: StoredFile;
}

/** @throws FacetrainError InvalidModel, UnsupportedOperator, StorageFailed */
export async function loadModel({ model }: QuantizeConfig): Promise<SourceModel> {
  const { graph } = await readOnnx(model.path);
  if (graph.input.channels !== 3) {
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: model.path,
      found: `an input of ${graph.input.channels} channels`,
      allowed: 'one of 3, a color picture',
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

/** @throws FacetrainError InvalidConfig when the gate needs a set and there is none; InvalidVerificationSet */
export async function loadSets({ evaluation, gate }: QuantizeConfig): Promise<VerificationSet[]> {
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

/** Makes the output folder, and checks that the destination can be reached. @throws FacetrainError StorageFailed */
export async function checkOutput(
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

export interface Calibration {
  pictures: Pictures;
  /** What both models are compared on when there are no evaluation sets. */
  compared: { pictures: Pictures; source: 'heldOut' | 'calibration' };
  /** For the report: how many pictures, drawn with which seed, and the digest of their pixels. */
  facts: { images: number; seed: number; sha256: string };
}

/** @throws FacetrainError InvalidDataset */
export async function loadCalibration(
  { calibration, evaluation, model }: QuantizeConfig,
  { input }: Graph,
  { log, signal }: Program,
): Promise<Calibration> {
  const { datasetPath, images, seed } = calibration;
  const refuse = (found: string, allowed: string) =>
    new FacetrainError({ code: 'InvalidDataset', subject: datasetPath, found, allowed });
  const dataset = await inspectDataset(datasetPath, { decode: 'none', signal });
  if (dataset.images === 0) throw refuse('no pictures', 'one at least, to calibrate on');
  if (dataset.height !== input.height || dataset.width !== input.width)
    throw refuse(
      `pictures of ${dataset.height} x ${dataset.width}`,
      `the ${input.height} x ${input.width} of the model’s input`,
    );
  const sample = drawPictures(dataset.images, images, seed, evaluation.sets.length === 0);
  if (sample.calibration.length < images)
    log.warn(
      `calibrating on ${sample.calibration.length} pictures instead of ${images}: the dataset has ${dataset.images}` +
        (sample.heldOut.length > 0 ? `, and ${sample.heldOut.length} are held out to measure on` : ''),
    );
  const read = (indices: number[]) => readPictures(datasetPath, indices, { channelOrder: model.channelOrder, signal });
  const pictures = await read(sample.calibration);
  const sha256 = createHash('sha256').update(pictures.data).digest('hex');
  return {
    pictures,
    compared:
      sample.heldOut.length > 0
        ? { pictures: await read(sample.heldOut), source: 'heldOut' }
        : { pictures, source: 'calibration' },
    facts: { images: pictures.count, seed, sha256 },
  };
}
