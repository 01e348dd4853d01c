/**
 * Changes the identities of stored checkpoints, while no trainer runs: rows are zeroed, replaced or added. Class ids
 * never change. docs/decisions/0037.
 *
 * In a folder a checkpoint is rewritten where it is: new files of rows under new names, then the manifest in one
 * rename, then the old files go. In an object store another takes its place (object-target.ts). A process that
 * ends at any moment leaves the old head or the new one. The same edit again completes what is left: it skips what
 * is done, and removes what is named nowhere.
 */
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  BYTES_OF,
  CHECKPOINT_MANIFEST,
  CheckpointManifest,
  FacetrainError,
  type RetiredClass,
  type RowFile,
  type StoredType,
} from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';
import { digestBytes } from '../storage/digest.ts';
import type { Fence } from '../storage/fence.ts';
import {
  type Checkpoint,
  completeSteps,
  invalid,
  manifestPath,
  OpenRowFile,
  openCheckpoint,
  storedFiles,
} from './directory.ts';
import type { FolderLabels } from './folder-labels.ts';
import { type Identities, readIdentities, retiredBytes } from './retired.ts';
import { readCentres } from './rows.ts';
import { readExactly, safetensorsHeader } from './safetensors.ts';
import { blockTensors, splitRows, tenDigits } from './save.ts';
import type { CheckpointStore } from './target.ts';

/** A checkpoint of version 2, open for a change. */
export interface OpenHead {
  checkpoint: Checkpoint & { manifest: CheckpointManifest };
  identities: Identities;
}

/** What to change of one checkpoint. */
export interface HeadEdit {
  /** Classes whose row, and what the optimizer keeps for it, become zero. */
  zero: readonly number[];
  /** New class centres [embeddingDim] by class; the optimizer starts anew for them. */
  replace: ReadonlyMap<number, Float32Array>;
  /** Class centres of the classes that follow the last; zero for a class that is retired already. */
  add: readonly Float32Array[];
  retired: readonly RetiredClass[];
  /** Which label is whose, in place of what the checkpoint says; absent: as it says. */
  labels?: FolderLabels;
}

/** The new files of a checkpoint. Those that are not written stay as they are, if the new manifest names them. */
export interface EditedFiles {
  /** Writes a file of a name that the checkpoint does not have. @param content appends all of it */
  write(file: string, content: (append: (bytes: Uint8Array) => Promise<void>) => Promise<void>): Promise<void>;
  /** From here on the checkpoint is the new one, and files that its manifest does not name are gone. */
  finish(manifest: CheckpointManifest): Promise<void>;
}

/** The new files of a checkpoint in a folder. */
export const editedFolder = (fence: Fence, directory: string): EditedFiles => ({
  write: (file, content) => fence.write(join(directory, file), (to) => content((bytes) => to.writeFile(bytes))),
  finish: async (manifest) => {
    await fence.write(manifestPath(directory), `${JSON.stringify(manifest, null, 2)}\n`);
    await removeUnnamed(fence, { directory, manifest });
  },
});

/** The checkpoints of a folder, newest first. @throws FacetrainError InvalidCheckpoint, StorageFailed */
export const openHeads = (root: string): Promise<OpenHead[]> =>
  openHeadsOf({
    name: root,
    list: () => completeSteps(root),
    open: (step) => openCheckpoint(root, step),
  });

/** The same of any place. */
export async function openHeadsOf(place: Pick<CheckpointStore, 'name' | 'list' | 'open'>): Promise<OpenHead[]> {
  const steps = await place.list();
  if (steps.length === 0) throw invalid(place.name, 'no checkpoint', 'a folder with checkpoints, step-…');
  const heads: OpenHead[] = [];
  for (const step of steps) {
    const { manifest, ...files } = await place.open(step);
    if (manifest.schemaVersion === 1)
      throw invalid(
        manifestPath(files.directory),
        'schemaVersion 1',
        '2: train until the next checkpoint, which has it',
      );
    const checkpoint = { ...files, manifest };
    heads.push({ checkpoint, identities: await readIdentities(checkpoint) });
  }
  return heads;
}

