/** The progress of a training in the status of its job, for people. */
import type { TrainingProgress } from '@facetrain/api';
import { duration } from '../terminal-output.ts';

const WIDTH = 30;

/** [#########---------------------] 30 %, step 60 of 200 */
export function bar({ percent, step, totalSteps }: TrainingProgress): string {
  const filled = Math.round((WIDTH * percent) / 100);
  return `[${'#'.repeat(filled)}${'-'.repeat(WIDTH - filled)}] ${percent} %, step ${step} of ${totalSteps}`;
}

/** epoch 1.5, loss 9.50, 40 images/s, 3 min 20 s left */
export function speedAndTime({ epoch, loss, imagesPerSecond, estimatedCompletionTime: end }: TrainingProgress): string {
  return [
    epoch > 0 ? `epoch ${epoch.toFixed(1)}` : '',
    loss === undefined ? '' : `loss ${loss.toFixed(2)}`,
    imagesPerSecond === undefined ? '' : `${imagesPerSecond.toFixed(0)} images/s`,
    end === undefined ? '' : `${duration(Math.max(0, (Date.parse(end) - Date.now()) / 1000))} left`,
  ]
    .filter((part) => part !== '')
    .join(', ');
}
