/**
 * Jobs in a real Kubernetes, used as a person would: `helm install`, `kubectl apply`, and the INT7 model is in the
 * object store. Then what happens to jobs in a cluster: killed processes, deleted pods, a lost node, too little memory,
 * wrong credentials. The tests depend on their order: the QuantizeJob reads the model that the first test has trained.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
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
const EXAMPLE = join(root, 'examples', 'lfw-small');
/** Steps between checkpoints of `trainLongWithoutEvaluation`. */
const CHECKPOINT_STEPS = 5;
const PREFER_WORKERS = {
  preferredDuringSchedulingIgnoredDuringExecution: [
    { weight: 100, preference: { matchExpressions: [{ key: 'facetrain.dev/worker', operator: 'Exists' }] } },
  ],
};

interface Job {
  metadata: { name: string };
  spec: Record<string, any>;
  status?: Record<string, any>;
}

let cluster: Cluster;
/** The example's job as its kustomization makes it. */
let example: Job;

before(async () => {
  let lastStep = '';
  await buildImages((step) => (lastStep = step)).catch((error) =>
    assert.fail(`${lastStep}\n${(error as Error).message}`),
  );
  cluster = await Cluster.start();
  await installAll(cluster, () => {});
  example = parse(await cluster.kubectl('kustomize', EXAMPLE)) as Job;
});

after(async () => {
  await cluster?.stop();
});

test('kubectl apply -k examples/lfw-small trains, quantizes and publishes a model', async () => {
  await createNamespace(cluster, 'demo');
  await kubectl('demo', 'apply', '-k', EXAMPLE);
  const { status } = await reachesPhase('demo', 'lfw-small', 'Succeeded', 20 * MINUTE);
  assert.equal(status!.progress.percent, 100);
  assert.equal(status!.restarts?.count ?? 0, 0);
  assert.equal(status!.artifact.uri, 's3://models/lfw-small');
  await assertPublished('models', 'lfw-small');
  await assertEachFileFetchedOnce('demo');
  await assertNoCredentialsShown('demo');
});

test('a gang survives a killed trainer, a deleted pod, an upgrade and a suspension, and leaves nothing', async () => {
  await createNamespace(cluster, 'faults');
  await apply('faults', 'killed', trainLongWithoutEvaluation);
  const running = await reachesStep('faults', 'killed', { attempt: 0, step: 12 });

  // A killed process: the next attempt starts from the newest checkpoint, which counts as a restart.
  await cluster.execute('control-plane', ['sh', '-c', "pkill -KILL -o -f '^node .*trainer-image/src/main.ts train'"]);
  const newestCheckpoint = stepOf(running) - (stepOf(running) % CHECKPOINT_STEPS);
  const restarted = await reachesStep('faults', 'killed', { attempt: 1, step: newestCheckpoint });
  assert.equal(restarted.status!.restarts.count, 1);
  assert.match(condition(restarted, 'Restarting')!.reason, /./);
  const resumedFrom = await stepResumedFrom('faults', 'killed-1-0');
  assert(resumedFrom >= CHECKPOINT_STEPS && resumedFrom <= stepOf(restarted), `resumed from step ${resumedFrom}`);

  // A pod deleted by force: one more attempt.
  await kubectl('faults', 'delete', 'pod', 'killed-1-1', '--force', '--grace-period=0');
  await reachesStep('faults', 'killed', { attempt: 2, step: resumedFrom + 1 });

  // helm upgrade replaces the operator; the same pods continue to train.
  const uid = () => kubectl('faults', 'get', 'pod', 'killed-2-0', '-o', 'jsonpath={.metadata.uid}');
  const uidBefore = await uid();
  await installChart(cluster, 'logLevel=debug');
  await reachesStep('faults', 'killed', { attempt: 2, step: stepOf(await getJob('faults', 'killed')) + 2 });
  assert.equal(await uid(), uidBefore);

  // Suspended, the job has no pods; resumed, it continues from the checkpoint that the trainers wrote at SIGTERM.
  await setSuspend('faults', 'killed', true);
  await reachesPhase('faults', 'killed', 'Suspended', MINUTE);
  const { status: stopped } = await eventually(async () => {
    const job = await getJob('faults', 'killed');
    assert.equal(condition(job, 'Ready')!.reason, 'Suspended');
    return job;
  }, MINUTE);
  await eventually(async () => assert.equal((await kubectl('faults', 'get', 'pods', '-o', 'name')).trim(), ''));
  assert(stopped!.checkpoint.step >= stopped!.progress.step, 'the stopped trainers have written no checkpoint');
  await setSuspend('faults', 'killed', false);
  await reachesStep('faults', 'killed', { attempt: stopped!.attempt, step: stopped!.checkpoint.step + 1 });

  // Deleted while it trains, the job leaves no object behind.
  const kinds = (await childrenOf('faults', 'killed')).map((name) => name.split('/')[0]!.split('.')[0]);
  assert.deepEqual([...new Set(kinds)].sort(), ['configmap', 'networkpolicy', 'pod', 'podgroup', 'service']);
  await kubectl('faults', 'delete', 'facetrainjob', 'killed');
  await eventually(async () => assert.deepEqual(await childrenOf('faults', 'killed'), []), MINUTE);
});

