import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from './errors.ts';
import { FaceTrainJob } from './facetrainjob.ts';
import { parseDocument } from './validate.ts';

const manifest = () => ({
  apiVersion: 'facetrain.dev/v1alpha1',
  kind: 'FaceTrainJob',
  metadata: { name: 'a' },
  spec: {
    dataset: { uri: 'file:///data' },
    model: { backbone: 'iresnet50' },
    output: { uri: 'file:///out' },
  } as Record<string, unknown>,
});

function refusal(change: Record<string, unknown>): FacetrainError {
  const document = manifest();
  Object.assign(document.spec, change);
  try {
    parseDocument(FaceTrainJob, document, 'job.yaml', 'InvalidManifest');
  } catch (error) {
    assert.ok(error instanceof FacetrainError);
    return error;
  }
  assert.fail('was accepted');
}

const cases: Record<
  string,
  { change: Record<string, unknown>; wantSubject: string; wantFound: string; wantAllowed: RegExp }
> = {
  'an unknown field is named, with the nearest one that exists': {
    change: { optimizer: { learnRate: 1 } },
    wantSubject: 'job.yaml: spec.optimizer.learnRate',
    wantFound: 'unknown field',
    wantAllowed: /^did you mean "learningRate"\? fields here are learningRate, momentum/,
  },
  'an unknown backbone': {
    change: { model: { backbone: 'vgg' } },
    wantSubject: 'job.yaml: spec.model.backbone',
    wantFound: '"vgg"',
    wantAllowed: /^must be one of iresnet18, .*mobilefacenet$/,
  },
  'a margin out of range': {
    change: { loss: { margin: { m3: 1.5 } } },
    wantSubject: 'job.yaml: spec.loss.margin.m3',
    wantFound: '1.5',
    wantAllowed: /^must be at most 1$/,
  },
  'an exclusive bound': {
    change: { loss: { scale: 0 } },
    wantSubject: 'job.yaml: spec.loss.scale',
    wantFound: '0',
    wantAllowed: /^must be more than 0$/,
  },
  'bytes as people write them': {
    change: { trainers: { resources: { limits: { memory: '4 gb' } } } },
    wantSubject: 'job.yaml: spec.trainers.resources.limits.memory',
    wantFound: '"4 gb"',
    wantAllowed: /^a quantity such as 2, .* 64Gi or 1e3; write 4Gi$/,
  },
  'what is no quantity at all': {
    change: { trainers: { resources: { limits: { memory: true } } } },
    wantSubject: 'job.yaml: spec.trainers.resources.limits.memory',
    wantFound: 'true',
    wantAllowed: /^a quantity such as 2, .* 64Gi or 1e3$/,
  },
  'a missing object': {
    change: { dataset: undefined },
    wantSubject: 'job.yaml: spec.dataset',
    wantFound: 'missing',
    wantAllowed: /^must be an object$/,
  },
  'a fraction for a whole number': {
    change: { epochs: 1.5 },
    wantSubject: 'job.yaml: spec.epochs',
    wantFound: '1.5',
    wantAllowed: /^must be a whole number$/,
  },
  'a rule over several fields': {
    change: { globalBatchSize: 1, trainers: { replicas: 2 } },
    wantSubject: 'job.yaml: spec.globalBatchSize',
    wantFound: '1',
    wantAllowed: /trainers.replicas · ranksPerPod or more/,
  },
  'an element of a list': {
    change: { evaluation: { sets: [{ name: 'a', uri: 'ftp://x' }] } },
    wantSubject: 'job.yaml: spec.evaluation.sets[0].uri',
    wantFound: '"ftp://x"',
    wantAllowed: /file:\/\/PATH/,
  },
};
for (const [name, { change, wantSubject, wantFound, wantAllowed }] of Object.entries(cases)) {
  test(name, () => {
    const error = refusal(change);
    assert.deepEqual(
      { code: error.code, exitCode: error.exitCode, subject: error.subject, found: error.found },
      { code: 'InvalidManifest', exitCode: 2, subject: wantSubject, found: wantFound },
    );
    assert.match(error.allowed, wantAllowed);
  });
}

test('several problems are all listed', () => {
  const error = refusal({ epochs: 0, seed: -1, typo: 1 });
  assert.equal(error.subject, 'job.yaml');
  assert.equal(error.found, '3 fields are wrong');
  for (const path of [
    'spec.epochs: 0; must be at least 1',
    'spec.seed: -1; must be at least 0',
    'spec.typo: unknown field',
  ])
    assert.ok(error.allowed.includes(`\n  ${path}`), error.allowed);
});

test('a valid document is returned with its defaults', () => {
  const job = parseDocument(FaceTrainJob, manifest(), 'job.yaml', 'InvalidManifest');
  assert.equal(job.spec.loss.margin.type, 'CosFace');
  assert.equal(job.spec.trainers.replicas, 1);
});
