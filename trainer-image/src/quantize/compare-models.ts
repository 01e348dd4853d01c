/**
 * Embeds pictures with the FP32 and the INT7 model, and measures how far apart the embeddings are. Metrics: compare.ts.
 */
import type { Metrics, QuantizeConfig } from '@facetrain/api';
import type { Embedder, Graph, Pictures } from '@facetrain/native';
import type { Program } from '../program/program.ts';
import { evaluateSet } from '../verification/evaluate-set.ts';
import type { VerificationSet } from '../verification/verification-set.ts';
import { compareOnSet, concatenate, cosines, type SetEmbeddings, summarize } from './compare.ts';

/** On verification sets: accuracy of both models, and the cosines of all pictures and their mirror images. */
export async function compareOnSets(
  { model }: QuantizeConfig,
  sets: VerificationSet[],
  { input }: Graph,
  fp32: Embedder,
  int7: Embedder,
  { progress, signal }: Program,
): Promise<Metrics> {
  const options = { input, channelOrder: model.channelOrder, flip: false, signal, onBatch: () => progress.tick() };
  const embeddings = async (embedder: Embedder, set: VerificationSet): Promise<SetEmbeddings> => ({
    plain: await evaluateSet(embedder, set, options),
    mirrored: await evaluateSet(ofMirrorImages(embedder), set, options),
  });
  const compared = [];
  for (const set of sets)
    compared.push(compareOnSet(set.name, set.same, fp32.dim, await embeddings(fp32, set), await embeddings(int7, set)));
  return summarize(
    compared.map(({ comparison }) => comparison),
    concatenate(compared.map((result) => result.cosines)),
  );
}

/** On pictures without identities, when there are no sets: cosines alone. */
export async function compareOnPictures(
  pictures: Pictures,
  fp32: Embedder,
  int7: Embedder,
  { progress, signal }: Program,
): Promise<Metrics> {
  const options = { signal, onBatch: () => progress.tick() };
  return summarize([], cosines(await fp32.embed(pictures, options), await int7.embed(pictures, options), fp32.dim));
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