test('a gang that does not fit gets no node for any pod, and its condition says why', async () => {
  await createNamespace(cluster, 'crowded');
  await apply('crowded', 'large', (spec) => {
    spec.trainers = { replicas: 4, resources: { requests: { memory: '8Gi' } } };
  });
  await eventually(async () => {
    const ready = condition(await getJob('crowded', 'large'), 'Ready');
    assert.match(ready?.message ?? '', /[Ii]nsufficient memory|PodGroup|unschedulable/);
  }, MINUTE);
  assert.equal((await nodesOfPods('crowded')).trim(), '');
  await kubectl('crowded', 'delete', 'facetrainjob', 'large');
});

test('a cache folder that the trainers cannot write fails the job at once, with the user it needs', async () => {
  const applyWithCache = (name: string, folder: string) =>
    apply('faults', name, (spec) => {
      spec.dataset.s3.cache = `hostpath:///srv/facetrain/${folder}`;
      spec.evaluation = { sets: [] };
      delete spec.quantize;
    });
  await applyWithCache('unprepared', 'unprepared');
  const failed = condition(await reachesPhase('faults', 'unprepared', 'Failed', MINUTE), 'Failed')!;
  assert.equal(failed.reason, 'StorageFailed');
  assert.match(failed.message, /a cache that user 65532, group 65532 may write/);

  await cluster.execute('control-plane', ['install', '-d', '-o', '65532', '-g', '65532', '/srv/facetrain/prepared']);
  await applyWithCache('prepared', 'prepared');
  await reachesStep('faults', 'prepared', { attempt: 0, step: 1 });
  await kubectl('faults', 'delete', 'facetrainjob', 'prepared', 'unprepared');
});

