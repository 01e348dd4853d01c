/** Which changes of a job make it fit: each, and each combination, is tried by the estimate. Pure. */
import { DEVICE_KINDS, type DeviceKind } from './device-kinds.ts';
import {
  checkpointBytes,
  picturesOfRank,
  sumOf,
  type TrainingFacts,
  trainingMemory,
  usableBytes,
} from './training-memory.ts';

export interface Advice {
  /** The fields to change, as paths in the spec with their new values; empty: nothing to change. */
  change: Record<string, string | number | boolean | readonly []>;
  text: string;
}

/** What there is for a job. */
export interface Room {
  /** Of a rank's device; null: not known. */
  deviceBytes: number | null;
  /** Of a rank's process on the host; null: without a limit. 0 of it are needed on a CPU, where it is the device. */
  hostBytes: number | null;
  /** For the checkpoints; null: not known. */
  storageBytes: number | null;
  /** Which of them is the limit of a trainer's container. */
  limit: 'deviceBytes' | 'hostBytes' | null;
  /** Whether all ranks are on one machine: more ranks have less memory each. */
  isShared: boolean;
}

/** What decides whether a job fits. */
export interface PlannedJob {
  facts: TrainingFacts;
  /** Whether class centres go to the host where the device has no room. */
  isPlacementAuto: boolean;
  /** Checkpoints: the newest, and the best. */
  keep: number;
  keepBest: number;
  room: Room;
}

/** What a job takes of its room. */
export type Needs = Record<'deviceBytes' | 'hostBytes' | 'storageBytes', number>;
const KINDS_OF_ROOM = ['deviceBytes', 'hostBytes', 'storageBytes'] as const;

/** With class centres where `auto` puts them, as open_session in native/train/session.cc. */
export function placed({ facts, isPlacementAuto, room: { deviceBytes } }: PlannedJob): TrainingFacts {
  if (!isPlacementAuto) return facts;
  const onDevice = { ...facts, rowsPlacement: 'device' as const };
  const isTooLarge =
    facts.device === 'cuda' && deviceBytes !== null && sumOf(trainingMemory(onDevice).device) > deviceBytes;
  return isTooLarge ? { ...facts, rowsPlacement: 'host' } : onDevice;
}

export function needsOf(job: PlannedJob): Needs {
  const facts = placed(job);
  const { device, host } = trainingMemory(facts);
  // One more while the next is written.
  const storageBytes = checkpointBytes(facts) * (job.keep + job.keepBest + 1);
  return { deviceBytes: sumOf(device), hostBytes: sumOf(host), storageBytes };
}

/** Of which kinds there is too little. */
export function lacking(job: PlannedJob): (keyof Needs)[] {
  const needs = needsOf(job);
  return KINDS_OF_ROOM.filter((kind) => needs[kind] > (job.room[kind] ?? Number.POSITIVE_INFINITY));
}

const fits = (job: PlannedJob) => lacking(job).length === 0;

/** A change of one field. */
interface Change {
  change: Advice['change'];
  name: string;
  /** What it does, for people. */
  why: string;
  apply: (job: PlannedJob) => PlannedJob;
}

/** Values of one field, those that change least first. */
type Field = Change[];

/** Largest gang of the API. */
const MOST_REPLICAS = 4096;
/** Identities of which a hundredth are enough negatives for a step. */
const VERY_MANY_CLASSES = 10_000_000;
/** Of the API's description of loss.rows.learningRate. */
const ADAGRAD_RATE = 0.01;
/** The least that is advised: a batch norm over fewer pictures is noise, and a batch changes the training. */
const LEAST = { microBatchSize: 16, partOfBatch: 1 / 4 };
/** Combinations of changes that are listed. */
const MOST_COMBINATIONS = 3;

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const withFacts = (changed: Partial<TrainingFacts>) => (job: PlannedJob) => ({
  ...job,
  facts: { ...job.facts, ...changed },
});

/**
 * Changes of one field after which a job fits, those that change least first. Where none of the fields does that leave
 * the machines as they are, also combinations of as few as possible.
 */
export function fittingChanges(job: PlannedJob, kind: DeviceKind): Advice[] {
  const [own, machines] = [fieldsOf(job), fieldsOfMachines(job)];
  const found = combinations(own, 1, job);
  for (let size = 2; found.length === 0 && size <= own.length; size++)
    found.push(...combinations(own, size, job).slice(0, MOST_COMBINATIONS));
  found.push(...combinations(machines, 1, job));
  const all = [...own, ...machines];
  for (let size = 2; found.length === 0 && size <= all.length; size++)
    found.push(...combinations(all, size, job).slice(0, MOST_COMBINATIONS));
  const larger = largerGpu(job, kind);
  if (larger) found.push(larger);
  if (found.length > 0) return found;
  const least = needsOf(strongest(all).reduce((changed, { apply }) => apply(changed), job)).deviceBytes;
  return [{ change: {}, text: `another device: with all changes of this kind together it takes ${gib(least)}` }];
}

