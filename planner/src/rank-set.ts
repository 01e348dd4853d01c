/**
 * A set of ranks as text: increasing numbers, and ranges with "-", separated by commas ("0,2-5"). It is the format of
 * `status.completedIndexes` of an Indexed Job (Kubernetes' pkg/controller/job/indexed_job_utils.go).
 */

/** @returns undefined for no ranks */
export function formatRanks(ranks: Iterable<number>): string | undefined {
  const ranges: [first: number, last: number][] = [];
  for (const rank of [...ranks].sort((a, b) => a - b)) {
    const range = ranges.at(-1);
    if (range?.[1] === rank - 1) range[1] = rank;
    else ranges.push([rank, rank]);
  }
  return ranges.length === 0
    ? undefined
    : ranges.map(([first, last]) => (first === last ? String(first) : `${first}-${last}`)).join(',');
}

/** @returns the ranks below `size`. Parts in another format are left out, as the Job controller does. */
export function parseRanks(text: string | undefined, size: number): Set<number> {
  const ranks = new Set<number>();
  for (const part of (text ?? '').split(',')) {
    const range = /^(\d+)(?:-(\d+))?$/.exec(part);
    if (!range) continue;
    const last = Math.min(Number(range[2] ?? range[1]), size - 1);
    for (let rank = Number(range[1]); rank <= last; rank++) ranks.add(rank);
  }
  return ranks;
}
