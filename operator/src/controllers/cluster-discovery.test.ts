import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { ApiError } from '../runtime/api-error.ts';
import type { Client } from '../runtime/client.ts';
import { clusterChanged, discoverCluster } from './cluster-discovery.ts';

const log = pino({ level: 'silent' });

/**
 * A server that answers discovery with these codes one by one, then with 200; a list with the code of its kind, or of
 * its apiVersion.
 */
function serverOf(discovery: number[], lists: Record<string, number> = {}, version: object | number = {}) {
  const failure = (status: number) => new ApiError('GET', status, undefined, 'no');
  const client = {
    guardedBy: () => client,
    async raw(path: string) {
      if (path === '/version') {
        if (typeof version === 'number') throw failure(version);
        return version;
      }
      const status = discovery.shift() ?? 200;
      if (status !== 200) throw failure(status);
      return { resources: [{ name: 'podgroups' }] };
    },
    async list({ apiVersion, plural }: { apiVersion: string; plural: string }) {
      const status = lists[plural] ?? lists[apiVersion] ?? 200;
      if (status !== 200) throw failure(status);
      return { metadata: { resourceVersion: '1' }, items: [] };
    },
  };
  return client as unknown as Client;
}
const discover = (client: Client, signal = new AbortController().signal) =>
  discoverCluster({ client, namespace: null, log, onWatchError: () => {} }, signal);

test('a server that has just started and refuses, or is overloaded, is asked again', async () => {
  const discovery = [401, 403, 429, 503];
  const cluster = await discover(serverOf(discovery));
  assert.equal(cluster!.podGroupApis.Native, 'scheduling.k8s.io/v1beta1');
  assert.deepEqual(discovery, []);
});

test('a Kueue that is down holds up no other job', { timeout: 120_000 }, async () => {
  const lists = { workloads: 500 };
  const client = serverOf([], lists);
  const cluster = (await discover(client))!;
  assert.deepEqual([cluster.podGroupApis.Native, cluster.servesWorkloads], ['scheduling.k8s.io/v1beta1', false]);
  lists.workloads = 200;
  await clusterChanged({ client, log, namespace: null }, cluster, 1, new AbortController().signal);
});

test('PodGroups of other schedulers are those that are served and may be listed', async () => {
  const groupsOf = async (codes: Record<string, number>) =>
    Object.keys((await discover(serverOf([], codes)))!.podGroupApis);
  assert.deepEqual(await groupsOf({}), ['Native', 'KAI', 'Volcano']);
  assert.deepEqual(await groupsOf({ 'scheduling.run.ai/v2alpha2': 404 }), ['Native', 'Volcano']);
  assert.deepEqual(await groupsOf({ 'scheduling.volcano.sh/v1beta1': 403 }), ['Native', 'KAI']);
});

test('a scheduler that is installed later makes the operator start anew', async () => {
  const codes = { 'scheduling.run.ai/v2alpha2': 404 };
  const client = serverOf([], codes);
  const cluster = (await discover(client))!;
  codes['scheduling.run.ai/v2alpha2'] = 200;
  await clusterChanged({ client, log, namespace: null }, cluster, 1, new AbortController().signal);
});

test('restart rules are served from Kubernetes 1.35 on', async () => {
  for (const [version, want] of [
    [{ major: '1', minor: '34' }, false],
    [{ major: '1', minor: '35' }, true],
    [{ major: '1', minor: '37+' }, true],
    [{}, false],
    [403, false],
    [404, false],
  ] as const)
    assert.equal((await discover(serverOf([], {}, version)))!.servesRestartRules, want, JSON.stringify(version));
});

test('a cluster that is upgraded to one with restart rules makes the operator start anew', async () => {
  const version = { major: '1', minor: '34' };
  const client = serverOf([], {}, version);
  const cluster = (await discover(client))!;
  version.minor = '35';
  await clusterChanged({ client, log, namespace: null }, cluster, 1, new AbortController().signal);
});

test('any other answer is an error', async () => {
  await assert.rejects(discover(serverOf([400])), { name: 'ApiError', status: 400 });
});

test('a kind is left out if it may not be read, and for no other error', async () => {
  const { nodesAndVolumes } = (await discover(serverOf([], { nodes: 403, events: 500, persistentvolumeclaims: 401 })))!;
  assert.deepEqual(Object.keys(nodesAndVolumes.caches), ['PersistentVolumeClaim', 'Event']);
});

test('a kind that may be read later makes the operator start anew', { timeout: 120_000 }, async () => {
  const lists = { nodes: 403 };
  const client = serverOf([], lists);
  const cluster = (await discover(client))!;
  const stop = new AbortController();
  let hasChanged = false;
  const following = clusterChanged({ client, log, namespace: null }, cluster, 5, stop.signal).then(
    () => (hasChanged = true),
  );
  const { raw } = client as unknown as { raw: () => Promise<unknown> };
  // Some rounds in which nothing has changed.
  await new Promise<void>((resolve) => {
    let rounds = 0;
    Object.assign(client, {
      raw: () => {
        if (++rounds === 3) resolve();
        return raw();
      },
    });
  });
  assert.equal(hasChanged, false);
  lists.nodes = 200;
  await following;
  assert.equal(stop.signal.aborted, false);
});
