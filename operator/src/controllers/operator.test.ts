/** The operator against a real API server. There is no kubelet: the tests say how the pods are. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { events } from '../runtime/event-recorder.ts';
import { defineResource } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { settle, startOperator, TestNamespace } from '../testing/operator-harness.ts';
import { configMaps, faceTrainJobs, networkPolicies, type PodObject, pods, services } from './resources.ts';

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

/** A namespace and an operator for it alone, which ends with the test. */
const open = (t: Parameters<typeof TestNamespace.open>[0], namespace: string) =>
  TestNamespace.open(t, plane, namespace);
const ELECTION = { name: 'operator', durationSeconds: 2, renewDeadlineSeconds: 1.5, retrySeconds: 0.2 };
const startReplica = (namespace: string, identity: string) =>
  startOperator(plane, namespace, { identity, election: { namespace, ...ELECTION } });

test('a job becomes its service, config and pods, runs and succeeds; nothing is written in between', async (t) => {
  const ns = await open(t, 'plain');
  const { proxy, address } = ns.operator;
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  assert.deepEqual(await ns.names(services), ['faces']);
  assert.deepEqual(await ns.names(configMaps), ['faces-0']);
  const pod = (await ns.get(pods, 'faces-0-1')) as PodObject & {
    spec: { subdomain: string; containers: { env: { name: string; value: string }[] }[] };
  };
  assert.equal(
    pod.spec.containers[0]!.env.find(({ name }) => name === 'MASTER_ADDR')!.value,
    'faces-0-0.faces.plain.svc',
  );
  await ns.waitForPhase('faces', 'Pending');

  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-1', 'Running');
  await ns.waitForPhase('faces', 'Running');
  await settle();
  const before = proxy.requests.length;
  await settle();
  assert.deepEqual(proxy.requests.slice(before), [], 'requests in the steady state');

  await ns.setPodStatus('faces-0-0', 'Succeeded', { exitCode: 0 });
  await ns.setPodStatus('faces-0-1', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('faces', 'Succeeded');
  await eventually(async () => {
    const { items } = await plane.client.list(events, 'plain', {});
    assert(items!.some(({ reason, regarding }) => reason === 'Succeeded' && regarding.name === 'faces'));
  });
  const text = await (await fetch(`${address}/metrics`)).text();
  assert.match(text, /controller_runtime_reconcile_errors_total\{controller="facetrainjob"\} 0/);
  assert.match(text, /rest_client_requests_total\{method="POST",code="201"\} \d+/);
});

test('a trainer that fails makes a new gang, and the old one is gone before it', async (t) => {
  const ns = await open(t, 'restart');
  await ns.applyFaceTrainJob('faces');
  await eventually(async () => assert.equal((await ns.names(pods)).length, 2));
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-1', 'Running');
  await ns.waitForPhase('faces', 'Running');
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 1 });
  await eventually(async () => {
    const there = await ns.names(pods);
    assert(there.includes('faces-1-0') && there.includes('faces-1-1'), there.join());
    assert(!there.includes('faces-0-0'), 'rank 0 of the attempt that is over');
  });
  const { attempt, restarts } = await ns.statusOf('faces');
  assert.equal(attempt, 1);
  assert.deepEqual([restarts?.count, restarts?.lastRank, restarts?.lastExitCode], [1, 1, 1]);
});

