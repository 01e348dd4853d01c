/** The status of jobs on a real API server. There is no kubelet: the tests write the status of pods. */
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, test } from 'node:test';
import { FaceTrainJob, type Progress, progressAtStart, QuantizeJob } from '@facetrain/api';
import { changes, type Document, fixtures, trainSpec } from '@facetrain/api/testing/manifest-fixtures';
import { isRefusal } from '../runtime/api-error.ts';
import { events } from '../runtime/event-recorder.ts';
import { collectionPath, defineResource, type KubernetesObject } from '../runtime/resource.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { settle, startOperator, TestNamespace } from '../testing/operator-harness.ts';
import {
  claims,
  configMaps,
  faceTrainJobs,
  networkPolicies,
  podEvents,
  pods,
  quantizeJobs,
  services,
} from './resources.ts';

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

const open = (
  t: Parameters<typeof TestNamespace.open>[0],
  namespace: string,
  choices?: Parameters<typeof TestNamespace.open>[3],
) => TestNamespace.open(t, plane, namespace, choices);

const ARTIFACT = {
  manifestSha256: 'a'.repeat(64),
  bytes: 1234,
  meanCosine: 0.995,
  accuracyDrop: 0.002,
  gate: 'Passed',
} as const;

test('a trained job is quantized, and the artifact is in the status of both jobs', async (t) => {
  const ns = await open(t, 'chain');
  const s3 = { endpoint: 'http://store:9000', secretRef: { name: 'store' } };
  await ns.applyFaceTrainJob('faces', {
    trainers: { replicas: 1 },
    quantize: { output: { uri: 's3://models/faces', s3 } },
  });
  await ns.waitForPods('faces-0-0');
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.setPodStatus('faces-0-0', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('faces', 'Quantizing');
  await ns.waitForPods('faces-0-0', 'faces-quantize-0-quantizer');
  await ns.setPodStatus('faces-quantize-0-quantizer', 'Running');
  await ns.waitForPhase('faces-quantize', 'Running', quantizeJobs);
  await ns.setPodStatus('faces-quantize-0-quantizer', 'Succeeded', { exitCode: 0, message: { artifact: ARTIFACT } });
  await ns.waitForPhase('faces', 'Succeeded');
  const artifact = { uri: 's3://models/faces', ...ARTIFACT };
  assert.deepEqual((await ns.quantizeStatusOf('faces-quantize')).artifact, artifact);
  const status = await ns.statusOf('faces');
  assert.deepEqual([status.artifact, status.quantizeJobName], [artifact, 'faces-quantize']);
  assert.match((await ns.conditionText('faces', 'QuantizationSucceeded'))!, /^Succeeded: /);
});

test('a FaceTrainJob and a QuantizeJob of one name run side by side', async (t) => {
  const ns = await open(t, 'both');
  await ns.applyFaceTrainJob('ours', { trainers: { replicas: 1 } });
  await ns.waitForPods('ours-0-0');
  await ns.applyQuantizeJob('ours', { output: { uri: 'pvc://data/int7' } });
  await ns.waitForPods('ours-0-0', 'ours-0-quantizer');
  assert.deepEqual(await ns.names(configMaps), ['ours-0', 'ours-0-quantizer']);
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('ours', 'Running', quantizeJobs);
  await ns.waitForPhase('ours', 'Running');
  assert.deepEqual([(await ns.statusOf('ours')).attempt, (await ns.quantizeStatusOf('ours')).attempt], [0, 0]);
});

test('a QuantizeJob restarts after a crash; with a termination message that does not parse it succeeds', async (t) => {
  const ns = await open(t, 'alone');
  await ns.applyQuantizeJob('small');
  await ns.waitForPods('small-0-quantizer');
  await ns.setPodStatus('small-0-quantizer', 'Running');
  await ns.setPodStatus('small-0-quantizer', 'Failed', {
    exitCode: 1,
    message: { code: 'Internal', message: 'folding has changed the model' },
  });
  await ns.waitForPods('small-0-quantizer', 'small-1-quantizer');
  const { restarts } = await ns.quantizeStatusOf('small');
  assert.deepEqual(
    [restarts?.count, restarts?.lastReason, restarts?.lastMessage],
    [1, 'Internal', 'rank 0 left with exit code 1: folding has changed the model'],
  );
  await ns.setPodStatus('small-1-quantizer', 'Succeeded', { exitCode: 0, message: '{"artifact": {"bytes": "many"}}' });
  await ns.waitForPhase('small', 'Succeeded', quantizeJobs);
  assert.deepEqual((await ns.quantizeStatusOf('small')).artifact, { uri: 'pvc://data/int7' });
});

test('a quantizer that is denied access fails both jobs with its message, which holds no credential', async (t) => {
  const ns = await open(t, 'denied');
  const s3 = { secretRef: { name: 'store' } };
  const secret = { AWS_ACCESS_KEY_ID: 'an-id-that-is-wrong', AWS_SECRET_ACCESS_KEY: 'a-secret-that-is-wrong' };
  await plane.client.post('/api/v1/namespaces/denied/secrets', {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name: 'store' },
    stringData: secret,
  });
  await ns.applyFaceTrainJob('faces', {
    trainers: { replicas: 1 },
    quantize: { output: { uri: 's3://models/faces', s3 } },
  });
  await ns.waitForPods('faces-0-0');
  await ns.setPodStatus('faces-0-0', 'Succeeded', { exitCode: 0 });
  await ns.waitForPods('faces-0-0', 'faces-quantize-0-quantizer');
  const denied =
    's3://models/faces at AWS: the credentials are wrong (InvalidAccessKeyId); ' +
    'a valid AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is temporary, AWS_SESSION_TOKEN';
  await ns.setPodStatus('faces-quantize-0-quantizer', 'Failed', {
    exitCode: 2,
    message: { code: 'StorageFailed', message: denied },
  });
  await ns.waitForPhase('faces-quantize', 'Failed', quantizeJobs);
  await ns.waitForPhase('faces', 'Failed');
  assert.equal(
    await ns.conditionText('faces-quantize', 'Failed', quantizeJobs),
    `StorageFailed: rank 0 left with exit code 2: ${denied}`,
  );
  const reason = `StorageFailed: rank 0 left with exit code 2: ${denied}`;
  const failed = `QuantizationFailed: QuantizeJob faces-quantize: ${reason}`;
  assert.equal(await ns.conditionText('faces', 'Failed'), failed);
  assert.equal(await ns.conditionText('faces', 'QuantizationSucceeded'), failed);
  assert.equal((await ns.statusOf('faces')).artifact, undefined);
  const failedEvents = await eventually(async () => {
    const { items } = await plane.client.list(events, 'denied', {});
    assert.equal(items!.filter(({ reason }) => reason === 'Failed').length, 2);
    return items!;
  });
  const visible = JSON.stringify([
    failedEvents,
    await ns.statusOf('faces'),
    await ns.quantizeStatusOf('faces-quantize'),
    (await plane.client.list(pods, 'denied', {})).items,
  ]);
  for (const value of Object.values(secret)) assert(!visible.includes(value), value);
});

