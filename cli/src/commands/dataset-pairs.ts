/** `facetrain dataset pairs`: draws a verification set from a dataset. */
import { readEncoded, readLabels } from '@facetrain/native';
import { drawPairs, type Pair } from '@facetrain/trainer/dataset/draw-pairs';
import { writeAtomically } from '@facetrain/trainer/storage/atomic-files';
import { pickleVerificationSet } from '@facetrain/trainer/verification/pickle-verification-set';
import { type StatusLine, table } from '../terminal-output.ts';

export interface PairsOptions {
  pairs: number;
  seed: number;
  output: string;
}

export async function makePairs(
  folder: string,
  { pairs: count, seed, output }: PairsOptions,
  line: StatusLine,
  signal: AbortSignal,
) {
  line.show('Reading', folder);
  const { labels } = await readLabels(folder, { signal });
  const bad = new Set<number>();
  let pairs: Pair[];
  let pictures: (Uint8Array | null)[];
  // A picture that cannot be decoded is not drawn again.
  for (;;) {
    pairs = drawPairs(labels, count, seed, folder);
    const drawn = pairs.flatMap((pair) => pair.pictures);
    pictures = await readEncoded(folder, drawn, { signal });
    const found = drawn.filter((_, i) => pictures[i] === null);
    if (found.length === 0) break;
    for (const picture of found) {
      bad.add(picture);
      labels[picture] = -1;
    }
  }
  const set = pickleVerificationSet(
    pictures.filter((picture) => picture !== null),
    pairs.map(({ same }) => same),
  );
  await writeAtomically(output, set);
  line.clear();
  const people = new Set(pairs.flatMap((pair) => pair.pictures.map((picture) => labels[picture]))).size;
  return {
    json: { source: folder, output, pairs: count, identities: people, seed, unreadable: bad.size },
    text: table([
      ['Set', output],
      ['Pairs', `${count}, half of them of one person, in 10 folds without a common person`],
      ['Identities', `${people} of ${folder}`],
      ...(bad.size > 0 ? [['Left out', `${bad.size} pictures that cannot be decoded`] as [string, string]] : []),
    ]),
  };
}
