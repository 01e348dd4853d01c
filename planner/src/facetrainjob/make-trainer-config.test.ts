import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MAX_FACETRAINJOB_NAME, TrainerConfig } from '@facetrain/api';
import { type FaceTrainJobBuilder, makeJob } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { type Attempt, childrenOf } from './gang-objects.ts';
import { trainerConfig, trainerStorage } from './make-trainer-config.ts';

function configOf(builder: FaceTrainJobBuilder): TrainerConfig {
  const { identity, spec } = builder.observe();
  return trainerConfig(identity, spec, 3, trainerStorage(spec, testEnvironment), testEnvironment);
}

const model = { backbone: 'iresnet50' };
const set = { name: 'lfw', uri: 'pvc://data/lfw.bin' };

describe('the config has every default that the spec leaves out', () => {
  const cases: Record<string, { spec: object; want: object }> = {
    'paths as pods see them': {
      spec: {},
      want: {
        dataset: { path: '/mnt/dataset', maxBadPictures: 0.001 },
        outputDirectory: '/mnt/output',
        checkpoint: { directory: '/mnt/checkpoints', shared: false },
        job: { name: 'faces', uid: 'uid-faces', attempt: 3 },
      },
    },
    'CosFace by default': { spec: {}, want: { loss: { margin: { type: 'cosface', m1: 1, m2: 0, m3: 0.4 } } } },
    ArcFace: {
      spec: { loss: { margin: { type: 'ArcFace' } } },
      want: { loss: { margin: { type: 'arcface', m1: 1, m2: 0.5, m3: 0 } } },
    },
    Combined: {
      spec: { loss: { margin: { type: 'Combined', m2: 0.3 } } },
      want: { loss: { margin: { type: 'combined', m1: 1, m2: 0.3, m3: 0 } } },
    },
    'sample rates in their order': {
      spec: {
        loss: {
          sampleRate: 0.1,
          sampleRateChanges: [
            { fromEpoch: 18, rate: 1 },
            { fromEpoch: 10.5, rate: 0.3 },
          ],
        },
      },
      want: {
        loss: {
          sampleRate: 0.1,
          sampleRateChanges: [
            { fromEpoch: 10.5, rate: 0.3 },
            { fromEpoch: 18, rate: 1 },
          ],
        },
      },
    },
    SphereFace: {
      spec: { loss: { margin: { type: 'SphereFace' } } },
      want: { loss: { margin: { type: 'sphereface', m1: 1.5, m2: 0, m3: 0 }, gradient: 'exact' } },
    },
    'AdaFace, straight through': {
      spec: { loss: { margin: { type: 'AdaFace', h: 0.5 }, gradient: 'StraightThrough' } },
      want: { loss: { margin: { type: 'adaface', m: 0.4, h: 0.5 }, gradient: 'straightThrough' } },
    },
    'class centres in FP32': { spec: {}, want: { loss: { rows: { precision: 'fp32' } } } },
    'class centres in BF16': {
      spec: { loss: { rows: { precision: 'BF16' } } },
      want: { loss: { rows: { precision: 'bf16' } } },
    },
    'class centres in host memory': {
      spec: { loss: { rows: { placement: 'Host' } } },
      want: { loss: { rows: { placement: 'host' } } },
    },
    'checkpoints and results in an object store': {
      spec: {
        output: {
          uri: 's3://models/faces/',
          s3: { endpoint: 'https://store:9000', forcePathStyle: true, secretRef: { name: 'keys' } },
        },
        checkpoint: { uri: 's3://states/faces' },
      },
      want: {
        outputDirectory: 's3://models/faces',
        outputStore: {
          uri: 's3://models/faces',
          endpoint: 'https://store:9000',
          region: null,
          forcePathStyle: true,
          credentials: '/mnt/output-credentials',
        },
        checkpoint: {
          directory: 's3://states/faces',
          shared: true,
          store: { uri: 's3://states/faces', endpoint: null, region: null, forcePathStyle: false, credentials: null },
        },
      },
    },
    'checkpoints below results in an object store': {
      spec: { output: { uri: 's3://models/faces', s3: { region: 'x', secretRef: { name: 'keys' } } } },
      want: {
        checkpoint: {
          directory: 's3://models/faces/checkpoints',
          shared: false,
          store: {
            uri: 's3://models/faces/checkpoints',
            endpoint: null,
            region: 'x',
            forcePathStyle: false,
            credentials: '/mnt/checkpoints-credentials',
          },
        },
      },
    },
    'the optimizer of class centres': {
      spec: { loss: { rows: { optimizer: 'AdaGrad', learningRate: 0.01 } }, optimizer: { rowUpdate: 'Dense' } },
      want: { loss: { rows: { optimizer: 'adagrad', learningRate: 0.01 } }, optimizer: { rowUpdate: 'dense' } },
    },
    'a backbone that Facetrain builds': {
      spec: { model },
      want: {
        model: {
          onnxPath: null,
          backbone: 'iresnet50',
          embeddingDim: 512,
          width: 2,
          blocks: null,
          numClasses: null,
          channelOrder: 'rgb',
          input: null,
        },
      },
    },
    'a backbone of the user’s own': {
      spec: {
        model: {
          onnx: { uri: 'pvc://m/b.onnx', output: 'feature' },
          channelOrder: 'BGR',
          input: { mean: [0], std: [1] },
        },
      },
      want: {
        model: { onnxPath: '/mnt/model', onnxOutput: 'feature', channelOrder: 'bgr', input: { mean: [0], std: [1] } },
      },
    },
    'null where the spec has 0 for off': {
      spec: {
        optimizer: { gradientClipNorm: 0 },
        checkpoint: { everyEpochs: 0, everySteps: 5 },
        evaluation: { everyEpochs: 0 },
      },
      want: {
        optimizer: { gradientClipNorm: null },
        checkpoint: { everyEpochs: null, everySteps: 5, everySeconds: null },
        evaluation: { everyEpochs: null },
      },
    },
    'verification sets': {
      spec: { evaluation: { sets: [set, { ...set, name: 'cfp', groups: { uri: 'pvc://d/groups.txt' } }] } },
      want: {
        evaluation: {
          sets: [
            { name: 'lfw', path: '/mnt/evaluation-0' },
            { name: 'cfp', path: '/mnt/evaluation-1', groups: '/mnt/evaluation-1-groups' },
          ],
        },
      },
    },
    'the gate of a quantization that is judged on them': {
      spec: {
        evaluation: { sets: [set] },
        quantize: {
          gate: { maxTarDrop: 0.02, maxGroupAccuracyDrop: 0.05, maxGroupTarDrop: 0.1, maxAccuracyDrop: 0.1 },
        },
      },
      want: { evaluation: { gate: { maxTarDrop: 0.02, maxGroupAccuracyDrop: 0.05, maxGroupTarDrop: 0.1 } } },
    },
    'no steps in memory by default': { spec: {}, want: { checkpoint: { memoryDirectory: null } } },
    'steps in memory': {
      spec: { checkpoint: { inMemory: true } },
      want: { checkpoint: { memoryDirectory: '/dev/shm/facetrain' } },
    },
    'checkpoints elsewhere': {
      spec: { checkpoint: { uri: 'file:///ckpt' } },
      want: { checkpoint: { directory: '/ckpt', shared: true } },
    },
    'the whole batch at once by default': {
      spec: {},
      want: { microBatchSize: null, model: { checkpointActivations: false, syncBatchNorm: false } },
    },
    'what takes less memory': {
      spec: {
        model: { backbone: 'iresnet18', checkpointActivations: true },
        globalBatchSize: 256,
        trainers: { replicas: 2, microBatchSize: 64 },
      },
      want: { microBatchSize: 64, model: { checkpointActivations: true } },
    },
    'batch norms over all trainers': {
      spec: { model: { backbone: 'iresnet18', syncBatchNorm: true } },
      want: { model: { syncBatchNorm: true } },
    },
    'schedule, device and precision': {
      spec: {
        schedule: { type: 'Constant' },
        trainers: { replicas: 2, device: 'CUDA', computeThreads: 3, precision: 'TF32', deterministic: false },
      },
      want: {
        schedule: { type: 'constant' },
        device: 'cuda',
        precision: 'tf32',
        deterministic: false,
        computeThreads: 3,
        progress: { host: '::', port: 8080 },
      },
    },
  };
  for (const [name, { spec, want }] of Object.entries(cases)) {
    test(name, () => {
      const config = configOf(makeJob().with(spec));
      TrainerConfig.parse(JSON.parse(JSON.stringify(config)));
      assert.partialDeepStrictEqual(config, want);
    });
  }
});