/** Serves /v1/progress, as rank 0 does. */
async function serveProgress(t: { after(end: () => void): void }, first: Progress) {
  const rank = { progress: first, requests: 0 };
  const server = createServer((request, response) => {
    rank.requests++;
    response.writeHead(request.url === '/v1/progress' ? 200 : 404).end(JSON.stringify(rank.progress));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => void server.close(() => {}).closeAllConnections());
  return { rank, port: (server.address() as AddressInfo).port };
}

test('progress is polled from rank 0 while it runs, and read from its termination message at its end', async (t) => {
  const ns = await open(t, 'progress', { progressSeconds: 0.1 });
  const job = { name: 'faces', uid: 'another', attempt: 0 };
  const { rank, port } = await serveProgress(t, {
    ...progressAtStart(job, 'Training'),
    ...{ step: 40, totalSteps: 100, epoch: 4, imagesPerSecond: 50, loss: 7.5, learningRate: 0.1, etaSeconds: 60 },
    evaluations: [{ set: 'lfw', step: 30, accuracy: 0.9 }],
    checkpoint: { step: 30, time: '2026-01-01T00:00:00.000Z' },
    activity: 44,
  });
  const { metadata } = await ns.applyFaceTrainJob('faces', { trainers: { replicas: 2, progressPort: port } });
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await ns.setPodStatus('faces-0-0', 'Running', { podIP: '127.0.0.1' });
  await ns.setPodStatus('faces-0-1', 'Running', { podIP: '127.0.0.1' });
  await ns.waitForPhase('faces', 'Running');
  // The answer is of another job: the address belongs to another pod by now.
  await eventually(() => assert(rank.requests >= 2));
  assert.equal((await ns.statusOf('faces')).progress, undefined);

  rank.progress = { ...rank.progress, job: { ...job, uid: metadata.uid } };
  await eventually(async () => {
    const { progress, checkpoint, evaluations } = await ns.statusOf('faces');
    assert.partialDeepStrictEqual(progress, {
      step: 40,
      totalSteps: 100,
      percent: 40,
      imagesPerSecond: 50,
      loss: 7.5,
      activity: 44,
    });
    assert.deepEqual(checkpoint, {
      uri: 'pvc://data/out/faces/checkpoints/step-0000000030',
      step: 30,
      time: '2026-01-01T00:00:00.000Z',
    });
    assert.deepEqual(evaluations, rank.progress.evaluations);
  });

  // Only the termination message has this one.
  const last: Progress = {
    ...rank.progress,
    stage: 'Done',
    step: 100,
    epoch: 10,
    loss: 1.5,
    etaSeconds: 0,
    evaluations: [{ set: 'lfw', step: 100, accuracy: 0.99 }],
    checkpoint: { step: 100, time: '2026-01-01T00:01:00.000Z' },
    activity: 110,
  };
  await ns.setPodStatus('faces-0-0', 'Succeeded', { exitCode: 0, message: { progress: last } });
  await ns.setPodStatus('faces-0-1', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('faces', 'Succeeded');
  const status = await ns.statusOf('faces');
  assert.partialDeepStrictEqual(status, {
    progress: { step: 100, percent: 100, loss: 1.5, activity: 110 },
    checkpoint: {
      uri: 'pvc://data/out/faces/checkpoints/step-0000000100',
      step: 100,
      time: '2026-01-01T00:01:00.000Z',
    },
    evaluations: last.evaluations,
  });
  assert.equal(status.progress!.estimatedCompletionTime, undefined);

  const { requests } = rank;
  await ns.delete(pods, 'faces-0-0');
  await settle();
  assert.deepEqual(await ns.statusOf('faces'), status, 'the last progress, after the pod is gone');
  assert.equal(rank.requests, requests, 'polled after the end');
});

const waits: Record<string, { waiting: { reason: string; message: string }; want: string }> = {
  'an image that cannot be pulled': {
    waiting: {
      reason: 'ImagePullBackOff',
      message: 'Back-off pulling image "registry.example/trainer:1": ErrImagePull: not found',
    },
    want:
      'ImagePullBackOff: 0 of 1 pods are ready; faces-0-0 ImagePullBackOff: ' +
      'Back-off pulling image "registry.example/trainer:1": ErrImagePull: not found',
  },
  'an image whose name is invalid': {
    waiting: {
      reason: 'InvalidImageName',
      message: 'Failed to apply default image tag "trainer:": couldn\'t parse image name',
    },
    want:
      'InvalidImageName: 0 of 1 pods are ready; faces-0-0 InvalidImageName: ' +
      'Failed to apply default image tag "trainer:": couldn\'t parse image name',
  },
  'a Secret that is missing': {
    waiting: { reason: 'CreateContainerConfigError', message: 'secret "store" not found' },
    want:
      'CreateContainerConfigError: 0 of 1 pods are ready; faces-0-0 CreateContainerConfigError: ' +
      'secret "store" not found',
  },
};
/** Only once all that comes before the deadline was seen: a machine may be slow. */
const shortenDeadline = (ns: TestNamespace) =>
  ns.patch(faceTrainJobs, 'faces', { spec: { pendingDeadlineSeconds: 3 } });

for (const [index, [name, { waiting, want }]] of Object.entries(waits).entries()) {
  test(`the status has the reason, until pendingDeadlineSeconds ends the job: ${name}`, async (t) => {
    const ns = await open(t, `waits-${index}`);
    await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1 } });
    await ns.waitForPods('faces-0-0');
    await ns.schedule('faces-0-0', 'node-1');
    await ns.setPodStatus('faces-0-0', 'Pending', { waiting });
    await eventually(async () => assert.equal(await ns.conditionText('faces', 'Ready'), want));
    assert.match((await ns.conditionText('faces', 'Admitted'))!, /^Scheduled: /);
    await shortenDeadline(ns);
    await ns.waitForPhase('faces', 'Failed');
    assert.equal(
      await ns.conditionText('faces', 'Failed'),
      'PendingDeadlineExceeded: not all pods started within pendingDeadlineSeconds 3: ' +
        want.slice(want.indexOf(': ') + 2),
    );
  });
}

