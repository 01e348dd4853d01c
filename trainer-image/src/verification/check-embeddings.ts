/**
 * Whether embeddings can be those of a model that tells faces apart. A model that is fed another range of values than
 * it was trained with, or that was never trained, gives embeddings, too: they are not finite, or nearly the same for
 * all pictures. Figures on them look good (INT7 is close to FP32) and mean nothing.
 */
import { FacetrainError, INPUT_RANGES, rangeBehind } from '@facetrain/api';
import type { Graph } from '@facetrain/native';

/**
 * Mean cosine of different pictures from which on they count as not told apart. Trained models have 0.0 to 0.3, small
 * ones with random weights up to 0.95.
 */
export const SAME_DIRECTION = 0.99;
/** Below it, another range of the input counts as one that tells pictures apart. */
const TOLD_APART = 0.9;
/** Fewer pictures may be alike by chance, but never the same up to rounding. */
const FEWEST_PICTURES = 8;
/** Of embeddings that differ by rounding only. */
const SAME_EMBEDDING = 1 - 1e-9;

/** @throws FacetrainError NotANumber naming the picture whose embedding is not finite, or zero */
export function checkFiniteEmbeddings(embeddings: Float32Array, dim: number, subject = ''): void {
  for (let picture = 0; picture < embeddings.length / dim; ++picture)
    lengthOf(embeddings, dim, picture, subject && `${subject}: ${embeddingOf(picture)}`);
}

const embeddingOf = (picture: number) => `embedding of picture ${picture}`;

/**
 * The length of a picture's embedding.
 * @param subject what an error calls the embedding; empty: its picture's number
 * @throws FacetrainError NotANumber when it is not finite, or zero
 */
export function lengthOf(embeddings: Float32Array, dim: number, picture: number, subject = ''): number {
  let sum = 0;
  for (let i = picture * dim; i < (picture + 1) * dim; i++) sum += embeddings[i]! ** 2;
  const length = Math.sqrt(sum);
  if (Number.isFinite(length) && length > 0) return length;
  throw new FacetrainError({
    code: 'NotANumber',
    subject: subject || embeddingOf(picture),
    found: `its length is ${length}`,
    allowed: 'a finite vector that is not zero',
  });
}

/**
 * The mean cosine over all pairs of different pictures.
 * @param embeddings [at least 2, dim]
 * @throws FacetrainError NotANumber as lengthOf
 */
export function meanPairCosine(embeddings: Float32Array, dim: number): number {
  const count = embeddings.length / dim;
  // The sum over all pairs is the squared length of the sum of the unit vectors.
  const sum = new Float64Array(dim);
  for (let picture = 0; picture < count; ++picture) {
    const length = lengthOf(embeddings, dim, picture);
    for (let i = 0; i < dim; ++i) sum[i]! += embeddings[picture * dim + i]! / length;
  }
  const square = sum.reduce((total, value) => total + value ** 2, 0);
  return (square - count) / (count * (count - 1));
}

/** Whether the embeddings of two pictures or more are the same up to rounding. @throws FacetrainError as lengthOf */
export const areAllSame = (embeddings: Float32Array, dim: number): boolean =>
  embeddings.length >= 2 * dim && meanPairCosine(embeddings, dim) >= SAME_EMBEDDING;

/**
 * For a model that is not known to be trained: its embeddings may be alike, but depend on the picture.
 * @param embeddings [pictures, dim] of pictures that differ
 * @throws FacetrainError NotANumber as lengthOf, and when all are the same up to rounding
 */
export function checkNotConstant(embeddings: Float32Array, dim: number, subject: string): void {
  checkFiniteEmbeddings(embeddings, dim, subject);
  if (!areAllSame(embeddings, dim)) return;
  throw new FacetrainError({
    code: 'NotANumber',
    subject,
    found: `the embeddings of ${embeddings.length / dim} pictures are all the same`,
    allowed: 'embeddings that depend on the picture; the training that made the model has probably collapsed',
  });
}

export interface SpreadOptions {
  /** The model's file. */
  subject: string;
  /** The input of the model's graph. */
  input: Graph['input'];
  /** Embeds the same pictures with an input of another range; absent: no other range is tried. */
  embedWith?: (input: Graph['input']) => Promise<Float32Array>;
  /** Why embeddings can be alike with the given range, for the message when no other range helps. */
  cause?: string;
}

/**
 * @param embeddings [pictures, dim] of pictures that differ
 * @throws FacetrainError NotANumber as lengthOf; InvalidModel when all pictures have nearly the same embedding, naming
 *   the ranges of the input for which they have not
 */
export async function checkSpread(
  embeddings: Float32Array,
  dim: number,
  { subject, input, embedWith, cause }: SpreadOptions,
): Promise<void> {
  checkFiniteEmbeddings(embeddings, dim, subject);
  const count = embeddings.length / dim;
  if (count < 2) return;
  const cosine = meanPairCosine(embeddings, dim);
  if (cosine < (count < FEWEST_PICTURES ? SAME_EMBEDDING : SAME_DIRECTION)) return;
  const better: string[] = [];
  for (const [name, range] of embedWith ? Object.entries(INPUT_RANGES) : []) {
    const other = await embedWith!(withRange(input, range));
    if (tellsApart(other, dim)) better.push(`--input-range ${name}`);
  }
  throw new FacetrainError({
    code: 'InvalidModel',
    subject,
    found:
      `the embeddings of ${count} different pictures are nearly the same (mean cosine ${cosine.toFixed(4)})` +
      (cause !== undefined && better.length === 0 ? `; ${cause}` : ''),
    allowed:
      better.length > 0
        ? `the range that it was trained with: with ${better.join(' or ')} (model.input in a manifest) they differ`
        : 'a trained model, and the range and channel order that it was trained with (--input-range, --channel-order)',
  });
}

function tellsApart(embeddings: Float32Array, dim: number): boolean {
  try {
    return meanPairCosine(embeddings, dim) < TOLD_APART;
  } catch {
    return false; // It is not finite with that range.
  }
}

/** The input of a graph when its file reads another range. */
function withRange(input: Graph['input'], range: (typeof INPUT_RANGES)[keyof typeof INPUT_RANGES]): Graph['input'] {
  const ones = new Array<number>(input.channels).fill(1);
  return { ...input, ...rangeBehind(range, input.file ?? { scale: ones, offset: ones.map(() => 0) }) };
}
