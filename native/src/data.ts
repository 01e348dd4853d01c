/** Reads, decodes and inspects the pictures of a dataset, natively and off JavaScript's thread. */
import { availableParallelism } from 'node:os';
import { counted, type ErrorCode, FacetrainError } from '@facetrain/api';
import { native } from './addon.ts';
import { type Call, runCall } from './call.ts';

/** Decoded pictures, [count, height, width, 3] bytes. */
export interface Pictures {
  count: number;
  height: number;
  width: number;
  channelOrder: 'rgb' | 'bgr';
  data: Uint8Array;
}

/** The result of inspectDataset. */
export interface DatasetInfo {
  images: number;
  /** The number of identities that the dataset's file `property` states; otherwise the largest label and one. */
  identities: number;
  /** Different labels that occur. */
  identitiesSeen: number;
  labelMin: number;
  labelMax: number;
  height: number;
  width: number;
  /** Size of the files that hold pictures; 0 unless all pictures were decoded. */
  bytes: number;
  /** How many pictures cannot be used, of those that were looked at. */
  bad: number;
  /** The first of them, at most `listed`. */
  badPictures: UnusablePicture[];
  /** Names of the folders by label; null for a dataset that is no image folder. */
  folders: string[] | null;
}

/** A picture that is damaged, of another size, or of a kind that is not read. */
export interface UnusablePicture {
  /** Its number in the dataset, from 0. */
  picture: number;
  /** Its file, record and place. */
  name: string;
  reason: string;
}

/** What a file is by its first bytes, for messages: "is NAME", and what to do with it. */
export interface FileKind {
  name: string;
  remedy: string;
}

type Decoded = Omit<Pictures, 'channelOrder'>;

interface DataAddon {
  nameFileKind(head: Uint8Array): FileKind | null;
  inspectDataset(
    directory: string,
    decode: number,
    threads: number,
    listed: number,
  ): Call<DatasetInfo> & { progress(): { done: number; total: number } };
  readPictures(directory: string, indices: Float64Array, bgr: boolean): Call<Decoded & { bad: UnusablePicture[] }>;
  decodePictures(
    encoded: Uint8Array[],
    bgr: boolean,
    height: number,
    width: number,
    subjects: readonly string[],
    code: string,
    landmarks?: Float64Array,
  ): Call<Decoded>;
}

const addon = native<DataAddon>();

/**
 * The kind of a file that is not what was expected: an archive, a Git LFS pointer, a web page and so on.
 * @param head the start of the file, or all of it
 * @returns null when the kind is not recognised
 */
export function nameFileKind(head: Uint8Array): FileKind | null {
  return addon.nameFileKind(head.subarray(0, 512));
}

/** How many pictures `decode: 'sample'` decodes, at even distances over the dataset. */
const decodedSample = 1024;

/**
 * Checks every record of a dataset: that it is well formed, that its label is below the identities of `property`,
 * and, for the pictures that `decode` selects, that it is an intact JPEG, PNG, WebP or BMP of the right size. A picture
 * that is not is counted and listed.
 * @param options `listed`: how many of the bad pictures the result names; by default 10,000
 * @throws FacetrainError InvalidDataset about files, or the first wrong label; the signal's reason once it is aborted
 */
export async function inspectDataset(
  directory: string,
  options: {
    decode: 'all' | 'sample' | 'none';
    threads?: number;
    listed?: number;
    signal?: AbortSignal;
    onProgress?: (progress: { done: number; total: number }) => void;
  },
): Promise<DatasetInfo> {
  const { decode, threads = availableParallelism(), listed = 10_000, signal, onProgress } = options;
  const count = { all: Number.MAX_SAFE_INTEGER, sample: decodedSample, none: 0 }[decode];
  let timer: NodeJS.Timeout | undefined;
  let report = () => {};
  try {
    const info = await runCall(() => {
      const call = addon.inspectDataset(directory, count, threads, listed);
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
 * Decodes pictures of a dataset, in the order of `indices`; the first picture is 0. Those that cannot be used are left
 * out, and named in `bad`.
 * @throws FacetrainError InvalidDataset, or InvalidArgument for an index outside the dataset; the signal's reason
 *   once it is aborted
 */
export async function readPictures(
  directory: string,
  indices: readonly number[],
  options: { channelOrder: 'rgb' | 'bgr'; signal?: AbortSignal },
): Promise<Pictures & { bad: UnusablePicture[] }> {
  const { channelOrder, signal } = options;
  const wrong = indices.find((index) => !Number.isSafeInteger(index) || index < 0);
  if (wrong !== undefined)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: directory,
      found: `there is no picture ${wrong}`,
      allowed: 'pictures are numbered from 0',
    });
  const decoded = await runCall(
    () => addon.readPictures(directory, Float64Array.from(indices), channelOrder === 'bgr'),
    signal,
  );
  return { ...decoded, channelOrder };
}

/**
 * Decodes pictures: JPEG, PNG, WebP or BMP, told apart by their first bytes (native/data/picture.h says how).
 * With `landmarks` pictures may have any size, and the face in each is aligned to one of `height` x `width`.
 * @param options `code` and the picture's entry of `subjects` go into the error about a picture that is not intact, or
 *   not of `height` x `width` pixels
 * @throws FacetrainError with `code`; the signal's reason once it is aborted
 */
export async function decodePictures(
  encoded: Uint8Array[],
  options: {
    channelOrder: 'rgb' | 'bgr';
    height: number;
    width: number;
    /** What an error calls each picture. */
    subjects: readonly string[];
    code: ErrorCode;
    /** Ten numbers for each picture (native/data/align.h); `height` is then `width`. */
    landmarks?: Float64Array;
    signal?: AbortSignal;
  },
): Promise<Pictures> {
  const { channelOrder, height, width, subjects, code, landmarks, signal } = options;
  if (landmarks && (height !== width || landmarks.length !== 10 * encoded.length))
    throw new RangeError(
      `${counted(landmarks.length, 'landmark')} for ${counted(encoded.length, 'picture')} of ${height} x ${width}`,
    );
  const decoded = await runCall(
    () => addon.decodePictures(encoded, channelOrder === 'bgr', height, width, subjects, code, landmarks),
    signal,
  );
  return { ...decoded, channelOrder };
}
