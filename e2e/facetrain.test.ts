/**
 * The main job on a real Kubernetes, as a person runs it: helm install, kubectl apply, and the INT7 model stands in the object store. And what clusters do to
 * jobs meanwhile.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { GetObjectCommand, ListObjectsV2Command } from '@aws-sdk/client-s3';
import { ArtifactManifest } from '@facetrain/api';
import { eventually } from '@facetrain/operator/testing/eventually';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { parse, stringify } from 'yaml';
import { root } from '../hack/lib/paths.mjs';
import { Cluster } from './cluster/cluster.ts';
import { buildImages } from './cluster/images.ts';
import { createNamespace, installAll, installChart, s3 } from './cluster/install-facetrain.ts';

const MINUTE = 60_000;
let cluster: Cluster;
let example: Job;

interface Job {
  metadata: { name: string };
  spec: Record<string, any>;
  status?: Record<string, any>;
}

before(async () => {
  let line = '';
  await buildImages((text) => (line = text)).catch((error) => assert.fail(`${line}\n${(error as Error).message}`));
  cluster = await Cluster.start();
  await installAll(cluster, () => {});
  example = parse(await cluster.kubectl('kustomize', join(root, 'examples', 'lfw-small'))) as Job;
});

after(async () => {
  await cluster?.stop();
});

const get = async (namespace: string, name: string, kind = 'facetrainjob'): Promise<Job> =>
  JSON.parse(await cluster.kubectl('-n', namespace, 'get', kind, name, '-o', 'json')) as Job;
const condition = (job: Job, type: string) =>
  (job.status?.conditions as { type: string; status: string; reason: string; message: string }[] | undefined)?.find(
    (each) => each.type === type,
  );

/** Applies the example, shortened and changed, and gives its name. */
async function apply(namespace: string, name: string, change: (spec: Record<string, any>) => void): Promise<void> {
  const job = structuredClone(example);
  job.metadata.name = name;
  job.spec.output.uri = `pvc://facetrain/${name}`;
  if (job.spec.quantize) job.spec.quantize.output.uri = `s3://models/${name}`;
  change(job.spec);
  await cluster.run('kubectl', ['-n', namespace, 'apply', '-f', '-'], { input: stringify(job) });
}

/** @throws what the job says, when it ends otherwise or takes longer */
async function reaches(
  namespace: string,
  name: string,
  phase: string,
  milliseconds: number,
  kind = 'facetrainjob',
): Promise<Job> {
  try {
    return await eventually(async () => {
      const job = await get(namespace, name, kind);
      assert.equal(job.status?.phase, phase);
      return job;
    }, milliseconds);
  } catch (error) {
    const described = await cluster.kubectl('-n', namespace, 'describe', kind, name).catch(String);
    const pods = await cluster.kubectl('-n', namespace, 'get', 'pods', '-o', 'wide').catch(String);
    throw new Error(`${name} is not ${phase}:\n${described}\n${pods}`, { cause: error });
  }
}

const stepOf = (job: Job): number => job.status?.progress?.step ?? 0;
/** The attempt under way has got as far as that: what an earlier one has told stays in the status until this one tells more. */
const runs = (namespace: string, name: string, { attempt, step }: { attempt: number; step: number }): Promise<Job> =>
  eventually(async () => {
    const job = await get(namespace, name);
    const { status = {} } = job;
    assert.equal(status.attempt, attempt);
    assert(
      status.progress?.lastHeartbeatTime >= status.attemptStartTime && stepOf(job) >= step,
      `step ${stepOf(job)}, phase ${status.phase}: ${condition(job, 'Ready')?.message}`,
    );
    return job;
  }, 2 * MINUTE);

