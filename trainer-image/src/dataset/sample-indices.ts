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

/** Pictures that are held out: as many as calibrate, within these bounds. */
const HELD_OUT = { least: 50, most: 500 };

/**
 * The pictures that a quantization calibrates on, and, with `holdOut`, others to measure it on. The two have no picture
 * in common. If the dataset has too few for both, a fifth of it is held out. A dataset of one picture has none to hold
 * out.
 * @returns indices in rising order
 */
export function drawPictures(
  images: number,
  count: number,
  seed: number,
  holdOut: boolean,
): { calibration: number[]; heldOut: number[] } {
  if (!holdOut) return { calibration: sampleIndices(images, count, seed), heldOut: [] };
  const wanted = Math.min(Math.max(count, HELD_OUT.least), HELD_OUT.most);
  const least = images < 2 ? 0 : Math.ceil(images / 5);
  const calibration = sampleIndices(images, Math.min(count, images - Math.min(least, wanted)), seed);
  // Drawn by their number among the others; a dataset may have 10^8 pictures, so the others are not listed.
  let before = 0;
  const heldOut = sampleIndices(images - calibration.length, wanted, seed).map((number) => {
    while (before < calibration.length && calibration[before]! <= number + before) ++before;
    return number + before;
  });
  return { calibration, heldOut };
}

/** A number in [0, 1) that depends on seed and i alone: MurmurHash3's finalizer. */
export function uniform(seed: number, i: number): number {
  let h = (seed ^ Math.imul(i + 1, 0x9e3779b9)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
}
