import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { type SlowStartOptions, slowStart } from './slow-start.ts';

/** Runs in rounds: every call that was begun in a round ends in the next. @returns how many calls were begun in each */
async function rounds(
  count: number,
  options: SlowStartOptions,
  fails: (item: number) => boolean | Error = () => false,
): Promise<{ begun: number[]; error: unknown }> {
  let error: unknown;
  let ended = false;
  const open: { item: number; end: (good: boolean) => void; fail: (error: Error) => void }[] = [];
  const all = slowStart(
    Array.from({ length: count }, (_, i) => i),
    options,
    (item) => new Promise<boolean>((end, fail) => open.push({ item, end, fail })),
  )
    .catch((thrown: unknown) => (error = thrown))
    .finally(() => (ended = true));
  const begun: number[] = [];
  await turn();
  while (!ended) {
    assert(open.length > 0, 'no call is under way, and slowStart has not ended');
    begun.push(open.length);
    for (const { item, end, fail } of open.splice(0)) {
      const failure = fails(item);
      if (failure instanceof Error) fail(failure);
      else end(!failure);
    }
    await turn();
  }
  await all;
  return { begun, error };
}

test('the number of calls at the same time doubles, up to the maximum', async () => {
  assert.deepEqual((await rounds(32, { initial: 1, max: 8 })).begun, [1, 2, 4, 8, 8, 8, 1]);
  assert.deepEqual((await rounds(5, { initial: 8, max: 8 })).begun, [5]);
  assert.deepEqual((await rounds(0, { initial: 1, max: 8 })).begun, []);
});

test('after a call that resolves to false none is begun, and those under way are waited for', async () => {
  assert.deepEqual(await rounds(32, { initial: 1, max: 8 }, (item) => item === 0), { begun: [1], error: undefined });
  assert.deepEqual(await rounds(32, { initial: 1, max: 8 }, (item) => item === 1), { begun: [1, 2], error: undefined });
});

test('the first error is thrown, once all calls have ended', async () => {
  const { begun, error } = await rounds(32, { initial: 1, max: 8 }, (item) =>
    item === 3 || item === 4 ? new Error(`no ${item}`) : false,
  );
  assert.deepEqual(begun, [1, 2, 4]);
  assert.equal((error as Error).message, 'no 3');
});
