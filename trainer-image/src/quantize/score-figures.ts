/** How FP32 and INT7 score the pairs of a verification set: ROC and histograms, for the report. Pure. */
import type { SetScores } from '@facetrain/api';
import { histogram } from '../report/histogram.ts';
import { spreadOf } from '../verification/protocol.ts';

/** Points of a ROC between two powers of ten. */
const POINTS_PER_DECADE = 12;

/** @param fp32 embeddings [2 x pairs, dim] as verify() takes them; those of INT7 alike */
export function scoreFigures(
  set: string,
  same: readonly boolean[],
  dim: number,
  fp32: Float32Array,
  int7: Float32Array,
): SetScores {
  const [a, b] = [cosinesOf(fp32, dim, same), cosinesOf(int7, dim, same)];
  const ranges = { same: rangeOf(a.same, b.same), different: rangeOf(a.different, b.different) };
  const figures = (scores: typeof a) => ({
    roc: rocOf(scores.same, scores.different),
    same: histogram(scores.same, ranges.same),
    different: histogram(scores.different, ranges.different),
  });
  return { set, fp32: figures(a), int7: figures(b) };
}

function cosinesOf(embeddings: Float32Array, dim: number, same: readonly boolean[]) {
  const { sameAngles, differentAngles } = spreadOf(embeddings, dim, same);
  const cosine = (degrees: number) => Math.cos((degrees * Math.PI) / 180);
  return { same: sameAngles.map(cosine), different: differentAngles.map(cosine) };
}

function rangeOf(...all: Float64Array[]): { min: number; max: number } {
  let [min, max] = [Infinity, -Infinity];
  for (const values of all) for (const value of values) [min, max] = [Math.min(min, value), Math.max(max, value)];
  return { min, max };
}

/**
 * At false accept rates k / negatives, the true accept rate with the threshold that accepts at most k pairs of
 * different people: as in acceptRates (verification/protocol.ts).
 */
export function rocOf(same: Float64Array, different: Float64Array): [far: number, tar: number][] {
  const negatives = different.toSorted().reverse();
  const positives = same.toSorted();
  const all = negatives.length;
  const steps = Math.ceil(Math.log10(all) * POINTS_PER_DECADE);
  const counts = new Set(Array.from({ length: steps + 1 }, (_, i) => Math.round(all ** (i / Math.max(steps, 1)))));
  return [...counts].map((accepted) => {
    const nearestRefused = negatives[accepted] ?? -Infinity;
    return [accepted / all, (positives.length - countUpTo(positives, nearestRefused)) / positives.length];
  });
}

/** How many of the sorted values are not above the bound. */
function countUpTo(sorted: Float64Array, bound: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle]! <= bound) low = middle + 1;
    else high = middle;
  }
  return low;
}
