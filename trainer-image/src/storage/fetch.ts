/**
 * Brings a file or a folder from file:// or s3:// to a path of this machine: `facetrain-trainer fetch`.
 *
 * What is there with the same size and time is left alone (rsync's rule; a copy takes its source's time). A download goes to a hidden file
 * beside its target, is checked against the server's digest where it gives one, and renamed. An interrupted one goes on where it stopped, as
 * long as the object is the same. One process at a time may fetch to a path.
 *
 * Unless it is shared: then any number may, of any machines, and one of them downloads while the others wait for it (`lock.ts`). Each writes a file of its own, so
 * that one that was thought dead and wakes cannot touch what another has checked; what the dead left is copied. A rename then puts in place what has the digest, whoever
 * does it, and however often.
 */
import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { constants, copyFile, open, readdir, rename, rm, stat, utimes } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { GetObjectCommand, HeadObjectCommand, type HeadObjectCommandOutput, paginateListObjectsV2, type S3Client } from '@aws-sdk/client-s3';
import { FacetrainError, parseStorageUri } from '@facetrain/api';
import { makeFolder, storageError, writeAtomically } from './atomic.ts';
import { withLock, type LockOptions } from './lock.ts';
import { ATTEMPTS, DIGEST_METADATA, httpStatus, s3Client, s3Error, type StorageAddress } from './s3.ts';

export interface Fetched {
  /** The local file. */
  path: string;
  bytes: number;
  /** False where it was there already. */
  written: boolean;
}

export interface FetchRequest extends StorageAddress {
  /** A file or object is copied to this path, a folder or prefix into it. */
  to: string;
  /** Others may fetch to the same path at the same time. */
  shared?: boolean;
}

/** @throws FacetrainError StorageFailed or DiskFull */
export async function fetchTo(request: FetchRequest, signal?: AbortSignal, lock: Omit<LockOptions, 'signal'> = {}): Promise<Fetched[]> {
  if (!request.shared) return fetchAlone(request, signal);
  const file = join(dirname(request.to), `.${basename(request.to)}.lock`);
  await onDisk(file, () => makeFolder(dirname(file)));
  return withLock(file, () => fetchAlone(request, signal), { ...lock, signal });
}

async function fetchAlone(request: FetchRequest, signal: AbortSignal | undefined): Promise<Fetched[]> {
  const location = parseStorageUri(request.uri);
  if (location.scheme === 'file') return fetchPath(location.path, request.to, signal);
  if (location.scheme !== 's3') {
    throw new FacetrainError({ code: 'InvalidArgument', subject: request.uri, found: `${location.scheme}:// is a volume of a pod`, allowed: 'file:// or s3://' });
  }
  const client = s3Client(request);
  const { bucket, key } = location;
  const objects = { client, address: request, bucket, signal, shared: request.shared ?? false };
  try {
    const head = key === '' || key.endsWith('/') ? null : await headObject(objects, key);
    if (head) return [await fetchObject(objects, { key, to: request.to, head })];
    return await fetchPrefix(objects, key === '' || key.endsWith('/') ? key : `${key}/`, request.to);
  } catch (error) {
    throw s3Error(error, request, bucket, key);
  } finally {
    client.destroy();
  }
}

interface Objects {
  client: S3Client;
  address: StorageAddress;
  bucket: string;
  signal: AbortSignal | undefined;
  shared: boolean;
}

function sendOptions({ signal }: Objects): { abortSignal?: AbortSignal } {
  return signal ? { abortSignal: signal } : {};
}

/** Null where there is no such object. A refusal says nothing of its reason here, so the listing that follows is to give it. */
async function headObject(objects: Objects, key: string): Promise<HeadObjectCommandOutput | null> {
  try {
    return await objects.client.send(new HeadObjectCommand({ Bucket: objects.bucket, Key: key, ChecksumMode: 'ENABLED' }), sendOptions(objects));
  } catch (error) {
    const status = httpStatus(error);
    if (status === 404 || status === 403 || status === 400) return null;
    throw error;
  }
}

