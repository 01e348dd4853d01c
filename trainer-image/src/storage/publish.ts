/**
 * Publishes finished files to a folder or an object store, and withdraws them.
 *
 * A file that exists at the destination with the same digest is not written again. A manifest, named last, vouches for
 * the files before it: while any of them differs, there is none. So readers that find a manifest can rely on all that
 * it lists, also while an artifact is replaced, and after a publication that was cut off.
 */
import { createReadStream } from 'node:fs';
import { rm, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { DeleteObjectCommand, ListObjectsV2Command, PutObjectCommand, type S3Client } from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { ARTIFACT, type Destination, normalStorageUri, parseStorageUri, type StoredFile } from '@facetrain/api';
import { flushFolder, storageError, writeAtomically } from './atomic-files.ts';
import { digestFile } from './digest.ts';
import { ObjectStore, type Warn } from './object-store.ts';
import { DIGEST_METADATA, headObject, httpStatus, isForeign, s3Client, s3Error } from './s3.ts';

const CONTENT_TYPES: Record<string, string> = { '.json': 'application/json', '.html': 'text/html; charset=utf-8' };

export interface Published {
  name: string;
  file: StoredFile;
  /** False when the destination had the same bytes. */
  written: boolean;
}

/**
 * Copies the files `names` of `folder` to `destination`, one after another.
 * @param options.warn gets why uploads stay that a process left which was killed
 * @throws FacetrainError StorageFailed or DiskFull. The files before the one that failed are published then, and there
 * is no manifest; when the place of the manifest cannot be written, nothing has changed
 */
export function publish(
  folder: string,
  names: string[],
  destination: Destination,
  { signal, warn }: { signal?: AbortSignal; warn?: Warn } = {},
): Promise<Published[]> {
  return atPlace(destination, (place) => publishTo(place, folder, names, signal), { signal, warn });
}

/**
 * Checks early what would make publishing fail: an endpoint that refuses, wrong credentials, a missing bucket. It does
 * not check the permission to write.
 * @throws FacetrainError StorageFailed
 */
export async function checkDestination(destination: Destination, signal?: AbortSignal): Promise<void> {
  const location = parseStorageUri(destination.uri);
  if (location.scheme !== 's3') return;
  const client = s3Client(destination);
  const { bucket, key } = location;
  try {
    await client.send(
      new ListObjectsV2Command({ Bucket: bucket, Prefix: key, MaxKeys: 1 }),
      signal ? { abortSignal: signal } : {},
    );
  } catch (error) {
    // Publishing does not need the permission to list.
    if (!(error instanceof Error) || error.name !== 'AccessDenied') throw s3Error(error, destination, bucket, key);
  } finally {
    client.destroy();
  }
}

/**
 * Deletes files at `destination`. Those that are not there, and those that the credentials may not see or delete, are
 * left out.
 * @throws FacetrainError StorageFailed
 */
export function withdraw(names: string[], destination: Destination, signal?: AbortSignal): Promise<void> {
  return atPlace(
    destination,
    async (place) => {
      for (const name of names) await place.remove(name);
    },
    { signal },
  );
}

/** A place for files: a folder, or a prefix of a bucket. */
interface Place {
  /** Whether the file there has these bytes. */
  has(name: string, file: StoredFile): Promise<boolean>;
  /** Copies the file `from`, whose bytes are those of `file`. */
  write(name: string, file: StoredFile, from: string): Promise<void>;
  /** Takes away a manifest, if there is one. */
  revoke(name: string): Promise<void>;
  /** Deletes a file, if it is there and the credentials allow it. */
  remove(name: string): Promise<void>;
}

async function atPlace<T>(
  destination: Destination,
  use: (place: Place) => Promise<T>,
  { signal, warn = () => {} }: { signal?: AbortSignal | undefined; warn?: Warn | undefined },
): Promise<T> {
  const location = parseStorageUri(normalStorageUri(destination.uri));
  if (location.scheme === 'file') return use(folderPlace(location.path, signal));
  if (location.scheme !== 's3') throw new TypeError(`${destination.uri} is for the operator to resolve`);
  const client = s3Client(destination);
  const where = { bucket: location.bucket, prefix: location.key };
  const place = bucketPlace(client, destination, where, signal);
  const store = new ObjectStore({ ...destination, credentials: destination.credentials ?? null });
  const write: Place['write'] = async (name, file, from) => {
    // Those of this very object: of an attempt that was killed, or that is no longer the newest.
    await store.abortUploads(name, (each) => each === name, warn);
    await place.write(name, file, from);
  };
  const stop = () => store.close();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    return await use({ ...place, write });
  } finally {
    signal?.removeEventListener('abort', stop);
    store.close();
    client.destroy();
  }
}

