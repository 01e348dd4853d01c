/**
 * The roles of the chart on a real API server that enforces them. The operator runs as the chart's service account, and
 * makes every kind of request that it ever makes. No request is forbidden, so the roles are sufficient. Every
 * permission is used, but for the exceptions listed here, so the roles are minimal.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { clusterEnvironment } from '@facetrain/operator/controllers/cluster-environment';
import { runOperator } from '@facetrain/operator/controllers/operator';
import {
  configMaps,
  faceTrainJobs,
  type JobObject,
  networkPolicies,
  podGroups,
  pods,
  quantizeJobs,
  services,
  workloads,
} from '@facetrain/operator/controllers/resources';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import { Client } from '@facetrain/operator/runtime/client';
import { electionTimes } from '@facetrain/operator/runtime/leader-election';
import { Metrics } from '@facetrain/operator/runtime/metrics';
import { defineResource, type KubernetesObject, type Resource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { setPodStatus } from '@facetrain/operator/testing/fake-kubelet';
import { FaultProxy, type RecordedRequest } from '@facetrain/operator/testing/fault-proxy';
import { createKueueObject, installKueueCrds } from '@facetrain/operator/testing/kueue';
import { installPodGroups, KAI_GROUPS, VOLCANO_GROUPS } from '@facetrain/operator/testing/pod-group-crds';
import { pino } from 'pino';
import { type Manifest, render, upgrade } from './testing/chart-harness.ts';

const log = pino({ level: process.env.FACETRAIN_TEST_LOG ?? 'silent' });
const POD_GROUPS = podGroups('scheduling.k8s.io/v1beta1');

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start([
    '--runtime-config=scheduling.k8s.io/v1beta1=true',
    '--feature-gates=GenericWorkload=true',
    '--enable-admission-plugins=OwnerReferencesPermissionEnforcement',
  ]);
  await plane.installCrds();
  await installKueueCrds(plane);
  await Promise.all([KAI_GROUPS, VOLCANO_GROUPS].map((resource) => installPodGroups(plane, resource)));
  await createKueueObject(plane, 'ResourceFlavor', 'gpus', { spec: { nodeLabels: { pool: 'gpus' } } });
  await createKueueObject(plane, 'WorkloadPriorityClass', 'low', { value: 1 });
  await plane.createNamespace('faces');
});
after(() => plane?.stop());

interface Rule {
  apiGroups: string[];
  resources: string[];
  verbs: string[];
}

/** Permissions of the roles that are bound to the operator, as "group/resource verb". */
function allowed(objects: Manifest[]): Set<string> {
  const bound = new Set(
    objects
      .filter(({ kind }) => kind.endsWith('Binding'))
      .map((binding) => `${binding.roleRef.kind}/${binding.roleRef.name}`),
  );
  const rules = objects
    .filter(({ kind, metadata }) => bound.has(`${kind}/${metadata.name}`))
    .flatMap((role) => role.rules as Rule[]);
  return new Set(
    rules.flatMap(({ apiGroups, resources, verbs }) =>
      apiGroups.flatMap((group) =>
        resources.flatMap((resource) => verbs.map((verb) => `${group}/${resource} ${verb}`)),
      ),
    ),
  );
}

const PATH =
  /^\/(?:api|apis\/([^/]+))\/[^/]+\/(?:namespaces\/[^/]+\/)?([a-z]+)(?:\/([^/?]+))?(?:\/([a-z]+))?(?:\?(.*))?$/;

/** The permission that a request needs, as "group/resource verb"; null for discovery, which every user may read. */
function permissionFor({ method, url }: RecordedRequest): string | null {
  const [, group = '', resource, name, subresource, query = ''] = PATH.exec(url) ?? [];
  if (resource === undefined) return null;
  const read = name !== undefined ? 'get' : /(^|&)watch=true/.test(query) ? 'watch' : 'list';
  const verb = { GET: read, POST: 'create', PUT: 'update', PATCH: 'patch', DELETE: 'delete' }[method];
  return `${group}/${resource}${subresource === undefined ? '' : `/${subresource}`} ${verb}`;
}

async function clientOf(server: string, account: { namespace: string; name: string }, ca?: string): Promise<Client> {
  const request = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: {} };
  const { status } = await plane.client.post<{ status: { token: string } }>(
    `/api/v1/namespaces/${account.namespace}/serviceaccounts/${account.name}/token`,
    request,
  );
  return new Client({
    server,
    ...(ca !== undefined && { tls: { ca } }),
    credentials: async () => ({ authorization: `Bearer ${status.token}` }),
  });
}

