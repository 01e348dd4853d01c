/** What becomes of jobs, told by their status, on a real API server. There is no kubelet: the tests say how the pods are. */
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, test } from 'node:test';
import type { Progress } from '@facetrain/api';
import { events } from '../runtime/events.ts';
import { ControlPlane } from '../testing/control-plane.ts';
import { eventually } from '../testing/eventually.ts';
import { pods, quantizeJobs } from './resources.ts';
import { quiet, Scene } from './testing.ts';

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

const open = (t: Parameters<typeof Scene.open>[0], namespace: string, choices?: Parameters<typeof Scene.open>[3]) => Scene.open(t, plane, namespace, choices);

const ARTIFACT = { manifestSha256: 'a'.repeat(64), bytes: 1234, meanCosine: 0.995, accuracyDrop: 0.002, gate: 'Passed' } as const;

test('a trained job is quantized, and the artifact shows in both', async (t) => {
  const scene = await open(t, 'chain');
  const s3 = { endpoint: 'http://store:9000', secretRef: { name: 'store' } };
  await scene.applyFaceTrainJob('faces', { trainers: { replicas: 1 }, quantize: { output: { uri: 's3://models/faces', s3 } } });
  await scene.hasPods('faces-0-0');
  await scene.becomes('faces-0-0', 'Running');
  await scene.becomes('faces-0-0', 'Succeeded', { exitCode: 0 });
  await scene.phaseIs('faces', 'Quantizing');
  await scene.hasPods('faces-0-0', 'faces-quantize-0-0');
  await scene.becomes('faces-quantize-0-0', 'Running');
  await scene.phaseIs('faces-quantize', 'Running', quantizeJobs);
  await scene.becomes('faces-quantize-0-0', 'Succeeded', { exitCode: 0, message: { artifact: ARTIFACT } });
  await scene.phaseIs('faces', 'Succeeded');
  const artifact = { uri: 's3://models/faces', ...ARTIFACT };
  assert.deepEqual((await scene.quantizeStatusOf('faces-quantize')).artifact, artifact);
  const status = await scene.statusOf('faces');
  assert.deepEqual([status.artifact, status.quantizeJobName], [artifact, 'faces-quantize']);
  assert.match((await scene.saying('faces', 'QuantizationSucceeded'))!, /^Succeeded: /);
});

test('a QuantizeJob alone is tried again after a crash, and one that nobody understands still succeeds', async (t) => {
  const scene = await open(t, 'alone');
  await scene.applyQuantizeJob('small');
  await scene.hasPods('small-0-0');
  await scene.becomes('small-0-0', 'Running');
  await scene.becomes('small-0-0', 'Failed', { exitCode: 1, message: { code: 'Internal', message: 'folding has changed the model' } });
  await scene.hasPods('small-0-0', 'small-1-0');
  const { restarts } = await scene.quantizeStatusOf('small');
  assert.deepEqual([restarts?.count, restarts?.lastReason, restarts?.lastMessage], [1, 'Internal', 'rank 0 left with exit code 1: folding has changed the model']);
  await scene.becomes('small-1-0', 'Succeeded', { exitCode: 0, message: '{"artifact": {"bytes": "many"}}' });
  await scene.phaseIs('small', 'Succeeded', quantizeJobs);
  assert.deepEqual((await scene.quantizeStatusOf('small')).artifact, { uri: 'pvc://data/int7' });
});

test('a quantizer that is refused fails both with its own words, which hold no credential', async (t) => {
  const scene = await open(t, 'denied');
  const s3 = { secretRef: { name: 'store' } };
  const secret = { AWS_ACCESS_KEY_ID: 'an-id-that-is-wrong', AWS_SECRET_ACCESS_KEY: 'a-secret-that-is-wrong' };
  await plane.client.post('/api/v1/namespaces/denied/secrets', { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'store' }, stringData: secret });
  await scene.applyFaceTrainJob('faces', { trainers: { replicas: 1 }, quantize: { output: { uri: 's3://models/faces', s3 } } });
  await scene.hasPods('faces-0-0');
  await scene.becomes('faces-0-0', 'Succeeded', { exitCode: 0 });
  await scene.hasPods('faces-0-0', 'faces-quantize-0-0');
  const said = 's3://models/faces at AWS: the credentials are wrong (InvalidAccessKeyId); a valid AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is temporary, AWS_SESSION_TOKEN';
  await scene.becomes('faces-quantize-0-0', 'Failed', { exitCode: 2, message: { code: 'StorageFailed', message: said } });
  await scene.phaseIs('faces-quantize', 'Failed', quantizeJobs);
  await scene.phaseIs('faces', 'Failed');
  assert.equal(await scene.saying('faces-quantize', 'Failed', quantizeJobs), `StorageFailed: rank 0 left with exit code 2: ${said}`);
  const failed = `QuantizationFailed: QuantizeJob faces-quantize: StorageFailed: rank 0 left with exit code 2: ${said}`;
  assert.equal(await scene.saying('faces', 'Failed'), failed);
  assert.equal(await scene.saying('faces', 'QuantizationSucceeded'), failed);
  assert.equal((await scene.statusOf('faces')).artifact, undefined);
  const told = await eventually(async () => {
    const { items } = await plane.client.list(events, 'denied', {});
    assert.equal(items!.filter(({ reason }) => reason === 'Failed').length, 2);
    return items!;
  });
  const shown = JSON.stringify([told, await scene.statusOf('faces'), await scene.quantizeStatusOf('faces-quantize'), (await plane.client.list(pods, 'denied', {})).items]);
  for (const value of Object.values(secret)) assert(!shown.includes(value), value);
});

