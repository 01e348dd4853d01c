/**
 * Safetensors files with 32-bit floats: the header's length in 8 bytes, little-endian; a JSON header; then the tensors'
 * bytes one after another. Format: github.com/huggingface/safetensors. The reader checks the whole header. The
 * writer streams, and computes the digest while it writes.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { endianness } from 'node:os';
import { FacetrainError, type StoredFile } from '@facetrain/api';
import { storageError, writeNew } from '../storage/atomic-files.ts';

export interface FloatTensor {
  dims: number[];
  data: Float32Array;
}

/** The limit of the reference implementation. */
const LONGEST_HEADER = 100_000_000;
/** Node refuses single reads and writes of 2 GiB. Between chunks the event loop can run other work. */
const CHUNK_BYTES = 16 * 2 ** 20;
const FLOAT_BYTES = 4;

if (endianness() !== 'LE') throw new Error('safetensors are little-endian, and so must this machine be');

/**
 * Writes tensors to a new file in a folder that exists, in the given order, and flushes it.
 * @returns the file's digest and size
 * @throws FacetrainError DiskFull or StorageFailed
 */
export async function writeSafetensors(path: string, tensors: Record<string, FloatTensor>): Promise<StoredFile> {
  const entries = Object.entries(tensors);
  let offset = 0;
  const header = Object.fromEntries(
    entries.map(([name, { dims, data }]) => {
      const start = offset;
      offset += data.byteLength;
      return [name, { dtype: 'F32', shape: dims, data_offsets: [start, offset] }];
    }),
  );
  const json = JSON.stringify(header);
  // Padding makes the tensors start at a multiple of 8.
  const text = Buffer.from(json + ' '.repeat((8 - (Buffer.byteLength(json) % 8)) % 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));

  const hash = createHash('sha256');
  let bytes = 0;
  await writeNew(path, async (file) => {
    for (const part of [length, text, ...entries.map(([, { data }]) => data)]) {
      for (let start = 0; start < part.byteLength; start += CHUNK_BYTES) {
        const chunk = new Uint8Array(
          part.buffer,
          part.byteOffset + start,
          Math.min(CHUNK_BYTES, part.byteLength - start),
        );
        hash.update(chunk);
        await writeAll(file, chunk);
        bytes += chunk.byteLength;
      }
    }
  });
  return { sha256: hash.digest('hex'), bytes };
}

async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.byteLength; ) done += (await file.write(chunk, done)).bytesWritten;
}

interface Entry {
  dims: number[];
  /** In bytes, from the start of the file. */
  offset: number;
  values: number;
}

/** A file open for reading, whose header has been checked. */
export class Safetensors implements AsyncDisposable {
  readonly path: string;
  #file: FileHandle;
  #entries: Map<string, Entry>;

  private constructor(path: string, file: FileHandle, entries: Map<string, Entry>) {
    this.path = path;
    this.#file = file;
    this.#entries = entries;
  }

  /** @throws FacetrainError InvalidCheckpoint for a file that is not one, StorageFailed for one that cannot be read */
  static async open(path: string): Promise<Safetensors> {
    try {
      const file = await open(path, 'r');
      try {
        return new Safetensors(path, file, await readHeader(path, file));
      } catch (error) {
        await file.close();
        throw error;
      }
    } catch (error) {
      throw storageError(path, error);
    }
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  dims(name: string): number[] {
    return this.#entry(name).dims;
  }

  /** A whole tensor, or `count` of its values from `first` on. */
  async read(name: string, first = 0, count?: number): Promise<Float32Array> {
    const { offset, values } = this.#entry(name);
    const wanted = count ?? values - first;
    if (first < 0 || wanted < 0 || first + wanted > values)
      throw new RangeError(`${this.path}: ${name} has ${values} values, not [${first}, ${first + wanted})`);
    const result = new Float32Array(wanted);
    await readExactly(this.path, this.#file, new Uint8Array(result.buffer), offset + first * FLOAT_BYTES);
    return result;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#file.close();
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name);
    if (!entry)
      throw damaged(this.path, `no tensor "${name}"`, `it has ${this.names.slice(0, 5).join(', ') || 'none'}`);
    return entry;
  }
}

async function readHeader(path: string, file: FileHandle): Promise<Map<string, Entry>> {
  const { size } = await file.stat();
  if (size < 8) throw damaged(path, `${size} bytes`, 'a safetensors file has 8 and more');
  const prefix = new Uint8Array(8);
  await readExactly(path, file, prefix, 0);
  const length = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  if (length > LONGEST_HEADER || length > size - 8)
    throw damaged(
      path,
      `a header of ${length} bytes in a file of ${size}`,
      `at most ${Math.min(LONGEST_HEADER, size - 8)}`,
    );
  const text = new Uint8Array(length);
  await readExactly(path, file, text, 8);

  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(text));
  } catch (cause) {
    throw damaged(path, `a header that is not JSON (${(cause as Error).message})`, 'a safetensors header');
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header))
    throw damaged(path, 'a header that is no object', 'tensors by name');
  const entries = new Map(
    Object.entries(header)
      .filter(([name]) => name !== '__metadata__')
      .map(([name, value]) => [name, checkEntry(path, name, value, 8 + length)]),
  );

  // The format forbids gaps and overlaps between tensors.
  let end = 8 + length;
  for (const [name, entry] of [...entries].sort(([, a], [, b]) => a.offset - b.offset || a.values - b.values)) {
    if (entry.offset !== end)
      throw damaged(path, `tensor "${name}" starts at byte ${entry.offset}`, `byte ${end}, where the one before ends`);
    end += entry.values * FLOAT_BYTES;
  }
  if (end !== size) throw damaged(path, `${size} bytes`, `${end} bytes, as the header says`);
  return entries;
}

function checkEntry(path: string, name: string, value: unknown, dataStart: number): Entry {
  const shown = JSON.stringify(name.slice(0, 100));
  const { dtype, shape, data_offsets: offsets } = (value ?? {}) as Record<string, unknown>;
  if (dtype !== 'F32') throw damaged(path, `tensor ${shown} of type ${JSON.stringify(dtype)?.slice(0, 100)}`, 'F32');
  if (!isSizes(shape) || shape.length > 8)
    throw damaged(path, `tensor ${shown} has the shape ${JSON.stringify(shape)?.slice(0, 100)}`, 'at most 8 sizes');
  if (!isSizes(offsets) || offsets.length !== 2)
    throw damaged(
      path,
      `tensor ${shown} has the offsets ${JSON.stringify(offsets)?.slice(0, 100)}`,
      'its first byte and the one after its last',
    );
  const [begin, end] = offsets as [number, number];
  const values = shape.reduce((product, dim) => product * dim, 1);
  if (end - begin !== values * FLOAT_BYTES)
    throw damaged(
      path,
      `tensor ${shown} has ${end - begin} bytes for the shape [${shape}]`,
      `${values * FLOAT_BYTES} bytes`,
    );
  return { dims: shape, offset: dataStart + begin, values };
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

async function readExactly(path: string, file: FileHandle, into: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < into.byteLength; ) {
    const { bytesRead } = await file.read(into, done, Math.min(CHUNK_BYTES, into.byteLength - done), position + done);
    if (bytesRead === 0) throw damaged(path, `ends at byte ${position + done}`, `${position + into.byteLength} bytes`);
    done += bytesRead;
  }
}

function damaged(path: string, found: string, allowed: string): FacetrainError {
  return new FacetrainError({ code: 'InvalidCheckpoint', subject: path, found, allowed });
}