test('kubectl apply -k examples/lfw-small: a model is trained, quantized, and published', async () => {
  await createNamespace(cluster, 'demo');
  await cluster.kubectl('-n', 'demo', 'apply', '-k', join(root, 'examples', 'lfw-small'));
  const job = await reaches('demo', 'lfw-small', 'Succeeded', 20 * MINUTE);
  assert.equal(job.status!.progress.percent, 100);
  assert.equal(job.status!.restarts?.count ?? 0, 0);
  const { artifact } = job.status!;
  assert.equal(artifact.uri, 's3://models/lfw-small');
  const client = s3(cluster);
  try {
    const read = async (name: string) =>
      Buffer.from(
        await (
          await client.send(new GetObjectCommand({ Bucket: 'models', Key: `lfw-small/${name}` }))
        ).Body!.transformToByteArray(),
      );
    const manifest = ArtifactManifest.parse(JSON.parse((await read('manifest.json')).toString()));
    const { Contents } = await client.send(new ListObjectsV2Command({ Bucket: 'models', Prefix: 'lfw-small/' }));
    assert.deepEqual(
      Contents!.map(({ Key }) => Key!.slice('lfw-small/'.length)).sort(),
      [...Object.keys(manifest.files), 'manifest.json'].sort(),
    );
    for (const [name, { sha256, bytes: size }] of Object.entries(manifest.files)) {
      const content = await read(name);
      assert.equal(content.length, size, name);
      assert.equal(createHash('sha256').update(content).digest('hex'), sha256, name);
    }
    // ONNX Runtime has the last word on what was published.
    const session = await InferenceSession.create(await read('model.int7.onnx'));
    const { embedding } = await session.run({
      data: new Tensor('float32', new Float32Array(2 * 3 * 112 * 112).fill(0.25), [2, 3, 112, 112]),
    });
    assert.equal(embedding!.dims[0], 2);
    assert((embedding!.data as Float32Array).every(Number.isFinite));
    await session.release();
  } finally {
    client.destroy();
  }
  // Between them, the trainers have fetched each file once.
  const pods = (await cluster.kubectl('-n', 'demo', 'get', 'pods', '-o', 'jsonpath={.items[*].metadata.name}')).split(
    ' ',
  );
  const logs = await Promise.all(
    pods.flatMap((pod) =>
      ['fetch-dataset', 'fetch-evaluation-0'].map((container) =>
        cluster.kubectl('-n', 'demo', 'logs', pod, '-c', container),
      ),
    ),
  );
  const downloads = logs.reduce((sum, log) => sum + Number(/"downloaded":(\d+)/.exec(log)![1]), 0);
  assert.equal(downloads, (await readdir(join(root, 'examples', 'lfw-small', 'data'))).length, logs.join('\n'));
  // Nobody reads credentials where they are not kept.
  const said = `${await cluster.kubectl('-n', 'demo', 'get', 'facetrainjobs,quantizejobs,events,pods,configmaps', '-o', 'yaml')}${await cluster.kubectl('-n', 'facetrain-system', 'logs', '-l', 'app.kubernetes.io/name=facetrain', '--tail=-1')}`;
  assert(!said.includes('facetrain-secret'));
});

