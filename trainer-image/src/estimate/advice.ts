/** What would make a training faster or smaller, in plain words with figures. Pure. */
import { counted } from '@facetrain/api';
import type { Advice } from './fitting.ts';
import { type Machines, stepTime } from './step-time.ts';
import {
  onHost,
  picturesOfRank,
  rowBytes,
  rowsOfRank,
  sumOf,
  type TrainingFacts,
  trainingMemory,
} from './training-memory.ts';

/** Identities from which on the head is worth sampling, as the API's description of sampleRate says. */
const MANY_CLASSES = 100_000;
/** A part of the step or of the memory from which on it is worth a word. */
const NOTABLE_SHARE = 0.25;
/** A gain of speed that is worth a change. */
const NOTABLE_GAIN = 1.15;

const bytesOf = (facts: TrainingFacts) => sumOf(trainingMemory(facts).device);
const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

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
        `globalBatchSize ${facts.globalBatchSize}: a GPU is busy only in part ` +
        `with ${counted(pictures, 'picture')} a step; ` +
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