test('the config has no gate for sets of the quantization’s own, or of bounds that every pair is judged by', () => {
  const sets = [set];
  for (const quantize of [
    { gate: { maxTarDrop: 0.02 }, evaluation: { sets } },
    { gate: { maxAccuracyDrop: 0.1, minWorstCosine: 0.9 } },
  ])
    assert(!('gate' in configOf(makeJob().with({ evaluation: { sets }, quantize })).evaluation));
});

test('children of a job with the longest name and attempt number have valid host names', () => {
  const { identity, spec } = makeJob('a'.repeat(MAX_FACETRAINJOB_NAME))
    .replicas(4096)
    .with({ globalBatchSize: 4096 })
    .observe();
  const attempt: Attempt = {
    job: identity,
    spec,
    attempt: 2 ** 31 - 1,
    size: 4096,
    gang: { mode: 'grouped', reader: 'Native', apiVersion: 'v1' },
    environment: testEnvironment,
  };
  const children = childrenOf(attempt);
  assert.equal(children.length, 4 + 4096);
  for (const { name } of children) assert(name.length <= 63, name);
});

describe('the config has the bounds of the spec', () => {
  const cases: Record<string, { spec: object; beyond: (config: TrainerConfig) => object }> = {
    numClasses: {
      spec: { model: { backbone: 'iresnet50', numClasses: 1_000_000_000 } },
      beyond: ({ model }) => ({ model: { ...model, numClasses: 1_000_000_001 } }),
    },
    gradientClipNorm: {
      spec: { optimizer: { gradientClipNorm: 1_000_000 } },
      beyond: ({ optimizer }) => ({ optimizer: { ...optimizer, gradientClipNorm: 1_000_001 } }),
    },
    'gradientClipNorm 0, which is null here': {
      spec: { optimizer: { gradientClipNorm: 0 } },
      beyond: ({ optimizer }) => ({ optimizer: { ...optimizer, gradientClipNorm: 0 } }),
    },
    warmupEpochs: {
      spec: { schedule: { warmupEpochs: 1000 } },
      beyond: ({ schedule }) => ({ schedule: { ...schedule, warmupEpochs: 1001 } }),
    },
    epochs: { spec: { epochs: 100_000 }, beyond: () => ({ epochs: 100_001 }) },
    globalBatchSize: { spec: { globalBatchSize: 1_000_000 }, beyond: () => ({ globalBatchSize: 1_000_001 }) },
    'checkpoint.everyEpochs': {
      spec: { checkpoint: { everyEpochs: 1000 } },
      beyond: ({ checkpoint }) => ({ checkpoint: { ...checkpoint, everyEpochs: 1001 } }),
    },
    'checkpoint.keep': {
      spec: { checkpoint: { keep: 1000 } },
      beyond: ({ checkpoint }) => ({ checkpoint: { ...checkpoint, keep: 1001 } }),
    },
    'checkpoint.keepBest': {
      spec: { checkpoint: { keepBest: 1000 } },
      beyond: ({ checkpoint }) => ({ checkpoint: { ...checkpoint, keepBest: 1001 } }),
    },
    'evaluation.everyEpochs': {
      spec: { evaluation: { everyEpochs: 1000 } },
      beyond: ({ evaluation }) => ({ evaluation: { ...evaluation, everyEpochs: 1001 } }),
    },
  };
  for (const [name, { spec, beyond }] of Object.entries(cases))
    test(name, () => {
      const config = configOf(makeJob().with(spec));
      assert(TrainerConfig.safeParse(config).success);
      assert(!TrainerConfig.safeParse({ ...config, ...beyond(config) }).success);
    });
});
