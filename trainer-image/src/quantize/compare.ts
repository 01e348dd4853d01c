/** The metrics of an INT7 model against its FP32 model, and the gate's bounds on them. Pure. */
import {
  type Comparison,
  counted,
  FacetrainError,
  type Gate,
  type GroupComparison,
  type Metrics,
  type QuantizeConfig,
  type SetScores,
} from '@facetrain/api';
import type { GraphOutput } from '@facetrain/native';
import { lengthOf } from '../verification/check-embeddings.ts';
import { fewestPairs, ROUNDING } from '../verification/gate-pairs.ts';
import {
  type GroupAcceptRates,
  type GroupFigures,
  groupAcceptRates,
  type Verification,
  verify,
  verifyGroups,
} from '../verification/protocol.ts';
import type { VerificationSet } from '../verification/verification-set.ts';
import { scoreFigures } from './score-figures.ts';

/** Embeddings of a set's pictures and of their mirror images, both [pictures, dim]. */
export interface SetEmbeddings {
  plain: Float32Array;
  mirrored: Float32Array;
}

/**
 * The cosine of each embedding with its counterpart, both [count, dim].
 * @param pictureName how an error calls a picture
 * @throws FacetrainError NotANumber naming model and picture, when one of the two is zero or not finite
 */
export function cosines(
  a: Float32Array,
  b: Float32Array,
  dim: number,
  pictureName = (index: number) => `picture ${index}`,
): Float64Array {
  return Float64Array.from({ length: a.length / dim }, (_, index) => {
    for (const [model, embeddings] of Object.entries({ FP32: a, INT7: b }))
      lengthOf(embeddings, dim, index, `${model} model: embedding of ${pictureName(index)}`);
    let [product, squareA, squareB] = [0, 0, 0];
    for (let at = index * dim; at < (index + 1) * dim; ++at) {
      product += a[at]! * b[at]!;
      squareA += a[at]! ** 2;
      squareB += b[at]! ** 2;
    }
    return product / (Math.sqrt(squareA) * Math.sqrt(squareB));
  });
}

/** The pairs of each group, by what verifyGroups and groupAcceptRates found with both models. */
function compareGroups(
  fp32: GroupFigures[],
  int7: GroupFigures[],
  rates: { fp32: Map<string, GroupAcceptRates>; int7: Map<string, GroupAcceptRates> },
): GroupComparison[] {
  const figures = ({ accuracy, falseAcceptRate, falseRejectRate }: GroupFigures) => ({
    ...{ accuracy, falseAcceptRate, falseRejectRate },
  });
  return fp32.map((reference, index) => {
    const { group, pairs, accuracy } = reference;
    const quantized = int7[index]!;
    const { positives, tarAtFar } = rates.fp32.get(group)!;
    const after = rates.int7.get(group)!.tarAtFar;
    const both = Object.entries(tarAtFar).map(([rate, before]) => [rate, [before, after[rate]!]]);
    return {
      ...{ group, pairs, fp32: figures(reference), int7: figures(quantized), drop: accuracy - quantized.accuracy },
      positives,
      ...(positives > 0 && { tarAtFar: Object.fromEntries(both) }),
    };
  });
}

/**
 * Both models on one verification set: 10-fold accuracy with flip, how they score its pairs, and the cosines of all its
 * pictures, those of the mirror images last.
 * @param set pictures 2i and 2i + 1 are pair i
 */
export function compareOnSet(
  { name: set, same, groups }: Pick<VerificationSet, 'name' | 'same' | 'groups'>,
  dim: number,
  fp32: SetEmbeddings,
  int7: SetEmbeddings,
): { comparison: Comparison; cosines: Float64Array; scores: SetScores } {
  // First: what is not finite is found here, and the error names the model.
  const all = concatenate([
    cosines(fp32.plain, int7.plain, dim, (index) => `picture ${index} of set "${set}"`),
    cosines(fp32.mirrored, int7.mirrored, dim, (index) => `picture ${index} of set "${set}", mirrored`),
  ]);
  const [a, b] = [fp32, int7].map(({ plain, mirrored }) => plain.map((value, at) => value + mirrored[at]!)) as [
    Float32Array,
    Float32Array,
  ];
  const [reference, quantized] = [verify(a, dim, same), verify(b, dim, same)];
  const figures = ({ accuracy, std, threshold, tarAtFar }: Verification) => ({ accuracy, std, threshold, tarAtFar });
  const unresolvedFar = Object.keys(reference.tarAtFar).filter((rate) => rate in reference.unresolvedFar);
  const comparison = {
    set,
    pairs: same.length,
    fp32: figures(reference),
    int7: figures(quantized),
    drop: reference.accuracy - quantized.accuracy,
    meanCosine: mean(all),
    negatives: reference.negatives,
    ...(unresolvedFar.length > 0 && { unresolvedFar }),
    ...(groups && {
      groups: compareGroups(
        verifyGroups(a, dim, same, groups, reference.threshold),
        verifyGroups(b, dim, same, groups, quantized.threshold),
        { fp32: groupAcceptRates(a, dim, same, groups), int7: groupAcceptRates(b, dim, same, groups) },
      ),
    }),
  };
  return { comparison, cosines: all, scores: scoreFigures(set, same, dim, a, b) };
}

