/** `facetrain dataset pairs`: draws a verification set from a dataset. */
import { realpath, stat } from 'node:fs/promises';
import { counted, FacetrainError } from '@facetrain/api';
import { readEncoded, readLabels } from '@facetrain/native';
import { drawPairs, type Pair } from '@facetrain/trainer/dataset/draw-pairs';
import { storageError, writeAtomically } from '@facetrain/trainer/storage/atomic-files';
import { pickleVerificationSet } from '@facetrain/trainer/verification/pickle-verification-set';
import { type StatusLine, table } from '../terminal-output.ts';

export interface PairsOptions {
  pairs: number;
  seed: number;
  output: string;
}

/**
 * The file that a path names, behind links. A rename would put a file in the place of a device or a pipe, for root
 * also of `/dev/null`.
 * @throws FacetrainError InvalidArgument for what is there and is no file; StorageFailed
 */
async function outputFile(path: string): Promise<string> {
  try {
    const target = await realpath(path);
    if ((await stat(target)).isFile()) return target;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && path !== '') return path;
    throw storageError(path, error);
  }
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: path,
    found: 'is no file',
    allowed: 'the name of a file, which is replaced if it exists (--output)',
  });
}

export async function makePairs(
  folder: string,
  { pairs: count, seed, output }: PairsOptions,
  line: StatusLine,
  signal: AbortSignal,
) {
  const file = await outputFile(output);
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
  await writeAtomically(file, set);
  line.clear();
  const people = new Set(pairs.flatMap((pair) => pair.pictures.map((picture) => labels[picture]))).size;
  return {
    json: { source: folder, output, pairs: count, identities: people, seed, unreadable: bad.size },
    text: table([
      ['Set', output],
      ['Pairs', `${count}, half of them of one person, in 10 folds without a common person`],
      ['Identities', `${people} of ${folder}`],
      ...(bad.size > 0
        ? [['Left out', `${counted(bad.size, 'picture')} that cannot be decoded`] as [string, string]]
        : []),
    ]),
  };
}
