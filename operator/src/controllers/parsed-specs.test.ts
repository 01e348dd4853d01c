import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FaceTrainJob, parseDocument } from '@facetrain/api';
import { ParsedSpecs } from './parsed-specs.ts';
import type { JobObject } from './resources.ts';

test('a job that was read goes on where a newer CustomResourceDefinition gives it an unknown default', () => {
  const specs = new ParsedSpecs('FaceTrainJob', (document, name) =>
    parseDocument(FaceTrainJob, document, name, 'InvalidManifest'),
  );
  const spec = { dataset: { uri: 'pvc://data/a' }, model: { backbone: 'iresnet50' }, output: { uri: 'pvc://out/a' } };
  const job = (generation: number, trainers: object): JobObject => ({
    metadata: { name: 'a', namespace: 'n', uid: 'u', generation, resourceVersion: '1', creationTimestamp: '' },
    spec: { ...spec, trainers },
  });
  const parsed = specs.get(job(1, { replicas: 2 }));
  const newer = { replicas: 2, spares: 0 };
  // The API server fills in defaults when it reads, without another generation.
  assert.equal(specs.get(job(1, newer)), parsed);
  assert.throws(() => specs.get(job(2, newer)), /a: spec\.trainers\.spares: unknown field/);
  assert.equal(specs.get(job(1, newer)), parsed);
});
