/** The learning rate of every step, and which steps are followed by an evaluation or a checkpoint. Pure. */
import type { TrainerConfig } from '@facetrain/api';

export interface Schedule {
  type: 'polynomial' | 'constant';
  power: number;
  /** May be a fraction. */
  warmupSteps: number;
  totalSteps: number;
  /** After the warm-up. */
  learningRate: number;
}

export function scheduleOf(
  { schedule, optimizer }: TrainerConfig,
  { stepsPerEpoch, totalSteps }: { stepsPerEpoch: number; totalSteps: number },
): Schedule {
  const { type, power, warmupEpochs } = schedule;
  return { type, power, warmupSteps: warmupEpochs * stepsPerEpoch, totalSteps, learningRate: optimizer.learningRate };
}

/**
 * Linear warm-up to the rate lr over w steps, then lr · (1 − (t − w) / (T − w))^power, or constantly lr; t counts from
 * 0. As insightface's PolynomialLRWarmup, except that the warm-up starts at lr / w. The reference starts at 0, which
 * wastes a step.
 */
export function learningRateAt(step: number, { type, power, warmupSteps, totalSteps, learningRate }: Schedule): number {
  if (step < warmupSteps) return (learningRate * (step + 1)) / Math.max(warmupSteps, 1);
  if (type === 'constant') return learningRate;
  return learningRate * (1 - (step - warmupSteps) / (totalSteps - warmupSteps)) ** power;
}

/** Whether one of the two intervals ends after `done` steps. `everyEpochs` may be a fraction. */
export function isDue(
  done: number,
  every: { everyEpochs: number | null; everySteps: number | null },
  stepsPerEpoch: number,
): boolean {
  const byEpochs = every.everyEpochs === null ? null : Math.max(1, Math.round(every.everyEpochs * stepsPerEpoch));
  return [byEpochs, every.everySteps].some((interval) => interval !== null && done % interval === 0);
}

/** Whether a checkpoint is due after `done` steps: by its own intervals, or because an evaluation judges the state. */
export function isCheckpointDue(
  done: number,
  { checkpoint, evaluation }: Pick<TrainerConfig, 'checkpoint' | 'evaluation'>,
  stepsPerEpoch: number,
): boolean {
  const isJudged = checkpoint.keepBest > 0 && evaluation.sets.length > 0;
  return isDue(done, checkpoint, stepsPerEpoch) || (isJudged && isDue(done, evaluation, stepsPerEpoch));
}
