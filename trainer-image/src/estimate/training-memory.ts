/**
 * How many bytes a rank of a training needs, by part. The one estimate of `facetrain plan` and of the check before a
 * training on a CPU starts. Sizes are those that native/ allocates: session.cc, partial_fc.cc, cuda_step.cc.
 */
import {
  bytesPerClass,
  counted,
  FacetrainError,
  type Precision,
  ROWS_OPTIMIZER_NAMES,
  type RowsOptimizer,
  type RowsPlacement,
  type RowUpdate,
  type StoredType,
} from '@facetrain/api';
import type { BackboneCost } from './backbone-cost.ts';
import type { DeviceKind } from './device-kinds.ts';

/** What decides the memory and the time of a training. */
export interface TrainingFacts {
  backbone: BackboneCost;
  embeddingDim: number;
  numClasses: number;
  globalBatchSize: number;
  /** Ranks. */
  replicas: number;
  /** Ranks that share the resources of a pod, and are one of trainers.replicas. */
  ranksPerPod: number;
  /** Most ranks that an elastic gang may have; null: it is not elastic. */
  maxReplicas: number | null;
  /** Pictures of a rank that the backbone sees at once; null: all of them. */
  microBatchSize: number | null;
  /** Whether batch norms need all pictures of a step at the same time. */
  syncBatchNorm: boolean;
  /** Whether most activations are computed twice. */
  checkpointActivations: boolean;
  /** The largest of the training. */
  sampleRate: number;
  /** Whether it changes in the training. */
  sampleRateChanges: boolean;
  rowsPrecision: 'fp32' | 'bf16';
  rowsOptimizer: RowsOptimizer;
  /** Resolved. */
  rowsPlacement: RowsPlacement;
  rowUpdate: RowUpdate;
  /** Whether the state of the last two steps is kept in memory. */
  keepsSteps: boolean;
  device: 'cpu' | 'cuda';
  /** Of the products, resolved. */
  precision: Precision;
}

/** A part of the memory of one rank. */
export interface MemoryPart {
  name: string;
  bytes: number;
  /** How the number comes about, for people. */
  why: string;
  /** What libraries take, or what may be less. Absent: it is allocated for certain. */
  isGuess?: true;
}

export interface TrainingMemory {
  /** Of the GPU; on a CPU of the process. */
  device: MemoryPart[];
  /** Of the process on the host; empty on a CPU, where `device` is the process. */
  host: MemoryPart[];
  /** For a copy of the state, so that steps go on while a checkpoint is written. Without it the step waits. */
  checkpointCopy: number;
}

const GIB = 2 ** 30;
const MIB = 2 ** 20;

/** Of a value of the backbone, and of the operands of its products. */
export const BYTES_OF_VALUE: Record<Precision, number> = { fp32: 4, tf32: 4, bf16: 2, fp16: 2 };
/** Share of activations that stays at the peak with model.checkpointActivations; of iresnet50 (docs/benchmarks.md). */
const CHECKPOINTED = 0.47;
/** Batches that the loader decodes ahead (kAhead in native/data/loader.cc), and the one in use. */
const BATCHES = 4;
/** cuda_step.cc: cells of a tile's cosines (FP32), exponentials that are kept. */
const CUDA = { tile: 2 ** 25, kept: 2 ** 30 };
/** cpu_step.cc: numbers of a tile's matrices (FP32), exponentials that are kept. */
const CPU = { tile: 2 ** 16, kept: 2 ** 26 };
/** CUDA's context with our kernels, cuBLAS's and cuDNN's workspaces, on an H100 with CUDA 13. */
const CUDA_CONTEXT = 700 * MIB;
/** NCCL's buffers, where there is more than one rank. */
const NCCL_BUFFERS = 350 * MIB;
/** Resident memory of the program with libtorch before a session is opened; with CUDA's libraries. */
export const PROGRAM = { cpu: 250 * MIB, cuda: 3 * GIB };

