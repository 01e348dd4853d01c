/** `facetrain plan`: what a job needs and how long it takes, before it is applied. */
import { existsSync } from 'node:fs';
import { readdir, stat, statfs } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import {
  counted,
  ExitCode,
  type FaceTrainJob,
  FacetrainError,
  parseQuantity,
  parseStorageUri,
  rankCount,
  type TrainerConfig,
} from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { CONTAINER, type Pod } from '@facetrain/planner';
import { buildBackbone } from '@facetrain/trainer/backbones/backbone';
import { DEVICE_KINDS, type DeviceKindName } from '@facetrain/trainer/estimate/device-kinds';
import type { Room } from '@facetrain/trainer/estimate/fitting';
import { planTraining, type TrainingPlan, trainingFacts } from '@facetrain/trainer/estimate/plan-training';
import type { Machines } from '@facetrain/trainer/estimate/step-time';
import type { MemoryPart } from '@facetrain/trainer/estimate/training-memory';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { plannedTrainerConfig, plannedTrainerPod } from '../local/planned-config.ts';
import { bytes as decimalBytes, duration, table } from '../terminal-output.ts';

export interface PlanOptions {
  /** Absent: cpu for `device: CPU` and for trainers without a GPU among their resources, else h100. */
  gpu?: DeviceKindName;
  /** Absent: model.numClasses, or counted in a dataset of this machine. */
  classes?: number;
  /** Pictures of the dataset; absent: counted, or not known. */
  images?: number;
  /** GiB that a trainer may use, in place of the device's. */
  memory?: number;
  ranksPerMachine?: number;
  /** Gbit/s between machines. */
  network?: number;
}

/** GPUs of a machine, and Gbit/s between machines, unless options say otherwise. */
const USUAL = { gpusPerMachine: 8, networkGbit: { cuda: 100, cpu: 10 } };

/**
 * @throws FacetrainError InvalidManifest; InvalidArgument when the number of identities, or a model of one's own, is
 * not on this machine
 */
export async function plan(job: FaceTrainJob, options: PlanOptions, signal: AbortSignal) {
  const { spec, metadata } = job;
  const { ranksPerPod, elastic } = spec.trainers;
  const folder = join('.facetrain-plan', metadata.name);
  const config = plannedTrainerConfig(job, 'unused', folder);
  const resources = resourcesOf(plannedTrainerPod(job, folder), ranksPerPod);
  const name = options.gpu ?? usualKind(job, resources);
  const kind = DEVICE_KINDS[name];
  const graph = await shapesOf(job, config);
  const { numClasses, images } = await sizeOfDataset(job, config, options, signal);
  const machines: Machines = {
    kind,
    threads: config.computeThreads ?? resources.cpus ?? availableParallelism(),
    ranksPerMachine: options.ranksPerMachine ?? (kind.type === 'cuda' ? USUAL.gpusPerMachine : ranksPerPod),
    networkBytesPerSecond: ((options.network ?? USUAL.networkGbit[kind.type]) * 1e9) / 8,
    loaderThreads: config.loaderThreads,
  };
  const gang = {
    numClasses,
    replicas: rankCount(spec.trainers),
    ranksPerPod,
    maxReplicas: elastic ? elastic.maxReplicas * ranksPerPod : null,
    device: kind.type,
  };
  // The configuration is that of `facetrain run`, which keeps no steps.
  const facts = { ...trainingFacts(config, graph, gang), keepsSteps: spec.checkpoint.inMemory };
  const room = {
    ...memoryOf(job, resources, kind.type, options, { all: gang.replicas, perPod: ranksPerPod }),
    storageBytes: await storageOf(job, config),
  };
  const planned = planTraining(config, facts, machines, { images, room });
  const isRefused = planned.memory.fits === false || planned.checkpoints.fit === false;
  return {
    json: { job: metadata.name, device: { kind: name, ...kind }, images, ...planned },
    text: text(metadata.name, planned, machines, config, room.from),
    exitCode: isRefused ? ExitCode.refused : ExitCode.success,
  };
}

/** Names of NVIDIA's device plugin: a whole GPU, one that pods share, a MIG profile with its GB of memory. */
const GPU = /\/(?:gpu(?:\.shared)?|mig-\d+g\.(?<gigabytes>\d+)gb(?:\..*)?)$/;

/** What a rank has: its part of what its pod asks for. */
interface RankResources {
  /** null: no limit. */
  memory: number | null;
  cpus: number | undefined;
  gpu: RegExpExecArray | undefined;
  /** By Dynamic Resource Allocation. Of which kind, says a DeviceClass of the cluster. */
  hasClaims: boolean;
}

/** Of the container of the program: what the job asks for, and its pod template. */
function resourcesOf({ spec: { containers } }: Pod, ranksPerPod: number): RankResources {
  const {
    limits = {},
    requests = {},
    claims = [],
  } = containers.find(({ name }) => name === CONTAINER)?.resources ?? {};
  const cpus = limits.cpu ?? requests.cpu;
  return {
    memory: limits.memory === undefined ? null : parseQuantity(limits.memory) / ranksPerPod,
    cpus: cpus === undefined ? undefined : Math.max(1, Math.floor(parseQuantity(cpus) / ranksPerPod)),
    gpu: Object.keys({ ...limits, ...requests })
      .map((resource) => GPU.exec(resource))
      .find((match) => match !== null),
    hasClaims: claims.length > 0,
  };
}

