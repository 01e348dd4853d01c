/** SHA-256 digest and size of files. */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import type { StoredFile } from '@facetrain/api';
import { storageError } from './atomic-files.ts';

/** Digest and size of the file at `path`. @throws FacetrainError StorageFailed */
export async function digestFile(path: string, signal?: AbortSignal): Promise<StoredFile> {
  const hash = createHash('sha256');
  let bytes = 0;
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20, ...(signal ? { signal } : {}) })) {
      hash.update(chunk as Uint8Array);
      bytes += (chunk as Uint8Array).byteLength;
    }
  } catch (error) {
    throw storageError(path, error);
  }
  return { sha256: hash.digest('hex'), bytes };
}

/** Digest and size of bytes in memory. */
export function digestBytes(bytes: Uint8Array): StoredFile {
  return { sha256: updateHash(createHash('sha256'), bytes).digest('hex'), bytes: bytes.byteLength };
}

const AT_ONCE = 2 ** 30;

/** Hash.update, for any number of bytes: Node's own refuses 2 GiB. */
export function updateHash(hash: Hash, bytes: Uint8Array): Hash {
  for (let from = 0; from < bytes.byteLength; from += AT_ONCE) hash.update(bytes.subarray(from, from + AT_ONCE));
  return hash;
}
