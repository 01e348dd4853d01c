/** Draws a sample of a dataset's pictures. Pure. */

/**
 * Indices of `count` different pictures in rising order, or of all pictures when there are no more: one at a random
 * place in each of `count` equal stretches of the dataset. Records are usually ordered by identity, so the sample is
 * spread over the identities. In a shuffled dataset it is as good as any other draw.
 */
export function sampleIndices(images: number, count: number, seed: number): number[] {
  const stretches = Math.min(images, count);
  const start = (i: number) => Math.floor((i * images) / stretches);
  return Array.from(
    { length: stretches },
    (_, i) => start(i) + Math.floor(uniform(seed, i) * (start(i + 1) - start(i))),
  );
}

/** A number in [0, 1) that depends on seed and i alone: MurmurHash3's finalizer. */
function uniform(seed: number, i: number): number {
  let h = (seed ^ Math.imul(i + 1, 0x9e3779b9)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
}