/** An Event of the kubelet about the pod faces-0-0. */
const createEvent = (
  ns: TestNamespace,
  {
    name,
    uid,
    container = 'facetrain',
    ...words
  }: { name: string; uid: string; container?: string; reason: string; message: string; lastTimestamp: string },
) =>
  ns.create(podEvents, {
    apiVersion: 'v1',
    kind: 'Event',
    metadata: { name },
    type: words.reason === 'Killing' ? 'Normal' : 'Warning',
    ...words,
    source: { component: 'kubelet' },
    involvedObject: {
      apiVersion: 'v1',
      kind: 'Pod',
      namespace: ns.namespace,
      name: 'faces-0-0',
      uid,
      fieldPath: `spec.containers{${container}}`,
    },
  });

test('an image of another release: no progress is read, no hang is found, and its refusal is shown', async (t) => {
  const ns = await open(t, 'releases', { progressSeconds: 0.1 });
  const later = { ...progressAtStart({ name: 'faces', uid: '', attempt: 0 }, 'Training'), schemaVersion: 2 };
  const { rank, port } = await serveProgress(t, later as unknown as Progress);
  await ns.applyFaceTrainJob('faces', {
    trainers: { replicas: 1, progressPort: port },
    progressDeadlineSeconds: 3,
  });
  await ns.waitForPods('faces-0-0');
  await ns.setPodStatus('faces-0-0', 'Running', { podIP: '127.0.0.1' });
  await ns.waitForPhase('faces', 'Running');
  await eventually(async () => {
    const { items } = await plane.client.list(events, 'releases', {});
    const [event] = items!.filter(({ reason }) => reason === 'InvalidProgress');
    assert.match(event!.note!, /with no progress of this release, .* no hang is noticed: schemaVersion: .*expected 1/);
  });
  // Rank 0 is asked at 0.1, 0.2, 0.4, … s: this is well beyond the deadline.
  await eventually(() => assert(rank.requests >= 7));
  const { phase, attempt, restarts } = await ns.statusOf('faces');
  assert.deepEqual([phase, attempt, restarts], ['Running', 0, undefined]);

  const words =
    '/etc/facetrain/config.json: loss.teacher: unknown field; fields here are margin, scale\n' +
    'This image is older than what wrote the file: use an image of the same release, or leave the field out of the job';
  await ns.setPodStatus('faces-0-0', 'Failed', { exitCode: 2, message: { code: 'InvalidConfig', message: words } });
  await ns.waitForPhase('faces', 'Failed');
  assert.match((await ns.conditionText('faces', 'Ready'))!, /^InvalidConfig: .*use an image of the same release/s);
});

test('why a pod cannot start is reported from the events about it, until the pod runs', async (t) => {
  const ns = await open(t, 'mounts');
  await ns.applyFaceTrainJob('faces', {
    trainers: { replicas: 1, podTemplate: { spec: { volumes: [{ name: 'extra', secret: { secretName: 'nope' } }] } } },
    output: { uri: 'hostpath:///out' },
    dataset: { uri: 'hostpath:///data' },
  });
  await ns.waitForPods('faces-0-0');
  await ns.schedule('faces-0-0', 'node-1');
  await ns.setPodStatus('faces-0-0', 'Pending');
  const { metadata } = await ns.get(pods, 'faces-0-0');
  const event = (name: string, uid: string, message: string, lastTimestamp: string, reason = 'FailedMount') =>
    createEvent(ns, { name, uid, reason, message, lastTimestamp });
  await event(
    'faces-0-0.1',
    metadata.uid,
    'MountVolume.SetUp failed for volume "extra" : secret "nope" not found',
    '2026-01-01T00:00:02Z',
  );
  await event('faces-0-0.2', 'uid-of-an-earlier-pod', 'another secret', '2026-01-01T00:00:04Z');
  await event('faces-0-0.3', metadata.uid, 'an earlier trouble', '2026-01-01T00:00:01Z');
  await eventually(async () =>
    assert.equal(
      await ns.conditionText('faces', 'Ready'),
      'FailedMount: 0 of 1 pods are ready; faces-0-0 FailedMount: ' +
        'MountVolume.SetUp failed for volume "extra" : secret "nope" not found',
    ),
  );
  const noRuntime = 'Failed to create pod sandbox: no runtime for "nvidia" is configured';
  await event('faces-0-0.4', metadata.uid, noRuntime, '2026-01-01T00:00:03Z', 'FailedCreatePodSandBox');
  await event('faces-0-0.5', metadata.uid, 'too many nameservers', '2026-01-01T00:00:05Z', 'DNSConfigForming');
  await event('faces-0-0.6', metadata.uid, '0/3 nodes are available', '2026-01-01T00:00:05Z', 'FailedScheduling');
  const sandbox = `0 of 1 pods are ready; faces-0-0 FailedCreatePodSandBox: ${noRuntime}`;
  await eventually(async () =>
    assert.equal(await ns.conditionText('faces', 'Ready'), `FailedCreatePodSandBox: ${sandbox}`),
  );
  await eventually(async () => {
    const { items } = await plane.client.list(events, 'mounts', {});
    const ofJob = items!.filter(({ regarding, type }) => regarding.kind === 'FaceTrainJob' && type === 'Warning');
    assert.deepEqual(ofJob.map(({ reason }) => reason).sort(), ['FailedCreatePodSandBox', 'FailedMount']);
    assert(ofJob.some(({ note }) => note === sandbox));
  });
  await ns.setPodStatus('faces-0-0', 'Running');
  await ns.waitForPhase('faces', 'Running');
});

