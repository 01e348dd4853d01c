/**
 * Writes a checkpoint: every rank one file with its own class centres, rank 0 also the backbone. When the files of all
 * ranks are on disk, rank 0 adds the manifest. So a process that ends at any moment leaves a complete checkpoint or
 * none, and a process of an older attempt leaves none (target.ts, storage/fence.ts).
 *
 * Where memory suffices, a rank writes a copy of its state, and training goes on meanwhile. docs/decisions/0029.
 */
import { createHash } from 'node:crypto';
import {
  type CheckpointManifest,
  type NormStatistics,
  ROWS_OPTIMIZER_NAMES,
  type RowFile,
  type StoredFile,
} from '@facetrain/api';
import type { BackboneState, RowTensor, StateCopy, StateSource, TrainingSessionContract } from '@facetrain/native';
import { gatherJson } from '../program/gather-json.ts';
import type { FolderLabels } from './folder-labels.ts';
import { type Identities, RETIRED_FILE, retiredBytes } from './retired.ts';
import { safetensorsHeader, type TensorEntry } from './safetensors.ts';
import { type CheckpointTarget, type FileWriter, prune, type Retention } from './target.ts';

/**
 * Blocks of rows begin at its multiples. With 512 numbers of 32 bits each, centres and momentum take 32 MiB: a good
 * part of an upload.
 */
export const BLOCK_ROWS = 8192;
/** Hashed and written at once. Hashing blocks the event loop, which posts the next step, for about a millisecond. */
const CHUNK_BYTES = 2 ** 20;

/** Of the backbone: the only one that it has. */
export const OPTIMIZER = 'SGD';
const MOMENTUM = 'momentum';

export interface SaveOptions {
  /** The same for every rank. */
  target: CheckpointTarget;
  /** Complete checkpoints of the job to keep, this one included. */
  retention: Retention;
  job: CheckpointManifest['job'];
  /** Steps done. There must be no complete checkpoint of this step. */
  step: number;
  seed: number;
  numClasses: number;
  history: CheckpointManifest['history'];
  curves?: CheckpointManifest['curves'];
  bf16?: CheckpointManifest['bf16'] | undefined;
  /** Identities that are no longer trained, and whether others were added; absent: none. */
  identities?: Identities;
  /** Of a dataset that is an image folder; absent: those of `identities`. */
  labels?: FolderLabels | null;
  settings?: CheckpointManifest['settings'];
  /** The session's, of the same moment; of precision fp16. */
  lossScale?: CheckpointManifest['lossScale'];
  /** The session's, of the same moment; of the margin AdaFace. */
  normStatistics?: NormStatistics | undefined;
  time: Date;
  rank: number;
  worldSize: number;
  /** Rows between the beginnings of two blocks; BLOCK_ROWS. */
  blockRows?: number;
  /** Called after every block. */
  onBlock?: () => void;
}

/** What one rank has written. */
interface Part {
  /** Null for a rank without class centres. */
  rows: RowFile | null;
  /** Of rank 0. */
  backbone: (StoredFile & { file: string }) | null;
  retired: CheckpointManifest['retired'] | null;
}

/**
 * Writes a checkpoint while training waits. To be called on every rank after the same step.
 * @throws FacetrainError FencedOff, DiskFull or StorageFailed
 */
export async function saveCheckpoint(session: TrainingSessionContract, options: SaveOptions): Promise<void> {
  const pending = new PendingCheckpoint(session, null, options);
  await pending.gather();
  await pending.completed;
  // No rank continues before the checkpoint is complete.
  await session.barrier();
}

/** A checkpoint that is being written, on one rank. */
export class PendingCheckpoint {
  readonly step: number;
  readonly #session: TrainingSessionContract;
  readonly #options: SaveOptions;
  readonly #written: Promise<Part>;
  #isWritten = false;
  #failure: { error: unknown } | undefined;
  #completed: Promise<void> | undefined;

