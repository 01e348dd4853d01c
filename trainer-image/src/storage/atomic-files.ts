/** Files that never exist half-written: written under another name in the same folder, flushed, then renamed. */
import { chmod, type FileHandle, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { FacetrainError } from '@facetrain/api';

/** The FacetrainError of a failed file operation; codes as in api/src/errors.ts. */
export function storageError(path: string, error: unknown): unknown {
  if (error instanceof FacetrainError || !(error instanceof Error) || !('code' in error)) return error;
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
    found: cause.message,
    allowed: `a place that can be read and written${user}`,
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

/**
 * Makes a folder and its missing parents. Other processes may do the same at the same time. Node's own recursive
 * mkdir does not end when the system refuses with ENOENT, as it does below /proc.
 */
export async function makeFolder(path: string, options: FolderOptions = {}): Promise<void> {
  try {
    await makeOne(path, options);
  } catch (error) {
    const parent = dirname(path);
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || parent === path) throw error;
    await makeFolder(parent, options);
    await makeOne(path, options);
  }
}

async function makeOne(path: string, { asOpenAsParent = false }: FolderOptions): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST' && (await stat(path)).isDirectory()) return;
    throw error;
  }
  // Some file systems have no permissions.
  if (asOpenAsParent) await chmod(path, (await stat(dirname(path))).mode & 0o7777).catch(() => {});
}

/**
 * Creates or replaces `path`, and makes its folder. `write` gets a handle to a temporary file. When it throws, or this
 * process dies, `path` stays as it was.
 * @throws FacetrainError DiskFull or StorageFailed
 */
export async function writeAtomically(
  path: string,
  write: Uint8Array | string | ((file: FileHandle) => Promise<void>),
): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  try {
    await makeFolder(dirname(path));
    const file = await open(temporary, 'w');
    try {
      if (typeof write === 'function') await write(file);
      else await file.writeFile(write);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw storageError(path, error);
  }
}
