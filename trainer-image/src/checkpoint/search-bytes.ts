/** Looks for bytes in all files of a folder: whether a class centre that was removed is really gone. */
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

/**
 * @param needles shorter than 1 MiB
 * @throws FacetrainError StorageFailed
 */
export async function searchBytes(root: string, needles: readonly Buffer[]): Promise<SearchResult> {
  const result: SearchResult = { files: 0, bytes: 0, found: [] };
  const overlap = Math.max(0, ...needles.map((needle) => needle.byteLength - 1));
  try {
    const entries = await readdir(root, { recursive: true, withFileTypes: true });
    for (const entry of entries.filter((each) => each.isFile())) {
      const path = join(entry.parentPath, entry.name);
      const file = await open(path, 'r');
      try {
        result.files += 1;
        let kept = Buffer.alloc(0);
        for (let position = 0; ; ) {
          const chunk = Buffer.alloc(CHUNK_BYTES);
          const { bytesRead } = await file.read(chunk, 0, CHUNK_BYTES, position);
          if (bytesRead === 0) break;
          position += bytesRead;
          result.bytes += bytesRead;
          const text = Buffer.concat([kept, chunk.subarray(0, bytesRead)]);
          if (needles.some((needle) => text.includes(needle))) {
            result.found.push(path);
            break;
          }
          kept = text.subarray(Math.max(0, text.byteLength - overlap));
        }
      } finally {
        await file.close();
      }
    }
  } catch (error) {
    throw storageError(root, error);
  }
  return result;
}
