/** The learning rate of every step, and which steps are followed by an evaluation or a checkpoint. Pure arithmetic. */

export interface Schedule {
  type: 'polynomial' | 'constant';
  power: number;
  warmupSteps: number;
  totalSteps: number;
  learningRate: number;
}

/**
 * Linear warm-up to the configured rate over w steps, then lr · (1 − (t − w) / (T − w))^power, or lr itself. Step t is counted from 0.
 * insightface's PolynomialLRWarmup but for the warm-up's first step: it begins at lr / w, where the reference wastes a step on 0.
 */
export function learningRateAt(step: number, { type, power, warmupSteps, totalSteps, learningRate }: Schedule): number {
  if (step < warmupSteps) return (learningRate * (step + 1)) / Math.max(warmupSteps, 1);
  if (type === 'constant') return learningRate;
  return learningRate * (1 - (step - warmupSteps) / (totalSteps - warmupSteps)) ** power;
}

/** Whether an interval ends with the step that makes `done` steps; epochs may be fractions, and each interval counts by itself. */
export function isDue(
  done: number,
  every: { everyEpochs: number | null; everySteps: number | null },
  stepsPerEpoch: number,
): boolean {
  const byEpochs = every.everyEpochs === null ? null : Math.max(1, Math.round(every.everyEpochs * stepsPerEpoch));
  return [byEpochs, every.everySteps].some((interval) => interval !== null && done % interval === 0);
}
