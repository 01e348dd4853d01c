/** Makes `config.json` of the quantizer: the spec with all defaults resolved, and with paths as the pod sees them. */
import {
  DEFAULT_PROGRESS_PORT,
  parseStorageUri,
  QuantizeConfig,
  type QuantizeJobSpec,
  type StorageAddress,
  storageAddress,
} from '@facetrain/api';
import type { Environment, MountedStorage } from '../environment.ts';
import type { JobIdentity } from '../observed.ts';
import { mountWithCredentials } from '../pod-storage.ts';

export interface QuantizerStorage {
  model: MountedStorage;
  dataset: MountedStorage;
  evaluations: MountedStorage[];
  output: MountedStorage;
}

/** Where the quantizer finds its data. The names of volumes are part of the API: pod templates must not use them. */
export function quantizerStorage(spec: QuantizeJobSpec, environment: Environment): QuantizerStorage {
  return {
    model: mountWithCredentials(environment, 'model', spec.model, 'read'),
    dataset: mountWithCredentials(environment, 'dataset', spec.calibration.dataset, 'read'),
    evaluations: spec.evaluation.sets.map((set, index) =>
      mountWithCredentials(environment, `evaluation-${index}`, set, 'read'),
    ),
    output: mountWithCredentials(environment, 'output', spec.output, 'write'),
  };
}

export const allStorage = ({ model, dataset, evaluations, output }: QuantizerStorage): MountedStorage[] => [
  model,
  dataset,
  ...evaluations,
  output,
];

/** @throws ZodError if a valid spec makes an invalid config, which is a defect of ours */
export function quantizeConfig(
  job: JobIdentity,
  spec: QuantizeJobSpec,
  attempt: number,
  storage: QuantizerStorage,
  environment: Environment,
): QuantizeConfig {
  return QuantizeConfig.parse({
    schemaVersion: 1,
    job: { name: job.name, uid: job.uid, attempt },
    model: { path: storage.model.path, channelOrder: spec.model.channelOrder.toLowerCase() },
    calibration: { datasetPath: storage.dataset.path, images: spec.calibration.images, seed: spec.calibration.seed },
    search: spec.search,
    evaluation: {
      sets: spec.evaluation.sets.map(({ name }, index) => ({ name, path: storage.evaluations[index]!.path })),
    },
    gate: { maxAccuracyDrop: spec.gate.maxAccuracyDrop ?? null, minMeanCosine: spec.gate.minMeanCosine ?? null },
    publish: publishTo(spec.output),
    outputDirectory: storage.output.path,
    computeThreads: spec.quantizer.computeThreads ?? null,
    progress: environment.progress(DEFAULT_PROGRESS_PORT),
  });
}

/**
 * The object store to which the quantizer publishes; null if the output is a folder, which the quantizer writes
 * directly.
 */
function publishTo(output: QuantizeJobSpec['output']): StorageAddress | null {
  return parseStorageUri(output.uri).scheme === 's3' ? storageAddress(output) : null;
}
