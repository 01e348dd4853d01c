/** Jobs in a queue of the real Kueue, which runs beside the API server. The tests play the kubelet. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { QUEUE_LABEL } from '@facetrain/planner/queue';
import { parse, parseAllDocuments } from 'yaml';
import { root } from '../../../hack/lib/paths.mjs';
import { defineResource, type KubernetesObject } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { createKueueObject, createLocalQueue, startKueue } from '../testing/kueue.ts';
import { TestNamespace } from '../testing/operator-harness.ts';
import { faceTrainJobs, type PodObject, pods, quantizeJobs, type WorkloadObject, workloads } from './resources.ts';

const FLAVOR = {
  nodeLabels: { pool: 'gpus' },
  tolerations: [{ key: 'gpu', operator: 'Exists', effect: 'NoSchedule' }],
};
/** The operator looks this often for what the cluster serves. */
const DISCOVERY_MILLISECONDS = 100;

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

const clusterQueues = defineResource('kueue.x-k8s.io/v1beta2', 'clusterqueues');

/** Of a ClusterQueue. */
const quotaOf = (cpus: number) => ({
  resourceGroups: [
    {
      coveredResources: ['cpu'],
      flavors: [{ name: 'gpus', resources: [{ name: 'cpu', nominalQuota: String(cpus) }] }],
    },
  ],
});

/** A ClusterQueue with quota for so many pods that ask for one CPU, and a LocalQueue `team` for it. */
async function makeQueue(namespace: string, cpus: number): Promise<void> {
  await createKueueObject(plane, 'ClusterQueue', namespace, {
    spec: {
      namespaceSelector: {},
      preemption: { withinClusterQueue: 'LowerPriority' },
      ...quotaOf(cpus),
    },
  });
  await createLocalQueue(plane, namespace, 'team', namespace);
}

const queued = (replicas: number, priorityClassName = 'low') => ({
  globalBatchSize: 60,
  trainers: { replicas, resources: { requests: { cpu: 1 } } },
  queue: { name: 'team', priorityClassName },
});

const podsOf = async (ns: TestNamespace, job: string): Promise<PodObject[]> =>
  (await plane.client.list<PodObject>(pods, ns.namespace, { labelSelector: `facetrain.dev/job-name=${job}` })).items!;
/** Names of the job's pods that are not being deleted. */
const runningPods = async (ns: TestNamespace, job: string): Promise<string[]> =>
  (await podsOf(ns, job))
    .filter(({ metadata }) => metadata.deletionTimestamp === undefined)
    .map(({ metadata }) => metadata.name)
    .sort();
const waitForPods = (ns: TestNamespace, job: string, ...names: string[]) =>
  eventually(async () => assert.deepEqual(await runningPods(ns, job), names));
const reasonOf = async (ns: TestNamespace, job: string) => await ns.conditionText(job, 'Ready');
const waitForReason = (ns: TestNamespace, job: string, reason: RegExp) =>
  eventually(async () => assert.match((await reasonOf(ns, job)) ?? '', reason));
async function workloadCondition(ns: TestNamespace, workload: string, type: string): Promise<string | undefined> {
  const { status } = (await ns.get(workloads, workload)) as WorkloadObject;
  const found = status?.conditions?.find((condition) => condition.type === type);
  return found && `${found.status} ${found.reason}`;
}