/** Copies of the weights beside them, while a model is read, laid out and takes its first step, on a CPU. */
const OPENING = 3;

/** Rows of class centres of the rank that has most. */
export const rowsOfRank = ({ numClasses, replicas }: Pick<TrainingFacts, 'numClasses' | 'replicas'>) =>
  Math.ceil(numClasses / replicas);

/** Expected rows that a step of this rank uses: its share of the negatives, and the positives of the batch. */
export function sampledRows(facts: TrainingFacts): number {
  const rows = rowsOfRank(facts);
  if (facts.sampleRate >= 1) return rows;
  return Math.min(rows, Math.ceil(facts.sampleRate * rows + facts.globalBatchSize / facts.replicas));
}

const storedType = ({ rowsPrecision }: TrainingFacts): StoredType =>
  rowsPrecision === 'bf16' ? 'bfloat16' : 'float32';

/** Bytes of a class centre, and of what is kept for it. */
export function rowBytes(facts: TrainingFacts): ReturnType<typeof bytesPerClass> {
  return bytesPerClass({
    dim: facts.embeddingDim,
    type: storedType(facts),
    optimizer: facts.rowsOptimizer,
    update: facts.rowUpdate,
  });
}

/** Pictures in a step of the ranks that have most: whole micro-batches. */
export function picturesOfRank({ globalBatchSize, replicas, microBatchSize }: TrainingFacts): number {
  const unit = microBatchSize ?? 1;
  return unit * Math.ceil(globalBatchSize / unit / replicas);
}

/** Those of a rank whose activations are in memory at the same time. */
export const picturesAtOnce = (facts: TrainingFacts) =>
  Math.min(facts.microBatchSize ?? Number.POSITIVE_INFINITY, picturesOfRank(facts));

/** The parts of a rank's memory; of several ranks, of the one that has most rows. */
export function trainingMemory(facts: TrainingFacts): TrainingMemory {
  const { backbone, device } = facts;
  const pictures = picturesOfRank(facts);
  const rows = storedRows(facts);
  const parts = [...backboneParts(facts), ...(onHost(facts) ? [] : rows), ...headParts(facts)];
  const batch = pictures * backbone.input;
  const loader = { name: 'batches of the loader', bytes: BATCHES * batch, why: `${BATCHES} batches of bytes` };
  const checkpointCopy = stateBytes(facts, rowsOfRank(facts));
  const program = {
    name: 'program',
    bytes: PROGRAM[device] + 4 * backbone.parameters,
    why: 'Node, libtorch, the model as it was read',
    isGuess: true as const,
  };
  const kept = keptSteps(facts);
  if (device === 'cpu') {
    const opening = {
      name: 'opening the model',
      bytes: OPENING * 4 * backbone.parameters,
      why: 'its weights three times more, in places that the allocator keeps and no step fits into',
      isGuess: true as const,
    };
    return { device: [...parts, ...integerSums(facts), loader, ...kept, opening, program], host: [], checkpointCopy };
  }
  const context = {
    name: 'CUDA context',
    bytes: CUDA_CONTEXT + (facts.replicas > 1 ? NCCL_BUFFERS : 0),
    why: facts.replicas > 1 ? 'kernels, workspaces, NCCL' : 'kernels, workspaces',
    isGuess: true as const,
  };
  return {
    device: [...parts, context],
    host: [program, ...(onHost(facts) ? rows : []), loader, ...kept],
    checkpointCopy,
  };
}

/** integer_sums.h: of the backbone's gradients. */
const integerSums = ({ microBatchSize, backbone }: TrainingFacts): MemoryPart[] =>
  microBatchSize === null
    ? []
    : [{ name: 'sums of gradients', bytes: 8 * backbone.parameters, why: 'of micro-batches, as integers' }];

function stateBytes(facts: TrainingFacts, rows: number): number {
  const { weight, state } = rowBytes(facts);
  return rows * (weight + state) + 4 * (2 * facts.backbone.parameters + facts.backbone.statistics);
}

