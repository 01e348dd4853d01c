/** What `facetrain dataset` does with whole datasets, natively and off JavaScript's thread. */
import { availableParallelism } from 'node:os';
import { native } from './addon.ts';
import { type Call, runCall } from './call.ts';

/** What indexDataset found. */
export interface IndexedDataset {
  layout: 'folder' | 'shards' | 'records';
  images: number;
  /** The largest label and one. */
  identities: number;
}

export interface DatasetLabels {
  /** By picture; -1 where the picture cannot be read. */
  labels: Int32Array;
  /** Labels are smaller. */
  identities: number;
  /** Names of the folders by label; null for a dataset that is no image folder. */
  folders: string[] | null;
}

export interface PackedDataset {
  images: number;
  shards: number;
  /** Why pictures were left out: they cannot be read. */
  leftOut: string[];
  /** The names of the source's identities, by label: an image folder's are its folders', others' their labels. */
  names: string[];
}

/** Pictures whose bytes are those of an earlier one. `examples`: [the earlier picture, this one], at most 20. */
export interface Duplicates {
  count: number;
  examples: [string, string][];
}

export interface DatasetSummary {
  /** Identities that have a picture. */
  identities: number;
  /** Pictures of an identity. */
  least: number;
  median: number;
  most: number;
  /** Identities with one picture. */
  withOne: number;
  /** Of the same identity, and of another. */
  within: Duplicates;
  across: Duplicates;
}

interface Progress {
  done: number;
  total: number;
}

interface Options {
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

type LongCall<T> = Call<T> & { progress(): Progress };

interface DatasetAddon {
  indexDataset(directory: string): Call<IndexedDataset>;
  writeLabels(directory: string, list: string): Call<IndexedDataset>;
  readLabels(directory: string): Call<DatasetLabels>;
  readEncoded(directory: string, indices: Float64Array): Call<(Uint8Array | null)[]>;
  packDataset(directory: string, relabel: Float64Array, output: string, shardBytes: number): LongCall<PackedDataset>;
  summarizeDataset(directory: string, threads: number): LongCall<DatasetSummary>;
}

const addon = native<DatasetAddon>();

/** Runs a call and reports its progress ten times a second. */
async function runLong<T>(start: () => LongCall<T>, { signal, onProgress }: Options): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  try {
    return await runCall(() => {
      const call = start();
      timer = setInterval(() => onProgress?.(call.progress()), 100);
      return call;
    }, signal);
  } finally {
    clearInterval(timer);
  }
}

/**
 * Lists the pictures of an image folder or of tar shards, and writes the list to facetrain.index in that folder. The
 * folders of identities that this file names already keep their labels.
 * @throws FacetrainError InvalidDataset, also for RecordIO; StorageFailed, DiskFull
 */
export function indexDataset(directory: string, { signal }: { signal?: AbortSignal } = {}): Promise<IndexedDataset> {
  return runCall(() => addon.indexDataset(directory), signal);
}

/**
 * Writes train.labels of a RecordIO dataset, which more than 2^24 identities need.
 * @param list a file with a line for each picture: its key in train.idx, a tab, and its label (im2rec's form)
 * @throws FacetrainError InvalidDataset, naming the line; StorageFailed
 */
export function writeLabels(
  directory: string,
  list: string,
  { signal }: { signal?: AbortSignal } = {},
): Promise<IndexedDataset> {
  return runCall(() => addon.writeLabels(directory, list), signal);
}

/** @throws FacetrainError InvalidDataset */
export function readLabels(directory: string, { signal }: { signal?: AbortSignal } = {}): Promise<DatasetLabels> {
  return runCall(() => addon.readLabels(directory), signal);
}

/**
 * Encoded pictures by their numbers in the dataset. null for one that cannot be read or decoded.
 * @throws FacetrainError InvalidDataset
 */
export function readEncoded(
  directory: string,
  indices: readonly number[],
  { signal }: { signal?: AbortSignal } = {},
): Promise<(Uint8Array | null)[]> {
  return runCall(() => addon.readEncoded(directory, Float64Array.from(indices)), signal);
}

/**
 * Copies pictures to tar shards and an index in `output`, an empty folder. Nothing is decoded.
 * @param relabel by label: the new label, or -1 for an identity that is left out
 * @throws FacetrainError InvalidDataset, StorageFailed, DiskFull; the signal's reason once it is aborted
 */
export function packDataset(
  directory: string,
  { relabel, output, shardBytes, ...options }: { relabel: Float64Array; output: string; shardBytes: number } & Options,
): Promise<PackedDataset> {
  return runLong(() => addon.packDataset(directory, relabel, output, shardBytes), options);
}

/**
 * Reads all pictures, and decodes none.
 * @throws FacetrainError InvalidDataset; the signal's reason once it is aborted
 */
export function summarizeDataset(directory: string, options: Options = {}): Promise<DatasetSummary> {
  return runLong(() => addon.summarizeDataset(directory, availableParallelism()), options);
}