/** Pods on a node: the API server then waits for the kubelet when they are deleted. */
async function run(ns: TestNamespace, job: string): Promise<void> {
  for (const name of await runningPods(ns, job)) {
    await ns.schedule(name, 'somewhere');
    await ns.setPodStatus(name, 'Running');
  }
  await ns.waitForPhase(job, 'Running');
}
/** The kubelet ends the pods that are being deleted. */
async function reap(ns: TestNamespace, job: string): Promise<void> {
  for (const { metadata } of await podsOf(ns, job))
    if (metadata.deletionTimestamp !== undefined)
      await plane.client.delete(pods, ns.namespace, metadata.name, metadata.uid, 0);
}
async function finish(ns: TestNamespace, job: string): Promise<void> {
  for (const name of await runningPods(ns, job)) await ns.setPodStatus(name, 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase(job, 'Succeeded');
}

test('a job whose queue nobody serves says so, and starts to queue when Kueue is installed', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'late', { discoveryMilliseconds: DISCOVERY_MILLISECONDS });
  await ns.applyFaceTrainJob('faces', queued(1));
  await ns.applyFaceTrainJob('other', { trainers: { replicas: 1 } });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Stalled')) ?? '',
      /^QueueUnavailable: spec.queue: team; .*install Kueue/,
    ),
  );
  await waitForPods(ns, 'other', 'other-0-0');
  assert.equal(
    ns.operator.proxy.requests.some(({ url }) => /workloads\?.*watch/.test(url)),
    false,
  );

  await startKueue(plane, { waitForPodsReady: { timeout: '1h' } });
  await createKueueObject(plane, 'ResourceFlavor', 'gpus', { spec: FLAVOR });
  await waitForReason(ns, 'faces', /^QueueUnavailable: spec.queue: team; WorkloadPriorityClass low: .* not found/);
  for (const [name, value] of Object.entries({ lowest: 1, low: 2, high: 10 }))
    await createKueueObject(plane, 'WorkloadPriorityClass', name, { value });
  // The operator looks again by itself, after 30 s.
  await ns.patch(faceTrainJobs, 'faces', { metadata: { labels: { changed: 'true' } } });
  await waitForReason(ns, 'faces', /^Queued: queue team: LocalQueue team doesn't exist/);
  assert.deepEqual(await runningPods(ns, 'faces'), []);
  await makeQueue('late', 1);
  await waitForPods(ns, 'faces', 'faces-0-0');
});

test('a job whose label names a queue starts when its spec does', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'labelled');
  await makeQueue('labelled', 1);
  const { queue, ...unqueued } = queued(1);
  await ns.applyFaceTrainJob('faces', { ...unqueued, suspend: true });
  await ns.patch(faceTrainJobs, 'faces', { metadata: { labels: { [QUEUE_LABEL]: 'team' } } });
  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: false } });
  await eventually(async () =>
    assert.match((await ns.conditionText('faces', 'Stalled')) ?? '', /^QueueNotSet: .*queue-name: team; .*spec\.queue/),
  );
  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: true } });
  await waitForReason(ns, 'faces', /^Suspended/);
  assert.deepEqual(await podsOf(ns, 'faces'), []);
  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: false, queue } });
  await waitForPods(ns, 'faces', 'faces-0-0');
  assert.equal(await workloadCondition(ns, 'facetrainjob-faces', 'Admitted'), 'True Admitted');
});

