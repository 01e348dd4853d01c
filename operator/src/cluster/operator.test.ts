/** The operator against a real API server. There is no kubelet: the tests say how the pods are. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { pino } from 'pino';
import { Client } from '../runtime/client.ts';
import { Metrics } from '../runtime/metrics.ts';
import { defineResource, type KubernetesObject } from '../runtime/resource.ts';
import { events } from '../runtime/events.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { FaultProxy } from '../testing/fault-proxy.ts';
import { podBecomes } from '../testing/kubelet.ts';
import { clusterEnvironment } from './environment.ts';
import { runOperator } from './operator.ts';
import { configMaps, faceTrainJobs, pods, services, type JobObject, type PodObject } from './resources.ts';

const log = pino({ level: process.env['FACETRAIN_TEST_LOG'] ?? 'silent' });
/** Long enough for a list, a watch and a few writes; a write that should not be shows within it. */
const QUIET_MILLISECONDS = 1_500;

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

interface Replica {
  proxy: FaultProxy;
  /** Where /healthz, /readyz and /metrics are. */
  address: string;
  stop(): Promise<void>;
  /** From now on nothing that it sends arrives. */
  cutOff(): Promise<void>;
  ended: Promise<unknown>;
}

async function startOperator(namespace: string, identity = 'a', elects = false): Promise<Replica> {
  const proxy = await FaultProxy.start(plane.server, plane.ca);
  const metrics = new Metrics();
  const client = new Client({ server: proxy.server, credentials: async () => ({ authorization: `Bearer ${plane.token}` }), onResponse: metrics.request });
  const stop = new AbortController();
  const listening = Promise.withResolvers<number>();
  const ended = runOperator(
    {
      client,
      metrics,
      log: log.child({ replica: identity }),
      environment: clusterEnvironment('registry.example/trainer:1'),
      namespace,
      identity,
      election: elects ? { namespace, name: 'operator', durationSeconds: 2, renewDeadlineSeconds: 1.5, retrySeconds: 0.2 } : null,
      health: { host: '127.0.0.1', port: 0 },
      workers: 4,
      progressSeconds: 60,
      onListening: listening.resolve,
    },
    stop.signal,
  ).catch((error: unknown) => error);
  const port = await listening.promise;
  const replica = {
    proxy,
    address: `http://127.0.0.1:${port}`,
    ended,
    async stop() {
      stop.abort();
      await ended;
      await proxy.close();
    },
    cutOff: () => proxy.close(),
  };
  if (!elects) await eventually(async () => assert.equal((await fetch(`${replica.address}/readyz`)).status, 200));
  return replica;
}

/** A namespace and an operator for it alone, which ends with the test. */
async function scene(t: { after(end: () => Promise<void>): void }, namespace: string): Promise<Replica> {
  await plane.createNamespace(namespace);
  const replica = await startOperator(namespace);
  t.after(() => replica.stop());
  return replica;
}

async function apply(namespace: string, name: string, spec: Record<string, unknown> = {}): Promise<JobObject> {
  return plane.client.create(faceTrainJobs, namespace, {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name },
    spec: {
      dataset: { uri: 'pvc://data/faces' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: 'pvc://data/out' },
      globalBatchSize: 64,
      trainers: { replicas: 2 },
      ...spec,
    },
  });
}

const statusOf = async (namespace: string, name: string): Promise<FaceTrainJobStatus> => ((await plane.client.get(faceTrainJobs, namespace, name)).status ?? {}) as FaceTrainJobStatus;
const names = async (resource: typeof pods | typeof services, namespace: string): Promise<string[]> =>
  (await plane.client.list<KubernetesObject>(resource, namespace, {})).items!.map(({ metadata }) => metadata.name).filter((name) => name !== 'kube-root-ca.crt').sort();

const becomes = (namespace: string, name: string, phase: 'Running' | 'Succeeded' | 'Failed', exitCode?: number) => podBecomes(plane.client, namespace, name, phase, exitCode);

const phaseIs = (namespace: string, name: string, phase: string) =>
  eventually(async () => assert.equal((await statusOf(namespace, name)).phase, phase));

const quiet = () => new Promise((resolve) => setTimeout(resolve, QUIET_MILLISECONDS));

