/**
 * Face verification: how well embeddings decide whether two pictures show the same person. The protocol of LFW as in
 * insightface (recognition/arcface_torch/eval/verification.py), so figures can be compared with published ones.
 */
import { lengthOf } from './check-embeddings.ts';
import { FOLDS } from './verification-set.ts';

/** How many pairs of one person are accepted, at thresholds by the pairs of different people. */
export interface AcceptRates {
  /**
   * True accept rate by false accept rate f: the fraction of pairs of the same person that are accepted with the
   * largest threshold that accepts at most floor(f x negatives) of the pairs of different people. Rates at which no
   * negative may be accepted are left out, except 1e-3.
   */
  tarAtFar: Record<string, number>;
  /** Rates that the set cannot resolve, with the pairs of different people that each needs. */
  unresolvedFar: Record<string, number>;
  /** Pairs of one person, and of two. */
  positives: number;
  negatives: number;
  /** 95 % intervals by the number of pairs: Wilson's score. */
  intervals: { tarAtFar: Record<string, Interval> };
}

export interface Verification extends AcceptRates {
  pairs: number;
  /** Mean over ten folds of the accuracy on a fold, at the threshold that is best on the other nine. */
  accuracy: number;
  /** Population standard deviation over the folds. */
  std: number;
  /** Squared distance of unit embeddings below which a pair counts as the same person: mean over the folds. */
  threshold: number;
  intervals: { accuracy: Interval; tarAtFar: Record<string, Interval> };
  /** Pairs by the smaller norm of the two embeddings, a quarter each, the smallest first: a picture's quality. */
  byNorm: { from: number; to: number; pairs: number; errors: number }[];
}

export type Interval = [low: number, high: number];

/** Figures of the pairs of one group, with the threshold of the whole set. */
export interface GroupFigures {
  group: string;
  pairs: number;
  accuracy: number;
  interval: Interval;
  /** Share of the pairs of different people that are accepted; null without such pairs. */
  falseAcceptRate: number | null;
  /** Share of the pairs of one person that are refused; null without such pairs. */
  falseRejectRate: number | null;
}

const THRESHOLDS = Array.from({ length: 400 }, (_, i) => i * 0.01);
const FALSE_ACCEPT_RATES: [name: string, oneIn: number][] = [
  ['1e-1', 10],
  ['1e-2', 100],
  ['1e-3', 1000],
  ['1e-4', 10_000],
  ['1e-5', 100_000],
  ['1e-6', 1_000_000],
];
/** Groups of byNorm. */
const NORM_GROUPS = 4;
/** Of a normal distribution, for 95 %. */
const Z95 = 1.96;

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

