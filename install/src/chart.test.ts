/** The chart, checked by Helm and by a real API server. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { faceTrainJobs } from '@facetrain/operator/controllers/resources';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import { defineResource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { parse } from 'yaml';
import { root } from '../../hack/lib/paths.mjs';
import { chart, helm } from './helm.ts';
import { type Manifest, manifests, render, uninstall, upgrade, withValues } from './testing/chart-harness.ts';

const deployments = defineResource('apps/v1', 'deployments');
const DIGEST = `sha256:${'0123456789abcdef'.repeat(4)}`;

const everything = {
  image: { registry: 'registry.example:5000', repository: 'faces/operator', tag: '9.9', pullPolicy: 'Always' },
  imagePullSecrets: [{ name: 'registry' }],
  replicas: 3,
  workers: 32,
  progressSeconds: 2,
  leaseSeconds: 15,
  logLevel: 'debug',
  extraEnv: [{ name: 'HTTPS_PROXY', value: 'http://proxy.example:3128' }],
  resources: { requests: { cpu: 1 }, limits: { memory: '1Gi' } },
  podLabels: { team: 'faces' },
  podAnnotations: { 'example.com/owner': 'faces' },
  nodeSelector: { 'kubernetes.io/os': 'linux' },
  tolerations: [{ key: 'control', operator: 'Exists', effect: 'NoSchedule' }],
  affinity: {
    nodeAffinity: {
      preferredDuringSchedulingIgnoredDuringExecution: [
        { weight: 1, preference: { matchExpressions: [{ key: 'zone', operator: 'In', values: ['a'] }] } },
      ],
    },
  },
  topologySpreadConstraints: [
    {
      maxSkew: 1,
      topologyKey: 'zone',
      whenUnsatisfiable: 'DoNotSchedule',
      labelSelector: { matchLabels: { 'app.kubernetes.io/component': 'operator' } },
    },
  ],
  priorityClassName: 'system-cluster-critical',
  serviceAccount: { annotations: { 'example.com/role': 'operator' } },
  networkPolicy: {
    enabled: true,
    from: [{ namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'monitoring' } } }],
  },
  metrics: {
    serviceMonitor: { enabled: true, labels: { release: 'prometheus' } },
    podMonitor: { enabled: true, interval: '1m30s', labels: { release: 'prometheus' } },
  },
  fullnameOverride: 'faces-operator',
};
const namespaced = { watchNamespace: 'faces', crds: { enabled: false }, rbac: { userRoles: false } };

const CRDS = ['CustomResourceDefinition', 'CustomResourceDefinition'];
const ROLES = ['ClusterRole', 'ClusterRoleBinding', 'Role', 'RoleBinding', 'ServiceAccount'];
const cases: Record<string, { values: object; want: string[] }> = {
  defaults: {
    values: {},
    want: [...CRDS, 'ClusterRole', 'ClusterRole', ...ROLES, 'Deployment', 'PodDisruptionBudget', 'Service'],
  },
  everything: {
    values: everything,
    want: [
      ...CRDS,
      'ClusterRole',
      'ClusterRole',
      ...ROLES,
      'Deployment',
      'NetworkPolicy',
      'PodDisruptionBudget',
      'PodMonitor',
      'Service',
      'ServiceMonitor',
    ],
  },
  'one namespace, without cluster-scoped objects': {
    values: namespaced,
    want: [
      'Deployment',
      'PodDisruptionBudget',
      'Role',
      'Role',
      'RoleBinding',
      'RoleBinding',
      'Service',
      'ServiceAccount',
    ],
  },
  'one replica, with everything optional disabled': {
    values: {
      replicas: 1,
      crds: { enabled: false },
      rbac: { create: false, userRoles: false },
      serviceAccount: { create: false, name: 'theirs' },
      metrics: { enabled: false },
    },
    want: ['Deployment'],
  },
  'images by digest, as a part of another chart': {
    values: {
      image: { digest: DIGEST },
      trainerImage: { registry: 'registry.example', tag: '2.0', digest: DIGEST },
      global: { any: 1 },
      enabled: true,
      crds: { enabled: false },
    },
    want: ['ClusterRole', 'ClusterRole', ...ROLES, 'Deployment', 'PodDisruptionBudget', 'Service'],
  },
};

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  for (const namespace of ['release', 'faces', 'facetrain-system']) await plane.createNamespace(namespace);
  // Minimal CRDs of the Prometheus operator: the documented schema of the fields that the chart sets.
  for (const [kind, plural, endpoints] of [
    ['ServiceMonitor', 'servicemonitors', 'endpoints'],
    ['PodMonitor', 'podmonitors', 'podMetricsEndpoints'],
  ] as const) {
    const strings = { type: 'array', items: { type: 'string' } };
    const labels = { type: 'object', additionalProperties: { type: 'string' } };
    const properties = {
      selector: { type: 'object', properties: { matchLabels: labels } },
      namespaceSelector: { type: 'object', properties: { any: { type: 'boolean' }, matchNames: strings } },
      podTargetLabels: strings,
      [endpoints]: {
        type: 'array',
        items: { type: 'object', properties: { port: { type: 'string' }, interval: { type: 'string' } } },
      },
    };
    const openAPIV3Schema = {
      type: 'object',
      properties: { spec: { type: 'object', required: ['selector'], properties } },
    };
    await plane.client.post('/apis/apiextensions.k8s.io/v1/customresourcedefinitions', {
      apiVersion: 'apiextensions.k8s.io/v1',
      kind: 'CustomResourceDefinition',
      metadata: {
        name: `${plural}.monitoring.coreos.com`,
        annotations: { 'api-approved.kubernetes.io': 'unapproved, a test' },
      },
      spec: {
        group: 'monitoring.coreos.com',
        scope: 'Namespaced',
        names: { kind, plural },
        versions: [{ name: 'v1', served: true, storage: true, schema: { openAPIV3Schema } }],
      },
    });
    await eventually(() => plane.client.raw(`/apis/monitoring.coreos.com/v1/${plural}`));
  }
});
after(() => plane?.stop());

/** @throws ApiError when the server would refuse the object; unknown and duplicate fields are errors */
async function dryRun(object: Manifest): Promise<void> {
  const group = object.apiVersion.includes('/') ? `/apis/${object.apiVersion}` : `/api/${object.apiVersion}`;
  const { resources } = await plane.client.raw<{ resources: { name: string; kind: string; namespaced: boolean }[] }>(
    group,
  );
  const resource = resources.find(({ name, kind }) => kind === object.kind && !name.includes('/'));
  assert(resource, `${group} serves no ${object.kind}`);
  assert.equal(
    object.metadata.namespace !== undefined,
    resource.namespaced,
    `${object.kind} ${object.metadata.name}: namespace`,
  );
  const scope = resource.namespaced ? `/namespaces/${object.metadata.namespace}` : '';
  await plane.client.post(`${group}${scope}/${resource.name}?dryRun=All&fieldValidation=Strict`, object);
}

