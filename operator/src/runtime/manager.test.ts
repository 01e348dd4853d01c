import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { eventually } from '../testing/eventually.ts';
import { ApiError } from './api-error.ts';
import { Cache } from './cache.ts';
import { Client } from './client.ts';
import { EventRecorder } from './event-recorder.ts';
import { HealthServer } from './health.ts';
import { electionTimes } from './leader-election.ts';
import { Leadership } from './leadership.ts';
import { runManager } from './manager.ts';
import { Metrics } from './metrics.ts';
import { defineResource } from './resource.ts';

const log = pino({ level: 'silent' });

/** A cache of a kind whose lists fail, or return nothing. */
const cacheOf = (isListed: boolean, onList = () => {}) =>
  new Cache({
    client: {
      async list() {
        onList();
        if (!isListed) throw new ApiError('GET', 500, undefined, 'no');
        return { metadata: { resourceVersion: '1' }, items: [] };
      },
      async *watch(_resource, _namespace, _query, signal) {
        await new Promise((resolve) => signal.addEventListener('abort', resolve));
      },
    },
    resource: defineResource('v1', 'things'),
    namespace: null,
    log,
  });

type Caches = Parameters<typeof runManager>[0]['caches'];

/** What runManager has done some time after its start. */
async function start(
  t: { after(end: () => Promise<void>): void },
  caches: Caches,
  optionalCaches: Caches,
  leases?: Partial<Client>,
) {
  const client = new Client({ server: 'http://127.0.0.1:1', tls: {}, credentials: async () => ({}) });
  Object.assign(client, leases, leases && { guardedBy: () => client, apart: () => client });
  const metrics = new Metrics();
  const health = new HealthServer({ port: 0, registry: metrics.registry, alive: {}, ready: {} });
  const stop = new AbortController();
  const begun = { works: false };
  const ended = runManager(
    {
      client,
      caches,
      optionalCaches,
      optionalMilliseconds: 20,
      controllers: [],
      events: new EventRecorder({ client, controller: 'test', instance: 'test', log }),
      metrics,
      log,
      health,
      election: leases
        ? {
            namespace: 'n',
            name: 'lease',
            identity: 'me',
            leadership: Leadership.withoutElection(),
            ...electionTimes(8),
          }
        : null,
      whileLeading: async () => {
        begun.works = true;
      },
    },
    stop.signal,
  );
  t.after(async () => {
    stop.abort();
    await ended;
    await client.close();
  });
  return { begun, health, stop, ended };
}

test('an optional cache that cannot be filled holds up neither the work nor readiness', async (t) => {
  const { begun, health } = await start(t, { Job: cacheOf(true) }, { Node: cacheOf(false) });
  await eventually(() => assert(begun.works));
  assert.deepEqual(
    Object.entries(health.checks.ready).map(([name, check]) => [name, check()]),
    [['Job', undefined]],
  );
});

test('without a cache that is needed no work begins, and the replica is not ready', async (t) => {
  let lists = 0;
  const failing = cacheOf(false, () => lists++);
  const { begun, health, stop, ended } = await start(t, { Job: failing }, { Node: cacheOf(true) });
  // Each wait between two lists is longer than that for an optional cache.
  await eventually(() => assert(lists >= 3));
  assert.equal(health.checks.ready.Job!(), 'not listed yet');
  stop.abort();
  await ended;
  assert.equal(begun.works, false);
});

test('a new leader lists again what the one before it may have written last, and then begins', async (t) => {
  const steps: string[] = [];
  const listed = cacheOf(true, () => steps.push('list'));
  const create = async (_resource: unknown, _namespace: unknown, lease: object) => {
    steps.push('elected');
    return { ...lease, metadata: { name: 'lease', namespace: 'n', resourceVersion: '1' } };
  };
  const get = async () => {
    throw new ApiError('GET', 404, 'NotFound', 'no');
  };
  // A kind that the program can do without does not hold a leader up either.
  const { begun } = await start(t, { Job: listed }, { Node: cacheOf(false) }, { create, get } as never);
  await eventually(() => assert(begun.works));
  assert.deepEqual(steps, ['list', 'elected', 'list']);
});
