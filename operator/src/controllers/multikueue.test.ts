/** A job of a manager cluster that a worker cluster runs: two API servers, each with the real Kueue and an operator. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { controllerOf } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { connectWorker, createKueueObject, createLocalQueue, startKueue } from '../testing/kueue.ts';
import { TestNamespace } from '../testing/operator-harness.ts';
import { faceTrainJobs, pods, type WorkloadObject, workloads } from './resources.ts';

const NAMESPACE = 'faces';

let manager: ControlPlane;
let worker: ControlPlane;
before(async () => {
  [manager, worker] = await Promise.all([ControlPlane.start(), ControlPlane.start()]);
  await Promise.all([manager, worker].map((plane) => plane.installCrds()));
});
after(() => Promise.all([manager?.stop(), worker?.stop()]));

/** A queue `team` with quota for four pods that ask for one CPU. */
async function makeQueue(plane: ControlPlane, fields: object = {}): Promise<void> {
  await createKueueObject(plane, 'ResourceFlavor', 'cpus', {});
  await createKueueObject(plane, 'ClusterQueue', 'all', {
    spec: {
      namespaceSelector: {},
      resourceGroups: [
        { coveredResources: ['cpu'], flavors: [{ name: 'cpus', resources: [{ name: 'cpu', nominalQuota: '4' }] }] },
      ],
      ...fields,
    },
  });
  await createLocalQueue(plane, NAMESPACE, 'team', 'all');
}

test('MultiKueue sends a job to a worker, whose operator adopts its Workload, and copies its status', async (t) => {
  await startKueue(worker);
  await startKueue(manager, {
    multiKueue: { gcInterval: '1s', externalFrameworks: [{ name: 'FaceTrainJob.v1alpha1.facetrain.dev' }] },
  });
  const here = await TestNamespace.open(t, manager, NAMESPACE, { discoveryMilliseconds: 100 });
  const there = await TestNamespace.open(t, worker, NAMESPACE, { discoveryMilliseconds: 100 });
  await connectWorker(manager, worker, 'worker');
  await createKueueObject(manager, 'MultiKueueConfig', 'workers', { spec: { clusters: ['worker'] } });
  await createKueueObject(manager, 'AdmissionCheck', 'sent', {
    spec: {
      controllerName: 'kueue.x-k8s.io/multikueue',
      parameters: { apiGroup: 'kueue.x-k8s.io', kind: 'MultiKueueConfig', name: 'workers' },
    },
  });
  await makeQueue(worker);
  await makeQueue(manager, { admissionChecksStrategy: { admissionChecks: [{ name: 'sent' }] } });

  await here.applyFaceTrainJob('faces', {
    managedBy: 'kueue.x-k8s.io/multikueue',
    queue: { name: 'team' },
    trainers: { replicas: 2, resources: { requests: { cpu: 1 } } },
  });
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
  // No garbage collector runs here.
  for (const name of await there.names(pods)) await there.delete(pods, name);
  await here.patch(faceTrainJobs, 'faces', { spec: { suspend: false } });
  await there.waitForPods('faces-0-0', 'faces-0-1');
  await there.setAllPodStatuses('Running');
  await there.waitForPhase('faces', 'Running');
  await there.setAllPodStatuses('Succeeded', { exitCode: 0 });
  await here.waitForPhase('faces', 'Succeeded');
  await eventually(async () => {
    const { metadata, status } = (await here.get(workloads, 'facetrainjob-faces')) as WorkloadObject;
    assert(status!.conditions!.some(({ type, status: value }) => type === 'Finished' && value === 'True'));
    assert.deepEqual(metadata.finalizers ?? [], []);
    assert.deepEqual(await there.names(faceTrainJobs), []);
  });
});