test('of gangs of 3 and 3 under a quota for 4 one waits; a higher priority preempts; all finish', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'preemption');
  await makeQueue('preemption', 4);
  await ns.applyFaceTrainJob('first', queued(3));
  await waitForPods(ns, 'first', 'first-0-0', 'first-0-1', 'first-0-2');
  for (const { spec, metadata } of await podsOf(ns, 'first')) {
    const { nodeSelector, tolerations } = spec as unknown as { nodeSelector: object; tolerations: { key: string }[] };
    assert.deepEqual(nodeSelector, FLAVOR.nodeLabels);
    assert.deepEqual(
      tolerations.filter(({ key }) => key === 'gpu'),
      FLAVOR.tolerations,
    );
    assert.equal(metadata.annotations?.['kueue.x-k8s.io/workload'], 'facetrainjob-first');
  }
  await run(ns, 'first');
  await eventually(async () =>
    assert.equal(await workloadCondition(ns, 'facetrainjob-first', 'PodsReady'), 'True Started'),
  );

  // Kueue admits Workloads of one priority and of one second in any order.
  await ns.applyFaceTrainJob('second', queued(3, 'lowest'));
  await waitForReason(ns, 'second', /^Queued: queue team: couldn't assign flavors .*insufficient unused quota for cpu/);
  assert.deepEqual(await runningPods(ns, 'second'), []);
  assert.equal((await ns.statusOf('second')).startTime, undefined);

  await ns.applyFaceTrainJob('urgent', queued(3, 'high'));
  await waitForReason(ns, 'first', /^(QueueEvicted|Stopping|Queued): /);
  await waitForPods(ns, 'first');
  // The quota is the old gang's until its processes have ended.
  assert.deepEqual(await runningPods(ns, 'urgent'), []);
  assert.equal(await workloadCondition(ns, 'facetrainjob-first', 'QuotaReserved'), 'True QuotaReserved');
  await reap(ns, 'first');
  await waitForPods(ns, 'urgent', 'urgent-0-0', 'urgent-0-1', 'urgent-0-2');
  await waitForReason(ns, 'first', /^Queued: queue team: /);

  await run(ns, 'urgent');
  await finish(ns, 'urgent');
  await eventually(async () =>
    assert.equal(await workloadCondition(ns, 'facetrainjob-urgent', 'Finished'), 'True Succeeded'),
  );
  await waitForPods(ns, 'first', 'first-1-0', 'first-1-1', 'first-1-2');
  await run(ns, 'first');
  const { attempt, restarts } = await ns.statusOf('first');
  assert.deepEqual({ attempt, restarts }, { attempt: 1, restarts: undefined });
  await finish(ns, 'first');
  await waitForPods(ns, 'second', 'second-0-0', 'second-0-1', 'second-0-2');
  await finish(ns, 'second');

  for (const name of ['first', 'second', 'urgent']) await ns.delete(faceTrainJobs, name);
  await eventually(async () => assert.deepEqual(await ns.names(workloads), []));
});

test('a suspended job gives its quota back; one whose Workload is deactivated stops until it is active', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'suspension');
  await makeQueue('suspension', 1);
  await ns.applyFaceTrainJob('faces', queued(1));
  await waitForPods(ns, 'faces', 'faces-0-0');
  await run(ns, 'faces');
  await ns.applyQuantizeJob('small', {
    queue: { name: 'team' },
    quantizer: { resources: { requests: { cpu: 1 } } },
  });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('small', 'Ready', quantizeJobs)) ?? '',
      /^Queued: queue team: couldn't assign/,
    ),
  );
  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: true } });
  await waitForPods(ns, 'faces');
  await reap(ns, 'faces');
  await waitForPods(ns, 'small', 'small-0-quantizer');
  assert.deepEqual(await ns.names(workloads), ['quantizejob-small']);

  await ns.patch(workloads, 'quantizejob-small', { spec: { active: false } });
  await waitForPods(ns, 'small');
  await eventually(async () =>
    assert.match((await ns.conditionText('small', 'Ready', quantizeJobs)) ?? '', /^Queued: .*spec.active to true/),
  );
  await eventually(async () =>
    assert.equal(await workloadCondition(ns, 'quantizejob-small', 'QuotaReserved'), 'False Pending'),
  );
  await ns.patch(workloads, 'quantizejob-small', { spec: { active: true } });
  await waitForPods(ns, 'small', 'small-1-quantizer');
  assert.equal((await ns.quantizeStatusOf('small')).restarts, undefined);
});

test('a Workload that is deleted stops its gang and keeps the quota until then; the job queues again', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'deletion');
  await makeQueue('deletion', 1);
  await ns.applyFaceTrainJob('faces', queued(1));
  await waitForPods(ns, 'faces', 'faces-0-0');
  await run(ns, 'faces');
  const before = await ns.get(workloads, 'facetrainjob-faces');
  await ns.delete(workloads, 'facetrainjob-faces');
  await waitForPods(ns, 'faces');
  assert.equal((await ns.get(workloads, 'facetrainjob-faces')).metadata.uid, before.metadata.uid);
  await reap(ns, 'faces');
  await waitForPods(ns, 'faces', 'faces-1-0');
  assert.notEqual((await ns.get(workloads, 'facetrainjob-faces')).metadata.uid, before.metadata.uid);
});

