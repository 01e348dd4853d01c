/** The sample rate of each step: one definition for the trainers and for estimates. Pure. */
import type { TrainerConfig } from './trainer-config.ts';

type Rates = Pick<TrainerConfig['loss'], 'sampleRate' | 'sampleRateChanges'>;

/** Another sample rate, from a step on. */
export interface SampleRateChange {
  fromStep: number;
  rate: number;
}

/** By ascending step. An epoch is rounded to steps; of two changes at one step the later one holds. */
export function sampleRateSteps({ sampleRateChanges }: Rates, stepsPerEpoch: number): SampleRateChange[] {
  return sampleRateChanges.map(({ fromEpoch, rate }) => ({ fromStep: Math.round(fromEpoch * stepsPerEpoch), rate }));
}

/** By the step's number alone, which counts from 0. As sample_rate_at in native/pfc/partial_fc.h. */
export function sampleRateAt(step: number, first: number, changes: readonly SampleRateChange[]): number {
  return changes.findLast(({ fromStep }) => fromStep <= step)?.rate ?? first;
}

/** It decides the memory. */
export function largestSampleRate({ sampleRate, sampleRateChanges }: Rates): number {
  return Math.max(sampleRate, ...sampleRateChanges.map(({ rate }) => rate));
}
