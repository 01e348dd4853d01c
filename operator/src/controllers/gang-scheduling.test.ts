/**
 * Gangs, with Kubernetes' own scheduler, garbage collector and node controller beside the API server. Nodes are only
 * objects: the tests write the status of their pods.
 */
import assert from 'node:assert/strict';
import { Writable } from 'node:stream';
import { after, before, test } from 'node:test';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { pino } from 'pino';
import { isApiError } from '../runtime/api-error.ts';
import { defineResource } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import type { FaultProxy } from '../testing/fault-proxy.ts';
import { settle, startOperator, TestNamespace } from '../testing/operator-harness.ts';
import {
  claims,
  configMaps,
  faceTrainJobs,
  networkPolicies,
  nodes,
  type PodObject,
  podGroups,
  pods,
  services,
} from './resources.ts';

const GATE = '--feature-gates=GenericWorkload=true';
const groups = podGroups('scheduling.k8s.io/v1beta1');
const leases = defineResource('coordination.k8s.io/v1', 'leases');
/** The controllers of kube-controller-manager that run in these tests. */
const CONTROLLERS = [
  'garbage-collector-controller',
  'podgroup-protection-controller',
  'persistentvolume-binder-controller',
  'node-lifecycle-controller',
  'resourcequota-controller',
];
/** The node controller marks a node Unknown this long after its last heartbeat. */
const GRACE_SECONDS = 3;

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start([GATE, '--runtime-config=api/all=true']);
  await plane.installCrds();
  const kubeconfig = await plane.kubeconfig();
  const common = ['--kubeconfig', kubeconfig, '--leader-elect=false', '--secure-port=0', GATE];
  const grace = [`--node-monitor-grace-period=${GRACE_SECONDS}s`, '--node-monitor-period=500ms'];
  plane.run('kube-controller-manager', [...common, ...grace, `--controllers=${CONTROLLERS.join()}`]);
  plane.run('kube-scheduler', common);
  await plane.createNamespace('kube-node-lease').catch((error: unknown) => assert(isApiError(error, 'AlreadyExists')));
});
after(() => plane?.stop());

/**
 * A node with room for so many pods that ask for one CPU, and a kubelet that gives signs of life until it is silenced.
 */
async function addNode(
  t: { after(end: () => Promise<void>): void },
  name: string,
  cpus: number,
): Promise<{ stopHeartbeats(): void; remove(): Promise<void> }> {
  const { metadata } = await plane.client.post<{ metadata: { uid: string } }>('/api/v1/nodes', {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name },
  });
  const room = { cpu: String(cpus), memory: '64Gi', pods: '100' };
  const now = () => new Date().toISOString();
  const ready = {
    type: 'Ready',
    status: 'True',
    reason: 'KubeletReady',
    lastHeartbeatTime: now(),
    lastTransitionTime: now(),
  };
  await plane.client.patch(
    nodes,
    null,
    name,
    { status: { capacity: room, allocatable: room, conditions: [ready] } },
    'status',
  );
  const lease = () => ({ holderIdentity: name, leaseDurationSeconds: 40, renewTime: now().replace('Z', '000Z') });
  await plane.client.create(leases, 'kube-node-lease', {
    apiVersion: 'coordination.k8s.io/v1',
    kind: 'Lease',
    metadata: { name },
    spec: lease(),
  });
  const timer = setInterval(
    () => void plane.client.patch(leases, 'kube-node-lease', name, { spec: lease() }).catch(() => {}),
    500,
  );
  await eventually(async () => {
    const { spec } = (await plane.client.get(nodes, null, name)) as unknown as { spec: { taints?: unknown[] } };
    assert.equal(spec.taints, undefined);
  });
  let removed = false;
  const remove = async () => {
    clearInterval(timer);
    if (!removed) await plane.client.delete(nodes, null, name, metadata.uid);
    removed = true;
  };
  t.after(remove);
  return { stopHeartbeats: () => clearInterval(timer), remove };
}

