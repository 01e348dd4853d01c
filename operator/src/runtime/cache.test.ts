import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { eventually } from '../testing/eventually.ts';
import { ApiError } from './api-error.ts';
import { Backoff } from './backoff.ts';
import { Cache, type CacheOptions, type Change } from './cache.ts';
import type { Client, WatchLine } from './client.ts';
import { defineResource, type KubernetesObject } from './resource.ts';

const log = pino({ level: 'silent' });
const object = (name: string, version: number, color = 'red'): KubernetesObject => ({
  metadata: {
    name,
    namespace: 'n',
    uid: name,
    resourceVersion: String(version),
    creationTimestamp: '',
    labels: { color },
  },
});

type Line = WatchLine<KubernetesObject>;

/** A server whose answers are servered: each list and each watch takes the next. */
class ScriptedServer {
  readonly requests: string[] = [];
  /** timeoutSeconds of each watch. */
  readonly timeouts: number[] = [];
  readonly lists: (Error | { version: number; items: KubernetesObject[] })[] = [];
  readonly watches: ((Error | Line | Promise<Line>)[] | 'stay')[] = [];

  get client(): Pick<Client, 'list' | 'watch'> {
    const server = this;
    return {
      async list(_resource, _namespace, { resourceVersion }, metadataOnly) {
        server.requests.push(`${metadataOnly ? 'metadata' : 'list'} ${resourceVersion ?? 'newest'}`);
        const answer = server.lists.shift();
        assert(answer, 'an unexpected list');
        if (answer instanceof Error) throw answer;
        return { metadata: { resourceVersion: String(answer.version) }, items: answer.items as never[] };
      },
      async *watch(_resource, _namespace, { resourceVersion, timeoutSeconds }, signal) {
        server.requests.push(`watch ${resourceVersion}`);
        server.timeouts.push(Number(timeoutSeconds));
        const lines = server.watches.shift() ?? 'stay';
        if (lines === 'stay') {
          await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
          return;
        }
        for (const line of lines) {
          if (line instanceof Error) throw line;
          yield (await line) as never;
        }
      },
    };
  }
}

function start(
  t: { after(end: () => Promise<void>): void },
  { client }: Pick<ScriptedServer, 'client'>,
  more: Partial<CacheOptions<KubernetesObject>> = {},
) {
  const indexes = { color: ({ metadata }: KubernetesObject) => metadata.labels?.color };
  const cache = new Cache({
    client,
    resource: defineResource('v1', 'things'),
    namespace: 'n',
    indexes,
    log,
    retry: new Backoff(1, 2),
    ...more,
  });
  const changes: Change<KubernetesObject>[] = [];
  cache.onChange((change) => changes.push(change));
  const stop = new AbortController();
  const running = cache.run(stop.signal);
  t.after(async () => {
    stop.abort();
    await running;
  });
  const names = () => [...cache.values()].map(({ metadata }) => `${metadata.name}@${metadata.resourceVersion}`).sort();
  return { cache, changes, names };
}

test('lists, watches, and keeps its indexes', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [object('a', 3), object('b', 5)] });
  server.watches.push([
    { type: 'MODIFIED', object: object('a', 11, 'blue') },
    { type: 'DELETED', object: object('b', 12) },
    { type: 'ADDED', object: object('c', 13) },
    { type: 'BOOKMARK', object: object('', 20) },
  ]);
  const { cache, changes, names } = start(t, server);
  await cache.synced;
  await eventually(() => assert.deepEqual(names(), ['a@11', 'c@13']));
  assert.deepEqual(
    [
      cache.indexed('color', 'red').length,
      cache.indexed('color', 'blue').length,
      cache.indexed('color', 'green').length,
    ],
    [1, 1, 0],
  );
  assert.deepEqual(
    changes.map(({ object: { metadata }, deleted }) => `${metadata.name}${deleted ? ' deleted' : ''}`),
    ['a', 'b', 'a', 'b deleted', 'c'],
  );
  // The bookmark is where the next watch starts.
  await eventually(() => assert.deepEqual(server.requests, ['list 0', 'watch 10', 'watch 20']));
});

