/** Checks a dataset against a configuration, before training starts. */
import { FacetrainError } from '@facetrain/api';
import { inspectDataset } from '@facetrain/native';

export interface PreflightOptions {
  /** Rows of class centres; null means one for each identity of the dataset. */
  numClasses: number | null;
  /** Size of the model's input, in pixels. */
  input: { height: number; width: number };
  globalBatchSize: number;
  /** Pictures to decode: all, about a thousand at even distances, or none. Every record's header is always read. */
  decode: 'all' | 'sample' | 'none';
  signal?: AbortSignal;
  onProgress?: (progress: { done: number; total: number }) => void;
}

export interface Preflight {
  images: number;
  /** From the file `property`, or the largest label and one. */
  identities: number;
  numClasses: number;
  stepsPerEpoch: number;
}

/** @throws FacetrainError InvalidDataset, naming the file or the record */
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
      `the model takes ${input.height} x ${input.width}; faces are aligned to this size beforehand (docs/data.md)`,
    );
  }
  if (numClasses !== null && numClasses <= info.labelMax)
    refuse(`labels up to ${info.labelMax}`, `the model has ${numClasses} classes, so labels up to ${numClasses - 1}`);
  const stepsPerEpoch = Math.floor(info.images / globalBatchSize);
  if (stepsPerEpoch === 0)
    refuse(`${info.images} pictures`, `a global batch takes ${globalBatchSize}: more pictures, or a smaller batch`);
  return { images: info.images, identities: info.identities, numClasses: numClasses ?? info.identities, stepsPerEpoch };
}
