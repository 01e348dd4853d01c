/**
 * Whatever a pod reports, the API server accepts the status that follows from it. Else no status of that job would be
 * written any more.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { FaceTrainJob, type FaceTrainJobStatus, Progress, parseDocument, stepStages } from '@facetrain/api';
import { planFaceTrainJob } from '@facetrain/planner/facetrainjob/plan-facetrainjob';
import type { ObservedPod } from '@facetrain/planner/observed';
import { observedProgress } from '@facetrain/planner/observed-progress';
import { readTermination } from '@facetrain/planner/read-termination';
import fc from 'fast-check';
import { ControlPlane } from '../testing/control-plane.ts';
import { clusterEnvironment } from './cluster-environment.ts';
import { faceTrainJobs } from './resources.ts';

let plane: ControlPlane;
before(async () => {
  plane = await ControlPlane.start();
  await plane.installCrds();
});
after(() => plane?.stop());

const UID = 'uid';
const NOW = new Date('2026-01-01T00:10:00Z');
const document = {
  apiVersion: 'facetrain.dev/v1alpha1',
  kind: 'FaceTrainJob',
  metadata: { name: 'faces' },
  spec: {
    dataset: { uri: 'pvc://data/faces' },
    model: { backbone: 'mobilefacenet' },
    // As long as the schema allows: the checkpoint's address is longer.
    output: { uri: `pvc://data/${'o'.repeat(1013)}` },
    globalBatchSize: 64,
    trainers: { replicas: 1 },
  },
};
const { spec } = parseDocument(FaceTrainJob, document, 'faces', 'InvalidManifest');

/** Numbers at the edges of what JSON, JavaScript and the API server can hold. */
const number = fc.constantFrom(
  0,
  -0,
  1,
  -1,
  0.5,
  1e-320,
  2 ** 31,
  2 ** 53 - 1,
  2 ** 53,
  1e30,
  Number.MAX_VALUE,
  -1e308,
);
/** Mostly values that are accepted: a report with one bad value is refused as a whole. */
const mostly = <T>(good: fc.Arbitrary<T>, any: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 15, arbitrary: good }, { weight: 1, arbitrary: any });
const count = mostly(fc.nat(1000), number);
const positive = mostly(fc.constantFrom(0, 0.5, 1e-320, 1e30), number);
const anyText = fc.oneof(
  fc.constantFrom('', 'lfw', 'cfp-fp', '\u0000', '\ud800', '\ud801', 'ä', 'x'.repeat(64), 'x'.repeat(5000), 'a b'),
  fc.string({ maxLength: 5 }),
);
const text = mostly(fc.constantFrom('lfw', 'cfp-fp', 'x'.repeat(64)), anyText);
const anyTime = fc.oneof(
  fc.date({ noInvalidDate: false }).map((date) => (Number.isNaN(date.getTime()) ? 'Invalid Date' : date.toISOString())),
  fc.constantFrom(
    '',
    'now',
    '2026-01-01',
    '2026-01-01T00:00Z',
    '2026-01-01T00:00:00',
    '2026-01-01T00:00:00+01:00',
    '2026-02-30T00:00:00Z',
    '2026-01-01T24:00:00Z',
    '2026-01-01T00:00:60Z',
    '0000-01-01T00:00:00Z',
    '+010000-01-01T00:00:00Z',
    `2026-01-01T00:00:00.${'1'.repeat(40)}Z`,
    `2026-01-01T00:00:00.${'1'.repeat(400)}Z`,
  ),
);
const time = mostly(fc.constant('2026-01-01T00:00:00.5Z'), anyTime);
const progress = fc.record({
  schemaVersion: fc.constant(1),
  job: fc.record({ name: text, uid: fc.constant(UID), attempt: fc.constant(0) }),
  stage: fc.constantFrom('Training', 'Done'),
  step: count,
  totalSteps: count,
  epoch: positive,
  imagesPerSecond: fc.option(positive),
  stageSeconds: fc.option(fc.record(Object.fromEntries(stepStages.map((stage) => [stage, positive])))),
  loss: fc.option(number),
  learningRate: fc.option(number),
  etaSeconds: fc.option(positive),
  evaluations: fc.array(
    fc.record(
      { set: text, step: count, accuracy: mostly(fc.constantFrom(0, 0.5, 1), fc.constant(2)), std: positive },
      { requiredKeys: ['set', 'step', 'accuracy'] },
    ),
    {
      maxLength: 3,
    },
  ),
  checkpoint: fc.option(fc.record({ step: count, time })),
  setAside: fc.array(fc.record({ folder: text, reason: text }), { maxLength: 2 }),
  activity: count,
});
const termination = fc.oneof(
  fc.record({ code: text, message: fc.oneof(text, fc.constant('m'.repeat(3500))) }),
  fc.record({ progress }),
  fc.record({ artifact: fc.record({ manifestSha256: text, bytes: count, meanCosine: number, accuracyDrop: number }) }),
);

const pod = (end: Partial<ObservedPod>): ObservedPod => ({
  name: 'faces-0-0',
  uid: 'p',
  attempt: 0,
  rank: 0,
  phase: 'Running',
  ready: true,
  deleting: false,
  disrupted: false,
  createdAt: '2026-01-01T00:00:00Z',
  ...end,
});

/** The status after a plan for a running job whose rank 0 reports this. */
function statusAfter(rankZero: ObservedPod, reported?: Progress): FaceTrainJobStatus {
  const observed = {
    identity: { name: 'faces', namespace: 'n', uid: UID, generation: 1 },
    spec,
    status: { attempt: 0, startTime: '2026-01-01T00:00:00Z', attemptStartTime: '2026-01-01T00:00:00Z' },
    pods: [rankZero],
    objects: [],
    podGroupApis: {},
    ...(reported && { progress: observedProgress(reported) }),
  };
  return planFaceTrainJob(observed, NOW, clusterEnvironment('image')).status;
}

test('the API server accepts the status of every report that the schemas accept', async () => {
  await plane.createNamespace('reports');
  await plane.client.create(faceTrainJobs, 'reports', document);
  const seen = { progress: 0, terminations: 0 };
  const write = (status: FaceTrainJobStatus) =>
    plane.client.patch(faceTrainJobs, 'reports', 'faces', { status }, 'status');
  await fc.assert(
    fc.asyncProperty(progress, async (content) => {
      const parsed = Progress.safeParse(JSON.parse(JSON.stringify(content)));
      if (!parsed.success) return;
      seen.progress++;
      await write(statusAfter(pod({}), parsed.data));
    }),
    { numRuns: 1_000 },
  );
  await fc.assert(
    fc.asyncProperty(termination, fc.constantFrom(0, 1, 2, 143), async (content, exitCode) => {
      const read = readTermination(JSON.stringify(content));
      if (Object.keys(read).length === 0) return;
      seen.terminations++;
      const phase = exitCode === 0 ? 'Succeeded' : 'Failed';
      await write(statusAfter(pod({ phase, ready: false, exitCode, finishedAt: '2026-01-01T00:09:00Z', ...read })));
    }),
    { numRuns: 1_000 },
  );
  // Some 120 and 600 are expected.
  assert(seen.progress >= 60 && seen.terminations >= 300, JSON.stringify(seen));
});