test('a list that must come in pages asks for the newest, as a list at any version has no pages', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [object('a', 3)] });
  const { cache, names } = start(t, server, { inPages: true });
  await cache.synced;
  assert.deepEqual(names(), ['a@3']);
  await eventually(() => assert.deepEqual(server.requests, ['list newest', 'watch 10']));
});

test('a refresh waits until the watch has brought what is stored now', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [object('a', 3), object('b', 4), object('c', 5)] });
  const lines = Array.from({ length: 4 }, () => Promise.withResolvers<Line>());
  server.watches.push(lines.map(({ promise }) => promise));
  const { cache, names } = start(t, server, { catchUpMilliseconds: 3_600_000 });
  await cache.synced;
  await eventually(() => assert.equal(server.requests.length, 2));

  server.lists.push({ version: 20, items: [object('a', 3), object('b', 4), object('c', 5)] });
  await cache.refresh();

  server.lists.push({ version: 30, items: [object('a', 25), object('c', 5), object('d', 26)] });
  const order: string[] = [];
  const caughtUp = cache.refresh().then(() => order.push('caught up'));
  const changed: Line[] = [
    { type: 'DELETED', object: object('b', 24) },
    { type: 'MODIFIED', object: object('a', 25) },
    { type: 'ADDED', object: object('d', 26) },
  ];
  for (const [index, line] of changed.entries()) {
    await eventually(() => assert.equal(server.requests.length, 4));
    order.push(`${line.type} ${names().join()}`);
    lines[index]!.resolve(line);
    if (index < 2) await eventually(() => assert(names().includes(index ? 'a@25' : 'a@3') && !names().includes('b@4')));
  }
  await caughtUp;
  assert.deepEqual(order, ['DELETED a@3,b@4,c@5', 'MODIFIED a@3,c@5', 'ADDED a@25,c@5', 'caught up']);
  assert.deepEqual(names(), ['a@25', 'c@5', 'd@26']);

  // What is listed is gone when the answer comes. The watch is past that, so nothing is missing.
  server.lists.push({ version: 31, items: [object('a', 25), object('c', 5), object('d', 26), object('e', 31)] });
  const past = cache.refresh();
  await eventually(() => assert.equal(server.requests.length, 5));
  lines[3]!.resolve({ type: 'DELETED', object: object('e', 32) });
  await past;
  assert.deepEqual(server.requests.slice(0, 5), ['list 0', 'watch 10', ...Array(3).fill('metadata newest')]);
});

test('a refresh lists everything when the watch stays behind, the list fails, or the store went back', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [object('a', 3)] });
  server.watches.push('stay', [new Error('torn')]);
  // After a failure, the cache would wait for an hour.
  const { cache, names } = start(t, server, { retry: new Backoff(3_600_000, 3_600_000), catchUpMilliseconds: 1 });
  await cache.synced;
  await eventually(() => assert.deepEqual(server.requests, ['list 0', 'watch 10']));
  const behind = { version: 20, items: [object('a', 15), object('b', 16)] };
  server.lists.push(behind, behind);
  await cache.refresh();
  assert.deepEqual(names(), ['a@15', 'b@16']);
  await eventually(() => assert.equal(server.requests.at(-1), 'watch 20'));
  // The watch is torn, and the cache waits.
  server.lists.push(new Error('away'), { version: 30, items: [object('b', 16)] });
  await cache.refresh();
  assert.deepEqual(names(), ['b@16']);
  await eventually(() => assert.equal(server.requests.at(-1), 'watch 30'));
  const restored = { version: 12, items: [object('a', 11)] };
  server.lists.push(restored, restored);
  await cache.refresh();
  assert.deepEqual(names(), ['a@11']);
  const again = ['metadata newest', 'list newest'];
  await eventually(() =>
    assert.deepEqual(server.requests, [
      ...['list 0', 'watch 10'],
      ...[...again, 'watch 20'],
      ...[...again, 'watch 30'],
      ...[...again, 'watch 12'],
    ]),
  );
});