test('of a namespace that is deleted while a gang trains nothing stays, and little is tried in vain', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'leaving');
  await makeQueue('leaving', 2);
  await ns.applyFaceTrainJob('faces', queued(2));
  await waitForPods(ns, 'faces', 'faces-0-0', 'faces-0-1');
  await run(ns, 'faces');
  const before = ns.operator.proxy.writes.length;
  // No controller deletes here what is in it, so the test does. The API server refuses what is new.
  const namespaces = defineResource('v1', 'namespaces');
  const { uid } = (await plane.client.get(namespaces, null, ns.namespace)).metadata;
  await plane.client.delete(namespaces, null, ns.namespace, uid);
  await ns.delete(pods, 'faces-0-1');
  await waitForPods(ns, 'faces');
  await reap(ns, 'faces');
  await waitForReason(ns, 'faces', /^ChildRefused: ConfigMap faces-1: .*being terminated/);
  // Kueue's finalizer would keep the namespace.
  await ns.delete(workloads, 'facetrainjob-faces');
  await ns.delete(faceTrainJobs, 'faces');
  await eventually(async () => assert.deepEqual(await ns.names(workloads), []));
  const writes = ns.operator.proxy.writes.slice(before).map(({ method, url, code }) => `${method} ${url} ${code}`);
  assert(writes.length < 25, writes.join('\n'));
});

/** A job whose gang may have two to four pods. */
const elastic = (replicas: number) => ({
  globalBatchSize: 60,
  trainers: {
    replicas,
    elastic: { minReplicas: 2, maxReplicas: 4, scaleUpSeconds: 1 },
    resources: { requests: { cpu: 1 } },
  },
  queue: { name: 'team', priorityClassName: 'low' },
});
const names = (attempt: number, ...ranks: number[]) => ranks.map((rank) => `faces-${attempt}-${rank}`);
const scale = (ns: TestNamespace, replicas: number) =>
  ns.patch(faceTrainJobs, 'faces', { spec: { trainers: { replicas } } });
/** The gang has stopped for another number of pods: the kubelet ends its pods, and starts those that follow. */
async function restart(ns: TestNamespace, attempt: number, size: number): Promise<void> {
  const ranks = [0, 1, 2, 3].slice(0, size);
  await eventually(async () => {
    await reap(ns, 'faces');
    assert.deepEqual(await runningPods(ns, 'faces'), names(attempt, ...ranks));
  });
  await run(ns, 'faces');
}

test('an elastic gang of 4, 3, 4, 2 and 4 pods gives quota back, and asks for it again', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'elastic');
  await makeQueue('elastic', 4);
  await ns.applyFaceTrainJob('faces', elastic(4));
  await waitForPods(ns, 'faces', ...names(0, 0, 1, 2, 3));
  await run(ns, 'faces');

  await scale(ns, 3);
  await restart(ns, 1, 3);
  await ns.applyQuantizeJob('small', {
    queue: { name: 'team', priorityClassName: 'low' },
    quantizer: { resources: { requests: { cpu: 1 } } },
  });
  await waitForPods(ns, 'small', 'small-0-quantizer');

  // Another job has the quota by now. The three train on, and the status says what they wait for.
  await scale(ns, 4);
  await waitForReason(ns, 'faces', /^PodsReady: .* quota for 1 more pod is waited for: couldn't assign flavors/);
  assert.deepEqual(await runningPods(ns, 'faces'), names(1, 0, 1, 2));
  await ns.delete(quantizeJobs, 'small');
  for (const { metadata } of await podsOf(ns, 'small'))
    await plane.client.delete(pods, ns.namespace, metadata.name, metadata.uid, 0);
  const more = 'faces-1-3';
  await waitForPods(ns, 'faces', ...names(1, 0, 1, 2), more);
  const placeholder = (await podsOf(ns, 'faces')).find(({ metadata }) => metadata.name === more)!;
  assert.equal(placeholder.metadata.annotations?.['kueue.x-k8s.io/workload'], 'facetrainjob-faces.3');
  await ns.schedule(more, 'somewhere');
  await restart(ns, 2, 4);

  await scale(ns, 2);
  await restart(ns, 3, 2);
  await eventually(async () => assert.deepEqual(await ns.names(workloads), ['facetrainjob-faces']));
  await scale(ns, 4);
  await waitForPods(ns, 'faces', ...names(3, 0, 1, 2, 3));
  for (const name of names(3, 2, 3)) await ns.schedule(name, 'somewhere');
  await restart(ns, 4, 4);
  const { restarts, scaling } = await ns.statusOf('faces');
  assert.deepEqual([restarts, scaling!.history.map(({ trainers }) => trainers)], [undefined, [3, 4, 2, 4]]);
  await finish(ns, 'faces');
  await eventually(async () => assert.deepEqual(await ns.names(workloads), ['facetrainjob-faces']));
});

