/**
 * Jobs in a real Kubernetes, used as a person would: `helm install`, `kubectl apply`, and the INT7 model is in the
 * object store. Then what happens to jobs in a cluster: killed processes, deleted pods, a lost node, quotas, wrong
 * credentials. Most of the time is spent on waiting, so tests that do not disturb each other run at the same time; the
 * groups run one after the other.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, suite, test } from 'node:test';
import { GetObjectCommand, ListObjectsV2Command } from '@aws-sdk/client-s3';
import { ArtifactManifest } from '@facetrain/api';
import { eventually } from '@facetrain/operator/testing/eventually';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { Cluster } from './cluster/cluster.ts';
import { buildImages } from './cluster/images.ts';
import { installAll, installChart, S3_KEYS, s3 } from './cluster/install-facetrain.ts';
import { installKueue } from './cluster/install-kueue.ts';
import { trainersFollowTheirSecret, wrongCredentialsFailAQuantization } from './failures/credentials.ts';
import { lifeOfAJob } from './failures/life-of-a-job.ts';
import { trainersOutliveTheirPods } from './failures/old-trainers.ts';
import { podsGoWhileTheOperatorIsAway } from './failures/operator-away.ts';
import { podsThatFail } from './failures/pods-that-fail.ts';
import { aClassIsTheDefault, podsThatWait } from './failures/pods-that-wait.ts';
import { aKilledTrainerCostsOneStep } from './failures/steps-in-memory.ts';
import { fourChangesGiveTheSameTraining } from './sharing/elastic-gangs.ts';
import { queues } from './sharing/queues.ts';
import {
  applyExample,
  BEGUN,
  CHECKPOINT_STEPS,
  EXAMPLE,
  ON_WORKERS,
  reachesStep,
  stepOf,
  stepResumedFrom,
  trainLongWithoutEvaluation,
  withoutVolume,
} from './testing/example-job.ts';
import { condition, type Job, MINUTE, Namespace } from './testing/namespace.ts';
import { processesOf, signal } from './testing/processes.ts';
import { trainJob } from './testing/small-jobs.ts';

const SECRET_KEY = S3_KEYS.AWS_SECRET_ACCESS_KEY;

let cluster: Cluster;

before(async () => {
  let lastStep = '';
  await buildImages((step) => (lastStep = step)).catch((error) =>
    assert.fail(`${lastStep}\n${(error as Error).message}`),
  );
  cluster = await Cluster.start();
  await Promise.all([installKueue(cluster), installAll(cluster, () => {})]);
});

after(async () => {
  await cluster?.stop();
});

/** Tests that run at the same time, each in a namespace of its own. */
function together(name: string, tests: Record<string, (ns: Namespace) => Promise<void>>, prefix: string): void {
  suite(name, { concurrency: true }, () => {
    for (const [index, [title, run]] of Object.entries(tests).entries())
      test(title, async () => run(await Namespace.create(cluster, `${prefix}-${index}`)));
  });
}

together(
  'small jobs',
  {
    async 'a gang that does not fit gets no node for any pod, and its condition says why'(ns) {
      await applyExample(ns, 'large', (spec) => {
        spec.trainers = { replicas: 4, resources: { requests: { memory: '8Gi' } } };
      });
      await ns.waitFor('large', (job) => {
        assert.match(condition(job, 'Ready')?.message ?? '', /[Ii]nsufficient memory|PodGroup|unschedulable/);
      });
      assert.deepEqual(await nodesOfPods(ns), []);
      await ns.kubectl('delete', 'facetrainjob', 'large');
    },

    async 'a cache folder that the trainers cannot write fails the job at once, with the user it needs'(ns) {
      const applyWithCache = (name: string, folder: string) =>
        applyExample(ns, name, (spec) => {
          spec.dataset.s3.cache = `hostpath:///srv/facetrain/${folder}`;
          trainLongWithoutEvaluation(spec);
        });
      await applyWithCache('unprepared', 'unprepared');
      const failed = condition(await ns.reachesPhase('unprepared', 'Failed'), 'Failed')!;
      assert.equal(failed.reason, 'StorageFailed');
      assert.match(failed.message, /a cache that user 65532, group 65532 may write/);

      const prepare = ['install', '-d', '-o', '65532', '-g', '65532', '/srv/facetrain/prepared'];
      await cluster.execute('control-plane', prepare);
      await applyWithCache('prepared', 'prepared');
      await reachesStep(ns, 'prepared', { attempt: 0, step: 1 });
      await ns.kubectl('delete', 'facetrainjob', 'prepared', 'unprepared');
    },

    'a killed trainer of two costs one step with checkpoint.inMemory': aKilledTrainerCostsOneStep,

    ...podsThatFail,
    ...podsThatWait,
    ...lifeOfAJob,
    ...queues,
  },
  'small',
);