/** Ranks that keep a part of the backbone's state (kMostKeepers in session.cc). */
const MOST_KEEPERS = 16;

/** The backbone's state of a rank that keeps a part of it: weights, momentum, running statistics. */
const keptBackbone = ({ backbone: { parameters, statistics }, replicas }: TrainingFacts) =>
  Math.ceil((4 * (2 * parameters + statistics)) / Math.min(replicas, MOST_KEEPERS));

/** kept_steps.cc: all rows, those of a step as they were before and a 16th more, two states of the backbone's part. */
function keptSteps(facts: TrainingFacts): MemoryPart[] {
  if (!facts.keepsSteps) return [];
  const { weight, state } = rowBytes(facts);
  const logged = Math.min(rowsOfRank(facts), Math.ceil(sampledRows(facts) * (1 + 1 / 16)));
  const bytes = (rowsOfRank(facts) + logged) * (weight + state) + 8 * logged + 2 * keptBackbone(facts);
  const why = 'checkpoint.inMemory: a copy, and what a step has changed';
  // Where there is no room, a training goes on without.
  return [{ name: 'steps kept in memory', bytes, why, isGuess: true }];
}

/** Bytes that a rank copies in each step to keep it, of a GPU over its bus. */
export function keptBytesOfStep(facts: TrainingFacts): number {
  if (!facts.keepsSteps) return 0;
  const { weight, state } = rowBytes(facts);
  return sampledRows(facts) * (weight + state) + keptBackbone(facts);
}

/** Bytes of a checkpoint of all ranks. */
export const checkpointBytes = (facts: TrainingFacts) => stateBytes(facts, facts.numClasses);

/** What has to be free for a copy of so many bytes, as place_for_copy in native/train/trained_state.cc has it. */
const roomForCopy = (bytes: number) => bytes + bytes / 4 + 64 * MIB;

/** Where the copy of the state is made while a checkpoint is written. */
export interface CopyPlace {
  on: 'device' | 'host';
  /** false: nowhere, and the training waits. null: not known. */
  fits: boolean | null;
}

/**
 * @param deviceBytes that there are for a rank; null: not known
 * @param hostBytes the same of the host of a GPU
 */
export function copyPlace(
  facts: TrainingFacts,
  { deviceBytes, hostBytes }: { deviceBytes: number | null; hostBytes: number | null },
): CopyPlace {
  const { device, host, checkpointCopy } = trainingMemory(facts);
  const hasRoom = (there: number | null, parts: readonly MemoryPart[]) =>
    there === null ? null : there - sumOf(parts) >= roomForCopy(checkpointCopy);
  if (facts.device === 'cpu') return { on: 'host', fits: hasRoom(deviceBytes, device) };
  // Class centres that did not fit the device do not as a copy.
  if (!onHost(facts) && hasRoom(deviceBytes, device)) return { on: 'device', fits: true };
  return { on: 'host', fits: hasRoom(hostBytes, host) };
}

/** Share of a device's memory that a training can use: the driver and fragmentation take the rest. */
const USABLE = 0.97;

/** What a device has for a training. null when it is not known. */
export const usableBytes = ({ memoryBytes }: DeviceKind) => (memoryBytes === null ? null : USABLE * memoryBytes);

/** The memory that a device must have, of which a training can use a part. */
export const neededMemory = (facts: TrainingFacts) => Math.ceil(sumOf(trainingMemory(facts).device) / USABLE);

/** Whether class centres are in another memory than that of the device. */
export const onHost = ({ rowsPlacement, device }: TrainingFacts) => rowsPlacement === 'host' && device === 'cuda';

/** What a rank’s process allocates on the machine for certain: with less, a step cannot be computed. */
function leastParts(facts: TrainingFacts): MemoryPart[] {
  const { device, host } = trainingMemory(facts);
  return (facts.device === 'cpu' ? device : host).filter(({ isGuess }) => !isGuess);
}

/** Bytes of `leastParts`. */
export const leastMachineBytes = (facts: TrainingFacts) => sumOf(leastParts(facts));

