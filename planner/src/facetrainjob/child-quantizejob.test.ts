import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type FaceTrainJobStatus, QuantizeJob, type QuantizeJobStatus } from '@facetrain/api';
import type { ObservedFaceTrainJob, ObservedObject, ObservedPod } from '../observed.ts';
import { after, at, type FaceTrainJobBuilder, makeJob, makePod } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { planFaceTrainJob } from './plan-facetrainjob.ts';

const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
const DONE = [makePod(0).succeeded().build(), makePod(1).succeeded().build()];
const CHILD: ObservedObject = { kind: 'QuantizeJob', name: 'faces-quantize', uid: 'q', owned: true };

const plan = (
  job: FaceTrainJobBuilder,
  observation: Partial<ObservedFaceTrainJob> = {},
  status = STARTED,
  seconds = 100,
) => planFaceTrainJob(job.observe(status, DONE, observation), after(seconds), testEnvironment);
const conditionOf = (status: FaceTrainJobStatus) =>
  status.conditions!.find(({ type }) => type === 'QuantizationSucceeded');
const child = (status: QuantizeJobStatus, suspend = false): Partial<ObservedFaceTrainJob> => ({
  objects: [CHILD],
  quantizeJob: { spec: { suspend }, status },
});

function made(job: FaceTrainJobBuilder): QuantizeJob {
  const [action, ...rest] = plan(job).actions;
  assert.deepEqual(rest, []);
  assert(action?.type === 'create' && action.object.kind === 'QuantizeJob');
  return QuantizeJob.parse(JSON.parse(JSON.stringify(action.object)));
}

test('a trained job creates a valid QuantizeJob with its own model, dataset and sets', () => {
  const set = { name: 'lfw', uri: 'pvc://data/lfw.bin' };
  const { metadata, spec } = made(
    makeJob()
      .with({ evaluation: { sets: [set] }, model: { backbone: 'iresnet18', channelOrder: 'BGR' } })
      .quantized({ gate: { minMeanCosine: 0.98 }, calibration: { images: 10 } }),
  );
  assert.equal(metadata.name, 'faces-quantize');
  assert.partialDeepStrictEqual(spec, {
    model: { uri: 'pvc://data/out/model/backbone.onnx', channelOrder: 'BGR' },
    calibration: { dataset: { uri: 'pvc://data/faces' }, images: 10, seed: 0 },
    evaluation: { sets: [set] },
    output: { uri: 'pvc://data/out/int7' },
    gate: { minMeanCosine: 0.98 },
    search: { rounds: 2 },
  });
});

test('the QuantizeJob of a training in an object store reads and writes there, with its credentials', () => {
  const s3 = { endpoint: 'https://store:9000', forcePathStyle: true, secretRef: { name: 'keys' } };
  const { spec } = made(
    makeJob()
      .with({ output: { uri: 's3://models/faces', s3 } })
      .quantized({}),
  );
  assert.deepEqual(
    [spec.model.uri, spec.model.s3, spec.output],
    ['s3://models/faces/model/backbone.onnx', s3, { uri: 's3://models/faces/int7', s3 }],
  );
});

test('fields of the template take precedence', () => {
  const { spec } = made(
    makeJob().quantized({
      calibration: { dataset: { uri: 'pvc://other' } },
      evaluation: { sets: [] },
      output: { uri: 's3://models/x', s3: { secretRef: { name: 'aws' } } },
    }),
  );
  assert.partialDeepStrictEqual(spec, {
    calibration: { dataset: { uri: 'pvc://other' } },
    output: { uri: 's3://models/x', s3: { secretRef: { name: 'aws' } } },
  });
  assert.deepEqual(spec.evaluation.sets, []);
});

describe('the outcome of the QuantizeJob is that of its parent', () => {
  const artifact = { uri: 'pvc://data/out/int7', bytes: 1 };
  const ended = (type: string): QuantizeJobStatus => ({
    conditions: [{ type, status: 'True', reason: 'GateFailed', message: 'cosine 0.9', lastTransitionTime: at(0) }],
  });
  const cases: Record<string, { child: QuantizeJobStatus; want: object; wantCondition: [string, string] }> = {
    'not begun': {
      child: {},
      want: { phase: 'Quantizing', trainingCompletionTime: at(100) },
      wantCondition: ['Unknown', 'Quantizing'],
    },
    running: { child: { phase: 'Running' }, want: { phase: 'Quantizing' }, wantCondition: ['Unknown', 'Quantizing'] },
    succeeded: {
      child: { phase: 'Succeeded', artifact },
      want: { phase: 'Succeeded', artifact, completionTime: at(100) },
      wantCondition: ['True', 'Succeeded'],
    },
    failed: {
      child: { phase: 'Failed', ...ended('Failed') },
      want: { phase: 'Failed', trainingCompletionTime: at(100) },
      wantCondition: ['False', 'QuantizationFailed'],
    },
  };
  for (const [name, { child: status, want, wantCondition }] of Object.entries(cases)) {
    test(name, () => {
      const result = plan(makeJob().quantized(), child(status));
      assert.deepEqual(result.actions, []);
      assert.partialDeepStrictEqual(result.status, want);
      const condition = conditionOf(result.status)!;
      assert.deepEqual([condition.status, condition.reason], wantCondition);
      if (name === 'failed') assert.equal(condition.message, 'QuantizeJob faces-quantize: GateFailed: cosine 0.9');
    });
  }
});

