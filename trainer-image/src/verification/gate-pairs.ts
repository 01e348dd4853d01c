/** Whether verification sets have the pairs that bounds of a quantization's gate are judged on. */
import { FacetrainError, type QuantizeConfig } from '@facetrain/api';
import type { VerificationSet } from './verification-set.ts';

/** The bounds that need so many pairs of a kind. */
export type PairBounds = Pick<QuantizeConfig['gate'], 'maxTarDrop' | 'maxGroupAccuracyDrop'>;

/**
 * An accuracy is a mean of ten shares, and rounded: 0.98 - 0.97 is more than 0.01. One pair of a million changes it by
 * much more than this.
 */
export const ROUNDING = 1e-12;

/** Pairs that a group needs so that one of them changes its accuracy by no more than the bound. */
export function fewestPairs(maxGroupAccuracyDrop: number): number {
  // A bound of zero forbids any loss, so even one pair is judged. The quotient may be rounded to above a whole number.
  return maxGroupAccuracyDrop === 0 ? 1 : Math.ceil((1 - ROUNDING) / maxGroupAccuracyDrop);
}

/** Pairs of different people that the highest false accept rate of the report, one in ten, needs. */
const FEWEST_NEGATIVES = 10;

/**
 * @throws FacetrainError InvalidConfig when the gate bounds true accept rates and no set has enough pairs for any, or
 *   groups and no set has one with enough pairs
 */
export function checkGateHasPairs(
  { maxTarDrop, maxGroupAccuracyDrop }: PairBounds,
  sets: readonly Pick<VerificationSet, 'same' | 'groups'>[],
): void {
  if (maxGroupAccuracyDrop !== undefined) checkGateHasGroups(maxGroupAccuracyDrop, sets);
  const most = Math.max(...sets.map(({ same }) => same.filter((isSame) => !isSame).length));
  if (maxTarDrop === undefined || most >= FEWEST_NEGATIVES) return;
  throw new FacetrainError({
    code: 'InvalidConfig',
    subject: 'gate.maxTarDrop',
    found: `no evaluation set has more than ${most} pairs of different people`,
    allowed: `a set with ${FEWEST_NEGATIVES} for a false accept rate of 1e-1, with 1,000 for 1e-3; or no bound`,
  });
}

function checkGateHasGroups(bound: number, sets: readonly Pick<VerificationSet, 'groups'>[]): void {
  const sizes = sets.flatMap(({ groups = [] }) => [...Map.groupBy(groups, (group) => group).values()]);
  const most = Math.max(0, ...sizes.map(({ length }) => length));
  const needed = fewestPairs(bound);
  if (most >= needed) return;
  throw new FacetrainError({
    code: 'InvalidConfig',
    subject: 'gate.maxGroupAccuracyDrop',
    found: most === 0 ? 'no evaluation set has groups' : `no group has more than ${most} pairs`,
    allowed: `evaluation.sets[].groups (--groups), one of them with ${needed} pairs or more for ${bound}; or no bound`,
  });
}
