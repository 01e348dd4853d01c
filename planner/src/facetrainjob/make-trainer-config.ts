/** Makes `config.json` of the trainers: the spec with all defaults resolved, and with paths as the pods see them. */
import {
  DEFAULT_EMBEDDING_DIM,
  DEFAULT_MARGINS,
  DEFAULT_MAX_BAD_PICTURES,
  DEFAULT_MOBILEFACENET_WIDTH,
  type FaceTrainJobSpec,
  TrainerConfig,
} from '@facetrain/api';
import type { Environment, MountedStorage } from '../environment.ts';
import type { JobIdentity } from '../observed.ts';
import {
  type MountedSet,
  mountSets,
  mountWithCredentials,
  setsOfConfig,
  storageOfSets,
  type WrittenStorage,
  writtenStorage,
} from '../pod-storage.ts';
import { checkpointsPlace } from '../written-places.ts';
import { rendezvousTimeoutOf } from './elastic.ts';

export interface TrainerStorage {
  dataset: MountedStorage;
  onnx: MountedStorage | null;
  evaluations: MountedSet[];
  checkpoints: WrittenStorage;
  output: WrittenStorage;
}

/** Where the trainers find their data. The names of volumes are part of the API: pod templates must not use them. */
export function trainerStorage(spec: FaceTrainJobSpec, environment: Environment): TrainerStorage {
  return {
    dataset: mountWithCredentials(environment, 'dataset', spec.dataset, 'read'),
    onnx: spec.model.onnx ? mountWithCredentials(environment, 'model', spec.model.onnx, 'read') : null,
    evaluations: mountSets(environment, spec.evaluation.sets),
    checkpoints: writtenStorage(environment, 'checkpoints', checkpointsPlace(spec)),
    output: writtenStorage(environment, 'output', spec.output),
  };
}

export const allStorage = ({ dataset, onnx, evaluations, checkpoints, output }: TrainerStorage): MountedStorage[] => [
  dataset,
  ...(onnx ? [onnx] : []),
  ...storageOfSets(evaluations),
  checkpoints,
  output,
];

/** @throws ZodError if a valid spec makes an invalid config, which is a defect of ours */
export function trainerConfig(
  job: JobIdentity,
  spec: FaceTrainJobSpec,
  attempt: number,
  storage: TrainerStorage,
  environment: Environment,
): TrainerConfig {
  const { model, optimizer, schedule, checkpoint, evaluation, trainers } = spec;
  return TrainerConfig.parse({
    schemaVersion: 1,
    job: { name: job.name, uid: job.uid, attempt },
    dataset: {
      path: storage.dataset.path,
      maxBadPictures: spec.dataset.maxBadPictures ?? DEFAULT_MAX_BAD_PICTURES,
    },
    model: {
      onnxPath: storage.onnx?.path ?? null,
      ...(model.onnx?.output !== undefined && { onnxOutput: model.onnx.output }),
      // With an ONNX file the trainer ignores these three: the graph decides.
      backbone: model.backbone ?? 'iresnet50',
      embeddingDim: model.embeddingDim ?? DEFAULT_EMBEDDING_DIM,
      width: model.width ?? DEFAULT_MOBILEFACENET_WIDTH,
      blocks: model.blocks ?? null,
      numClasses: model.numClasses ?? null,
      channelOrder: model.channelOrder.toLowerCase(),
      input: model.input ?? null,
      checkpointActivations: model.checkpointActivations,
      syncBatchNorm: model.syncBatchNorm,
    },
    loss: {
      margin: marginOf(spec.loss.margin),
      gradient: spec.loss.gradient === 'Exact' ? 'exact' : 'straightThrough',
      scale: spec.loss.scale,
      sampleRate: spec.loss.sampleRate,
      sampleRateChanges: spec.loss.sampleRateChanges.toSorted((a, b) => a.fromEpoch - b.fromEpoch),
      interclassFilter: spec.loss.interclassFilter ?? null,
      rows: {
        precision: spec.loss.rows.precision.toLowerCase(),
        optimizer: spec.loss.rows.optimizer.toLowerCase(),
        placement: spec.loss.rows.placement.toLowerCase(),
        learningRate: spec.loss.rows.learningRate ?? null,
      },
    },
    optimizer: {
      learningRate: optimizer.learningRate,
      momentum: optimizer.momentum,
      weightDecay: optimizer.weightDecay,
      gradientClipNorm: nullIfZero(optimizer.gradientClipNorm),
      rowUpdate: optimizer.rowUpdate.toLowerCase(),
    },
    schedule: { type: schedule.type.toLowerCase(), power: schedule.power, warmupEpochs: schedule.warmupEpochs },
    globalBatchSize: spec.globalBatchSize,
    microBatchSize: trainers.microBatchSize ?? null,
    epochs: spec.epochs,
    seed: spec.seed,
    augment: spec.augmentation,
    loaderThreads: trainers.loaderThreads,
    computeThreads: trainers.computeThreads ?? null,
    device: trainers.device.toLowerCase(),
    precision: trainers.precision.toLowerCase(),
    deterministic: trainers.deterministic,
    rendezvousTimeoutSeconds: rendezvousTimeoutOf(trainers),
    collectiveTimeoutSeconds: trainers.collectiveTimeoutSeconds,
    checkpoint: {
      directory: storage.checkpoints.path,
      store: storage.checkpoints.store,
      // In the job's own output, a checkpoint of another job means that both were given the same output by mistake.
      shared: checkpoint.uri !== undefined,
      everyEpochs: nullIfZero(checkpoint.everyEpochs),
      everySteps: checkpoint.everySteps ?? null,
      everySeconds: checkpoint.everySeconds ?? null,
      keep: checkpoint.keep,
      memoryDirectory: checkpoint.inMemory ? environment.memoryDirectory : null,
      keepBest: checkpoint.keepBest,
    },
    evaluation: {
      sets: setsOfConfig(evaluation.sets, storage.evaluations),
      everyEpochs: nullIfZero(evaluation.everyEpochs),
      everySteps: evaluation.everySteps ?? null,
      ...gateOnSets(spec),
    },
    outputDirectory: storage.output.path,
    outputStore: storage.output.store,
    progress: environment.progress(trainers.progressPort),
  });
}

/** The schema refuses a parameter that the type does not use, so such a parameter always has its default here. */
function marginOf({ type, m1, m2, m3, m, h }: FaceTrainJobSpec['loss']['margin']): TrainerConfig['loss']['margin'] {
  const defaults = DEFAULT_MARGINS[type];
  return {
    type: type.toLowerCase() as Lowercase<typeof type>,
    m1: m1 ?? defaults.m1,
    m2: m2 ?? defaults.m2,
    m3: m3 ?? defaults.m3,
    m: m ?? defaults.m,
    h: h ?? defaults.h,
  };
}

/** "Off" is 0 in the spec and null in the config. */
const nullIfZero = (value: number): number | null => (value === 0 ? null : value);

/** Images of before know no gate, so none is named where there is nothing to judge. */
function gateOnSets({ quantize }: FaceTrainJobSpec): Pick<TrainerConfig['evaluation'], 'gate'> {
  if (!quantize || quantize.evaluation) return {};
  const { maxTarDrop, maxGroupAccuracyDrop, maxGroupTarDrop } = quantize.gate;
  const gate = {
    ...(maxTarDrop !== undefined && { maxTarDrop }),
    ...(maxGroupAccuracyDrop !== undefined && { maxGroupAccuracyDrop }),
    ...(maxGroupTarDrop !== undefined && { maxGroupTarDrop }),
  };
  return Object.keys(gate).length > 0 ? { gate } : {};
}