export const sumOf = (parts: readonly MemoryPart[]) => parts.reduce((sum, { bytes }) => sum + bytes, 0);

function backboneParts(facts: TrainingFacts): MemoryPart[] {
  const { backbone, precision, checkpointActivations } = facts;
  const pictures = picturesAtOnce(facts);
  const value = BYTES_OF_VALUE[precision];
  const { parameters, statistics, productWeights, kept, largest, input } = backbone;
  const copies = value === 2 ? 2 * productWeights : 0;
  return [
    {
      name: 'backbone weights',
      bytes: 4 * (parameters + statistics) + copies,
      why: copies > 0 ? `FP32, and a copy in ${precision.toUpperCase()}` : 'FP32',
    },
    { name: 'backbone gradients', bytes: 4 * (parameters + statistics), why: 'FP32, with statistics to be shared' },
    { name: 'backbone momentum', bytes: 4 * parameters, why: 'FP32' },
    {
      name: 'activations',
      bytes: pictures * kept * value * (checkpointActivations ? CHECKPOINTED : 1),
      why:
        `kept for the backward pass${checkpointActivations ? ', others computed twice' : ''}, ` +
        `${value} bytes a value`,
      ...(checkpointActivations && { isGuess: true }),
    },
    {
      name: 'gradients of activations',
      // The first layers have the largest values, and when their gradients are made the later layers' are gone.
      bytes: pictures * largest * value,
      why: 'one value of the largest size, beside all that is kept',
      isGuess: true,
    },
    {
      name: 'pictures',
      bytes: (4 * pictures + 2 * picturesOfRank(facts)) * input,
      why: 'as floats, and two batches as bytes',
    },
  ];
}

const thousands = (value: number) => value.toLocaleString('en-US');

/** Class centres, and what their optimizer keeps. */
function storedRows(facts: TrainingFacts): MemoryPart[] {
  const { embeddingDim: dim } = facts;
  const rows = rowsOfRank(facts);
  const { weight, state } = rowBytes(facts);
  const type = facts.rowsPrecision.toUpperCase();
  return [
    {
      name: 'class centres',
      bytes: rows * weight,
      why: `${counted(rows, 'row', thousands)} of ${counted(dim, 'number')} in ${type}`,
    },
    {
      name: facts.rowsOptimizer === 'sgd' ? 'momentum of class centres' : 'optimizer of class centres',
      bytes: rows * state,
      why: facts.rowsOptimizer === 'sgd' ? type : ROWS_OPTIMIZER_NAMES[facts.rowsOptimizer],
    },
  ];
}

/** What a step of Partial FC takes beside them. */
function headParts(facts: TrainingFacts): MemoryPart[] {
  const { embeddingDim: dim, globalBatchSize: batch, device } = facts;
  const updates = denseUpdates(facts);
  return [...(device === 'cuda' ? cudaStep(facts) : cpuStep(facts)), ...updates, gathered(batch, dim)];
}

/** They stay on the device, also where the rows are on the host. */
function denseUpdates(facts: TrainingFacts): MemoryPart[] {
  const bytes = rowsOfRank(facts) * rowBytes(facts).pending;
  return bytes > 0 ? [{ name: 'updates of class centres', bytes, why: 'how many each has had' }] : [];
}

const gathered = (batch: number, dim: number): MemoryPart => ({
  name: 'gathered features',
  bytes: 4 * 5 * batch * dim,
  why: 'of the global batch, with gradients',
});