test('a trainer that is killed, and a pod that is deleted by force: the gang goes on from its checkpoint', async () => {
  await createNamespace(cluster, 'faults');
  await apply('faults', 'killed', (spec) => {
    spec.epochs = 100;
    spec.checkpoint = { everySteps: 5 };
    spec.evaluation = { sets: [] };
    delete spec.quantize;
  });
  const before = await runs('faults', 'killed', { attempt: 0, step: 12 });
  await cluster.execute('control-plane', ['sh', '-c', "pkill -KILL -o -f '^node .*trainer-image/src/main.ts train'"]);
  const { status: restarted } = await runs('faults', 'killed', {
    attempt: 1,
    step: stepOf(before) - (stepOf(before) % 5),
  });
  assert.equal(restarted!.restarts.count, 1);
  assert.match(condition({ ...before, status: restarted! }, 'Restarting')!.reason, /./);
  const log = await cluster.kubectl('-n', 'faults', 'logs', 'killed-1-0');
  const from = Number(/step-(\d{10})/.exec(log)?.[1]);
  assert(
    from >= 5 && from <= stepOf({ ...before, status: restarted! }),
    `it began anew instead of from its checkpoint:\n${log}`,
  );

  await cluster.kubectl('-n', 'faults', 'delete', 'pod', 'killed-1-1', '--force', '--grace-period=0');
  await runs('faults', 'killed', { attempt: 2, step: from + 1 });

  // helm upgrade changes the operator under it, and it does not notice.
  const uid = () => cluster.kubectl('-n', 'faults', 'get', 'pod', 'killed-2-0', '-o', 'jsonpath={.metadata.uid}');
  const uidBefore = await uid();
  await installChart(cluster, 'logLevel=debug');
  await runs('faults', 'killed', { attempt: 2, step: stepOf(await get('faults', 'killed')) + 2 });
  assert.equal(await uid(), uidBefore);

  // Suspended it holds nothing, and resumed it goes on from where it was stopped.
  const suspend = (value: boolean) =>
    cluster.kubectl(
      '-n',
      'faults',
      'patch',
      'facetrainjob',
      'killed',
      '--type=merge',
      '-p',
      JSON.stringify({ spec: { suspend: value } }),
    );
  await suspend(true);
  await reaches('faults', 'killed', 'Suspended', MINUTE);
  const { status: stopped } = await eventually(async () => {
    const job = await get('faults', 'killed');
    assert.equal(condition(job, 'Ready')!.reason, 'Suspended');
    return job;
  }, MINUTE);
  await eventually(async () =>
    assert.equal((await cluster.kubectl('-n', 'faults', 'get', 'pods', '-o', 'name')).trim(), ''),
  );
  assert(stopped!.checkpoint.step >= stopped!.progress.step, 'a trainer that is told to stop writes a checkpoint');
  await suspend(false);
  await runs('faults', 'killed', { attempt: stopped!.attempt, step: stopped!.checkpoint.step + 1 });

  // Deleted in the midst of it, it leaves nothing.
  const children = async () =>
    (
      await cluster.kubectl(
        '-n',
        'faults',
        'get',
        'pods,services,configmaps,networkpolicies,podgroups',
        '-l',
        'facetrain.dev/job-name=killed',
        '-o',
        'name',
      )
    )
      .trim()
      .split('\n')
      .filter(Boolean);
  const kinds = (await children()).map((name) => name.split('/')[0]!.split('.')[0]);
  assert.deepEqual([...new Set(kinds)].sort(), ['configmap', 'networkpolicy', 'pod', 'podgroup', 'service']);
  await cluster.kubectl('-n', 'faults', 'delete', 'facetrainjob', 'killed');
  await eventually(async () => assert.deepEqual(await children(), []), MINUTE);
});

test('a gang for which there is no room binds nothing, and says why', async () => {
  await createNamespace(cluster, 'crowded');
  await apply('crowded', 'large', (spec) => {
    spec.trainers = { replicas: 4, resources: { requests: { memory: '8Gi' } } };
  });
  await eventually(async () => {
    const ready = condition(await get('crowded', 'large'), 'Ready');
    assert.match(ready?.message ?? '', /[Ii]nsufficient memory|PodGroup|unschedulable/);
  }, MINUTE);
  const nodes = await cluster.kubectl('-n', 'crowded', 'get', 'pods', '-o', 'jsonpath={.items[*].spec.nodeName}');
  assert.equal(nodes.trim(), '');
  await cluster.kubectl('-n', 'crowded', 'delete', 'facetrainjob', 'large');
});

test('a cache that nobody has prepared on the node: the job fails at once, and says who must be able to write; prepared, it serves', async () => {
  const cached = (name: string, folder: string) =>
    apply('faults', name, (spec) => {
      spec.dataset.s3.cache = `hostpath:///srv/facetrain/${folder}`;
      spec.evaluation = { sets: [] };
      delete spec.quantize;
    });
  await cached('unprepared', 'unprepared');
  const failed = condition(await reaches('faults', 'unprepared', 'Failed', MINUTE), 'Failed')!;
  assert.equal(failed.reason, 'StorageFailed');
  assert.match(failed.message, /a cache that user 65532, group 65532 may write/);
  await cluster.execute('control-plane', ['install', '-d', '-o', '65532', '-g', '65532', '/srv/facetrain/prepared']);
  await cached('prepared', 'prepared');
  await runs('faults', 'prepared', { attempt: 0, step: 1 });
  await cluster.kubectl('-n', 'faults', 'delete', 'facetrainjob', 'prepared', 'unprepared');
});

