/**
 * Locks of a run's folder, by flock(2): the kernel frees a lock when the last process that has its file open ends,
 * however it ends. So there is nothing to clean up after SIGKILL or a reboot, and no process id to be mistaken for
 * another's. The lock holds on every mount of the folder, also in another container, and over NFS.
 *
 * Node has no flock(2). The program flock (util-linux) locks the descriptor that it inherits; the lock belongs to the
 * open file and stays when that program ends.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readdirSync, readFileSync, readlinkSync, writeSync } from 'node:fs';
import { FacetrainError } from '@facetrain/api';
import { storageError } from '@facetrain/trainer/storage/atomic-files';

/** What flock(1) returns when another process has the lock: none of its own exit codes (sysexits.h: 64 to 78). */
const HELD = 200;

export class FileLock {
  /** The locked file. A child process that inherits this descriptor holds the lock, too. */
  readonly descriptor: number;

  private constructor(descriptor: number) {
    this.descriptor = descriptor;
  }

  /**
   * Creates the file if it is missing, and locks it.
   * @returns null when another process has the lock
   * @throws FacetrainError StorageFailed when the file cannot be opened, or the file system has no locks
   */
  static take(path: string): FileLock | null {
    let descriptor: number;
    try {
      descriptor = openSync(path, 'a');
    } catch (error) {
      throw storageError(path, error);
    }
    const args = ['--exclusive', '--nonblock', '--conflict-exit-code', String(HELD), '3'];
    const { status, error, stderr } = spawnSync('flock', args, {
      stdio: ['ignore', 'ignore', 'pipe', descriptor],
      encoding: 'utf8',
    });
    if (status === 0) return new FileLock(descriptor);
    closeSync(descriptor);
    if (status === HELD) return null;
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: path,
      found: `cannot be locked (${error?.message ?? stderr.trim()})`,
      allowed: 'a file system with locks, and the program flock of util-linux',
      cause: error,
    });
  }

  /** Names this process in the file, for `holderOf`. */
  sign(): void {
    ftruncateSync(this.descriptor);
    writeSync(this.descriptor, `${process.pid}\n`);
  }

  release(): void {
    closeSync(this.descriptor);
  }
}

/** The process that signed the lock. It may have another number here, if it runs in another container. */
export const holderOf = (path: string): string => readFileSync(path, 'utf8').trim() || 'unknown';

/** Processes of this machine that have the file open, so far as this user may see them. */
export function processesWithOpen(path: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readdirSync(`/proc/${pid}/fd`).some((fd) => readlinkOrNull(`/proc/${pid}/fd/${fd}`) === path);
      } catch {
        return false; // It has ended, or belongs to another user.
      }
    });
}

function readlinkOrNull(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch {
    return null;
  }
}
