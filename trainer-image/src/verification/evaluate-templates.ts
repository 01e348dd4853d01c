/** Embeds the templates of a protocol, and judges its pairs. */
import { readFile } from 'node:fs/promises';
import { FacetrainError, fileCause } from '@facetrain/api';
import { decodePictures, type Embedder } from '@facetrain/native';
import { lengthOf } from './check-embeddings.ts';
import type { EvaluateOptions } from './evaluate-set.ts';
import { type AcceptRates, acceptRates, type GroupFigures, groupFigures } from './protocol.ts';
import type { TemplatePicture, TemplateProtocol } from './template-protocol.ts';

/** Pictures in memory at a time, unless the embedder wants more. */
const BATCH_SIZE = 128;
/** Groups and qualities are judged at its threshold; a set that cannot resolve it has the smallest rate that it can. */
const JUDGED_AT_FAR = '1e-4';

/**
 * One embedding of unit length for each template, as insightface computes them (eval_ijbc.py with F2, N1, D1): a
 * picture's embedding and that of its mirror image are added, keep their length, and are weighted by the score of the
 * face detector; a medium (a picture, or the frames of a video) is the mean of its pictures, and a template the sum of
 * its media.
 * @returns the embeddings, [templates, dim], and the lengths that the sums had before: a template's quality
 * @throws FacetrainError InvalidVerificationSet naming a picture that cannot be read, and for landmarks when the input
 *   is not square; NotANumber naming a template whose embedding is not finite, or zero
 */
export async function embedTemplates(
  embedder: Embedder,
  { folder, pictures, templates }: TemplateProtocol,
  options: Omit<EvaluateOptions, 'part'>,
): Promise<{ unit: Float32Array; lengths: Float64Array }> {
  const { input, flip, signal, onBatch } = options;
  if (input.height !== input.width && pictures.some(({ landmarks }) => landmarks !== null))
    throw new FacetrainError({
      code: 'InvalidVerificationSet',
      subject: folder,
      found: `has landmarks, and the model reads pictures of ${input.height} x ${input.width}`,
      allowed: 'a model of square pictures, for which faces can be aligned; or aligned pictures without landmarks',
    });
  const { dim } = embedder;
  const sums = new Float64Array(templates.length * dim);
  const medium = new Float64Array(dim);
  let ofMedium = 0;
  const size = Math.max(BATCH_SIZE, embedder.batch ?? 0);
  const read = (done: number) => readPictures(pictures.slice(done, done + size), options);
  signal?.throwIfAborted();
  let next = read(0);
  for (let done = 0; done < pictures.length; done += size) {
    const decoded = await next;
    // Read while the embedder works on these.
    if (done + size < pictures.length) next = read(done + size);
    next.catch(() => undefined); // thrown by the next round
    const embeddings = await embedder.embed(decoded, { flip, ...(signal && { signal }) });
    for (let i = 0; i < decoded.count; i++) {
      const picture = pictures[done + i]!;
      for (let k = 0; k < dim; k++) medium[k]! += picture.score * embeddings[i * dim + k]!;
      ofMedium += 1;
      const following = pictures[done + i + 1];
      if (following?.template === picture.template && following.medium === picture.medium) continue;
      for (let k = 0; k < dim; k++) sums[picture.template * dim + k]! += medium[k]! / ofMedium;
      medium.fill(0);
      ofMedium = 0;
    }
    onBatch?.(done + decoded.count, pictures.length);
  }
  const unit = Float32Array.from(sums);
  const lengths = Float64Array.from(templates, (template, row) => lengthOf(unit, dim, row, `template ${template}`));
  for (let k = 0; k < unit.length; k++) unit[k]! /= lengths[Math.floor(k / dim)]!;
  return { unit, lengths };
}