interface Container {
  args: string[];
  env: { name: string; value?: string }[];
}

const REQUIRED = { dataset: { uri: 'hostpath:///faces' }, output: { uri: 'hostpath:///out' }, globalBatchSize: 60 };
const gangOf = (replicas: number, more: object = {}) => ({
  ...REQUIRED,
  trainers: { replicas, resources: { requests: { cpu: '1' } }, ...more },
});

const nodesOfPods = async (ns: TestNamespace) =>
  (await podsOf(ns)).map(({ metadata, spec }) => [metadata.name, spec.nodeName]);
async function podsOf({ namespace }: TestNamespace) {
  return (await plane.client.list<PodObject>(pods, namespace, {})).items! as (PodObject & {
    spec: { schedulingGroup?: { podGroupName: string } };
  })[];
}
const waitUntilNoChildren = (ns: TestNamespace) =>
  eventually(async () => {
    for (const resource of [pods, groups, services, configMaps, networkPolicies])
      assert.deepEqual(await ns.names(resource), [], resource.plural);
  });
/** Removes the pods that are being deleted, as the kubelet does when their processes have ended. */
async function reap(ns: TestNamespace): Promise<void> {
  for (const { metadata } of await podsOf(ns)) {
    if (metadata.deletionTimestamp !== undefined)
      await plane.client.delete(pods, ns.namespace, metadata.name, metadata.uid, 0);
  }
}

test('a gang is bound all or none; a restart gets its own PodGroup; a deleted job leaves no children', async (t) => {
  await addNode(t, 'one', 2);
  const ns = await TestNamespace.open(t, plane, 'native');
  await ns.applyFaceTrainJob('faces', gangOf(3));
  await ns.waitForPods('faces-0-0', 'faces-0-1', 'faces-0-2');
  assert.deepEqual(await ns.names(groups), ['faces-0']);
  for (const { spec } of await podsOf(ns)) assert.deepEqual(spec.schedulingGroup, { podGroupName: 'faces-0' });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Admitted'))!,
      /^Unschedulable: 0 of 3 pods have a place; .*minCount \(3\) cannot be satisfied/,
    ),
  );
  assert.deepEqual(
    (await nodesOfPods(ns)).map(([, node]) => node),
    [undefined, undefined, undefined],
  );

  await addNode(t, 'two', 4);
  await eventually(async () => assert((await nodesOfPods(ns)).every(([, node]) => node !== undefined)));
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 1 });
  await eventually(async () => {
    await reap(ns);
    assert.partialDeepStrictEqual(await ns.names(pods), ['faces-0-1', 'faces-1-0', 'faces-1-1', 'faces-1-2']);
  });
  for (const { metadata, spec } of await podsOf(ns))
    assert.deepEqual(spec.schedulingGroup, { podGroupName: metadata.name.slice(0, -2) });

  await ns.delete(faceTrainJobs, 'faces');
  await eventually(async () => {
    await reap(ns);
    assert.deepEqual(await ns.names(pods), []);
  });
  await waitUntilNoChildren(ns);
});

const statusOf = async (ns: TestNamespace) => (await ns.get(faceTrainJobs, 'faces')).status as FaceTrainJobStatus;

test('pods with several ranks are a gang of pods; what fails in one is named by its rank', async (t) => {
  await addNode(t, 'wide', 8);
  const ns = await TestNamespace.open(t, plane, 'wide');
  await ns.applyFaceTrainJob('faces', gangOf(2, { ranksPerPod: 4 }));
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await eventually(async () => assert((await nodesOfPods(ns)).every(([, node]) => node !== undefined)));
  const variables = async () =>
    (await podsOf(ns)).map(({ spec }) => {
      const [{ args, env }] = (spec as unknown as { containers: [Container] }).containers;
      return [...args, ...env.filter(({ name }) => /RANK|WORLD/.test(name)).map(({ value }) => value)];
    });
  assert.deepEqual(await variables(), [
    ['train', '--ranks', '4', '0', '8', '0', '4'],
    ['train', '--ranks', '4', '4', '8', '0', '4'],
  ]);
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  assert.equal((await statusOf(ns)).trainers!.desired, 2);
  const message = JSON.stringify({ code: 'Internal', message: 'out of luck', rank: 6 });
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 1, message });
  await eventually(async () => {
    const { restarts } = await statusOf(ns);
    assert.deepEqual(
      [restarts?.lastRank, restarts?.lastMessage],
      [6, 'rank 6 left with exit code 1 on wide: out of luck'],
    );
  });
  await ns.delete(faceTrainJobs, 'faces');
  await eventually(async () => {
    await reap(ns);
    assert.deepEqual(await ns.names(pods), []);
  });
});

