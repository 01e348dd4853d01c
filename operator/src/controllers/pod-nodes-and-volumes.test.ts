import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { ApiError } from '../runtime/api-error.ts';
import { type Client, WATCH_SILENCE_MILLISECONDS, type WatchLine } from '../runtime/client.ts';
import type { KubernetesObject } from '../runtime/resource.ts';
import { eventually } from '../testing/eventually.ts';
import { PodNodesAndVolumes } from './pod-nodes-and-volumes.ts';
import type { NodeObject, PodObject } from './resources.ts';

const log = pino({ level: 'silent' });
let version = 1;
const meta = (name: string, namespace?: string) => ({
  name,
  uid: name,
  resourceVersion: String(++version),
  creationTimestamp: '',
  ...(namespace && { namespace }),
});
const SINCE = '2026-01-01T00:00:00Z';
const node = (name: string, status: 'True' | 'False' | 'Unknown', taints: { key: string }[] = []): NodeObject => ({
  metadata: meta(name),
  spec: { taints },
  status: { conditions: [{ type: 'Ready', status, reason: 'NodeStatusUnknown', lastTransitionTime: SINCE }] },
});
const reason = 'node a does not answer (NodeStatusUnknown)';

/** PodNodesAndVolumes over a server with these nodes, whose watch sends what the test sends. */
async function open(
  t: { after(end: () => Promise<void>): void },
  items: NodeObject[],
  forbidden: string[] = [],
  pods: PodObject[] = [],
) {
  const lines: WatchLine<KubernetesObject>[] = [];
  let more = Promise.withResolvers<void>();
  const timeouts: Record<string, number> = {};
  const client: Pick<Client, 'list' | 'watch'> = {
    async list({ plural }) {
      if (forbidden.includes(plural)) throw new ApiError('GET', 403, 'Forbidden', 'no');
      return { metadata: { resourceVersion: '1' }, items: (plural === 'nodes' ? items : []) as never[] };
    },
    async *watch({ plural }, _namespace, { timeoutSeconds }, signal) {
      timeouts[plural] = Number(timeoutSeconds);
      if (plural !== 'nodes') return;
      signal.addEventListener('abort', () => more.resolve());
      for (let next = 0; !signal.aborted; await more.promise) {
        more = Promise.withResolvers();
        while (next < lines.length) yield lines[next++] as never;
      }
    },
  };
  const notified: string[] = [];
  const occupied = new Set(items.map(({ metadata }) => metadata.name));
  const nodesAndVolumes = await PodNodesAndVolumes.open({
    client,
    namespace: null,
    log,
    onWatchError: () => {},
    settleMilliseconds: 20,
  });
  nodesAndVolumes.listen({
    onNode(name) {
      notified.push(name);
      return occupied.has(name);
    },
    onPod: (key) => notified.push(key),
    pods: () => pods,
  });
  const { Node, Event } = nodesAndVolumes.caches;
  const stop = new AbortController();
  const ended = Promise.all([Node?.run(stop.signal), Event?.run(stop.signal)]);
  t.after(async () => {
    stop.abort();
    more.resolve();
    await ended;
  });
  await Node?.synced;
  notified.length = 0;
  return {
    nodesAndVolumes,
    notified,
    timeouts,
    occupied,
    async send(type: 'ADDED' | 'MODIFIED' | 'DELETED', object: NodeObject) {
      lines.push({ type, object });
      more.resolve();
      await eventually(() =>
        assert.equal(
          type === 'DELETED',
          Node!.get(`/${object.metadata.name}`)?.metadata.resourceVersion !== object.metadata.resourceVersion,
        ),
      );
    },
  };
}

