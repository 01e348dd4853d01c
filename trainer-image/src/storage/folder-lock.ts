/**
 * A lock in a folder that several machines share: one process at a time has it.
 *
 * The lock is a file. The process that creates it (O_EXCL, which network file systems support, while many of them do
 * not support flock) is its holder, and writes it anew every few seconds. It writes through the handle from the
 * creation, so it cannot write to another holder's lock. If polling for half a minute finds the same content, its
 * holder is dead. proper-lockfile compares times instead. That is not safe here: clocks of machines differ, network
 * file systems cache attributes (and not what open returns), and a waiter may itself have been frozen, with a holder on
 * the same machine.
 *
 * Any waiter may remove a dead holder's lock, but only one of them at a time: the one that creates the claim, a file
 * named after the lock's token. It then checks that the lock still has that token. No other process can have replaced
 * the lock meanwhile, since its holder, too, removes it only with the claim. (In proper-lockfile two waiters can: its
 * issue 121.) If that waiter dies with the claim, the next one uses a claim of another name. So nothing of a dead
 * process has to be removed before the lock is.
 *
 * A holder that counts as dead may only have been frozen. At its next heartbeat it finds that the lock is not its own,
 * stops, and waits like the others. Until then two processes work at once. So a lock saves work, and that work must be
 * right without it.
 */
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, readFile, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { storageError } from './atomic-files.ts';

export interface LockOptions {
  signal?: AbortSignal | undefined;
  /** Called with a description of the holder, once for each holder that is waited for. */
  onWait?: ((holder: string) => void) | undefined;
  /** Milliseconds between two heartbeats of the holder. */
  beat?: number | undefined;
  /** A holder counts as dead after this many milliseconds of polling without a heartbeat. */
  stale?: number | undefined;
}

const POLL_MILLISECONDS = 1_000;
/** Much longer than it takes to write the token into a lock that was created. */
const WRITING_MILLISECONDS = 1_000;

/**
 * Does `work` with the lock.
 * @param work stops when its signal is aborted. If it fails after another process has taken the lock, it is called
 * again, with the lock
 * @throws what `work` throws, an AbortError, or FacetrainError StorageFailed or DiskFull when no lock can be created
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
    let heartbeat = Promise.resolve();
    const timer = setInterval(() => {
      const next = async () => ((await lock.isOurs()) ? lock.beat() : lost.abort());
      // After a failure, the next heartbeat may succeed.
      heartbeat = heartbeat.then(next).catch(() => {});
    }, beat);
    try {
      return await work(AbortSignal.any(signal ? [signal, lost.signal] : [lost.signal]));
    } catch (error) {
      if (signal?.aborted || (await lock.isOurs().catch(() => true))) throw error;
    } finally {
      clearInterval(timer);
      await heartbeat;
      await lock.release();
    }
  }
}

/** A lock that this process has created. */
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

  /** Null when there is a lock already. */
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

  /** Rewrites the lock. The content never gets shorter, so it overwrites all of the last one. */
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

  /** A lock that cannot be removed will count as a dead holder's. */
  async release(): Promise<void> {
    await this.#file.close().catch(() => {});
    await remove(this.#path, this.#token).catch(() => {});
  }
}

async function acquire(
  path: string,
  { signal, onWait, poll, stale }: Pick<LockOptions, 'signal' | 'onWait'> & { poll: number; stale: number },
): Promise<Lock> {
  const pollsUntilDead = stale / poll;
  let lastContent: string | null = null;
  /** How many polls in a row found the same content. */
  let polls = 0;
  let reportedToken: string | undefined;
  /** Waiters that have died with a claim on this lock. */
  let deadClaims = 0;
  for (;;) {
    signal?.throwIfAborted();
    const lock = await Lock.create(path);
    if (lock) return lock;
    const content = await contentOf(path);
    if (content === null) continue; // It has been released meanwhile.
    const { holder, token = '' } = parsed(content);
    if (content !== lastContent) {
      lastContent = content;
      polls = 0;
      deadClaims = 0;
      if (holder !== undefined && token !== reportedToken) {
        onWait?.(holder);
        reportedToken = token;
      }
    } else if (++polls > pollsUntilDead) {
      if (await remove(path, token, deadClaims)) continue;
      // Another waiter has the claim. If the lock is still the same after as many further polls, that waiter is dead,
      // too.
      deadClaims++;
      polls = 0;
    }
    await delay(poll, undefined, signal ? { signal } : {});
  }
}

/**
 * Removes the lock with this token, if it still exists.
 * @param deadClaims waiters that have died with a claim on it
 * @returns false when another process has the claim
 */
async function remove(path: string, token: string, deadClaims = 0): Promise<boolean> {
  const claimPath = (number: number) => `${path}.${token}.${number}`;
  const claim = await createFile(claimPath(deadClaims));
  if (!claim) return false;
  try {
    await claim.close();
    const isSame = async () => tokenIn(await contentOf(path)) === token;
    let removable = await isSame();
    if (removable && token === '') {
      // A lock without a token was perhaps just created by another process, which is writing it.
      await delay(WRITING_MILLISECONDS);
      removable = await isSame();
    }
    if (removable) await rm(path, { force: true });
    return true;
  } catch (error) {
    throw storageError(path, error);
  } finally {
    const claims = Array.from({ length: deadClaims + 1 }, (_, number) => claimPath(number));
    await Promise.allSettled(claims.map((each) => rm(each, { force: true })));
  }
}

/** How often a file is tried to be made while others replace its empty folder (makeFolder of atomic-files.ts). */
const MOST_TRIES = 20;

/** Null when the file exists. */
async function createFile(path: string): Promise<FileHandle | null> {
  for (let tries = 1; ; tries++)
    try {
      return await open(path, 'wx');
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EEXIST') return null;
      if (code !== 'ENOENT' || tries === MOST_TRIES) throw storageError(path, error);
      await delay(tries);
    }
}

/** Null when the file does not exist. */
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
    return {}; // It is being written, or its writer died before the end.
  }
}

/** The token in a lock's content, empty when it has none; undefined when there is no lock. */
const tokenIn = (content: string | null): string | undefined =>
  content === null ? undefined : (parsed(content).token ?? '');
