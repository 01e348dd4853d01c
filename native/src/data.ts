/** Pictures: the dataset's records and JPEG, decoded natively on threads of their own. */
import { availableParallelism } from 'node:os';
import { type ErrorCode, FacetrainError } from '@facetrain/api';
import { native } from './addon.ts';
import { type Call, result } from './call.ts';

/** Decoded pictures, [count, height, width, 3] bytes. */
export interface Pictures {
  count: number;
  height: number;
  width: number;
  channelOrder: 'rgb' | 'bgr';
  data: Uint8Array;
}

export interface DatasetInfo {
  images: number;
  /** As `property` says. */
  identities: number;
  /** Labels that occur. */
  identitiesSeen: number;
  labelMin: number;
  labelMax: number;
  height: number;
  width: number;
  /** Of train.rec. */
  bytes: number;
}

type Decoded = Omit<Pictures, 'channelOrder'>;

interface DataAddon {
  inspectDataset(
    directory: string,
    decode: number,
    threads: number,
  ): Call<DatasetInfo> & { progress(): { done: number; total: number } };
  readPictures(directory: string, indices: Float64Array, bgr: boolean): Call<Decoded>;
  decodePictures(
    jpegs: Uint8Array[],
    bgr: boolean,
    height: number,
    width: number,
    subject: string,
    code: string,
    first: number,
  ): Call<Decoded>;
}

const addon = native<DataAddon>();

/** Pictures decoded by `decode: 'sample'`, at even distances over the dataset. */
const decodedSample = 1024;

/**
 * Looks at every record of a dataset: well-formed, its label inside the identities of `property`, and, as `decode` says, its picture
 * decodable and of the right size.
 * @throws FacetrainError InvalidDataset about the first record that is not in order
 */
export async function inspectDataset(
  directory: string,
  options: {
    decode: 'all' | 'sample' | 'none';
    threads?: number;
    signal?: AbortSignal;
    onProgress?: (progress: { done: number; total: number }) => void;
  },
): Promise<DatasetInfo> {
  const { decode, threads = availableParallelism(), signal, onProgress } = options;
  const count = { all: Number.MAX_SAFE_INTEGER, sample: decodedSample, none: 0 }[decode];
  let timer: NodeJS.Timeout | undefined;
  let report = () => {};
  try {
    const info = await result(() => {
      const call = addon.inspectDataset(directory, count, threads);
      report = () => onProgress?.(call.progress());
      timer = setInterval(report, 100);
      return call;
    }, signal);
    report();
    return info;
  } finally {
    clearInterval(timer);
  }
}

/**
 * Decodes pictures of a dataset, 0 being its first.
 * @throws FacetrainError InvalidDataset, or InvalidArgument for an index outside the dataset
 */
export async function readPictures(
  directory: string,
  indices: readonly number[],
  options: { channelOrder: 'rgb' | 'bgr'; signal?: AbortSignal },
): Promise<Pictures> {
  const { channelOrder, signal } = options;
  const wrong = indices.find((index) => !Number.isSafeInteger(index) || index < 0);
  if (wrong !== undefined)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: directory,
      found: `there is no picture ${wrong}`,
      allowed: 'pictures are numbered from 0',
    });
  const decoded = await result(
    () => addon.readPictures(directory, Float64Array.from(indices), channelOrder === 'bgr'),
    signal,
  );
  return { ...decoded, channelOrder };
}

/**
 * Decodes JPEGs, colour or gray.
 * @param options `code` and `subject` are those of the error when one is no JPEG of `height` x `width`; it counts the pictures from `first` on.
 * @throws FacetrainError
 */
export async function decodePictures(
  jpegs: Uint8Array[],
  options: {
    channelOrder: 'rgb' | 'bgr';
    height: number;
    width: number;
    subject: string;
    code: ErrorCode;
    first?: number;
    signal?: AbortSignal;
  },
): Promise<Pictures> {
  const { channelOrder, height, width, subject, code, first = 0, signal } = options;
  const decoded = await result(
    () => addon.decodePictures(jpegs, channelOrder === 'bgr', height, width, subject, code, first),
    signal,
  );
  return { ...decoded, channelOrder };
}