describe('a node', () => {
  test('is silent some time after Ready became Unknown, and not silent when it is True again', async (t) => {
    const { nodesAndVolumes, notified, send } = await open(t, [node('a', 'True'), node('b', 'True')]);
    assert.equal(nodesAndVolumes.silentNode('a'), undefined);
    await send('MODIFIED', node('a', 'Unknown'));
    assert.equal(nodesAndVolumes.silentNode('a'), undefined, 'at once: all nodes may be about to follow');
    await eventually(() => assert.deepEqual(nodesAndVolumes.silentNode('a'), { reason, since: SINCE }));
    assert.equal(nodesAndVolumes.lostNode('a'), undefined, 'each job decides that by its failure policy');
    await send('MODIFIED', node('a', 'True'));
    assert.equal(nodesAndVolumes.silentNode('a'), undefined);
    assert.deepEqual(notified, ['a', 'a']);
  });
  test('that is out of service is lost at once, but not while it is ready', async (t) => {
    const { nodesAndVolumes, notified, send } = await open(t, [node('a', 'True'), node('b', 'True')]);
    const taints = [{ key: 'node.kubernetes.io/out-of-service' }];
    await send('MODIFIED', node('a', 'True', taints));
    assert.equal(nodesAndVolumes.lostNode('a'), undefined);
    await send('MODIFIED', node('a', 'Unknown', taints));
    assert.equal(nodesAndVolumes.lostNode('a'), 'node a is out of service (taint node.kubernetes.io/out-of-service)');
    assert.deepEqual(notified, ['a']);
    await send('MODIFIED', node('a', 'Unknown', []));
    await eventually(() => assert.equal(nodesAndVolumes.lostNode('a'), undefined));
  });
  test('whose kubelet reports that it is not ready is not silent', async (t) => {
    const { nodesAndVolumes, notified, send } = await open(t, [node('a', 'True'), node('b', 'True')]);
    await send('MODIFIED', node('a', 'False'));
    assert.deepEqual([nodesAndVolumes.silentNode('a'), notified], [undefined, []]);
  });
  test('that is deleted with pods on it is lost; without pods, or never seen, it is not', async (t) => {
    const { nodesAndVolumes, occupied, send } = await open(t, [
      node('a', 'True'),
      node('b', 'True'),
      node('c', 'True'),
    ]);
    await send('DELETED', node('a', 'True'));
    assert.equal(nodesAndVolumes.lostNode('a'), 'node a is gone');
    occupied.delete('b');
    await send('DELETED', node('b', 'True'));
    assert.deepEqual([nodesAndVolumes.lostNode('b'), nodesAndVolumes.lostNode('new')], [undefined, undefined]);
    await send('ADDED', node('a', 'True'));
    assert.equal(nodesAndVolumes.lostNode('a'), undefined);
  });
  test('is not silent while all are (the control plane is cut off), and from the end of that time on', async (t) => {
    const { nodesAndVolumes, notified, send } = await open(t, [node('a', 'True'), node('b', 'True')]);
    await send('MODIFIED', node('a', 'Unknown'));
    await send('MODIFIED', node('b', 'Unknown'));
    await eventually(() => assert.deepEqual(notified, ['a', 'b']));
    assert.deepEqual([nodesAndVolumes.silentNode('a'), nodesAndVolumes.silentNode('b')], [undefined, undefined]);
    notified.length = 0;
    const before = Math.floor(Date.now() / 1000);
    await send('MODIFIED', node('b', 'True'));
    const silent = nodesAndVolumes.silentNode('a')!;
    assert.equal(silent.reason, reason);
    assert(Date.parse(silent.since) / 1000 >= before, silent.since);
    assert.deepEqual([nodesAndVolumes.silentNode('b'), notified], [undefined, ['b', 'a']]);
  });
});

test('kinds that may not be read are left out, the others are watched', async (t) => {
  const { nodesAndVolumes } = await open(t, [], ['nodes', 'events']);
  assert.deepEqual(Object.keys(nodesAndVolumes.caches), ['PersistentVolumeClaim']);
  const pod: PodObject = { metadata: meta('faces-0-0', 'n'), spec: {} };
  assert.deepEqual([nodesAndVolumes.lostNode('a'), nodesAndVolumes.pendingReason(pod)], [undefined, undefined]);
});

test('no claim counts as missing before the claims are listed; then jobs with a missing one are planned', async (t) => {
  const pod: PodObject = {
    metadata: meta('faces-0-0', 'n'),
    spec: { volumes: [{ persistentVolumeClaim: { claimName: 'data' } }] },
  };
  const { nodesAndVolumes, notified } = await open(t, [], [], [pod]);
  const { PersistentVolumeClaim } = nodesAndVolumes.caches;
  assert.equal(nodesAndVolumes.pendingReason(pod), undefined);
  const stop = new AbortController();
  const ended = PersistentVolumeClaim!.run(stop.signal);
  t.after(async () => {
    stop.abort();
    await ended;
  });
  await eventually(() => assert.deepEqual(notified, ['n/faces-0-0']));
  assert.equal(nodesAndVolumes.pendingReason(pod)?.reason, 'PersistentVolumeClaimNotFound');
});

test('a watch of Events, which gets no bookmarks, ends before the client takes it for dead', async (t) => {
  const { timeouts } = await open(t, []);
  await eventually(() => assert(1000 * timeouts.events! < WATCH_SILENCE_MILLISECONDS, String(timeouts.events)));
});