/** Of each choice of `size` fields the values that change least, if any make the job fit. */
function combinations(fields: readonly Field[], size: number, job: PlannedJob): Advice[] {
  return subsets(fields, size).flatMap((chosen) => {
    // Memory falls with each value of a field: when the last ones are not enough, no others are.
    if (!fits(applied(strongest(chosen), job))) return [];
    const values = product(chosen).find((changes) => {
      const changed = applied(changes, job);
      return isAllowed(changed.facts) && fits(changed);
    });
    return values ? [described(values, job)] : [];
  });
}

const applied = (changes: readonly Change[], job: PlannedJob) => changes.reduce((so, { apply }) => apply(so), job);
const strongest = (fields: readonly Field[]): Change[] => fields.map((field) => field.at(-1)!);

function subsets<T>(values: readonly T[], size: number): T[][] {
  if (size === 0) return [[]];
  return values.flatMap((value, index) => subsets(values.slice(index + 1), size - 1).map((rest) => [value, ...rest]));
}

const product = (fields: readonly Field[]): Change[][] =>
  fields.reduce<Change[][]>((so, field) => so.flatMap((changes) => field.map((each) => [...changes, each])), [[]]);

/** Whether the API takes it: whole micro-batches, one or more for each trainer, also of an elastic gang's largest. */
function isAllowed({ globalBatchSize, microBatchSize, replicas, maxReplicas }: TrainingFacts): boolean {
  const unit = microBatchSize ?? 1;
  return (
    globalBatchSize % unit === 0 &&
    globalBatchSize >= unit * (maxReplicas ?? replicas) &&
    replicas <= (maxReplicas ?? MOST_REPLICAS)
  );
}

function described(changes: readonly Change[], before: PlannedJob): Advice {
  const job = applied(changes, before);
  const needs = needsOf(job);
  const names = changes.map(({ name }) => name);
  const change: Advice['change'] = Object.assign({}, ...changes.map((each) => each.change));
  const { limit } = before.room;
  if (limit !== null && job.room.limit === null) {
    const memory = `${Math.ceil((needs[limit] * job.facts.ranksPerPod) / 2 ** 30)}Gi`;
    change['trainers.resources.limits.memory'] = memory;
    names.push(`trainers.resources.limits.memory ${memory} or more`);
  }
  if (before.room.storageBytes !== null && job.room.storageBytes === null) names.push('another checkpoint.uri');
  const lacked = lacking(before);
  const sizes = [
    gib(needs.deviceBytes),
    ...(placed(job).rowsPlacement === 'host' || lacked.includes('hostBytes')
      ? [`${gib(needs.hostBytes)} of the host`]
      : []),
    ...(lacked.includes('storageBytes') ? [`${(needs.storageBytes / 1e9).toFixed(1)} GB for checkpoints`] : []),
  ];
  const present = names.filter((name) => name !== '');
  const why = changes.length === 1 && changes[0]!.why ? `, ${changes[0]!.why}` : '';
  return { change, text: `${listed(present)}${why}: ${listed(sizes)}` };
}