  /**
   * Begins to write.
   * @param copy of the state, which is closed when it is written; null: the session must not change before `written`
   */
  constructor(session: TrainingSessionContract, copy: StateCopy | null, options: SaveOptions) {
    this.step = options.step;
    this.#session = session;
    this.#options = options;
    this.#written = this.#explained(this.#write(copy ?? session).finally(() => copy?.close()));
    this.#written.then(
      () => (this.#isWritten = true),
      (error: unknown) => (this.#failure ??= { error }),
    );
  }

  /** Whether this rank's part is on disk. */
  get isWritten(): boolean {
    return this.#isWritten;
  }

  /** Settles when this rank's part is on disk. @throws FacetrainError FencedOff, DiskFull, StorageFailed */
  get written(): Promise<unknown> {
    return this.#written;
  }

  /** Settles when rank 0 has made it a checkpoint, on rank 0 only; after gather(). @throws as written */
  get completed(): Promise<void> {
    return this.#completed ?? Promise.resolve();
  }

  /** @throws FacetrainError what has failed so far */
  throwIfFailed(): void {
    if (this.#failure) throw this.#failure.error;
  }

  /**
   * Waits for this rank's part, tells rank 0 of it, and lets rank 0 complete the checkpoint: see `completed`. A
   * collective: to be called on every rank after the same step.
   * @throws FacetrainError FencedOff, DiskFull, StorageFailed
   */
  async gather(): Promise<void> {
    const parts = await gatherJson(this.#session, await this.#written);
    if (this.#options.rank !== 0) return;
    this.#completed = this.#explained(this.#complete(parts));
    this.#completed.catch((error: unknown) => (this.#failure ??= { error }));
  }

  async #complete(parts: Part[]): Promise<void> {
    const { target, retention, job } = this.#options;
    await target.complete(makeManifest(parts, this.#session, this.#options));
    // The new checkpoint is on disk, and its name, too: only now older ones may go.
    await prune(target, retention, job.name);
  }

  async #write(source: StateSource): Promise<Part> {
    const files: FileWriter[] = [];
    try {
      const rows = await writeRows(source, this.#session, files, this.#options);
      // All ranks have the same backbone, running statistics included, so one writes it.
      const backbone = this.#options.rank === 0 ? await writeBackbone(source, files, this.#options) : null;
      const retired = this.#options.rank === 0 ? await writeRetired(files, this.#options) : null;
      return { rows, backbone, retired };
    } catch (error) {
      // They may be what fills the disk. The files of other ranks are left to them: they may still be writing.
      for (const file of files) await file.discard();
      throw error;
    }
  }

  async #explained<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      throw await this.#options.target.explain(error);
    }
  }
}

/**
 * @param files receives each file that is opened
 * @returns null, and writes nothing, for a rank without class centres: the name of its file would be another rank's
 */
async function writeRows(
  source: StateSource,
  { rowRange, rowTensors }: Pick<TrainingSessionContract, 'rowRange' | 'rowTensors'>,
  files: FileWriter[],
  { target, step, blockRows = BLOCK_ROWS, onBlock }: SaveOptions,
): Promise<RowFile | null> {
  if (rowRange.rows === 0) return null;
  const parts = splitRows(rowRange, blockRows);
  const header = safetensorsHeader(parts.flatMap((part) => blockTensors(part, rowTensors)));
  const file = `rows-${tenDigits(rowRange.firstRow)}.safetensors`;
  const writer = await target.create(step, file);
  files.push(writer);
  const stored: RowFile = { file, bytes: 0, header: await append(writer, [header]), blocks: [] };
  let offset = header.byteLength;
  for (const { firstRow, rows } of parts) {
    const { tensors } = await source.saveRows(firstRow, rows);
    const { sha256, bytes } = await append(
      writer,
      rowTensors.map(({ name }) => tensors[name]!.bytes),
    );
    stored.blocks.push({ firstRow, rows, offset, sha256 });
    offset += bytes;
    onBlock?.();
  }
  await writer.finish();
  return { ...stored, bytes: offset };
}

/** Cuts a range of rows at the multiples of `blockRows`. */
export function splitRows(
  { firstRow, rows }: { firstRow: number; rows: number },
  blockRows: number,
): { firstRow: number; rows: number }[] {
  const parts = [];
  for (let first = firstRow; first < firstRow + rows; ) {
    const end = Math.min(firstRow + rows, (Math.floor(first / blockRows) + 1) * blockRows);
    parts.push({ firstRow: first, rows: end - first });
    first = end;
  }
  return parts;
}

/** The tensors of a block, as a header of safetensors names them. */
export function blockTensors(
  part: { firstRow: number; rows: number },
  rowTensors: readonly RowTensor[],
): TensorEntry[] {
  return rowTensors.map(({ name, dtype, columns }) => ({
    name: `${name}/${tenDigits(part.firstRow)}`,
    dtype,
    dims: [part.rows, columns],
  }));
}

async function writeBackbone(
  source: StateSource,
  files: FileWriter[],
  { target, step, onBlock }: SaveOptions,
): Promise<StoredFile & { file: string }> {
  const tensors = Object.entries(flatten(await source.saveBackbone()));
  const header = safetensorsHeader(tensors.map(([name, { dims }]) => ({ name, dtype: 'float32', dims })));
  const file = 'backbone.safetensors';
  const writer = await target.create(step, file);
  files.push(writer);
  const stored = await append(writer, [header, ...tensors.map(([, { data }]) => bytesOf(data))]);
  await writer.finish();
  onBlock?.();
  return { file, ...stored };
}

async function writeRetired(
  files: FileWriter[],
  { target, step, identities }: SaveOptions,
): Promise<CheckpointManifest['retired'] | null> {
  if (!identities?.retired.length) return null;
  const file = RETIRED_FILE;
  const writer = await target.create(step, file);
  files.push(writer);
  const stored = await append(writer, [retiredBytes(identities.retired)]);
  await writer.finish();
  return { file, ...stored, count: identities.retired.length };
}

/** Appends bytes to a file. @returns their digest and number */
async function append(writer: FileWriter, parts: Uint8Array[]): Promise<StoredFile> {
  const hash = createHash('sha256');
  let bytes = 0;
  for (const part of parts) {
    for (let start = 0; start < part.byteLength; start += CHUNK_BYTES) {
      const chunk = part.subarray(start, start + CHUNK_BYTES);
      hash.update(chunk);
      await writer.write(chunk);
      bytes += chunk.byteLength;
    }
  }
  return { sha256: hash.digest('hex'), bytes };
}

function makeManifest(
  parts: Part[],
  {
    stepsPerEpoch,
    dim,
    rowTensors,
    rowsOptimizer,
    precision,
  }: Pick<TrainingSessionContract, 'stepsPerEpoch' | 'dim' | 'rowTensors' | 'rowsOptimizer' | 'precision'>,
  options: SaveOptions,
): CheckpointManifest {
  const labels = options.labels ?? options.identities?.labels;
  return {
    schemaVersion: 2,
    requires: parts[0]!.retired ? ['retired'] : [],
    job: options.job,
    time: options.time.toISOString(),
    step: options.step,
    stepsPerEpoch,
    worldSize: options.worldSize,
    seed: options.seed,
    numClasses: options.numClasses,
    embeddingDim: dim,
    precision,
    ...(options.lossScale && { lossScale: options.lossScale }),
    ...(options.normStatistics && { margin: options.normStatistics }),
    ...(parts[0]!.retired && { retired: parts[0]!.retired }),
    ...(options.identities?.classesAdded && { classesAdded: true }),
    ...(options.settings && { settings: options.settings }),
    ...(options.bf16 && { bf16: options.bf16 }),
    ...(labels && { labels }),
    backbone: {
      ...parts[0]!.backbone!,
      dtype: 'float32',
      optimizer: OPTIMIZER,
      state: [{ name: MOMENTUM, dtype: 'float32' }],
    },
    rows: {
      optimizer: ROWS_OPTIMIZER_NAMES[rowsOptimizer],
      tensors: [...rowTensors],
      blockRows: options.blockRows ?? BLOCK_ROWS,
      files: parts.flatMap(({ rows }) => rows ?? []),
    },
    history: options.history,
    ...(options.curves && { curves: options.curves }),
  };
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array) => new Uint8Array(buffer, byteOffset, byteLength);
export const tenDigits = (row: number) => String(row).padStart(10, '0');

/** Prefix of the names of momentum tensors in backbone.safetensors. */
const MOMENTUM_PREFIX = `${MOMENTUM}/`;

function flatten(state: BackboneState): BackboneState['tensors'] {
  const momentum = Object.entries(state.momentum).map(([name, tensor]) => [MOMENTUM_PREFIX + name, tensor] as const);
  return Object.fromEntries([...Object.entries(state.tensors), ...momentum]);
}

/** The inverse of flatten, for one name in backbone.safetensors. */
export function splitName(stored: string): ['tensors' | 'momentum', string] {
  return stored.startsWith(MOMENTUM_PREFIX) ? ['momentum', stored.slice(MOMENTUM_PREFIX.length)] : ['tensors', stored];
}