/** @param measured all cosines: of the sets' pictures; when there are no sets, of the pictures that `source` names */
export function summarize(
  comparisons: Comparison[],
  measured: Float64Array,
  source: NonNullable<Metrics['measuredOn']>['source'],
): Metrics {
  const sorted = measured.toSorted();
  return {
    meanCosine: mean(measured),
    percentile1Cosine: sorted[Math.floor(sorted.length / 100)]!,
    worstCosine: sorted[0]!,
    accuracyDrop: comparisons.length > 0 ? Math.max(...comparisons.map(({ drop }) => drop)) : null,
    comparisons,
    measuredOn: { source, pictures: measured.length },
  };
}

/** One output of both models. */
export type ComparedOutput = NonNullable<Metrics['outputs']>[number];

/**
 * Each output of two models that are no embeddings.
 * @param a of the FP32 model, [pictures, numbers of all outputs]; b: of the INT7 model
 * @returns with the cosines by picture
 * @throws FacetrainError NotANumber when a number is not finite
 */
export function compareOutputs(
  a: Float32Array,
  b: Float32Array,
  outputs: GraphOutput[],
): (ComparedOutput & { cosines: Float64Array })[] {
  const sizes = outputs.map(({ dims }) => dims.reduce((product, dim) => product * dim, 1));
  const all = sizes.reduce((sum, size) => sum + size, 0);
  let first = 0;
  return outputs.map(({ name, dims }, index) => {
    const size = sizes[index]!;
    const start = first;
    first += size;
    const of = (values: Float32Array, picture: number) =>
      values.subarray(picture * all + start, picture * all + start + size);
    const pictures = Array.from({ length: a.length / all }, (_, picture) => [of(a, picture), of(b, picture)] as const);
    const measured = Float64Array.from(pictures, ([fp32, int7]) => outputCosine(fp32, int7));
    if (measured.some(Number.isNaN))
      throw new FacetrainError({
        code: 'NotANumber',
        subject: `output "${name}"`,
        found: 'numbers that are not finite',
        allowed: 'a trained model, and the range of its input that it was trained with',
      });
    const same = pictures.filter(([fp32, int7]) => largestAt(fp32) === largestAt(int7)).length;
    return {
      name,
      meanCosine: mean(measured),
      percentile1Cosine: measured.toSorted()[Math.floor(measured.length / 100)]!,
      worstCosine: measured.toSorted()[0]!,
      cosines: measured,
      top1Agreement: dims.length === 1 && size > 1 ? same / pictures.length : null,
    };
  });
}

/** Metrics of a model of several outputs, all of one weight. */
export function summarizeOutputs(
  outputs: ComparedOutput[],
  source: NonNullable<Metrics['measuredOn']>['source'],
  pictures: number,
): Metrics {
  const over = (value: (output: ComparedOutput) => number) => mean(Float64Array.from(outputs, value));
  return {
    meanCosine: over(({ meanCosine }) => meanCosine),
    percentile1Cosine: over(({ percentile1Cosine }) => percentile1Cosine),
    worstCosine: Math.min(...outputs.map(({ worstCosine }) => worstCosine!)),
    accuracyDrop: null,
    comparisons: [],
    outputs: outputs.map(({ name, meanCosine, percentile1Cosine, worstCosine, top1Agreement }) => ({
      ...{ name, meanCosine, percentile1Cosine, worstCosine, top1Agreement },
    })),
    measuredOn: { source, pictures },
  };
}

