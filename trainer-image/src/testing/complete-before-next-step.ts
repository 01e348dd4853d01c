/**
 * For `node --import`: a step that follows one with a checkpoint begins only when that checkpoint is complete, and
 * fails after a minute without it. So the training ends only if no checkpoint needs another step. The environment has
 * FACETRAIN_TEST_CHECKPOINTS=FOLDER, and FACETRAIN_TEST_CHECKPOINT_EVERY=STEPS.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { TrainingSession } from '@facetrain/native';
import { completeSteps } from '../checkpoint/directory.ts';

const folder = process.env.FACETRAIN_TEST_CHECKPOINTS!;
const every = Number(process.env.FACETRAIN_TEST_CHECKPOINT_EVERY);

const { step } = TrainingSession.prototype;
TrainingSession.prototype.step = async function (...args: Parameters<typeof step>) {
  const [stepsDone] = args;
  if (stepsDone > 0 && stepsDone % every === 0)
    for (let looks = 0; !(await completeSteps(folder)).includes(stepsDone); looks++) {
      if (looks === 6000) throw new Error(`the checkpoint of step ${stepsDone} waits for another step`);
      await delay(10);
    }
  return step.apply(this, args);
};