const container = (objects: Manifest[]) =>
  objects.find(({ kind }) => kind === 'Deployment')!.spec.template.spec.containers[0] as {
    image: string;
    env: { name: string; value: string }[];
  };
const variable = (objects: Manifest[], name: string) =>
  container(objects).env.find((entry) => entry.name === name)?.value;

for (const [name, { values, want }] of Object.entries(cases)) {
  test(`renders objects that the API server accepts: ${name}`, async () => {
    await withValues(values, (file) => helm(['lint', '--strict', '--values', file, chart]));
    const objects = await render(values, 'release');
    assert.deepEqual(objects.map(({ kind }) => kind).sort(), [...want].sort());
    for (const object of objects) await dryRun(object);
  });
}

test('values reach the image, the environment and the flags of the operator', async () => {
  const objects = await render(everything);
  assert.equal(container(objects).image, 'registry.example:5000/faces/operator:9.9');
  assert.deepEqual(
    ['WORKERS', 'PROGRESS_SECONDS', 'LEASE_SECONDS', 'LOG_LEVEL', 'NAMESPACE'].map((option) =>
      variable(objects, `FACETRAIN_${option}`),
    ),
    ['32', '2', '15', 'debug', undefined],
  );
  assert.equal(variable(objects, 'HTTPS_PROXY'), 'http://proxy.example:3128');
  const { version } = JSON.parse(await readFile(join(root, 'operator', 'package.json'), 'utf8')) as { version: string };
  const defaults = await render({});
  assert.deepEqual(
    [container(defaults).image, variable(defaults, 'FACETRAIN_IMAGE')],
    [`facetrain/operator:${version}`, `facetrain/trainer:${version}`],
  );
  const digests = await render(cases['images by digest, as a part of another chart']!.values);
  assert.deepEqual(
    [container(digests).image, variable(digests, 'FACETRAIN_IMAGE')],
    [`facetrain/operator@${DIGEST}`, `registry.example/facetrain/trainer:2.0@${DIGEST}`],
  );
  assert.equal(variable(await render(namespaced), 'FACETRAIN_NAMESPACE'), 'faces');
});

test('names of objects are valid with the longest name of a release', async () => {
  const objects = manifests(
    await helm(['template', 'r'.repeat(53), chart, '--namespace', 'release', '--set', 'crds.enabled=false']),
  );
  for (const object of objects) await dryRun(object);
  for (const { metadata } of objects) assert(metadata.name.length <= 63, metadata.name);
});