test('wrong credentials fail a QuantizeJob with the server’s answer; the right ones let another succeed', async () => {
  const applySecret = (key: string) =>
    applyObject('demo', {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'other' },
      stringData: { AWS_ACCESS_KEY_ID: 'facetrain', AWS_SECRET_ACCESS_KEY: key },
    });
  const output = structuredClone(example.spec.quantize.output);
  output.s3.secretRef.name = 'other';
  output.uri = 's3://models/alone';
  const applyQuantizeJob = (name: string) =>
    applyObject('demo', {
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

  await applySecret('wrong');
  await applyQuantizeJob('wrong');
  const failed = await reachesPhase('demo', 'wrong', 'Failed', 2 * MINUTE, 'quantizejob');
  assert.match(
    condition(failed, 'Failed')!.message,
    /s3:\/\/models\/alone.*(SignatureDoesNotMatch|denied|403|signature)/is,
  );

  await applySecret('facetrain-secret');
  await applyQuantizeJob('right');
  const { status } = await reachesPhase('demo', 'right', 'Succeeded', 4 * MINUTE, 'quantizejob');
  assert.equal(status!.artifact.uri, 's3://models/alone');
});

test('a gang that loses a node starts again on another', async () => {
  const worker = await cluster.addNode();
  await cluster.load([await installedTrainerImage()], [worker]);
  await apply('faults', 'moved', (spec) => {
    trainLongWithoutEvaluation(spec);
    spec.trainers.podTemplate = { spec: { affinity: { nodeAffinity: PREFER_WORKERS } } };
  });
  const running = await reachesStep('faults', 'moved', { attempt: 0, step: 12 });
  assert.match(await nodesOfPods('faults'), new RegExp(worker));
  await cluster.killNode(worker);
  await reachesStep('faults', 'moved', { attempt: 1, step: stepOf(running) });
  await kubectl('faults', 'delete', 'facetrainjob', 'moved');
});

test('helm uninstall keeps the jobs', async () => {
  await cluster.run('helm', ['uninstall', 'facetrain', '--namespace', 'facetrain-system', '--wait']);
  assert.equal((await getJob('demo', 'lfw-small')).status!.phase, 'Succeeded');
});

function trainLongWithoutEvaluation(spec: Job['spec']): void {
  spec.epochs = 100;
  spec.checkpoint = { everySteps: CHECKPOINT_STEPS };
  spec.evaluation = { sets: [] };
  delete spec.quantize;
}

/** @returns standard output @throws CommandError */
function kubectl(namespace: string, ...args: string[]): Promise<string> {
  return cluster.kubectl('-n', namespace, ...args);
}

function applyObject(namespace: string, object: object): Promise<string> {
  return cluster.run('kubectl', ['-n', namespace, 'apply', '-f', '-'], { input: stringify(object) });
}

/** Applies the example under another name, with separate folders, and with the changes that `change` makes. */
async function apply(namespace: string, name: string, change: (spec: Job['spec']) => void): Promise<void> {
  const job = structuredClone(example);
  job.metadata.name = name;
  job.spec.output.uri = `pvc://facetrain/${name}`;
  if (job.spec.quantize) job.spec.quantize.output.uri = `s3://models/${name}`;
  change(job.spec);
  await applyObject(namespace, job);
}

function setSuspend(namespace: string, job: string, suspend: boolean): Promise<string> {
  const patch = JSON.stringify({ spec: { suspend } });
  return kubectl(namespace, 'patch', 'facetrainjob', job, '--type=merge', '-p', patch);
}

async function getJob(namespace: string, name: string, kind = 'facetrainjob'): Promise<Job> {
  return JSON.parse(await kubectl(namespace, 'get', kind, name, '-o', 'json')) as Job;
}

function stepOf(job: Job): number {
  return job.status?.progress?.step ?? 0;
}

interface Condition {
  type: string;
  status: string;
  reason: string;
  message: string;
}
function condition(job: Job, type: string): Condition | undefined {
  return (job.status?.conditions as Condition[] | undefined)?.find((each) => each.type === type);
}

/** Waits until the job is in a phase. @throws after `milliseconds`, with what kubectl describes of job and pods */
async function reachesPhase(
  namespace: string,
  name: string,
  phase: string,
  milliseconds: number,
  kind = 'facetrainjob',
): Promise<Job> {
  try {
    return await eventually(async () => {
      const job = await getJob(namespace, name, kind);
      assert.equal(job.status?.phase, phase);
      return job;
    }, milliseconds);
  } catch (error) {
    const described = await kubectl(namespace, 'describe', kind, name).catch(String);
    const pods = await kubectl(namespace, 'get', 'pods', '-o', 'wide').catch(String);
    throw new Error(`${name} is not ${phase}:\n${described}\n${pods}`, { cause: error });
  }
}

/**
 * Waits until the current attempt has trained up to a step. The status keeps the progress of an earlier attempt until
 * the current one reports its own, so the heartbeat must be younger than the attempt.
 */
function reachesStep(namespace: string, name: string, { attempt, step }: { attempt: number; step: number }) {
  return eventually(async () => {
    const job = await getJob(namespace, name);
    const { status = {} } = job;
    assert.equal(status.attempt, attempt);
    assert(
      status.progress?.lastHeartbeatTime >= status.attemptStartTime && stepOf(job) >= step,
      `step ${stepOf(job)}, phase ${status.phase}: ${condition(job, 'Ready')?.message}`,
    );
    return job;
  }, 2 * MINUTE);
}

/** The step of the checkpoint that a trainer has read, from its log. @throws when it has read none */
async function stepResumedFrom(namespace: string, pod: string): Promise<number> {
  const log = await kubectl(namespace, 'logs', pod);
  const step = Number(/step-(\d{10})/.exec(log)?.[1]);
  assert(!Number.isNaN(step), `${pod} has read no checkpoint:\n${log}`);
  return step;
}

/** The objects that the operator has made for a job, as kubectl names them: pod/killed-0-0. */
async function childrenOf(namespace: string, job: string): Promise<string[]> {
  const kinds = 'pods,services,configmaps,networkpolicies,podgroups';
  const names = await kubectl(namespace, 'get', kinds, '-l', `facetrain.dev/job-name=${job}`, '-o', 'name');
  return names.trim().split('\n').filter(Boolean);
}

function nodesOfPods(namespace: string): Promise<string> {
  return kubectl(namespace, 'get', 'pods', '-o', 'jsonpath={.items[*].spec.nodeName}');
}

async function installedTrainerImage(): Promise<string> {
  const label = '{.metadata.labels.app\\.kubernetes\\.io/version}';
  const version = await kubectl('facetrain-system', 'get', 'deployment', 'facetrain', '-o', `jsonpath=${label}`);
  return `facetrain/trainer:${version.trim()}`;
}

/** The artifact is complete: every file that its manifest names is there with that size and digest, and no other. */
async function assertPublished(bucket: string, folder: string): Promise<void> {
  const client = s3(cluster);
  try {
    const read = async (name: string): Promise<Buffer> => {
      const { Body } = await client.send(new GetObjectCommand({ Bucket: bucket, Key: `${folder}/${name}` }));
      return Buffer.from(await Body!.transformToByteArray());
    };
    const manifest = ArtifactManifest.parse(JSON.parse((await read('manifest.json')).toString()));
    const { Contents } = await client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: `${folder}/` }));
    assert.deepEqual(
      Contents!.map(({ Key }) => Key!.slice(`${folder}/`.length)).sort(),
      [...Object.keys(manifest.files), 'manifest.json'].sort(),
    );
    for (const [name, { sha256, bytes }] of Object.entries(manifest.files)) {
      const content = await read(name);
      assert.equal(content.length, bytes, name);
      assert.equal(createHash('sha256').update(content).digest('hex'), sha256, name);
    }
    await assertRunsInOnnxRuntime(await read('model.int7.onnx'));
  } finally {
    client.destroy();
  }
}

