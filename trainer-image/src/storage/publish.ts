/**
 * Publishes finished files to a folder or an object store.
 *
 * A file that exists at the destination with the same digest is not written again. Files are published in the given
 * order: a manifest, named last, appears when all files that it lists exist.
 */
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { HeadObjectCommand, ListObjectsV2Command, type S3Client } from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { parseStorageUri, type StorageAddress, type StoredFile } from '@facetrain/api';
import { writeAtomically } from './atomic-files.ts';
import { digestFile } from './digest.ts';
import { DIGEST_METADATA, httpStatus, s3Client, s3Error } from './s3.ts';

const CONTENT_TYPES: Record<string, string> = { '.json': 'application/json', '.html': 'text/html; charset=utf-8' };

export interface Published {
  name: string;
  file: StoredFile;
  /** False when the destination had the same bytes. */
  written: boolean;
}

/**
 * Copies the files `names` of `folder` to `destination`, one after another.
 * @throws FacetrainError StorageFailed or DiskFull; the files before the one that failed are published then
 */
export async function publish(
  folder: string,
  names: string[],
  destination: StorageAddress,
  signal?: AbortSignal,
): Promise<Published[]> {
  const location = parseStorageUri(destination.uri);
  if (location.scheme === 'file')
    return publishTo(names, (name) => publishFile(join(folder, name), join(location.path, name), signal));
  if (location.scheme !== 's3') throw new TypeError(`${destination.uri} is for the operator to resolve`);
  const client = s3Client(destination);
  const prefix = location.key.replace(/\/+$/, '');
  try {
    return await publishTo(names, (name) =>
      publishObject(
        client,
        join(folder, name),
        destination,
        location.bucket,
        prefix ? `${prefix}/${name}` : name,
        signal,
      ),
    );
  } finally {
    client.destroy();
  }
}

/**
 * Checks early what would make publishing fail: an endpoint that refuses, wrong credentials, a missing bucket. It does
 * not check the permission to write.
 * @throws FacetrainError StorageFailed
 */
export async function checkDestination(destination: StorageAddress, signal?: AbortSignal): Promise<void> {
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

async function publishTo(
  names: string[],
  one: (name: string) => Promise<Omit<Published, 'name'>>,
): Promise<Published[]> {
  const published: Published[] = [];
  for (const name of names) published.push({ name, ...(await one(name)) });
  return published;
}

async function publishFile(from: string, to: string, signal?: AbortSignal): Promise<Omit<Published, 'name'>> {
  const file = await digestFile(from, signal);
  const existing = await stat(to).catch(() => null);
  if (existing?.isFile() && existing.size === file.bytes && (await digestFile(to, signal)).sha256 === file.sha256)
    return { file, written: false };
  await writeAtomically(to, async (target) => {
    for await (const chunk of createReadStream(from, signal ? { signal } : {}))
      await target.writeFile(chunk as Uint8Array);
  });
  return { file, written: true };
}

async function publishObject(
  client: S3Client,
  from: string,
  address: StorageAddress,
  bucket: string,
  key: string,
  signal?: AbortSignal,
): Promise<Omit<Published, 'name'>> {
  const file = await digestFile(from, signal);
  const abort = signal ? { abortSignal: signal } : {};
  try {
    if (await isPublished(client, bucket, key, file, abort)) return { file, written: false };
    const type = CONTENT_TYPES[extname(from)] ?? 'application/octet-stream';
    const upload = new Upload({
      client,
      params: {
        Bucket: bucket,
        Key: key,
        Body: createReadStream(from),
        ContentType: type,
        Metadata: { [DIGEST_METADATA]: file.sha256 },
      },
    });
    const stop = () => void upload.abort();
    signal?.addEventListener('abort', stop, { once: true });
    try {
      await upload.done();
    } finally {
      signal?.removeEventListener('abort', stop);
    }
    return { file, written: true };
  } catch (error) {
    throw s3Error(error, address, bucket, key);
  }
}

/**
 * Whether the object has these bytes. Also false without permission to read it: writing then succeeds or fails with a
 * reason.
 */
async function isPublished(
  client: S3Client,
  bucket: string,
  key: string,
  file: StoredFile,
  abort: { abortSignal?: AbortSignal },
): Promise<boolean> {
  try {
    const head = await client.send(new HeadObjectCommand({ Bucket: bucket, Key: key }), abort);
    return head.ContentLength === file.bytes && head.Metadata?.[DIGEST_METADATA] === file.sha256;
  } catch (error) {
    const status = httpStatus(error);
    if (status === 404 || status === 403 || status === 400) return false;
    throw error;
  }
}