test('trainers that the kubelet starts again in their pods are counted once, and the pods stay', async (t) => {
  const ns = await open(t, 'in-place', { progressSeconds: 0.1 });
  const { rank, port } = await serveProgress(t, {
    ...progressAtStart({ name: 'faces', uid: '', attempt: 0 }, 'Training'),
    totalSteps: 100,
  });
  const { metadata } = await ns.applyFaceTrainJob('faces', { trainers: { replicas: 2, progressPort: port } });
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  const rules = { restartPolicyRules: [{ action: 'Restart', exitCodes: { operator: 'In', values: [4, 137] } }] };
  for (const name of ['faces-0-0', 'faces-0-1'])
    assert.partialDeepStrictEqual((await ns.get(pods, name)).spec.containers, [rules]);
  const podIP = '127.0.0.1';
  for (const name of ['faces-0-0', 'faces-0-1']) await ns.setPodStatus(name, 'Running', { podIP });
  await ns.waitForPhase('faces', 'Running');
  // The gang trains. A checkpoint is written to the status at once.
  await eventually(async () => {
    const step = rank.progress.step + 1;
    const job = { name: 'faces', uid: metadata.uid, attempt: 0 };
    rank.progress = {
      ...rank.progress,
      job,
      step,
      activity: step,
      checkpoint: { step, time: '2026-01-01T00:00:00.000Z' },
    };
    const { progress, attemptStartTime } = await ns.statusOf('faces');
    assert(progress !== undefined && progress.lastHeartbeatTime > attemptStartTime!);
  });

  await ns.setPodStatus('faces-0-1', 'Running', { podIP, restarted: { count: 1, exitCode: 137 } });
  await eventually(async () => {
    const { phase, attempt, restarts, trainers } = await ns.statusOf('faces');
    assert.deepEqual([phase, attempt, trainers?.containerRestarts], ['Restarting', 0, 1]);
    assert.partialDeepStrictEqual(restarts, { count: 1, inPlace: 1, disruptions: 0, lastReason: 'ProcessKilled' });
  });
  // What rank 0 answers until it follows is no progress since the restart. A checkpoint would be written at once.
  const step = rank.progress.step + 1;
  const checkpoint = { step, time: '2026-01-01T00:01:00.000Z' };
  rank.progress = { ...rank.progress, step, activity: step, checkpoint };
  const requests = rank.requests;
  await eventually(() => assert(rank.requests >= requests + 5));
  assert((await ns.statusOf('faces')).progress!.step < step);
  await ns.setPodStatus('faces-0-0', 'Running', { podIP, exitCode: 4 });
  await ns.setPodStatus('faces-0-0', 'Running', { podIP, restarted: { count: 1, exitCode: 4 } });
  await ns.waitForPhase('faces', 'Running');
  await eventually(async () => assert.equal((await ns.statusOf('faces')).progress!.step, step));
  const { attempt, restarts } = await ns.statusOf('faces');
  assert.deepEqual([attempt, restarts!.count, restarts!.disruptions], [0, 1, 0]);
  await ns.waitForPods('faces-0-0', 'faces-0-1');

  // The next failure comes soon, so its restart waits: new pods.
  await ns.setPodStatus('faces-0-0', 'Running', { podIP, restarted: { count: 2, exitCode: 137 } });
  await eventually(async () => {
    const status = await ns.statusOf('faces');
    assert.partialDeepStrictEqual(status, { attempt: 1, restarts: { count: 2, inPlace: 1 } });
    assert.equal(status.trainers!.containerRestarts, undefined);
  });
});

/** The statuses of pods as a kubelet of 1.37 writes them, and what the job says. */
const endings: Record<
  string,
  {
    status: object;
    /** Events about the pod: message by reason, and the second at which it was seen last (1). */
    events?: Record<string, string | [message: string, second: number]>;
    /** The container of these events. */
    container?: string;
    want: { reason: string; message: string | RegExp; count: number };
  }
