/** Whether verification sets have the pairs that bounds of a quantization's gate are judged on. */
import { FacetrainError, type QuantizeConfig } from '@facetrain/api';
import type { VerificationSet } from './verification-set.ts';

/** The bounds that need so many pairs of a kind. */
export type PairBounds = Pick<QuantizeConfig['gate'], 'maxTarDrop' | 'maxGroupAccuracyDrop' | 'maxGroupTarDrop'>;

/**
 * An accuracy is a mean of ten shares, and rounded: 0.98 - 0.97 is more than 0.01. One pair of a million changes it by
 * much more than this.
 */
export const ROUNDING = 1e-12;

/** Pairs that a group needs so that one of them changes its accuracy, or its true accept rate, by no more. */
export function fewestPairs(largestDrop: number): number {
  // A bound of zero forbids any loss, so even one pair is judged. The quotient may be rounded to above a whole number.
  return largestDrop === 0 ? 1 : Math.ceil((1 - ROUNDING) / largestDrop);
}

/** Pairs of different people that the highest false accept rate of the report, one in ten, needs. */
const FEWEST_NEGATIVES = 10;

/**
 * @throws FacetrainError InvalidConfig when the gate bounds true accept rates and no set has enough pairs for any, or
 *   groups and no set has one with enough pairs
 */
export function checkGateHasPairs(bounds: PairBounds, sets: readonly Set[]): void {
  const resolved = sets.filter((set) => negatives(set) >= FEWEST_NEGATIVES);
  for (const name of ['maxTarDrop', 'maxGroupTarDrop'] as const) {
    if (bounds[name] === undefined || resolved.length > 0) continue;
    const most = Math.max(...sets.map(negatives));
    throw new FacetrainError({
      code: 'InvalidConfig',
      subject: `gate.${name}`,
      found: `no evaluation set has more than ${most} pairs of different people`,
      allowed: `a set with ${FEWEST_NEGATIVES} for a false accept rate of 1e-1, with 1,000 for 1e-3; or no bound`,
    });
  }
  checkGateHasGroups('maxGroupAccuracyDrop', bounds, sets, 'pairs', () => true);
  checkGateHasGroups('maxGroupTarDrop', bounds, resolved, 'pairs of one person', ({ same }, pair) => same[pair]!);
}

type Set = Pick<VerificationSet, 'same' | 'groups'>;

const negatives = ({ same }: Set) => same.filter((isSame) => !isSame).length;

/** @param counts whether the bound is judged on a pair: called `what` in messages */
function checkGateHasGroups(
  name: 'maxGroupAccuracyDrop' | 'maxGroupTarDrop',
  { [name]: bound }: PairBounds,
  sets: readonly Set[],
  what: string,
  counts: (set: Set, pair: number) => boolean,
): void {
  if (bound === undefined) return;
  const sizes = sets.flatMap((set) => {
    const pairs = [...(set.groups ?? []).entries()].filter(([pair]) => counts(set, pair));
    return [...Map.groupBy(pairs, ([, group]) => group).values()].map(({ length }) => length);
  });
  const most = Math.max(0, ...sizes);
  const needed = fewestPairs(bound);
  if (most >= needed) return;
  throw new FacetrainError({
    code: 'InvalidConfig',
    subject: `gate.${name}`,
    found: sets.some(({ groups }) => groups)
      ? `no group has more than ${most} ${what}`
      : 'no evaluation set has groups',
    allowed: `evaluation.sets[].groups (--groups), one with ${needed} ${what} or more for ${bound}; or no bound`,
  });
}
