/** `facetrain plan`: memory, time and advice of a training, from its configuration. Pure. */
import { FacetrainError, largestSampleRate, type Precision, sampleRateSteps, type TrainerConfig } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { adviceFor } from './advice.ts';
import { backboneCost } from './backbone-cost.ts';
import { type Advice, fittingChanges, lacking, needsOf, type PlannedJob, placed, type Room } from './fitting.ts';
import { type Machines, type StepTime, stepTime } from './step-time.ts';
import {
  type CopyPlace,
  checkpointBytes,
  copyPlace,
  keptBytesOfStep,
  type TrainingFacts,
  type TrainingMemory,
  trainingMemory,
  usableBytes,
} from './training-memory.ts';

export interface TrainingPlan {
  facts: Omit<TrainingFacts, 'backbone'> & { parameters: number };
  memory: TrainingMemory & {
    /** Sum of `memory.device`. */
    deviceBytes: number;
    hostBytes: number;
    /** What a device has for all of them; null when it is not known. */
    usableBytes: number | null;
    /** What the limit of a trainer's container leaves for `hostBytes`; null without one, and on a CPU. */
    hostLimitBytes: number | null;
    /** On the device and on its host; null when it is not known. */
    fits: boolean | null;
    /** Of `memory.checkpointCopy`. */
    copy: CopyPlace;
  };
  step: StepTime;
  /** Of the whole training; null when the number of pictures is not known. */
  total: { steps: number; seconds: number } | null;
  checkpoints: {
    bytes: number;
    /** Of those that are kept, and one that is written. */
    keptBytes: number;
    /** What their storage has for them; null when it is not known. */
    storageBytes: number | null;
    fit: boolean | null;
  };
  /** Bytes that a rank copies in each step for checkpoint.inMemory; 0 without it. */
  keptBytesOfStep: number;
  /** What to change so that the job fits; empty when it does. */
  toFit: Advice[];
  advice: Advice[];
}

/**
 * The facts that decide memory and time, from the configuration.
 * @param device of the ranks, resolved
 */
export function trainingFacts(
  config: TrainerConfig,
  graph: Graph,
  gang: Pick<TrainingFacts, 'numClasses' | 'replicas' | 'ranksPerPod' | 'maxReplicas' | 'device'>,
): TrainingFacts {
  return {
    backbone: backboneCost(graph),
    embeddingDim: graph.output.dim,
    ...gang,
    globalBatchSize: config.globalBatchSize,
    microBatchSize: config.microBatchSize,
    syncBatchNorm: config.model.syncBatchNorm,
    checkpointActivations: config.model.checkpointActivations,
    sampleRate: largestSampleRate(config.loss),
    sampleRateChanges: config.loss.sampleRateChanges.length > 0,
    rowsPrecision: config.loss.rows.precision,
    rowsOptimizer: config.loss.rows.optimizer,
    // Auto until the memory of the device is known: planTraining.
    rowsPlacement: config.loss.rows.placement === 'host' ? 'host' : 'device',
    rowUpdate: config.optimizer.rowUpdate,
    keepsSteps: config.checkpoint.memoryDirectory !== null,
    precision: resolved(config.precision, gang.device),
  };
}

/** As resolve_precision in native/train/device.cc. */
const resolved = (precision: TrainerConfig['precision'], device: 'cpu' | 'cuda'): Precision =>
  precision === 'auto' ? (device === 'cuda' ? 'bf16' : 'fp32') : precision;

/** Of all steps: each takes as long as its sample rate lets it. */
function totalSeconds(config: TrainerConfig, facts: TrainingFacts, machines: Machines, steps: number): number {
  const changes = sampleRateSteps(config.loss, steps / config.epochs);
  let seconds = 0;
  for (const [index, { fromStep, rate }] of [{ fromStep: 0, rate: config.loss.sampleRate }, ...changes].entries()) {
    const until = Math.min(changes[index]?.fromStep ?? steps, steps);
    seconds += Math.max(until - fromStep, 0) * stepTime({ ...facts, sampleRate: rate }, machines).seconds;
  }
  return seconds;
}

/**
 * @param given class centres on the device, unless the job says otherwise
 * @param options.images of the dataset; null: not known
 * @param options.room its deviceBytes null: that of the device kind
 * @throws FacetrainError InvalidArgument when the device kind has no products in the job's precision
 */
export function planTraining(
  config: TrainerConfig,
  given: TrainingFacts,
  machines: Machines,
  { images, room: { deviceBytes, ...others } }: { images: number | null; room: Room },
): TrainingPlan {
  const { kind } = machines;
  const { keep, keepBest } = config.checkpoint;
  const room = { ...others, deviceBytes: deviceBytes ?? usableBytes(kind) };
  const job: PlannedJob = {
    facts: given,
    isPlacementAuto: config.loss.rows.placement === 'auto',
    keep,
    keepBest,
    room,
  };
  const facts = placed(job);
  if (kind.products[facts.precision] === undefined)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: 'trainers.precision',
      found: `${facts.precision.toUpperCase()} on ${kind.name}`,
      allowed: `Auto, ${Object.keys(kind.products).join(', ').toUpperCase()}, or another --gpu`,
    });
  const needs = needsOf(job);
  const lacks = lacking(job);
  const fits = !lacks.includes('deviceBytes') && !lacks.includes('hostBytes');
  const steps = images === null ? null : config.epochs * Math.floor(images / config.globalBatchSize);
  const { backbone, ...rest } = facts;
  return {
    facts: { ...rest, parameters: backbone.parameters },
    memory: {
      ...trainingMemory(facts),
      deviceBytes: needs.deviceBytes,
      hostBytes: needs.hostBytes,
      usableBytes: room.deviceBytes,
      hostLimitBytes: room.hostBytes,
      // What is known to be too little is so, whatever else is not known.
      fits: fits && room.deviceBytes === null ? null : fits,
      copy: copyPlace(facts, room),
    },
    step: stepTime(facts, machines),
    total: steps === null ? null : { steps, seconds: totalSeconds(config, facts, machines, steps) },
    keptBytesOfStep: keptBytesOfStep(facts),
    checkpoints: {
      bytes: checkpointBytes(facts),
      keptBytes: needs.storageBytes,
      storageBytes: room.storageBytes,
      fit: room.storageBytes === null ? null : !lacks.includes('storageBytes'),
    },
    toFit: lacks.length > 0 ? fittingChanges(job, kind) : [],
    advice: adviceFor(facts, machines, room.deviceBytes),
  };
}