together(
  'a whole job, and trainers that are interrupted beside it',
  {
    async 'kubectl apply -k examples/lfw-small trains, quantizes and publishes a model'(ns) {
      await ns.kubectl('apply', '-k', EXAMPLE);
      const { status } = await ns.reachesPhase('lfw-small', 'Succeeded', { milliseconds: 60 * MINUTE });
      assert.equal(status!.progress.percent, 100);
      assert.equal(status!.restarts?.count ?? 0, 0);
      assert.equal(status!.artifact.uri, 's3://models/lfw-small');
      await assertPublished('models', 'lfw-small');
      await assertEachFileFetchedOnce(ns);
      await assertNoCredentialsShown(ns);
    },

    async 'a gang survives a killed trainer, a deleted pod, an upgrade, a suspension and a wrong key'(ns) {
      await applyExample(ns, 'killed', (spec) => {
        withoutVolume(spec);
        trainLongWithoutEvaluation(spec);
      });
      const running = await reachesStep(ns, 'killed', { attempt: 0, step: BEGUN });

      // A killed process: the kubelet starts all trainers again in their pods, from the newest checkpoint.
      const uids = () => ns.kubectl('get', 'pod', '-o', 'jsonpath={.items[*].metadata.uid}');
      const uidsBefore = await uids();
      const kill = async (pod: string) =>
        signal(cluster, 'control-plane', 'KILL', await processesOf(cluster, 'control-plane', pod));
      await kill('killed-0-0');
      const newestCheckpoint = stepOf(running) - (stepOf(running) % CHECKPOINT_STEPS);
      const inPlace = await reachesStep(ns, 'killed', { attempt: 0, inPlace: 1, step: newestCheckpoint + 1 });
      assert.equal(await uids(), uidsBefore);
      const { count, disruptions, lastReason, lastRank } = inPlace.status!.restarts;
      assert.deepEqual([count, disruptions, lastReason, lastRank], [1, 0, 'ProcessKilled', 0]);
      assert.match(condition(inPlace, 'Restarting')!.reason, /./);
      const resumedFrom = await stepResumedFrom(ns, 'killed-0-0');
      assert(resumedFrom >= CHECKPOINT_STEPS && resumedFrom <= stepOf(inPlace), `resumed from step ${resumedFrom}`);
      const events = (await ns.events('FaceTrainJob', 'killed')).filter(({ reason }) => reason === 'Restarting');
      assert.match(events[0]!.message, /the trainers start again in their pods/);

      // One more, soon after: the restart has to wait, so new pods follow.
      await kill('killed-0-1');
      const replaced = await reachesStep(ns, 'killed', { attempt: 1, step: resumedFrom + 1 });
      assert.partialDeepStrictEqual(replaced.status!.restarts, { count: 2, inPlace: 1, disruptions: 0 });

      // A pod deleted by force: one more attempt.
      await ns.kubectl('delete', 'pod', 'killed-1-1', '--force', '--grace-period=0');
      await reachesStep(ns, 'killed', { attempt: 2, step: resumedFrom + 1 });

      // helm upgrade replaces the operator; the same pods continue to train.
      const uid = () => ns.kubectl('get', 'pod', 'killed-2-0', '-o', 'jsonpath={.metadata.uid}');
      const uidBefore = await uid();
      await assertNoCredentialsLogged();
      await installChart(cluster, 'logLevel=debug');
      await reachesStep(ns, 'killed', { attempt: 2, step: stepOf(await ns.get('facetrainjob', 'killed')) + 2 });
      assert.equal(await uid(), uidBefore);

      // Suspended, the job has no pods; resumed, it continues from the checkpoint that the trainers wrote at SIGTERM.
      await ns.patch('facetrainjob', 'killed', { spec: { suspend: true } });
      const { status: stopped } = await ns.waitFor('killed', (job) => {
        assert.equal(job.status!.phase, 'Suspended');
        assert.equal(condition(job, 'Ready')!.reason, 'Suspended');
      });
      await eventually(async () => assert.deepEqual(await ns.list('pod'), []), 5 * MINUTE);
      assert(stopped!.checkpoint.step >= stopped!.progress.step, 'the stopped trainers have written no checkpoint');
      await ns.patch('facetrainjob', 'killed', { spec: { suspend: false } });
      const { attempt } = stopped!;
      await reachesStep(ns, 'killed', { attempt, step: stopped!.checkpoint.step + 1 });

      await trainersFollowTheirSecret(ns, 'killed', `killed-${attempt}-0`);

      // Deleted while it trains, the job leaves no object behind.
      const kinds = (await childrenOf(ns, 'killed')).map((name) => name.split('/')[0]!.split('.')[0]);
      assert.deepEqual([...new Set(kinds)].sort(), ['configmap', 'networkpolicy', 'pod', 'podgroup', 'service']);
      await ns.kubectl('delete', 'facetrainjob', 'killed');
      await eventually(async () => assert.deepEqual(await childrenOf(ns, 'killed'), []), 5 * MINUTE);
    },

    async 'one of several ranks in a pod is killed, and later the pod is evicted: the job has the words of each'(ns) {
      await applyExample(ns, 'ranks', (spec) => {
        trainLongWithoutEvaluation(spec);
        const resources = { limits: { 'ephemeral-storage': '300Mi' } };
        Object.assign(spec.trainers, { replicas: 2, ranksPerPod: 2, computeThreads: 1, resources });
      });
      await reachesStep(ns, 'ranks', { attempt: 0, step: CHECKPOINT_STEPS + 1 });
      const killed = await processesOf(cluster, 'control-plane', 'ranks-0-1', 'RANK=3');
      assert.equal(killed.length, 1);
      await signal(cluster, 'control-plane', 'KILL', killed);
      const { status } = await reachesStep(ns, 'ranks', { attempt: 0, inPlace: 1, step: CHECKPOINT_STEPS + 1 });
      const { lastReason, lastMessage, lastRank, lastExitCode } = status!.restarts;
      assert.deepEqual([lastReason, lastRank, lastExitCode], ['ProcessKilled', 3, 137]);
      assert.match(lastMessage, /^rank 3 left with exit code 137 .*its process was ended by SIGKILL$/);
      assert.deepEqual(status!.trainers.desired, 2);
      const log = await ns.kubectl('logs', 'ranks-0-1');
      assert.deepEqual([...new Set(log.match(/"rank":\d+/g))].sort(), ['"rank":2', '"rank":3']);

      // The kubelet evicts a pod in which it has started the trainers again.
      await ns.kubectl('exec', 'ranks-0-1', '--', 'dd', 'if=/dev/zero', 'of=/tmp/big', 'bs=1M', 'count=400');
      const { restarts } = (await ns.waitFor('ranks', ({ status }) => assert.equal(status!.attempt, 1))).status!;
      assert.partialDeepStrictEqual(restarts, { count: 2, inPlace: 1, disruptions: 0, lastReason: 'Evicted' });
      assert.match(restarts.lastMessage, /ephemeral local storage usage exceeds the total limit of containers 300Mi/);
      await ns.kubectl('delete', 'facetrainjob', 'ranks');
    },

    async 'without a volume, a training whose number of trainers changes four times is the one that never changed'(ns) {
      const trained = await fourChangesGiveTheSameTraining(ns);
      await assertPublished('models', `${trained}/int7`);
      await wrongCredentialsFailAQuantization(ns, trained);
    },

    async 'a gang that loses a node starts again on another, and its old trainers harm nothing'(ns) {
      const worker = await cluster.addNode();
      await cluster.load([await installedTrainerImage()], [worker]);
      await trainersOutliveTheirPods(ns, worker);

      await applyExample(ns, 'moved', (spec) => {
        withoutVolume(spec);
        trainLongWithoutEvaluation(spec);
        spec.trainers.podTemplate = { spec: ON_WORKERS };
        spec.failurePolicy = { nodeLostSeconds: 5 };
      });
      const running = await reachesStep(ns, 'moved', { attempt: 0, step: BEGUN });
      assert((await nodesOfPods(ns)).includes(worker));
      await cluster.killNode(worker);
      await reachesStep(ns, 'moved', { attempt: 1, step: stepOf(running) });
      await ns.kubectl('delete', 'facetrainjob', 'moved');
    },
  },
  'large',
);

