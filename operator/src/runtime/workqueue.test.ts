import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { WorkQueue } from './workqueue.ts';

/** A queue without a backlog: its first worker has come. */
async function begun(): Promise<WorkQueue> {
  const queue = new WorkQueue();
  queue.add('first');
  assert.equal(await queue.take(), 'first');
  return queue;
}

test('a key is queued once, however often it is added, and keys are taken in order', async () => {
  const queue = await begun();
  for (const key of ['a', 'b', 'a', 'a']) queue.add(key);
  assert.equal(queue.depth, 2);
  assert.deepEqual([await queue.take(), await queue.take()], ['a', 'b']);
  assert.equal(queue.depth, 0);
});

test('of what was added before the first worker came, what was added last comes first', async () => {
  const queue = new WorkQueue();
  for (const key of ['a', 'b', 'c', 'a']) queue.add(key);
  assert.equal(queue.depth, 3);
  assert.deepEqual([await queue.take(), await queue.take(), await queue.take()], ['a', 'c', 'b']);
  assert.equal(queue.depth, 0);
});

test('keys that are added while there is a backlog share the workers with it, half and half', async () => {
  const queue = new WorkQueue();
  for (const key of ['a', 'b', 'c', 'd', 'e', 'f']) queue.add(key);
  assert.equal(await queue.take(), 'f');
  for (const key of ['x', 'b', 'y']) queue.add(key);
  assert.equal(queue.depth, 7);
  const order: (string | null)[] = [];
  while (queue.depth > 0) order.push(await queue.take());
  assert.deepEqual(order, ['x', 'e', 'b', 'd', 'y', 'c', 'a']);
});

test('a key that is added while a worker has it is queued again, once, after that', async () => {
  const queue = new WorkQueue();
  queue.add('a');
  await queue.take();
  queue.add('a');
  queue.add('a');
  assert.equal(queue.depth, 0, 'no other worker may have it now');
  queue.done('a');
  assert.equal(await queue.take(), 'a');
  queue.done('a');
  assert.equal(queue.depth, 0);
});

test('of several delays of a key the earliest time counts', async (t) => {
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
  assert.equal(queue.depth, 0, 'the later times are dropped');
});

test('the backoff doubles with each failure, and success resets it', async (t) => {
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

test('a closed queue gives no key, and waiting workers get null', async () => {
  const queue = new WorkQueue();
  const waiting = queue.take();
  queue.close();
  queue.add('a');
  queue.addAfter('b', 1);
  assert.equal(await waiting, null);
  assert.equal(await queue.take(), null);
});

test('no two workers ever have the same key, and no added key is lost', async () => {
  const key = fc.constantFrom('a', 'b', 'c');
  const step = fc.oneof(fc.record({ add: key }), fc.constant({ take: true as const }), fc.record({ done: key }));
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const queue = new WorkQueue();
      const working = new Set<string>();
      const pending = new Set<string>();
      const takers: Promise<void>[] = [];
      const take = () =>
        takers.push(
          queue.take().then((taken) => {
            if (taken === null) return;
            assert(!working.has(taken), `two workers have ${taken}`);
            working.add(taken);
            pending.delete(taken);
          }),
        );
      for (const now of steps) {
        if ('add' in now) {
          pending.add(now.add);
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
      assert.deepEqual([...pending], []);
      queue.close();
      await Promise.all(takers);
    }),
    { numRuns: 200 },
  );
});