async function fetchPrefix(objects: Objects, prefix: string, to: string): Promise<Fetched[]> {
  const keys: string[] = [];
  for await (const page of paginateListObjectsV2({ client: objects.client }, { Bucket: objects.bucket, Prefix: prefix })) {
    for (const { Key } of page.Contents ?? []) if (Key && !Key.endsWith('/')) keys.push(Key);
    objects.signal?.throwIfAborted();
  }
  if (keys.length === 0) {
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: `s3://${objects.bucket}/${prefix.replace(/\/$/, '')} at ${objects.address.endpoint ?? 'AWS'}`,
      found: 'neither an object nor a prefix of any',
      allowed: 'the key of an object, or a prefix that objects have',
    });
  }
  const fetched: Fetched[] = [];
  for (const key of keys) {
    const inside = key.slice(prefix.length);
    // Keys are anybody's: none may lead out of the folder.
    if (relative(to, join(to, inside)).startsWith('..')) {
      throw new FacetrainError({ code: 'StorageFailed', subject: `s3://${objects.bucket}/${key}`, found: 'a key that leads out of the folder', allowed: 'keys without ".."' });
    }
    const head = await objects.client.send(new HeadObjectCommand({ Bucket: objects.bucket, Key: key, ChecksumMode: 'ENABLED' }), sendOptions(objects));
    fetched.push(await fetchObject(objects, { key, to: join(to, inside), head }));
  }
  return fetched;
}

/** A digest that the server gives of a whole object. */
function serverDigest(head: HeadObjectCommandOutput): { algorithm: 'sha256' | 'md5'; hex: string } | null {
  const ours = head.Metadata?.[DIGEST_METADATA];
  if (ours) return { algorithm: 'sha256', hex: ours };
  // That of an upload in parts is a digest of digests, and ends in "-PARTS".
  if (head.ChecksumSHA256 && !head.ChecksumSHA256.includes('-')) return { algorithm: 'sha256', hex: Buffer.from(head.ChecksumSHA256, 'base64').toString('hex') };
  const tag = /^"([0-9a-f]{32})"$/.exec(head.ETag ?? '');
  return tag && !head.ServerSideEncryption?.startsWith('aws:kms') && !head.SSECustomerAlgorithm ? { algorithm: 'md5', hex: tag[1]! } : null;
}

async function fetchObject(objects: Objects, { key, to, head }: { key: string; to: string; head: HeadObjectCommandOutput }): Promise<Fetched> {
  const bytes = head.ContentLength ?? 0;
  const time = head.LastModified ?? new Date(0);
  if (await isCopy(to, bytes, time)) return { path: to, bytes, written: false };
  // Named by the object's version: the rest of another one is never appended.
  const version = createHash('sha256').update(`${objects.bucket}/${key}/${head.ETag ?? ''}/${bytes}`).digest('hex').slice(0, 16);
  const stem = `.${basename(to)}.${version}.`;
  await onDisk(to, () => makeFolder(dirname(to)));
  const partial = objects.shared ? await inherit(dirname(to), stem) : join(dirname(to), `${stem}partial`);
  try {
    await download(objects, key, head, partial, bytes);
    await check(partial, head, bytes, `s3://${objects.bucket}/${key}`);
    await onDisk(to, async () => {
      await utimes(partial, time, time);
      await rename(partial, to);
      if (objects.shared) for (const left of await partials(dirname(to), stem)) await rm(left, { force: true });
    });
  } catch (error) {
    // Somebody thought us dead, did it all, and cleaned up.
    if (objects.shared && (await isCopy(to, bytes, time))) return { path: to, bytes, written: false };
    throw error;
  }
  return { path: to, bytes, written: true };
}

/** A partial file of our own, with as much in it as another process came to. */
async function inherit(directory: string, stem: string): Promise<string> {
  const own = join(directory, `${stem}${randomUUID()}.partial`);
  return onDisk(own, async () => {
    const left = await Promise.all((await partials(directory, stem)).map(async (path) => ({ path, size: (await stat(path)).size })));
    const [longest] = left.sort((a, b) => b.size - a.size);
    if (longest) await copyFile(longest.path, own, constants.COPYFILE_FICLONE);
    return own;
  });
}

async function partials(directory: string, stem: string): Promise<string[]> {
  const names = await readdir(directory);
  return names.filter((name) => name.startsWith(stem) && name.endsWith('.partial')).map((name) => join(directory, name));
}