> = {
  'over its own limit': {
    status: {
      phase: 'Failed',
      reason: 'Evicted',
      message: 'Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. ',
      containerStatuses: [ended('facetrain', { exitCode: 137, reason: 'Error' })],
    },
    want: {
      reason: 'Evicted',
      message:
        'rank 0 left with exit code 137 (Evicted) on node-1: ' +
        'Pod ephemeral local storage usage exceeds the total limit of containers 20Mi.',
      count: 1,
    },
  },
  'evicted for its node': {
    status: {
      phase: 'Failed',
      reason: 'Evicted',
      message: 'The node was low on resource: memory.',
      conditions: [{ type: 'DisruptionTarget', status: 'True', reason: 'TerminationByKubelet' }],
      containerStatuses: [ended('facetrain', { exitCode: 143, reason: 'Error' })],
    },
    want: { reason: 'Evicted', message: /memory\.$/, count: 0 },
  },
  'ended by a liveness probe': {
    status: {
      phase: 'Failed',
      containerStatuses: [ended('facetrain', { exitCode: 143, reason: 'Error' })],
    },
    events: {
      Unhealthy: 'Liveness probe failed: HTTP probe failed with statuscode: 503',
      Killing: 'Container facetrain failed liveness probe',
    },
    want: {
      reason: 'ProcessKilled',
      message:
        'rank 0 left with exit code 143 on node-1: Container facetrain failed liveness probe ' +
        '(Liveness probe failed: HTTP probe failed with statuscode: 503)',
      count: 1,
    },
  },
  'ended by a liveness probe, with no other container that goes on': {
    status: {
      phase: 'Failed',
      containerStatuses: [ended('facetrain', { exitCode: 143, reason: 'Error' })],
    },
    events: {
      Killing: ['Stopping container facetrain', 2],
      Unhealthy: '(combined from similar events): Liveness probe failed: connection refused',
    },
    want: {
      reason: 'ProcessKilled',
      message: 'rank 0 left with exit code 143 on node-1: Liveness probe failed: connection refused',
      count: 1,
    },
  },
  'stopped, long after a probe had failed': {
    status: {
      phase: 'Failed',
      containerStatuses: [ended('facetrain', { exitCode: 143, reason: 'Error' })],
    },
    events: {
      Unhealthy: 'Liveness probe failed: connection refused',
      Killing: ['Stopping container facetrain', 59],
    },
    want: { reason: 'ProcessKilled', message: 'rank 0 left with exit code 143 on node-1', count: 1 },
  },
  'ended by a signal of its own, after a probe had failed': {
    status: {
      phase: 'Failed',
      containerStatuses: [ended('facetrain', { exitCode: 139, reason: 'Error' })],
    },
    events: { Unhealthy: 'Liveness probe failed: connection refused' },
    want: { reason: 'ProcessKilled', message: 'rank 0 left with exit code 139 on node-1', count: 1 },
  },
  'ended by SIGTERM without a cause': {
    status: {
      phase: 'Failed',
      containerStatuses: [ended('facetrain', { exitCode: 143, reason: 'Error' })],
    },
    events: { Unhealthy: 'Readiness probe failed: connection refused', Killing: 'Stopping container facetrain' },
    want: { reason: 'ProcessKilled', message: 'rank 0 left with exit code 143 on node-1', count: 1 },
  },
  'ended by SIGTERM, after a sidecar had failed its probe': {
    status: {
      phase: 'Failed',
      containerStatuses: [ended('facetrain', { exitCode: 143, reason: 'Error' })],
    },
    events: { Killing: 'Container proxy failed liveness probe, will be restarted' },
    container: 'proxy',
    want: { reason: 'ProcessKilled', message: 'rank 0 left with exit code 143 on node-1', count: 1 },
  },
  'rejected by the kubelet': {
    status: {
      phase: 'Failed',
      reason: 'OutOfcpu',
      message: 'Pod was rejected: Node didn\u2019t have enough resource: cpu',
    },
    want: {
      reason: 'OutOfcpu',
      message: 'rank 0 failed (OutOfcpu) on node-1: Pod was rejected: Node didn\u2019t have enough resource: cpu',
      count: 0,
    },
  },
  'a program that does not exist': {
    status: {
      phase: 'Failed',
      containerStatuses: [
        ended('facetrain', { exitCode: 128, reason: 'StartError', message: 'exec: "/no/such": no such file' }),
      ],
    },
    want: {
      reason: 'StartError',
      message: 'rank 0 left with exit code 128 (StartError) on node-1: exec: "/no/such": no such file',
      count: 1,
    },
  },
  'an init container of the template': {
    status: {
      phase: 'Failed',
      initContainerStatuses: [
        ended('log-shipper', { exitCode: 137, reason: 'Error' }),
        ended('copy-certs', { exitCode: 2, reason: 'Error', message: 'ls: no such folder' }),
      ],
    },
    want: {
      reason: 'ContainerFailed',
      message: 'rank 0: container copy-certs left with exit code 2 on node-1: ls: no such folder',
      count: 1,
    },
  },
};

function ended(name: string, terminated: object) {
  const finishedAt = new Date().toISOString();
  return {
    name,
    ready: false,
    restartCount: 0,
    image: 'x',
    imageID: '',
    state: { terminated: { finishedAt, ...terminated } },
  };
}

for (const [index, [name, { status, events: about = {}, container, want }]] of Object.entries(endings).entries()) {
  test(`what ended a pod is told, and counted as the table says: ${name}`, async (t) => {
    const ns = await open(t, `endings-${index}`);
    const initContainers = [
      { name: 'log-shipper', image: 'x', restartPolicy: 'Always' },
      { name: 'copy-certs', image: 'x' },
    ];
    await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1, podTemplate: { spec: { initContainers } } } });
    await ns.waitForPods('faces-0-0');
    await ns.schedule('faces-0-0', 'node-1');
    // A native sidecar that fails does not end the pod.
    await ns.patch(
      pods,
      'faces-0-0',
      {
        status: {
          phase: 'Pending',
          initContainerStatuses: [ended('log-shipper', { exitCode: 1, reason: 'Error' })],
        },
      },
      'status',
    );
    const { uid } = (await ns.get(pods, 'faces-0-0')).metadata;
    for (const [reason, event] of Object.entries(about)) {
      const [message, second] = typeof event === 'string' ? [event, 1] : event;
      await createEvent(ns, {
        name: `faces-0-0.${reason.toLowerCase()}`,
        uid,
        reason,
        message,
        ...(container && { container }),
        lastTimestamp: `2026-01-01T00:00:${String(second).padStart(2, '0')}Z`,
      });
    }
    await ns.patch(pods, 'faces-0-0', { status }, 'status');
    await eventually(async () => {
      const { restarts } = await ns.statusOf('faces');
      assert.equal(restarts?.lastReason, want.reason);
      if (want.message instanceof RegExp) assert.match(restarts!.lastMessage!, want.message);
      else assert.equal(restarts!.lastMessage, want.message);
      assert.deepEqual([restarts!.count, restarts!.disruptions], [want.count, 1 - want.count]);
    });
  });
}

test('ranks that have succeeded are not trained again when their pods are removed', async (t) => {
  const ns = await open(t, 'removed');
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  await ns.setPodStatus('faces-0-1', 'Succeeded', { exitCode: 0 });
  await eventually(async () => assert.equal((await ns.statusOf('faces')).trainers?.completedRanks, '1'));
  await ns.delete(pods, 'faces-0-1');
  await settle();
  const { attempt, restarts } = await ns.statusOf('faces');
  assert.deepEqual([attempt, restarts, await ns.names(pods)], [0, undefined, ['faces-0-0']]);
  await ns.setPodStatus('faces-0-0', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('faces', 'Succeeded');
});

test('a missing claim is reported with its name', async (t) => {
  const ns = await open(t, 'claim');
  await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1 } });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Ready'))!,
      /^PersistentVolumeClaimNotFound: .*persistentvolumeclaim "data" not found$/,
    ),
  );
  await ns.create(claims, {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: 'data' },
    spec: { accessModes: ['ReadWriteMany'], resources: { requests: { storage: '1Gi' } } },
  });
  await eventually(async () =>
    assert.equal(
      await ns.conditionText('faces', 'Ready'),
      'PodsPending: 0 of 1 pods are ready; faces-0-0 has no place, and no scheduler has said why',
    ),
  );
  await shortenDeadline(ns);
  await ns.waitForPhase('faces', 'Failed');
});

