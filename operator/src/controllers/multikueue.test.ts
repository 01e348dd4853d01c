/** Jobs of a manager cluster that a worker cluster runs: two API servers, each with the real Kueue and an operator. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { controllerOf, defineResource } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { connectWorker, createKueueObject, createLocalQueue, startKueue } from '../testing/kueue.ts';
import { TestNamespace } from '../testing/operator-harness.ts';
import { faceTrainJobs, type PodObject, pods, quantizeJobs, type WorkloadObject, workloads } from './resources.ts';

const clusterQueues = defineResource('kueue.x-k8s.io/v1beta2', 'clusterqueues');

let manager: ControlPlane;
let worker: ControlPlane;
before(async () => {
  [manager, worker] = await Promise.all([ControlPlane.start(), ControlPlane.start()]);
  await Promise.all([manager, worker].map((plane) => plane.installCrds()));
  await startKueue(worker);
  const externalFrameworks = ['FaceTrainJob', 'QuantizeJob'].map((kind) => ({
    name: `${kind}.v1alpha1.facetrain.dev`,
  }));
  await startKueue(manager, { multiKueue: { gcInterval: '1s', externalFrameworks } });
  await connectWorker(manager, worker, 'worker');
  await createKueueObject(manager, 'MultiKueueConfig', 'workers', { spec: { clusters: ['worker'] } });
  await createKueueObject(manager, 'AdmissionCheck', 'sent', {
    spec: {
      controllerName: 'kueue.x-k8s.io/multikueue',
      parameters: { apiGroup: 'kueue.x-k8s.io', kind: 'MultiKueueConfig', name: 'workers' },
    },
  });
  for (const plane of [manager, worker]) await createKueueObject(plane, 'ResourceFlavor', 'cpus', {});
});
after(() => Promise.all([manager?.stop(), worker?.stop()]));

const quotaOf = (cpus: number) => [
  {
    coveredResources: ['cpu'],
    flavors: [{ name: 'cpus', resources: [{ name: 'cpu', nominalQuota: String(cpus) }] }],
  },
];

/** A queue `team` in a namespace, with quota for so many pods that ask for one CPU. */
async function makeQueue(plane: ControlPlane, namespace: string, cpus: number, fields: object = {}): Promise<void> {
  await createKueueObject(plane, 'ClusterQueue', namespace, {
    spec: { namespaceSelector: {}, resourceGroups: quotaOf(cpus), ...fields },
  });
  await createLocalQueue(plane, namespace, 'team', namespace);
}

/** A namespace on both clusters, with operators and queues: of 4 pods on the manager. */
async function open(
  t: { after(end: () => Promise<void>): void },
  namespace: string,
  cpus: number,
): Promise<{ here: TestNamespace; there: TestNamespace }> {
  const here = await TestNamespace.open(t, manager, namespace, { discoveryMilliseconds: 100 });
  const there = await TestNamespace.open(t, worker, namespace, { discoveryMilliseconds: 100 });
  await makeQueue(worker, namespace, cpus);
  await makeQueue(manager, namespace, 4, { admissionChecksStrategy: { admissionChecks: [{ name: 'sent' }] } });
  return { here, there };
}

const MANAGED = { managedBy: 'kueue.x-k8s.io/multikueue', queue: { name: 'team' } };
const requests = { requests: { cpu: 1 } };

/** The Workload is finished, and nothing of the job is left on the worker. */
const waitUntilOver = (here: TestNamespace, there: TestNamespace, workload: string) =>
  eventually(async () => {
    const { metadata, status } = (await here.get(workloads, workload)) as WorkloadObject;
    assert(status!.conditions!.some(({ type, status: value }) => type === 'Finished' && value === 'True'));
    assert.deepEqual(metadata.finalizers ?? [], []);
    assert.deepEqual([await there.names(faceTrainJobs), await there.names(quantizeJobs)], [[], []]);
  });

