/**
 * How well embeddings tell whether two pictures show one person: the protocol of LFW as insightface runs it
 * (recognition/arcface_torch/eval/verification.py), so that figures can be compared with published ones.
 */
import { FacetrainError } from '@facetrain/api';
import { folds } from './set.ts';

export interface Verification {
  pairs: number;
  /** Mean over ten folds of the accuracy on a fold, at the threshold that is best on the other nine. */
  accuracy: number;
  /** Population standard deviation over the folds. */
  std: number;
  /** Squared distance of unit embeddings below which a pair counts as the same person: mean over the folds. */
  threshold: number;
  /**
   * True accept rate by false accept rate f: with the largest threshold that accepts at most floor(f x negatives) of the pairs of
   * different people, the fraction of pairs of one person that it accepts. Rates at which no negative may be accepted are left out,
   * except 1e-3.
   */
  tarAtFar: Record<string, number>;
}

const thresholds = Array.from({ length: 400 }, (_, i) => i * 0.01);
const falseAcceptRates: [name: string, oneIn: number][] = [
  ['1e-1', 10],
  ['1e-2', 100],
  ['1e-3', 1000],
];

/** Squared distances of the normalised embeddings of each pair. */
function distances(embeddings: Float32Array, dim: number, pairs: number): Float64Array {
  const norm = (picture: number): number => {
    let sum = 0;
    for (let i = picture * dim; i < (picture + 1) * dim; i++) sum += embeddings[i]! ** 2;
    const length = Math.sqrt(sum);
    if (!Number.isFinite(length) || length === 0) {
      throw new FacetrainError({
        code: 'NotANumber',
        subject: `embedding of picture ${picture}`,
        found: `its length is ${length}`,
        allowed: 'a finite vector that is not zero',
      });
    }
    return length;
  };
  return Float64Array.from({ length: pairs }, (_, pair) => {
    const a = 2 * pair * dim;
    const b = a + dim;
    const [lengthA, lengthB] = [norm(2 * pair), norm(2 * pair + 1)];
    let sum = 0;
    for (let i = 0; i < dim; i++) sum += (embeddings[a + i]! / lengthA - embeddings[b + i]! / lengthB) ** 2;
    return sum;
  });
}

/** Consecutive folds as scikit-learn's KFold without shuffling cuts them: the first `pairs % folds` have one pair more. */
function foldOf(pair: number, pairs: number): number {
  const size = Math.floor(pairs / folds);
  const longer = pairs % folds;
  return pair < longer * (size + 1)
    ? Math.floor(pair / (size + 1))
    : longer + Math.floor((pair - longer * (size + 1)) / size);
}

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

function tarAtFar(distance: Float64Array, same: readonly boolean[]): Record<string, number> {
  const positives = distance.filter((_, pair) => same[pair]);
  const negatives = distance.filter((_, pair) => !same[pair]).sort();
  const rates = falseAcceptRates.filter(([name, oneIn]) => negatives.length >= oneIn || name === '1e-3');
  return Object.fromEntries(
    rates.map(([name, oneIn]) => {
      const nearestRefused = negatives[Math.floor(negatives.length / oneIn)]!;
      return [name, positives.filter((d) => d < nearestRefused).length / positives.length];
    }),
  );
}

/**
 * @param embeddings [2 x pairs, dim], not normalised; 2i and 2i + 1 are pair i
 * @param same by pair, at least ten, both kinds (as readVerificationSet sees to)
 * @throws FacetrainError NotANumber for an embedding that has no direction
 */
export function verify(embeddings: Float32Array, dim: number, same: readonly boolean[]): Verification {
  const pairs = same.length;
  if (embeddings.length !== 2 * pairs * dim)
    throw new RangeError(`${embeddings.length} numbers are not two embeddings of ${dim} for ${pairs} pairs`);
  const distance = distances(embeddings, dim, pairs);

  // Right answers by fold and threshold; those on the nine other folds are the difference to the sum.
  const foldSizes = new Array<number>(folds).fill(0);
  const right = Array.from({ length: folds }, () => new Int32Array(thresholds.length));
  const rightTotal = new Int32Array(thresholds.length);
  for (let pair = 0; pair < pairs; pair++) {
    const fold = foldOf(pair, pairs);
    foldSizes[fold]! += 1;
    for (let t = 0; t < thresholds.length; t++) {
      if (distance[pair]! < thresholds[t]! !== same[pair]) continue;
      right[fold]![t]! += 1;
      rightTotal[t]! += 1;
    }
  }
  const best = right.map((ofFold) => {
    const others = rightTotal.map((total, t) => total - ofFold[t]!);
    return others.indexOf(Math.max(...others));
  });
  const accuracies = best.map((t, fold) => right[fold]![t]! / foldSizes[fold]!);
  const accuracy = mean(accuracies);
  return {
    pairs,
    accuracy,
    std: Math.sqrt(mean(accuracies.map((a) => (a - accuracy) ** 2))),
    threshold: mean(best.map((t) => thresholds[t]!)),
    tarAtFar: tarAtFar(distance, same),
  };
}
