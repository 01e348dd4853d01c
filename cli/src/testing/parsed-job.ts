/** For tests: a FaceTrainJob with its defaults, as a manifest gives it. */
import { FaceTrainJob, parseDocument } from '@facetrain/api';

/** @param spec fields in place of those that a manifest must have */
export function parsedJob(spec: object = {}, name = 'faces'): FaceTrainJob {
  const manifest = {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name },
    spec: {
      dataset: { uri: 'file:///data' },
      model: { backbone: 'iresnet18' },
      output: { uri: 'file:///results' },
      ...spec,
    },
  };
  return parseDocument(FaceTrainJob, manifest, 'job', 'InvalidManifest');
}