async function readPictures(
  pictures: readonly TemplatePicture[],
  { input, channelOrder, signal }: Omit<EvaluateOptions, 'part'>,
): Promise<Awaited<ReturnType<typeof decodePictures>>> {
  const encoded = await Promise.all(
    pictures.map(({ path }) =>
      readFile(path).catch((cause: unknown) => {
        throw new FacetrainError({
          code: 'InvalidVerificationSet',
          subject: path,
          found: fileCause(cause),
          allowed: 'the pictures that the protocol names',
          cause,
        });
      }),
    ),
  );
  return decodePictures(encoded, {
    channelOrder,
    ...input,
    subjects: pictures.map(({ path }) => path),
    code: 'InvalidVerificationSet',
    ...(pictures[0]!.landmarks && {
      landmarks: Float64Array.from(pictures.flatMap(({ landmarks }) => landmarks!)),
    }),
    ...(signal && { signal }),
  });
}

export interface TemplateVerification extends AcceptRates {
  pictures: number;
  media: number;
  templates: number;
  pairs: number;
  /** Of groups, at the threshold of this false accept rate. */
  groups?: { far: string; figures: GroupFigures[] };
  /** By the quality of templates, at the threshold of this false accept rate. */
  byNorm: { far: string; figures: QualityFigures[] };
}

/** Of the pairs of one person, a quarter each by the smaller length of the two templates, the smallest first. */
export interface QualityFigures {
  from: number;
  to: number;
  pairs: number;
  falseRejects: number;
  /** False reject rate of the pairs of this quarter and of better ones: what is left when worse pairs are rejected. */
  falseRejectRateFromHere: number;
}

const QUARTERS = 4;

/**
 * @param templates of embedTemplates
 * @param groups by pair
 */
export function verifyTemplates(
  { unit, lengths }: Awaited<ReturnType<typeof embedTemplates>>,
  dim: number,
  protocol: TemplateProtocol,
  groups?: readonly string[],
): TemplateVerification {
  const { first, second, same, pictures, media } = protocol;
  // Squared distances, as of pairs of pictures: 2 - 2 cosine.
  const distance = Float64Array.from(first, (row, pair) => {
    const [a, b] = [row * dim, second[pair]! * dim];
    let sum = 0;
    for (let k = 0; k < dim; k++) sum += (unit[a + k]! - unit[b + k]!) ** 2;
    return sum;
  });
  const { thresholds, ...rates } = acceptRates(distance, same);
  const resolved = Object.keys(rates.tarAtFar).filter((name) => !(name in rates.unresolvedFar));
  const far = resolved.includes(JUDGED_AT_FAR) ? JUDGED_AT_FAR : (resolved.at(-1) ?? Object.keys(rates.tarAtFar)[0]!);
  return {
    pictures: pictures.length,
    media,
    templates: protocol.templates.length,
    pairs: same.length,
    ...rates,
    byNorm: { far, figures: rejectsByQuality(distance, lengths, protocol, thresholds[far]!) },
    ...(groups && { groups: { far, figures: groupFigures(distance, same, groups, thresholds[far]!) } }),
  };
}

/** The error of pairs that are sorted by quality. Of pairs of different people a rate fixes how many are accepted. */
function rejectsByQuality(
  distance: Float64Array,
  lengths: Float64Array,
  { first, second, same }: TemplateProtocol,
  threshold: number,
): QualityFigures[] {
  const quality = (pair: number) => Math.min(lengths[first[pair]!]!, lengths[second[pair]!]!);
  const pairs: number[] = [];
  for (const [pair, isSame] of same.entries()) if (isSame) pairs.push(pair);
  pairs.sort((a, b) => quality(a) - quality(b));
  const rejects = (own: number[]) => own.filter((pair) => distance[pair]! >= threshold).length;
  return Array.from({ length: QUARTERS }, (_, quarter) => {
    const begin = Math.floor((pairs.length * quarter) / QUARTERS);
    const own = pairs.slice(begin, (pairs.length * (quarter + 1)) / QUARTERS);
    const better = pairs.slice(begin);
    return { own, better };
  })
    .filter(({ own }) => own.length > 0)
    .map(({ own, better }) => ({
      from: quality(own[0]!),
      to: quality(own.at(-1)!),
      pairs: own.length,
      falseRejects: rejects(own),
      falseRejectRateFromHere: rejects(better) / better.length,
    }));
}
