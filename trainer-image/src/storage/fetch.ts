/**
 * Copies a file or a folder from file:// or s3:// to a path of this machine: `facetrain-trainer fetch`.
 *
 * A target with the source's size and time is up to date and is not fetched again; a copy gets its source's time. (This
 * is rsync's rule.) One process at a time may fetch to a path, unless the request is shared (shared-fetch.ts).
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, stat, utimes } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { HeadObjectCommand, type HeadObjectCommandOutput, paginateListObjectsV2 } from '@aws-sdk/client-s3';
import { FacetrainError, parseStorageUri, type StorageAddress, s3Uri } from '@facetrain/api';
import { makeFolder, removeTemporaries, writeAtomically } from './atomic-files.ts';
import type { LockOptions } from './folder-lock.ts';
import { headObject, httpStatus, s3Client, s3Error, withEtag } from './s3.ts';
import { type Bucket, type Download, finishDownload, sendOptions, withDiskErrors } from './s3-download.ts';
import { fetchShared } from './shared-fetch.ts';

export interface Fetched {
  /** The local file. */
  path: string;
  bytes: number;
  /** False when it was up to date. */
  written: boolean;
}

export interface FetchRequest extends StorageAddress {
  /** A file or object is copied to this path, a folder or prefix into it. */
  to: string;
  /** Other processes may fetch to the same path at the same time. */
  shared?: boolean;
}

/** Objects of a prefix that are fetched at the same time. A small one takes round trips, whatever its size. */
const CONCURRENT_OBJECTS = 16;
/**
 * Objects of a prefix at most. An image folder of so many takes minutes to fetch, with 16 at a time; one of millions
 * would take hours in every pod.
 */
export const MAX_OBJECTS = 100_000;

interface FetchOptions extends Omit<LockOptions, 'signal'> {
  /** Called when the store has answered for the first time, in whatever way. */
  onAnswer?: () => void;
}

/** How a shared fetch locks; null when no other process fetches to the same path. */
type Sharing = Omit<LockOptions, 'signal'> | null;

/** @throws FacetrainError InvalidArgument, StorageFailed or DiskFull */
export async function fetchTo(
  request: FetchRequest,
  signal?: AbortSignal,
  { onAnswer = () => {}, ...lock }: FetchOptions = {},
): Promise<Fetched[]> {
  const location = parseStorageUri(request.uri);
  if (location.scheme === 'file' && !request.shared) return fetchPath(location.path, request.to, signal);
  if (location.scheme !== 's3') {
    const found =
      location.scheme === 'file'
        ? 'file:// is fetched for one process alone'
        : `${location.scheme}:// is a volume of a pod`;
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: request.uri,
      found,
      allowed: request.shared ? 's3://' : 'file:// or s3://',
    });
  }
  const client = s3Client(request);
  const { bucket: name, key } = location;
  const bucket: Bucket = { client, address: request, name, signal };
  const sharing = request.shared ? lock : null;
  try {
    const isFolder = key === '' || key.endsWith('/');
    const head = isFolder ? null : await findObject(bucket, key);
    if (head) {
      onAnswer();
      return [await fetchObject(bucket, { key, to: request.to, head }, sharing)];
    }
    const prefix = isFolder ? key : `${key}/`;
    const objects = await listObjects(bucket, prefix);
    onAnswer();
    return await fetchPrefix(bucket, prefix, objects, request.to, sharing);
  } catch (error) {
    throw s3Error(error, request, name, key);
  } finally {
    client.destroy();
  }
}

/**
 * Null when there is no such object. The answer to a HEAD has no body, so a refusal has no reason. It counts as null,
 * too: the listing that follows is refused with a reason.
 */
async function findObject(bucket: Bucket, key: string): Promise<HeadObjectCommandOutput | null> {
  try {
    const head = new HeadObjectCommand({ Bucket: bucket.name, Key: key, ChecksumMode: 'ENABLED' });
    return withEtag(await bucket.client.send(head, sendOptions(bucket)));
  } catch (error) {
    const status = httpStatus(error);
    if (status === 404 || status === 403 || status === 400) return null;
    throw error;
  }
}

async function fetchPrefix(
  bucket: Bucket,
  prefix: string,
  objects: Listed[],
  to: string,
  sharing: Sharing,
): Promise<Fetched[]> {
  if (objects.length === 0) {
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: `${s3Uri(bucket.name, prefix.replace(/\/$/, ''))} at ${bucket.address.endpoint ?? 'AWS'}`,
      found: 'neither an object nor a prefix of any',
      allowed: 'the key of an object, or a prefix that objects have',
    });
  }
  const fetched = new Array<Fetched>(objects.length);
  const rest = objects.entries();
  const failed = new AbortController();
  const running: Bucket = {
    ...bucket,
    signal: bucket.signal ? AbortSignal.any([bucket.signal, failed.signal]) : failed.signal,
  };
  const errors: unknown[] = [];
  const work = async () => {
    try {
      for (const [index, object] of rest) {
        if (errors.length > 0) return;
        fetched[index] = await fetchListed(running, prefix, object, to, sharing);
      }
    } catch (error) {
      errors.push(error); // after the first, those of the aborts
      failed.abort();
    }
  };
  await Promise.all(Array.from({ length: CONCURRENT_OBJECTS }, work));
  if (errors.length > 0) throw errors[0];
  return fetched;
}

