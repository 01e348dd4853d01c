/** Looks for bytes in all files of a folder or a store: whether a class centre that was removed is really gone. */
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { storageError } from '../storage/atomic-files.ts';

const CHUNK_BYTES = 8 * 2 ** 20;

export interface SearchResult {
  files: number;
  bytes: number;
  /** Files that hold one of them. */
  found: string[];
}

/** Bytes of a needle that are looked for first; and of the table of which needles begin with such. */
const [PREFIX, TABLE] = [4, 2 ** 20];
/** For each of so few, Buffer's own search is faster than one pass for all: it takes a thirtieth of the time. */
const FEW = 32;
const slotOf = (prefix: number) => Math.imul(prefix, 0x9e3779b1) >>> 12;

/** Finds any of many byte strings. */
class Needles {
  readonly #all: readonly Buffer[];
  readonly #table = new Uint8Array(TABLE);
  readonly #byPrefix = new Map<number, Buffer[]>();

  constructor(needles: readonly Buffer[]) {
    this.#all = needles;
    for (const needle of needles) {
      const prefix = needle.readUInt32LE(0) | 0;
      this.#table[slotOf(prefix)] = 1;
      this.#byPrefix.set(prefix, [...(this.#byPrefix.get(prefix) ?? []), needle]);
    }
  }

  isIn(text: Buffer): boolean {
    if (this.#all.length <= FEW) return this.#all.some((needle) => text.includes(needle));
    const table = this.#table;
    let prefix = 0;
    for (let end = 0; end < text.length; end++) {
      prefix = (prefix >>> 8) | (text[end]! << 24);
      if (table[slotOf(prefix)] === 0 || end < PREFIX - 1) continue;
      const start = end - (PREFIX - 1);
      const isHere = (needle: Buffer) => needle.equals(text.subarray(start, start + needle.length));
      if (this.#byPrefix.get(prefix)?.some(isHere)) return true;
    }
    return false;
  }
}

/** A file that is searched. */
export interface SearchedFile {
  name: string;
  /** Fills `into` from a position on. @returns bytes read; 0 at the end */
  read(into: Uint8Array, position: number): Promise<number>;
}

/**
 * @param sought of 4 bytes and more, and shorter than 1 MiB; many of them take one pass over each file
 * @throws FacetrainError StorageFailed
 */
export async function searchBytes(root: string, sought: readonly Buffer[]): Promise<SearchResult> {
  try {
    return await searchFiles(filesOf(root), sought);
  } catch (error) {
    throw storageError(root, error);
  }
}

async function* filesOf(root: string): AsyncGenerator<SearchedFile> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  for (const entry of entries.filter((each) => each.isFile())) {
    const name = join(entry.parentPath, entry.name);
    await using file = await open(name, 'r');
    yield { name, read: async (into, position) => (await file.read(into, 0, into.byteLength, position)).bytesRead };
  }
}

/** The same in any files. */
export async function searchFiles(
  files: AsyncIterable<SearchedFile> | Iterable<SearchedFile>,
  sought: readonly Buffer[],
): Promise<SearchResult> {
  const result: SearchResult = { files: 0, bytes: 0, found: [] };
  const needles = new Needles(sought);
  const overlap = Math.max(0, ...sought.map((needle) => needle.byteLength - 1));
  const chunk = Buffer.alloc(overlap + CHUNK_BYTES);
  for await (const file of files) {
    result.files += 1;
    let kept = 0;
    for (let position = 0; ; ) {
      const count = await file.read(chunk.subarray(kept, kept + CHUNK_BYTES), position);
      if (count === 0) break;
      position += count;
      result.bytes += count;
      const end = kept + count;
      if (needles.isIn(chunk.subarray(0, end))) {
        result.found.push(file.name);
        break;
      }
      // What may be the beginning of one.
      const rest = Math.min(end, overlap);
      chunk.copyWithin(0, end - rest, end);
      kept = rest;
    }
  }
  return result;
}
