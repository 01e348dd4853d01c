/** Installs Facetrain, trains a model, and hands on where its INT7 model is. */
import { FaceTrainJob, Facetrain } from '@facetrain/pulumi';
import { core } from '@pulumi/kubernetes';
import { Config } from '@pulumi/pulumi';

const registry = new Config().get('registry') ?? '';
const facetrain = new Facetrain('facetrain', { values: { image: { registry }, trainerImage: { registry } } });

const team = new core.v1.Namespace('faces', { metadata: { name: 'faces' } });
const job = new FaceTrainJob(
  'webface',
  {
    metadata: { name: 'webface', namespace: team.metadata.name },
    spec: {
      dataset: { uri: 'pvc://data/webface' },
      model: { backbone: 'iresnet50' },
      loss: { sampleRate: 0.1 },
      globalBatchSize: 512,
      trainers: { replicas: 4, resources: { limits: { 'nvidia.com/gpu': 1 } } },
      output: { uri: 'pvc://data/models/webface' },
      quantize: {
        gate: { maxAccuracyDrop: 0.01 },
        output: { uri: 's3://models/webface', s3: { secretRef: { name: 'models' } } },
      },
    },
    waitFor: 'End',
  },
  { dependsOn: facetrain, customTimeouts: { create: '72h', update: '72h' } },
);

export const phase = job.phase;
export const model = job.artifact.apply((artifact) => artifact?.uri);