test('while a quota on ConfigMaps refuses the quantizer, the trainers’ pods give way, and then their ConfigMap', () => {
  const config: ObservedObject = { kind: 'ConfigMap', name: 'faces-0', uid: 'c', owned: true };
  const trained = plan(makeJob().quantized(), child({})).status;
  const deletions = (pods: ObservedPod[], requested?: string) => {
    const message = `ResourceQuota few refuses ConfigMap q: requested: ${requested}=1, used: ${requested}=2`;
    const observation = child(requested === undefined ? {} : { refusal: { quota: 'few', message, releases: 0 } });
    const job = makeJob()
      .quantized()
      .observe(trained, pods, { ...observation, objects: [CHILD, config] });
    return planFaceTrainJob(job, after(200), testEnvironment).actions.flatMap((action) =>
      action.type === 'delete' ? [`${action.kind} ${action.name}`] : [],
    );
  };
  assert.deepEqual(deletions(DONE, 'configmaps'), ['Pod faces-0-0', 'Pod faces-0-1']);
  assert.deepEqual(deletions([], 'configmaps'), ['ConfigMap faces-0']);
  assert.deepEqual([deletions(DONE), deletions([]), deletions([], 'pods')], [[], [], []]);
});

test('a QuantizeJob of another owner is not adopted', () => {
  const { status, actions } = plan(makeJob().quantized(), { objects: [{ ...CHILD, owned: false }] });
  assert.deepEqual(actions, []);
  assert.equal(status.conditions!.find(({ type }) => type === 'Stalled')!.reason, 'NameTaken');
  assert.equal(status.trainingCompletionTime, at(100));
});

test('the end of training is kept in the status of a job that is suspended before its quantization', () => {
  const job = makeJob().quantized().suspended();
  const { status, actions } = plan(job);
  assert.deepEqual(actions, []);
  assert.partialDeepStrictEqual(status, { phase: 'Suspended', trainingCompletionTime: at(100) });
  const resumed = planFaceTrainJob(makeJob().quantized().atGeneration(2).observe(status), after(200), testEnvironment);
  assert.deepEqual(
    resumed.actions.map((action) => action.type === 'create' && action.object.kind),
    ['QuantizeJob'],
  );
});

test('the QuantizeJob is suspended and resumed with its parent', () => {
  const suspending = plan(makeJob().quantized().suspended(), child({ phase: 'Running' }));
  assert.deepEqual(suspending.actions, [
    { type: 'patch', kind: 'QuantizeJob', name: 'faces-quantize', uid: 'q', spec: { suspend: true } },
  ]);
  const suspended = plan(makeJob().quantized().suspended(), child({ phase: 'Suspended' }, true));
  assert.deepEqual([suspended.actions, suspended.status.phase], [[], 'Suspended']);
  const resuming = plan(makeJob().quantized(), child({ phase: 'Suspended' }, true));
  assert.deepEqual(resuming.actions, [
    { type: 'patch', kind: 'QuantizeJob', name: 'faces-quantize', uid: 'q', spec: { suspend: false } },
  ]);
});

test('after the success of rank 0 the other trainers are stopped, whatever suspend and cleanPodPolicy are', () => {
  const pods = [makePod(0).succeeded().build(), makePod(1).running().build()];
  const status = { ...STARTED, trainingCompletionTime: at(90) };
  const job = makeJob().with({ successPolicy: 'RankZero', cleanPodPolicy: 'None' }).quantized();
  for (const [suspend, observation] of [
    [false, child({ phase: 'Running' })],
    [true, child({ phase: 'Suspended' }, true)],
  ] as const) {
    const { actions } = planFaceTrainJob(
      job.suspended(suspend).observe(status, pods, observation),
      after(100),
      testEnvironment,
    );
    assert.deepEqual(
      actions.map((action) => action.type === 'delete' && action.name),
      ['faces-0-1'],
    );
  }
});