/** Starts the operator as the service account of the release in the namespace `release`. */
async function startOperator(
  t: { after(end: () => Promise<void>): void },
  release: string,
  watched: string | null,
): Promise<FaultProxy> {
  const proxy = await FaultProxy.start(plane.server, plane.ca);
  const stop = new AbortController();
  const ended = runOperator(
    {
      client: await clientOf(proxy.server, { namespace: release, name: 'facetrain' }),
      metrics: new Metrics(),
      log,
      environment: clusterEnvironment('registry.example/trainer:1'),
      namespace: watched,
      identity: release,
      election: { namespace: release, name: 'facetrain-operator', ...electionTimes(15) },
      health: { host: '127.0.0.1', port: 0 },
      workers: 4,
      progressSeconds: 60,
    },
    stop.signal,
  );
  t.after(async () => {
    stop.abort();
    await ended;
    await proxy.close();
  });
  return proxy;
}

const apply = (namespace: string, name: string, spec: object = {}) =>
  plane.client.create(faceTrainJobs, namespace, {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name },
    spec: {
      dataset: { uri: 'pvc://data/faces' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: `pvc://data/out/${name}` },
      globalBatchSize: 64,
      ...spec,
    },
  });

const hasPhase = (resource: Resource<JobObject>, namespace: string, name: string, phase: string) =>
  eventually(async () =>
    assert.equal((await plane.client.get(resource, namespace, name)).status?.['phase' as never], phase),
  );
const exists = (resource: Resource, namespace: string, name: string) =>
  eventually(() => plane.client.get(resource, namespace, name));
const isGone = (resource: Resource, namespace: string, name: string) =>
  eventually(() =>
    assert.rejects(plane.client.get(resource, namespace, name), (error) => isApiError(error, 'NotFound')),
  );
const suspend = (namespace: string, name: string, isSuspended: boolean) =>
  plane.client.patch(faceTrainJobs, namespace, name, { spec: { suspend: isSuspended } });
const stalledBy = (namespace: string, name: string, message: RegExp) =>
  eventually(async () => {
    const { status } = await plane.client.get(faceTrainJobs, namespace, name);
    assert.match(status?.conditions?.find(({ type }) => type === 'Stalled')?.message ?? '', message);
  });

/** A name for jobs, their gang, and the PodGroups that they get. */
const OTHER_SCHEDULERS: [string, object, Resource][] = [
  ['kai', { mode: 'KAI', queue: 'team' }, KAI_GROUPS],
  ['volcano', { mode: 'Volcano' }, VOLCANO_GROUPS],
];

/** Kueue itself does not run here: lends the job of this Workload its quota. */
async function admit(namespace: string, name: string, flavors: Record<string, string>): Promise<void> {
  await exists(workloads, namespace, name);
  const condition = (type: string) => ({
    type,
    status: 'True',
    reason: 'Lent',
    message: '',
    lastTransitionTime: new Date().toISOString(),
  });
  const admission = { clusterQueue: 'all', podSetAssignments: [{ name: 'main', flavors, count: 1 }] };
  const status = { admission, conditions: [condition('QuotaReserved'), condition('Admitted')] };
  await plane.client.patch(workloads, namespace, name, { status }, 'status');
}

/**
 * Makes the operator send every kind of request: restarts, suspension, quantization, queues, name conflicts.
 *
 * @param readsCluster whether it may read objects without a namespace
 */
