/**
 * How long a step of a training takes: a cost model of products and bytes, at the rates of a device kind. Fitted to the
 * tables of docs/benchmarks.md, and compared with them by a test.
 */
import { stepStages } from '@facetrain/api';
import type { DeviceKind } from './device-kinds.ts';
import {
  BYTES_OF_VALUE,
  onHost,
  picturesAtOnce,
  picturesOfRank,
  rowBytes,
  rowsOfRank,
  sampledRows,
  type TrainingFacts,
} from './training-memory.ts';

/** How ranks are connected, and what they compute with. */
export interface Machines {
  kind: DeviceKind;
  /** Of a rank, on a CPU. */
  threads: number;
  ranksPerMachine: number;
  /** Bytes a second between machines, in one direction, of one machine. */
  networkBytesPerSecond: number;
  loaderThreads: number;
}

/** A collective of a step. */
export interface Collective {
  name: string;
  /** Bytes that a rank sends. */
  bytes: number;
  seconds: number;
}

export interface StepTime {
  /** Of the stages that add up; `data` is what the loader is late by. */
  stages: Record<(typeof stepStages)[number], number>;
  seconds: number;
  imagesPerSecond: number;
  collectives: Collective[];
  /** Pictures a second that one rank's loader decodes. */
  loaderImagesPerSecond: number;
}

/** Pictures of 112 x 112 in JPEG that a thread decodes a second (docs/benchmarks.md). */
const DECODED_PER_SECOND = 16_000;
/** What a node of the backbone costs in a step on a GPU beside its work: launches, and blocks that wait. */
const NODE_SECONDS = 40e-6;
/** cuDNN’s convolutions in groups of few channels reach this share of the memory’s rate. */
const GROUPED_SHARE = 1 / 12;
/** Launches of a Partial FC step on a GPU. */
const HEAD_SECONDS = 0.15e-3;
/** Start of a collective. */
const COLLECTIVE_SECONDS = 30e-6;
/** kBucketBytes of native/train/gradient_buckets.h. */
const BUCKET_BYTES = 8 * 2 ** 20;
/** Reads and writes of each parameter’s 4 bytes by the zeroing, the norm, and SGD. */
const UPDATE_PASSES = 8;
/**
 * What a step on a CPU costs for each sampled row beside its products and the bytes of the row itself, as reads and
 * writes of a row in FP32: rows at unit length, exponentials, gradient. Where all rows are sampled they follow each
 * other in memory.
 */
const CPU_ROW_PASSES = { all: 4.8, some: 7.1 };
/** Of a CPU's thread: to round a number to BF16 by a hash, and to decide by a hash whether a step has a class. */
const CPU_NANOSECONDS = { round: 0.3, draw: 1.5 };

/** @throws RangeError when the device has no such precision */
export function stepTime(facts: TrainingFacts, machines: Machines): StepTime {
  const { kind, threads, loaderThreads } = machines;
  const width = kind.type === 'cpu' ? threads : 1;
  const rate = kind.products[facts.precision];
  if (rate === undefined) throw new RangeError(`${kind.name} has no products in ${facts.precision}`);
  const rates: Rates = {
    bytes: kind.bytesPerSecond * width,
    convolutions: rate * width * kind.convolutions[facts.precision]!,
    head: rate * width * kind.headProducts[facts.precision]!,
  };
  const pictures = picturesOfRank(facts);
  const backbone = backboneSeconds(facts, kind, rates);
  const collectives = stepCollectives(facts, machines);
  const backward = (2 / 3) * backbone;
  const loaderImagesPerSecond = loaderThreads * DECODED_PER_SECOND;
  const stages = {
    data: 0,
    upload: 0,
    forward: backbone / 3,
    head: headSeconds(facts, machines, rates),
    backward: backward + (repeatedForwards(facts) * backbone) / 3,
    communication:
      collectives.reduce((sum, { seconds }) => sum + seconds, 0) -
      hiddenSeconds(facts, collectives, backward * (picturesAtOnce(facts) / pictures)),
    update: (UPDATE_PASSES * 4 * facts.backbone.parameters) / rates.bytes,
  };
  const computed = stepStages.reduce((sum, stage) => sum + stages[stage], 0);
  stages.data = Math.max(0, pictures / loaderImagesPerSecond - computed);
  const seconds = computed + stages.data;
  return { stages, seconds, imagesPerSecond: facts.globalBatchSize / seconds, collectives, loaderImagesPerSecond };
}

/** Forward passes of a rank's batch that the backward pass makes again. */
function repeatedForwards(facts: TrainingFacts): number {
  const ofMicroBatches = 1 - picturesAtOnce(facts) / picturesOfRank(facts);
  return ofMicroBatches + (facts.checkpointActivations ? 1 : 0);
}

interface Rates {
  bytes: number;
  convolutions: number;
  head: number;
}

/** Each node takes what its products or its bytes take, whichever is longer. Backward makes two products for each. */
function backboneSeconds(facts: TrainingFacts, { type }: DeviceKind, rates: Rates): number {
  const pictures = picturesOfRank(facts);
  const value = BYTES_OF_VALUE[facts.precision];
  let seconds = 0;
  for (const { macs, traffic, grouped } of facts.backbone.nodes) {
    const products = (3 * 2 * macs) / rates.convolutions;
    const bytes = (traffic * value) / (rates.bytes * (grouped && type === 'cuda' ? GROUPED_SHARE : 1));
    seconds += pictures * Math.max(products, bytes) + (type === 'cuda' ? NODE_SECONDS : 0);
  }
  return seconds;
}

