/** `facetrain plan`: memory, time and advice of a training, from its configuration. Pure. */
import { FacetrainError, largestSampleRate, type Precision, sampleRateSteps, type TrainerConfig } from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { type Advice, adviceFor, fittingChanges, largerLimit } from './advice.ts';
import { backboneCost } from './backbone-cost.ts';
import { type Machines, type StepTime, stepTime } from './step-time.ts';
import {
  checkpointBytes,
  keptBytesOfStep,
  sumOf,
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
  };
  step: StepTime;
  /** Of the whole training; null when the number of pictures is not known. */
  total: { steps: number; seconds: number } | null;
  checkpoints: { bytes: number; keptBytes: number };
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

/** With class centres where `auto` puts them, as open_session in native/train/session.cc. */
function placed(facts: TrainingFacts, usable: number | null): TrainingFacts {
  const isTooLarge = facts.device === 'cuda' && usable !== null && sumOf(trainingMemory(facts).device) > usable;
  return { ...facts, rowsPlacement: isTooLarge ? 'host' : 'device' };
}

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
 * @param options.images of the dataset; null: not known
 * @param options.memoryBytes of a rank, in place of the device kind's
 * @param options.hostLimitBytes as of the result
 * @throws FacetrainError InvalidArgument when the device kind has no products in the job's precision
 */
export function planTraining(
  config: TrainerConfig,
  given: TrainingFacts,
  machines: Machines,
  {
    images,
    memoryBytes,
    hostLimitBytes,
  }: { images: number | null; memoryBytes: number | null; hostLimitBytes: number | null },
): TrainingPlan {
  const { kind } = machines;
  const usable = memoryBytes ?? usableBytes(kind);
  const facts = config.loss.rows.placement === 'auto' ? placed(given, usable) : given;
  if (kind.products[facts.precision] === undefined)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: 'trainers.precision',
      found: `${facts.precision.toUpperCase()} on ${kind.name}`,
      allowed: `Auto, ${Object.keys(kind.products).join(', ').toUpperCase()}, or another --gpu`,
    });
  const memory = trainingMemory(facts);
  const deviceBytes = sumOf(memory.device);
  const hostBytes = sumOf(memory.host);
  const fitsDevice = usable === null ? null : deviceBytes <= usable;
  const fitsHost = hostLimitBytes === null || hostBytes <= hostLimitBytes;
  const fits = fitsHost ? fitsDevice : false;
  const step = stepTime(facts, machines);
  const steps = images === null ? null : config.epochs * Math.floor(images / config.globalBatchSize);
  const { backbone, ...rest } = facts;
  const bytes = checkpointBytes(facts);
  return {
    facts: { ...rest, parameters: backbone.parameters },
    memory: { ...memory, deviceBytes, hostBytes, usableBytes: usable, hostLimitBytes, fits },
    step,
    total: steps === null ? null : { steps, seconds: totalSeconds(config, facts, machines, steps) },
    keptBytesOfStep: keptBytesOfStep(facts),
    // One more while the next is written.
    checkpoints: { bytes, keptBytes: bytes * (config.checkpoint.keep + config.checkpoint.keepBest + 1) },
    toFit:
      fitsDevice === false
        ? fittingChanges(facts, machines, usable!, hostLimitBytes)
        : fitsHost
          ? []
          : [largerLimit(hostBytes * facts.ranksPerPod)],
    advice: adviceFor(facts, machines, usable),
  };
}