/** cuda_step.cc: rows at unit length, their gradient, exponentials. */
function cudaStep(facts: TrainingFacts): MemoryPart[] {
  const { embeddingDim: dim, globalBatchSize: batch, precision } = facts;
  const sampled = sampledRows(facts);
  const low = BYTES_OF_VALUE[precision];
  // In FP16 two passes are made, and nothing is kept between them.
  const keeps = precision !== 'fp16';
  const logits = batch * sampled;
  const tile = Math.min(CUDA.tile, logits);
  const kept = keeps ? Math.min(logits, CUDA.kept) : 0;
  return [
    {
      name: 'gradient of sampled rows',
      bytes: sampled * dim * (precision === 'bf16' ? 2 : 4),
      why: `${counted(sampled, 'row', thousands)} a step`,
    },
    { name: 'sampled rows', bytes: sampled * (dim * low + 12), why: 'at unit length, in the products’ type' },
    {
      name: 'logits',
      bytes: 4 * tile + low * kept + (kept < logits ? low * tile : 0),
      why: keeps ? 'a tile, and the exponentials that are kept (at most 2^30)' : 'a tile',
    },
  ];
}

/** cpu_step.cc. */
function cpuStep(facts: TrainingFacts): MemoryPart[] {
  const { embeddingDim: dim, globalBatchSize: batch, precision } = facts;
  const sampled = sampledRows(facts);
  return [
    {
      name: 'gradient of sampled rows',
      bytes: 4 * sampled * dim,
      why: `${counted(sampled, 'row', thousands)} a step, FP32`,
    },
    {
      name: 'logits',
      // A thread has a tile's rows, logits and exponentials; there may be a few threads.
      bytes: BYTES_OF_VALUE[precision] * Math.min(CPU.kept, batch * sampled) + 4 * 3 * 4 * CPU.tile,
      why: 'exponentials that are kept between the passes (at most 2^26), and tiles',
    },
    ...(facts.rowsPlacement === 'host' && facts.sampleRate < 1 ? [rowWindow(facts)] : []),
  ];
}

/** row_window.h: copies of the rows of two steps, and a 32nd more. */
function rowWindow(facts: TrainingFacts): MemoryPart {
  const { weight, state } = rowBytes(facts);
  const rows = Math.ceil(sampledRows(facts) * (1 + 1 / 32));
  return { name: 'copies of sampled rows', bytes: 2 * rows * (weight + state), why: 'of two steps' };
}

/**
 * Compares the least that a training allocates with what this process can still get: of the machine, or within the
 * limits of its cgroups.
 * @param subject the backbone: its file or its name
 * @param ranks on this machine
 * @throws FacetrainError InsufficientMemory, naming what takes most, size and limit
 */
export function checkTrainingMemory(facts: TrainingFacts, subject: string, ranks: number): void {
  const limit = process.availableMemory();
  const parts = leastParts(facts);
  const bytes = sumOf(parts);
  if (ranks * bytes <= limit) return;
  const largest = parts.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  const { keeper } = facts.backbone;
  const isActivations = largest.name === 'activations' && keeper !== undefined;
  const trainers = ranks > 1 ? ` for each of the ${ranks} trainers on this machine` : '';
  const most = isActivations
    ? `a value of [${[picturesOfRank(facts), ...keeper.shape.slice(1)].join(', ')}]`
    : largest.why;
  const onGpu = facts.device === 'cuda';
  const memory = onGpu ? ' of the machine’s memory' : '';
  const less = onGpu ? 'loss.rows.placement Device' : 'a smaller trainers.microBatchSize, model.checkpointActivations';
  throw new FacetrainError({
    code: 'InsufficientMemory',
    subject: isActivations ? `${subject}: node "${keeper.node.name}" (${keeper.node.op})` : largest.name,
    found:
      `training on ${counted(picturesOfRank(facts), 'picture', thousands)} with ` +
      `${counted(facts.numClasses, 'class', thousands)} needs ${gibibytes(bytes)} at least${trainers}${memory}, ` +
      `${gibibytes(largest.bytes)} of it for ${largest.name} (${most})`,
    allowed:
      `the ${gibibytes(limit)} that are available: more memory, ${less}, more trainers.replicas, ` +
      'loss.rows.precision BF16, or a smaller model; facetrain plan says what each takes',
  });
}

const gibibytes = (bytes: number) => `${(bytes / GIB).toFixed(bytes < GIB ? 2 : 1)} GiB`;