/** A claim counts as a GPU: other devices, such as network cards, come beside GPUs. */
function usualKind({ spec }: FaceTrainJob, { gpu, hasClaims }: RankResources): DeviceKindName {
  const { device } = spec.trainers;
  return device === 'CPU' || (device === 'Auto' && gpu === undefined && !hasClaims) ? 'cpu' : 'h100';
}

type MemoryOf = Omit<Room, 'storageBytes'> & {
  /** Whether the memory is what a trainer that starts now compares with: that which is available on this machine. */
  from: 'machine' | 'job';
};

/**
 * What a rank has by an option, by a MIG profile, by the limit of the container; without any, on a CPU, its part of
 * this machine. Storage on this machine means that all ranks are on it, too: in a cluster there is none such.
 */
function memoryOf(
  { spec: { output } }: FaceTrainJob,
  resources: RankResources,
  type: 'cpu' | 'cuda',
  { memory }: PlanOptions,
  ranks: { all: number; perPod: number },
): MemoryOf {
  const hostBytes = type === 'cuda' ? resources.memory : null;
  const isShared = isHere(output.uri);
  const given = { hostBytes, isShared, from: 'job' } as const;
  if (memory !== undefined)
    return { ...given, deviceBytes: memory * 2 ** 30, limit: hostBytes === null ? null : 'hostBytes' };
  if (type === 'cuda') {
    const gigabytes = resources.gpu?.groups?.gigabytes;
    const deviceBytes = gigabytes === undefined ? null : Number(gigabytes) * 1e9;
    return { ...given, deviceBytes, limit: hostBytes === null ? null : 'hostBytes' };
  }
  if (resources.memory !== null) return { ...given, deviceBytes: resources.memory, limit: 'deviceBytes' };
  const deviceBytes = process.availableMemory() / (isShared ? ranks.all : ranks.perPod);
  return { ...given, deviceBytes, limit: null, from: 'machine' };
}

const isHere = (uri: string) => parseStorageUri(uri).scheme === 'file';

/** Free bytes where checkpoints go, and those of the checkpoints there, which new ones replace; null: not here. */
async function storageOf({ spec }: FaceTrainJob, config: TrainerConfig): Promise<number | null> {
  if (!isHere(spec.checkpoint.uri ?? spec.output.uri)) return null;
  const { directory } = config.checkpoint;
  let present = directory;
  while (!existsSync(present)) present = dirname(present);
  const { bavail, bsize } = await statfs(present);
  const files = present === directory ? await readdir(directory, { recursive: true }) : [];
  const sizes = await Promise.all(files.map(async (name) => (await stat(join(directory, name))).size));
  return bavail * bsize + sizes.reduce((sum, size) => sum + size, 0);
}

/** The backbone; of one that we build, without the values of its weights. */
async function shapesOf({ spec: { model } }: FaceTrainJob, config: TrainerConfig): Promise<Graph> {
  const { onnxPath } = config.model;
  if (onnxPath === null) return buildBackbone({ ...config.model, seed: null });
  if (!isHere(model.onnx!.uri))
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: 'model.onnx.uri',
      found: model.onnx!.uri,
      allowed: 'for a plan: a file:// address of a copy of the model on this machine',
    });
  const read = await readOnnx(onnxPath, { output: config.model.onnxOutput });
  return withInputRange(read, { given: config.model.input, keepNorms: true, subject: onnxPath }).graph;
}

/** Options first, then the manifest, then a dataset that is on this machine. */
async function sizeOfDataset(
  { spec: { dataset, model } }: FaceTrainJob,
  { dataset: { path } }: TrainerConfig,
  { classes = model.numClasses, images }: PlanOptions,
  signal: AbortSignal,
): Promise<{ numClasses: number; images: number | null }> {
  if (classes !== undefined && images !== undefined) return { numClasses: classes, images };
  if (isHere(dataset.uri) && existsSync(path)) {
    const { inspectDataset } = await import('@facetrain/native');
    const found = await inspectDataset(path, { decode: 'none', signal });
    return { numClasses: classes ?? found.identities, images: images ?? found.images };
  }
  if (classes !== undefined) return { numClasses: classes, images: images ?? null };
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: 'model.numClasses',
    found: `absent, and the dataset ${dataset.uri} is not on this machine`,
    allowed: 'give the number of identities with --classes',
  });
}

const gib = (bytes: number) =>
  bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(0)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const count = (value: number) => value.toLocaleString('en-US');
const several = (number: number, which: string) => (number === 1 ? which : `${number} ${which}`);

