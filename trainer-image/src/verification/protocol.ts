/**
 * Face verification: how well embeddings decide whether two pictures show the same person. The protocol of LFW as in
 * insightface (recognition/arcface_torch/eval/verification.py), so figures can be compared with published ones.
 */
import { lengthOf } from './check-embeddings.ts';
import { FOLDS } from './verification-set.ts';

export interface Verification {
  pairs: number;
  /** Mean over ten folds of the accuracy on a fold, at the threshold that is best on the other nine. */
  accuracy: number;
  /** Population standard deviation over the folds. */
  std: number;
  /** Squared distance of unit embeddings below which a pair counts as the same person: mean over the folds. */
  threshold: number;
  /**
   * True accept rate by false accept rate f: the fraction of pairs of the same person that are accepted with the
   * largest threshold that accepts at most floor(f x negatives) of the pairs of different people. Rates at which no
   * negative may be accepted are left out, except 1e-3.
   */
  tarAtFar: Record<string, number>;
}

const THRESHOLDS = Array.from({ length: 400 }, (_, i) => i * 0.01);
const FALSE_ACCEPT_RATES: [name: string, oneIn: number][] = [
  ['1e-1', 10],
  ['1e-2', 100],
  ['1e-3', 1000],
];

/** Squared distances of the normalized embeddings of each pair. */
function distances(embeddings: Float32Array, dim: number, pairs: number): Float64Array {
  const norm = (picture: number): number => lengthOf(embeddings, dim, picture);
  return Float64Array.from({ length: pairs }, (_, pair) => {
    const a = 2 * pair * dim;
    const b = a + dim;
    const [lengthA, lengthB] = [norm(2 * pair), norm(2 * pair + 1)];
    let sum = 0;
    for (let i = 0; i < dim; i++) sum += (embeddings[a + i]! / lengthA - embeddings[b + i]! / lengthB) ** 2;
    return sum;
  });
}

/** Consecutive folds as in scikit-learn's KFold without shuffling: the first `pairs % FOLDS` have one pair more. */
function foldOf(pair: number, pairs: number): number {
  const size = Math.floor(pairs / FOLDS);
  const longer = pairs % FOLDS;
  return pair < longer * (size + 1)
    ? Math.floor(pair / (size + 1))
    : longer + Math.floor((pair - longer * (size + 1)) / size);
}

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

function tarAtFar(distance: Float64Array, same: readonly boolean[]): Record<string, number> {
  const positives = distance.filter((_, pair) => same[pair]);
  const negatives = distance.filter((_, pair) => !same[pair]).sort();
  const rates = FALSE_ACCEPT_RATES.filter(([name, oneIn]) => negatives.length >= oneIn || name === '1e-3');
  return Object.fromEntries(
    rates.map(([name, oneIn]) => {
      const nearestRefused = negatives[Math.floor(negatives.length / oneIn)]!;
      return [name, positives.filter((d) => d < nearestRefused).length / positives.length];
    }),
  );
}

/**
 * @param embeddings [2 x pairs, dim], not normalized; 2i and 2i + 1 are pair i
 * @param same by pair: at least ten, of both kinds (readVerificationSet checks this)
 * @throws FacetrainError NotANumber for an embedding of length zero, or not finite
 */
export function verify(embeddings: Float32Array, dim: number, same: readonly boolean[]): Verification {
  const pairs = same.length;
  if (embeddings.length !== 2 * pairs * dim)
    throw new RangeError(`${embeddings.length} numbers are not two embeddings of ${dim} for ${pairs} pairs`);
  const distance = distances(embeddings, dim, pairs);

  // Correct answers by fold and threshold. Those on the nine other folds are the total less those on the fold.
  const foldSizes = new Array<number>(FOLDS).fill(0);
  const correct = Array.from({ length: FOLDS }, () => new Int32Array(THRESHOLDS.length));
  const correctTotal = new Int32Array(THRESHOLDS.length);
  for (let pair = 0; pair < pairs; pair++) {
    const fold = foldOf(pair, pairs);
    foldSizes[fold]! += 1;
    for (let t = 0; t < THRESHOLDS.length; t++) {
      if (distance[pair]! < THRESHOLDS[t]! !== same[pair]) continue;
      correct[fold]![t]! += 1;
      correctTotal[t]! += 1;
    }
  }
  const best = correct.map((ofFold) => {
    const others = correctTotal.map((total, t) => total - ofFold[t]!);
    return others.indexOf(Math.max(...others));
  });
  const accuracies = best.map((t, fold) => correct[fold]![t]! / foldSizes[fold]!);
  const accuracy = mean(accuracies);
  return {
    pairs,
    accuracy,
    std: Math.sqrt(mean(accuracies.map((a) => (a - accuracy) ** 2))),
    threshold: mean(best.map((t) => THRESHOLDS[t]!)),
    tarAtFar: tarAtFar(distance, same),
  };
}
