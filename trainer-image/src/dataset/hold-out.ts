/** Divides the identities of a dataset into those to train on and those kept apart. Pure. */
import { FacetrainError } from '@facetrain/api';
import { uniform } from './sample-indices.ts';

/** 0, 1, … count - 1 in an order that depends on the seed alone: Fisher and Yates' shuffle. */
export function shuffled(count: number, seed: number): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(uniform(seed, i) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** Pictures by label. @param labels of all pictures; a negative one is none */
export function countByLabel(labels: Iterable<number>, identities: number): Uint32Array {
  const counts = new Uint32Array(identities);
  for (const label of labels) if (label >= 0) counts[label]! += 1;
  return counts;
}

/** Labels of a dataset by part. Each part's new label of an identity is its place. */
export interface Parts {
  train: number[];
  heldOut: number[];
}

/**
 * Keeps identities apart. They are drawn from those with two pictures or more, because pairs of one person need two.
 * Identities without a picture are in neither part. Both parts are in the order of the labels.
 * @param counts pictures by label
 * @param holdout below 1 a share of the identities, otherwise their number; 0 keeps none apart
 * @throws FacetrainError InvalidArgument when there are too few identities
 */
export function holdOut(counts: ArrayLike<number>, holdout: number, seed: number): Parts {
  const present: number[] = [];
  for (let label = 0; label < counts.length; label++) if (counts[label]! > 0) present.push(label);
  const eligible = present.filter((label) => counts[label]! >= 2);
  const wanted = holdout < 1 ? Math.round(holdout * present.length) : holdout;
  if (holdout > 0 && (wanted === 0 || wanted > eligible.length || wanted === present.length)) {
    const atMost = Math.min(eligible.length, present.length - 1);
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--holdout',
      found: `${holdout}, which is ${wanted} of ${present.length} identities`,
      allowed: `0, or at least one identity and at most ${atMost}: those with two pictures or more; one to train on`,
    });
  }
  const apart = new Set(
    shuffled(eligible.length, seed)
      .slice(0, wanted)
      .map((place) => eligible[place]!),
  );
  return { train: present.filter((label) => !apart.has(label)), heldOut: present.filter((label) => apart.has(label)) };
}
