/**
 * Embeds pictures with the FP32 and the INT7 model, and measures how far apart the embeddings are. Metrics: compare.ts.
 */
import type { ErrorSplit, Metrics, QuantizeConfig, SetScores } from '@facetrain/api';
import {
  type Embedder,
  type Graph,
  type LayerGraph,
  PartlyQuantizedModel,
  type Pictures,
  QUANTIZED_PARTS,
  type Scales,
} from '@facetrain/native';
import type { Program } from '../program/program.ts';
import { evaluateSet } from '../verification/evaluate-set.ts';
import type { VerificationSet } from '../verification/verification-set.ts';
import {
  compareOnSet,
  compareOutputs,
  concatenate,
  cosines,
  type SetEmbeddings,
  summarize,
  summarizeOutputs,
} from './compare.ts';
import { disposable } from './disposable.ts';
import type { Calibration } from './inputs.ts';
import type { PictureCosines } from './worst-pictures.ts';

export interface ComparedModels {
  metrics: Metrics;
  /** How both models score the pairs of each set. */
  scores: SetScores[];
  /** By picture, for the worst of them. */
  sources: PictureCosines[];
}

/** On verification sets: accuracy of both models, and the cosines of all pictures and their mirror images. */
export async function compareOnSets(
  { model }: QuantizeConfig,
  sets: VerificationSet[],
  { input }: Graph,
  fp32: Embedder,
  int7: Embedder,
  { progress, signal }: Program,
): Promise<ComparedModels> {
  let done = 0;
  const totalSteps = 4 * sets.reduce((sum, { encoded }) => sum + encoded.length, 0);
  const embed = async (embedder: Embedder, set: VerificationSet) => {
    const onBatch = (pictures: number) => progress.update({ step: done + pictures, totalSteps });
    const options = { input, channelOrder: model.channelOrder, flip: false, signal, onBatch };
    const embeddings = await evaluateSet(embedder, set, options);
    done += set.encoded.length;
    return embeddings;
  };
  const embeddings = async (embedder: Embedder, set: VerificationSet): Promise<SetEmbeddings> => ({
    plain: await embed(embedder, set),
    mirrored: await embed(ofMirrorImages(embedder), set),
  });
  const compared = [];
  for (const set of sets)
    compared.push(compareOnSet(set, fp32.dim, await embeddings(fp32, set), await embeddings(int7, set)));
  const metrics = summarize(
    compared.map(({ comparison }) => comparison),
    concatenate(compared.map((result) => result.cosines)),
    'evaluation',
  );
  const sources = compared.map((result, i) => ({
    ...{ set: sets[i]!.name, cosines: result.cosines, pictures: sets[i]!.encoded.length },
  }));
  return { metrics, scores: compared.map(({ scores }) => scores), sources };
}

/** On pictures without identities, when there are no sets: cosines alone, and those of each output of several. */
export async function compareOnPictures(
  { pictures, numbers, source }: Calibration['compared'],
  { outputs, output }: Pick<Graph, 'outputs' | 'output'>,
  fp32: Embedder,
  int7: Embedder,
  { progress, signal }: Program,
): Promise<ComparedModels> {
  const embed = (embedder: Embedder, before: number) =>
    embedder.embed(pictures, {
      signal,
      onBatch: (done) => progress.update({ step: before + done, totalSteps: 2 * pictures.count }),
    });
  const [reference, quantized] = [await embed(fp32, 0), await embed(int7, pictures.count)];
  const by = (each: Float64Array) => [{ set: null, cosines: each, numbers, pictures: pictures.count }];
  if (outputs) {
    const compared = compareOutputs(reference, quantized, outputs);
    const mean = Float64Array.from(
      { length: pictures.count },
      (_, i) => compared.reduce((sum, output) => sum + output.cosines[i]!, 0) / compared.length,
    );
    return { metrics: summarizeOutputs(compared, source, pictures.count), scores: [], sources: by(mean) };
  }
  const found = cosines(
    reference,
    quantized,
    fp32.dim,
    (index) => `picture ${numbers[index]} of the calibration dataset`,
  );
  const [only] = compareOutputs(reference, quantized, [{ name: output.name, dims: [output.dim] }]);
  const { top1Agreement } = only!;
  const metrics = { ...summarize([], found, source), ...(top1Agreement !== null && { top1Agreement }) };
  return { metrics, scores: [], sources: by(found) };
}

/** Pictures of splitError: at most so many, and fewer of a network that takes its time. */
const SPLIT_PICTURES = { least: 8, most: 50, macs: 1e11 };

/** How much of the error the weights, the operands and the other tensors make, each alone. */
export async function splitError(
  { graph, scales, layers }: { graph: LayerGraph; scales: Scales; layers: { macs: number }[] },
  { pictures, source }: Calibration['compared'],
  { outputs, output }: Pick<Graph, 'outputs' | 'output'>,
  fp32: Embedder,
  int7: Embedder,
  { computeThreads, signal }: { computeThreads: number; signal: AbortSignal },
): Promise<ErrorSplit> {
  const macs = layers.reduce((sum, layer) => sum + layer.macs, 1);
  const { least, most } = SPLIT_PICTURES;
  const count = Math.min(pictures.count, most, Math.max(least, Math.floor(SPLIT_PICTURES.macs / macs)));
  const size = pictures.height * pictures.width * 3;
  const few = { ...pictures, count, data: pictures.data.subarray(0, count * size) };
  const reference = await fp32.embed(few, { signal });
  const meanCosine = async (model: Embedder) => {
    const compared = compareOutputs(
      reference,
      await model.embed(few, { signal }),
      outputs ?? [{ name: output.name, dims: [output.dim] }],
    );
    return summarizeOutputs(compared, source, count).meanCosine;
  };
  const parts = { weights: 0, operands: 0, others: 0 };
  for (const part of QUANTIZED_PARTS) {
    await using partly = disposable(await PartlyQuantizedModel.open(graph, scales, { part, computeThreads }));
    parts[part] = await meanCosine(partly.model);
  }
  return { source, pictures: count, ...parts, all: await meanCosine(int7) };
}

/** An embedder of the mirror images alone. The native `flip` adds both embeddings, and here each is compared. */
function ofMirrorImages(embedder: Embedder): Embedder {
  return {
    dim: embedder.dim,
    embed: (pictures, options) => embedder.embed(mirrorImages(pictures), options),
    close: () => embedder.close(),
  };
}

function mirrorImages(pictures: Pictures): Pictures {
  const { count, height, width } = pictures;
  const data = new Uint8Array(pictures.data.length);
  for (let row = 0; row < count * height; ++row) {
    for (let column = 0; column < width; ++column) {
      const from = (row * width + column) * 3;
      data.set(pictures.data.subarray(from, from + 3), (row * width + width - 1 - column) * 3);
    }
  }
  return { ...pictures, data };
}