async function exerciseAll(namespace: string, proxy: FaultProxy, readsCluster: boolean): Promise<void> {
  const wrote = (verb: string, kind: string, apiVersion = '') =>
    eventually(() =>
      assert(
        proxy.writes.some(
          ({ method, url }) =>
            method === verb && url.includes(`/${namespace}/${kind}`) && url.includes(`/${apiVersion}`),
        ),
        `no ${verb} of ${kind} ${apiVersion}`,
      ),
    );
  // A failure and a restart.
  await apply(namespace, 'faces', { quantize: {}, ttlSecondsAfterFinished: { succeeded: 0 } });
  await exists(pods, namespace, 'faces-0-0');
  await setPodStatus(plane.client, namespace, 'faces-0-0', 'Failed', { exitCode: 1 });
  await exists(pods, namespace, 'faces-1-0');
  await suspend(namespace, 'faces', true);
  await hasPhase(faceTrainJobs, namespace, 'faces', 'Suspended');
  // Existing objects are patched to the new spec.
  await plane.client.patch(faceTrainJobs, namespace, 'faces', {
    spec: { suspend: false, trainers: { progressPort: 8090 } },
  });
  await hasPhase(faceTrainJobs, namespace, 'faces', 'Pending');
  for (const kind of ['services', 'networkpolicies']) await wrote('PATCH', kind);
  await plane.client.patch(faceTrainJobs, namespace, 'faces', { spec: { networkPolicy: { enabled: false } } });
  await wrote('DELETE', 'networkpolicies');
  // Objects of earlier attempts are deleted.
  for (const kind of ['pods', 'configmaps', 'podgroups']) await wrote('DELETE', kind);
  // Training, a suspended quantization, success; the job is deleted as its time to live is 0.
  const { status } = await plane.client.get(faceTrainJobs, namespace, 'faces');
  const last = `faces-${status!.attempt}-0`;
  await exists(pods, namespace, last);
  await setPodStatus(plane.client, namespace, last, 'Running');
  await hasPhase(faceTrainJobs, namespace, 'faces', 'Running');
  await setPodStatus(plane.client, namespace, last, 'Succeeded', { exitCode: 0 });
  await exists(pods, namespace, 'faces-quantize-0-quantizer');
  await suspend(namespace, 'faces', true);
  await hasPhase(quantizeJobs, namespace, 'faces-quantize', 'Suspended');
  await suspend(namespace, 'faces', false);
  const again = (await exists(quantizeJobs, namespace, 'faces-quantize')) as JobObject;
  const quantizer = `faces-quantize-${again.status!.attempt}-quantizer`;
  await exists(pods, namespace, quantizer);
  await setPodStatus(plane.client, namespace, quantizer, 'Succeeded', { exitCode: 0 });
  await isGone(faceTrainJobs, namespace, 'faces');
  // Two equal failures: the second event is counted in the series of the first. Without PodGroups: no controller runs
  // here that would take their finalizer, and the next job of this name would wait for their end.
  const alone = { gang: { mode: 'None' } };
  await apply(namespace, 'again', alone);
  for (const attempt of [0, 1]) {
    await exists(pods, namespace, `again-${attempt}-0`);
    await setPodStatus(plane.client, namespace, `again-${attempt}-0`, 'Failed', { exitCode: 1 });
  }
  await wrote('PATCH', 'events');
  // Of a job that was deleted and created again, what the earlier one has left is deleted: no garbage collector runs.
  const { metadata } = await plane.client.get(faceTrainJobs, namespace, 'again');
  await plane.client.delete(faceTrainJobs, namespace, 'again', metadata.uid);
  await apply(namespace, 'again', alone);
  await wrote('DELETE', 'services');
  // A QuantizeJob without a FaceTrainJob fails, and is deleted as its time to live is 0.
  await plane.client.create(quantizeJobs, namespace, {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'QuantizeJob',
    metadata: { name: 'small' },
    spec: {
      model: { uri: 'pvc://data/model.onnx' },
      calibration: { dataset: { uri: 'pvc://data/faces' } },
      output: { uri: 'pvc://data/int7' },
      ttlSecondsAfterFinished: { failed: 0 },
    },
  });
  await exists(pods, namespace, 'small-0-quantizer');
  await setPodStatus(plane.client, namespace, 'small-0-quantizer', 'Failed', { exitCode: 2 });
  await isGone(quantizeJobs, namespace, 'small');

  // A job gets its quota, says that its pods are ready, and gives it back.
  await apply(namespace, 'queued', { queue: { name: 'team', ...(readsCluster && { priorityClassName: 'low' }) } });
  await admit(namespace, 'facetrainjob-queued', readsCluster ? { cpu: 'gpus' } : {});
  await exists(pods, namespace, 'queued-0-0');
  await setPodStatus(plane.client, namespace, 'queued-0-0', 'Running');
  await eventually(async () => {
    const { status } = await plane.client.get(workloads, namespace, 'facetrainjob-queued');
    assert(status?.conditions?.some(({ type }) => type === 'PodsReady'));
  });
  await suspend(namespace, 'queued', true);
  await isGone(workloads, namespace, 'facetrainjob-queued');

  // A restart of a gang in the PodGroups of each other scheduler.
  for (const [name, gang, { apiVersion }] of OTHER_SCHEDULERS) {
    await apply(namespace, name, { gang });
    await exists(pods, namespace, `${name}-0-0`);
    await setPodStatus(plane.client, namespace, `${name}-0-0`, 'Failed', { exitCode: 1 });
    await exists(pods, namespace, `${name}-1-0`);
    await wrote('DELETE', `podgroups/${name}-0`, apiVersion);
  }

  // Objects of another owner under the name of a child are read, and not changed.
  const theirs: [Resource, string, string, object, object?][] = [
    [services, 'Service', 'taken-by-service', { spec: { ports: [{ port: 80 }] } }],
    [networkPolicies, 'NetworkPolicy', 'taken-by-policy', { spec: { podSelector: {} } }],
    [configMaps, 'ConfigMap', 'taken-by-config-0', {}],
    [POD_GROUPS, 'PodGroup', 'taken-by-group-0', { spec: { schedulingPolicy: { gang: { minCount: 1 } } } }],
    ...OTHER_SCHEDULERS.map(([name, gang, resource]): (typeof theirs)[number] => [
      resource,
      'PodGroup',
      `taken-by-${name}-0`,
      { spec: { minMember: 1 } },
      { gang },
    ]),
    [pods, 'Pod', 'taken-by-pod-0-0', { spec: { containers: [{ name: 'theirs', image: 'theirs' }] } }],
  ];
  await plane.client.create(workloads, namespace, {
    apiVersion: workloads.apiVersion,
    kind: 'Workload',
    metadata: { name: 'facetrainjob-taken-by-workload' },
    spec: { podSets: [{ name: 'main', count: 1, template: { spec: { containers: [{ name: 'theirs' }] } } }] },
  });
  await apply(namespace, 'taken-by-workload', { queue: { name: 'team' } });
  await stalledBy(namespace, 'taken-by-workload', /^Workload facetrainjob-taken-by-workload exists/);
  for (const [resource, kind, name, rest, spec] of theirs) {
    await plane.client.create(resource, namespace, {
      apiVersion: resource.apiVersion,
      kind,
      metadata: { name },
      ...rest,
    });
    const job = name.replace(/-0.*/, '');
    await apply(namespace, job, spec);
    await stalledBy(namespace, job, new RegExp(`^${kind} ${name} exists`));
  }
  // The same for a QuantizeJob, which the operator would find in its cache if its watch had not ended.
  proxy.fail('GET', /\/quantizejobs\?.*watch=true/, 500, { times: 1000 });
  proxy.dropWatches();
  await apply(namespace, 'late', { quantize: {} });
  await exists(pods, namespace, 'late-0-0');
  await plane.client.create(quantizeJobs, namespace, {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'QuantizeJob',
    metadata: { name: 'late-quantize' },
    spec: {
      model: { uri: 'pvc://data/model.onnx' },
      calibration: { dataset: { uri: 'pvc://data/faces' } },
      output: { uri: 'pvc://data/int7' },
    },
  });
  await setPodStatus(plane.client, namespace, 'late-0-0', 'Succeeded', { exitCode: 0 });
  await stalledBy(namespace, 'late', /^QuantizeJob late-quantize exists/);
  // A fast machine comes here before the leader has renewed its Lease.
  await eventually(() => assert(usedOf(proxy).has('coordination.k8s.io/leases update')));
}