test('an elastic gang goes on with the pods that have nodes, grows when a node comes, and is scaled', async (t) => {
  await addNode(t, 'narrow', 2);
  const ns = await TestNamespace.open(t, plane, 'elastic');
  const elastic = { minReplicas: 2, maxReplicas: 4, scaleDownSeconds: 2, scaleUpSeconds: 2 };
  await ns.applyFaceTrainJob('faces', gangOf(3, { elastic }));
  const becomes = (...names: string[]) =>
    eventually(async () => {
      await reap(ns);
      assert.deepEqual(await ns.names(pods), names);
      for (const { metadata, spec } of await podsOf(ns)) assert(spec.nodeName !== undefined, metadata.name);
    }, 60_000);
  const desired = async () => (await ns.statusOf('faces')).trainers?.desired;
  // The PodGroup lets two of three pods begin.
  await becomes('faces-1-0', 'faces-1-1');
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  assert.equal(await desired(), 2);
  const holder = async () => (await podsOf(ns)).find(({ metadata: { name } }) => name === 'faces-1-2');
  await eventually(async () =>
    assert.deepEqual((await holder())!.metadata.labels!['facetrain.dev/placeholder'], 'true'),
  );
  assert.equal((await holder())!.spec.schedulingGroup, undefined);

  await addNode(t, 'another', 1);
  // The placeholder keeps its place while trainers end.
  await eventually(async () => assert.equal((await ns.statusOf('faces')).attempt, 2), 60_000);
  await eventually(async () => {
    const trainers = (await podsOf(ns)).filter(
      ({ metadata }) => metadata.labels?.['facetrain.dev/placeholder'] === undefined,
    );
    assert(trainers.length === 2 && trainers.every(({ metadata }) => metadata.deletionTimestamp !== undefined));
  });
  await settle();
  assert.equal((await holder())!.metadata.deletionTimestamp, undefined);
  await becomes('faces-2-0', 'faces-2-1', 'faces-2-2');
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');

  const scale = (await ns.patch(faceTrainJobs, 'faces', { spec: { replicas: 2 } }, 'scale')) as unknown as {
    spec: { replicas: number };
    status: { replicas: number; selector: string };
  };
  const { metadata } = await ns.get(faceTrainJobs, 'faces');
  assert.deepEqual(
    [scale.spec, scale.status],
    [{ replicas: 2 }, { replicas: 3, selector: `facetrain.dev/job-uid=${metadata.uid}` }],
  );
  await becomes('faces-3-0', 'faces-3-1');
  const { restarts, scaling } = await ns.statusOf('faces');
  assert.equal(restarts, undefined);
  assert.deepEqual(
    scaling!.history.map(({ attempt, trainers, reason }) => [attempt, trainers, reason]),
    [
      [1, 2, 'ScaledDown'],
      [2, 3, 'ScaledUp'],
      [3, 2, 'ScaledDown'],
    ],
  );
  await assert.rejects(
    ns.patch(faceTrainJobs, 'faces', { spec: { replicas: 5 } }, 'scale'),
    /trainers\.replicas must be at least elastic\.minReplicas and at most elastic\.maxReplicas/,
  );
  await ns.delete(faceTrainJobs, 'faces');
  await eventually(async () => {
    await reap(ns);
    assert.deepEqual(await ns.names(pods), []);
  });
});