/** The interval that holds a probability of which `hits` of `all` draws were seen, by Wilson (1927). */
export function wilson(hits: number, all: number): Interval {
  const share = hits / all;
  const square = Z95 ** 2 / all;
  const centre = (share + square / 2) / (1 + square);
  const half = (Z95 / (1 + square)) * Math.sqrt((share * (1 - share)) / all + square / (4 * all));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

/**
 * @param distance by pair
 * @returns with the squared distance below which each rate accepts a pair
 */
export function acceptRates(
  distance: Float64Array,
  same: readonly boolean[],
): AcceptRates & { thresholds: Record<string, number> } {
  const positives = distance.filter((_, pair) => same[pair]);
  const negatives = distance.filter((_, pair) => !same[pair]).sort();
  const rates = FALSE_ACCEPT_RATES.filter(([name, oneIn]) => negatives.length >= oneIn || name === '1e-3').map(
    ([name, oneIn]) => {
      const nearestRefused = negatives[Math.floor(negatives.length / oneIn)]!;
      return { name, nearestRefused, hits: positives.filter((d) => d < nearestRefused).length };
    },
  );
  const byRate = <T>(read: (rate: (typeof rates)[number]) => T) =>
    Object.fromEntries(rates.map((rate) => [rate.name, read(rate)]));
  return {
    tarAtFar: byRate(({ hits }) => hits / positives.length),
    unresolvedFar: Object.fromEntries(FALSE_ACCEPT_RATES.filter(([, oneIn]) => negatives.length < oneIn)),
    positives: positives.length,
    negatives: negatives.length,
    intervals: { tarAtFar: byRate(({ hits }) => wilson(hits, positives.length)) },
    thresholds: byRate(({ nearestRefused }) => nearestRefused),
  };
}

/** Errors at one threshold by the smaller norm of a pair's embeddings. */
function errorsByNorm(
  embeddings: Float32Array,
  dim: number,
  isError: (pair: number) => boolean,
  pairs: number,
): Verification['byNorm'] {
  const norms = Float64Array.from({ length: pairs }, (_, pair) =>
    Math.min(lengthOf(embeddings, dim, 2 * pair), lengthOf(embeddings, dim, 2 * pair + 1)),
  );
  const sorted = Array.from(norms.keys()).toSorted((a, b) => norms[a]! - norms[b]!);
  return Array.from({ length: NORM_GROUPS }, (_, group) => {
    const own = sorted.slice((pairs * group) / NORM_GROUPS, (pairs * (group + 1)) / NORM_GROUPS);
    return {
      from: norms[own[0]!]!,
      to: norms[own.at(-1)!]!,
      pairs: own.length,
      errors: own.filter(isError).length,
    };
  });
}

/** What the embeddings of a set are like: their lengths, and degrees between the two of a pair. */
export function spreadOf(
  embeddings: Float32Array,
  dim: number,
  same: readonly boolean[],
): { norms: Float64Array; sameAngles: Float64Array; differentAngles: Float64Array } {
  const norms = Float64Array.from({ length: 2 * same.length }, (_, picture) => lengthOf(embeddings, dim, picture));
  // Of unit vectors: |a − b| = 2 sin(angle / 2).
  const angles = distances(embeddings, dim, same.length).map(
    (distance) => (2 * Math.asin(Math.min(1, Math.sqrt(distance) / 2)) * 180) / Math.PI,
  );
  return {
    norms,
    sameAngles: angles.filter((_, pair) => same[pair]),
    differentAngles: angles.filter((_, pair) => !same[pair]),
  };
}

/**
 * Figures of each group of pairs, at the threshold of the whole set, as a system has one threshold for all.
 * @param groups by pair
 */
export function verifyGroups(
  embeddings: Float32Array,
  dim: number,
  same: readonly boolean[],
  groups: readonly string[],
  threshold: number,
): GroupFigures[] {
  return groupFigures(distances(embeddings, dim, same.length), same, groups, threshold);
}

/** The same for squared distances by pair. */
export function groupFigures(
  distance: Float64Array,
  same: readonly boolean[],
  groups: readonly string[],
  threshold: number,
): GroupFigures[] {
  /** By kind of pair, different people first: all, and those that are accepted. */
  const counts = new Map<string, { all: [number, number]; accepted: [number, number] }>();
  for (const [pair, group] of groups.entries()) {
    const own = counts.get(group) ?? { all: [0, 0], accepted: [0, 0] };
    counts.set(group, own);
    const kind = same[pair] ? 1 : 0;
    own.all[kind] += 1;
    if (distance[pair]! < threshold) own.accepted[kind] += 1;
  }
  const share = (hits: number, all: number) => (all === 0 ? null : hits / all);
  return [...counts]
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([group, { all, accepted }]) => {
      const pairs = all[0] + all[1];
      const right = all[0] - accepted[0] + accepted[1];
      return {
        group,
        pairs,
        accuracy: right / pairs,
        interval: wilson(right, pairs),
        falseAcceptRate: share(accepted[0], all[0]),
        falseRejectRate: share(all[1] - accepted[1], all[1]),
      };
    });
}

/** Of one group, at the thresholds that have a false accept rate on the whole set. */
export interface GroupAcceptRates {
  /** Pairs of one person. */
  positives: number;
  /** The share of them that is accepted; without any, no rates. */
  tarAtFar: Record<string, number>;
}

/**
 * True accept rates of each group by the false accept rates of the whole set, as a system has one threshold for all.
 * @param groups by pair
 */
export function groupAcceptRates(
  embeddings: Float32Array,
  dim: number,
  same: readonly boolean[],
  groups: readonly string[],
): Map<string, GroupAcceptRates> {
  const distance = distances(embeddings, dim, same.length);
  const { thresholds } = acceptRates(distance, same);
  const pairs = Map.groupBy(groups.keys(), (pair) => groups[pair]!);
  return new Map(
    [...pairs].map(([group, own]) => {
      const positives = own.filter((pair) => same[pair]);
      const shareBelow = (threshold: number) =>
        positives.filter((pair) => distance[pair]! < threshold).length / positives.length;
      const rates = Object.entries(thresholds).map(([rate, threshold]) => [rate, shareBelow(threshold)]);
      return [group, { positives: positives.length, tarAtFar: Object.fromEntries(positives.length > 0 ? rates : []) }];
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
  const threshold = mean(best.map((t) => THRESHOLDS[t]!));
  const { thresholds: _, ...rates } = acceptRates(distance, same);
  return {
    pairs,
    accuracy,
    std: Math.sqrt(mean(accuracies.map((a) => (a - accuracy) ** 2))),
    threshold,
    ...rates,
    intervals: { accuracy: wilson(Math.round(accuracy * pairs), pairs), ...rates.intervals },
    byNorm: errorsByNorm(embeddings, dim, (pair) => distance[pair]! < threshold !== same[pair], pairs),
  };
}