/** Permissions that are needed although no request is made with them. */
const WITHOUT_REQUEST = [
  // Checked by the admission plugin OwnerReferencesPermissionEnforcement; see the test of the finalizers rule.
  'facetrain.dev/facetrainjobs/finalizers update',
  'facetrain.dev/quantizejobs/finalizers update',
];
const usedOf = (proxy: FaultProxy) => new Set(proxy.requests.flatMap((request) => permissionFor(request) ?? []));
const refusedOf = (proxy: FaultProxy) => proxy.requests.filter(({ code }) => code === 403 || code === 401);

test('in all namespaces, the ClusterRole is sufficient and minimal', async (t) => {
  await upgrade(plane, 'facetrain-system', { crds: { enabled: false } });
  const proxy = await startOperator(t, 'facetrain-system', null);
  await exerciseAll('faces', proxy, true);
  assert.deepEqual(refusedOf(proxy), []);
  const used = usedOf(proxy);
  const unused = [...allowed(await render({}))].filter((permission) => !used.has(permission));
  assert.deepEqual(unused.sort(), WITHOUT_REQUEST);
});

test('in one namespace, the Role is sufficient and minimal; other namespaces are forbidden', async (t) => {
  const namespace = 'alone';
  const values = { watchNamespace: namespace, crds: { enabled: false }, rbac: { userRoles: false } };
  await upgrade(plane, namespace, values);
  const proxy = await startOperator(t, namespace, namespace);
  await exerciseAll(namespace, proxy, false);
  // A Role cannot allow nodes: the operator tries now and then, and works without.
  assert.deepEqual(
    refusedOf(proxy).filter(({ url }) => !url.startsWith('/api/v1/nodes')),
    [],
  );
  const used = usedOf(proxy);
  const unused = [...allowed(await render(values, namespace))].filter((permission) => !used.has(permission));
  assert.deepEqual(unused.sort(), [...WITHOUT_REQUEST].sort());

  const client = await clientOf(plane.server, { namespace, name: 'facetrain' }, plane.ca);
  t.after(() => client.close());
  const isForbidden = (error: unknown) => isApiError(error, 'Forbidden');
  await client.list(pods, namespace, {});
  await assert.rejects(client.list(pods, 'faces', {}), isForbidden);
  await assert.rejects(client.list(faceTrainJobs, null, {}), isForbidden);
  await assert.rejects(client.list(defineResource('v1', 'secrets'), namespace, {}), isForbidden);
});