test('MultiKueue sends a job to a worker, whose operator adopts its Workload, and copies its status', async (t) => {
  const { here, there } = await open(t, 'faces', 1);
  await here.applyFaceTrainJob('faces', { ...MANAGED, trainers: { replicas: 2, resources: requests } });
  // The worker has no room yet.
  await eventually(async () =>
    assert.match(
      (await here.conditionText('faces', 'Ready')) ?? '',
      /^Queued: queue team: quota is reserved; admission checks: sent \(Pending\)/,
    ),
  );
  await worker.client.patch(clusterQueues, null, 'faces', { spec: { resourceGroups: quotaOf(4) } });
  await there.waitForPods('faces-0-0', 'faces-0-1');
  const sent = await there.get(faceTrainJobs, 'faces');
  const workload = (await there.get(workloads, 'facetrainjob-faces')) as WorkloadObject;
  assert.equal(controllerOf(workload)?.uid, sent.metadata.uid);
  assert.deepEqual(await there.names(workloads), ['facetrainjob-faces']);
  await there.setAllPodStatuses('Running');
  await here.waitForPhase('faces', 'Running');
  assert.deepEqual(await here.names(pods), []);

  // A suspension ends the job on the worker; it comes back when it is resumed.
  await here.patch(faceTrainJobs, 'faces', { spec: { suspend: true } });
  await eventually(async () => {
    assert.deepEqual(await here.names(workloads), []);
    assert.deepEqual(await there.names(workloads), []);
    assert.deepEqual(await there.names(faceTrainJobs), []);
  });
  await here.waitForPhase('faces', 'Suspended');
  assert.match((await here.conditionText('faces', 'Ready'))!, /^Suspended: /);
  // No garbage collector runs here.
  for (const name of await there.names(pods)) await there.delete(pods, name);
  await here.patch(faceTrainJobs, 'faces', { spec: { suspend: false } });
  await there.waitForPods('faces-0-0', 'faces-0-1');
  await there.setAllPodStatuses('Running');
  await there.waitForPhase('faces', 'Running');
  await here.waitForPhase('faces', 'Running');
  await there.setAllPodStatuses('Succeeded', { exitCode: 0 });
  await here.waitForPhase('faces', 'Succeeded');
  await waitUntilOver(here, there, 'facetrainjob-faces');
});

test('an elastic gang begins with the quota of the worker, and grows there', async (t) => {
  const { here, there } = await open(t, 'elastic', 2);
  const elastic = { minReplicas: 2, maxReplicas: 4, scaleDownSeconds: 600, scaleUpSeconds: 1 };
  await here.applyFaceTrainJob('faces', { ...MANAGED, trainers: { replicas: 3, elastic, resources: requests } });
  /** Trainers and placeholders go to a node, and those that are being deleted end. */
  const play = async () => {
    const { items } = await worker.client.list<PodObject>(pods, there.namespace, {});
    for (const { metadata, spec, status } of items!) {
      const { name, uid, deletionTimestamp } = metadata;
      if (deletionTimestamp !== undefined) await worker.client.delete(pods, there.namespace, name, uid, 0);
      else if (spec.nodeName === undefined) await there.schedule(name, 'somewhere');
      else if (status?.phase === 'Pending') await there.setPodStatus(name, 'Running');
    }
  };
  const becomes = (phase: string, desired: number) =>
    eventually(async () => {
      await play();
      const { phase: found, trainers } = await here.statusOf('faces');
      assert.deepEqual([found, trainers?.desired], [phase, desired]);
    });
  await becomes('Running', 2);
  await eventually(async () =>
    assert.deepEqual(await there.names(workloads), ['facetrainjob-faces', 'facetrainjob-faces.2']),
  );
  await worker.client.patch(clusterQueues, null, 'elastic', { spec: { resourceGroups: quotaOf(4) } });
  await becomes('Running', 3);
  const { scaling, restarts } = await here.statusOf('faces');
  assert.deepEqual([scaling!.history.at(-1)!.reason, restarts], ['ScaledUp', undefined]);
  // The manager asks for quota once: what the gang has gained is the worker's.
  assert.deepEqual(await here.names(workloads), ['facetrainjob-faces']);
  for (const name of await there.names(pods)) await there.setPodStatus(name, 'Succeeded', { exitCode: 0 });
  await here.waitForPhase('faces', 'Succeeded');
  await waitUntilOver(here, there, 'facetrainjob-faces');
});

test('a QuantizeJob runs on a worker, and its artifact is in the status here', async (t) => {
  const { here, there } = await open(t, 'quantize', 1);
  await here.applyQuantizeJob('small', { ...MANAGED, quantizer: { resources: requests } });
  await there.waitForPods('small-0-quantizer');
  await there.setPodStatus('small-0-quantizer', 'Running');
  await here.waitForPhase('small', 'Running', quantizeJobs);
  await here.patch(quantizeJobs, 'small', { spec: { suspend: true } });
  await here.waitForPhase('small', 'Suspended', quantizeJobs);
  await eventually(async () => assert.deepEqual(await there.names(quantizeJobs), []));
  for (const name of await there.names(pods)) await there.delete(pods, name);
  await here.patch(quantizeJobs, 'small', { spec: { suspend: false } });
  await there.waitForPods('small-0-quantizer');
  await there.setPodStatus('small-0-quantizer', 'Running');
  await here.waitForPhase('small', 'Running', quantizeJobs);
  const artifact = { bytes: 7, meanCosine: 0.99, gate: 'Passed' as const };
  await there.setPodStatus('small-0-quantizer', 'Succeeded', { exitCode: 0, message: { artifact } });
  await here.waitForPhase('small', 'Succeeded', quantizeJobs);
  assert.partialDeepStrictEqual((await here.quantizeStatusOf('small')).artifact, artifact);
  await waitUntilOver(here, there, 'quantizejob-small');
});