const listed = (words: readonly string[]) =>
  words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`;

/** Fields that leave the machines as they are. */
function fieldsOf({ facts, isPlacementAuto, keep, keepBest }: PlannedJob): Field[] {
  const { sampleRateChanges, syncBatchNorm, globalBatchSize } = facts;
  // With batch norms over all ranks, each rank has one micro-batch: batch and micro-batch cannot change alone.
  const isBatchFixed = syncBatchNorm && facts.microBatchSize !== null;
  const fields: Field[] = [
    facts.rowsPrecision === 'fp32'
      ? [
          {
            change: { 'loss.rows.precision': 'BF16' },
            name: 'loss.rows.precision BF16',
            why: 'which halves class centres and their momentum',
            apply: withFacts({ rowsPrecision: 'bf16' }),
          },
        ]
      : [],
    facts.rowsOptimizer !== 'adagrad'
      ? [
          {
            change: { 'loss.rows.optimizer': 'AdaGrad', 'loss.rows.learningRate': ADAGRAD_RATE },
            name: `loss.rows.optimizer AdaGrad with a loss.rows.learningRate of about ${ADAGRAD_RATE}`,
            why: 'which keeps 4 bytes for a class',
            apply: withFacts({ rowsOptimizer: 'adagrad' }),
          },
        ]
      : [],
    [0.1, ...(facts.numClasses >= VERY_MANY_CLASSES ? [0.01] : [])]
      .filter((rate) => rate < facts.sampleRate)
      .map((rate) => ({
        change: { 'loss.sampleRate': rate, ...(sampleRateChanges && { 'loss.sampleRateChanges': [] as const }) },
        name: `loss.sampleRate ${rate}${sampleRateChanges ? ' in all steps' : ''}`,
        why: `a ${rate === 0.1 ? 'tenth' : 'hundredth'} of the negatives a step`,
        apply: withFacts({ sampleRate: rate }),
      })),
    (syncBatchNorm ? [] : halves(picturesOfRank(facts)).filter((size) => size >= LEAST.microBatchSize)).map((size) => ({
      change: { 'trainers.microBatchSize': size },
      name: `trainers.microBatchSize ${size}`,
      why: 'with batch norms over as many pictures',
      apply: withFacts({ microBatchSize: size }),
    })),
    facts.device === 'cuda' && facts.rowsPlacement === 'device' && !isPlacementAuto
      ? [
          {
            change: { 'loss.rows.placement': 'Host' },
            name: 'loss.rows.placement Host',
            why: 'with class centres in the memory of the machine and slower steps',
            apply: withFacts({ rowsPlacement: 'host' }),
          },
        ]
      : [],
    facts.checkpointActivations
      ? []
      : [
          {
            change: { 'model.checkpointActivations': true },
            name: 'model.checkpointActivations',
            why: 'with the same result and a third more time for the backbone',
            apply: withFacts({ checkpointActivations: true }),
          },
        ],
    (isBatchFixed ? [] : halves(globalBatchSize).filter((size) => size >= LEAST.partOfBatch * globalBatchSize)).map(
      (size) => ({
        change: { globalBatchSize: size },
        name: `globalBatchSize ${size}`,
        why: 'with a smaller rate',
        apply: withFacts({ globalBatchSize: size }),
      }),
    ),
    keepBest > 0
      ? [
          {
            change: { 'checkpoint.keepBest': 0 },
            name: 'checkpoint.keepBest 0',
            why: '',
            apply: (job: PlannedJob) => ({ ...job, keepBest: 0 }),
          },
        ]
      : [],
    halves(keep).map((count) => ({
      change: { 'checkpoint.keep': count },
      name: `checkpoint.keep ${count}`,
      why: 'with fewer steps to go back to',
      apply: (job: PlannedJob) => ({ ...job, keep: count }),
    })),
  ];
  return fields.filter((values) => values.length > 0);
}

/** More machines, or larger ones. */
function fieldsOfMachines(job: PlannedJob): Field[] {
  const { facts, room, isPlacementAuto } = job;
  const isFixed = facts.syncBatchNorm && facts.microBatchSize !== null;
  const lifted = (kind: keyof Needs) => (of: PlannedJob) => ({
    ...of,
    room: { ...of.room, [kind]: null, ...(kind === of.room.limit && { limit: null }) },
  });
  const { limit } = room;
  const canMove = facts.device === 'cuda' && facts.rowsPlacement === 'device' && !isPlacementAuto;
  const fields: Field[] = [
    (isFixed || room.isShared ? [] : doubles(facts.replicas)).map((count) => ({
      change: { 'trainers.replicas': count / facts.ranksPerPod },
      name: `trainers.replicas ${count / facts.ranksPerPod}`,
      why: 'which divide class centres and pictures',
      apply: withFacts({ replicas: count }),
    })),
    limit === null ? [] : [{ change: {}, name: '', why: '', apply: lifted(limit) }],
    limit === 'hostBytes' && canMove
      ? [
          {
            change: { 'loss.rows.placement': 'Host' },
            name: 'loss.rows.placement Host',
            why: '',
            apply: (of) => lifted('hostBytes')(withFacts({ rowsPlacement: 'host' })(of)),
          },
        ]
      : [],
    room.storageBytes === null ? [] : [{ change: {}, name: '', why: '', apply: lifted('storageBytes') }],
  ];
  return fields.filter((values) => values.length > 0);
}

/** The first kind of the same type on which nothing has to be changed. */
function largerGpu(job: PlannedJob, { type }: DeviceKind): Advice | undefined {
  const { deviceBytes } = job.room;
  if (deviceBytes === null || !lacking(job).includes('deviceBytes')) return undefined;
  for (const [name, other] of Object.entries(DEVICE_KINDS)) {
    const usable = usableBytes(other);
    if (other.type !== type || usable === null || usable <= deviceBytes) continue;
    if (fits({ ...job, room: { ...job.room, deviceBytes: usable } }))
      return { change: {}, text: `a larger GPU: --gpu ${name} (${other.name})` };
  }
  return undefined;
}

/** From the largest on. */
const halves = (value: number) =>
  Array.from({ length: Math.floor(Math.log2(value)) }, (_, i) => Math.floor(value / 2 ** (i + 1)));
const doubles = (value: number) =>
  Array.from({ length: 12 }, (_, i) => value * 2 ** (i + 1)).filter((count) => count <= MOST_REPLICAS);
