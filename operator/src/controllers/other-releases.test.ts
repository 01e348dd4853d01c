/**
 * An operator with the images of another release. `api/src/testing/release-0.1.json` has what operator and programs of
 * release 0.1 exchange: it changes only until that is released, and each later release adds a file for what it adds.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { API_VERSION, FaceTrainJob, Progress, QuantizeConfig, QuantizeJob, TrainerConfig } from '@facetrain/api';
import { planFaceTrainJob } from '@facetrain/planner/facetrainjob/plan-facetrainjob';
import type { ChildObject, ConfigMap, Pod } from '@facetrain/planner/objects';
import { observedProgress } from '@facetrain/planner/observed-progress';
import type { Action } from '@facetrain/planner/plan';
import { planQuantizeJob } from '@facetrain/planner/quantizejob/plan-quantizejob';
import { readTermination } from '@facetrain/planner/read-termination';
import { root } from '../../../hack/lib/paths.mjs';
import { clusterEnvironment } from './cluster-environment.ts';

const { training, quantization } = JSON.parse(
  readFileSync(join(root, 'api', 'src', 'testing', 'release-0.1.json'), 'utf8'),
);

const manifest = (kind: string, name: string, spec: object) => ({
  apiVersion: API_VERSION,
  kind,
  metadata: { name },
  spec,
});
const observed = (name: string) => ({
  identity: { name, namespace: 'default', uid: `uid-${name}`, generation: 1 },
  status: {},
  pods: [],
  objects: [],
});
const environment = clusterEnvironment('registry.example/trainer:next');
const now = new Date('2026-01-01T00:00:00Z');

/** What the programs of a job get. */
function written(actions: Action[]) {
  const made = actions.flatMap((action): ChildObject[] => (action.type === 'create' ? [action.object] : []));
  const [config] = made.filter(({ kind }) => kind === 'ConfigMap') as ConfigMap[];
  const pods = made.filter(({ kind }) => kind === 'Pod') as Pod[];
  return {
    config: JSON.parse(config!.data['config.json']!),
    pods: pods.map(({ spec }) => {
      const { args, env } = spec.containers[0]!;
      const values = env.map((each) => [each.name, 'value' in each ? each.value : undefined]);
      return { fetch: (spec.initContainers ?? []).map((init) => init.args), args, env: Object.fromEntries(values) };
    }),
  };
}

test('from the manifests of release 0.1, the operator makes what the images of release 0.1 read', () => {
  // An operator knows the image of its own release; that of a job is of another.
  const image = 'registry.example/trainer:0.1';
  const trainers = { ...training.spec.trainers, image };
  const { spec } = FaceTrainJob.parse(manifest('FaceTrainJob', 'faces', { ...training.spec, trainers }));
  const trains = planFaceTrainJob({ ...observed('faces'), spec, podGroupApis: {} }, now, environment);
  assert.deepEqual(written(trains.actions), { config: training.config, pods: training.pods });
  const small = QuantizeJob.parse(manifest('QuantizeJob', 'small', { ...quantization.spec, quantizer: { image } }));
  const quantizes = planQuantizeJob({ ...observed('small'), spec: small.spec }, now, environment);
  assert.deepEqual(written(quantizes.actions), { config: quantization.config, pods: quantization.pods });
});

test('the images of this release read what the operator of release 0.1 wrote', () => {
  TrainerConfig.parse(training.config);
  QuantizeConfig.parse(quantization.config);
});

test('the operator reads what images of release 0.1 report', () => {
  const { progress, failure, result } = training;
  assert.partialDeepStrictEqual(observedProgress(Progress.parse(progress)), {
    step: progress.step,
    activity: progress.activity,
    checkpoint: progress.checkpoint,
    evaluations: progress.evaluations,
  });
  assert.deepEqual(readTermination(JSON.stringify(failure)), { termination: failure });
  assert.equal(readTermination(JSON.stringify(result)).result?.progress?.step, result.progress.step);
  assert.partialDeepStrictEqual(readTermination(JSON.stringify(quantization.result)).result, quantization.result);
});

test('of what a later image reports, the operator reads what it knows', () => {
  const { progress } = training;
  const later = {
    ...progress,
    stage: 'Distilling',
    teacher: { loss: 1 },
    checkpoint: { ...progress.checkpoint, x: 1 },
  };
  assert.deepEqual(observedProgress(Progress.parse(later)), observedProgress(Progress.parse(progress)));
  assert.deepEqual(readTermination(JSON.stringify({ code: 'TeacherLost', message: 'gone', more: {} })), {
    termination: { code: 'TeacherLost', message: 'gone' },
  });
  assert.match(Progress.safeParse({ ...progress, schemaVersion: 2 }).error!.message, /schemaVersion/);
});
