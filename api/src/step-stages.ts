/** Where the time of a training step goes: the stages that native/train/stage_clock.h measures on every rank. */
import { z } from 'zod';

/** In the order of a step, with what each is. */
export const STEP_STAGES = {
  data: 'waiting for the loader',
  upload: 'pictures to the device, and to floats',
  forward: 'forward pass of the backbone',
  head: 'Partial FC, forward and backward',
  backward: 'backward pass of the backbone',
  communication: 'collectives, with the wait for slower ranks, where no other stage hides them',
  update: 'clipping and SGD',
} as const;
export type StepStage = keyof typeof STEP_STAGES;
export const stepStages = Object.keys(STEP_STAGES) as StepStage[];

const seconds = z.number().min(0);

/** Seconds of one step by stage, which add up to the step. On a GPU, what each stage costs the GPU. */
export const StageSeconds = z.strictObject({
  data: seconds,
  upload: seconds,
  forward: seconds,
  head: seconds,
  backward: seconds,
  communication: seconds,
  update: seconds,
} satisfies Record<StepStage, z.ZodNumber>);
export type StageSeconds = z.infer<typeof StageSeconds>;

/** Share of a step that waits for the loader from which on it is worth a word to the user. */
export const NOTABLE_DATA_SHARE = 0.05;

/** The share of a step that waits for the loader, 0 to 1. */
export function dataShare(stages: StageSeconds): number {
  const all = stepStages.reduce((sum, stage) => sum + stages[stage], 0);
  return all === 0 ? 0 : stages.data / all;
}
