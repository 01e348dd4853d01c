/** The success policy: when training has succeeded. */
import type { FaceTrainJobSpec } from '@facetrain/api';
import { type JobView, outcomeOf } from '../attempt.ts';

export function trainingSucceeded({ successPolicy }: FaceTrainJobSpec, { ranks }: JobView): boolean {
  // A pod of several ranks ends when all of them have: with RankZero, those of pod 0.
  const needed = successPolicy === 'RankZero' ? ranks.slice(0, 1) : ranks;
  return needed.every((pod) => pod !== undefined && outcomeOf(pod) === 'succeeded');
}
