/** Programs under Pulumi's mocks; the resources that they register are given to Helm and a real API server. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { FaceTrainJob as FaceTrainJobSchema, parseDocument } from '@facetrain/api';
import { chart } from '@facetrain/install/helm';
import { type Manifest, upgrade } from '@facetrain/install/testing/chart-harness';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { core } from '@pulumi/kubernetes';
import { log, type Output, output, runtime } from '@pulumi/pulumi';
import { FaceTrainJob, Facetrain, type JobArgs, QuantizeJob } from './index.ts';

type FaceTrainJobArgs = ConstructorParameters<typeof FaceTrainJob>[1];

const spec = {
  dataset: { uri: 'pvc://data/faces' },
  model: { backbone: 'mobilefacenet' },
  output: { uri: 'pvc://data/out' },
  globalBatchSize: 64,
} as const;
const [NAMESPACE, RELEASE] = ['kubernetes:core/v1:Namespace', 'kubernetes:helm.sh/v3:Release'];
const [TRAIN, QUANTIZE] = [
  'kubernetes:facetrain.dev/v1alpha1:FaceTrainJob',
  'kubernetes:facetrain.dev/v1alpha1:QuantizeJob',
];

interface Registered {
  type: string;
  name: string;
  inputs: Manifest;
  /** Names of the resources that existed when this registration began. */
  after: string[];
}

interface RunOptions {
  preview?: boolean;
  /** Additional state in the provider's answers. */
  state?: object;
}

/** Runs a program to its end. @returns the Kubernetes resources that it registered */
async function run(program: () => unknown, { preview = false, state = {} }: RunOptions = {}): Promise<Registered[]> {
  const registered: Registered[] = [];
  const existing: string[] = [];
  const newResource = async ({ type, name, inputs }: runtime.MockResourceArgs) => {
    if (type.startsWith('kubernetes:')) registered.push({ type, name, inputs, after: [...existing] });
    // Time for resources that do not wait for this one to be registered first.
    for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
    existing.push(name);
    return { id: `${name}-id`, state: { ...inputs, ...state } };
  };
  await runtime.setMocks(
    { newResource, call: () => assert.fail('no function is called') },
    'project',
    'stack',
    preview,
  );
  await program();
  await runtime.disconnect();
  return registered;
}

const resolved = <T>(value: Output<T>): Promise<T> => new Promise((resolve) => value.apply(resolve));
const jobArgs = (more: object = {}, args: object = {}) =>
  ({ metadata: { name: 'faces', namespace: 'faces' }, spec: { ...spec, ...more }, ...args }) as FaceTrainJobArgs;

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.createNamespace('faces');
});
after(() => plane?.stop());

