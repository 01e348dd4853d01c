/** Checks a dataset against a configuration, before training starts. */
import { counted, FacetrainError } from '@facetrain/api';
import { type DatasetInfo, inspectDataset, type UnusablePicture } from '@facetrain/native';

export interface PreflightOptions {
  /** Rows of class centres; null means one for each identity of the dataset. */
  numClasses: number | null;
  /** Size of the model's input, in pixels. */
  input: { height: number; width: number };
  globalBatchSize: number;
  /** Share of the pictures that may be bad. */
  maxBadPictures: number;
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
  /** Those that were found, of the pictures that were looked at. */
  badPictures: UnusablePicture[];
  /** Names of the folders by label; null for a dataset that is no image folder. */
  folders: string[] | null;
}

/** How many of a dataset's pictures may be bad: the share, rounded up, so that a share above 0 allows one. */
export function allowedBadPictures(share: number, images: number): number {
  return Math.ceil(share * images);
}

/**
 * @param bad how many pictures are bad, and some of them
 * @throws FacetrainError InvalidDataset when there are more than allowed
 */
export function checkBadPictures(
  directory: string,
  { bad, badPictures, images }: Pick<DatasetInfo, 'bad' | 'badPictures' | 'images'>,
  share: number,
): void {
  const allowed = allowedBadPictures(share, images);
  if (bad <= allowed) return;
  const named = badPictures.slice(0, 3).map(({ name, reason }) => `${name}: ${reason}`);
  throw new FacetrainError({
    code: 'InvalidDataset',
    subject: directory,
    found: `${bad} bad picture${bad === 1 ? '' : 's'} (${named.join('; ')}${bad > named.length ? '; …' : ''})`,
    allowed: `at most ${allowed} of ${images} by dataset.maxBadPictures ${share}; facetrain dataset check lists all`,
  });
}

/** @throws FacetrainError InvalidDataset, naming the file or the record */
export async function preflightDataset(directory: string, options: PreflightOptions): Promise<Preflight> {
  const { numClasses, input, globalBatchSize, maxBadPictures, decode, signal, onProgress } = options;
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
  checkBadPictures(directory, info, maxBadPictures);
  // The loss of one class is 0 whatever the model gives.
  if (info.identities < 2)
    refuse('one identity', 'two or more; an image folder has a folder of pictures for each identity');
  if (numClasses !== null && numClasses <= info.labelMax)
    refuse(
      `labels up to ${info.labelMax}`,
      `labels up to ${numClasses - 1}, as model.numClasses is ${numClasses}: give it ${info.labelMax + 1} or more`,
    );
  const stepsPerEpoch = Math.floor(info.images / globalBatchSize);
  if (stepsPerEpoch === 0)
    refuse(
      counted(info.images, 'picture'),
      `a global batch takes ${globalBatchSize}: more pictures, or a smaller batch`,
    );
  return {
    images: info.images,
    identities: info.identities,
    numClasses: numClasses ?? info.identities,
    stepsPerEpoch,
    badPictures: info.badPictures,
    folders: info.folders,
  };
}