const refusals: Record<string, { values: object; want: RegExp }> = {
  'a typo': { values: { replica: 3 }, want: /at '': additional properties 'replica' not allowed/ },
  'a typo in a nested field': {
    values: { metrics: { serviceMonitor: { enable: true } } },
    want: /at '\/metrics\/serviceMonitor': additional properties 'enable' not allowed/,
  },
  'a number out of bounds': { values: { workers: 0 }, want: /at '\/workers': minimum: got 0, want 1/ },
  'a word that is not allowed': {
    values: { logLevel: 'loud' },
    want: /at '\/logLevel': value must be one of 'debug', 'info', 'warn', 'error'/,
  },
  'a malformed digest': {
    values: { image: { digest: 'sha256:12' } },
    want: /at '\/image\/digest': 'sha256:12' does not match pattern/,
  },
  'a registry with a scheme': {
    values: { image: { registry: 'https://registry.example.com' } },
    want: /at '\/image\/registry': 'https:\/\/registry\.example\.com' does not match pattern/,
  },
  'a repository with a tag': {
    values: { image: { repository: 'registry.example.com:5000/facetrain/operator:0.1.0' } },
    want: /at '\/image\/repository': .* does not match pattern/,
  },
  'a name that no object may have': { values: { fullnameOverride: 'A_b' }, want: /at '\/fullnameOverride': 'A_b'/ },
  'two namespaces': { values: { watchNamespace: 'a,b' }, want: /at '\/watchNamespace': 'a,b' does not match pattern/ },
  'a variable that a value sets': {
    values: { extraEnv: [{ name: 'FACETRAIN_WORKERS', value: '9' }] },
    want: /extraEnv: FACETRAIN_WORKERS is what the value workers sets/,
  },
  'alerts about an operator that nothing scrapes': {
    values: { metrics: { prometheusRule: { enabled: true } } },
    want: /metrics\.prometheusRule\.enabled: without metrics\.serviceMonitor\.enabled/,
  },
  'a monitor of a Service that is not made': {
    values: { metrics: { enabled: false, serviceMonitor: { enabled: true } } },
    want: /metrics\.serviceMonitor\.enabled: the monitor finds the operator by its Service/,
  },
  'a string for a number': { values: { replicas: '2' }, want: /at '\/replicas': got string, want integer/ },
};
for (const [name, { values, want }] of Object.entries(refusals)) {
  test(`refused, with the path of the field: ${name}`, () => assert.rejects(render(values), want));
}

test('the API server accepts deploy/, and its kustomization lists the manifest', async () => {
  const folder = join(root, 'deploy');
  const { resources } = parse(await readFile(join(folder, 'kustomization.yaml'), 'utf8')) as { resources: string[] };
  assert.deepEqual(resources, ['facetrain.yaml']);
  const text = await readFile(join(folder, 'facetrain.yaml'), 'utf8');
  assert.doesNotMatch(text, /helm/i);
  const [namespace, ...objects] = manifests(text);
  assert.equal(namespace!.kind, 'Namespace');
  for (const object of objects) await dryRun(object);
  // kubectl apply keeps a copy of the object in an annotation, of at most 256 KiB.
  for (const object of objects) assert(JSON.stringify(object).length < 200_000, object.metadata.name);
});

test('install, upgrade, uninstall: the selector stays, and jobs outlive the release if the CRDs are kept', async () => {
  const namespace = 'life';
  const crd = () =>
    plane.client.raw('/apis/apiextensions.k8s.io/v1/customresourcedefinitions/facetrainjobs.facetrain.dev');
  const deployment = async () => (await plane.client.get(deployments, namespace, 'facetrain')) as unknown as Manifest;
  const notes = await upgrade(plane, namespace, {});
  assert.match(notes, /kubectl apply -f job\.yaml\n.*kubectl get facetrainjobs -w/);
  const installed = await deployment();
  await eventually(() => plane.client.raw('/apis/facetrain.dev/v1alpha1/facetrainjobs'));
  const job = await plane.client.create(faceTrainJobs, namespace, {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'faces' },
    spec: {
      dataset: { uri: 'pvc://data/faces' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: 'pvc://data/out' },
      globalBatchSize: 64,
    },
  });

  const { fullnameOverride: _, ...changes } = everything;
  await upgrade(plane, namespace, changes);
  const upgraded = await deployment();
  assert.equal(upgraded.metadata.uid, installed.metadata.uid);
  assert.deepEqual(upgraded.spec.selector, installed.spec.selector);
  assert.equal(upgraded.spec.replicas, 3);
  await upgrade(plane, namespace, { workers: 9 });
  assert.equal((await deployment()).spec.replicas, 2);

  await uninstall(plane, namespace);
  await eventually(() => assert.rejects(deployment(), (error) => isApiError(error, 'NotFound')));
  await crd();
  assert.equal((await plane.client.get(faceTrainJobs, namespace, 'faces')).metadata.uid, job.metadata.uid);

  // A release of the same name and namespace adopts the kept CRDs. Another one needs --take-ownership; with crds.keep
  // false it deletes them at its end.
  await upgrade(plane, namespace, {});
  await uninstall(plane, namespace);
  await assert.rejects(upgrade(plane, 'elsewhere', {}), /invalid ownership metadata/);
  await upgrade(plane, 'elsewhere', { crds: { keep: false } }, '--take-ownership');
  assert.equal((await plane.client.get(faceTrainJobs, namespace, 'faces')).metadata.uid, job.metadata.uid);
  await uninstall(plane, 'elsewhere');
  await eventually(() => assert.rejects(crd(), (error) => isApiError(error, 'NotFound')));
});