async function assertRunsInOnnxRuntime(model: Buffer): Promise<void> {
  const session = await InferenceSession.create(model);
  const pictures = new Tensor('float32', new Float32Array(2 * 3 * 112 * 112).fill(0.25), [2, 3, 112, 112]);
  const { embedding } = await session.run({ data: pictures });
  assert.equal(embedding!.dims[0], 2);
  assert((embedding!.data as Float32Array).every(Number.isFinite));
  await session.release();
}

/** All trainers of the example together have downloaded as many files as data/ has: they share the cache. */
async function assertEachFileFetchedOnce(namespace: string): Promise<void> {
  const pods = (await kubectl(namespace, 'get', 'pods', '-o', 'jsonpath={.items[*].metadata.name}')).split(' ');
  const logs = await Promise.all(
    pods.flatMap((pod) =>
      ['fetch-dataset', 'fetch-evaluation-0'].map((container) => kubectl(namespace, 'logs', pod, '-c', container)),
    ),
  );
  const downloads = logs.reduce((sum, log) => sum + Number(/"downloaded":(\d+)/.exec(log)![1]), 0);
  assert.equal(downloads, (await readdir(join(EXAMPLE, 'data'))).length, logs.join('\n'));
}

/** The secret key is in no object but the Secret, in no event, and not in the operator's log. */
async function assertNoCredentialsShown(namespace: string): Promise<void> {
  const objects = await kubectl(namespace, 'get', 'facetrainjobs,quantizejobs,events,pods,configmaps', '-o', 'yaml');
  const log = await kubectl('facetrain-system', 'logs', '-l', 'app.kubernetes.io/name=facetrain', '--tail=-1');
  assert(!`${objects}${log}`.includes('facetrain-secret'));
}
