/**
 * A look at the FP32 model on a few calibration pictures, before the search: a search takes minutes to hours, and what
 * it finds for a broken model is worthless.
 */
import { FacetrainError } from '@facetrain/api';
import {
  EMBEDDING_BATCH,
  type Graph,
  type LayerGraph,
  type LayerResult,
  Model,
  type NodeValues,
  type Pictures,
} from '@facetrain/native';
import type { Program } from '../program/program.ts';
import { checkSpread } from '../verification/check-embeddings.ts';
import { disposable } from './disposable.ts';

/** One batch: there is memory for it (loadModel of inputs.ts). */
const CHECKED_PICTURES = EMBEDDING_BATCH;

/**
 * Larger ones would saturate: a scale is 1e12 at most. Squares are summed in 32 bits, which overflow at 3.4e38. Trained
 * networks stay below 1e4.
 */
const LARGEST_ACTIVATION = 1e13;

/** Of weights, slopes and offsets: kLargestNumber of native/int7/network.h, in float32. */
const LARGEST_NUMBER = Math.fround(1e12);

/** Of an embedding; fewer are scores. */
const FEWEST_DIMENSIONS = 16;
/** Single channels with fewer values may be constant by chance: those of a Relu on vectors. */
const FEWEST_SAMPLES = 8;
/** Of a node's channels. More are worth a warning only: weight decay has made them zero in trained networks, too. */
const CONSTANT_SHARE = 0.5;

export interface CheckSourceOptions {
  /** The model's file, for messages. */
  subject: string;
  computeThreads: number;
  signal: AbortSignal;
  log: Pick<Program['log'], 'warn'>;
}

/**
 * @param model runs `graph`
 * @throws FacetrainError naming the first node of which it is true: NotANumber or InvalidModel, its values are not
 *   finite or too large, also where the nodes behind it make them small again; InvalidModel, they do not depend on the
 *   picture. InvalidModel, the embeddings are nearly the same for all pictures
 */
export async function checkSource(
  graph: Graph,
  model: Model,
  pictures: Pictures,
  { subject, computeThreads, signal, log }: CheckSourceOptions,
): Promise<void> {
  const few = differentPictures(pictures);
  signal.throwIfAborted();
  const nodes = await model.nodeValues(few);
  checkMagnitude(nodes, subject);
  const constant = nodes.find(
    ({ samples, channels, constantChannels }) => samples > 1 && constantChannels === channels,
  );
  const embeddings = await model.embed(few, { signal });
  // A classifier's few numbers may be alike on all pictures.
  if (model.dim < FEWEST_DIMENSIONS) {
    if (constant) throw constantError(constant, subject);
    return;
  }
  // For zeros, no other range of the input is tried.
  if (constant && embeddings.every((value) => value === 0)) throw constantError(constant, subject);
  await checkSpread(embeddings, model.dim, {
    subject,
    input: graph.input,
    embedWith: async (input) => {
      await using other = disposable(await Model.open({ ...graph, input }, { computeThreads }));
      return await other.model.embed(few, { signal });
    },
    ...(constant && { cause: constantText(constant) }),
  });
  if (constant) throw constantError(constant, subject);
  const half = nodes.find(
    ({ samples, channels, constantChannels }) =>
      samples >= FEWEST_SAMPLES && constantChannels > CONSTANT_SHARE * channels,
  );
  if (half)
    log.warn(`${half.constantChannels} of ${half.channels} channels of ${half.node} are constant: ${UNUSED_CHANNELS}`);
}

const UNUSED_CHANNELS = 'they were lost in training, or the range of the input is not that of the training';

/**
 * The nodes behind the first one have their values from it.
 * @throws FacetrainError NotANumber or InvalidModel, naming the first node whose values are not finite or too large
 */
export function checkMagnitude(nodes: NodeValues[], subject: string): void {
  const largestOf = ({ smallest, largest }: NodeValues) => Math.max(-smallest, largest);
  const found = nodes.find((node) => node.notFinite > 0 || largestOf(node) >= LARGEST_ACTIVATION);
  if (!found) return;
  const { node, notFinite, samples, channels } = found;
  const limit = LARGEST_ACTIVATION.toExponential(0);
  throw new FacetrainError({
    code: notFinite === 0 ? 'InvalidModel' : 'NotANumber',
    subject,
    found:
      `${node} gives values ` +
      (notFinite === 0
        ? `of up to ${largestOf(found).toExponential(1)}`
        : `that are not finite (${notFinite} of ${samples * channels})`),
    allowed: `values below ${limit}: a trained model, and the range of its input that it was trained with`,
  });
}

function constantText({ node, smallest, largest }: NodeValues): string {
  const value = smallest === largest ? `: it is ${smallest} everywhere` : '';
  return `the output of ${node} does not depend on the picture${value}`;
}

function constantError(values: NodeValues, subject: string): FacetrainError {
  return new FacetrainError({
    code: 'InvalidModel',
    subject,
    found: constantText(values),
    allowed: 'a trained model, and the range of its input that it was trained with (--input-range)',
  });
}

/** The first pictures that differ from each other. */
function differentPictures(pictures: Pictures): Pictures {
  const size = pictures.height * pictures.width * 3;
  const different = new Map<string, Uint8Array>();
  for (let at = 0; at < pictures.count && different.size < CHECKED_PICTURES; ++at) {
    const picture = pictures.data.subarray(at * size, (at + 1) * size);
    different.set(Buffer.from(picture).toString('latin1'), picture);
  }
  const data = new Uint8Array(different.size * size);
  [...different.values()].forEach((picture, index) => data.set(picture, index * size));
  return { ...pictures, count: different.size, data };
}

/**
 * Checks that readers take a file of these layers: slopes and offsets are in it as they are. The search keeps scales
 * within the readers' bounds (native/quant/scales.h), and larger weights would saturate.
 * @throws FacetrainError InvalidModel naming the layer
 */
export function checkNumbers({ layers }: LayerGraph, subject: string): void {
  for (const layer of layers) {
    const numbers =
      layer.kind === 'pointwise'
        ? [layer.positive, layer.negative, layer.offset]
        : layer.kind === 'conv' || layer.kind === 'fc'
          ? [layer.weight.data]
          : [];
    const found = numbers
      .map((values) => values.find((value) => Math.abs(value) > LARGEST_NUMBER))
      .find((value) => value !== undefined);
    if (found === undefined) continue;
    throw new FacetrainError({
      code: 'InvalidModel',
      subject,
      found: `layer "${layer.name}" has a number of ${found.toPrecision(2)}`,
      allowed: 'numbers up to 1e12: a trained model, and the range of its input',
    });
  }
}

/**
 * Checks what the search found, before it is written.
 * @throws FacetrainError NotANumber naming the layer whose figures are not finite: its activations are too large for
 *   sums of squares in 32 bits, though the embedding is not
 */
export function checkFound(layers: LayerResult[], subject: string): void {
  const broken = layers.find(({ cosineStart, cosine, saturation }) =>
    [cosineStart, cosine, saturation].some((value) => !Number.isFinite(value)),
  );
  if (!broken) return;
  throw new FacetrainError({
    code: 'NotANumber',
    subject,
    found: `layer "${broken.name}" has outputs that cannot be compared with FP32 (cosine ${broken.cosine})`,
    allowed: 'a trained model, and the range of its input that it was trained with',
  });
}