test('a job becomes its service, config and pods, runs and succeeds; nothing is written in between', async (t) => {
  const { proxy, address } = await scene(t, 'plain');
  await apply('plain', 'faces');
  await eventually(async () => assert.deepEqual(await names(pods, 'plain'), ['faces-0-0', 'faces-0-1']));
  assert.deepEqual(await names(services, 'plain'), ['faces']);
  assert.deepEqual(await names(configMaps, 'plain'), ['faces-0']);
  const pod = (await plane.client.get(pods, 'plain', 'faces-0-1')) as PodObject & { spec: { subdomain: string; containers: { env: { name: string; value: string }[] }[] } };
  assert.equal(pod.spec.containers[0]!.env.find(({ name }) => name === 'MASTER_ADDR')!.value, 'faces-0-0.faces.plain.svc');
  await phaseIs('plain', 'faces', 'Pending');

  await becomes('plain', 'faces-0-0', 'Running');
  await becomes('plain', 'faces-0-1', 'Running');
  await phaseIs('plain', 'faces', 'Running');
  await quiet();
  const before = proxy.seen.length;
  await quiet();
  assert.deepEqual(proxy.seen.slice(before), [], 'requests in the steady state');

  await becomes('plain', 'faces-0-0', 'Succeeded', 0);
  await becomes('plain', 'faces-0-1', 'Succeeded', 0);
  await phaseIs('plain', 'faces', 'Succeeded');
  await eventually(async () => {
    const { items } = await plane.client.list(events, 'plain', {});
    assert(items!.some(({ reason, regarding }) => reason === 'Succeeded' && regarding.name === 'faces'));
  });
  const text = await (await fetch(`${address}/metrics`)).text();
  assert.match(text, /controller_runtime_reconcile_errors_total\{controller="facetrainjob"\} 0/);
  assert.match(text, /rest_client_requests_total\{method="POST",code="201"\} \d+/);
});

test('a trainer that fails makes a new gang, and the old one is gone before it', async (t) => {
  await scene(t, 'restart');
  await apply('restart', 'faces');
  await eventually(async () => assert.equal((await names(pods, 'restart')).length, 2));
  await becomes('restart', 'faces-0-0', 'Running');
  await becomes('restart', 'faces-0-1', 'Running');
  await phaseIs('restart', 'faces', 'Running');
  await becomes('restart', 'faces-0-1', 'Failed', 1);
  await eventually(async () => {
    const there = await names(pods, 'restart');
    assert(there.includes('faces-1-0') && there.includes('faces-1-1'), there.join());
    assert(!there.includes('faces-0-0'), 'rank 0 of the attempt that is over');
  });
  const { attempt, restarts } = await statusOf('restart', 'faces');
  assert.equal(attempt, 1);
  assert.deepEqual([restarts?.count, restarts?.lastRank, restarts?.lastExitCode], [1, 1, 1]);
});

test('a pod that the server refuses is told in its words, and made once it is allowed', async (t) => {
  await scene(t, 'refused');
  const quotas = defineResource('v1', 'resourcequotas');
  const quota = await plane.client.create(quotas, 'refused', { apiVersion: 'v1', kind: 'ResourceQuota', metadata: { name: 'few' }, spec: { hard: { configmaps: '0' } } });
  // Its controller's part: what is used of it.
  await plane.client.patch(quotas, 'refused', 'few', { status: { hard: { configmaps: '0' }, used: { configmaps: '0' } } }, 'status');
  await apply('refused', 'faces');
  await eventually(async () => {
    const stalled = (await statusOf('refused', 'faces')).conditions?.find(({ type }) => type === 'Stalled');
    assert.match(stalled?.message ?? '', /exceeded quota: few/);
  });
  assert.deepEqual(await names(pods, 'refused'), []);
  await plane.client.delete(quotas, 'refused', 'few', quota.metadata.uid);
  // Any change makes it look again, long before the minute is over.
  await plane.client.patch(faceTrainJobs, 'refused', 'faces', { metadata: { annotations: { nudge: '1' } } });
  await eventually(async () => assert.equal((await names(pods, 'refused')).length, 2));
});

