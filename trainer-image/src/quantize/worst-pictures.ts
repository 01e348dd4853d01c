/** The pictures on which INT7 is farthest from FP32: which they are, and how the report shows them. */
import type { WorstPicture } from '@facetrain/api';
import { decodePictures, type Pictures } from '@facetrain/native';
import { bitmapUri } from '../report/bitmap.ts';
import type { VerificationSet } from '../verification/verification-set.ts';

/** So many are shown: enough to see what they have in common, and the report stays below half a megabyte. */
export const SHOWN_PICTURES = 8;

/** Cosines of one source of pictures. */
export interface PictureCosines {
  set: string | null;
  /** By picture; those of the mirror images of all of them may follow. */
  cosines: Float64Array;
  /** The number of each picture in its dataset; absent: 0, 1, 2, … */
  numbers?: readonly number[];
  /** How many pictures there are, mirror images not counted. */
  pictures: number;
}

/**
 * A picture and its mirror image count as one, with the worse of the two. One that several pairs of a set have in
 * common is there once: by its cosine, which no two pictures share.
 */
export function worstPictures(sources: readonly PictureCosines[]): WorstPicture[] {
  const all = sources.flatMap(({ set, cosines, numbers, pictures }) =>
    Array.from({ length: pictures }, (_, index): WorstPicture => {
      const [plain, mirror = Infinity] = [cosines[index]!, cosines[index + pictures]];
      const mirrored = mirror < plain;
      return { set, picture: numbers?.[index] ?? index, mirrored, cosine: mirrored ? mirror : plain };
    }),
  );
  const sorted = all.toSorted((a, b) => a.cosine - b.cosine);
  return sorted.filter(({ cosine }, i) => cosine !== sorted[i - 1]?.cosine).slice(0, SHOWN_PICTURES);
}

/** Addresses of data (data:…) with the pictures, in their order. */
export async function thumbnails(
  worst: readonly WorstPicture[],
  sets: readonly VerificationSet[],
  { pictures, numbers }: { pictures: Pictures; numbers: readonly number[] },
): Promise<string[]> {
  const { height, width } = pictures;
  const uris: string[] = [];
  for (const { set, picture } of worst) {
    const found = sets.find(({ name }) => name === set);
    if (found) {
      const subjects = [`${found.path}, picture ${picture}`];
      const options = { channelOrder: 'rgb', height, width, subjects, code: 'InvalidVerificationSet' } as const;
      const decoded = await decodePictures([found.encoded[picture]!], options);
      uris.push(bitmapUri(decoded.data, decoded));
    } else {
      const size = height * width * 3;
      const at = numbers.indexOf(picture) * size;
      uris.push(bitmapUri(pictures.data.subarray(at, at + size), pictures));
    }
  }
  return uris;
}