/** Compares a finished download with what the server says of the object; a wrong one is removed. */
async function check(partial: string, head: HeadObjectCommandOutput, bytes: number, subject: string): Promise<void> {
  const digest = serverDigest(head);
  const hash = createHash(digest?.algorithm ?? 'sha256');
  let length = 0;
  await onDisk(partial, async () => {
    for await (const chunk of createReadStream(partial, { highWaterMark: 1 << 20 })) {
      hash.update(chunk as Uint8Array);
      length += (chunk as Uint8Array).byteLength;
    }
  });
  const hex = hash.digest('hex');
  if (length === bytes && (!digest || hex === digest.hex)) return;
  await rm(partial, { force: true });
  const found = length === bytes ? `${digest?.algorithm} ${hex} after the download` : `${length} bytes after the download`;
  throw new FacetrainError({ code: 'StorageFailed', subject, found, allowed: `the ${length === bytes ? digest?.hex : bytes} that the server names; fetch it again` });
}

/** Completes the partial file. A broken connection is taken up again where it broke, as long as one attempt in a few brings something. */
async function download(objects: Objects, key: string, head: HeadObjectCommandOutput, partial: string, bytes: number): Promise<void> {
  await onDisk(partial, async () => (await open(partial, 'a')).close());
  for (let fruitless = 0; ; ) {
    const start = (await stat(partial)).size;
    if (start >= bytes) return;
    let failure: unknown = new Error('the answer ended early');
    try {
      await append(objects, key, head, partial, start);
    } catch (error) {
      if (error instanceof FacetrainError || objects.signal?.aborted || (httpStatus(error) ?? 500) < 500) throw error;
      failure = error;
    }
    fruitless = (await stat(partial)).size > start ? 0 : fruitless + 1;
    if (fruitless >= ATTEMPTS) throw failure;
    if (fruitless > 0) await delay(100 * 2 ** fruitless, undefined, objects.signal ? { signal: objects.signal } : {});
  }
}

async function append(objects: Objects, key: string, head: HeadObjectCommandOutput, partial: string, start: number): Promise<void> {
  const range = start > 0 ? { Range: `bytes=${start}-` } : {};
  const answer = await objects.client.send(new GetObjectCommand({ Bucket: objects.bucket, Key: key, ...range, ...(head.ETag ? { IfMatch: head.ETag } : {}) }), sendOptions(objects));
  // A server that knows no ranges sends all of it.
  const file = await onDisk(partial, () => open(partial, answer.ContentRange ? 'a' : 'w'));
  try {
    for await (const chunk of answer.Body as AsyncIterable<Uint8Array>) await onDisk(partial, () => file.writeFile(chunk));
    await onDisk(partial, () => file.sync());
  } finally {
    await file.close();
  }
}

/** A full disk keeps nothing of what filled it. */
async function onDisk<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const error = storageError(path, cause);
    if (error instanceof FacetrainError && error.code === 'DiskFull') await rm(path, { force: true });
    throw error;
  }
}

async function isCopy(path: string, bytes: number, time: Date): Promise<boolean> {
  const there = await stat(path).catch(() => null);
  // Servers give whole seconds.
  return there !== null && there.isFile() && there.size === bytes && Math.floor(there.mtimeMs / 1000) === Math.floor(time.getTime() / 1000);
}

async function fetchPath(from: string, to: string, signal: AbortSignal | undefined): Promise<Fetched[]> {
  const source = await onDisk(from, () => stat(from));
  if (!source.isDirectory()) return [await copy(from, to, signal)];
  const fetched: Fetched[] = [];
  for (const entry of await onDisk(from, () => readdir(from, { recursive: true, withFileTypes: true }))) {
    if (entry.isDirectory()) continue;
    const path = join(entry.parentPath, entry.name);
    fetched.push(await copy(path, join(to, relative(from, path)), signal));
  }
  return fetched;
}

async function copy(from: string, to: string, signal: AbortSignal | undefined): Promise<Fetched> {
  const { size, mtime } = await onDisk(from, () => stat(from));
  if (await isCopy(to, size, mtime)) return { path: to, bytes: size, written: false };
  await writeAtomically(to, async (target) => {
    for await (const chunk of createReadStream(from, signal ? { signal } : {})) await target.writeFile(chunk as Uint8Array);
  });
  await utimes(to, mtime, mtime);
  return { path: to, bytes: size, written: true };
}
