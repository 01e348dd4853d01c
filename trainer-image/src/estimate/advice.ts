/** What would make a training fit, or faster, in plain words with figures. Pure. */
import { DEVICE_KINDS } from './device-kinds.ts';
import { type Machines, stepTime } from './step-time.ts';
import {
  onHost,
  picturesOfRank,
  rowBytes,
  rowsOfRank,
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

/** Identities from which on the head is worth sampling, as the API's description of sampleRate says. */
const MANY_CLASSES = 100_000;
/** A part of the step or of the memory from which on it is worth a word. */
const NOTABLE_SHARE = 0.25;
/** A gain of speed that is worth a change. */
const NOTABLE_GAIN = 1.15;
/** Largest gang of the API. */
const MOST_REPLICAS = 4096;

const bytesOf = (facts: TrainingFacts) => sumOf(trainingMemory(facts).device);
const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

/**
 * Changes of one field, or of two, after which a rank fits; the ones that change least first.
 * @param usable bytes of a rank's device
 * @param hostLimit of a rank's host memory; null: none, or not known
 */
export function fittingChanges(
  facts: TrainingFacts,
  { kind }: Machines,
  usable: number,
  hostLimit: number | null,
): Advice[] {
  const found: Advice[] = [];
  const tryChange = (changed: Partial<TrainingFacts>, change: Advice['change'], text: string) => {
    const bytes = bytesOf({ ...facts, ...changed });
    if (bytes > usable) return false;
    found.push({ change, text: `${text}: ${gib(bytes)}` });
    return true;
  };
  const bf16 = facts.rowsPrecision === 'fp32' ? { rowsPrecision: 'bf16' as const } : {};
  const bf16Change: Advice['change'] = facts.rowsPrecision === 'fp32' ? { 'loss.rows.precision': 'BF16' } : {};
  if (facts.rowsPrecision === 'fp32')
    tryChange(bf16, bf16Change, 'loss.rows.precision BF16, which halves class centres and their momentum');
  if (facts.sampleRate > 0.1) {
    const { sampleRateChanges } = facts;
    tryChange(
      { sampleRate: 0.1 },
      { 'loss.sampleRate': 0.1, ...(sampleRateChanges && { 'loss.sampleRateChanges': [] }) },
      `loss.sampleRate 0.1${sampleRateChanges ? ' in all steps' : ''}, a tenth of the negatives a step`,
    );
  }
  const pictures = picturesOfRank(facts);
  // An elastic gang must be able to have its largest size.
  const ranks = facts.maxReplicas ?? facts.replicas;
  const microBatchSize = largestFitting(
    // The batch norm that ends a backbone has no variance over a single picture.
    halves(pictures).filter(
      (size) =>
        size > 1 && facts.globalBatchSize % size === 0 && facts.globalBatchSize >= ranks * size && !facts.syncBatchNorm,
    ),
    (size) => bytesOf({ ...facts, microBatchSize: size }) <= usable,
  );
  if (microBatchSize !== undefined) {
    tryChange(
      { microBatchSize },
      { 'trainers.microBatchSize': microBatchSize },
      `trainers.microBatchSize ${microBatchSize}, with batch norms over as many pictures`,
    );
  }
  if (facts.device === 'cuda' && facts.rowsPlacement === 'device') {
    const hostBytes = sumOf(trainingMemory({ ...facts, rowsPlacement: 'host' }).host);
    const larger = hostLimit !== null && hostBytes > hostLimit ? largerLimit(hostBytes * facts.ranksPerPod) : undefined;
    tryChange(
      { rowsPlacement: 'host' },
      { 'loss.rows.placement': 'Host', ...larger?.change },
      'loss.rows.placement Host, with class centres in the memory of the machine and slower steps' +
        `${larger ? `, and ${larger.text}` : ''}`,
    );
  }
  if (!facts.checkpointActivations)
    tryChange(
      { checkpointActivations: true },
      { 'model.checkpointActivations': true },
      'model.checkpointActivations, with the same result and a third more time for the backbone',
    );
  // A batch is cut at whole micro-batches, one or more for each trainer.
  const unit = facts.microBatchSize ?? 1;
  // With batch norms over all ranks, each rank has one micro-batch: neither number can change alone.
  const isFixed = facts.syncBatchNorm && facts.microBatchSize !== null;
  const half = largestFitting(
    halves(facts.globalBatchSize).filter((batch) => batch % unit === 0 && batch >= unit * ranks && !isFixed),
    (globalBatchSize) => bytesOf({ ...facts, globalBatchSize }) <= usable,
  );
  if (half !== undefined)
    tryChange({ globalBatchSize: half }, { globalBatchSize: half }, `globalBatchSize ${half}, with a smaller rate`);
  for (const [changed, change, words] of [
    [{}, {}, ''],
    ...(facts.rowsPrecision === 'fp32' ? [[bf16, bf16Change, ' with loss.rows.precision BF16'] as const] : []),
  ] as const) {
    const replicas = doubles(facts.replicas).find(
      (count) =>
        unit * count <= facts.globalBatchSize &&
        count <= (facts.maxReplicas ?? MOST_REPLICAS) &&
        !isFixed &&
        bytesOf({ ...facts, ...changed, replicas: count }) <= usable,
    );
    if (replicas !== undefined)
      tryChange(
        { ...changed, replicas },
        { ...change, 'trainers.replicas': replicas / facts.ranksPerPod },
        `trainers.replicas ${replicas / facts.ranksPerPod}${words}, which divide class centres and pictures`,
      );
  }
  for (const [name, other] of Object.entries(DEVICE_KINDS)) {
    const most = usableBytes(other);
    if (other.type !== kind.type || most === null || most <= usable || bytesOf(facts) > most) continue;
    found.push({ change: {}, text: `a larger GPU: --gpu ${name} (${other.name})` });
    break;
  }
  if (found.length === 0) {
    const least = bytesOf({ ...facts, ...bf16, replicas: 1, globalBatchSize: 1, numClasses: 1 });
    found.push({
      change: {},
      text:
        least > usable
          ? `another device: the backbone and the program alone take ${gib(least)}`
          : 'several of these together: more trainers.replicas, BF16 rows, a model with fewer activations',
    });
  }
  return found;
}

/**
 * For a container whose limit leaves too little memory of the host.
 * @param hostBytes of all its ranks
 */
export function largerLimit(hostBytes: number): Advice {
  const limit = `${Math.ceil(hostBytes / 2 ** 30)}Gi`;
  return {
    change: { 'trainers.resources.limits.memory': limit },
    text: `trainers.resources.limits.memory ${limit} or more`,
  };
}

const halves = (value: number) =>
  Array.from({ length: Math.floor(Math.log2(value)) }, (_, i) => Math.floor(value / 2 ** (i + 1)));
const doubles = (value: number) =>
  Array.from({ length: 12 }, (_, i) => value * 2 ** (i + 1)).filter((count) => count <= MOST_REPLICAS);
const largestFitting = (values: number[], fits: (value: number) => boolean) => values.find(fits);

/** @param usable bytes of a rank's device; null: not known */
export function adviceFor(facts: TrainingFacts, machines: Machines, usable: number | null): Advice[] {
  return [
    sampleRateAdvice(facts, machines),
    precisionAdvice(facts, machines),
    rowsAdvice(facts),
    replicasAdvice(facts, machines),
    loaderAdvice(facts, machines),
    headroomAdvice(facts, usable),
  ].filter((advice) => advice !== undefined);
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`;

function sampleRateAdvice(facts: TrainingFacts, machines: Machines): Advice | undefined {
  // Who gives the rate of each epoch has weighed it.
  if (facts.sampleRateChanges) return undefined;
  const now = stepTime(facts, machines);
  const share = now.stages.head / now.seconds;
  const { sampleRate, numClasses } = facts;
  if (sampleRate > 0.1 && numClasses >= MANY_CLASSES && share > NOTABLE_SHARE) {
    const then = stepTime({ ...facts, sampleRate: 0.1 }, machines);
    return {
      change: { 'loss.sampleRate': 0.1 },
      text:
        `loss.sampleRate 0.1: Partial FC takes ${percent(share)} of a step; a tenth of the negatives makes the ` +
        `training ${(now.seconds / then.seconds).toFixed(1)} times as fast`,
    };
  }
  if (sampleRate < 1 && numClasses < MANY_CLASSES) {
    const then = stepTime({ ...facts, sampleRate: 1 }, machines);
    if (then.seconds > NOTABLE_GAIN * now.seconds) return undefined;
    return {
      change: { 'loss.sampleRate': 1 },
      text:
        `loss.sampleRate 1: with ${numClasses} identities, scoring all of them costs ` +
        `${percent(then.seconds / now.seconds - 1)} more time, and no accuracy is lost by sampling`,
    };
  }
  return undefined;
}

function precisionAdvice(facts: TrainingFacts, machines: Machines): Advice | undefined {
  if (facts.device === 'cpu' || facts.precision === 'bf16' || facts.precision === 'fp16') return undefined;
  const gain = stepTime(facts, machines).seconds / stepTime({ ...facts, precision: 'bf16' }, machines).seconds;
  if (gain < NOTABLE_GAIN) return undefined;
  return {
    change: { 'trainers.precision': 'BF16' },
    text:
      `trainers.precision BF16: ${gain.toFixed(1)} times as fast as ${facts.precision.toUpperCase()}, ` +
      'without a loss scale',
  };
}

function rowsAdvice(facts: TrainingFacts): Advice | undefined {
  if (facts.rowsPrecision === 'bf16' || onHost(facts)) return undefined;
  const { weight, state } = rowBytes(facts);
  const rows = rowsOfRank(facts) * (weight + state);
  const all = bytesOf(facts);
  if (rows < NOTABLE_SHARE * all) return undefined;
  return {
    change: { 'loss.rows.precision': 'BF16' },
    text:
      `loss.rows.precision BF16: class centres and their momentum take ${gib(rows)} of ${gib(all)} for each trainer; ` +
      'BF16 takes half, and checkpoints are half as large',
  };
}

function replicasAdvice(facts: TrainingFacts, machines: Machines): Advice | undefined {
  const { seconds, stages } = stepTime(facts, machines);
  const share = stages.communication / seconds;
  if (facts.replicas > 1 && share > NOTABLE_SHARE)
    return {
      change: {},
      text:
        `trainers.replicas ${facts.replicas / facts.ranksPerPod}: collectives take ${percent(share)} of a step; ` +
        'a larger globalBatchSize, fewer trainers, or a faster network (--network) make better use of them',
    };
  const pictures = picturesOfRank(facts);
  if (facts.device === 'cuda' && pictures < 64)
    return {
      change: {},
      text:
        `globalBatchSize ${facts.globalBatchSize}: ${pictures} pictures for each GPU keep it busy only in part; ` +
        '128 or more do',
    };
  return undefined;
}

function loaderAdvice(facts: TrainingFacts, machines: Machines): Advice | undefined {
  const { stages, seconds } = stepTime(facts, machines);
  if (stages.data <= 0.05 * seconds) return undefined;
  const threads = Math.ceil((machines.loaderThreads * seconds) / (seconds - stages.data));
  return {
    change: { 'trainers.loaderThreads': threads },
    text: `trainers.loaderThreads ${threads}: decoding takes longer than the step by ${percent(stages.data / seconds)}`,
  };
}

function headroomAdvice(facts: TrainingFacts, usable: number | null): Advice | undefined {
  const bytes = bytesOf(facts);
  if (usable === null || bytes > usable || bytes < 0.9 * usable) return undefined;
  return {
    change: {},
    text: `little room: ${gib(bytes)} of ${gib(usable)}; leave a tenth free, for what fragmentation takes`,
  };
}