/** Of two vectors of zeros 1; of one, 0. NaN when a number is not finite. */
function outputCosine(a: Float32Array, b: Float32Array): number {
  let [product, squareA, squareB] = [0, 0, 0];
  for (let i = 0; i < a.length; ++i) {
    product += a[i]! * b[i]!;
    squareA += a[i]! ** 2;
    squareB += b[i]! ** 2;
  }
  if (squareA === 0 || squareB === 0) return squareA === squareB ? 1 : 0 * (squareA + squareB);
  return product / (Math.sqrt(squareA) * Math.sqrt(squareB));
}

function largestAt(values: Float32Array): number {
  return values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);
}

/**
 * Sets on which FP32 has this accuracy show little: of a ResNet-100 with 6 bits, LFW's accuracy falls by 0.4 points,
 * and the true accept rate at 1e-4 on IJB-C by 9.5 (QuantFace, ICPR 2022).
 */
const EASY_ACCURACY = 0.99;
/** Sets that are easy for every network of today, by the beginnings of their names: LFW and CALFW. */
const EASY_NAMES = /^(ca)?lfw/i;

function isEasy({ set, fp32 }: Comparison): boolean {
  return EASY_NAMES.test(set) || fp32.accuracy >= EASY_ACCURACY;
}

/** Compares metrics with the bounds of a job; a bound that is null or absent is not checked. */
export function checkGate(bounds: QuantizeConfig['gate'], metrics: Metrics): Gate {
  const failures: string[] = [];
  const { maxAccuracyDrop, minMeanCosine, maxTarDrop, maxGroupAccuracyDrop, maxGroupTarDrop } = bounds;
  const { minWorstCosine, minTop1Agreement } = bounds;
  for (const { set, drop, fp32, int7 } of metrics.comparisons) {
    if (maxAccuracyDrop === null || drop <= maxAccuracyDrop + ROUNDING) continue;
    const count = digitsToTell(drop, maxAccuracyDrop);
    const [fall, before, after] = [drop, fp32.accuracy, int7.accuracy].map((value) => value.toFixed(count));
    failures.push(
      `accuracy on ${set} falls by ${fall} (${before} to ${after}), more than maxAccuracyDrop ${maxAccuracyDrop}`,
    );
  }
  for (const { set, fp32, int7, unresolvedFar } of metrics.comparisons)
    for (const [rate, before] of Object.entries(fp32.tarAtFar)) {
      // At a rate that allows no pair of different people, one pair decides all, and the drop is chance.
      if (unresolvedFar?.includes(rate)) continue;
      const after = int7.tarAtFar[rate]!;
      if (maxTarDrop === undefined || before - after <= maxTarDrop + ROUNDING) continue;
      const count = digitsToTell(before - after, maxTarDrop);
      const [fall, from, to] = [before - after, before, after].map((value) => value.toFixed(count));
      failures.push(
        `the true accept rate at ${rate} on ${set} falls by ${fall} (${from} to ${to}), ` +
          `more than maxTarDrop ${maxTarDrop}`,
      );
    }
  const fewest = maxGroupAccuracyDrop === undefined ? Infinity : fewestPairs(maxGroupAccuracyDrop);
  for (const { set, groups = [] } of metrics.comparisons)
    for (const { group, pairs, fp32, int7, drop } of groups) {
      if (pairs < fewest || drop <= maxGroupAccuracyDrop! + ROUNDING) continue;
      const count = digitsToTell(drop, maxGroupAccuracyDrop!);
      const [fall, from, to] = [drop, fp32.accuracy, int7.accuracy].map((value) => value.toFixed(count));
      failures.push(
        `accuracy on group ${group} of ${set} falls by ${fall} (${from} to ${to}, ${counted(pairs, 'pair')}), ` +
          `more than maxGroupAccuracyDrop ${maxGroupAccuracyDrop}`,
      );
    }
  const fewestOfOne = maxGroupTarDrop === undefined ? Infinity : fewestPairs(maxGroupTarDrop);
  for (const { set, groups = [], unresolvedFar } of metrics.comparisons)
    for (const { group, positives = 0, tarAtFar = {} } of groups)
      for (const [rate, [before, after]] of Object.entries(tarAtFar)) {
        if (positives < fewestOfOne || unresolvedFar?.includes(rate)) continue;
        if (before - after <= maxGroupTarDrop! + ROUNDING) continue;
        const count = digitsToTell(before - after, maxGroupTarDrop!);
        const [fall, from, to] = [before - after, before, after].map((value) => value.toFixed(count));
        failures.push(
          `the true accept rate at ${rate} on group ${group} of ${set} falls by ${fall} (${from} to ${to}, ` +
            `${counted(positives, 'pair')} of one person), more than maxGroupTarDrop ${maxGroupTarDrop}`,
        );
      }
  const checkCosine = (what: string, value: number, name: string, bound: number) => {
    if (value >= bound) return;
    failures.push(
      `the ${what} of embeddings is ${value.toFixed(digitsToTell(value, bound))}, less than ${name} ${bound}`,
    );
  };
  if (minMeanCosine !== null) checkCosine('mean cosine', metrics.meanCosine, 'minMeanCosine', minMeanCosine);
  if (minWorstCosine !== undefined) checkCosine('worst cosine', metrics.worstCosine!, 'minWorstCosine', minWorstCosine);
  const agreements = agreementsOf(metrics);
  for (const { name, agreement } of minTop1Agreement === undefined ? [] : agreements) {
    if (agreement >= minTop1Agreement! - ROUNDING) continue;
    const shown = agreement.toFixed(digitsToTell(agreement, minTop1Agreement!));
    failures.push(
      `the largest number of ${name} is the same on ${shown} of the pictures, ` +
        `less than minTop1Agreement ${minTop1Agreement}`,
    );
  }
  const ratesNotJudged = (['maxTarDrop', 'maxGroupTarDrop'] as const).flatMap((bound) =>
    bounds[bound] === undefined
      ? []
      : metrics.comparisons.flatMap(({ set, negatives, unresolvedFar }) =>
          unresolvedFar
            ? [
                `${bound} does not judge ${set} at ${unresolvedFar.join(', ')}: ` +
                  `it has ${counted(negatives ?? 0, 'pair')} of different people, too few for this rate`,
              ]
            : [],
        ),
  );
  const groupsNotJudged = [
    ...(maxGroupAccuracyDrop === undefined
      ? []
      : smallGroups('maxGroupAccuracyDrop', metrics, fewest, 'pairs', ({ pairs }) => pairs)),
    ...(maxGroupTarDrop === undefined
      ? []
      : smallGroups('maxGroupTarDrop', metrics, fewestOfOne, 'pairs of one person', ({ positives = 0 }) => positives)),
  ];
  const agreementNotJudged =
    minTop1Agreement === undefined || agreements.length > 0
      ? []
      : ['minTop1Agreement does not judge the model: it has evaluation sets, or no output that is a vector'];
  const notJudged = [...ratesNotJudged, ...groupsNotJudged, ...agreementNotJudged];
  const easySets = metrics.comparisons.length > 0 && metrics.comparisons.every(isEasy);
  return {
    ...bounds,
    passed: failures.length === 0,
    failures,
    ...(notJudged.length > 0 && { notJudged }),
    ...(easySets && { easySets }),
  };
}

