/**
 * Fetches an object to a path that any number of processes, on any machines, may fetch to at the same time. One of them
 * downloads while the others wait, with a lock for each object (folder-lock.ts). So a process that wants a folder and
 * one that wants a single file of it use the same lock.
 *
 * The files are right even when two processes hold the lock:
 * - Each holder downloads to a partial file with a unique name. A holder that was frozen and counted as dead may
 *   continue to write, but only to that file. Another holder has copied and unlinked it by then, and never opens it
 *   again.
 * - A file gets its final name by a rename, after its digest was checked, with the time by which others recognize it.
 *   With several holders, one complete file replaces another with the same bytes.
 * - A machine that was lost may have left gaps in what it had not flushed. A digest shows them, and the download starts
 *   again. Where the server has no digest, the part that may have gaps is not used.
 */
import { randomUUID } from 'node:crypto';
import { constants, copyFile, readdir, rm, truncate } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { HeadObjectCommandOutput } from '@aws-sdk/client-s3';
import { FacetrainError } from '@facetrain/api';
import { isRefusal, makeFolder } from './atomic-files.ts';
import { type LockOptions, withLock } from './folder-lock.ts';
import {
  type Bucket,
  type Download,
  FLUSH_BYTES,
  finishDownload,
  serverDigest,
  sizeOf,
  withDiskErrors,
} from './s3-download.ts';

/**
 * Bytes at the end of a lost machine's partial file that may have gaps: those not flushed and those just received.
 */
const MAY_HAVE_GAPS_BYTES = 2 * FLUSH_BYTES;
/** What follows the target's name in the name of a shared download's partial file: version and holder. */
const PARTIAL = /^\.[0-9a-f]{16}\.[0-9a-f-]{36}\.partial$/;

/**
 * @param isComplete whether the target is complete
 * @returns false when another process has fetched it
 * @throws FacetrainError StorageFailed or DiskFull
 */
export async function fetchShared(
  bucket: Bucket,
  download: Download,
  isComplete: () => Promise<boolean>,
  lock: LockOptions,
): Promise<boolean> {
  const { to, stem, head } = download;
  const fetchIfMissing = async (signal: AbortSignal): Promise<boolean> => {
    const partials = await partialsOf(to);
    const missing = !(await isComplete());
    const partial = `${stem}${randomUUID()}.partial`;
    if (missing) {
      const sameVersion = partials.filter((path) => path.startsWith(stem));
      await copyLongest(sameVersion, partial, head);
    }
    await withDiskErrors(to, () => Promise.all(partials.map((path) => rm(path, { force: true }))));
    if (missing) await finishDownload({ ...bucket, signal }, download, partial);
    return missing;
  };
  try {
    await withDiskErrors(to, () => makeFolder(dirname(to), { asOpenAsParent: true }));
    return await withLock(join(dirname(to), `.${basename(to)}.lock`), fetchIfMissing, {
      ...lock,
      signal: bucket.signal,
    });
  } catch (error) {
    throw cacheError(error);
  }
}

/** The partial files of shared downloads to a path, of any version. */
async function partialsOf(to: string): Promise<string[]> {
  const directory = dirname(to);
  const prefix = `.${basename(to)}`;
  const isPartial = (name: string) => name.startsWith(`${prefix}.`) && PARTIAL.test(name.slice(prefix.length));
  return withDiskErrors(directory, async () =>
    (await readdir(directory)).filter(isPartial).map((name) => join(directory, name)),
  );
}

/** Starts a partial file as a copy of the longest one that other processes left. */
async function copyLongest(partials: string[], partial: string, head: HeadObjectCommandOutput): Promise<void> {
  const sizes = await Promise.all(partials.map(async (path) => ({ path, size: await sizeOf(path) })));
  const [longest] = sizes.sort((a, b) => b.size - a.size);
  if (!longest) return;
  try {
    await copyFile(longest.path, partial, constants.COPYFILE_FICLONE);
    if (!serverDigest(head)) await truncate(partial, Math.max(0, (await sizeOf(partial)) - MAY_HAVE_GAPS_BYTES));
  } catch {
    // The disk has no space for a copy, or the file's owner is alive and has renamed it. The download starts at byte 0.
    await rm(partial, { force: true });
  }
}

/**
 * Adds advice to an error of permissions: the folder of a node's path, or of a volume without fsGroup, belongs to root
 * until an administrator changes that. A pod cannot.
 */
function cacheError(error: unknown): unknown {
  if (!(error instanceof FacetrainError) || !isRefusal(error.cause)) return error;
  const { code, subject, found, cause } = error;
  const whose = `a cache that user ${process.geteuid?.()}, group ${process.getegid?.()} may write`;
  return new FacetrainError({
    code,
    subject,
    found,
    allowed:
      `${whose}: let an administrator give them its folder (chown), ` +
      "or choose a claim that takes the pod's fsGroup",
    cause,
  });
}
