/** The operator against a real API server. There is no kubelet: the tests write the status of pods. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { events } from '../runtime/event-recorder.ts';
import { collectionPath, defineResource, type KubernetesObject } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { settle, startOperator, TestNamespace } from '../testing/operator-harness.ts';
import {
  configMaps,
  faceTrainJobs,
  networkPolicies,
  type PodObject,
  pods,
  quantizeJobs,
  services,
} from './resources.ts';

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

const open = (t: Parameters<typeof TestNamespace.open>[0], namespace: string) =>
  TestNamespace.open(t, plane, namespace);
const ELECTION = { name: 'operator', durationSeconds: 2, renewDeadlineSeconds: 1.5, retrySeconds: 0.2 };
const startReplica = (namespace: string, identity: string) =>
  startOperator(plane, namespace, { identity, election: { namespace, ...ELECTION } });

test('a job gets its service, config and pods, runs, succeeds; nothing is written while nothing changes', async (t) => {
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

test('after a trainer fails a new gang is created, and the old one is deleted before', async (t) => {
  const ns = await open(t, 'restart');
  await ns.applyFaceTrainJob('faces');
  await eventually(async () => assert.equal((await ns.names(pods)).length, 2));
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-1', 'Running');
  await ns.waitForPhase('faces', 'Running');
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 1 });
  await eventually(async () => {
    const names = await ns.names(pods);
    assert(names.includes('faces-1-0') && names.includes('faces-1-1'), names.join());
    assert(!names.includes('faces-0-0'), 'rank 0 of the attempt before');
  });
  const { attempt, restarts } = await ns.statusOf('faces');
  assert.equal(attempt, 1);
  assert.deepEqual([restarts?.count, restarts?.lastRank, restarts?.lastExitCode], [1, 1, 1]);
});

test('a refused create is reported with the message of the server, and tried again once it is allowed', async (t) => {
  const ns = await open(t, 'refused');
  const quotas = defineResource('v1', 'resourcequotas');
  const quota = await ns.create(quotas, {
    apiVersion: 'v1',
    kind: 'ResourceQuota',
    metadata: { name: 'few' },
    spec: { hard: { configmaps: '0' } },
  });
  // The quota controller's part: what of the quota is used.
  await ns.patch(quotas, 'few', { status: { hard: { configmaps: '0' }, used: { configmaps: '0' } } }, 'status');
  await ns.applyFaceTrainJob('faces');
  await eventually(async () => {
    assert.match(
      (await ns.conditionText('faces', 'Ready')) ?? '',
      /^QuotaExceeded: ResourceQuota few refuses ConfigMap faces-0: requested: configmaps=1,/,
    );
  });
  assert.deepEqual(await ns.names(pods), []);
  await plane.client.delete(quotas, 'refused', 'few', quota.metadata.uid);
  // A change of the job makes the operator try again before its next try is due. The API server may enforce a deleted
  // quota for another half minute.
  let changes = 0;
  await eventually(async () => {
    await ns.patch(faceTrainJobs, 'faces', { metadata: { annotations: { changes: String((changes += 1)) } } });
    assert.equal((await ns.names(pods)).length, 2);
  }, 45_000);
});

test('a webhook that does not answer is shown in phase, condition and event; without it the job goes on', async (t) => {
  const ns = await open(t, 'webhook');
  const webhooks = defineResource('admissionregistration.k8s.io/v1', 'mutatingwebhookconfigurations');
  const { metadata } = await plane.client.post<KubernetesObject>(collectionPath(webhooks, null), {
    apiVersion: webhooks.apiVersion,
    kind: 'MutatingWebhookConfiguration',
    metadata: { name: 'injector' },
    webhooks: [
      {
        name: 'inject.example.com',
        admissionReviewVersions: ['v1'],
        sideEffects: 'None',
        failurePolicy: 'Fail',
        namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'webhook' } },
        rules: [{ apiGroups: [''], apiVersions: ['v1'], operations: ['CREATE'], resources: ['pods'] }],
        clientConfig: { service: { namespace: 'default', name: 'no-such-injector' } },
      },
    ],
  });
  // The API server reads its list of webhooks from time to time.
  await eventually(() =>
    assert.rejects(
      ns.create(pods, {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name: 'x' },
        spec: { containers: [{ name: 'x', image: 'x' }] },
      }),
      /failed calling webhook|already exists/,
    ),
  );
  await ns.applyFaceTrainJob('faces');
  const words = /^WebhookFailed: Pod faces-0-0: .*failed calling webhook "inject\.example\.com".*no-such-injector/;
  await eventually(async () => assert.match((await ns.conditionText('faces', 'Stalled')) ?? '', words));
  await ns.waitForPhase('faces', 'Pending');
  await eventually(async () => {
    const { items } = await plane.client.list(events, 'webhook', {});
    assert(items!.some(({ type, note }) => type === 'Warning' && words.test(note)));
  });
  await plane.client.delete(webhooks, null, 'injector', metadata.uid);
  // A change of the job makes the operator try again before its half minute is over.
  let changes = 0;
  await eventually(async () => {
    await ns.patch(faceTrainJobs, 'faces', { metadata: { annotations: { changes: String((changes += 1)) } } });
    assert((await ns.names(pods)).includes('faces-0-1'));
  }, 30_000);
  await eventually(async () => assert.equal(await ns.conditionText('faces', 'Stalled'), undefined));
});

test('creates that fail for another reason are shown with the error, a few failures are not', async (t) => {
  const ns = await open(t, 'broken');
  const { proxy } = ns.operator;
  proxy.fail('PATCH', /\/facetrainjobs\/mute\/status$/, 500, { times: 1_000 });
  await ns.applyFaceTrainJob('mute');
  await ns.waitForPods('mute-0-0', 'mute-0-1');
  proxy.fail('POST', /\/configmaps$/, 500, { times: 3 });
  await ns.applyFaceTrainJob('soon');
  await ns.waitForPods('mute-0-0', 'mute-0-1', 'soon-0-0', 'soon-0-1');
  assert.equal(await ns.conditionText('soon', 'Stalled'), undefined);
  proxy.fail('POST', /\/configmaps$/, 500, { times: 1_000 });
  await ns.applyFaceTrainJob('late');
  await eventually(async () =>
    assert.equal(await ns.conditionText('late', 'Stalled'), 'CreateFailed: ConfigMap late-0: made up by the test'),
  );
  // No status of this job can be written.
  await eventually(async () => {
    const { items } = await plane.client.list(events, 'broken', {});
    const [event] = items!.filter(({ regarding }) => regarding.name === 'mute');
    assert.deepEqual([event?.type, event?.reason], ['Warning', 'ReconcileFailed']);
    assert.match(event!.note, /mute\/status: made up by the test/);
  });
});

test("an object of another owner under a child's name is never changed", async (t) => {
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

test('a job created again under its name deletes what the earlier job has left, and waits for its pods', async (t) => {
  const ns = await open(t, 'anew');
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  // No garbage collector runs here. A finalizer stands for a kubelet that has not ended a pod yet.
  const finalizers = (list: string[] | null) => ns.patch(pods, 'faces-0-0', { metadata: { finalizers: list } });
  await finalizers(['example.com/kubelet']);
  // Of an attempt that the new job does not come to: nothing of it is ever in its way.
  const { labels, ownerReferences } = (await ns.get(pods, 'faces-0-0')).metadata;
  const ofLater = (name: string) => ({ name, ownerReferences, labels: { ...labels, 'facetrain.dev/attempt': '7' } });
  const spec = { containers: [{ name: 'facetrain', image: 'x' }] };
  await ns.create(pods, { apiVersion: 'v1', kind: 'Pod', metadata: ofLater('faces-7-0'), spec });
  await ns.setPodStatus('faces-7-0', 'Failed', { exitCode: 1 });
  await ns.create(configMaps, { apiVersion: 'v1', kind: 'ConfigMap', metadata: ofLater('faces-7') });
  await ns.delete(faceTrainJobs, 'faces');
  const { metadata } = await ns.applyFaceTrainJob('faces');
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Ready')) ?? '',
      /^Stopping: pod faces-0-0 of an earlier job of this name has not ended yet/,
    ),
  );
  await ns.waitForPods('faces-0-0');
  await finalizers(null);
  await eventually(async () => {
    for (const resource of [pods, services, networkPolicies, configMaps])
      for (const name of await ns.names(resource))
        assert.equal((await ns.get(resource, name)).metadata.ownerReferences?.[0]?.uid, metadata.uid, name);
    assert.deepEqual(await ns.names(pods), ['faces-0-0', 'faces-0-1']);
  });
  assert.equal(await ns.conditionText('faces', 'Stalled'), undefined);
});

test('pods that a deleted job has left without an owner are waited for, and not touched', async (t) => {
  const ns = await open(t, 'orphans');
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  // As `kubectl delete --cascade=orphan` leaves them.
  for (const name of ['faces-0-0', 'faces-0-1']) await ns.patch(pods, name, { metadata: { ownerReferences: null } });
  await ns.delete(faceTrainJobs, 'faces');
  await ns.applyFaceTrainJob('faces');
  await eventually(async () =>
    assert.match((await ns.conditionText('faces', 'Ready')) ?? '', /^Stopping: pod faces-0-\d of an earlier job/),
  );
  await ns.delete(pods, 'faces-0-0');
  await eventually(async () =>
    assert.match((await ns.conditionText('faces', 'Ready')) ?? '', /^Stopping: pod faces-0-1 of an earlier job/),
  );
  assert.deepEqual(await ns.names(pods), ['faces-0-1']);
});

test('of jobs with the same output folder one waits for another: one with pods, else an older one', async (t) => {
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
  // creationTimestamp has whole seconds.
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

test('pods of a deleted job hold its checkpoints against a job that names them in another spelling', async (t) => {
  const ns = await open(t, 'held-folder');
  await ns.applyFaceTrainJob('first', { output: { uri: 'pvc://data/out' } });
  await ns.waitForPods('first-0-0', 'first-0-1');
  await ns.delete(faceTrainJobs, 'first');
  await ns.applyFaceTrainJob('second', { checkpoint: { uri: 'pvc://data//out/./checkpoints/' } });
  await eventually(async () =>
    assert.equal(
      await ns.conditionText('second', 'Ready'),
      'OutputInUse: pod first-0-0 of the deleted FaceTrainJob first writes to the same folder and has not finished',
    ),
  );
  await ns.delete(pods, 'first-0-0');
  await ns.delete(pods, 'first-0-1');
  await ns.waitForPods('second-0-0', 'second-0-1');
});

test('of QuantizeJobs that publish to one place, one waits for the other', async (t) => {
  const ns = await open(t, 'one-artifact');
  const s3 = { endpoint: 'http://store:9000' };
  await ns.applyQuantizeJob('first', { output: { uri: 's3://models/faces', s3 } });
  await eventually(async () => assert.equal((await ns.names(pods)).length, 1));
  await ns.applyQuantizeJob('second', {
    output: { uri: 's3://models/faces/', s3: { endpoint: 'http://store:9000/' } },
  });
  await eventually(async () =>
    assert.equal(
      await ns.conditionText('second', 'Ready', quantizeJobs),
      'OutputInUse: QuantizeJob first writes to the same folder and has not finished',
    ),
  );
  const [pod] = await ns.names(pods);
  await ns.setPodStatus(pod!, 'Succeeded', { exitCode: 0 });
  await eventually(async () => assert.equal((await ns.names(pods)).length, 2));
});

test('conflicts, 429, 500, dropped watches and 410 only delay a job', async (t) => {
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
      `no ${code} was answered`,
    );

  // Changes made while no watch is open are seen by the next watches. One starts from a version that is too old (410),
  // so the objects are listed again.
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

test('two replicas: when the leader is cut off the other continues, and no child is created twice', async (t) => {
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

  // Cut off in the middle of a job: its service and config exist, and no pod yet.
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

test('a leader that cannot renew ends, and what it had begun to create never arrives', async (t) => {
  await plane.createNamespace('held');
  const first = await startReplica('held', 'first');
  t.after(() => first.stop());
  await eventually(() => assert(first.proxy.writes.some(({ url, code }) => url.includes('/leases') && code < 300)));
  const second = await startReplica('held', 'second');
  t.after(() => second.stop());
  const ns = new TestNamespace(plane, 'held', second);

  const creates = first.proxy.hold('POST', /\/pods(\?|$)/);
  await ns.applyFaceTrainJob('faces');
  await eventually(() => assert.equal(creates.count, 1));
  const renewals = first.proxy.hold('PUT', /\/leases\//);
  const lost = await first.ended;
  assert.equal((lost as Error).name, 'LeadershipLost');
  const tookOver = () =>
    second.proxy.writes.some(({ url, method, code }) => url.includes('/leases/') && method === 'PUT' && code < 300);
  assert(!tookOver(), 'the first leader ends before the second begins');
  const forwarded = first.proxy.writes.length;
  await eventually(() => assert(tookOver()));
  await eventually(() => assert.equal(creates.count, 0, 'the connections of the first are closed'));
  creates.release();
  renewals.release();
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await ns.waitForPhase('faces', 'Pending');
  assert.deepEqual(first.proxy.writes.slice(forwarded), []);
});

test('a leader that stops releases the lease', async (t) => {
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
