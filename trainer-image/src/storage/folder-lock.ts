/**
 * One process at a time, of however many machines that share a folder.
 *
 * A lock is a file beside what it is for, made by whoever creates it first (O_EXCL, which network file systems keep too, as many do not keep flock). Its
 * holder writes it anew every few seconds, through the handle that it was made with, so that it never touches another's. One that stays the same for as
 * many looks as take half a minute belongs to the dead. No times are compared, as proper-lockfile does: clocks of machines differ, attributes are cached where
 * opening a file is not, and who waits may have been frozen itself, with the holder on the same machine.
 *
 * Any waiter may remove a dead one's lock, but one alone: who first creates a file named after that lock's token. It then looks again whether the lock is still
 * that one; nobody else can have replaced it, since its owner, too, removes it by this rule. (In proper-lockfile two can: its issue 121.) If that waiter dies at
 * it, the next goes by another name, so that nothing of the dead has to be removed before the lock is.
 *
 * A holder may only have been frozen. At its next beat it finds its lock gone, stops, and waits like the others. Until then it works beside another, so a lock
 * saves work, and what it is for has to be right without it.
 */
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, readFile, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { storageError } from './atomic-files.ts';

export interface LockOptions {
  signal?: AbortSignal | undefined;
  /** Told who holds it, whenever there is somebody else to wait for. */
  onWait?: ((holder: string) => void) | undefined;
  /** Milliseconds between two writes of the holder. */
  beat?: number | undefined;
  /** Milliseconds of looking without one after which a holder counts as dead. */
  stale?: number | undefined;
}

const POLL_MILLISECONDS = 1_000;
/** Far more than a lock is without a token after it was created. */
const WRITING_MILLISECONDS = 1_000;

/**
 * @param work is told by its signal when to stop, and done again from its start when it failed after another process had taken the lock over
 * @throws what `work` throws, an AbortError, or FacetrainError StorageFailed or DiskFull where no lock can be made
 */
export async function withLock<T>(
  path: string,
  work: (signal: AbortSignal) => Promise<T>,
  options: LockOptions = {},
): Promise<T> {
  const { signal, onWait, beat = 5_000, stale = 30_000 } = options;
  const poll = Math.min(POLL_MILLISECONDS, beat);
  for (;;) {
    const lock = await acquire(path, { signal, onWait, poll, stale });
    const lost = new AbortController();
    let beating = Promise.resolve();
    const heart = setInterval(() => {
      beating = beating.then(async () => ((await lock.isOurs()) ? lock.beat() : lost.abort())).catch(() => {}); // the next one may succeed
    }, beat);
    try {
      return await work(AbortSignal.any(signal ? [signal, lost.signal] : [lost.signal]));
    } catch (error) {
      if (signal?.aborted || (await lock.isOurs().catch(() => true))) throw error;
    } finally {
      clearInterval(heart);
      await beating;
      await lock.release();
    }
  }
}

/** A lock that this process has made. */
class Lock {
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #token: string;
  #beats = 0;

  private constructor(path: string, file: FileHandle, token: string) {
    this.#path = path;
    this.#file = file;
    this.#token = token;
  }

  /** Null where there is one already. */
  static async create(path: string): Promise<Lock | null> {
    const file = await createFile(path);
    if (!file) return null;
    const lock = new Lock(path, file, randomUUID());
    try {
      await lock.beat();
      return lock;
    } catch (error) {
      await file.close();
      await rm(path, { force: true });
      throw storageError(path, error);
    }
  }

  /** Never shorter than the last one, so that it covers it. */
  async beat(): Promise<void> {
    await this.#file.write(
      JSON.stringify({ holder: `${hostname()} (process ${process.pid})`, token: this.#token, beats: this.#beats++ }),
      0,
    );
    await this.#file.datasync();
  }

  async isOurs(): Promise<boolean> {
    return tokenIn(await contentOf(this.#path)) === this.#token;
  }

  /** One that cannot be removed counts as a dead one's before long. */
  async release(): Promise<void> {
    await this.#file.close().catch(() => {});
    await remove(this.#path, this.#token).catch(() => {});
  }
}

async function acquire(
  path: string,
  { signal, onWait, poll, stale }: Pick<LockOptions, 'signal' | 'onWait'> & { poll: number; stale: number },
): Promise<Lock> {
  const deadAfter = stale / poll;
  let seen: string | null = null;
  let looks = 0;
  let waitsFor: string | undefined;
  let round = 0;
  for (;;) {
    signal?.throwIfAborted();
    const lock = await Lock.create(path);
    if (lock) return lock;
    const there = await contentOf(path);
    if (there === null) continue; // gone by now
    const { holder, token = '' } = parsed(there);
    if (there !== seen) {
      seen = there;
      looks = 0;
      round = 0;
      if (holder !== undefined && token !== waitsFor) {
        onWait?.(holder);
        waitsFor = token;
      }
    } else if (++looks > deadAfter) {
      if (await remove(path, token, round)) continue;
      // Somebody else is about to, or has died at it, which another while will show.
      round++;
      looks = 0;
    }
    await delay(poll, undefined, signal ? { signal } : {});
  }
}

/**
 * Removes the lock with this token, if it is still there.
 * @param round how many have died at it
 * @returns false where another process has the right to
 */
async function remove(path: string, token: string, round = 0): Promise<boolean> {
  const rightOf = (each: number) => `${path}.${token}.${each}`;
  const right = await createFile(rightOf(round));
  if (!right) return false;
  try {
    await right.close();
    const isThere = async () => tokenIn(await contentOf(path)) === token;
    let dead = await isThere();
    if (dead && token === '') {
      // Or it is another's by now, and just being written.
      await delay(WRITING_MILLISECONDS);
      dead = await isThere();
    }
    if (dead) await rm(path, { force: true });
    return true;
  } catch (error) {
    throw storageError(path, error);
  } finally {
    await Promise.allSettled(Array.from({ length: round + 1 }, (_, each) => rm(rightOf(each), { force: true })));
  }
}

/** Null where there is one already. */
async function createFile(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, 'wx');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return null;
    throw storageError(path, error);
  }
}

/** Null where there is none. */
async function contentOf(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESTALE') return null;
    throw storageError(path, error);
  }
}

function parsed(content: string): { holder?: string; token?: string } {
  try {
    return JSON.parse(content) as { holder?: string; token?: string };
  } catch {
    return {}; // just being written, or its writer died at it
  }
}

/** Empty where a lock names none; undefined where there is none. */
const tokenIn = (content: string | null): string | undefined =>
  content === null ? undefined : (parsed(content).token ?? '');