test('a pod that the server refuses is told in its words, and made once it is allowed', async (t) => {
  const ns = await open(t, 'refused');
  const quotas = defineResource('v1', 'resourcequotas');
  const quota = await ns.create(quotas, {
    apiVersion: 'v1',
    kind: 'ResourceQuota',
    metadata: { name: 'few' },
    spec: { hard: { configmaps: '0' } },
  });
  // Its controller's part: what is used of it.
  await ns.patch(quotas, 'few', { status: { hard: { configmaps: '0' }, used: { configmaps: '0' } } }, 'status');
  await ns.applyFaceTrainJob('faces');
  await eventually(async () => {
    const stalled = (await ns.statusOf('faces')).conditions?.find(({ type }) => type === 'Stalled');
    assert.match(stalled?.message ?? '', /exceeded quota: few/);
  });
  assert.deepEqual(await ns.names(pods), []);
  await plane.client.delete(quotas, 'refused', 'few', quota.metadata.uid);
  // Any change makes it look again, long before the minute is over. The API server itself may hold on to a quota for half a minute after its end.
  let changes = 0;
  await eventually(async () => {
    await ns.patch(faceTrainJobs, 'faces', { metadata: { annotations: { changes: String((changes += 1)) } } });
    assert.equal((await ns.names(pods)).length, 2);
  }, 45_000);
});

test('a name that is taken is never touched', async (t) => {
  const ns = await open(t, 'taken');
  const theirs = await ns.create(services, {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: 'faces' },
    spec: { ports: [{ port: 80 }] },
  });
  await ns.applyFaceTrainJob('faces');
  await eventually(async () => {
    const stalled = (await ns.statusOf('faces')).conditions?.find(({ type }) => type === 'Stalled');
    assert.equal(stalled?.reason, 'NameTaken');
  });
  assert.deepEqual(await ns.names(pods), []);
  assert.equal((await ns.get(services, 'faces')).metadata.resourceVersion, theirs.metadata.resourceVersion);
});

test('a job that is made anew waits until what the one before has left is gone', async (t) => {
  const ns = await open(t, 'anew');
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await ns.delete(faceTrainJobs, 'faces');
  const { metadata } = await ns.applyFaceTrainJob('faces');
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Ready')) ?? '',
      /^Stopping: pod faces-0-0 of an earlier job of this name has not ended yet/,
    ),
  );
  // What the garbage collector would do.
  for (const resource of [pods, services, networkPolicies, configMaps]) {
    for (const name of await ns.names(resource)) await ns.delete(resource, name);
    if (resource === pods)
      await eventually(async () =>
        assert.match(
          (await ns.conditionText('faces', 'Ready')) ?? '',
          /^Stopping: (Service|NetworkPolicy|ConfigMap) \S+ of an earlier job/,
        ),
      );
  }
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  assert.equal((await ns.get(pods, 'faces-0-1')).metadata.ownerReferences?.[0]?.uid, metadata.uid);
  assert.equal(await ns.conditionText('faces', 'Stalled'), undefined);
});

test('of jobs that write to the same folder one comes after the other: who runs first, then who was made first', async (t) => {
  const ns = await open(t, 'folder');
  const output = { uri: 'pvc://data/out' };
  const inUse = (name: string, by: string) =>
    eventually(async () =>
      assert.equal(
        await ns.conditionText(name, 'Ready'),
        `OutputInUse: FaceTrainJob ${by} writes to the same folder and has not finished`,
      ),
    );
  await ns.applyFaceTrainJob('first', { output, suspend: true });
  await ns.waitForPhase('first', 'Suspended');
  await ns.applyFaceTrainJob('second', { output: { uri: 'pvc://data/out/' } });
  await ns.waitForPods('second-0-0', 'second-0-1');
  // Times of creation are whole seconds.
  await delay(1000);
  await ns.applyFaceTrainJob('third', {
    output: { uri: 'pvc://data/elsewhere' },
    checkpoint: { uri: 'pvc://data/out/checkpoints' },
  });
  await inUse('third', 'second');
  await ns.patch(faceTrainJobs, 'first', { spec: { suspend: false } });
  await inUse('first', 'second');
  await ns.waitForPods('second-0-0', 'second-0-1');
  await ns.setPodStatus('second-0-0', 'Succeeded', { exitCode: 0 });
  await ns.setPodStatus('second-0-1', 'Succeeded', { exitCode: 0 });
  await ns.waitForPods('first-0-0', 'first-0-1', 'second-0-0', 'second-0-1');
  await inUse('third', 'first');
  await ns.delete(faceTrainJobs, 'first');
  for (const name of ['first-0-0', 'first-0-1']) await ns.delete(pods, name);
  await ns.waitForPods('second-0-0', 'second-0-1', 'third-0-0', 'third-0-1');
});

