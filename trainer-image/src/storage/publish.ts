/**
 * Publishes finished files to a folder or an object store.
 *
 * Content-addressed: what is there with the same digest is not written again, so publishing twice is publishing once. In the order given, so
 * that a manifest, named last, appears when all that it lists is there.
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
  /** False where the same bytes were there already. */
  written: boolean;
}

/**
 * Copies the files `names` of `folder` to `destination`, one after the other.
 * @throws FacetrainError StorageFailed or DiskFull; files before the one that failed are there
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
 * Finds out early what would make publishing fail: an endpoint that refuses, wrong credentials, a missing bucket. That something may be
 * written shows when it is.
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
    // Listing is not needed for publishing.
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
  const there = await stat(to).catch(() => null);
  if (there?.isFile() && there.size === file.bytes && (await digestFile(to, signal)).sha256 === file.sha256)
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
    if (await isThere(client, bucket, key, file, abort)) return { file, written: false };
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

/** Whether the object has these bytes already. An object that may not be looked at is written: that tells what is wrong, or nothing is. */
async function isThere(
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
