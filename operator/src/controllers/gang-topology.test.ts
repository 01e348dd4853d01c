/**
 * `gang.topology`, with Kubernetes' own scheduler, with and without topology-aware scheduling, and with Kueue. Nodes
 * are only objects.
 */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { createKueueObject, createLocalQueue, startKueue } from '../testing/kueue.ts';
import { TestNamespace } from '../testing/operator-harness.ts';
import { nodes, type PodObject, podGroups, pods } from './resources.ts';

const RACK = 'example.com/rack';
const groups = podGroups('scheduling.k8s.io/v1beta1');

/** A control plane with a scheduler, until the test ends. */
async function startPlane(t: TestContext, gates: string): Promise<ControlPlane> {
  const flag = `--feature-gates=${gates}`;
  const plane = await ControlPlane.start([flag, '--runtime-config=api/all=true']);
  t.after(() => plane.stop());
  await plane.installCrds();
  plane.run('kube-scheduler', [
    '--kubeconfig',
    await plane.kubeconfig(),
    '--leader-elect=false',
    '--secure-port=0',
    flag,
  ]);
  return plane;
}

/** A node in a rack, with room for so many pods that ask for one CPU. */
async function addNode({ client }: ControlPlane, name: string, rack: string, cpus: number): Promise<void> {
  await client.post('/api/v1/nodes', {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name, labels: { [RACK]: rack, 'kubernetes.io/hostname': name, pool: 'gpus' } },
  });
  // The API server has given it the taint not-ready, which the node controller would take away.
  await client.patch(nodes, null, name, { spec: { taints: null } });
  const room = { cpu: String(cpus), memory: '64Gi', pods: '100' };
  const ready = { type: 'Ready', status: 'True', reason: 'KubeletReady', lastTransitionTime: new Date().toISOString() };
  await client.patch(
    nodes,
    null,
    name,
    { status: { capacity: room, allocatable: room, conditions: [ready] } },
    'status',
  );
}

const near = (topology: object, replicas: number, more: object = {}) => ({
  dataset: { uri: 'hostpath:///faces' },
  output: { uri: 'hostpath:///out' },
  globalBatchSize: 60,
  gang: { topology },
  trainers: { replicas, resources: { requests: { cpu: 1 } } },
  ...more,
});

/** Nodes of the job's pods, in the order of ranks; waits until all have one. */
const nodesOf = (ns: TestNamespace, count: number): Promise<string[]> =>
  eventually(async () => {
    const { items } = await ns.plane.client.list<PodObject>(pods, ns.namespace, {});
    const rankOf = ({ metadata }: PodObject) => Number(metadata.labels!['facetrain.dev/rank']);
    const placed = items!.toSorted((one, other) => rankOf(one) - rankOf(other)).map(({ spec }) => spec.nodeName ?? '');
    assert.equal(placed.filter((node) => node !== '').length, count, JSON.stringify(items));
    return placed;
  });

describe('by the scheduler', () => {
  test('with topology-aware scheduling, a gang goes to the rack that has room for all', async (t) => {
    const plane = await startPlane(t, 'GenericWorkload=true,TopologyAwareWorkloadScheduling=true');
    for (const name of ['a1', 'a2', 'b1', 'c1', 'c2', 'c3']) await addNode(plane, name, name[0]!, 1);
    const ns = await TestNamespace.open(t, plane, 'racks');
    await ns.applyFaceTrainJob('faces', near({ required: RACK }, 3));
    assert.deepEqual((await nodesOf(ns, 3)).toSorted(), ['c1', 'c2', 'c3']);
    const { spec } = (await ns.get(groups, 'faces-0')) as { spec?: { schedulingConstraints?: object } };
    assert.deepEqual(spec!.schedulingConstraints, { topology: [{ key: RACK }] });
  });

  test('without it, a required rack holds all the same, and a preferred one gives way', async (t) => {
    const plane = await startPlane(t, 'GenericWorkload=true');
    for (const name of ['a1', 'a2', 'a3', 'b1', 'b2', 'b3']) await addNode(plane, name, name[0]!, 1);
    const required = await TestNamespace.open(t, plane, 'required');
    await required.applyFaceTrainJob('faces', near({ required: RACK }, 3));
    const racks = new Set((await nodesOf(required, 3)).map((node) => node[0]));
    assert.equal(racks.size, 1);
    const preferred = await TestNamespace.open(t, plane, 'preferred');
    await addNode(plane, 'c1', 'c', 1);
    await preferred.applyFaceTrainJob('faces', near({ preferred: RACK }, 4));
    const [rest] = ['a', 'b'].filter((rack) => !racks.has(rack));
    assert.deepEqual((await nodesOf(preferred, 4)).toSorted(), [`${rest}1`, `${rest}2`, `${rest}3`, 'c1']);
  });
});

test('by Kueue: ranks in order in one rack of its topology; a label that is no level of it is refused', async (t) => {
  const plane = await startPlane(t, 'GenericWorkload=false');
  for (const [name, cpus] of Object.entries({ a1: 1, a2: 1, b1: 2, b2: 1 })) await addNode(plane, name, name[0]!, cpus);
  await startKueue(plane);
  const levels = [{ nodeLabel: RACK }, { nodeLabel: 'kubernetes.io/hostname' }];
  await createKueueObject(plane, 'Topology', 'racks', { spec: { levels } });
  await createKueueObject(plane, 'ResourceFlavor', 'gpus', {
    spec: { nodeLabels: { pool: 'gpus' }, topologyName: 'racks' },
  });
  await createKueueObject(plane, 'ClusterQueue', 'all', {
    spec: {
      namespaceSelector: {},
      resourceGroups: [
        { coveredResources: ['cpu'], flavors: [{ name: 'gpus', resources: [{ name: 'cpu', nominalQuota: '9' }] }] },
      ],
    },
  });
  const open = async (namespace: string) => {
    const ns = await TestNamespace.open(t, plane, namespace);
    await createLocalQueue(plane, namespace, 'team', 'all');
    return ns;
  };
  const queue = { queue: { name: 'team' } };
  const racks = await open('racks');
  await racks.applyFaceTrainJob('faces', near({ required: RACK }, 3, queue));
  const [first, second, third] = await nodesOf(racks, 3);
  assert.deepEqual([first, second, third].toSorted(), ['b1', 'b1', 'b2']);
  assert.equal(second, 'b1', 'rank 1 is beside a neighbour');

  const rows = await open('rows');
  await rows.applyFaceTrainJob('faces', near({ required: 'example.com/row' }, 1, queue));
  await eventually(async () =>
    assert.match(
      (await rows.conditionText('faces', 'Ready')) ?? '',
      /^Queued: queue team: .*does not contain the requested level/,
    ),
  );
  assert.deepEqual(await rows.names(pods), []);

  // Two nodes are left. Kueue places what has a flavor with a topology also when it asks for none.
  const anywhere = await open('anywhere');
  await anywhere.applyFaceTrainJob('faces', { ...near({}, 2, queue), gang: {} });
  assert.deepEqual((await nodesOf(anywhere, 2)).toSorted(), ['a1', 'a2']);
});