test('a refused pod template is reported with the message of the server, which names the field', async (t) => {
  const ns = await open(t, 'template');
  const podTemplate = {
    spec: { nodeSelector: { 'not a label!': 'x' }, containers: [{ name: 'facetrain', lifecycle: { preStop: {} } }] },
  };
  await ns.applyFaceTrainJob('faces', { trainers: { replicas: 2, podTemplate } });
  await eventually(async () => {
    const stalled = await ns.conditionText('faces', 'Stalled');
    assert.match(
      stalled ?? '',
      /^ChildRefused: Pod faces-0-0: Pod "faces-0-0" is invalid: .*spec\.containers\[0\]\.lifecycle\.preStop/s,
    );
    assert.match(stalled!, /spec\.nodeSelector: Invalid value: "not a label!"/);
  });
  await settle();
  assert.deepEqual(await ns.names(pods), []);
  // The first pod of the gang is refused, so no other is tried; the next try is half a minute later.
  const posts = ns.operator.proxy.writes.filter(({ method, url }) => method === 'POST' && /\/pods(\?|$)/.test(url));
  assert(posts.length >= 1 && posts.length <= 2, `${posts.length} pods were tried`);
});

test('a misspelt field of a pod template is reported, not dropped', async (t) => {
  const ns = await open(t, 'misspelt');
  await ns.applyFaceTrainJob('faces', {
    trainers: { replicas: 2, podTemplate: { spec: { nodeselector: { disk: 'fast' } } } },
  });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Stalled')) ?? '',
      /^ChildRefused: Pod faces-0-0: .*unknown field "spec\.nodeselector"/,
    ),
  );
  assert.deepEqual(await ns.names(pods), []);
});

test('a field beside the spec of a pod template is kept by the server, and refused by the operator', async (t) => {
  const ns = await open(t, 'misplaced');
  const trainers = { replicas: 1, resources: { requests: { cpu: 0.5 } } };
  await ns.applyFaceTrainJob('faces', { trainers: { ...trainers, podTemplate: { nodeSelector: { disk: 'fast' } } } });
  await eventually(async () =>
    assert.equal(
      await ns.conditionText('faces', 'Stalled'),
      'InvalidSpec: spec.trainers.podTemplate.nodeSelector: a pod template has only metadata and spec; ' +
        'move it to spec.nodeSelector',
    ),
  );
  assert.deepEqual(await ns.names(pods), []);
  const podTemplate = { nodeSelector: null, spec: { nodeSelector: { disk: 'fast' } } };
  await ns.patch(faceTrainJobs, 'faces', { spec: { trainers: { podTemplate } } });
  await ns.waitForPods('faces-0-0');
  const { spec } = (await ns.get(pods, 'faces-0-0')) as unknown as {
    spec: { nodeSelector: object; containers: { resources: object }[] };
  };
  assert.deepEqual(spec.nodeSelector, { disk: 'fast' });
  assert.deepEqual(spec.containers[0]!.resources, { requests: { cpu: '500m' } });
});

test('a suspended job has no pods and keeps its last checkpoint; resumed, it starts from there', async (t) => {
  const ns = await open(t, 'suspend');
  const { metadata } = await ns.applyFaceTrainJob('faces', { activeDeadlineSeconds: 3600 });
  await ns.waitForPods('faces-0-0', 'faces-0-1');
  // A finalizer keeps the pods after their deletion, as the kubelet does until their processes have ended.
  for (const name of ['faces-0-0', 'faces-0-1'])
    await ns.patch(pods, name, { metadata: { finalizers: ['facetrain.dev/kubelet'] } });
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  const { startTime } = await ns.statusOf('faces');
  assert(startTime);
  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: true } });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('faces', 'Ready'))!,
      /^Suspending: of an earlier attempt faces-0-0 and 1 more pods have not ended$/,
    ),
  );
  const progress = {
    ...progressAtStart({ name: 'faces', uid: metadata.uid, attempt: 0 }, 'Training'),
    step: 12,
    checkpoint: { step: 12, time: '2026-01-01T00:00:00.000Z' },
  };
  await ns.setPodStatus('faces-0-0', 'Failed', { exitCode: 143, message: { progress } });
  await ns.setPodStatus('faces-0-1', 'Failed', { exitCode: 143 });
  await eventually(async () => assert.match((await ns.conditionText('faces', 'Suspended'))!, /^Suspended: /));
  await eventually(async () =>
    assert.deepEqual((await ns.statusOf('faces')).checkpoint, {
      uri: 'pvc://data/out/faces/checkpoints/step-0000000012',
      ...progress.checkpoint,
    }),
  );
  for (const name of ['faces-0-0', 'faces-0-1']) await ns.patch(pods, name, { metadata: { finalizers: null } });
  await ns.waitForPods();
  await settle();
  const suspended = await ns.statusOf('faces');
  assert.deepEqual(
    [suspended.phase, suspended.restarts, suspended.startTime, await ns.names(pods)],
    ['Suspended', undefined, undefined, []],
  );

  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: false } });
  await ns.waitForPods('faces-1-0', 'faces-1-1');
  await ns.setAllPodStatuses('Running');
  await ns.waitForPhase('faces', 'Running');
  assert.match((await ns.conditionText('faces', 'Suspended'))!, /^Resumed: /);
  assert.equal((await ns.statusOf('faces')).restarts, undefined);
});