/**
 * The edit that removes classes: their rows become zero, and their pictures are left out from now on. So are those of
 * classes that were merged into them. A checkpoint that has no row of a class yet names it all the same: a training
 * that goes on from there would draw the row from the seed.
 * @param numClasses of the largest head of the same training
 * @throws FacetrainError InvalidArgument for a class that no head has
 */
export function removal(
  { checkpoint: { manifest }, identities }: OpenHead,
  classes: readonly number[],
  numClasses = manifest.numClasses,
): HeadEdit {
  checkClasses(classes, numClasses);
  const removed = new Set(classes);
  const done = new Set(identities.retired.map((each) => each.class));
  const others = identities.retired
    .filter((each) => !removed.has(each.class))
    .map((each) => (each.into !== null && removed.has(each.into) ? { ...each, into: null } : each));
  const retired = sorted([...others, ...[...removed].map((id) => ({ class: id, into: null }))]);
  const zero = [...removed].filter((id) => !done.has(id) && id < manifest.numClasses);
  return { zero, replace: new Map(), add: [], retired };
}

/**
 * The edit that merges classes into one: its row becomes the mean direction, at the mean length; the rows of the others
 * become zero, and their pictures count as its own. Classes of which a checkpoint has no row count for nothing in it.
 * @param numClasses of the largest head of the same training
 * @throws FacetrainError InvalidArgument for a class that no head has, or that is no longer trained
 */
export async function merger(
  head: OpenHead,
  classes: readonly number[],
  into: number,
  numClasses = head.checkpoint.manifest.numClasses,
): Promise<HeadEdit> {
  const { checkpoint, identities } = head;
  const { numClasses: own } = checkpoint.manifest;
  checkClasses([...classes, into], numClasses);
  const gone = identities.retired.find((each) => each.class === into);
  if (gone)
    throw argument(
      `class ${into}`,
      fateOf(gone),
      gone.into === null ? 'a class that is trained' : `class ${gone.into}, or another that is trained`,
    );
  const sources = [...new Set(classes)].filter((id) => id !== into);
  if (sources.length === 0) throw argument(`class ${into}`, 'it would be merged into itself', 'another class to merge');
  const done = new Set(identities.retired.filter((each) => each.into === into).map((each) => each.class));
  const retired = identities.retired.find((each) => sources.includes(each.class) && !done.has(each.class));
  if (retired) throw argument(`class ${retired.class}`, fateOf(retired), 'classes that are trained');
  const todo = sources.filter((id) => !done.has(id));
  const others = identities.retired.map((each) =>
    each.into !== null && todo.includes(each.into) ? { ...each, into } : each,
  );
  const rows = await rowsOf(checkpoint, [...todo, into]);
  return {
    zero: todo.filter((id) => id < own),
    replace: todo.length > 0 && into < own ? new Map([[into, meanRow([...rows.values()])]]) : new Map(),
    add: [],
    retired: sorted([...others, ...todo.map((id) => ({ class: id, into }))]),
  };
}

const fateOf = ({ into }: RetiredClass) =>
  into === null ? 'it was removed before' : `it was merged into class ${into} before`;

/** Rows whose mean length is that of an added one are in so many blocks at most, spread evenly. */
const MOST_MEASURED_BLOCKS = 16;

/**
 * The edit that adds classes after the last.
 * @param directions of unit length or any other, one for each new class, null for one that is retired; rows get the
 * mean length of those that are there
 * @throws FacetrainError InvalidArgument for a direction without a length
 */
