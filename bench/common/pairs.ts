/** Verification pairs of people of a dataset, for benchmarks of accuracy. */
import { type Pictures, readPictures } from '@facetrain/native';
import { drawPairs } from '@facetrain/trainer/dataset/draw-pairs';
import { type Verification, verify } from '@facetrain/trainer/verification/protocol';

/** Pairs of the people whose labels `isJudged` takes. A picture is embedded once, however many pairs it is in. */
export class Pairs {
  /** The places in the dataset of what has to be embedded, ascending. */
  readonly pictures: number[];
  readonly #pairs: ReturnType<typeof drawPairs>;
  readonly #placeOf: Map<number, number>;

  constructor(
    labels: ArrayLike<number>,
    isJudged: (label: number) => boolean,
    { count, seed, folder }: { count: number; seed: number; folder: string },
  ) {
    const judged = Array.from(labels, (label) => (isJudged(label) ? label : -1));
    this.#pairs = drawPairs(judged, count, seed, folder);
    this.pictures = [...new Set(this.#pairs.flatMap((pair) => pair.pictures))].sort((a, b) => a - b);
    this.#placeOf = new Map(this.pictures.map((picture, place) => [picture, place]));
  }

  /** @param embeddings of `pictures`, [pictures, dim] */
  verify(embeddings: Float32Array): Verification {
    const dim = embeddings.length / this.pictures.length;
    const ofPairs = new Float32Array(2 * this.#pairs.length * dim);
    this.#pairs.forEach(({ pictures }, pair) => {
      pictures.forEach((picture, side) => {
        const place = this.#placeOf.get(picture)!;
        ofPairs.set(embeddings.subarray(place * dim, (place + 1) * dim), (2 * pair + side) * dim);
      });
    });
    const same = this.#pairs.map((pair) => pair.same);
    return verify(ofPairs, dim, same);
  }
}

/** @throws Error when one cannot be read */
export async function readAll(folder: string, indices: number[]): Promise<Pictures> {
  const pictures = await readPictures(folder, indices, { channelOrder: 'rgb' });
  if (pictures.bad.length > 0) throw new Error(`${folder}: unreadable pictures; try facetrain dataset check`);
  return pictures;
}
