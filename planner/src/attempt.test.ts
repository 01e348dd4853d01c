import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FaceTrainJobSpec, QuantizeJobSpec } from '@facetrain/api';
import { differ, fieldsDigest } from './attempt.ts';
import { trainingDigest } from './facetrainjob/gang-objects.ts';
import { quantizationDigest } from './quantizejob/quantizer-objects.ts';

const digest = (spec: object) => fieldsDigest(spec, ['loss', 'epochs', 'trainers.replicas']);

test('a digest tells specs apart by the given fields alone', () => {
  const spec = { loss: { margin: { m3: 0.2 } }, trainers: { replicas: 2, image: 'a' }, seed: 1 };
  const same = digest(spec);
  assert.equal(digest({ ...spec, seed: 2, trainers: { replicas: 2, image: 'b' } }), same);
  const others = [{ ...spec, epochs: 5 }, { ...spec, loss: {} }, { ...spec, trainers: {} }, {}];
  for (const other of others) assert.notEqual(digest(other), same, JSON.stringify(other));
  assert(differ(digest(others[0]!), same));
  assert(!differ(same, same));
});

test('a digest of a former version tells nothing', () => {
  assert(!differ('0123456789abcdef', digest({})));
});

describe('the digest of a stored spec stays as it was, in every field of which the value is stored', () => {
  const s3 = { endpoint: 'http://store:9000', forcePathStyle: false };
  const trained = {
    dataset: { uri: 's3://faces/a', s3 },
    model: { backbone: 'iresnet50', channelOrder: 'RGB' },
    output: { uri: 'pvc://results/a' },
    loss: { margin: { type: 'CosFace' }, scale: 64, sampleRate: 1 },
    optimizer: { learningRate: 0.1, momentum: 0.9, weightDecay: 0.0005, gradientClipNorm: 5, rowUpdate: 'Lazy' },
    schedule: { type: 'Polynomial', power: 2, warmupEpochs: 0 },
    epochs: 20,
    globalBatchSize: 1024,
    seed: 0,
    augmentation: { flip: true, shift: 0 },
    trainers: { replicas: 1, progressPort: 8080, rendezvousPort: 29500 },
  };
  const quantized = {
    model: { uri: 's3://models/a.onnx', s3, channelOrder: 'RGB' },
    calibration: { dataset: { uri: 'pvc://faces/a' }, images: 50, seed: 0 },
    search: { rounds: 2, candidates: 100, lower: 0.5, upper: 2, equalize: true, biasCorrection: true, strict: false },
    output: { uri: 's3://models/int7', s3 },
  };
  // Where one of these changes, DIGEST_FORMAT has to change, too.
  const cases: Record<string, { digest: string; want: string }> = {
    'what is trained': { digest: trainingDigest(FaceTrainJobSpec.parse(trained)), want: '4-aedf978d08a1163e' },
    'what is quantized': { digest: quantizationDigest(QuantizeJobSpec.parse(quantized)), want: '4-0f61404d796fa69e' },
  };
  for (const [name, { digest: made, want }] of Object.entries(cases)) test(name, () => assert.equal(made, want));
});
