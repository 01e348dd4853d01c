/**
 * Gangs for KAI Scheduler and Volcano: what the operator makes for them in a real API server. The schedulers do not
 * run; pods get their nodes from the tests.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { controllerOf, type KubernetesObject } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { TestNamespace } from '../testing/operator-harness.ts';
import { installPodGroups, KAI_GROUPS, removePodGroups, VOLCANO_GROUPS } from '../testing/pod-group-crds.ts';
import { faceTrainJobs, type PodObject, pods } from './resources.ts';

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

type Group = KubernetesObject & { spec?: object };

const KAI = { gang: { mode: 'KAI', queue: 'team' } };
const elastic = { minReplicas: 2, maxReplicas: 3, scaleDownSeconds: 600, scaleUpSeconds: 600 };

/** The pods that name this group in this annotation. */
async function membersOf(ns: TestNamespace, group: string, annotation: string) {
  const { items } = await ns.plane.client.list<PodObject & { spec: { schedulerName?: string } }>(
    pods,
    ns.namespace,
    {},
  );
  return items!.filter(({ metadata }) => metadata.annotations?.[annotation] === group);
}

/** Ends the processes of all pods that are being deleted, as the kubelet does. */
async function reap(ns: TestNamespace): Promise<void> {
  const { items } = await ns.plane.client.list<PodObject>(pods, ns.namespace, {});
  for (const { metadata } of items!)
    if (metadata.deletionTimestamp !== undefined)
      await ns.plane.client.delete(pods, ns.namespace, metadata.name, metadata.uid, 0);
}

test('a gang of KAI waits for its PodGroups to be served; each attempt has its own', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'kai', { discoveryMilliseconds: 100 });
  const job = await ns.applyFaceTrainJob('faces', { ...KAI, trainers: { replicas: 2, elastic } });
  await ns.applyFaceTrainJob('plain');
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Stalled')) ?? '',
      /^GangUnavailable: spec\.gang\.mode: KAI; the cluster serves no scheduling\.run\.ai\/v2alpha2 PodGroup/,
    ),
  );
  await ns.waitForPods('plain-0-0', 'plain-0-1');

  await installPodGroups(plane, KAI_GROUPS);
  await ns.waitForPods('faces-0-0', 'faces-0-1', 'plain-0-0', 'plain-0-1');
  const group = (await ns.get(KAI_GROUPS, 'faces-0')) as Group;
  assert.deepEqual(group.spec, { minMember: 2, queue: 'team' });
  assert.partialDeepStrictEqual(controllerOf(group), { kind: 'FaceTrainJob', name: 'faces', uid: job.metadata.uid });
  const members = await membersOf(ns, 'faces-0', 'pod-group-name');
  assert.equal(members.length, 2);
  for (const { metadata, spec } of members) {
    assert.equal(spec.schedulerName, 'kai-scheduler');
    assert.equal(metadata.annotations!['kai.scheduler/skip-podgrouper'], 'true');
    assert.equal(metadata.labels!['kai.scheduler/queue'], 'team');
  }

  // A group that a user deletes while pods wait is made again.
  await ns.delete(KAI_GROUPS, 'faces-0');
  await eventually(async () => assert.notEqual((await ns.get(KAI_GROUPS, 'faces-0')).metadata.uid, group.metadata.uid));

  // Another attempt: of an elastic gang that may go on with one.
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-1', 'Running');
  await ns.waitForPhase('faces', 'Running');
  await ns.patch(faceTrainJobs, 'faces', { spec: { trainers: { elastic: { minReplicas: 1 } } } });
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 1 });
  await eventually(async () => {
    await reap(ns);
    assert.deepEqual(await ns.names(KAI_GROUPS), ['faces-1']);
  });
  assert.deepEqual(((await ns.get(KAI_GROUPS, 'faces-1')) as Group).spec, { minMember: 1, queue: 'team' });

  // No garbage collector runs: what a deleted job has left is deleted for the next of its name.
  await eventually(async () => assert.equal((await membersOf(ns, 'faces-1', 'pod-group-name')).length, 2));
  await ns.delete(faceTrainJobs, 'faces');
  await ns.applyFaceTrainJob('faces', KAI);
  await eventually(async () => {
    await reap(ns);
    assert.deepEqual(await ns.names(KAI_GROUPS), ['faces-0']);
    assert.equal((await membersOf(ns, 'faces-0', 'pod-group-name')).length, 2);
  });
});

test('a webhook of the scheduler that refuses the PodGroup is shown with its words; no pod is made', async (t) => {
  await installPodGroups(plane, VOLCANO_GROUPS);
  const ns = await TestNamespace.open(t, plane, 'closed');
  const admission = (plural: string, object: object) =>
    plane.client.post(`/apis/admissionregistration.k8s.io/v1/${plural}`, {
      apiVersion: 'admissionregistration.k8s.io/v1',
      metadata: { name: 'open-queues' },
      ...object,
    });
  const rules = [
    { apiGroups: ['scheduling.volcano.sh'], apiVersions: ['*'], resources: ['podgroups'], operations: ['CREATE'] },
  ];
  // As Volcano's webhook answers for a queue that is closed.
  const message = 'can only submit PodGroup to queue with state `Open`, queue `closed` status is `Closed`.';
  await admission('validatingadmissionpolicies', {
    kind: 'ValidatingAdmissionPolicy',
    spec: {
      failurePolicy: 'Fail',
      matchConstraints: { resourceRules: rules },
      validations: [{ expression: "object.spec.queue != 'closed'", message }],
    },
  });
  await admission('validatingadmissionpolicybindings', {
    kind: 'ValidatingAdmissionPolicyBinding',
    spec: { policyName: 'open-queues', validationActions: ['Deny'] },
  });
  await eventually(() =>
    assert.rejects(
      plane.client.create(VOLCANO_GROUPS, 'closed', {
        apiVersion: VOLCANO_GROUPS.apiVersion,
        kind: 'PodGroup',
        metadata: { generateName: 'probe-' },
        spec: { queue: 'closed' },
      }),
      /queue `closed`/,
    ),
  );
  await ns.applyFaceTrainJob('faces', { gang: { mode: 'Volcano', queue: 'closed' } });
  await eventually(async () =>
    assert.match((await ns.conditionText('faces', 'Ready')) ?? '', /PodGroup faces-0: .*queue `closed` status/),
  );
  assert.deepEqual(await ns.names(pods), []);
});

test('a gang of Volcano goes on when Volcano is uninstalled; a new one then says what is missing', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'volcano', { discoveryMilliseconds: 100 });
  await ns.applyFaceTrainJob('faces', { gang: { mode: 'Volcano' } });
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  const members = await membersOf(ns, 'faces-0', 'scheduling.k8s.io/group-name');
  assert.deepEqual(
    members.map(({ spec }) => spec.schedulerName),
    ['volcano', 'volcano'],
  );
  assert.deepEqual(((await ns.get(VOLCANO_GROUPS, 'faces-0')) as Group).spec, { minMember: 2, queue: 'default' });
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');

  await removePodGroups(plane, VOLCANO_GROUPS);
  await ns.applyFaceTrainJob('late', { gang: { mode: 'Volcano', queue: 'team' } });
  await eventually(async () =>
    assert.match((await ns.conditionText('late', 'Stalled')) ?? '', /^GangUnavailable: .*install Volcano/),
  );
  assert.equal((await fetch(`${ns.operator.address}/readyz`)).status, 200);
  const { phase, attempt } = await ns.statusOf('faces');
  assert.deepEqual([phase, attempt], ['Running', 0]);
});
