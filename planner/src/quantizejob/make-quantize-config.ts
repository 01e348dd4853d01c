/** Makes `config.json` of the quantizer: the spec with all defaults resolved, and with paths as the pod sees them. */
import {
  DEFAULT_MAX_BAD_PICTURES,
  DEFAULT_PROGRESS_PORT,
  type Destination,
  parseQuantity,
  parseStorageUri,
  QuantizeConfig,
  type QuantizeJobSpec,
  storageAddress,
} from '@facetrain/api';
import type { Environment } from '../environment.ts';
import type { JobIdentity } from '../observed.ts';
import { setsOfConfig } from '../pod-storage.ts';
import type { QuantizerStorage } from '../quantizer-storage.ts';

/** @throws ZodError if a valid spec makes an invalid config, which is a defect of ours */
export function quantizeConfig(
  job: JobIdentity,
  spec: QuantizeJobSpec,
  attempt: number,
  storage: QuantizerStorage,
  environment: Environment,
): QuantizeConfig {
  const { memory, comparePaper, ...search } = spec.search;
  return QuantizeConfig.parse({
    schemaVersion: 1,
    job: { name: job.name, uid: job.uid, attempt },
    model: {
      path: storage.model.path,
      ...(spec.model.output !== undefined && { output: spec.model.output }),
      ...(spec.model.inputSize && { inputSize: spec.model.inputSize }),
      channelOrder: spec.model.channelOrder.toLowerCase(),
      input: spec.model.input ?? null,
    },
    calibration: {
      datasetPath: storage.dataset.path,
      images: spec.calibration.images,
      seed: spec.calibration.seed,
      maxBadPictures: spec.calibration.dataset.maxBadPictures ?? DEFAULT_MAX_BAD_PICTURES,
      ...(spec.calibration.resize && { resize: true }),
    },
    search,
    // Images of before refuse the field, so it is there only when it is asked for.
    ...(comparePaper && { comparePaper }),
    ...(memory !== undefined && { searchMemoryBytes: parseQuantity(memory) }),
    evaluation: { sets: setsOfConfig(spec.evaluation.sets, storage.evaluations) },
    gate: {
      ...spec.gate,
      maxAccuracyDrop: spec.gate.maxAccuracyDrop ?? null,
      minMeanCosine: spec.gate.minMeanCosine ?? null,
    },
    publish: publishTo(spec.output, storage),
    outputDirectory: storage.output.path,
    computeThreads: spec.quantizer.computeThreads ?? null,
    progress: environment.progress(DEFAULT_PROGRESS_PORT),
  });
}

/**
 * The object store to which the quantizer publishes; null if the output is a folder, which the quantizer writes
 * directly.
 */
function publishTo(output: QuantizeJobSpec['output'], { credentials }: QuantizerStorage): Destination | null {
  if (parseStorageUri(output.uri).scheme !== 's3') return null;
  return { ...storageAddress(output), ...(credentials && { credentials: credentials.path }) };
}
