/**
 * A look at the FP32 model on a few calibration pictures, before the search: a search takes minutes to hours, and what
 * it finds for a broken model is worthless.
 */
import { FacetrainError } from '@facetrain/api';
import { type Embedder, type LayerGraph, LayerModel, type LayerResult, type Pictures } from '@facetrain/native';
import { checkSpread } from '../verification/check-embeddings.ts';
import { disposable } from './disposable.ts';
import { elementCount, tensorShapes } from './layer-shapes.ts';

const CHECKED_PICTURES = 32;

/**
 * The search sums squares of activations in 32 bits, which overflow at 3.4e38. Trained networks stay below 1e4.
 */
const LARGEST_ACTIVATION = 1e15;

export interface CheckSourceOptions {
  /** The model's file, for messages. */
  subject: string;
  computeThreads: number;
  signal: AbortSignal;
}

/**
 * @param fp32 the layers in FP32
 * @throws FacetrainError NotANumber or InvalidModel: the embeddings are not finite, too large (the message names the
 *   first layer whose output is), zero, or the same for all pictures
 */
export async function checkSource(
  layers: LayerGraph,
  fp32: Embedder,
  pictures: Pictures,
  { subject, computeThreads, signal }: CheckSourceOptions,
): Promise<void> {
  const few = differentPictures(pictures);
  const embeddings = await fp32.embed(few, { signal });
  if (!isComputable(embeddings)) throw await firstOverflow(layers, few, { subject, computeThreads, signal });
  await checkSpread(embeddings, fp32.dim, {
    subject,
    input: layers.input,
    embedWith: async (input) => {
      await using other = disposable(await LayerModel.open({ ...layers, input }, { computeThreads }));
      return await other.model.embed(few, { signal });
    },
  });
}

const isComputable = (values: Float32Array) => values.every((value) => Math.abs(value) < LARGEST_ACTIVATION);

/** The error for the first layer whose output cannot be computed with. The layers behind it have that from it. */
async function firstOverflow(
  layers: LayerGraph,
  pictures: Pictures,
  { subject, computeThreads, signal }: CheckSourceOptions,
): Promise<FacetrainError> {
  const shapes = tensorShapes(layers);
  const one = { ...pictures, count: 1, data: pictures.data.subarray(0, pictures.height * pictures.width * 3) };
  const outputOf = async (index: number): Promise<Float32Array> => {
    const { output: name } = layers.layers[index]!;
    const part = {
      ...layers,
      layers: layers.layers.slice(0, index + 1),
      output: { name, dim: elementCount(shapes.get(name)!) },
    };
    await using model = disposable(await LayerModel.open(part, { computeThreads }));
    return await model.model.embed(one, { signal });
  };
  // Bisection. Values of this size do not become small again, apart from where a batch norm divides by as much.
  let [low, high] = [0, layers.layers.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isComputable(await outputOf(middle))) low = middle + 1;
    else high = middle;
  }
  const layer = layers.layers[low]!;
  const values = await outputOf(low);
  const allFinite = values.every(Number.isFinite);
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const limit = LARGEST_ACTIVATION.toExponential(0);
  return new FacetrainError({
    code: allFinite ? 'InvalidModel' : 'NotANumber',
    subject,
    found:
      `layer "${layer.name}" gives values ` +
      (allFinite ? `of up to ${largest.toExponential(1)}` : 'that are not finite'),
    allowed: `values below ${limit}: a trained model, and the range of its input that it was trained with`,
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