function milliseconds(seconds: number): string {
  return seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 2 : 0)} ms` : `${seconds.toFixed(1)} s`;
}

function kept({ checkpoint: { keep, keepBest } }: TrainerConfig): string {
  const best = keepBest > 0 ? ` and the ${several(keepBest, 'best')}` : '';
  return `the ${several(keep, 'newest')}${best}, and one that is written,`;
}

/** By whether it fits. */
const COPY_OF_STATE = { true: ': there is room for', false: ': there is no room for', null: ', if there is room for' };

/** The plan as tables. */
function text(
  name: string,
  { facts, memory, step, total, ...plan }: TrainingPlan,
  machines: Machines,
  config: TrainerConfig,
  from: MemoryOf['from'],
) {
  const { kind } = machines;
  const parts = (of: readonly MemoryPart[]): [string, string][] =>
    of.map((part) => [part.name, `${gib(part.bytes).padStart(9)}  ${part.why}`]);
  const perTrainer = facts.replicas === 1 ? '' : ` for each of ${facts.replicas} trainers`;
  const unit = kind.type === 'cpu' ? `CPU, ${counted(machines.threads, 'thread')}` : kind.name;
  const copyIsHere = (on: 'device' | 'host') => kind.type === 'cpu' || memory.copy.on === on;
  const headline = (bytes: number, on: 'device' | 'host', limit: number | null, where: string) =>
    copyIsHere(on)
      ? `${gib(bytes)}, ${gib(bytes + memory.checkpointCopy)} while a checkpoint is written` +
        verdict(bytes, limit, { where, separator: ',', copyFits: memory.copy.fits })
      : gib(bytes) + verdict(bytes, limit, { where });
  const where = from === 'machine' ? ' available on this machine' : '';
  const { bytes, keptBytes, storageBytes, fit } = plan.checkpoints;
  const stages = Object.entries(step.stages).filter(([, seconds]) => seconds > 0);
  const lines = [
    `${name}: ${counted(facts.numClasses, 'identity', count)}, ` +
      `${counted(facts.globalBatchSize, 'picture', count)} a step, ` +
      `${facts.replicas} x ${unit}, ${facts.precision.toUpperCase()}\n`,
    `\nMemory${perTrainer}: ${headline(memory.deviceBytes, 'device', memory.usableBytes, where)}\n`,
    table(parts(memory.device)),
    ...(memory.host.length > 0
      ? [
          `\nHost memory${perTrainer}: ${headline(memory.hostBytes, 'host', memory.hostLimitBytes, '')}\n`,
          table(parts(memory.host)),
        ]
      : []),
    `\nTraining ${memory.copy.fits === false ? 'waits' : 'goes on'} while a checkpoint is written` +
      `${COPY_OF_STATE[String(memory.copy.fits) as keyof typeof COPY_OF_STATE]} a copy of the state ` +
      `(${gib(memory.checkpointCopy)}).\n`,
    `A checkpoint takes ${decimalBytes(bytes)}; ${kept(config)} need ${decimalBytes(keptBytes)}` +
      (storageBytes === null
        ? ' of storage.\n'
        : `, and the disk has room for ${decimalBytes(storageBytes)}: ${fit ? 'they fit' : 'THEY DO NOT FIT'}.\n`),
    ...(facts.keepsSteps
      ? [`To keep each step in memory, a trainer copies ${decimalBytes(plan.keptBytesOfStep)} in it.\n`]
      : []),
    `\nStep: about ${milliseconds(step.seconds)}, ${count(Math.round(step.imagesPerSecond))} pictures/s` +
      `${kind.measured ? '' : ' (from the data sheet of this GPU; not measured)'}\n`,
    table(stages.map(([stage, seconds]) => [stage, milliseconds(seconds).padStart(9)])),
    ...(step.collectives.length > 0
      ? [
          '\nCollectives of a step, sent by each trainer\n',
          table(
            step.collectives.map(({ name: of, bytes, seconds }) => [
              of,
              `${gib(bytes).padStart(9)}, ${milliseconds(seconds)}`,
            ]),
          ),
        ]
      : []),
    ...(total ? [`\nTraining: ${counted(total.steps, 'step', count)}, about ${duration(total.seconds)}\n`] : []),
    ...(plan.toFit.length > 0
      ? ['\nIt would fit with one of these:\n', ...plan.toFit.map((each) => `  - ${each.text}\n`)]
      : []),
    ...(plan.advice.length > 0 ? ['\nAdvice:\n', ...plan.advice.map((each) => `  - ${each.text}\n`)] : []),
  ];
  return lines.join('');
}

/**
 * @param limit null: not known
 * @param copyFits false: training waits while a checkpoint is written
 */
function verdict(
  bytes: number,
  limit: number | null,
  { where, separator = '', copyFits = null }: { where: string; separator?: string; copyFits?: boolean | null },
): string {
  if (limit === null) return '';
  if (bytes > limit) return `; there are ${gib(limit)}${where}: IT DOES NOT FIT`;
  const waits = copyFits === false ? ', but training waits while a checkpoint is written' : '';
  return `${separator} of ${gib(limit)}${where}: it fits${waits}`;
}