/** Forward, backward and the rows’ update: three products, and the bytes of logits and sampled rows. */
export function headSeconds(facts: TrainingFacts, { kind, threads }: Machines, rates: Rates): number {
  const { embeddingDim: dim, globalBatchSize: batch, sampleRate, precision } = facts;
  const sampled = sampledRows(facts);
  const products = (3 * 2 * batch * sampled * dim) / rates.head;
  const { weight, state } = rowBytes(facts);
  if (kind.type === 'cpu') return products + cpuRowBytes(facts) / rates.bytes + cpuHashSeconds(facts) / threads;
  const low = BYTES_OF_VALUE[precision];
  const gradient = dim * (precision === 'bf16' ? 2 : 4);
  const logits = batch * sampled * (4 + low);
  const unit = gatheredBytes(facts) + dim * low;
  const update = gradient + 2 * (weight + state) + caughtUp(facts);
  const draw = sampleRate >= 1 ? 0 : rowsOfRank(facts) / 2;
  const ofRows = onHost(facts) ? busBytes(facts) / kind.hostBytesPerSecond : 0;
  return HEAD_SECONDS + products + (logits + sampled * (unit + update) + draw) / rates.bytes + ofRows;
}

/**
 * What passes between a GPU and class centres in host memory in a step: the gather reads rows, the update reads and
 * writes them with their optimizer's state. Nothing else is computed meanwhile.
 */
function busBytes(facts: TrainingFacts): number {
  const { weight, state } = rowBytes(facts);
  return sampledRows(facts) * (gatheredBytes(facts) + 2 * (weight + state) + caughtUp(facts));
}

/** Bytes that a step on a CPU reads and writes for its rows, as CPU_ROW_PASSES counts them. */
function cpuRowBytes(facts: TrainingFacts): number {
  const { weight, state } = rowBytes(facts);
  const passes = facts.sampleRate >= 1 ? CPU_ROW_PASSES.all : CPU_ROW_PASSES.some;
  // row_window.cc: rows are copied to the window, and back.
  const copies = facts.rowsPlacement === 'host' && facts.sampleRate < 1 ? 4 * (weight + state) : 0;
  const stored = weight + 2 * (weight + state) + caughtUp(facts) + copies;
  return sampledRows(facts) * (passes * 4 * facts.embeddingDim + stored);
}

/** Of one thread: the numbers that an update rounds, and the classes that are chosen from. */
function cpuHashSeconds(facts: TrainingFacts): number {
  const { weight, state } = rowBytes(facts);
  const stored = 2 * (weight + state) + caughtUp(facts);
  // A number has 2 bytes; scalars of the state are not rounded, and too few to count.
  const rounded = facts.rowsPrecision === 'bf16' ? (sampledRows(facts) * stored) / 2 / 2 : 0;
  const drawn = facts.sampleRate < 1 ? rowsOfRank(facts) : 0;
  return 1e-9 * (CPU_NANOSECONDS.round * rounded + CPU_NANOSECONDS.draw * drawn);
}

/** Bytes of a row that are read to make one of unit length. Where all rows are sampled SGD's update makes them. */
const gatheredBytes = (facts: TrainingFacts) =>
  facts.sampleRate >= 1 && facts.rowsOptimizer === 'sgd' ? 0 : rowBytes(facts).weight;

/** Bytes of a sampled row that are read and written for the dense updates that it has missed. */
function caughtUp(facts: TrainingFacts): number {
  if (facts.rowUpdate === 'lazy' || facts.sampleRate >= 1) return 0;
  const { weight, state } = rowBytes(facts);
  return 2 * (weight + (facts.rowsOptimizer === 'sgd' ? state : 0));
}

/**
 * Of the gradient's collective, what the backward pass of the last micro-batch hides: it is sent in buckets, of which
 * the last one goes after the pass (native/train/gradient_buckets.h). Sums for any number of ranks are sent at the end.
 */
function hiddenSeconds(facts: TrainingFacts, collectives: Collective[], backward: number): number {
  const gradient = collectives.at(-1);
  if (!gradient || !sumsDuringBackward(facts)) return 0;
  const lastBucket = Math.min(1, BUCKET_BYTES / (4 * facts.backbone.parameters));
  return Math.min(backward, gradient.seconds * (1 - lastBucket));
}

const sumsDuringBackward = (facts: TrainingFacts) => facts.device === 'cuda' || facts.microBatchSize === null;

/** Bytes of one rank, and seconds over the slowest link of a ring; the gradient's is the last. */
function stepCollectives(facts: TrainingFacts, machines: Machines): Collective[] {
  const { replicas, globalBatchSize: batch, embeddingDim: dim, backbone } = facts;
  if (replicas === 1) return [];
  const link =
    replicas <= machines.ranksPerMachine
      ? machines.kind.linkBytesPerSecond
      : Math.min(machines.kind.linkBytesPerSecond, machines.networkBytesPerSecond);
  const share = (replicas - 1) / replicas;
  const collective = (name: string, bytes: number): Collective => ({
    name,
    bytes,
    seconds: COLLECTIVE_SECONDS + bytes / link,
  });
  return [
    collective('features, labels and lengths (all-gather)', share * batch * (dim + 3) * 4),
    collective('sums of the softmax (all-reduce)', 2 * share * 2 * batch * 8),
    collective('gradient of the features (reduce-scatter)', share * batch * dim * 4),
    collective(
      `gradient of the backbone (all-reduce${sumsDuringBackward(facts) ? ', during the backward pass' : ''})`,
      2 * share * 4 * (backbone.parameters + backbone.statistics),
    ),
  ];
}
