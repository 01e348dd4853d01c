/** Draws the pairs of a verification set from a dataset. Pure. */
import { counted, FacetrainError } from '@facetrain/api';
import { shuffled } from './hold-out.ts';
import { uniform } from './sample-indices.ts';

export interface Pair {
  /** Numbers of the pictures in the dataset. */
  pictures: [number, number];
  same: boolean;
}

/** As many as a verification set is scored in (verification/verification-set.ts). */
const FOLDS = 10;

/**
 * As in LFW's protocol: ten folds with as many pairs of one person as of two, and no person in two folds. (Huang et
 * al., "Labeled Faces in the Wild", 2007, section IV.) In a fold the pairs of one person are spread evenly over the
 * persons. No pair is drawn twice.
 * @param labels by picture; pictures with a negative label are not drawn
 * @param count pairs, a multiple of 20
 * @param subject what an error names
 * @throws FacetrainError InvalidArgument, or InvalidDataset when the pictures do not give so many pairs
 */
export function drawPairs(labels: ArrayLike<number>, count: number, seed: number, subject: string): Pair[] {
  if (count % (2 * FOLDS) !== 0 || count === 0)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--pairs',
      found: String(count),
      allowed: `a multiple of ${2 * FOLDS}: ${FOLDS} folds, with as many pairs of one person as of two`,
    });
  const pictures = new Map<number, number[]>();
  for (let picture = 0; picture < labels.length; picture++) {
    const label = labels[picture]!;
    if (label < 0) continue;
    const known = pictures.get(label);
    if (known) known.push(picture);
    else pictures.set(label, [picture]);
  }
  // Persons with many pictures are dealt first, so that all folds give about as many pairs.
  const persons = [...pictures.values()];
  const order = shuffled(persons.length, seed).map((place) => persons[place]!);
  order.sort((a, b) => b.length - a.length);
  const folds = Array.from({ length: FOLDS }, (_, fold) => order.filter((_, place) => place % FOLDS === fold));
  const each = count / (2 * FOLDS);
  const possible = Math.min(...folds.flatMap((fold) => [pairsOfOne(fold), pairsOfTwo(fold)]));
  if (possible < each) {
    const several = persons.filter((person) => person.length > 1).length;
    throw new FacetrainError({
      code: 'InvalidDataset',
      subject,
      found:
        `${counted(persons.length, 'identity')}, ${several} of them with two pictures or more, ` +
        `give ${2 * FOLDS * possible} pairs`,
      allowed:
        `${count} pairs in ${FOLDS} folds without a common person: ` +
        (possible > 0
          ? 'fewer --pairs, or more identities'
          : `${2 * FOLDS} identities or more, ${FOLDS} of them with two pictures or more`),
    });
  }
  let draws = 0;
  const below = (limit: number) => Math.floor(uniform(seed ^ 0x5eed, draws++) * limit);
  return folds.flatMap((fold) => [...drawSame(fold, each, below), ...drawDifferent(fold, each, below)]);
}

type Fold = number[][];
type Below = (limit: number) => number;

const choices = (n: number) => (n * (n - 1)) / 2;
const pairsOfOne = (fold: Fold) => fold.reduce((sum, person) => sum + choices(person.length), 0);
const pairsOfTwo = (fold: Fold) => choices(fold.reduce((sum, person) => sum + person.length, 0)) - pairsOfOne(fold);

function drawSame(fold: Fold, count: number, below: Below): Pair[] {
  const pairs: Pair[] = [];
  const drawn = fold.map(() => new Set<string>());
  for (let turn = 0; pairs.length < count; turn = (turn + 1) % fold.length) {
    const person = fold[turn]!;
    const seen = drawn[turn]!;
    if (seen.size === choices(person.length)) continue;
    for (;;) {
      const first = below(person.length);
      const second = (first + 1 + below(person.length - 1)) % person.length;
      const key = `${Math.min(first, second)}-${Math.max(first, second)}`;
      if (seen.has(key)) continue;
      seen.add(key);
      pairs.push({ pictures: [person[first]!, person[second]!], same: true });
      break;
    }
  }
  return pairs;
}

function drawDifferent(fold: Fold, count: number, below: Below): Pair[] {
  const pairs: Pair[] = [];
  const seen = new Set<string>();
  while (pairs.length < count) {
    const one = below(fold.length);
    const other = (one + 1 + below(fold.length - 1)) % fold.length;
    const first = fold[one]![below(fold[one]!.length)]!;
    const second = fold[other]![below(fold[other]!.length)]!;
    const key = `${Math.min(first, second)}-${Math.max(first, second)}`;
    if (seen.has(key)) continue;
    seen.add(key);
    pairs.push({ pictures: [first, second], same: false });
  }
  return pairs;
}