test('a finished job is deleted after the time to live of its outcome', async (t) => {
  const ns = await open(t, 'ttl');
  const ttlSecondsAfterFinished = { succeeded: 2, failed: 3600 };
  await ns.applyFaceTrainJob('good', { trainers: { replicas: 1 }, ttlSecondsAfterFinished });
  await ns.applyFaceTrainJob('bad', { trainers: { replicas: 1 }, ttlSecondsAfterFinished });
  await ns.applyQuantizeJob('small', { ttlSecondsAfterFinished: { succeeded: 0 } });
  await ns.waitForPods('bad-0-0', 'good-0-0', 'small-0-quantizer');
  await ns.setPodStatus('good-0-0', 'Succeeded', { exitCode: 0 });
  await ns.setPodStatus('bad-0-0', 'Failed', { exitCode: 2 });
  await ns.setPodStatus('small-0-quantizer', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('good', 'Succeeded');
  await ns.waitForPhase('bad', 'Failed');
  await eventually(async () =>
    assert.deepEqual([await ns.names(faceTrainJobs), await ns.names(quantizeJobs)], [['bad'], []]),
  );
  await settle();
  assert.deepEqual(await ns.names(faceTrainJobs), ['bad']);
});

const resourceOf = (object: Document) => (object.kind === 'FaceTrainJob' ? faceTrainJobs : quantizeJobs);

test('a real API server and zod accept the same fixtures', async () => {
  await plane.createNamespace('fixtures');
  for (const [name, { object, wantValid }] of Object.entries(fixtures)) {
    const outcome = plane.client.post(
      `${collectionPath(resourceOf(object), 'fixtures')}?dryRun=All&fieldValidation=Strict`,
      object,
    );
    if (wantValid) await outcome;
    else await assert.rejects(outcome, (error) => isRefusal(error), `${name} is accepted`);
    assert.equal(
      (object.kind === 'FaceTrainJob' ? FaceTrainJob : QuantizeJob).safeParse(object).success,
      wantValid,
      name,
    );
  }
});

test('a real API server enforces which changes of a spec are allowed', async () => {
  await plane.createNamespace('changes');
  const ports = {
    from: { suspend: true },
    to: { suspend: true, trainers: { rendezvousPort: 9000 } },
    wantRefusal: null,
  };
  const more: typeof changes = { ...changes, 'another port while it is suspended': ports };
  for (const [name, { from, to, finished, wantRefusal }] of Object.entries(more)) {
    let { metadata } = await plane.client.create(faceTrainJobs, 'changes', trainSpec(from));
    if (finished) {
      const end = finished === true ? 'completionTime' : 'trainingCompletionTime';
      const status = { [end]: '2026-01-01T00:00:00Z' };
      ({ metadata } = await plane.client.patch(faceTrainJobs, 'changes', 'a', { status }, 'status'));
    }
    const { spec } = trainSpec(to) as { spec: object };
    const outcome = plane.client.replace(faceTrainJobs, 'changes', 'a', {
      ...trainSpec(to),
      metadata: { name: 'a', resourceVersion: metadata.resourceVersion },
      spec,
    });
    if (wantRefusal) await assert.rejects(outcome, wantRefusal, name);
    else await outcome;
    await plane.client.delete(faceTrainJobs, 'changes', 'a', metadata.uid);
  }
});

test('services and network policies follow the spec; an attempt keeps the config that it started with', async (t) => {
  const ns = await open(t, 'follows');
  await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1 } });
  await ns.waitForPods('faces-0-0');
  type Ports = { spec: { ports: { name: string; port: number }[] } };
  type Policy = { spec: { ingress: { ports?: { port: number }[] }[] } };
  const { metadata: service } = await ns.get(services, 'faces');
  const config = async (attempt: number) =>
    ((await ns.get(configMaps, `faces-${attempt}`)) as unknown as { data: Record<string, string> }).data[
      'config.json'
    ]!;
  const first = await config(0);

  await ns.patch(faceTrainJobs, 'faces', {
    spec: { networkPolicy: { enabled: false }, checkpoint: { everySteps: 7 } },
  });
  await eventually(async () => assert.deepEqual(await ns.names(networkPolicies), []));
  assert.equal(await config(0), first);
  assert.deepEqual(await ns.names(pods), ['faces-0-0']);

  await ns.patch(faceTrainJobs, 'faces', { spec: { suspend: true } });
  await ns.waitForPhase('faces', 'Suspended');
  await ns.waitForPods();
  await ns.patch(faceTrainJobs, 'faces', {
    spec: { suspend: false, networkPolicy: { enabled: true }, trainers: { progressPort: 9100 } },
  });
  await ns.waitForPods('faces-1-0');
  await eventually(async () => {
    const { metadata, spec } = (await ns.get(services, 'faces')) as unknown as Ports & { metadata: { uid: string } };
    assert.deepEqual(
      [metadata.uid, spec.ports.map(({ name, port }) => [name, port])],
      [
        service.uid,
        [
          ['rendezvous', 29_500],
          ['progress', 9100],
        ],
      ],
    );
    const policy = (await ns.get(networkPolicies, 'faces')) as unknown as Policy;
    assert.equal(policy.spec.ingress[1]!.ports![0]!.port, 9100);
  });
  const second = JSON.parse(await config(1)) as { checkpoint: { everySteps: number }; progress: { port: number } };
  assert.deepEqual([second.checkpoint.everySteps, second.progress.port], [7, 9100]);
  await settle();
  const patches = ns.operator.proxy.writes.filter(
    ({ method, url }) => method === 'PATCH' && /\/(services|networkpolicies)\//.test(url),
  );
  assert.deepEqual(
    patches.map(({ url }) => url),
    ['/api/v1/namespaces/follows/services/faces'],
  );
});

test('a spec that only the operator refuses is reported with its field; finished jobs keep their status', async (t) => {
  const ns = await open(t, 'invalid');
  await ns.applyFaceTrainJob('done', { trainers: { replicas: 1 } });
  await ns.waitForPods('done-0-0');
  await ns.setPodStatus('done-0-0', 'Succeeded', { exitCode: 0 });
  await ns.waitForPhase('done', 'Succeeded');
  // As the CRD of another version might be.
  const definitions = defineResource('apiextensions.k8s.io/v1', 'customresourcedefinitions');
  type Rules = { 'x-kubernetes-validations'?: unknown; properties?: Record<string, Rules> };
  type Definition = KubernetesObject & { spec: { versions: { schema: { openAPIV3Schema: Rules } }[] } };
  const withoutRules = (node: Rules): void => {
    delete node['x-kubernetes-validations'];
    for (const field of Object.values(node.properties ?? {})) withoutRules(field);
  };
  const path = 'facetrainjobs.facetrain.dev';
  const definition = (await plane.client.get(definitions, null, path)) as Definition;
  const lax = structuredClone(definition);
  withoutRules(lax.spec.versions[0]!.schema.openAPIV3Schema);
  await plane.client.patch(definitions, null, path, { spec: lax.spec });
  t.after(() => plane.client.patch(definitions, null, path, { spec: definition.spec }).then(() => {}));
  await eventually(() => ns.applyFaceTrainJob('odd', { globalBatchSize: 1 }));
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('odd', 'Stalled')) ?? '',
      /^InvalidSpec: odd: spec\.globalBatchSize: 1; globalBatchSize must be trainers\.replicas · ranksPerPod or more/,
    ),
  );
  assert.equal((await ns.statusOf('odd')).phase, 'Pending');
  await eventually(() => ns.applyFaceTrainJob('above', { output: { uri: 'pvc://data/a/../b' } }));
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('above', 'Stalled')) ?? '',
      /^InvalidSpec: above: spec\.output\.uri: "pvc:.*without it; this field cannot be changed: delete the job/,
    ),
  );
  await ns.patch(faceTrainJobs, 'done', { spec: { globalBatchSize: 1, trainers: { replicas: 2 } } });
  await settle();
  assert.deepEqual([(await ns.statusOf('done')).phase, await ns.names(pods)], ['Succeeded', ['done-0-0']]);
  assert.match((await ns.conditionText('done', 'Succeeded'))!, /^Succeeded: /);
});

