/** Histograms of what embeddings are like, for reports. Pure. */
import type { Histogram } from '@facetrain/api';

/** Bars of a histogram. */
const BARS = 30;

/**
 * In bars of equal width from the smallest value to the largest.
 * @param range to begin with: histograms of one range can be compared bar by bar
 */
export function histogram(values: ArrayLike<number>, range = { min: Infinity, max: -Infinity }): Histogram {
  let { min, max } = range;
  let [sum, sumOfSquares] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    min = Math.min(min, value);
    max = Math.max(max, value);
    sum += value;
    sumOfSquares += value ** 2;
  }
  const counts = Array<number>(BARS).fill(0);
  const width = (max - min) / BARS || 1;
  for (let i = 0; i < values.length; i++) counts[Math.min(BARS - 1, Math.floor((values[i]! - min) / width))]! += 1;
  return { min, max, sum, sumOfSquares, counts };
}