/** Rank 0, as far as the operator sees it. */
async function serveProgress(t: { after(end: () => void): void }, first: Progress) {
  const rank = { progress: first, asked: 0 };
  const server = createServer((request, response) => {
    rank.asked++;
    response.writeHead(request.url === '/v1/progress' ? 200 : 404).end(JSON.stringify(rank.progress));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => void server.close(() => {}).closeAllConnections());
  return { rank, port: (server.address() as AddressInfo).port };
}

test('progress is asked of rank 0 while it runs, and its last words arrive when it has ended', async (t) => {
  const scene = await open(t, 'progress', { progressSeconds: 0.1 });
  const job = { name: 'faces', uid: 'another', attempt: 0 };
  const { rank, port } = await serveProgress(t, {
    schemaVersion: 1, job, stage: 'Training', step: 40, totalSteps: 100, epoch: 4, imagesPerSecond: 50, loss: 7.5, learningRate: 0.1, etaSeconds: 60,
    evaluations: [{ set: 'lfw', step: 30, accuracy: 0.9 }], checkpoint: { step: 30, time: '2026-01-01T00:00:00.000Z' }, activity: 44,
  });
  const { metadata } = await scene.applyFaceTrainJob('faces', { trainers: { replicas: 2, progressPort: port } });
  await scene.hasPods('faces-0-0', 'faces-0-1');
  await scene.becomes('faces-0-0', 'Running', { podIP: '127.0.0.1' });
  await scene.becomes('faces-0-1', 'Running', { podIP: '127.0.0.1' });
  await scene.phaseIs('faces', 'Running');
  // An address may be another pod's by now.
  await eventually(() => assert(rank.asked >= 2));
  assert.equal((await scene.statusOf('faces')).progress, undefined);

  rank.progress = { ...rank.progress, job: { ...job, uid: metadata.uid } };
  await eventually(async () => {
    const { progress, checkpoint, evaluations } = await scene.statusOf('faces');
    assert.partialDeepStrictEqual(progress, { step: 40, totalSteps: 100, percent: 40, imagesPerSecond: 50, loss: 7.5, activity: 44 });
    assert.deepEqual(checkpoint, { uri: 'pvc://data/out/checkpoints/step-0000000030', step: 30, time: '2026-01-01T00:00:00.000Z' });
    assert.deepEqual(evaluations, rank.progress.evaluations);
  });

  // Nobody asked for this one.
  const last: Progress = { ...rank.progress, stage: 'Done', step: 100, epoch: 10, loss: 1.5, etaSeconds: 0, evaluations: [{ set: 'lfw', step: 100, accuracy: 0.99 }], checkpoint: { step: 100, time: '2026-01-01T00:01:00.000Z' }, activity: 110 };
  await scene.becomes('faces-0-0', 'Succeeded', { exitCode: 0, message: { progress: last } });
  await scene.becomes('faces-0-1', 'Succeeded', { exitCode: 0 });
  await scene.phaseIs('faces', 'Succeeded');
  const status = await scene.statusOf('faces');
  assert.partialDeepStrictEqual(status, {
    progress: { step: 100, percent: 100, loss: 1.5, activity: 110 },
    checkpoint: { uri: 'pvc://data/out/checkpoints/step-0000000100', step: 100, time: '2026-01-01T00:01:00.000Z' },
    evaluations: last.evaluations,
  });
  assert.equal(status.progress!.estimatedCompletionTime, undefined);

  const { asked } = rank;
  await scene.delete(pods, 'faces-0-0');
  await quiet();
  assert.deepEqual(await scene.statusOf('faces'), status, 'what was said last, after the pod is gone');
  assert.equal(rank.asked, asked, 'asked after the end');
});