export async function addition(head: OpenHead, directions: readonly (Float32Array | null)[]): Promise<HeadEdit> {
  const { checkpoint, identities } = head;
  const { embeddingDim: dim, numClasses, rows: stored } = checkpoint.manifest;
  const lengths = directions.map((direction) => direction && lengthOf(direction));
  const without = lengths.findIndex((length) => length !== null && !(length > SHORTEST));
  if (without >= 0)
    throw argument(
      `class ${numClasses + without}`,
      'its pictures have embeddings whose mean has no direction',
      'pictures of one person',
    );
  const blocks = stored.files.flatMap((file) => file.blocks);
  const stride = Math.ceil(blocks.length / MOST_MEASURED_BLOCKS);
  const measured = new Set(blocks.filter((_, index) => index % stride === 0).map(({ firstRow }) => firstRow));
  let [sum, count] = [0, 0];
  for await (const { rows, values } of readCentres(checkpoint, ({ firstRow }) => measured.has(firstRow))) {
    for (let row = 0; row < rows; row++) {
      const length = lengthOf(values.subarray(row * dim, (row + 1) * dim));
      if (length === 0) continue;
      sum += length;
      count += 1;
    }
  }
  const length = count > 0 ? sum / count : 1;
  const add = directions.map((direction, index) =>
    direction ? scaled(direction, length / lengths[index]!) : new Float32Array(dim),
  );
  return { zero: [], replace: new Map(), add, retired: identities.retired };
}

/** Below it, a sum of unit vectors is what rounding leaves of nothing. */
const SHORTEST = 1e-6;

const holds = ({ firstRow, rows }: { firstRow: number; rows: number }, id: number) =>
  id >= firstRow && id < firstRow + rows;

/** Class centres by class. @throws DamagedCheckpoint, FacetrainError StorageFailed */
export async function rowsOf(checkpoint: Checkpoint, classes: readonly number[]): Promise<Map<number, Float32Array>> {
  const dim = checkpoint.manifest.embeddingDim;
  const found = new Map<number, Float32Array>();
  for await (const block of readCentres(checkpoint, (each) => classes.some((id) => holds(each, id))))
    for (const id of classes)
      if (holds(block, id))
        found.set(id, block.values.slice((id - block.firstRow) * dim, (id - block.firstRow + 1) * dim));
  return found;
}

/**
 * What a checkpoint holds of some classes, as its files have it: the centre of each, and the tensors of its optimizer.
 * @throws DamagedCheckpoint, FacetrainError StorageFailed
 */
export async function storedRows(
  checkpoint: OpenHead['checkpoint'],
  classes: readonly number[],
): Promise<{ class: number; tensors: Uint8Array[] }[]> {
  const found: { class: number; tensors: Uint8Array[] }[] = [];
  const { tensors, files } = checkpoint.manifest.rows;
  for (const stored of files) {
    const blocks = stored.blocks.filter((block) => classes.some((id) => holds(block, id)));
    if (blocks.length === 0) continue;
    await using file = await OpenRowFile.open(checkpoint, stored);
    for (const block of blocks) {
      const bytes = await file.read(block);
      for (const id of classes.filter((each) => holds(block, each)))
        found.push({
          class: id,
          tensors: placesOf(block, tensors, id).map(({ start, end }) => bytes.slice(start, end)),
        });
    }
  }
  return found;
}

/** Where a class is in the bytes of its block, in which the tensors follow each other. */
function placesOf(
  { firstRow, rows }: { firstRow: number; rows: number },
  tensors: CheckpointManifest['rows']['tensors'],
  id: number,
): { start: number; end: number }[] {
  let first = 0;
  return tensors.map(({ dtype, columns }) => {
    const size = columns * BYTES_OF[dtype];
    const start = first + (id - firstRow) * size;
    first += rows * size;
    return { start, end: start + size };
  });
}

/**
 * Carries an edit out.
 * @returns bytes that were written
 * @throws DamagedCheckpoint before anything is changed; FacetrainError FencedOff, DiskFull, StorageFailed
 */
