import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { ApiError } from '../runtime/api-error.ts';
import { type Client, WATCH_SILENCE_MILLISECONDS, type WatchLine } from '../runtime/client.ts';
import type { KubernetesObject } from '../runtime/resource.ts';
import { eventually } from '../testing/eventually.ts';
import { Surroundings } from './pod-dependencies.ts';
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
const node = (name: string, status: 'True' | 'False' | 'Unknown'): NodeObject => ({
  metadata: meta(name),
  status: { conditions: [{ type: 'Ready', status, reason: 'NodeStatusUnknown' }] },
});

/** A server with these nodes, whose watch says what the test says. */
async function open(t: { after(end: () => Promise<void>): void }, items: NodeObject[], forbidden: string[] = []) {
  const lines: WatchLine<KubernetesObject>[] = [];
  let more = Promise.withResolvers<void>();
  const longest: Record<string, number> = {};
  const client: Pick<Client, 'list' | 'watch'> = {
    async list({ plural }) {
      if (forbidden.includes(plural)) throw new ApiError('GET', 403, 'Forbidden', 'no');
      return { metadata: { resourceVersion: '1' }, items: (plural === 'nodes' ? items : []) as never[] };
    },
    async *watch({ plural }, _namespace, { timeoutSeconds }, signal) {
      longest[plural] = Number(timeoutSeconds);
      if (plural !== 'nodes') return;
      signal.addEventListener('abort', () => more.resolve());
      for (let next = 0; !signal.aborted; await more.promise) {
        more = Promise.withResolvers();
        while (next < lines.length) yield lines[next++] as never;
      }
    },
  };
  const told: string[] = [];
  const occupied = new Set(items.map(({ metadata }) => metadata.name));
  const around = await Surroundings.open({ client, namespace: null, log, onRestart: () => {}, settleMilliseconds: 20 });
  around.listen(
    (name) => {
      told.push(name);
      return occupied.has(name);
    },
    () => {},
    () => [],
  );
  const { Node, Event } = around.caches;
  const stop = new AbortController();
  const ended = Promise.all([Node?.run(stop.signal), Event?.run(stop.signal)]);
  t.after(async () => {
    stop.abort();
    more.resolve();
    await ended;
  });
  await Node?.synced;
  told.length = 0;
  return {
    around,
    told,
    longest,
    occupied,
    async says(type: 'ADDED' | 'MODIFIED' | 'DELETED', object: NodeObject) {
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
  test('is lost when nobody hears of it, and is back when it is heard of', async (t) => {
    const { around, told, says } = await open(t, [node('a', 'True'), node('b', 'True')]);
    assert.equal(around.lostNode('a'), undefined);
    await says('MODIFIED', node('a', 'Unknown'));
    assert.equal(around.lostNode('a'), undefined, 'at once, when it may be all of them');
    await eventually(() => assert.equal(around.lostNode('a'), 'node a does not answer (NodeStatusUnknown)'));
    await says('MODIFIED', node('a', 'True'));
    assert.equal(around.lostNode('a'), undefined);
    assert.deepEqual(told, ['a', 'a']);
  });
  test('that says itself that it is not ready is there', async (t) => {
    const { around, told, says } = await open(t, [node('a', 'True'), node('b', 'True')]);
    await says('MODIFIED', node('a', 'False'));
    assert.deepEqual([around.lostNode('a'), told], [undefined, []]);
  });
  test('that was deleted under pods is lost; one that nobody has seen is not', async (t) => {
    const { around, occupied, says } = await open(t, [node('a', 'True'), node('b', 'True'), node('c', 'True')]);
    await says('DELETED', node('a', 'True'));
    assert.equal(around.lostNode('a'), 'node a is gone');
    occupied.delete('b');
    await says('DELETED', node('b', 'True'));
    assert.deepEqual([around.lostNode('b'), around.lostNode('new')], [undefined, undefined]);
    await says('ADDED', node('a', 'True'));
    assert.equal(around.lostNode('a'), undefined);
  });
  test('is not lost when none answers: then the control plane is cut off; it is once another has come back', async (t) => {
    const { around, told, says } = await open(t, [node('a', 'True'), node('b', 'True')]);
    await says('MODIFIED', node('a', 'Unknown'));
    await says('MODIFIED', node('b', 'Unknown'));
    await eventually(() => assert.deepEqual(told, ['a', 'b']));
    assert.deepEqual([around.lostNode('a'), around.lostNode('b')], [undefined, undefined]);
    told.length = 0;
    await says('MODIFIED', node('b', 'True'));
    assert.deepEqual(
      [around.lostNode('a'), around.lostNode('b')],
      ['node a does not answer (NodeStatusUnknown)', undefined],
    );
    assert.deepEqual(told, ['b', 'a']);
  });
});

test('what may not be read is left out, and the rest is not', async (t) => {
  const { around } = await open(t, [], ['nodes', 'events']);
  assert.deepEqual(Object.keys(around.caches), ['PersistentVolumeClaim']);
  const pod: PodObject = { metadata: meta('faces-0-0', 'n'), spec: {} };
  assert.deepEqual([around.lostNode('a'), around.hindrance(pod)], [undefined, undefined]);
});

test('a watch of events, to which no bookmarks come, ends before it is taken for dead', async (t) => {
  const { longest } = await open(t, []);
  await eventually(() => assert(1000 * longest.events! < WATCH_SILENCE_MILLISECONDS, String(longest.events)));
});
