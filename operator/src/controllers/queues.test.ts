/** Jobs in a queue of the real Kueue, which runs beside the API server. The tests play the kubelet. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parse, parseAllDocuments } from 'yaml';
import { root } from '../../../hack/lib/paths.mjs';
import type { KubernetesObject } from '../runtime/resource.ts';
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

/** A ClusterQueue with quota for so many pods that ask for one CPU, and a LocalQueue `team` for it. */
async function makeQueue(namespace: string, cpus: number): Promise<void> {
  await createKueueObject(plane, 'ClusterQueue', namespace, {
    spec: {
      namespaceSelector: {},
      preemption: { withinClusterQueue: 'LowerPriority' },
      resourceGroups: [
        {
          coveredResources: ['cpu'],
          flavors: [{ name: 'gpus', resources: [{ name: 'cpu', nominalQuota: String(cpus) }] }],
        },
      ],
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