export async function editHead(to: EditedFiles, { checkpoint }: OpenHead, edit: HeadEdit): Promise<number> {
  const { manifest } = checkpoint;
  const changed = new Set([...edit.zero, ...edit.replace.keys()]);
  let written = 0;
  const files: RowFile[] = [];
  for (const stored of manifest.rows.files) {
    const isTouched = stored.blocks.some((block) => [...changed].some((id) => holds(block, id)));
    const file = isTouched ? await rewrite(to, checkpoint, stored, edit) : stored;
    if (isTouched) written += file.bytes;
    files.push(file);
  }
  if (edit.add.length > 0) {
    const added = await writeAdded(to, checkpoint, edit.add);
    written += added.bytes;
    files.push(added);
  }
  const retired = await writeRetired(to, checkpoint, edit.retired);
  // In the order of the schema, so that the same edit gives the same bytes.
  const next = CheckpointManifest.parse({
    ...manifest,
    requires: [...manifest.requires.filter((name) => name !== 'retired'), ...(retired ? ['retired'] : [])],
    numClasses: manifest.numClasses + edit.add.length,
    ...(retired && { retired }),
    ...((edit.add.length > 0 || manifest.classesAdded) && { classesAdded: true }),
    ...(edit.labels && { labels: edit.labels }),
    rows: { ...manifest.rows, files },
  });
  await to.finish(next);
  return written;
}

/** Deletes files in a checkpoint's folder that its manifest does not name: an edit has left them. */
export async function removeUnnamed(fence: Fence, checkpoint: Checkpoint): Promise<void> {
  const named = new Set([CHECKPOINT_MANIFEST, ...storedFiles(checkpoint).map(({ file }) => file)]);
  const present = await readdir(checkpoint.directory).catch((error: unknown) => {
    throw storageError(checkpoint.directory, error);
  });
  for (const name of present) if (!named.has(name)) await fence.remove(join(checkpoint.directory, name));
}

/** Writes a file of rows under a new name, with the changes. Blocks without one keep their bytes and their digest. */
async function rewrite(
  to: EditedFiles,
  checkpoint: OpenHead['checkpoint'],
  stored: RowFile,
  { zero, replace }: HeadEdit,
): Promise<RowFile> {
  const { manifest } = checkpoint;
  const { tensors } = manifest.rows;
  const file = nextName(stored.file);
  const blocks: RowFile['blocks'] = [];
  const weight = tensors.findIndex(({ name }) => name === 'weight');
  await using from = await OpenRowFile.open(checkpoint, stored);
  await to.write(file, async (append) => {
    await append(await readHeader(checkpoint, stored));
    for (const block of stored.blocks) {
      const changed = [...zero, ...replace.keys()].filter((id) => holds(block, id));
      if (changed.length === 0) {
        await append(await from.readUnchecked(block));
        blocks.push(block);
        continue;
      }
      const bytes = await from.read(block);
      for (const id of changed) {
        const places = placesOf(block, tensors, id);
        for (const { start, end } of places) bytes.fill(0, start, end);
        const row = replace.get(id);
        if (row) bytes.set(toStored(row, tensors[weight]!.dtype), places[weight]!.start);
      }
      blocks.push({ ...block, sha256: digestBytes(bytes).sha256 });
      await append(bytes);
    }
  });
  return { ...stored, file, blocks };
}

async function writeAdded(
  to: EditedFiles,
  { manifest }: OpenHead['checkpoint'],
  added: readonly Float32Array[],
): Promise<RowFile> {
  const { tensors, blockRows } = manifest.rows;
  const first = manifest.numClasses;
  const parts = splitRows({ firstRow: first, rows: added.length }, blockRows);
  const header = safetensorsHeader(parts.flatMap((part) => blockTensors(part, tensors)));
  const file = `rows-${tenDigits(first)}.safetensors`;
  const blocks: RowFile['blocks'] = [];
  let offset = header.byteLength;
  await to.write(file, async (append) => {
    await append(header);
    for (const { firstRow, rows } of parts) {
      const values = tensors.map(({ name, dtype, columns }) => {
        const bytes = new Uint8Array(rows * columns * BYTES_OF[dtype]);
        if (name === 'weight')
          for (let row = 0; row < rows; row++)
            bytes.set(toStored(added[firstRow - first + row]!, dtype), row * columns * BYTES_OF[dtype]);
        return bytes;
      });
      const bytes = Buffer.concat(values);
      blocks.push({ firstRow, rows, offset, sha256: digestBytes(bytes).sha256 });
      await append(bytes);
      offset += bytes.byteLength;
    }
  });
  return { file, bytes: offset, header: digestBytes(header), blocks };
}