test('a URI relative to the manifest is reported with its field: no pod has the folder of the manifest', async (t) => {
  const ns = await open(t, 'relative');
  await ns.applyFaceTrainJob('local', {
    evaluation: {
      sets: [
        { name: 'lfw', uri: 's3://faces/lfw.bin' },
        { name: 'cfp', uri: 'file://data/cfp.bin' },
      ],
    },
  });
  await eventually(async () =>
    assert.match(
      (await ns.conditionText('local', 'Stalled')) ?? '',
      RegExp(
        String.raw`^InvalidSpec: local: spec\.evaluation\.sets\[1\]\.uri: "file://data/cfp\.bin"; ` +
          'relative to the manifest .*pvc:',
      ),
    ),
  );
  assert.deepEqual(await ns.names(pods), []);
  // An absolute path may be in a volume of the podTemplate.
  await ns.applyFaceTrainJob('mounted', { dataset: { uri: 'file:///mnt/faces' } });
  await ns.waitForPods('mounted-0-0', 'mounted-0-1');
});

test('a replica lives through an outage of the API server, and is not ready meanwhile', async (t) => {
  await plane.createNamespace('unready');
  let end = () => {};
  const operator = await startOperator(plane, 'unready', {
    skipReadyCheck: true,
    setUpProxy(proxy) {
      end = proxy.fail('GET', /./, 503, { times: 1_000 });
    },
  });
  t.after(() => operator.stop());
  const probe = async (path: string) => {
    const answer = await fetch(`${operator.address}${path}`);
    return { code: answer.status, text: await answer.text() };
  };
  await eventually(() => assert(operator.proxy.requests.length >= 2));
  assert.equal((await probe('/healthz')).code, 200);
  assert.deepEqual(await probe('/readyz'), { code: 503, text: '[-]discovery the API server has not answered yet\n' });

  const endOfKind = operator.proxy.fail('GET', /\/networkpolicies\?/, 500, { times: 1_000 });
  end();
  await eventually(async () => assert.match((await probe('/readyz')).text, /^\[\+\]Pod ok$/m));
  assert.match((await probe('/readyz')).text, /^\[-\]NetworkPolicy not listed yet$/m);
  assert.deepEqual(await probe('/healthz'), { code: 200, text: '[+]workers ok\n' });
  endOfKind();
  await eventually(async () => assert.equal((await probe('/readyz')).code, 200));
  assert.equal((await probe('/nothing')).code, 404);
  assert.equal((await fetch(`${operator.address}/healthz`, { method: 'POST' })).status, 405);

  end = operator.proxy.fail('GET', /./, 503, { times: 100_000 });
  operator.proxy.dropWatches();
  await eventually(async () => assert.match((await probe('/readyz')).text, /^\[-\]Pod not watched for \d+ s$/m));
  assert.equal((await probe('/healthz')).code, 200);
  end();
  await eventually(async () => assert.equal((await probe('/readyz')).code, 200));
});

test('an API server that answers 500, 401 or 403 while it starts is tried again', async (t) => {
  await plane.createNamespace('early');
  const operator = await startOperator(plane, 'early', {
    setUpProxy: (proxy) => {
      proxy.fail('GET', /\/apis\/scheduling\.k8s\.io\//, 500, { times: 2 });
      proxy.fail('GET', /\/apis\/scheduling\.k8s\.io\//, 401);
      proxy.fail('GET', /\/apis\/scheduling\.k8s\.io\//, 403);
      proxy.fail('GET', /\/nodes\?/, 500);
    },
  });
  t.after(() => operator.stop());
  assert.equal((await fetch(`${operator.address}/readyz`)).status, 200);
});

test('nodes, claims and events that cannot be listed keep no job from being run', async (t) => {
  const ns = await TestNamespace.open(t, plane, 'without', {
    setUpProxy: (proxy) => {
      proxy.fail('GET', /\/(nodes|persistentvolumeclaims|events)\?/, 500, { times: 100_000 });
    },
  });
  assert.equal((await fetch(`${ns.operator.address}/readyz`)).status, 200);
  await ns.applyFaceTrainJob('faces');
  await ns.waitForPods('faces-0-0', 'faces-0-1');
});

test('that all pods have a node is written no sooner than 5 s after the last status', async (t) => {
  const ns = await open(t, 'admitted');
  const begun = performance.now();
  await ns.applyFaceTrainJob('faces', { trainers: { replicas: 1 } });
  await ns.waitForPods('faces-0-0');
  // Its claim does not exist, which is written at once, and a place with it. That is the last such status of this pod.
  const lacksClaim = /^PersistentVolumeClaimNotFound: /;
  await eventually(async () => assert.match((await ns.conditionText('faces', 'Ready')) ?? '', lacksClaim));
  assert.match((await ns.conditionText('faces', 'Admitted'))!, /^Unschedulable: /);
  await ns.schedule('faces-0-0', 'node-1');
  await eventually(async () => assert.match((await ns.conditionText('faces', 'Admitted'))!, /^Scheduled: /));
  assert(performance.now() - begun >= 5_000);
});
