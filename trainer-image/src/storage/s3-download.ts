/**
 * Downloads one object of S3: to a partial file beside its target, which is checked against the server's digest and
 * then renamed. A download that was interrupted continues where it stopped, as long as the object is the same.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, rename, rm, stat, utimes } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { GetObjectCommand, type HeadObjectCommandOutput, type S3Client } from '@aws-sdk/client-s3';
import { FacetrainError, type StorageAddress, s3Uri } from '@facetrain/api';
import { storageError } from './atomic-files.ts';
import { ATTEMPTS, DIGEST_METADATA, httpStatus } from './s3.ts';

/**
 * A download is flushed after so many bytes. Then a machine that is lost leaves few gaps in its file, and the last
 * flush does not delay the lock's heartbeat.
 */
export const FLUSH_BYTES = 64 * 2 ** 20;

export interface Bucket {
  client: S3Client;
  address: StorageAddress;
  name: string;
  signal: AbortSignal | undefined;
}

/** An object, and the file that it becomes. */
export interface Download {
  key: string;
  to: string;
  head: HeadObjectCommandOutput;
  bytes: number;
  time: Date;
  /**
   * Prefix of its partial files' names. It contains the object's version, so no download continues another version's.
   */
  stem: string;
}

export function sendOptions({ signal }: Pick<Bucket, 'signal'>): { abortSignal?: AbortSignal } {
  return signal ? { abortSignal: signal } : {};
}

/**
 * Completes a partial file and renames it to its target. A continued file whose digest is wrong is downloaded once
 * more, from its start.
 * @throws FacetrainError StorageFailed or DiskFull
 */
export async function finishDownload(bucket: Bucket, download: Download, partial: string): Promise<void> {
  const { key, to, head, bytes, time } = download;
  for (let continued = (await sizeOf(partial)) > 0; ; continued = false) {
    await appendAll(bucket, key, head, partial, bytes);
    const wrong = await mismatch(partial, head, bytes, s3Uri(bucket.name, key));
    if (!wrong) break;
    await rm(partial, { force: true });
    if (!continued) throw wrong;
  }
  await withDiskErrors(to, async () => {
    await utimes(partial, time, time);
    await rename(partial, to);
  });
}

/** A digest of the whole object that the server has; null when it has none. */
export function serverDigest(head: HeadObjectCommandOutput): { algorithm: 'sha256' | 'md5'; hex: string } | null {
  const ours = head.Metadata?.[DIGEST_METADATA];
  if (ours) return { algorithm: 'sha256', hex: ours };
  // The checksum of an upload in parts is a digest of digests, and ends in "-PARTS".
  if (head.ChecksumSHA256 && !head.ChecksumSHA256.includes('-'))
    return { algorithm: 'sha256', hex: Buffer.from(head.ChecksumSHA256, 'base64').toString('hex') };
  // An ETag is the MD5 of the object, unless that was uploaded in parts or is encrypted with a key of KMS or the
  // client.
  const tag = /^"([0-9a-f]{32})"$/.exec(head.ETag ?? '');
  return tag && !head.ServerSideEncryption?.startsWith('aws:kms') && !head.SSECustomerAlgorithm
    ? { algorithm: 'md5', hex: tag[1]! }
    : null;
}

/** Compares a complete file with the size and the digest of the object. */
async function mismatch(
  partial: string,
  head: HeadObjectCommandOutput,
  bytes: number,
  subject: string,
): Promise<FacetrainError | null> {
  const digest = serverDigest(head);
  const hash = createHash(digest?.algorithm ?? 'sha256');
  let length = 0;
  await withDiskErrors(partial, async () => {
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

/**
 * Appends to the partial file until it is complete. After a broken connection it continues where the file ends, and
 * gives up after ATTEMPTS requests in a row without a byte.
 */
async function appendAll(
  bucket: Bucket,
  key: string,
  head: HeadObjectCommandOutput,
  partial: string,
  bytes: number,
): Promise<void> {
  await withDiskErrors(partial, async () => (await open(partial, 'a')).close());
  for (let failures = 0; ; ) {
    const start = await sizeOf(partial);
    if (start >= bytes) return;
    let failure: unknown = new Error('the answer ended early');
    try {
      await append(bucket, key, head, partial, start);
    } catch (error) {
      if (error instanceof FacetrainError || bucket.signal?.aborted || (httpStatus(error) ?? 500) < 500) throw error;
      failure = error;
    }
    failures = (await sizeOf(partial)) > start ? 0 : failures + 1;
    if (failures >= ATTEMPTS) throw failure;
    if (failures > 0) await delay(100 * 2 ** failures, undefined, bucket.signal ? { signal: bucket.signal } : {});
  }
}

/** One request for the bytes from `start` on. */
async function append(
  bucket: Bucket,
  key: string,
  head: HeadObjectCommandOutput,
  partial: string,
  start: number,
): Promise<void> {
  const range = start > 0 ? { Range: `bytes=${start}-` } : {};
  const answer = await bucket.client.send(
    new GetObjectCommand({ Bucket: bucket.name, Key: key, ...range, ...(head.ETag ? { IfMatch: head.ETag } : {}) }),
    sendOptions(bucket),
  );
  // A server without ranges sends the whole object.
  await using file = await withDiskErrors(partial, () => open(partial, answer.ContentRange ? 'a' : 'w'));
  try {
    let unflushed = 0;
    for await (const chunk of answer.Body as AsyncIterable<Uint8Array>) {
      await withDiskErrors(partial, () => file.writeFile(chunk));
      unflushed += chunk.byteLength;
      if (unflushed < FLUSH_BYTES) continue;
      await withDiskErrors(partial, () => file.datasync());
      unflushed = 0;
    }
  } finally {
    await withDiskErrors(partial, () => file.sync());
  }
}

/** The size in bytes; 0 when there is no such file. */
export const sizeOf = async (path: string): Promise<number> => (await stat(path).catch(() => null))?.size ?? 0;

/**
 * Turns the errors of a file operation into FacetrainErrors. When the disk is full, removes the file that filled it.
 */
export async function withDiskErrors<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const error = storageError(path, cause);
    if (error instanceof FacetrainError && error.code === 'DiskFull') await rm(path, { force: true });
    throw error;
  }
}
