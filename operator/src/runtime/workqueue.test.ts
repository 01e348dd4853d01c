import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { WorkQueue } from './workqueue.ts';

test('a key waits once however often it is added, and keys come in order', async () => {
  const queue = new WorkQueue();
  for (const key of ['a', 'b', 'a', 'a']) queue.add(key);
  assert.equal(queue.depth, 2);
  assert.deepEqual([await queue.take(), await queue.take()], ['a', 'b']);
  assert.equal(queue.depth, 0);
});

test('a key that is added while it is worked on comes again, once, after that work', async () => {
  const queue = new WorkQueue();
  queue.add('a');
  await queue.take();
  queue.add('a');
  queue.add('a');
  assert.equal(queue.depth, 0, 'nobody else may have it now');
  queue.done('a');
  assert.equal(await queue.take(), 'a');
  queue.done('a');
  assert.equal(queue.depth, 0);
});

test('of two waits the one that ends first counts', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const queue = new WorkQueue();
  queue.addAfter('a', 10_000);
  queue.addAfter('a', 1_000);
  queue.addAfter('a', 5_000);
  t.mock.timers.tick(999);
  assert.equal(queue.depth, 0);
  t.mock.timers.tick(1);
  assert.equal(await queue.take(), 'a');
  queue.done('a');
  t.mock.timers.tick(20_000);
  assert.equal(queue.depth, 0, 'the longer waits are forgotten');
});

test('waits after failures double, and success forgets them', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const queue = new WorkQueue();
  for (let failure = 0; failure < 12; failure++) {
    queue.retry('a');
    // At least three quarters of 5 ms, 10 ms, 20 ms, ..., at most all of it.
    t.mock.timers.tick(Math.floor(0.75 * 5 * 2 ** failure) - 1);
    assert.equal(queue.depth, 0);
    t.mock.timers.tick(5 * 2 ** failure);
    assert.equal(await queue.take(), 'a');
    queue.done('a');
  }
  assert.equal(queue.failures('a'), 12);
  queue.forget('a');
  assert.equal(queue.failures('a'), 0);
});

test('a closed queue hands out nothing and lets waiting workers go', async () => {
  const queue = new WorkQueue();
  const waiting = queue.take();
  queue.close();
  queue.add('a');
  queue.addAfter('b', 1);
  assert.equal(await waiting, null);
  assert.equal(await queue.take(), null);
});

test('no two workers ever have one key, and none that was added is lost', async () => {
  const key = fc.constantFrom('a', 'b', 'c');
  const step = fc.oneof(fc.record({ add: key }), fc.constant({ take: true as const }), fc.record({ done: key }));
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const queue = new WorkQueue();
      const working = new Set<string>();
      const owed = new Set<string>();
      const takers: Promise<void>[] = [];
      const take = () =>
        takers.push(
          queue.take().then((taken) => {
            if (taken === null) return;
            assert(!working.has(taken), `${taken} is worked on twice`);
            working.add(taken);
            owed.delete(taken);
          }),
        );
      for (const now of steps) {
        if ('add' in now) {
          owed.add(now.add);
          queue.add(now.add);
        } else if ('done' in now) {
          if (working.delete(now.done)) queue.done(now.done);
        } else take();
        await Promise.resolve();
        await Promise.resolve();
      }
      for (let round = 0; round < 3; round++) {
        for (const each of [...working]) {
          working.delete(each);
          queue.done(each);
        }
        for (let worker = 0; worker < 3; worker++) take();
        await new Promise(setImmediate);
      }
      assert.deepEqual([...owed], []);
      queue.close();
      await Promise.all(takers);
    }),
    { numRuns: 200 },
  );
});