test('a name that is taken is never touched', async (t) => {
  await scene(t, 'taken');
  const theirs = await plane.client.create(services, 'taken', { apiVersion: 'v1', kind: 'Service', metadata: { name: 'faces' }, spec: { ports: [{ port: 80 }] } });
  await apply('taken', 'faces');
  await eventually(async () => {
    const stalled = (await statusOf('taken', 'faces')).conditions?.find(({ type }) => type === 'Stalled');
    assert.equal(stalled?.reason, 'NameTaken');
  });
  assert.deepEqual(await names(pods, 'taken'), []);
  assert.equal((await plane.client.get(services, 'taken', 'faces')).metadata.resourceVersion, theirs.metadata.resourceVersion);
});

test('conflicts, 429, 500, dropped watches and 410 only delay it', async (t) => {
  const { proxy } = await scene(t, 'faults');
  proxy.fail('POST', /\/services$/, 500);
  proxy.fail('POST', /\/configmaps$/, 429, { headers: { 'retry-after': '0' } });
  proxy.fail('POST', /\/pods$/, 503, { times: 2 });
  proxy.fail('PATCH', /\/facetrainjobs\/faces\/status$/, 409, { times: 2 });
  await apply('faults', 'faces');
  await eventually(async () => assert.deepEqual(await names(pods, 'faults'), ['faces-0-0', 'faces-0-1']));
  await phaseIs('faults', 'faces', 'Pending');
  for (const code of [500, 429, 503, 409]) assert(proxy.writes.some((seen) => seen.code === code), `no ${code} was met`);

  // What happens while no watch is open is seen by those that come after; one starts too far back, and becomes a list.
  proxy.fail('GET', /\/pods\?.*watch=true/, 500, { times: 2 });
  proxy.fail('GET', /\/facetrainjobs\?.*watch=true/, 410);
  const lists = () => proxy.seen.filter(({ method, url, code }) => method === 'GET' && code === 200 && /\/facetrainjobs\?/.test(url) && !url.includes('watch=true')).length;
  const before = lists();
  assert(proxy.dropWatches() >= 6);
  await becomes('faults', 'faces-0-0', 'Running');
  await becomes('faults', 'faces-0-1', 'Running');
  await phaseIs('faults', 'faces', 'Running');
  await eventually(() => assert.equal(lists(), before + 1));
  await eventually(() => assert(proxy.watches >= 6));
});

test('two replicas: the leader is cut off, the other goes on, and no child is made twice', async (t) => {
  await plane.createNamespace('pair');
  const first = await startOperator('pair', 'first', true);
  await eventually(() => assert(first.proxy.writes.some(({ url, code }) => url.includes('/leases') && code < 300)));
  const second = await startOperator('pair', 'second', true);
  t.after(() => second.stop());
  await apply('pair', 'one');
  await eventually(async () => assert.equal((await names(pods, 'pair')).length, 2));
  assert(second.proxy.writes.every(({ url }) => url.includes('/leases')), 'only the leader writes');

  // In the middle of its work: the service and the config are there, and no pod yet.
  first.proxy.fail('POST', /\/pods$/, 500, { times: 1000 });
  await apply('pair', 'two');
  await eventually(async () => assert((await names(configMaps, 'pair')).includes('two-0')));
  await first.cutOff();
  assert.equal(((await first.ended) as Error).name, 'LeadershipLost');
  await eventually(async () => assert.deepEqual(await names(pods, 'pair'), ['one-0-0', 'one-0-1', 'two-0-0', 'two-0-1']));
  await phaseIs('pair', 'two', 'Pending');
  assert.equal(second.proxy.writes.filter(({ method, url, code }) => method === 'POST' && /\/(services|configmaps)$/.test(url) && code === 201).length, 0);
  assert.deepEqual((await statusOf('pair', 'one')).attempt, 0);
});

test('a leader that is asked to stop gives the lease back', async (t) => {
  await plane.createNamespace('handover');
  const first = await startOperator('handover', 'first', true);
  await eventually(() => assert(first.proxy.writes.some(({ url, code }) => url.includes('/leases') && code < 300)));
  const second = await startOperator('handover', 'second', true);
  t.after(() => second.stop());
  await first.stop();
  const lease = defineResource('coordination.k8s.io/v1', 'leases');
  await eventually(async () => {
    const { spec } = (await plane.client.get(lease, 'handover', 'operator')) as unknown as { spec: { holderIdentity: string; leaseTransitions: number } };
    assert.deepEqual([spec.holderIdentity, spec.leaseTransitions], ['second', 1]);
  }, 1_500);
});