test('a gang is scheduled where a PriorityClass is the default of all pods', async () => {
  await aClassIsTheDefault(await Namespace.create(cluster, 'default-class'));
});

test('pods that go while the operator is away did not fail', async () => {
  await podsGoWhileTheOperatorIsAway(await Namespace.create(cluster, 'away'));
});

test('helm uninstall keeps the jobs', async () => {
  const ns = await Namespace.create(cluster, 'kept');
  await ns.apply(trainJob('done', { shell: 'exit 0' }));
  await ns.reachesPhase('done', 'Succeeded');
  await cluster.run('helm', ['uninstall', 'facetrain', '--namespace', 'facetrain-system', '--wait']);
  assert.equal((await ns.get('facetrainjob', 'done')).status!.phase, 'Succeeded');
});

/** The objects that the operator has made for a job, as kubectl names them: pod/killed-0-0. */
async function childrenOf(ns: Namespace, job: string): Promise<string[]> {
  const kinds = 'pods,services,configmaps,networkpolicies,podgroups';
  const names = await ns.kubectl('get', kinds, '-l', `facetrain.dev/job-name=${job}`, '-o', 'name');
  return names.trim().split('\n').filter(Boolean);
}

/** Names of the nodes that the namespace's pods have. */
async function nodesOfPods(ns: Namespace): Promise<string[]> {
  const pods = await ns.list<{ spec: { nodeName?: string } }>('pod');
  return pods.flatMap(({ spec }) => spec.nodeName ?? []);
}

