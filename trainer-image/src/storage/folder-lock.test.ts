import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { FacetrainError } from '@facetrain/api';
import { withLock } from './folder-lock.ts';

const QUICK = { beat: 10, stale: 300 };

let folder: string;
let path: string;
beforeEach(async () => {
  // In memory, where it can be: a disk with much work flushes a heartbeat later than a dead holder is noticed.
  folder = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'lock-'));
  path = join(folder, '.data.lock');
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const lockOf = (token: string): string => JSON.stringify({ holder: `${token}-0 (process 1)`, token, beats: 7 });

/** Takes the lock from many callers at once. @returns the largest number that had it at the same time */
async function contend(count: number): Promise<number> {
  let inside = 0;
  let most = 0;
  const work = async () => {
    most = Math.max(most, ++inside);
    await delay(10);
    inside--;
  };
  await Promise.all(Array.from({ length: count }, () => withLock(path, work, QUICK)));
  return most;
}

test('of many callers one has the lock at a time, and at the end the lock is gone', async () => {
  assert.equal(await contend(16), 1);
  assert.deepEqual(await readdir(folder), []);
});

test('a folder that is gone for a moment, as others replace it, is waited for', async () => {
  const place = join(folder, 'data');
  const taken = withLock(join(place, '.file.lock'), async () => 'taken', QUICK);
  await delay(20);
  await mkdir(place);
  assert.equal(await taken, 'taken');
});

describe('after a dead process', () => {
  for (const [name, leave] of Object.entries({
    'a lock': () => writeFile(path, lockOf('dead')),
    'a lock that was never written': () => writeFile(path, ''),
    'a lock, and what two who died at its removal left': async () => {
      for (const round of [0, 1]) await writeFile(`${path}.dead.${round}`, '');
      await writeFile(path, lockOf('dead'));
    },
  })) {
    // All waiters consider the holder dead at the same moment.
    test(`${name}: one waiter at a time has the lock, and each of them gets it`, async () => {
      await leave();
      assert.equal(await contend(16), 1);
      assert.deepEqual(await readdir(folder), []);
    });
  }
});

test('a long holder keeps the lock, and a waiter gets the holder’s name once', async () => {
  const order: string[] = [];
  const waitsFor: string[] = [];
  let waiter: Promise<void>;
  await withLock(
    path,
    async () => {
      waiter = withLock(path, async () => void order.push('waiter'), {
        ...QUICK,
        onWait: (holder) => waitsFor.push(holder),
      });
      await delay(3 * QUICK.stale);
      order.push('holder');
    },
    QUICK,
  );
  await waiter!;
  assert.deepEqual(order, ['holder', 'waiter']);
  assert.equal(waitsFor.length, 1);
  assert.match(waitsFor[0]!, new RegExp(`\\(process ${process.pid}\\)$`));
});

test('a holder that lost its lock stops, waits for it, and starts its work again', async () => {
  let starts = 0;
  await withLock(
    path,
    async (signal) => {
      if (++starts === 2) return;
      // What a waiter does that considers this process dead.
      await rm(path);
      await writeFile(path, lockOf('other'));
      await delay(60_000, undefined, { signal });
    },
    { ...QUICK, onWait: () => void rm(path) },
  );
  assert.equal(starts, 2);
});

test('another process’s lock is neither written nor removed', async () => {
  await withLock(
    path,
    async () => {
      await rm(path);
      await writeFile(path, lockOf('other'));
      await delay(10 * QUICK.beat);
    },
    QUICK,
  );
  assert.equal(await readFile(path, 'utf8'), lockOf('other'));
  assert.deepEqual(await readdir(folder), ['.data.lock']);
});

test('a failure of the work is thrown, and the lock is released', async () => {
  await assert.rejects(
    withLock(path, () => Promise.reject(new Error('of the work')), QUICK),
    /of the work/,
  );
  assert.deepEqual(await readdir(folder), []);
});

test('a lock that cannot be created is an error with its path', async () => {
  const inNoFolder = join(folder, 'nowhere', '.lock');
  await assert.rejects(
    withLock(inNoFolder, async () => {}),
    (error) => error instanceof FacetrainError && error.code === 'StorageFailed' && error.subject === inNoFolder,
  );
});
