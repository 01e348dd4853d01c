/**
 * A job's folder of checkpoints: `step-XXXXXXXXXX/` with `manifest.json` and the files that it names. A checkpoint gets
 * that name when it is complete, and is never changed after (save.ts). A folder without a manifest is no checkpoint: a
 * former version of Facetrain did not finish it.
 */
import { open, readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import {
  AnyCheckpointManifest,
  BYTES_OF,
  CHECKPOINT_FEATURES,
  CHECKPOINT_MANIFEST,
  type CheckpointManifest,
  checkpointFolder,
  checkpointStep,
  counted,
  FacetrainError,
  parseDocument,
  type RowBlock,
  type RowFile,
  type StoredFile,
} from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';
import { digestBytes, digestFile } from '../storage/digest.ts';
import { type Fence, KEPT_PREFIX } from '../storage/fence.ts';
import { mapAtOnce } from '../storage/map-at-once.ts';
import { type ReadableFile, readable, readExactly, Safetensors } from './safetensors.ts';

/** Where each size is an answer over a network. */
const SIZES_AT_ONCE = 16;

export interface Checkpoint {
  /** Its folder; in an object store the URI that the names of its objects begin with. */
  directory: string;
  manifest: AnyCheckpointManifest;
  /** How its files are read; absent: as files of the folder. */
  source?: CheckpointSource;
}

/** Tells one checkpoint from others, also from one of a training of the same name that began anew. */
export interface CheckpointId {
  /** Name of the job that wrote it. */
  job: string;
  step: number;
  /** As its manifest has it; undefined where a version of before did not note it. */
  time: string | undefined;
}

/** Files of a checkpoint that are no files of this machine. */
export interface CheckpointSource {
  /** Bytes of a file; undefined when there is none. @throws FacetrainError StorageFailed */
  size(file: string): Promise<number | undefined>;
  /** Fills `into` from a position on. @returns bytes read; fewer at the end. @throws FacetrainError StorageFailed */
  read(file: string, into: Uint8Array, position: number): Promise<number>;
}

/**
 * A checkpoint is not what it was when it was written: a file is missing, cut off or changed. Errors of the storage
 * itself are StorageFailed, and may be gone at the next try.
 */
export class DamagedCheckpoint extends FacetrainError {
  /** Name of the file in the checkpoint's folder. */
  readonly file: string;

  constructor(path: string, field: string, found: string, allowed: string) {
    super({ code: 'InvalidCheckpoint', subject: field ? `${path}: ${field}` : path, found, allowed });
    this.file = basename(path);
  }
}

export function checkpointDirectory(root: string, step: number): string {
  return join(root, checkpointFolder(step));
}

export function manifestPath(directory: string): string {
  return join(directory, CHECKPOINT_MANIFEST);
}

/** Steps of the folders with a manifest, newest first. @throws FacetrainError StorageFailed */
export async function completeSteps(root: string): Promise<number[]> {
  return (await stepFolders(root)).filter(({ complete }) => complete).map(({ step }) => step);
}

/**
 * The newest checkpoint, of which every file exists with its size. Digests are compared when it is loaded.
 * @param onDamaged is called for each damaged one that is newer, newest first, and takes it out of the way
 * @returns undefined when there is no checkpoint and never was one
 * @throws FacetrainError InvalidCheckpoint when all are damaged, or one is of another version; StorageFailed
 */
export async function findNewest(
  root: string,
  onDamaged: (damage: DamagedCheckpoint, step: number) => Promise<void>,
): Promise<Checkpoint | undefined> {
  const found = await firstWhole(await completeSteps(root), (step) => openCheckpoint(root, step), onDamaged);
  if (found) return found;
  // From here training would begin anew, and nobody would notice that days of it are lost.
  const damaged = (await list(root)).filter((name) => name.startsWith(KEPT_PREFIX));
  if (damaged.length === 0) return undefined;
  throw invalid(
    root,
    `all checkpoints are damaged (${damaged.sort().reverse().join(', ')})`,
    'put an intact copy of one in their place, or delete them to start from step 0',
  );
}

/**
 * The first checkpoint of which every file exists with its size.
 * @param onDamaged is called for each one before it
 * @throws FacetrainError as `open`, but for damage
 */
export async function firstWhole(
  steps: readonly number[],
  open: (step: number) => Promise<Checkpoint>,
  onDamaged: (damage: DamagedCheckpoint, step: number) => Promise<void>,
): Promise<Checkpoint | undefined> {
  for (const step of steps) {
    try {
      const checkpoint = await open(step);
      await checkSizes(checkpoint);
      return checkpoint;
    } catch (error) {
      if (!(error instanceof DamagedCheckpoint)) throw error;
      await onDamaged(error, step);
    }
  }
  return undefined;
}

/**
 * @throws DamagedCheckpoint when there is no manifest, or it is not one or contradicts itself;
 * FacetrainError InvalidCheckpoint when another version of Facetrain wrote it; StorageFailed
 */
export async function openCheckpoint(root: string, step: number): Promise<Checkpoint> {
  const directory = checkpointDirectory(root, step);
  const path = manifestPath(directory);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new DamagedCheckpoint(path, '', 'no such file', 'a manifest');
    throw storageError(path, error);
  }
  return { directory, manifest: parseCheckpoint(text, path, step) };
}