test('recovers from errors: a failed list, a broken watch, an error in the stream, a version too old', async (t) => {
  const server = new ScriptedServer();
  server.lists.push(
    new Error('no route'),
    { version: 10, items: [object('a', 3), object('b', 4)] },
    new Error('still none'),
    { version: 40, items: [object('b', 4), object('d', 39)] },
  );
  server.watches.push(
    [new Error('refused')],
    [{ type: 'ADDED', object: object('c', 12) }, new Error('torn')],
    [{ type: 'ERROR', object: { code: 500, reason: 'InternalError', message: 'etcd' } }],
    [{ type: 'ERROR', object: { code: 410, reason: 'Expired', message: 'too old resource version' } }],
  );
  const { changes, names } = start(t, server);
  await eventually(() => assert.deepEqual(names(), ['b@4', 'd@39']));
  await eventually(() =>
    assert.deepEqual(server.requests, [
      'list 0',
      'list 0',
      'watch 10',
      'watch 10',
      'watch 12',
      'watch 12',
      'list newest',
      'list newest',
      'watch 40',
    ]),
  );
  assert.deepEqual(
    changes
      .filter(({ deleted }) => deleted)
      .map(({ object: { metadata } }) => metadata.name)
      .sort(),
    ['a', 'c'],
  );
});

test('a list from an expired version is repeated from the newest', async (t) => {
  const server = new ScriptedServer();
  server.lists.push(new ApiError('list', 410, 'Expired', 'too old'), { version: 5, items: [] });
  const { cache } = start(t, server);
  await cache.synced;
  assert.deepEqual(server.requests.slice(0, 2), ['list 0', 'list newest']);
});

test('a write is in the cache at once, and no older event replaces it', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [object('a', 3)] });
  const gate = Promise.withResolvers<void>();
  const { client } = server;
  const held: Pick<Client, 'list' | 'watch'> = {
    list: client.list,
    async *watch(resource, namespace, query, signal) {
      await gate.promise;
      yield* client.watch(resource, namespace, query, signal) as AsyncGenerator<never>;
    },
  };
  server.watches.push([
    { type: 'MODIFIED', object: object('a', 11) },
    { type: 'ADDED', object: object('b', 15) },
    { type: 'DELETED', object: object('b', 16) },
    { type: 'ADDED', object: object('e', 17) },
  ]);
  const { cache, names } = start(t, { client: held });
  await cache.synced;
  cache.put(object('a', 14, 'mine'));
  cache.put(object('b', 15));
  assert.deepEqual(names(), ['a@14', 'b@15']);
  cache.put(object('a', 12));
  assert.deepEqual(names(), ['a@14', 'b@15'], 'a late answer to an older write');
  gate.resolve();
  await eventually(() => assert.deepEqual(names(), ['a@14', 'e@17']));
  cache.put(object('b', 15));
  assert.deepEqual(names(), ['a@14', 'e@17'], 'an object that the watch has seen deleted is not put');
});

test('a listener that throws does not stop the cache', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [object('a', 3), object('b', 4)] });
  const { cache, names } = start(t, server);
  cache.onChange(() => {
    throw new Error('mine');
  });
  await cache.synced;
  assert.deepEqual(names(), ['a@3', 'b@4']);
});

test('a watch without events ends after its timeout, and the next begins at once', async (t) => {
  const server = new ScriptedServer();
  server.lists.push({ version: 10, items: [] });
  server.watches.push([], []);
  let now = 0;
  t.mock.method(performance, 'now', () => (now += 2_000));
  // With this backoff, a wait would outlast the test.
  start(t, server, { watchSeconds: 60, retry: new Backoff(1e9, 1e9) });
  await eventually(() => assert.deepEqual(server.requests, ['list 0', 'watch 10', 'watch 10', 'watch 10']), 600_000);
  assert(
    server.timeouts.every((seconds) => seconds >= 60 && seconds <= 120),
    server.timeouts.join(),
  );
});