test('an elastic gang begins with the quota there is, and goes on with less when some is taken back', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'partly');
  await makeQueue('partly', 3);
  await ns.applyFaceTrainJob('faces', elastic(4));
  await waitForPods(ns, 'faces', ...names(0, 0, 1, 2));
  await run(ns, 'faces');
  await waitForReason(ns, 'faces', /^PodsReady: .* quota for 1 more pod is waited for: couldn't assign flavors/);
  await plane.client.patch(clusterQueues, null, 'partly', { spec: quotaOf(4) });
  await waitForPods(ns, 'faces', ...names(0, 0, 1, 2, 3));
  await ns.schedule('faces-0-3', 'somewhere');
  await restart(ns, 1, 4);

  // A job of a higher priority preempts what was admitted last.
  await ns.applyFaceTrainJob('urgent', queued(1, 'high'));
  await restart(ns, 2, 3);
  await waitForPods(ns, 'urgent', 'urgent-0-0');
  const { restarts, scaling } = await ns.statusOf('faces');
  assert.deepEqual([restarts, scaling!.history.map(({ trainers }) => trainers)], [undefined, [4, 3]]);
  assert.match(scaling!.history.at(-1)!.message, /^Kueue takes the quota of 1 of 4 pods back, .* with 3: Preempted/);
});

test('the queue of the guide, made by its manifests, admits the job of the guide with all its pods', async (t) => {
  const guide = await readFile(join(root, 'docs', 'kubernetes.md'), 'utf8');
  const section = guide.slice(guide.indexOf('\n## Queues with Kueue'), guide.indexOf('\n## Will it fit?'));
  const [administrators, users] = [...section.matchAll(/^```yaml\n([\s\S]*?)^```$/gm)].map(([, block]) => block!);
  const ns = await TestNamespace.open(t, plane, 'faces');
  for (const document of parseAllDocuments(administrators!)) {
    const object = document.toJS() as KubernetesObject & { kind: 'ClusterQueue' };
    const { kind, metadata, apiVersion: _, ...fields } = object;
    if (metadata.namespace === undefined) await createKueueObject(plane, kind, metadata.name, fields);
    else await createLocalQueue(plane, metadata.namespace, metadata.name, 'gpus');
  }
  const { spec } = parse(users!) as { spec: Record<string, unknown> };
  await ns.applyFaceTrainJob('faces', spec);
  await waitForPods(ns, 'faces', ...Array.from({ length: 8 }, (_, rank) => `faces-0-${rank}`));
  const [pod] = await podsOf(ns, 'faces');
  assert.deepEqual((pod!.spec as { nodeSelector?: object }).nodeSelector, {
    'nvidia.com/gpu.product': 'NVIDIA-A100-SXM4-80GB',
  });
});
