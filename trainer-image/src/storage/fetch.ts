/**
 * Brings a file or a folder from file:// or s3:// to a path of this machine: `facetrain-trainer fetch`.
 *
 * What is there with the same size and time is left alone (rsync's rule; a copy takes its source's time). A download goes to a hidden file
 * beside its target, is checked against the server's digest where it gives one, and renamed. An interrupted one goes on where it stopped, as
 * long as the object is the same. One process at a time may fetch to a path.
 *
 * Unless it is shared: then any number may, of any machines. What is there is there for all; for what is not, one of them downloads while the others wait
 * (`lock.ts`, a lock for each object, so that who wants a folder and who wants one file of it meet). That needs no trust in the lock:
 * - Each holder downloads to a file of a name of its own. One that was thought dead and wakes may go on writing, but only to that file, which another has copied
 *   and unlinked, and never opens again.
 * - A file gets its final name by a rename, after its digest was found right, with the time by which others know it. Whoever does so, and however often, there
 *   is one complete file or another under that name, of the same bytes.
 * - A machine that was lost may have left holes in what it had not flushed: a digest shows them, and the download begins anew; without a digest that part is not used.
 */
import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { constants, copyFile, open, readdir, rename, rm, stat, truncate, utimes } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  GetObjectCommand,
  HeadObjectCommand,
  type HeadObjectCommandOutput,
  paginateListObjectsV2,
  type S3Client,
} from '@aws-sdk/client-s3';
import { FacetrainError, parseStorageUri, type StorageAddress, s3Uri } from '@facetrain/api';
import { isRefusal, makeFolder, storageError, writeAtomically } from './atomic-files.ts';
import { type LockOptions, withLock } from './folder-lock.ts';
import { ATTEMPTS, DIGEST_METADATA, httpStatus, s3Client, s3Error } from './s3.ts';

/** After so many a download is flushed, so that a lost machine leaves few holes, and the last flush does not keep the lock's beats waiting. */
const FLUSH_BYTES = 64 * 2 ** 20;
/** As much of the end of a partial file, and a piece of the network's more, may not have been flushed when its machine was lost. */
const MAY_BE_HOLES_BYTES = 2 * FLUSH_BYTES;
/** What the names of partial files of shared downloads add to the target's. */
const PARTIAL = /^\.[0-9a-f]{16}\.[0-9a-f-]{36}\.partial$/;

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
export async function fetchTo(
  request: FetchRequest,
  signal?: AbortSignal,
  lock: Omit<LockOptions, 'signal'> = {},
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
  const { bucket, key } = location;
  const objects = { client, address: request, bucket, signal, lock: request.shared ? lock : null };
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
  /** Null where nobody else fetches to the same path. */
  lock: Omit<LockOptions, 'signal'> | null;
}

function sendOptions({ signal }: Objects): { abortSignal?: AbortSignal } {
  return signal ? { abortSignal: signal } : {};
}

/** Null where there is no such object. A refusal says nothing of its reason here, so the listing that follows is to give it. */
async function headObject(objects: Objects, key: string): Promise<HeadObjectCommandOutput | null> {
  try {
    return await objects.client.send(
      new HeadObjectCommand({ Bucket: objects.bucket, Key: key, ChecksumMode: 'ENABLED' }),
      sendOptions(objects),
    );
  } catch (error) {
    const status = httpStatus(error);
    if (status === 404 || status === 403 || status === 400) return null;
    throw error;
  }
}

async function fetchPrefix(objects: Objects, prefix: string, to: string): Promise<Fetched[]> {
  const keys: string[] = [];
  for await (const page of paginateListObjectsV2(
    { client: objects.client },
    { Bucket: objects.bucket, Prefix: prefix },
  )) {
    for (const { Key } of page.Contents ?? []) if (Key && !Key.endsWith('/')) keys.push(Key);
    objects.signal?.throwIfAborted();
  }
  if (keys.length === 0) {
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: `${s3Uri(objects.bucket, prefix.replace(/\/$/, ''))} at ${objects.address.endpoint ?? 'AWS'}`,
      found: 'neither an object nor a prefix of any',
      allowed: 'the key of an object, or a prefix that objects have',
    });
  }
  const fetched: Fetched[] = [];
  for (const key of keys) {
    const inside = key.slice(prefix.length);
    // Keys are anybody's: none may lead out of the folder.
    if (relative(to, join(to, inside)).startsWith('..')) {
      throw new FacetrainError({
        code: 'StorageFailed',
        subject: s3Uri(objects.bucket, key),
        found: 'a key that leads out of the folder',
        allowed: 'keys without ".."',
      });
    }
    const head = await objects.client.send(
      new HeadObjectCommand({ Bucket: objects.bucket, Key: key, ChecksumMode: 'ENABLED' }),
      sendOptions(objects),
    );
    fetched.push(await fetchObject(objects, { key, to: join(to, inside), head }));
  }
  return fetched;
}