test('the operator and then jobs are registered, and Helm and the API server accept them', async () => {
  const registered = await run(() => {
    const facetrain = new Facetrain('facetrain', {
      values: { replicas: 1, image: { registry: output('registry.example') } },
    });
    const options = { dependsOn: facetrain };
    const data = new core.v1.ConfigMap('data', { data: { uri: 'pvc://data/more-faces' } });
    const { output: result } = spec;
    new FaceTrainJob('faces', jobArgs({ dataset: { uri: data.data.uri! }, quantize: {} }), options);
    const quantize = {
      model: { uri: `${result.uri}/model/backbone.onnx` },
      calibration: { dataset: spec.dataset },
      output: { uri: 'pvc://data/int7' },
    };
    new QuantizeJob(
      'int7',
      { metadata: { name: 'int7', namespace: 'faces' }, spec: quantize, waitFor: 'Nothing' },
      options,
    );
  });
  const cluster = registered.filter(({ name }) => name !== 'data');
  assert.deepEqual(cluster.map(({ type }) => type).sort(), [NAMESPACE, RELEASE, TRAIN, QUANTIZE].sort());

  const of = (type: string) => registered.find((resource) => resource.type === type)!;
  const isAfter = (later: Registered, earlier: Registered) =>
    assert(later.after.includes(earlier.name), `${later.name} does not wait for ${earlier.name}`);
  isAfter(of(RELEASE), of(NAMESPACE));
  for (const type of [TRAIN, QUANTIZE]) isAfter(of(type), of(RELEASE));

  const create = (path: string, object: Manifest) => plane.client.post(`${path}?fieldValidation=Strict`, object);
  await create('/api/v1/namespaces', of(NAMESPACE).inputs);
  const { name, chart: folder, namespace, values, takeOwnership } = of(RELEASE).inputs;
  assert.deepEqual(
    [name, folder, namespace, takeOwnership],
    ['facetrain', chart, of(NAMESPACE).inputs.metadata.name, true],
  );
  await upgrade(plane, namespace, values);
  const { spec: deployment } = await plane.client.raw<Manifest>(
    `/apis/apps/v1/namespaces/${namespace}/deployments/facetrain`,
  );
  assert.equal(deployment.replicas, 1);
  assert.match(deployment.template.spec.containers[0].image, /^registry\.example\//);

  const jobs = '/apis/facetrain.dev/v1alpha1/namespaces/faces';
  for (const plural of ['facetrainjobs', 'quantizejobs']) await eventually(() => plane.client.raw(`${jobs}/${plural}`));
  const trained = (await create(`${jobs}/facetrainjobs`, of(TRAIN).inputs)) as Manifest;
  assert.deepEqual(
    [trained.spec.dataset.uri, trained.metadata.annotations],
    ['pvc://data/more-faces', { 'pulumi.com/waitFor': 'condition=Ready' }],
  );
  const quantized = (await create(`${jobs}/quantizejobs`, of(QUANTIZE).inputs)) as Manifest;
  assert.deepEqual(quantized.metadata.annotations, { 'pulumi.com/skipAwait': 'true' });

  const example = await run(() => import('../example/index.ts'));
  await create(`${jobs}/facetrainjobs`, example.find(({ type }) => type === TRAIN)!.inputs);
});

test('with createNamespace false no namespace is registered', async () => {
  const registered = await run(() => new Facetrain('facetrain', { namespace: 'theirs', createNamespace: false }));
  assert.deepEqual(
    registered.map(({ type, inputs }) => [type, inputs.namespace]),
    [[RELEASE, 'theirs']],
  );
});

const refusals: Record<string, { args: FaceTrainJobArgs; want: RegExp }> = {
  'a number out of bounds': {
    args: jobArgs({ epochs: -1 }),
    want: /^FaceTrainJob faces: spec\.epochs: -1; must be at least 1$/,
  },
  'a typo in a nested field': {
    args: jobArgs({ trainers: { replica: 2 } }),
    want: /: spec\.trainers\.replica: unknown field; did you mean "replicas"\?/,
  },
  'fields that do not fit together': {
    args: jobArgs({ trainers: { replicas: 65 } }),
    want: /: spec\.globalBatchSize: 64; globalBatchSize must be trainers\.replicas · ranksPerPod or more/,
  },
  'an invalid name': {
    args: jobArgs({}, { metadata: { name: 'Faces' } }),
    want: /: metadata\.name: "Faces"; lower-case letters/,
  },
  'waitFor End without customTimeouts': {
    args: jobArgs({}, { waitFor: 'End' }),
    want: /: customTimeouts: missing; with waitFor End, say how long/,
  },
};
for (const [name, { args, want }] of Object.entries(refusals)) {
  test(`a job is refused at its line of the program, by its field: ${name}`, async () => {
    assert.deepEqual(
      await run(() => assert.throws(() => new FaceTrainJob('faces', args), { name: 'FacetrainError', message: want })),
      [],
    );
  });
}

test('the message is that of facetrain validate', async () => {
  const { metadata, spec } = jobArgs({ epochs: -1, losss: {} });
  const manifest = { apiVersion: 'facetrain.dev/v1alpha1', kind: 'FaceTrainJob', metadata, spec };
  const validate = () => parseDocument(FaceTrainJobSchema, manifest, 'FaceTrainJob faces', 'InvalidManifest');
  const messageOf = (of: () => void) => {
    let message = 'accepted';
    assert.throws(of, (error: Error) => Boolean((message = error.message)));
    return message;
  };
  await run(() =>
    assert.equal(
      messageOf(() => new FaceTrainJob('faces', { metadata, spec } as JobArgs<never>)),
      messageOf(validate),
    ),
  );
});

test('values are refused by their path', async () => {
  const values = { metrics: { serviceMonitor: { enable: true } } } as object;
  const want = /^Facetrain facetrain: values: metrics\.serviceMonitor\.enable: unknown field; did you mean "enabled"\?/;
  const registered = await run(() => assert.throws(() => new Facetrain('facetrain', { values }), { message: want }));
  assert.deepEqual(registered, []);
});

test('a name with the suffix that Pulumi appends must not be too long', async () => {
  const registered = await run(() => {
    new FaceTrainJob('faces', { spec });
    assert.throws(
      () => new FaceTrainJob('f'.repeat(32), { spec }),
      /: metadata\.name: .*; must be at most 40 characters long/,
    );
  });
  assert.deepEqual(
    registered.map(({ inputs }) => inputs.metadata.name),
    [undefined],
  );
});

test('a value unknown in a preview passes it, and is refused by the update before the job is registered', async () => {
  const previewed = await run(
    () => {
      const data = new core.v1.ConfigMap('data', {});
      new FaceTrainJob('faces', jobArgs({ epochs: data.data.epochs!.apply(Number) }));
    },
    { preview: true, state: { data: { epochs: runtime.unknownValue } } },
  );
  assert.deepEqual(
    previewed.map(({ type }) => type),
    ['kubernetes:core/v1:ConfigMap', TRAIN],
  );

  // Pulumi ends a process at the first unhandled rejection, so this program runs in one of its own.
  const program = `
    import { output, runtime } from '@pulumi/pulumi';
    import { FaceTrainJob } from '@facetrain/pulumi';
    const newResource = ({ type, inputs }) => { console.log('registered', type); return { id: 'id', state: inputs }; };
    await runtime.setMocks({ newResource, call: () => ({}) });
    new FaceTrainJob('right', { spec: ${JSON.stringify(spec)} });
    new FaceTrainJob('wrong', { spec: { ...${JSON.stringify(spec)}, epochs: output(-1) } });`;
  const updated = promisify(execFile)(process.execPath, ['--input-type=module', '--eval', program], {
    cwd: join(import.meta.dirname, '..'),
  });
  const error = await updated.then(
    () => assert.fail('accepted'),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );
  assert.equal(error.code, 1);
  assert.match(error.stderr, /FaceTrainJob wrong: spec\.epochs: -1; must be at least 1/);
  assert(error.stdout.split('\n').filter((line) => line === `registered ${TRAIN}`).length <= 1, error.stdout);
});

test('phase and artifact are those of the status', async () => {
  const artifact = { uri: 's3://models/faces/sha256-12', sha256: '12' };
  const jobs: FaceTrainJob[] = [];
  const register = () => jobs.push(new FaceTrainJob('faces', jobArgs()));
  await run(register, { state: { status: { phase: 'Succeeded', artifact } } });
  await run(register);
  const values = jobs.flatMap(({ phase, artifact }) => [resolved<unknown>(phase), resolved<unknown>(artifact)]);
  assert.deepEqual(await Promise.all(values), ['Succeeded', artifact, undefined, undefined]);
});

test('with waitFor End a failed job is an error, with Ready it is not', async () => {
  const conditions = [{ type: 'Failed', status: 'True', reason: 'RestartsExceeded', message: 'failed 4 times in 6 h' }];
  const failed = { phase: 'Failed', conditions };
  const hasErrors = async (waitFor: 'Ready' | 'End', status: object, preview = false) => {
    let job: FaceTrainJob;
    const program = () =>
      (job = new FaceTrainJob('faces', jobArgs({}, { waitFor }), { customTimeouts: { create: '72h' } }));
    const [registered] = await run(program, { preview, state: { status } });
    await resolved(job!.phase);
    await new Promise(setImmediate);
    return [registered!.inputs.metadata.annotations!['pulumi.com/waitFor'], log.hasErrors()];
  };
  const end = 'jsonpath={.status.completionTime}';
  assert.deepEqual(await hasErrors('Ready', failed), ['condition=Ready', false]);
  assert.deepEqual(await hasErrors('End', { phase: 'Succeeded', conditions: [] }), [end, false]);
  // A preview of the fix must not fail.
  assert.deepEqual(await hasErrors('End', failed, true), [end, false]);
  assert.deepEqual(await hasErrors('End', failed), [end, true]);
});
