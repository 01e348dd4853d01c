/** Files that never exist half-written: written under another name in the same folder, flushed, then renamed. */
import { randomUUID } from 'node:crypto';
import { chmod, type FileHandle, mkdir, open, readdir, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { ExitCode, FacetrainError, fileCause } from '@facetrain/api';

/** What a device or a file server answers while it fails, or is away: the same operation may succeed later. */
const TRANSIENT = ['EIO', 'ESTALE', 'ETIMEDOUT', 'EREMOTEIO', 'EHOSTDOWN', 'ENOTCONN', 'ECONNRESET', 'ESHUTDOWN'];

/**
 * The FacetrainError of a failed file operation; codes as in api/src/errors.ts. After a failure that may pass, the exit
 * code is 1: a gang starts again.
 */
export function storageError(path: string, error: unknown): unknown {
  if (error instanceof FacetrainError || !(error instanceof Error) || !('code' in error)) return error;
  if (error.name === 'AbortError') return error; // It has a code, too.
  const cause = error as NodeJS.ErrnoException;
  if (cause.code === 'ENOSPC' || cause.code === 'EDQUOT') {
    return new FacetrainError({
      code: 'DiskFull',
      subject: path,
      found: `no space left (${cause.code})`,
      allowed: 'free some space or write to another place',
      cause,
    });
  }
  const user = isRefusal(cause) ? ` by user ${process.geteuid?.()}, group ${process.getegid?.()}` : '';
  return new FacetrainError({
    code: 'StorageFailed',
    subject: path,
    found: fileCause(cause),
    allowed: `a place that can be read and written${user}`,
    ...(TRANSIENT.includes(cause.code ?? '') && { exitCode: ExitCode.failure }),
    cause,
  });
}

/** Whether a file operation failed for lack of permission, or on a read-only file system. */
export const isRefusal = (error: unknown): boolean =>
  error instanceof Error && ['EACCES', 'EPERM', 'EROFS'].includes((error as NodeJS.ErrnoException).code ?? '');

export interface FolderOptions {
  /** Gives the folder its parent's permissions, regardless of the umask: the same users may write to both. */
  asOpenAsParent?: boolean;
}

/** Each process that makes the same folders can take a parent away once: see makeOpen. */
const MOST_TRIES = 100;

/**
 * Makes a folder and its missing parents. Other processes may do the same at the same time. Node's own recursive
 * mkdir does not end when the system refuses with ENOENT, as it does below /proc.
 * @throws FacetrainError StorageFailed when a file has the name; the system's error for anything else
 */
export async function makeFolder(path: string, options: FolderOptions = {}): Promise<void> {
  for (let tries = 1; ; ++tries) {
    try {
      return await makeOne(path, options);
    } catch (error) {
      const parent = dirname(path);
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || parent === path || tries === MOST_TRIES) throw error;
      await makeFolder(parent, options);
    }
  }
}

async function makeOne(path: string, { asOpenAsParent = false }: FolderOptions): Promise<void> {
  if (asOpenAsParent) return makeOpen(path);
  try {
    await mkdir(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    if ((await stat(path)).isDirectory()) return;
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: path,
      found: 'is a file',
      allowed: 'a folder, or a name that is free',
      cause: error,
    });
  }
}

/**
 * The folder gets its name after its permissions. Otherwise another process could find it before that, and give what it
 * makes inside the wrong ones.
 */
async function makeOpen(path: string): Promise<void> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
  if (found?.isDirectory()) return;
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  await mkdir(temporary);
  try {
    // Some file systems have no permissions.
    await chmod(temporary, (await stat(dirname(path))).mode & 0o7777).catch(() => {});
    // Replaces an empty folder, which is one like this. What another process makes in that at the moment fails: ENOENT.
    await rename(temporary, path);
  } catch (error) {
    await rmdir(temporary).catch(() => {});
    if (!(await stat(path).catch(() => null))?.isDirectory()) throw error;
  }
}

/** Content of a file: bytes, text, or a function that writes them through the handle that it gets. */
export type Content = Uint8Array | string | ((file: FileHandle) => Promise<void>);

/**
 * Creates or replaces `path`, and makes its folder. When `write` throws, or this process dies, `path` stays as it was.
 * When this returns, the file survives a loss of power.
 * @throws FacetrainError DiskFull or StorageFailed
 */
export async function writeAtomically(path: string, write: Content): Promise<void> {
  // Processes of several pods may write to the folder, and the first process of every container has the number 1.
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  try {
    await makeFolder(dirname(path));
    await writeNew(temporary, write, path);
    await rename(temporary, path);
    await flushFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw storageError(path, error);
  }
}

/**
 * Removes what processes left that died while they wrote `path` atomically. To be called by the only process that
 * writes it.
 */
export async function removeTemporaries(path: string): Promise<void> {
  const names = await readdir(dirname(path)).catch(() => []);
  const left = names.filter((name) => name.startsWith(`.${basename(path)}.`) && name.endsWith('.tmp'));
  for (const name of left) await rm(join(dirname(path), name), { force: true });
}

/**
 * Creates a file in a folder that exists, and flushes it. It is removed again when `write` throws.
 * @param subject the path that an error names
 * @throws FacetrainError DiskFull or StorageFailed, also when the file exists
 */
export async function writeNew(path: string, write: Content, subject = path): Promise<void> {
  try {
    const file = await open(path, 'wx');
    try {
      if (typeof write === 'function') await write(file);
      else await file.writeFile(write);
      await file.sync();
    } catch (error) {
      await rm(path, { force: true }).catch(() => {});
      throw error;
    } finally {
      await file.close();
    }
  } catch (error) {
    throw storageError(subject, error);
  }
}

/** What file systems answer that cannot flush a folder, or that flush it by themselves. */
const NO_FLUSH = ['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EBADF', 'EISDIR'];

/**
 * Flushes the names in a folder: only then does a file that was created or renamed there survive a loss of power
 * (fsync(2)). A folder that may be written and not read is left to the file system.
 * @throws FacetrainError StorageFailed
 */
export async function flushFolder(path: string): Promise<void> {
  try {
    const folder = await open(path, 'r');
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? '';
    if (!NO_FLUSH.includes(code) && code !== 'EACCES') throw storageError(path, error);
  }
}