async function publishTo(place: Place, folder: string, names: string[], signal?: AbortSignal): Promise<Published[]> {
  const files: Published[] = [];
  for (const name of names) {
    const file = await digestFile(join(folder, name), signal);
    files.push({ name, file, written: !(await place.has(name, file)) });
  }
  const last = files.at(-1);
  if (last?.name === ARTIFACT.manifest && files.slice(0, -1).some(({ written }) => written)) {
    await place.revoke(last.name);
    last.written = true;
  }
  for (const { name, file, written } of files) if (written) await place.write(name, file, join(folder, name));
  return files;
}

function folderPlace(to: string, signal?: AbortSignal): Place {
  return {
    async has(name, { bytes, sha256 }) {
      const path = join(to, name);
      const existing = await stat(path).catch(() => null);
      return (
        existing?.isFile() === true && existing.size === bytes && (await digestFile(path, signal)).sha256 === sha256
      );
    },
    write: (name, _file, from) =>
      writeAtomically(join(to, name), async (target) => {
        for await (const chunk of createReadStream(from, signal ? { signal } : {}))
          await target.writeFile(chunk as Uint8Array);
      }),
    async revoke(name) {
      try {
        await rm(join(to, name), { force: true });
        if (await stat(to).catch(() => null)) await flushFolder(to);
      } catch (error) {
        throw storageError(join(to, name), error);
      }
    },
    async remove(name) {
      const path = join(to, name);
      if (!(await stat(path).catch(() => null))) return;
      await rm(path).catch((error: unknown) => {
        throw storageError(path, error);
      });
    },
  };
}

function bucketPlace(
  client: S3Client,
  address: Destination,
  { bucket, prefix }: { bucket: string; prefix: string },
  signal?: AbortSignal,
): Place {
  const abort = signal ? { abortSignal: signal } : {};
  const objectOf = (name: string) => ({ Bucket: bucket, Key: prefix ? `${prefix}/${name}` : name });
  const orRefusal = async <T>(name: string, request: Promise<T>): Promise<T> => {
    try {
      return await request;
    } catch (error) {
      throw s3Error(error, address, bucket, objectOf(name).Key);
    }
  };
  return {
    has: (name, file) => orRefusal(name, isPublished(client, objectOf(name), file, abort)),
    write: (name, file, from) => orRefusal(name, upload(client, objectOf(name), file, from, signal)),
    revoke: (name) => orRefusal(name, revokeObject(client, objectOf(name), abort)),
    remove: (name) => orRefusal(name, deleteObject(client, objectOf(name), abort)),
  };
}

/** Of an object, as S3's requests have it. */
interface ObjectAddress {
  Bucket: string;
  Key: string;
}

async function upload(
  client: S3Client,
  object: ObjectAddress,
  file: StoredFile,
  from: string,
  signal?: AbortSignal,
): Promise<void> {
  const body = new Upload({
    client,
    params: {
      ...object,
      Body: createReadStream(from),
      ContentType: CONTENT_TYPES[extname(from)] ?? 'application/octet-stream',
      Metadata: { [DIGEST_METADATA]: file.sha256 },
    },
  });
  const stop = () => void body.abort();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    await body.done();
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}

/**
 * Deletes a manifest. First it is replaced by a document that is none, which readers refuse as InvalidArtifact: so
 * credentials that may delete and not write leave the artifact that is there, and those that may not delete (403)
 * leave no manifest of it.
 */
async function revokeObject(
  client: S3Client,
  object: ObjectAddress,
  abort: { abortSignal?: AbortSignal },
): Promise<void> {
  const body = `${JSON.stringify({ incomplete: 'these files are being replaced' })}\n`;
  await client.send(new PutObjectCommand({ ...object, Body: body, ContentType: CONTENT_TYPES['.json'] }), abort);
  try {
    await client.send(new DeleteObjectCommand(object), abort);
  } catch (error) {
    if (httpStatus(error) !== 403) throw error;
  }
}

/** In a bucket with versions, deleting what is not there would leave a marker each time. */
async function deleteObject(
  client: S3Client,
  object: ObjectAddress,
  abort: { abortSignal?: AbortSignal },
): Promise<void> {
  try {
    await headObject(client, object, abort);
    await client.send(new DeleteObjectCommand(object), abort);
  } catch (error) {
    if (!isHidden(error)) throw error;
  }
}

/**
 * Whether the object has these bytes. Also false without permission to read it: writing then succeeds or fails with a
 * reason.
 */
async function isPublished(
  client: S3Client,
  object: ObjectAddress,
  file: StoredFile,
  abort: { abortSignal?: AbortSignal },
): Promise<boolean> {
  try {
    const head = await headObject(client, object, abort);
    return head.ContentLength === file.bytes && head.Metadata?.[DIGEST_METADATA] === file.sha256;
  } catch (error) {
    if (isHidden(error)) return false;
    throw error;
  }
}

/** Whether the store says that there is no such object, or that it may not be seen. */
const isHidden = (error: unknown): boolean => [400, 403, 404].includes(httpStatus(error) ?? 0) && !isForeign(error);