async function installedTrainerImage(): Promise<string> {
  const label = '{.metadata.labels.app\\.kubernetes\\.io/version}';
  const version = await cluster.kubectl(
    '-n',
    'facetrain-system',
    'get',
    'deployment',
    'facetrain',
    '-o',
    `jsonpath=${label}`,
  );
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
async function assertEachFileFetchedOnce(ns: Namespace): Promise<void> {
  const pods = await ns.list<Job>('pod', 'facetrain.dev/job-kind=FaceTrainJob');
  // One container fetches the dataset and the verification set, which have the same credentials.
  const logs = await Promise.all(pods.map(({ metadata }) => ns.kubectl('logs', metadata.name, '-c', 'fetch-dataset')));
  const counts = logs.flatMap((log) => [...log.matchAll(/"downloaded":(\d+)/g)].map(([, count]) => Number(count)));
  assert.equal(counts.length, 2 * pods.length);
  const downloads = counts.reduce((sum, count) => sum + count, 0);
  assert.equal(downloads, (await readdir(join(EXAMPLE, 'data'))).length, logs.join('\n'));
}

/** The secret key is in no object but the Secret, in no event, and not in the operator's log. */
async function assertNoCredentialsShown(ns: Namespace): Promise<void> {
  const objects = await ns.kubectl('get', 'facetrainjobs,quantizejobs,events,pods,configmaps', '-o', 'yaml');
  assert(!objects.includes(SECRET_KEY));
  await assertNoCredentialsLogged();
}

/** Of the operator's pods that there are: an upgrade takes their log with them. */
async function assertNoCredentialsLogged(): Promise<void> {
  const ofOperator = ['-l', 'app.kubernetes.io/name=facetrain', '--tail=-1'];
  const log = await eventually(() => cluster.kubectl('-n', 'facetrain-system', 'logs', ...ofOperator), MINUTE);
  assert(!log.includes(SECRET_KEY));
}