test('wrong credentials: the QuantizeJob fails and says so; with the right ones another succeeds', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-e2e-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const secret = (key: string) =>
    cluster.run('kubectl', ['-n', 'demo', 'apply', '-f', '-'], {
      input: stringify({
        apiVersion: 'v1',
        kind: 'Secret',
        metadata: { name: 'other' },
        stringData: { AWS_ACCESS_KEY_ID: 'facetrain', AWS_SECRET_ACCESS_KEY: key },
      }),
    });
  const output = structuredClone(example.spec.quantize.output);
  output.s3.secretRef.name = 'other';
  output.uri = 's3://models/alone';
  const manifest = (name: string) => ({
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'QuantizeJob',
    metadata: { name },
    spec: {
      model: { uri: 'pvc://facetrain/lfw-small/model/backbone.onnx' },
      calibration: { dataset: example.spec.dataset, images: 8 },
      search: { rounds: 0 },
      output,
      failurePolicy: { maxRestarts: 0 },
    },
  });
  await secret('wrong');
  await writeFile(join(folder, 'wrong.json'), JSON.stringify(manifest('wrong')));
  await cluster.kubectl('-n', 'demo', 'apply', '-f', join(folder, 'wrong.json'));
  const failed = await reaches('demo', 'wrong', 'Failed', 2 * MINUTE, 'quantizejob');
  assert.match(
    condition(failed, 'Failed')!.message,
    /s3:\/\/models\/alone.*(SignatureDoesNotMatch|denied|403|signature)/is,
  );
  await secret('facetrain-secret');
  await writeFile(join(folder, 'right.json'), JSON.stringify(manifest('right')));
  await cluster.kubectl('-n', 'demo', 'apply', '-f', join(folder, 'right.json'));
  const { status } = await reaches('demo', 'right', 'Succeeded', 4 * MINUTE, 'quantizejob');
  assert.equal(status!.artifact.uri, 's3://models/alone');
});

test('a node that loses its power: the gang starts again elsewhere', async () => {
  const worker = await cluster.addNode();
  await cluster.load(
    [
      `facetrain/trainer:${(await cluster.kubectl('-n', 'facetrain-system', 'get', 'deployment', 'facetrain', '-o', 'jsonpath={.metadata.labels.app\\.kubernetes\\.io/version}')).trim()}`,
    ],
    [worker],
  );
  await apply('faults', 'moved', (spec) => {
    spec.epochs = 100;
    spec.checkpoint = { everySteps: 5 };
    spec.evaluation = { sets: [] };
    spec.trainers.podTemplate = {
      spec: {
        affinity: {
          nodeAffinity: {
            preferredDuringSchedulingIgnoredDuringExecution: [
              { weight: 100, preference: { matchExpressions: [{ key: 'facetrain.dev/worker', operator: 'Exists' }] } },
            ],
          },
        },
      },
    };
    delete spec.quantize;
  });
  const before = await runs('faults', 'moved', { attempt: 0, step: 12 });
  assert.match(
    await cluster.kubectl('-n', 'faults', 'get', 'pods', '-o', 'jsonpath={.items[*].spec.nodeName}'),
    new RegExp(worker),
  );
  await cluster.killNode(worker);
  await runs('faults', 'moved', { attempt: 1, step: stepOf(before) });
  await cluster.kubectl('-n', 'faults', 'delete', 'facetrainjob', 'moved');
});

test('helm uninstall keeps the jobs', async () => {
  await cluster.run('helm', ['uninstall', 'facetrain', '--namespace', 'facetrain-system', '--wait']);
  assert.equal((await get('demo', 'lfw-small')).status!.phase, 'Succeeded');
});