/**
 * Reads a manifest, and checks that it does not contradict itself.
 * @param path of the manifest, for errors
 * @throws as openCheckpoint, but for StorageFailed
 */
export function parseCheckpoint(text: string, path: string, step: number): AnyCheckpointManifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new DamagedCheckpoint(path, '', `not JSON (${(error as Error).message})`, 'a checkpoint’s manifest');
  }
  const manifest = parseManifest(value, path);
  if (manifest.step !== step)
    throw new DamagedCheckpoint(path, 'step', String(manifest.step), `${step}, as the folder’s name says`);
  const wrong = rowsProblem(manifest);
  if (wrong) throw new DamagedCheckpoint(path, 'rows', ...wrong);
  for (const { file } of storedFiles({ manifest })) {
    if (!/^[A-Za-z0-9][-A-Za-z0-9._]*$/.test(file))
      throw new DamagedCheckpoint(path, '', `the file name ${JSON.stringify(file)}`, 'a name without a folder');
  }
  return manifest;
}

function parseManifest(value: unknown, path: string): AnyCheckpointManifest {
  const { schemaVersion, requires } = Object(value) as { schemaVersion?: unknown; requires?: unknown };
  // A newer version may read these: they are not damaged.
  if (typeof schemaVersion === 'number' && schemaVersion !== 1 && schemaVersion !== 2)
    throw invalid(`${path}: schemaVersion`, String(schemaVersion), `1 or 2: ${OTHER_VERSION}`);
  const unknown = schemaVersion === 2 && Array.isArray(requires) ? requires.find((name) => !isKnown(name)) : undefined;
  if (unknown !== undefined)
    throw invalid(`${path}: requires`, JSON.stringify(unknown), `nothing that this version lacks: ${OTHER_VERSION}`);
  try {
    return parseDocument(AnyCheckpointManifest, value, path, 'InvalidCheckpoint');
  } catch (error) {
    if (!(error instanceof FacetrainError)) throw error;
    throw new DamagedCheckpoint(path, error.subject.slice(path.length + 2), error.found, error.allowed);
  }
}

const OTHER_VERSION = 'another version of Facetrain wrote the checkpoint, and can read it';
/** Anything but a word is damage, and left to the schema. */
const isKnown = (name: unknown) => typeof name !== 'string' || CHECKPOINT_FEATURES.includes(name);

/** Bytes of a row in a file: its numbers of every tensor. */
export function rowBytes({ rows }: CheckpointManifest): number {
  return rows.tensors.reduce((sum, { dtype, columns }) => sum + columns * BYTES_OF[dtype], 0);
}

/** What is wrong with the list of rows: what was found, and what is allowed. */
function rowsProblem(manifest: AnyCheckpointManifest): [found: string, allowed: string] | undefined {
  let row = 0;
  const files = manifest.schemaVersion === 1 ? manifest.rows.map((file) => ({ ...file, blocks: [file] })) : undefined;
  for (const { file, blocks } of files ?? (manifest as CheckpointManifest).rows.files) {
    for (const { firstRow, rows } of blocks) {
      if (firstRow !== row) return [`${file} has rows from ${firstRow} on`, `row ${row}: neither gaps nor overlaps`];
      row += rows;
    }
  }
  if (row !== manifest.numClasses) return [counted(row, 'row'), `${manifest.numClasses}, one for each class`];
  return manifest.schemaVersion === 1 ? undefined : blocksProblem(manifest);
}