test('a job that is deleted before its pods are created leaves no children', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'early');
  ns.operator.proxy.fail('POST', /\/pods(\?|$)/, 500, { times: 1000 });
  await ns.applyFaceTrainJob('faces', gangOf(2));
  await eventually(async () => assert.deepEqual(await ns.names(groups), ['faces-0']));
  await ns.delete(faceTrainJobs, 'faces');
  await waitUntilNoChildren(ns);
  await settle();
  await waitUntilNoChildren(ns);
});

test('PodGroups that the cluster begins to serve, or serves no longer, are used from the next gang on', async (t) => {
  let serve = () => {};
  const withhold = (proxy: FaultProxy) => proxy.fail('GET', /\/scheduling\.k8s\.io\/v1beta1$/, 404, { times: 100_000 });
  const ns = await TestNamespace.open(t, plane, 'follow', {
    discoveryMilliseconds: 100,
    setUpProxy: (proxy) => (serve = withhold(proxy)),
  });
  await ns.applyFaceTrainJob('plain');
  await ns.waitForPods('plain-0-0', 'plain-0-1');
  const watches = async (isWatching: boolean) => {
    const answer = await fetch(`${ns.operator.address}/readyz`);
    assert.deepEqual([answer.status, (await answer.text()).includes('PodGroup')], [200, isWatching]);
  };
  serve();
  await eventually(() => watches(true));
  await ns.applyFaceTrainJob('gang');
  await eventually(async () => assert.deepEqual(await ns.names(groups), ['gang-0']));
  withhold(ns.operator.proxy);
  await eventually(() => watches(false));
  await ns.applyFaceTrainJob('later');
  await eventually(async () => assert((await ns.names(pods)).includes('later-0-1')));
  assert.deepEqual(await ns.names(groups), ['gang-0']);
});

test('a quota on part of a gang is reported; a PodGroup that is deleted meanwhile is replaced', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'short');
  const quotas = defineResource('v1', 'resourcequotas');
  const few = { hard: { pods: '1' } };
  await ns.create(quotas, { apiVersion: 'v1', kind: 'ResourceQuota', metadata: { name: 'few' }, spec: few });
  await eventually(async () => assert(((await ns.get(quotas, 'few')) as { status?: { used?: object } }).status?.used));
  await ns.applyFaceTrainJob('faces', gangOf(2));
  await eventually(async () =>
    assert.equal(
      await ns.conditionText('faces', 'Ready'),
      'QuotaExceeded: ResourceQuota few refuses Pod faces-0-1: requested: pods=1, used: pods=1, limited: pods=1; ' +
        '1 of 2 pods of the gang exist, and none of them starts before all do',
    ),
  );
  const { phase, refusal, startTime, pendingTime, attemptStartTime } = await ns.statusOf('faces');
  assert.deepEqual([phase, refusal?.quota, refusal?.releases, attemptStartTime], ['Pending', 'few', 0, undefined]);
  assert(startTime !== undefined && startTime === pendingTime);
  assert.deepEqual(
    (await ns.conditionText('faces', 'Stalled')) ?? (await ns.conditionText('faces', 'Reconciling'))?.split(':')[0],
    'QuotaExceeded',
  );
  assert.deepEqual(await nodesOfPods(ns), [['faces-0-0', undefined]]);

  await ns.delete(quotas, 'few');
  await ns.delete(groups, 'faces-0');
  await addNode(t, 'three', 4);
  await eventually(async () => {
    assert.deepEqual(
      (await nodesOfPods(ns)).map(([name, node]) => [name, node !== undefined]),
      [
        ['faces-1-0', true],
        ['faces-1-1', true],
      ],
    );
  });
  const { restarts } = await ns.statusOf('faces');
  assert.deepEqual([restarts?.count, restarts?.disruptions, restarts?.lastReason], [0, 1, 'PodGroupDeleted']);
  await eventually(async () => assert.deepEqual(await ns.names(groups), ['faces-1']));
});