/** @returns undefined when nothing is retired */
async function writeRetired(
  to: EditedFiles,
  { manifest }: OpenHead['checkpoint'],
  retired: readonly RetiredClass[],
): Promise<CheckpointManifest['retired']> {
  if (retired.length === 0) return undefined;
  const bytes = retiredBytes(retired);
  const { sha256 } = digestBytes(bytes);
  if (manifest.retired?.sha256 === sha256) return manifest.retired;
  // By its content, so that the file that the manifest names is never replaced.
  const file = `retired-${sha256.slice(0, 16)}.json`;
  await to.write(file, (append) => append(bytes));
  return { file, sha256, bytes: bytes.byteLength, count: retired.length };
}

/** rows-0000000000.safetensors, rows-0000000000-1.safetensors, rows-0000000000-2.safetensors and so on. */
function nextName(file: string): string {
  const match = /^(.*?rows-\d{10})(?:-(\d+))?\.safetensors$/.exec(file);
  if (!match) throw invalid(file, 'a name that is not rows-…', 'a checkpoint that Facetrain wrote');
  return `${match[1]}-${Number(match[2] ?? 0) + 1}.safetensors`;
}

/** Its digest was compared when the file was opened. */
async function readHeader({ directory, source }: Checkpoint, stored: RowFile): Promise<Uint8Array> {
  const header = new Uint8Array(stored.header.bytes);
  if (source) {
    await source.read(stored.file, header, 0);
    return header;
  }
  const path = join(directory, stored.file);
  const file = await open(path, 'r');
  try {
    await readExactly(path, file, header, 0);
    return header;
  } finally {
    await file.close();
  }
}

/** Numbers as a checkpoint stores them; to bfloat16 rounded to the nearest, ties to even. */
export function toStored(values: Float32Array, dtype: StoredType): Uint8Array {
  if (dtype === 'float32') return new Uint8Array(values.slice().buffer);
  const bits = new Uint32Array(values.slice().buffer);
  const halves = Uint16Array.from(bits, (word) => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16);
  return new Uint8Array(halves.buffer);
}

function lengthOf(row: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += row[i]! * row[i]!;
  return Math.sqrt(sum);
}
const scaled = (row: Float32Array, factor: number) => row.map((value) => value * factor);
const sorted = (retired: RetiredClass[]) => retired.toSorted((a, b) => a.class - b.class);

/** The mean of directions, at the mean length. Rows of length zero count for nothing. */
function meanRow(rows: readonly Float32Array[]): Float32Array {
  const present = rows.filter((row) => lengthOf(row) > 0);
  if (present.length === 0) return new Float32Array(rows[0]!.length);
  const mean = new Float32Array(rows[0]!.length);
  for (const row of present) {
    const unit = scaled(row, 1 / lengthOf(row));
    unit.forEach((value, i) => {
      mean[i]! += value;
    });
  }
  const length = present.reduce((sum, row) => sum + lengthOf(row), 0) / present.length;
  const own = lengthOf(mean);
  return own > 0 ? scaled(mean, length / own) : present[0]!;
}

function checkClasses(classes: readonly number[], numClasses: number): void {
  const wrong = classes.find((id) => id >= numClasses);
  if (wrong !== undefined) throw argument(`class ${wrong}`, 'the head has no such class', `0 to ${numClasses - 1}`);
}

const argument = (subject: string, found: string, allowed: string) =>
  new FacetrainError({ code: 'InvalidArgument', subject, found, allowed });
