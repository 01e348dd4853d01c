/**
 * Safetensors files with numbers of 32 bits or of bfloat16: the header's length in 8 bytes, little-endian; a JSON
 * header; then the tensors' bytes one after another. Format: github.com/huggingface/safetensors. The reader checks the
 * whole header.
 */
import { open } from 'node:fs/promises';
import { endianness } from 'node:os';
import { BYTES_OF, counted, FacetrainError, type StoredType } from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';

/** A tensor of a file, without its values. */
export interface TensorEntry {
  name: string;
  dtype: StoredType;
  dims: number[];
}

/** The limit of the reference implementation. */
const LONGEST_HEADER = 100_000_000;
/** Node refuses single reads and writes of 2 GiB. Between chunks the event loop can run other work. */
const CHUNK_BYTES = 16 * 2 ** 20;

const FORMAT_NAMES: Record<StoredType, string> = { float32: 'F32', bfloat16: 'BF16' };
const TYPES = new Map(Object.entries(FORMAT_NAMES).map(([type, name]) => [name, type as StoredType]));

if (endianness() !== 'LE') throw new Error('safetensors are little-endian, and so must this machine be');

/** The bytes of a file before its tensors, which follow in the given order without gaps. */
export function safetensorsHeader(tensors: readonly TensorEntry[]): Uint8Array {
  let offset = 0;
  const header = Object.fromEntries(
    tensors.map(({ name, dtype, dims }) => {
      const start = offset;
      offset += dims.reduce((product, dim) => product * dim, BYTES_OF[dtype]);
      return [name, { dtype: FORMAT_NAMES[dtype], shape: dims, data_offsets: [start, offset] }];
    }),
  );
  const json = JSON.stringify(header);
  // Padding makes the tensors start at a multiple of 8.
  const text = Buffer.from(json + ' '.repeat((8 - (Buffer.byteLength(json) % 8)) % 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text]);
}

interface Entry {
  dtype: StoredType;
  dims: number[];
  /** In bytes, from the start of the file. */
  offset: number;
  values: number;
}

/** What is needed of an open file: a FileHandle, or something else that has bytes. */
export interface ReadableFile {
  read(into: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  stat(): Promise<{ size: number }>;
  close(): Promise<void>;
}

/** @param read fills `into` from a position on, and returns the number of bytes */
export const readable = (
  size: number,
  read: (into: Uint8Array, position: number) => number | Promise<number>,
): ReadableFile => ({
  read: async (into, offset, length, position) => ({
    bytesRead: await read(into.subarray(offset, offset + length), position),
  }),
  stat: async () => ({ size }),
  close: async () => {},
});

/** A file open for reading, whose header has been checked. */
export class Safetensors implements AsyncDisposable {
  readonly path: string;
  #file: ReadableFile;
  #entries: Map<string, Entry>;

  private constructor(path: string, file: ReadableFile, entries: Map<string, Entry>) {
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

  /** The same of bytes in memory. @param path for errors. @throws FacetrainError InvalidCheckpoint */
  static async of(path: string, bytes: Uint8Array): Promise<Safetensors> {
    const file = readable(bytes.byteLength, (into, position) => {
      const part = bytes.subarray(position, position + into.byteLength);
      into.set(part);
      return part.byteLength;
    });
    return new Safetensors(path, file, await readHeader(path, file));
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  dims(name: string): number[] {
    return this.#entry(name).dims;
  }

  /** A whole tensor, or `count` of its values from `first` on, as 32-bit numbers. */
  async read(name: string, first = 0, count?: number): Promise<Float32Array> {
    const { dtype, offset, values } = this.#entry(name);
    const wanted = count ?? values - first;
    if (first < 0 || wanted < 0 || first + wanted > values)
      throw new RangeError(`${this.path}: ${name} has ${counted(values, 'value')}, not [${first}, ${first + wanted})`);
    const bytes = new Uint8Array(wanted * BYTES_OF[dtype]);
    await readExactly(this.path, this.#file, bytes, offset + first * BYTES_OF[dtype]);
    if (dtype === 'float32') return new Float32Array(bytes.buffer);
    // The upper half of a 32-bit number.
    const result = new Uint32Array(wanted);
    new Uint16Array(bytes.buffer).forEach((value, index) => {
      result[index] = value << 16;
    });
    return new Float32Array(result.buffer);
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

async function readHeader(path: string, file: ReadableFile): Promise<Map<string, Entry>> {
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
    end += entry.values * BYTES_OF[entry.dtype];
  }
  if (end !== size) throw damaged(path, `${size} bytes`, `${end} bytes, as the header says`);
  return entries;
}

function checkEntry(path: string, name: string, value: unknown, dataStart: number): Entry {
  const shown = JSON.stringify(name.slice(0, 100));
  const { dtype: format, shape, data_offsets: offsets } = (value ?? {}) as Record<string, unknown>;
  const dtype = TYPES.get(format as string);
  if (dtype === undefined)
    throw damaged(
      path,
      `tensor ${shown} of type ${JSON.stringify(format)?.slice(0, 100)}`,
      [...TYPES.keys()].join(', '),
    );
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
  if (end - begin !== values * BYTES_OF[dtype])
    throw damaged(
      path,
      `tensor ${shown} has ${end - begin} bytes for the shape [${shape}]`,
      `${values * BYTES_OF[dtype]} bytes`,
    );
  return { dtype, dims: shape, offset: dataStart + begin, values };
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** Fills `into` from a file. @throws FacetrainError InvalidCheckpoint when the file ends before */
export async function readExactly(path: string, file: ReadableFile, into: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < into.byteLength; ) {
    const { bytesRead } = await file.read(into, done, Math.min(CHUNK_BYTES, into.byteLength - done), position + done);
    if (bytesRead === 0) throw damaged(path, `ends at byte ${position + done}`, `${position + into.byteLength} bytes`);
    done += bytesRead;
  }
}

function damaged(path: string, found: string, allowed: string): FacetrainError {
  return new FacetrainError({ code: 'InvalidCheckpoint', subject: path, found, allowed });
}
