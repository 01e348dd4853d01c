import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
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
  folder = await mkdtemp(join(tmpdir(), 'lock-'));
  path = join(folder, '.data.lock');
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const lockOf = (token: string): string => JSON.stringify({ holder: `${token}-0 (process 1)`, token, beats: 7 });

/** Many who want the lock at one moment; the most that ever had it together. */
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

test('of many at once one has it, and in the end it is gone', async () => {
  assert.equal(await contend(16), 1);
  assert.deepEqual(await readdir(folder), []);
});

describe('what the dead leave', () => {
  for (const [name, leave] of Object.entries({
    'a lock': () => writeFile(path, lockOf('dead')),
    'a lock that was never written': () => writeFile(path, ''),
    'a lock, and what two who died at its removal left': async () => {
      for (const round of [0, 1]) await writeFile(`${path}.dead.${round}`, '');
      await writeFile(path, lockOf('dead'));
    },
  })) {
    // All of them judge it dead at the same moment.
    test(`${name}: one waiter has it next, and all of them in the end`, async () => {
      await leave();
      assert.equal(await contend(16), 1);
      assert.deepEqual(await readdir(folder), []);
    });
  }
});

test('who works for long keeps it, and who waits is told for whom, once', async () => {
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

test('who finds its lock gone to another stops, waits for it, and begins anew', async () => {
  let begun = 0;
  await withLock(
    path,
    async (signal) => {
      if (++begun === 2) return;
      // As a waiter does that takes this process for dead.
      await rm(path);
      await writeFile(path, lockOf('other'));
      await delay(60_000, undefined, { signal });
    },
    { ...QUICK, onWait: () => void rm(path) },
  );
  assert.equal(begun, 2);
});

test('what is another’s is neither written nor removed', async () => {
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

test('a failure of the work is passed on, and the lock given back', async () => {
  await assert.rejects(
    withLock(path, () => Promise.reject(new Error('of the work')), QUICK),
    /of the work/,
  );
  assert.deepEqual(await readdir(folder), []);
});

test('a lock that cannot be made is named', async () => {
  const inNoFolder = join(folder, 'nowhere', '.lock');
  await assert.rejects(
    withLock(inNoFolder, async () => {}),
    (error) => error instanceof FacetrainError && error.code === 'StorageFailed' && error.subject === inNoFolder,
  );
});