const classes = defineResource('scheduling.k8s.io/v1', 'priorityclasses');
/** Creates a PriorityClass, and deletes it when the test ends. */
async function addPriorityClass(
  t: { after(end: () => Promise<void>): void },
  name: string,
  fields: object,
): Promise<void> {
  const { metadata } = await plane.client.post<{ metadata: { uid: string } }>(
    '/apis/scheduling.k8s.io/v1/priorityclasses',
    { apiVersion: 'scheduling.k8s.io/v1', kind: 'PriorityClass', metadata: { name }, ...fields },
  );
  t.after(async () => void (await plane.client.delete(classes, null, name, metadata.uid)));
}
const waitUntilPlaced = (ns: TestNamespace, ...names: string[]) =>
  eventually(async () =>
    assert.deepEqual(
      (await nodesOfPods(ns)).map(([name, node]) => [name, node !== undefined]),
      names.map((name) => [name, true]),
    ),
  );

test('a gang with a PriorityClass is scheduled, by the class of its template and by the default class', async (t) => {
  await addNode(t, 'ranked', 8);
  await addPriorityClass(t, 'training', { value: 1000, preemptionPolicy: 'Never' });
  const ns = await TestNamespace.open(t, plane, 'ranked');
  await ns.applyFaceTrainJob('named', gangOf(2, { podTemplate: { spec: { priorityClassName: 'training' } } }));
  await waitUntilPlaced(ns, 'named-0-0', 'named-0-1');
  await addPriorityClass(t, 'usual', { value: 100, globalDefault: true });
  await ns.applyFaceTrainJob('unnamed', { ...gangOf(2), output: { uri: 'hostpath:///out/unnamed' } });
  await waitUntilPlaced(ns, 'named-0-0', 'named-0-1', 'unnamed-0-0', 'unnamed-0-1');
  const priorities = async (name: string) =>
    ((await ns.get(groups, name)) as unknown as { spec: { priority: number } }).spec.priority;
  assert.deepEqual([await priorities('named-0'), await priorities('unnamed-0')], [1000, 100]);
});

test('a default PriorityClass that appears between PodGroup and pods costs one restart', async (t) => {
  await addNode(t, 'later', 4);
  const ns = await TestNamespace.open(t, plane, 'later');
  const allowPods = ns.operator.proxy.fail('POST', /\/pods(\?|$)/, 500, { times: 1000 });
  await ns.applyFaceTrainJob('faces', gangOf(2));
  await eventually(async () => assert.deepEqual(await ns.names(groups), ['faces-0']));
  await addPriorityClass(t, 'sudden', { value: 100, globalDefault: true });
  allowPods();
  await waitUntilPlaced(ns, 'faces-1-0', 'faces-1-1');
  const { restarts } = await ns.statusOf('faces');
  assert.deepEqual([restarts?.count, restarts?.lastReason], [1, 'PriorityMismatch']);
});

test('a failed pod that is kept for its log gives its place to the next attempt', async (t) => {
  await addNode(t, 'counted', 4);
  const ns = await TestNamespace.open(t, plane, 'counted');
  const quotas = defineResource('v1', 'resourcequotas');
  const two = { hard: { 'count/pods': '2' } };
  await ns.create(quotas, { apiVersion: 'v1', kind: 'ResourceQuota', metadata: { name: 'two' }, spec: two });
  await eventually(async () => assert(((await ns.get(quotas, 'two')) as { status?: { used?: object } }).status?.used));
  await ns.applyFaceTrainJob('faces', gangOf(2));
  await waitUntilPlaced(ns, 'faces-0-0', 'faces-0-1');
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  await ns.setPodStatus('faces-0-0', 'Failed', { exitCode: 1 });
  await eventually(async () => {
    await reap(ns);
    assert.deepEqual(await ns.names(pods), ['faces-1-0', 'faces-1-1']);
  }, 60_000);
});