test('without the finalizers rule, a server that checks owners refuses children; the status has why', async (t) => {
  const namespace = 'unowned';
  await upgrade(plane, namespace, { watchNamespace: namespace, crds: { enabled: false }, rbac: { userRoles: false } });
  const roles = defineResource<KubernetesObject & { rules: Rule[] }>('rbac.authorization.k8s.io/v1', 'roles');
  const { rules } = await plane.client.get(roles, namespace, 'facetrain');
  await plane.client.patch(roles, namespace, 'facetrain', {
    rules: rules.filter(({ resources }) => !resources.some((resource) => resource.endsWith('/finalizers'))),
  });
  await startOperator(t, namespace, namespace);
  await apply(namespace, 'faces');
  await stalledBy(namespace, 'faces', /cannot set blockOwnerDeletion/);
  await assert.rejects(plane.client.get(pods, namespace, 'faces-0-0'), (error) => isApiError(error, 'NotFound'));
});

test('the roles for users: an editor writes jobs, a viewer reads them, and neither writes a status', async (t) => {
  const accounts = defineResource('v1', 'serviceaccounts');
  const bindings = defineResource('rbac.authorization.k8s.io/v1', 'rolebindings');
  await plane.createNamespace('people');
  const clients: Record<string, Client> = {};
  for (const [name, roles] of [
    ['editor', ['facetrain-edit', 'facetrain-view']],
    ['viewer', ['facetrain-view']],
  ] as const) {
    await plane.client.create(accounts, 'people', { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name } });
    for (const role of roles) {
      await plane.client.create(bindings, 'people', {
        apiVersion: 'rbac.authorization.k8s.io/v1',
        kind: 'RoleBinding',
        metadata: { name: `${name}-${role}` },
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: role },
        subjects: [{ kind: 'ServiceAccount', name, namespace: 'people' }],
      });
    }
    clients[name] = await clientOf(plane.server, { namespace: 'people', name }, plane.ca);
  }
  t.after(async () => void (await Promise.all(Object.values(clients).map((client) => client.close()))));
  const { editor, viewer } = clients as { editor: Client; viewer: Client };
  const isForbidden = (error: unknown) => isApiError(error, 'Forbidden');
  const job = {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'faces' },
    spec: {
      dataset: { uri: 'pvc://data/faces' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: 'pvc://data/out' },
      globalBatchSize: 64,
      suspend: true,
    },
  };
  await eventually(() => editor.create(faceTrainJobs, 'people', job));
  await viewer.get(faceTrainJobs, 'people', 'faces');
  await assert.rejects(viewer.patch(faceTrainJobs, 'people', 'faces', { spec: { suspend: false } }), isForbidden);
  await assert.rejects(
    editor.patch(faceTrainJobs, 'people', 'faces', { status: { phase: 'Succeeded' } }, 'status'),
    isForbidden,
  );
  await assert.rejects(viewer.patch(faceTrainJobs, 'people', 'faces', { spec: { replicas: 2 } }, 'scale'), isForbidden);
  await editor.patch(faceTrainJobs, 'people', 'faces', { spec: { replicas: 2 } }, 'scale');
  await editor.patch(faceTrainJobs, 'people', 'faces', { spec: { suspend: false } });
});