/** What a bound on groups does not judge: sets without groups, and groups with too few pairs, named by `what`. */
function smallGroups(
  bound: string,
  { comparisons }: Metrics,
  fewest: number,
  what: string,
  sizeOf: (group: GroupComparison) => number,
): string[] {
  return comparisons.flatMap(({ set, groups }) => {
    if (!groups) return [`${bound} does not judge ${set}: it has no groups`];
    const few = groups.filter((group) => sizeOf(group) < fewest).map((group) => `${group.group} (${sizeOf(group)})`);
    const named = `${bound} does not judge groups of ${set} with fewer than ${fewest} ${what}: ${few.join(', ')}`;
    return few.length > 0 ? [named] : [];
  });
}

/** On how many pictures the largest number is the same, of each output of which that was measured. */
function agreementsOf({ outputs, top1Agreement }: Metrics): { name: string; agreement: number }[] {
  if (top1Agreement !== undefined) return [{ name: 'the output', agreement: top1Agreement }];
  return (outputs ?? []).flatMap(({ name, top1Agreement: agreement }) =>
    agreement === null ? [] : [{ name: `output ${name}`, agreement }],
  );
}

export function concatenate(parts: Float64Array[]): Float64Array {
  const all = new Float64Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function mean(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** How many digits after the point, at least four, show on which side of the bound a value is. */
function digitsToTell(value: number, bound: number): number {
  const isShown = (count: number) => Math.sign(Number(value.toFixed(count)) - bound) === Math.sign(value - bound);
  let count = 4;
  // A double has at most 17 digits; NaN is on no side.
  while (count < 20 && !isShown(count)) count++;
  return count;
}
