/** Pictures in another size. Pure. */
import type { Pictures } from '@facetrain/native';

/**
 * Each picture stretched to a size, linearly between the centres of pixels, as OpenCV's INTER_LINEAR does.
 * @param to in pixels; pictures of this size are returned as they are
 */
export function resized(pictures: Pictures, to: { height: number; width: number }): Pictures {
  const { count, height, width, data } = pictures;
  if (height === to.height && width === to.width) return pictures;
  const [rows, columns] = [weightsOf(height, to.height), weightsOf(width, to.width)];
  const result = new Uint8Array(count * to.height * to.width * 3);
  let at = 0;
  for (let picture = 0; picture < count; picture++)
    for (const [top, bottom, down] of rows) {
      const [above, below] = [(picture * height + top) * width, (picture * height + bottom) * width];
      for (const [left, right, across] of columns)
        for (let channel = 0; channel < 3; channel++) {
          const value = (row: number) =>
            data[(row + left) * 3 + channel]! * (1 - across) + data[(row + right) * 3 + channel]! * across;
          result[at++] = Math.round(value(above) * (1 - down) + value(below) * down);
        }
    }
  return { ...pictures, height: to.height, width: to.width, data: result };
}

/** For each new row or column the two old ones that it lies between, and the share of the second. */
function weightsOf(from: number, to: number): [first: number, second: number, share: number][] {
  return Array.from({ length: to }, (_, i) => {
    const place = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
    const first = Math.floor(place);
    return [first, Math.min(first + 1, from - 1), place - first];
  });
}