/** What a listing says of an object. */
interface Listed {
  key: string;
  bytes: number | undefined;
  time: Date | undefined;
}

async function fetchListed(
  bucket: Bucket,
  prefix: string,
  { key, bytes, time }: Listed,
  to: string,
  sharing: Sharing,
): Promise<Fetched> {
  const path = join(to, key.slice(prefix.length));
  // The bucket's writers choose the keys. A key must not lead out of the folder.
  if (relative(to, path).startsWith('..')) {
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: s3Uri(bucket.name, key),
      found: 'a key that leads out of the folder',
      allowed: 'keys without ".."',
    });
  }
  if (bytes !== undefined && time && (await isUpToDate(path, bytes, time))) return { path, bytes, written: false };
  const input = { Bucket: bucket.name, Key: key, ChecksumMode: 'ENABLED' } as const;
  const head = await headObject(bucket.client, input, sendOptions(bucket));
  return fetchObject(bucket, { key, to: path, head }, sharing);
}

async function listObjects(bucket: Bucket, prefix: string): Promise<Listed[]> {
  const objects: Listed[] = [];
  for await (const page of paginateListObjectsV2({ client: bucket.client }, { Bucket: bucket.name, Prefix: prefix })) {
    for (const { Key: key, Size: bytes, LastModified: time } of page.Contents ?? []) {
      // Keys that end in "/" stand for folders.
      if (key && !key.endsWith('/')) objects.push({ key, bytes, time });
    }
    bucket.signal?.throwIfAborted();
    if (objects.length > MAX_OBJECTS) {
      throw new FacetrainError({
        code: 'StorageFailed',
        subject: s3Uri(bucket.name, prefix.replace(/\/$/, '')),
        found: `more than ${MAX_OBJECTS} objects`,
        allowed: `at most ${MAX_OBJECTS}: pack the pictures into tar files (facetrain dataset split --holdout 0)`,
      });
    }
  }
  return objects;
}

async function fetchObject(
  bucket: Bucket,
  { key, to, head }: Pick<Download, 'key' | 'to' | 'head'>,
  sharing: Sharing,
): Promise<Fetched> {
  const bytes = head.ContentLength ?? 0;
  const time = head.LastModified ?? new Date(0);
  const version = createHash('sha256')
    .update(`${bucket.name}/${key}/${head.ETag ?? ''}/${bytes}`)
    .digest('hex')
    .slice(0, 16);
  const stem = join(dirname(to), `.${basename(to)}.${version}.`);
  const download: Download = { key, to, head, bytes, time, stem };
  const isComplete = () => isUpToDate(to, bytes, time);
  if (await isComplete()) return { path: to, bytes, written: false };
  if (sharing) return { path: to, bytes, written: await fetchShared(bucket, download, isComplete, sharing) };
  await withDiskErrors(to, () => makeFolder(dirname(to)));
  await finishDownload(bucket, download, `${stem}partial`);
  return { path: to, bytes, written: true };
}

async function isUpToDate(path: string, bytes: number, time: Date): Promise<boolean> {
  const target = await stat(path).catch(() => null);
  if (!target?.isFile() || target.size !== bytes) return false;
  // Servers report whole seconds.
  return Math.floor(target.mtimeMs / 1000) === Math.floor(time.getTime() / 1000);
}

async function fetchPath(from: string, to: string, signal: AbortSignal | undefined): Promise<Fetched[]> {
  const source = await withDiskErrors(from, () => stat(from));
  if (!source.isDirectory()) return [await copy(from, to, signal)];
  const fetched: Fetched[] = [];
  for (const entry of await withDiskErrors(from, () => readdir(from, { recursive: true, withFileTypes: true }))) {
    if (entry.isDirectory()) continue;
    const path = join(entry.parentPath, entry.name);
    fetched.push(await copy(path, join(to, relative(from, path)), signal));
  }
  return fetched;
}

async function copy(from: string, to: string, signal: AbortSignal | undefined): Promise<Fetched> {
  const { size, mtime } = await withDiskErrors(from, () => stat(from));
  if (await isUpToDate(to, size, mtime)) return { path: to, bytes: size, written: false };
  // One process alone fetches to this path.
  await withDiskErrors(to, () => removeTemporaries(to));
  await writeAtomically(to, async (target) => {
    for await (const chunk of createReadStream(from, signal ? { signal } : {}))
      await target.writeFile(chunk as Uint8Array);
  });
  await utimes(to, mtime, mtime);
  return { path: to, bytes: size, written: true };
}