/** A digest that the server gives of a whole object. */
function serverDigest(head: HeadObjectCommandOutput): { algorithm: 'sha256' | 'md5'; hex: string } | null {
  const ours = head.Metadata?.[DIGEST_METADATA];
  if (ours) return { algorithm: 'sha256', hex: ours };
  // That of an upload in parts is a digest of digests, and ends in "-PARTS".
  if (head.ChecksumSHA256 && !head.ChecksumSHA256.includes('-'))
    return { algorithm: 'sha256', hex: Buffer.from(head.ChecksumSHA256, 'base64').toString('hex') };
  const tag = /^"([0-9a-f]{32})"$/.exec(head.ETag ?? '');
  return tag && !head.ServerSideEncryption?.startsWith('aws:kms') && !head.SSECustomerAlgorithm
    ? { algorithm: 'md5', hex: tag[1]! }
    : null;
}

/** An object, and the file that it becomes. */
interface Target {
  key: string;
  to: string;
  head: HeadObjectCommandOutput;
  bytes: number;
  time: Date;
  /** How the names of its partial files begin: by its version, so that the rest of another one is never appended. */
  stem: string;
}

async function fetchObject(objects: Objects, { key, to, head }: Pick<Target, 'key' | 'to' | 'head'>): Promise<Fetched> {
  const bytes = head.ContentLength ?? 0;
  const version = createHash('sha256')
    .update(`${objects.bucket}/${key}/${head.ETag ?? ''}/${bytes}`)
    .digest('hex')
    .slice(0, 16);
  const target: Target = {
    key,
    to,
    head,
    bytes,
    time: head.LastModified ?? new Date(0),
    stem: join(dirname(to), `.${basename(to)}.${version}.`),
  };
  if (await isCopy(target)) return { path: to, bytes, written: false };
  if (objects.lock) return { path: to, bytes, written: await fetchShared(objects, target, objects.lock) };
  await onDisk(to, () => makeFolder(dirname(to)));
  await complete(objects, target, `${target.stem}partial`);
  return { path: to, bytes, written: true };
}

/** False where another process has fetched it meanwhile. */
async function fetchShared(objects: Objects, target: Target, lock: LockOptions): Promise<boolean> {
  const { to, stem, head } = target;
  const fetchWhatLacks = async (signal: AbortSignal): Promise<boolean> => {
    const left = await partialsOf(to);
    const isThere = await isCopy(target);
    const partial = `${stem}${randomUUID()}.partial`;
    if (!isThere)
      await continueFrom(
        left.filter((path) => path.startsWith(stem)),
        partial,
        head,
      );
    await onDisk(to, () => Promise.all(left.map((path) => rm(path, { force: true }))));
    if (!isThere) await complete({ ...objects, signal }, target, partial);
    return !isThere;
  };
  try {
    await onDisk(to, () => makeFolder(dirname(to), { asOpenAsParent: true }));
    return await withLock(join(dirname(to), `.${basename(to)}.lock`), fetchWhatLacks, {
      ...lock,
      signal: objects.signal,
    });
  } catch (error) {
    throw cacheError(error);
  }
}

/** Downloads what the partial file lacks, and gives it its name. What was continued and is wrong as a whole is downloaded from its start. */
async function complete(objects: Objects, { key, to, head, bytes, time }: Target, partial: string): Promise<void> {
  for (let continued = (await sizeOf(partial)) > 0; ; continued = false) {
    await download(objects, key, head, partial, bytes);
    const wrong = await mismatch(partial, head, bytes, s3Uri(objects.bucket, key));
    if (!wrong) break;
    await rm(partial, { force: true });
    if (!continued) throw wrong;
  }
  await onDisk(to, async () => {
    await utimes(partial, time, time);
    await rename(partial, to);
  });
}

/** The partial files of shared downloads to a path, of any version. */
async function partialsOf(to: string): Promise<string[]> {
  const directory = dirname(to);
  const isPartial = (name: string) =>
    name.startsWith(`.${basename(to)}.`) && PARTIAL.test(name.slice(`.${basename(to)}`.length));
  return onDisk(directory, async () =>
    (await readdir(directory)).filter(isPartial).map((name) => join(directory, name)),
  );
}