test('conflicts, 429, 500, dropped watches and 410 only delay it', async (t) => {
  const ns = await open(t, 'faults');
  const { proxy } = ns.operator;
  proxy.fail('POST', /\/services$/, 500);
  proxy.fail('POST', /\/configmaps$/, 429, { headers: { 'retry-after': '0' } });
  proxy.fail('POST', /\/pods(\?|$)/, 503, { times: 2 });
  proxy.fail('PATCH', /\/facetrainjobs\/faces\/status$/, 409, { times: 2 });
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await ns.waitForPhase('faces', 'Pending');
  for (const code of [500, 429, 503, 409])
    assert(
      proxy.writes.some((seen) => seen.code === code),
      `no ${code} was met`,
    );

  // What happens while no watch is open is seen by those that come after; one starts too far back, and becomes a list.
  proxy.fail('GET', /\/pods\?.*watch=true/, 500, { times: 2 });
  proxy.fail('GET', /\/facetrainjobs\?.*watch=true/, 410);
  const lists = () =>
    proxy.requests.filter(
      ({ method, url, code }) =>
        method === 'GET' && code === 200 && /\/facetrainjobs\?/.test(url) && !url.includes('watch=true'),
    ).length;
  const before = lists();
  assert(proxy.dropWatches() >= 6);
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-1', 'Running');
  await ns.waitForPhase('faces', 'Running');
  await eventually(() => assert.equal(lists(), before + 1));
  await eventually(() => assert(proxy.watches >= 6));
});

test('two replicas: the leader is cut off, the other goes on, and no child is made twice', async (t) => {
  await plane.createNamespace('pair');
  const first = await startReplica('pair', 'first');
  await eventually(() => assert(first.proxy.writes.some(({ url, code }) => url.includes('/leases') && code < 300)));
  const second = await startReplica('pair', 'second');
  t.after(() => second.stop());
  const ns = new TestNamespace(plane, 'pair', second);
  await ns.applyFaceTrainJob('one');
  await eventually(async () => assert.equal((await ns.names(pods)).length, 2));
  assert(
    second.proxy.writes.every(({ url }) => url.includes('/leases')),
    'only the leader writes',
  );

  // In the middle of its work: the service and the config are there, and no pod yet.
  first.proxy.fail('POST', /\/pods(\?|$)/, 500, { times: 1000 });
  await ns.applyFaceTrainJob('two');
  await eventually(async () => assert((await ns.names(configMaps)).includes('two-0')));
  await first.cutOff();
  assert.equal(((await first.ended) as Error).name, 'LeadershipLost');
  await ns.waitForPods('one-0-0', 'one-0-1', 'two-0-0', 'two-0-1');
  await ns.waitForPhase('two', 'Pending');
  assert.equal(
    second.proxy.writes.filter(
      ({ method, url, code }) => method === 'POST' && /\/(services|configmaps)$/.test(url) && code === 201,
    ).length,
    0,
  );
  assert.deepEqual((await ns.statusOf('one')).attempt, 0);
});

test('a leader that is asked to stop gives the lease back', async (t) => {
  await plane.createNamespace('handover');
  const first = await startReplica('handover', 'first');
  await eventually(() => assert(first.proxy.writes.some(({ url, code }) => url.includes('/leases') && code < 300)));
  const second = await startReplica('handover', 'second');
  t.after(() => second.stop());
  await first.stop();
  const lease = defineResource('coordination.k8s.io/v1', 'leases');
  await eventually(async () => {
    const { spec } = (await plane.client.get(lease, 'handover', 'operator')) as unknown as {
      spec: { holderIdentity: string; leaseTransitions: number };
    };
    assert.deepEqual([spec.holderIdentity, spec.leaseTransitions], ['second', 1]);
  }, 1_500);
});