function blocksProblem(manifest: CheckpointManifest): [found: string, allowed: string] | undefined {
  const { tensors, blockRows, files } = manifest.rows;
  const weight = tensors.find(({ name }) => name === 'weight');
  if (weight?.columns !== manifest.embeddingDim)
    return [`weight with ${weight?.columns ?? 'no'} columns`, `${manifest.embeddingDim}, as embeddingDim says`];
  for (const { file, bytes, header, blocks } of files) {
    let end = header.bytes;
    for (const { firstRow, rows, offset } of blocks) {
      if (Math.floor(firstRow / blockRows) !== Math.floor((firstRow + rows - 1) / blockRows))
        return [`rows ${firstRow} to ${firstRow + rows} in one block`, `a block ends at each multiple of ${blockRows}`];
      if (offset !== end) return [`${file} has row ${firstRow} at byte ${offset}`, `byte ${end}: without gaps`];
      end += rows * rowBytes(manifest);
    }
    if (end !== bytes) return [`${file} has blocks of ${end} bytes`, `${bytes}, the size of the file`];
  }
  return undefined;
}

/** A file of a checkpoint, as its manifest names it. */
export interface CheckpointFile {
  file: string;
  bytes: number;
}

/** All files of a checkpoint but the manifest. */
export function storedFiles({ manifest }: Pick<Checkpoint, 'manifest'>): CheckpointFile[] {
  const rows = manifest.schemaVersion === 1 ? manifest.rows : manifest.rows.files;
  return [manifest.backbone, ...(manifest.schemaVersion === 2 && manifest.retired ? [manifest.retired] : []), ...rows];
}

/** @throws DamagedCheckpoint when a file is missing or has another size; StorageFailed */
export async function checkSizes(checkpoint: Checkpoint): Promise<void> {
  const atOnce = checkpoint.source ? SIZES_AT_ONCE : 1;
  await mapAtOnce(storedFiles(checkpoint), atOnce, (stored) => checkSize(checkpoint, stored));
}

/** @throws DamagedCheckpoint when the file is missing or has another size; StorageFailed */
async function checkSize({ directory, source }: Checkpoint, { file, bytes }: CheckpointFile): Promise<void> {
  const path = join(directory, file);
  const found = source ? await source.size(file) : await sizeOf(path);
  if (found === undefined) throw new DamagedCheckpoint(path, '', 'no such file', 'the file that the manifest names');
  if (found !== bytes) throw new DamagedCheckpoint(path, '', `${found} bytes`, `${bytes}, as the manifest says`);
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw storageError(path, error);
  }
}

/**
 * Compares all digests of one file of a checkpoint.
 * @throws DamagedCheckpoint when it is not what the manifest says; StorageFailed
 */
export async function checkContent(checkpoint: Checkpoint, name: string): Promise<void> {
  const { manifest } = checkpoint;
  const rowFile = manifest.schemaVersion === 2 && manifest.rows.files.find(({ file }) => file === name);
  if (rowFile) {
    await using file = await OpenRowFile.open(checkpoint, rowFile);
    for (const block of rowFile.blocks) await file.read(block);
    return;
  }
  const stored = storedFiles(checkpoint).find(({ file }) => file === name);
  if (stored) await checkWhole(checkpoint, stored as StoredFile & CheckpointFile);
}

/**
 * Compares the digest of a file that has one for all of it.
 * @throws DamagedCheckpoint when it is not what the manifest says; StorageFailed
 */
export async function checkWhole(checkpoint: Checkpoint, stored: StoredFile & CheckpointFile): Promise<void> {
  await checkSize(checkpoint, stored);
  if (checkpoint.source) return void (await readWhole(checkpoint, stored));
  const path = join(checkpoint.directory, stored.file);
  checkDigest(path, (await digestFile(path)).sha256, stored.sha256);
}

/**
 * Reads a file that has one digest into memory.
 * @throws DamagedCheckpoint when it is not what the manifest says; StorageFailed
 */
export async function readWhole(checkpoint: Checkpoint, stored: StoredFile & CheckpointFile): Promise<Uint8Array> {
  const path = join(checkpoint.directory, stored.file);
  const content = await readStored(checkpoint, stored, path);
  if (content.byteLength !== stored.bytes)
    throw new DamagedCheckpoint(path, '', `${content.byteLength} bytes`, `${stored.bytes}, as the manifest says`);
  checkDigest(path, digestBytes(content).sha256, stored.sha256);
  return content;
}

async function readStored(checkpoint: Checkpoint, stored: CheckpointFile, path: string): Promise<Uint8Array> {
  if (checkpoint.source) {
    const content = new Uint8Array(stored.bytes);
    return content.subarray(0, await checkpoint.source.read(stored.file, content, 0));
  }
  await checkSize(checkpoint, stored);
  try {
    return await readFile(path);
  } catch (error) {
    throw storageError(path, error);
  }
}

function checkDigest(path: string, found: string, expected: string, part = ''): void {
  if (found === expected) return;
  throw new DamagedCheckpoint(path, '', `the digest ${found}${part}`, `${expected}, as the manifest says`);
}

