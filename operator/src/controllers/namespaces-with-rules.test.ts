/** Pods of all kinds in namespaces with a Pod Security Standard, ResourceQuotas and LimitRanges. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MAX_FACETRAINJOB_NAME, MAX_QUANTIZEJOB_NAME } from '@facetrain/api';
import { defineResource, type KubernetesObject } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { TestNamespace } from '../testing/operator-harness.ts';
import { faceTrainJobs, pods, quantizeJobs } from './resources.ts';

const quotas = defineResource('v1', 'resourcequotas');
const limitRanges = defineResource('v1', 'limitranges');
const namespaces = defineResource('v1', 'namespaces');

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start(['--feature-gates=GenericWorkload=true', '--runtime-config=api/all=true']);
  await plane.installCrds();
});
after(() => plane?.stop());

const store = (key: string) => ({ uri: `s3://faces/${key}`, s3: { secretRef: { name: 'aws' } } });
const resources = { requests: { cpu: 1 }, limits: { cpu: 2, memory: '1Gi', 'nvidia.com/gpu': 1 } };

/** A job with pods of each kind: trainers with data and results in a store, a placeholder, and a quantizer. */
async function makeEveryPod(ns: TestNamespace, faces = 'faces', small = 'small'): Promise<void> {
  await ns.applyFaceTrainJob(faces, {
    dataset: store('train'),
    output: store('out'),
    evaluation: { sets: [{ name: 'lfw', ...store('lfw.bin') }] },
    trainers: { replicas: 1, resources, elastic: { minReplicas: 1, maxReplicas: 2 } },
  });
  await ns.waitForPods(`${faces}-0-0`);
  await ns.setPodStatus(`${faces}-0-0`, 'Running');
  await ns.waitForPhase(faces, 'Running');
  await ns.patch(faceTrainJobs, faces, { spec: { trainers: { replicas: 2 } } });
  await ns.waitForPods(`${faces}-0-0`, `${faces}-0-1`);
  await ns.applyQuantizeJob(small, {
    model: store('model.onnx'),
    calibration: { dataset: store('train') },
    output: store('int7'),
    quantizer: { resources },
  });
  await ns.waitForPods(`${faces}-0-0`, `${faces}-0-1`, `${small}-0-quantizer`);
}

test('the standard restricted accepts every pod, and refuses a folder of the node by its name', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'restricted');
  const labels = { 'pod-security.kubernetes.io/enforce': 'restricted' };
  await plane.client.patch(namespaces, null, 'restricted', { metadata: { labels } });
  await makeEveryPod(ns);
  await ns.applyFaceTrainJob('node', { dataset: { uri: 'hostpath:///faces' } });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('node', 'Ready')) ?? '',
      /^ChildRefused: Pod node-0-0: .*violates PodSecurity "restricted:latest": restricted volume types .*hostPath/,
    ),
  );
});

test('jobs with the longest names have all their pods', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'n'.repeat(63));
  const [faces, small] = ['f'.repeat(MAX_FACETRAINJOB_NAME), 's'.repeat(MAX_QUANTIZEJOB_NAME)];
  await makeEveryPod(ns, faces, small);
  for (const [resource, name] of [
    [faceTrainJobs, `${faces}f`],
    [quantizeJobs, `${small}s`],
  ] as const)
    await assert.rejects(ns.create(resource, { ...(await ns.get(resource, name.slice(1))), metadata: { name } }), {
      message: new RegExp(`name.*${name.length - 1}`),
    });
});

/** The controller of quotas would fill in what is used. */
async function addQuota(ns: TestNamespace, name: string, hard: Record<string, string>): Promise<void> {
  await ns.create(quotas, { apiVersion: 'v1', kind: 'ResourceQuota', metadata: { name }, spec: { hard } });
  const used = Object.fromEntries(Object.keys(hard).map((resource) => [resource, '0']));
  await ns.patch(quotas, name, { status: { hard, used } }, 'status');
}

test('a quota on CPUs and memory accepts every pod, and counts a trainer’s once', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'quota');
  await addQuota(ns, 'compute', {
    'requests.cpu': '3',
    'limits.cpu': '6',
    'limits.memory': '3Gi',
    'requests.nvidia.com/gpu': '3',
  });
  await makeEveryPod(ns);
  const { status } = (await ns.get(quotas, 'compute')) as KubernetesObject & { status: { used: object } };
  assert.deepEqual(status.used, {
    'requests.cpu': '3',
    'limits.cpu': '6',
    'limits.memory': '3Gi',
    'requests.nvidia.com/gpu': '3',
  });
});

test('a gang whose PodGroup a quota refuses waits with its name, and begins when there is room', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'groups');
  const resource = 'count/podgroups.scheduling.k8s.io';
  await addQuota(ns, 'gangs', { [resource]: '0' });
  await ns.applyFaceTrainJob('faces');
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Ready')) ?? '',
      /^QuotaExceeded: ResourceQuota gangs refuses PodGroup faces-0: requested: count\/podgroups\.\S+=1/,
    ),
  );
  assert.deepEqual(await ns.names(pods), []);
  await ns.patch(quotas, 'gangs', { spec: { hard: { [resource]: '1' } } });
  await ns.patch(quotas, 'gangs', { status: { hard: { [resource]: '1' } } }, 'status');
  // The operator looks again by itself, after 30 s.
  await ns.waitForPods('faces-0-0', 'faces-0-1');
});

test('a LimitRange that trainers exceed is named, and one that fills in what they leave out is obeyed', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'limits');
  const limits = [{ type: 'Container', max: { cpu: '4' }, default: { memory: '1Gi' }, defaultRequest: { cpu: '1' } }];
  await ns.create(limitRanges, { apiVersion: 'v1', kind: 'LimitRange', metadata: { name: 'small' }, spec: { limits } });
  await ns.applyFaceTrainJob('large', { trainers: { replicas: 1, resources: { limits: { cpu: 8 } } } });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('large', 'Ready')) ?? '',
      /^ChildRefused: Pod large-0-0: .*maximum cpu usage per Container is 4, but limit is 8/,
    ),
  );
  await ns.applyQuantizeJob('small');
  await ns.waitForPods('small-0-quantizer');
  const { spec } = (await ns.get(pods, 'small-0-quantizer')) as unknown as { spec: { containers: object[] } };
  assert.partialDeepStrictEqual(spec.containers[0], { resources: { limits: { memory: '1Gi' } } });
  assert.equal((await ns.conditionText('small', 'Stalled', quantizeJobs))?.split(':')[0], undefined);
});
