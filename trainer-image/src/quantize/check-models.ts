/** Checks of our own work on real pictures: folding must not change the function, nor writing the INT7 model. */
import { FacetrainError } from '@facetrain/api';
import { type Embedder, Int7Model, type LayerGraph, type Pictures, type Scales } from '@facetrain/native';
import { disposable } from './disposable.ts';

/** Pictures of a check. A few are enough: every number of every layer has an effect on each embedding. */
const CHECKED_PICTURES = 4;

/**
 * Largest difference, relative to the largest value of an embedding. Two orders of magnitude more than rounding to 32
 * bits explains, in sums as long as a layer's.
 */
const FOLDING_TOLERANCE = 1e-3;

export interface CheckOptions {
  computeThreads: number;
  signal: AbortSignal;
}

/** @throws FacetrainError NotANumber when an output is not finite on the first pictures */
export async function checkOutputs(
  model: Embedder,
  pictures: Pictures,
  { subject, signal }: Pick<CheckOptions, 'signal'> & { subject: string },
): Promise<void> {
  const values = await model.embed(firstPictures(pictures), { signal });
  const notFinite = values.reduce((count, value) => count + Number(!Number.isFinite(value)), 0);
  if (notFinite === 0) return;
  throw new FacetrainError({
    code: 'NotANumber',
    subject,
    found: `${notFinite} of ${values.length} numbers of its outputs are not finite`,
    allowed: 'a trained model, and the range of its input that it was trained with (--input-range)',
  });
}

/**
 * Compares folded layers with the graph that they were made of, which another executor runs.
 * @param original the graph, whose embeddings are finite
 * @throws FacetrainError InvalidModel when they differ: a defect of ours, or batch norms that undo each other with
 *   numbers so far apart that float32 cannot hold their product
 */
export async function checkFolded(
  original: Embedder,
  folded: Embedder,
  pictures: Pictures,
  { subject, signal }: Pick<CheckOptions, 'signal'> & { subject: string },
): Promise<void> {
  const few = firstPictures(pictures);
  const expected = await original.embed(few, { signal });
  const found = await folded.embed(few, { signal });
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const difference = expected.reduce((most, value, index) => Math.max(most, Math.abs(value - found[index]!)), 0);
  if (difference <= FOLDING_TOLERANCE * largest) return;
  throw new FacetrainError({
    code: 'InvalidModel',
    subject,
    found:
      `with batch norms folded into the layers, embeddings change by ${(difference / largest).toPrecision(2)} ` +
      'of their largest value',
    allowed:
      `${FOLDING_TOLERANCE}, which rounding explains: weights and batch norms of like size. ` +
      'If they are, this is a defect of Facetrain; please report it with the model',
  });
}

/**
 * Compares an INT7 model that was read from its file with the model that was found: both must be the same to the bit.
 * @throws Error when they differ, which is a defect of ours
 */
export async function checkWritten(
  file: string,
  written: Embedder,
  { graph, scales }: { graph: LayerGraph; scales: Scales },
  pictures: Pictures,
  { computeThreads, signal }: CheckOptions,
): Promise<void> {
  await using searched = disposable(await Int7Model.open(graph, scales, { computeThreads }));
  const few = firstPictures(pictures);
  const expected = await searched.model.embed(few, { signal });
  const found = await written.embed(few, { signal });
  if (!expected.every((value, index) => value === found[index]))
    throw new Error(`${file} gives other embeddings than the model that was written to it`);
}

function firstPictures(pictures: Pictures): Pictures {
  const count = Math.min(pictures.count, CHECKED_PICTURES);
  return { ...pictures, count, data: pictures.data.subarray(0, count * pictures.height * pictures.width * 3) };
}