test('a missing claim is reported with its name, although the gang scheduler reports only an error', async (t) => {
  await addNode(t, 'four', 4);
  const ns = await TestNamespace.open(t, plane, 'claims');
  await ns.applyFaceTrainJob('faces', { ...gangOf(2), dataset: { uri: 'pvc://faces-data' } });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Ready'))!,
      RegExp(
        '^PersistentVolumeClaimNotFound: 0 of 2 pods are ready; faces-0-0 PersistentVolumeClaimNotFound: ' +
          'persistentvolumeclaim "faces-data" not found$',
      ),
    ),
  );
  const volume = {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: 'faces-data' },
    spec: {
      capacity: { storage: '1Gi' },
      accessModes: ['ReadWriteMany'],
      hostPath: { path: '/faces' },
      claimRef: { namespace: 'claims', name: 'faces-data' },
    },
  };
  await plane.client.post('/api/v1/persistentvolumes', volume);
  await ns.create(claims, {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: 'faces-data' },
    spec: {
      accessModes: ['ReadWriteMany'],
      storageClassName: '',
      volumeName: 'faces-data',
      resources: { requests: { storage: '1Gi' } },
    },
  });
  await eventually(async () => assert.match((await ns.conditionText('faces', 'Admitted'))!, /^Scheduled: /));
});

test('checkpoints and output on one claim that is bound with its first pod', async (t) => {
  await addNode(t, 'storage', 4);
  const ns = await TestNamespace.open(t, plane, 'first-consumer');
  const storageClassName = 'first-consumer';
  const size = { storage: '1Gi' };
  const accessModes = ['ReadWriteMany'];
  await plane.client.post('/apis/storage.k8s.io/v1/storageclasses', {
    apiVersion: 'storage.k8s.io/v1',
    kind: 'StorageClass',
    metadata: { name: storageClassName },
    provisioner: 'kubernetes.io/no-provisioner',
    volumeBindingMode: 'WaitForFirstConsumer',
  });
  const onNode = { matchFields: [{ key: 'metadata.name', operator: 'In', values: ['storage'] }] };
  await plane.client.post('/api/v1/persistentvolumes', {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: 'first-consumer' },
    spec: {
      capacity: size,
      accessModes,
      storageClassName,
      hostPath: { path: '/faces' },
      nodeAffinity: { required: { nodeSelectorTerms: [onNode] } },
    },
  });
  await ns.create(claims, {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: 'faces' },
    spec: { accessModes, storageClassName, resources: { requests: size } },
  });
  await ns.applyFaceTrainJob('faces', { ...gangOf(2), output: { uri: 'pvc://faces/out' } });
  await waitUntilPlaced(ns, 'faces-0-0', 'faces-0-1');
});

test('when a node becomes unreachable its pods are deleted by force, and the gang starts on another', async (t) => {
  const failing = await addNode(t, 'failing', 2);
  const ns = await TestNamespace.open(t, plane, 'silent');
  await ns.applyFaceTrainJob('faces', { ...gangOf(2), failurePolicy: { nodeLostSeconds: 4 } });
  await eventually(async () =>
    assert.deepEqual(await nodesOfPods(ns), [
      ['faces-0-0', 'failing'],
      ['faces-0-1', 'failing'],
    ]),
  );
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  const before = await podsOf(ns);
  await addNode(t, 'spare', 2);
  failing.stopHeartbeats();
  // Kubernetes alone would begin to delete the pods later, and never finish without the kubelet.
  await eventually(
    async () =>
      assert.deepEqual(await nodesOfPods(ns), [
        ['faces-1-0', 'spare'],
        ['faces-1-1', 'spare'],
      ]),
    1000 * (GRACE_SECONDS + 15),
  );
  const { restarts } = await ns.statusOf('faces');
  assert.partialDeepStrictEqual(restarts, {
    count: 0,
    disruptions: 1,
    lastReason: 'NodeLost',
    lastNode: 'failing',
    lastRank: 0,
  });
  assert.match(restarts!.lastMessage!, /^pod faces-0-0 is lost: node failing does not answer \(NodeStatusUnknown\)$/);
  assert(!(await podsOf(ns)).some(({ metadata }) => before.some((pod) => pod.metadata.uid === metadata.uid)));
});

