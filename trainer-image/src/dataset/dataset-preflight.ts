/** Whether a dataset can be trained on, asked before anything else is done. */
import { FacetrainError } from '@facetrain/api';
import { inspectDataset } from '@facetrain/native';

export interface PreflightOptions {
  /** Rows of class centres; null: one for each identity of the dataset. */
  numClasses: number | null;
  /** Size of the model's input. */
  input: { height: number; width: number };
  globalBatchSize: number;
  /** Which pictures are decoded: all, about a thousand at even distances, or none. Every record's header is always read. */
  decode: 'all' | 'sample' | 'none';
  signal?: AbortSignal;
  onProgress?: (progress: { done: number; total: number }) => void;
}

export interface Preflight {
  images: number;
  /** As `property` says; labels are below it. */
  identities: number;
  numClasses: number;
  stepsPerEpoch: number;
}

/** @throws FacetrainError InvalidDataset: the file or record, what was found, what is allowed */
export async function preflightDataset(directory: string, options: PreflightOptions): Promise<Preflight> {
  const { numClasses, input, globalBatchSize, decode, signal, onProgress } = options;
  const info = await inspectDataset(directory, {
    decode,
    ...(signal && { signal }),
    ...(onProgress && { onProgress }),
  });
  const refuse = (found: string, allowed: string): never => {
    throw new FacetrainError({ code: 'InvalidDataset', subject: directory, found, allowed });
  };
  if (info.height !== input.height || info.width !== input.width) {
    refuse(
      `pictures of ${info.height} x ${info.width} pixels (height x width)`,
      `the model takes ${input.height} x ${input.width}`,
    );
  }
  if (numClasses !== null && numClasses <= info.labelMax)
    refuse(`labels up to ${info.labelMax}`, `the model has ${numClasses} classes, so labels up to ${numClasses - 1}`);
  const stepsPerEpoch = Math.floor(info.images / globalBatchSize);
  if (stepsPerEpoch === 0)
    refuse(`${info.images} pictures`, `a global batch takes ${globalBatchSize}: more pictures, or a smaller batch`);
  return { images: info.images, identities: info.identities, numClasses: numClasses ?? info.identities, stepsPerEpoch };
}

/**
 * Different pictures, in rising order: one at a random place in each of `count` equal stretches of the dataset. Records are usually in
 * the order of their identities, so this also spreads them over the identities; in a shuffled dataset it is as good as any draw.
 * @returns all pictures when there are no more than `count`
 */
export function sampleIndices(images: number, count: number, seed: number): number[] {
  const stretches = Math.min(images, count);
  const start = (i: number) => Math.floor((i * images) / stretches);
  return Array.from(
    { length: stretches },
    (_, i) => start(i) + Math.floor(uniform(seed, i) * (start(i + 1) - start(i))),
  );
}

/** In [0, 1): MurmurHash3's finaliser on (seed, i). */
function uniform(seed: number, i: number): number {
  let h = (seed ^ Math.imul(i + 1, 0x9e3779b9)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
}