/** A new partial file with the most that others came to of this version. */
async function continueFrom(left: string[], partial: string, head: HeadObjectCommandOutput): Promise<void> {
  const sizes = await Promise.all(left.map(async (path) => ({ path, size: await sizeOf(path) })));
  const [longest] = sizes.sort((a, b) => b.size - a.size);
  if (!longest) return;
  try {
    await copyFile(longest.path, partial, constants.COPYFILE_FICLONE);
    if (!serverDigest(head)) await truncate(partial, Math.max(0, (await sizeOf(partial)) - MAY_BE_HOLES_BYTES));
  } catch {
    await rm(partial, { force: true }); // there is no room for two, or its owner lives and has completed it: from the start, then
  }
}

/** A folder of a node, and a volume without support of fsGroup, is root's until somebody changes that, which no pod may. */
function cacheError(error: unknown): unknown {
  if (!(error instanceof FacetrainError) || !isRefusal(error.cause)) return error;
  const { code, subject, found, cause } = error;
  const whose = `a cache that user ${process.geteuid?.()}, group ${process.getegid?.()} may write`;
  return new FacetrainError({
    code,
    subject,
    found,
    allowed: `${whose}: let an administrator give them its folder (chown), or choose a claim that takes the pod's fsGroup`,
    cause,
  });
}

/** Compares a finished download with what the server says of the object. */
async function mismatch(
  partial: string,
  head: HeadObjectCommandOutput,
  bytes: number,
  subject: string,
): Promise<FacetrainError | null> {
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
  if (length === bytes && (!digest || hex === digest.hex)) return null;
  const found =
    length === bytes ? `${digest?.algorithm} ${hex} after the download` : `${length} bytes after the download`;
  return new FacetrainError({
    code: 'StorageFailed',
    subject,
    found,
    allowed: `the ${length === bytes ? digest?.hex : bytes} that the server names; fetch it again`,
  });
}

/** Completes the partial file. A broken connection is taken up again where it broke, as long as one attempt in a few brings something. */
async function download(
  objects: Objects,
  key: string,
  head: HeadObjectCommandOutput,
  partial: string,
  bytes: number,
): Promise<void> {
  await onDisk(partial, async () => (await open(partial, 'a')).close());
  for (let fruitless = 0; ; ) {
    const start = await sizeOf(partial);
    if (start >= bytes) return;
    let failure: unknown = new Error('the answer ended early');
    try {
      await append(objects, key, head, partial, start);
    } catch (error) {
      if (error instanceof FacetrainError || objects.signal?.aborted || (httpStatus(error) ?? 500) < 500) throw error;
      failure = error;
    }
    fruitless = (await sizeOf(partial)) > start ? 0 : fruitless + 1;
    if (fruitless >= ATTEMPTS) throw failure;
    if (fruitless > 0) await delay(100 * 2 ** fruitless, undefined, objects.signal ? { signal: objects.signal } : {});
  }
}

async function append(
  objects: Objects,
  key: string,
  head: HeadObjectCommandOutput,
  partial: string,
  start: number,
): Promise<void> {
  const range = start > 0 ? { Range: `bytes=${start}-` } : {};
  const answer = await objects.client.send(
    new GetObjectCommand({ Bucket: objects.bucket, Key: key, ...range, ...(head.ETag ? { IfMatch: head.ETag } : {}) }),
    sendOptions(objects),
  );
  // A server that knows no ranges sends all of it.
  await using file = await onDisk(partial, () => open(partial, answer.ContentRange ? 'a' : 'w'));
  try {
    let unflushed = 0;
    for await (const chunk of answer.Body as AsyncIterable<Uint8Array>) {
      await onDisk(partial, () => file.writeFile(chunk));
      unflushed += chunk.byteLength;
      if (unflushed < FLUSH_BYTES) continue;
      await onDisk(partial, () => file.datasync());
      unflushed = 0;
    }
  } finally {
    await onDisk(partial, () => file.sync());
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

/** In bytes; 0 where there is no such file. */
const sizeOf = async (path: string): Promise<number> => (await stat(path).catch(() => null))?.size ?? 0;

async function isCopy({ to, bytes, time }: Pick<Target, 'to' | 'bytes' | 'time'>): Promise<boolean> {
  const there = await stat(to).catch(() => null);
  // Servers give whole seconds.
  return (
    there?.isFile() === true &&
    there.size === bytes &&
    Math.floor(there.mtimeMs / 1000) === Math.floor(time.getTime() / 1000)
  );
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
  if (await isCopy({ to, bytes: size, time: mtime })) return { path: to, bytes: size, written: false };
  await writeAtomically(to, async (target) => {
    for await (const chunk of createReadStream(from, signal ? { signal } : {}))
      await target.writeFile(chunk as Uint8Array);
  });
  await utimes(to, mtime, mtime);
  return { path: to, bytes: size, written: true };
}