test('pods that tolerate an unreachable node are left to Kubernetes; those of a deleted node are lost', async (t) => {
  const node = await addNode(t, 'patient', 2);
  const ns = await TestNamespace.open(t, plane, 'patient');
  const tolerations = [
    { key: 'node.kubernetes.io/unreachable', operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 3600 },
  ];
  // Two folders, as jobs with the same output folder run one after the other.
  await ns.applyFaceTrainJob('waits', {
    ...gangOf(1, { podTemplate: { spec: { tolerations } } }),
    output: { uri: 'hostpath:///out/waits' },
  });
  await ns.applyFaceTrainJob('moves', { ...gangOf(1), output: { uri: 'hostpath:///out/moves' } });
  await eventually(async () =>
    assert.deepEqual(await nodesOfPods(ns), [
      ['moves-0-0', 'patient'],
      ['waits-0-0', 'patient'],
    ]),
  );
  const { spec } = (await ns.get(pods, 'waits-0-0')) as unknown as {
    spec: { tolerations: { key: string; tolerationSeconds: number }[] };
  };
  assert.deepEqual(
    spec.tolerations.map(({ key, tolerationSeconds }) => [key, tolerationSeconds]),
    [
      ['node.kubernetes.io/not-ready', 65],
      ['node.kubernetes.io/unreachable', 3600],
    ],
  );
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('waits', 'Running');
  await ns.waitForPhase('moves', 'Running');
  await node.remove();
  await eventually(async () =>
    assert.equal((await ns.statusOf('moves')).restarts?.lastMessage, 'pod moves-0-0 is lost: node patient is gone'),
  );
  await settle();
  assert.deepEqual([(await ns.statusOf('waits')).attempt, (await ns.statusOf('waits')).phase], [0, 'Running']);
});

test('without permission to read nodes the operator works, and logs one warning', async (t) => {
  await plane.createNamespace('blind');
  const rules = [
    {
      apiGroups: ['', 'facetrain.dev', 'networking.k8s.io', 'scheduling.k8s.io', 'events.k8s.io'],
      resources: ['*'],
      verbs: ['*'],
    },
  ];
  const rbac = (plural: string) => defineResource('rbac.authorization.k8s.io/v1', plural);
  await plane.client.create(rbac('roles'), 'blind', {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'Role',
    metadata: { name: 'operator' },
    rules,
  });
  await plane.client.create(rbac('rolebindings'), 'blind', {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'RoleBinding',
    metadata: { name: 'operator' },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'operator' },
    subjects: [{ kind: 'ServiceAccount', name: 'operator', namespace: 'blind' }],
  });
  await plane.client.create(defineResource('v1', 'serviceaccounts'), 'blind', {
    apiVersion: 'v1',
    kind: 'ServiceAccount',
    metadata: { name: 'operator' },
  });
  const { status } = await plane.client.post<{ status: { token: string } }>(
    '/api/v1/namespaces/blind/serviceaccounts/operator/token',
    { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: {} },
  );
  const lines: { level: number; msg: string; resource?: string }[] = [];
  const log = pino(
    { level: 'warn' },
    new Writable({
      write: (chunk, _encoding, done) => {
        lines.push(JSON.parse(String(chunk)) as (typeof lines)[0]);
        done();
      },
    }),
  );
  const operator = await startOperator(plane, 'blind', { token: status.token, log });
  t.after(() => operator.stop());
  const ns = new TestNamespace(plane, 'blind', operator);
  await ns.applyFaceTrainJob('faces', gangOf(1));
  await ns.waitForPods('faces-0-0');
  await settle();
  assert.deepEqual(
    lines.map(({ resource, msg }) => [resource, msg]),
    [['nodes', 'may not be read: a lost node is noticed when Kubernetes evicts its pods']],
  );
});