/**
 * Opens safetensors that have one digest, which is compared first.
 * @throws DamagedCheckpoint when it is not what the manifest says; FacetrainError InvalidCheckpoint, StorageFailed
 */
export async function openWhole(checkpoint: Checkpoint, stored: StoredFile & CheckpointFile): Promise<Safetensors> {
  const path = join(checkpoint.directory, stored.file);
  if (checkpoint.source) return Safetensors.of(path, await readWhole(checkpoint, stored));
  await checkWhole(checkpoint, stored);
  return Safetensors.open(path);
}

/** A file with blocks of rows, open for reading. Nothing of it is returned before its digest was compared. */
export class OpenRowFile implements AsyncDisposable {
  readonly #path: string;
  readonly #file: ReadableFile;
  readonly #rowBytes: number;

  private constructor(path: string, file: ReadableFile, bytesOfRow: number) {
    this.#path = path;
    this.#file = file;
    this.#rowBytes = bytesOfRow;
  }

  /** @throws DamagedCheckpoint when its size or its header is not what the manifest says; StorageFailed */
  static async open(checkpoint: Checkpoint, row: RowFile): Promise<OpenRowFile> {
    await checkSize(checkpoint, row);
    const path = join(checkpoint.directory, row.file);
    try {
      const { source } = checkpoint;
      const file = source
        ? readable(row.bytes, (into, position) => source.read(row.file, into, position))
        : await open(path, 'r');
      try {
        const opened = new OpenRowFile(path, file, rowBytes(checkpoint.manifest as CheckpointManifest));
        await opened.#checked(0, row.header.bytes, row.header.sha256, 'the header');
        return opened;
      } catch (error) {
        await file.close();
        throw error;
      }
    } catch (error) {
      throw storageError(path, error);
    }
  }

  /** The bytes of a block. @throws DamagedCheckpoint when they are not what the manifest says; StorageFailed */
  async read({ firstRow, rows, offset, sha256 }: RowBlock): Promise<Uint8Array> {
    try {
      return await this.#checked(offset, rows * this.#rowBytes, sha256, `rows ${firstRow} to ${firstRow + rows}`);
    } catch (error) {
      throw storageError(this.#path, error);
    }
  }

  /** The same of a block that is only copied: who reads it later compares its digest. @throws StorageFailed */
  async readUnchecked({ rows, offset }: RowBlock): Promise<Uint8Array> {
    const bytes = new Uint8Array(rows * this.#rowBytes);
    try {
      await readExactly(this.#path, this.#file, bytes, offset);
    } catch (error) {
      throw storageError(this.#path, error);
    }
    return bytes;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#file.close();
  }

  async #checked(offset: number, length: number, expected: string, part: string): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    await readExactly(this.#path, this.#file, bytes, offset);
    checkDigest(this.#path, digestBytes(bytes).sha256, expected, ` of ${part}`);
    return bytes;
  }
}

/**
 * Deletes the folders without a manifest, which a former version left. To be called on one rank, while no rank writes.
 * @returns the folders deleted
 */
export async function removeUnfinished(root: string, fence: Fence): Promise<string[]> {
  const folders = (await stepFolders(root)).filter(({ complete }) => !complete).map(({ directory }) => directory);
  for (const directory of folders) await fence.remove(directory);
  return folders;
}

/** Which training wrote a checkpoint, and when; undefined when its manifest is damaged or of another version. */
export async function checkpointId(root: string, step: number): Promise<CheckpointId | undefined> {
  try {
    const { job, time } = (await openCheckpoint(root, step)).manifest;
    return { job: job.name, step, time };
  } catch (error) {
    if (error instanceof FacetrainError && error.code === 'InvalidCheckpoint') return undefined;
    throw error;
  }
}

async function stepFolders(root: string): Promise<{ step: number; directory: string; complete: boolean }[]> {
  const names = await list(root);
  const folders = names.flatMap((name) => {
    const step = checkpointStep(name);
    return step === undefined ? [] : [{ step, directory: join(root, name) }];
  });
  const found = await Promise.all(
    folders.map(async (folder) => ({
      ...folder,
      complete: (await list(folder.directory)).includes(CHECKPOINT_MANIFEST),
    })),
  );
  return found.sort((a, b) => b.step - a.step);
}

/** Names in a folder; none when it does not exist. */
async function list(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw storageError(directory, error);
  }
}

export function invalid(subject: string, found: string, allowed: string): FacetrainError {
  return new FacetrainError({ code: 'InvalidCheckpoint', subject, found, allowed });
}
