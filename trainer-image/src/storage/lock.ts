/**
 * One process at a time, of however many machines that share a folder.
 *
 * A lock is a file beside what it is for, made by whoever creates it first (O_EXCL, which network file systems keep too). Its holder writes it anew every few
 * seconds; one that has stayed the same for long, by the clock of who waits, belongs to the dead, and a waiter moves it away. Contents are compared, not times: clocks
 * of machines differ, and attributes are cached where opening a file is not.
 *
 * A holder may only have been frozen, and two waiters may judge it dead at one moment. So a lock saves work, and what it is for has to be right without it.
 */
import { randomUUID } from 'node:crypto';
import { open, readFile, rename, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { storageError } from './atomic.ts';

export interface LockOptions {
  signal?: AbortSignal | undefined;
  /** Told who holds it, when there is somebody else to wait for. */
  onWait?: (holder: string) => void;
  /** Milliseconds between two writes of the holder. */
  beat?: number;
  /** Milliseconds without one after which a holder counts as dead. */
  stale?: number;
}

const POLL_MILLISECONDS = 1_000;

/** @throws what `work` throws, the signal's reason, or FacetrainError StorageFailed or DiskFull where no lock can be made */
export async function withLock<T>(path: string, work: () => Promise<T>, { signal, onWait, beat = 5_000, stale = 30_000 }: LockOptions = {}): Promise<T> {
  const token = randomUUID();
  let beats = 0;
  const content = () => JSON.stringify({ holder: `${hostname()} (process ${process.pid})`, token, beats: beats++ });
  await acquire(path, { token, content, signal, onWait, poll: Math.min(POLL_MILLISECONDS, beat), stale });
  const isOurs = async () => tokenIn(await contentOf(path)) === token;
  let beating = Promise.resolve();
  const heart = setInterval(() => {
    beating = beating.then(async () => {
      // One that was moved away in the meantime is somebody else's.
      if (await isOurs()) await rewrite(path, content());
    }).catch(() => {});
  }, beat);
  try {
    return await work();
  } finally {
    clearInterval(heart);
    await beating;
    if (await isOurs()) await rm(path, { force: true });
  }
}

interface Acquisition {
  token: string;
  content: () => string;
  signal: AbortSignal | undefined;
  onWait: LockOptions['onWait'];
  poll: number;
  stale: number;
}

async function acquire(path: string, { token, content, signal, onWait, poll, stale }: Acquisition): Promise<void> {
  let seen: string | null = null;
  let since = 0;
  let waitsFor: string | undefined;
  while (!(await create(path, content()))) {
    const there = await contentOf(path);
    if (there === null) continue; // gone by now
    if (there !== seen) {
      seen = there;
      since = performance.now();
      const { holder, token: theirs } = parsed(there);
      if (theirs !== waitsFor) onWait?.(holder ?? 'somebody');
      waitsFor = theirs;
    } else if (performance.now() - since > stale) {
      const dead = `${path}.${token}`;
      if ((await contentOf(path)) === there) await rename(path, dead).catch(ignoreMissing);
      await rm(dead, { force: true });
      continue;
    }
    await delay(poll, undefined, signal ? { signal } : {}).catch(() => signal?.throwIfAborted());
  }
}

async function create(path: string, content: string): Promise<boolean> {
  try {
    const file = await open(path, 'wx');
    await file.writeFile(content).finally(() => file.close());
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw storageError(path, error);
  }
}

/** Not made again where it is gone. */
async function rewrite(path: string, content: string): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(content, 0).finally(() => file.close());
}

const contentOf = (path: string): Promise<string | null> => readFile(path, 'utf8').catch(ignoreMissing);

function ignoreMissing(error: NodeJS.ErrnoException): null {
  if (error.code === 'ENOENT' || error.code === 'ESTALE') return null;
  throw error;
}

function parsed(content: string): { holder?: string; token?: string } {
  try {
    return JSON.parse(content) as { holder?: string; token?: string };
  } catch {
    return {}; // just being written
  }
}

const tokenIn = (content: string | null): string | undefined => (content === null ? undefined : parsed(content).token);
