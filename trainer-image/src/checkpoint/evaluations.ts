/** `evaluations.json` in the folder of checkpoints: how they verify, by which the best are kept. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CHECKPOINT_EVALUATIONS, CheckpointEvaluations } from '@facetrain/api';
import { storageError } from '../storage/atomic-files.ts';
import type { Fence } from '../storage/fence.ts';
import { type CheckpointId, completeSteps } from './directory.ts';

export type Evaluation = CheckpointEvaluations['evaluations'][number];

/** None when the file is missing, or is not what it should be: then no checkpoint counts as evaluated. */
export async function readEvaluations(root: string): Promise<Evaluation[]> {
  const path = join(root, CHECKPOINT_EVALUATIONS);
  try {
    return CheckpointEvaluations.safeParse(JSON.parse(await readFile(path, 'utf8'))).data?.evaluations ?? [];
  } catch (error) {
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw storageError(path, error);
  }
}

/** The evaluation of a checkpoint. Where one of the two does not tell its time, job and step decide. */
export function evaluationOf(evaluations: readonly Evaluation[], checkpoint: CheckpointId): Evaluation | undefined {
  const { job, step, time } = checkpoint;
  return evaluations.find(
    (each) => each.job === job && each.step === step && (each.time ?? time) === (time ?? each.time),
  );
}

/** Over the sets. */
export const meanAccuracy = ({ sets }: Evaluation): number =>
  sets.reduce((sum, each) => sum + each.accuracy, 0) / sets.length;

/**
 * Adds an evaluation, in place of an earlier one of that job and step. Those of checkpoints that were deleted go. To be
 * called on rank 0.
 * @throws FacetrainError FencedOff, DiskFull, StorageFailed
 */
export async function noteEvaluation(fence: Fence, added: Evaluation): Promise<void> {
  const evaluations = withEvaluation(await readEvaluations(fence.folder), added, await completeSteps(fence.folder));
  const content: CheckpointEvaluations = { schemaVersion: 1, evaluations };
  await fence.write(join(fence.folder, CHECKPOINT_EVALUATIONS), `${JSON.stringify(content, null, 2)}\n`);
}

/**
 * @param steps of the checkpoints that there are. One that is newer than all of them may still be on its way
 */
export function withEvaluation(before: Evaluation[], added: Evaluation, steps: number[]): Evaluation[] {
  const newest = Math.max(0, ...steps);
  const others = before.filter(
    ({ job, step }) => (step > newest || steps.includes(step)) && !(job === added.job && step === added.step),
  );
  return [...others, added].toSorted((a, b) => a.step - b.step);
}
