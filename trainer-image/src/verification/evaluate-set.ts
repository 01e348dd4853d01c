/** Embeds the pictures of a verification set: all of them, or one rank's part. */
import { decodePictures, type Embedder } from '@facetrain/native';
import type { VerificationSet } from './verification-set.ts';

export interface Part {
  rank: number;
  size: number;
}

/**
 * The consecutive pictures that a rank embeds. All parts in rank order are the whole set; sizes differ by one at most.
 */
export function partOf(pictures: number, { rank, size }: Part): { first: number; count: number } {
  const first = Math.floor((pictures * rank) / size);
  return { first, count: Math.floor((pictures * (rank + 1)) / size) - first };
}

export interface EvaluateOptions {
  /** Size of the model's input. */
  input: { height: number; width: number };
  channelOrder: 'rgb' | 'bgr';
  /** Adds the embedding of the mirror image, as insightface does. */
  flip: boolean;
  /** Without it, all pictures are embedded. */
  part?: Part;
  signal?: AbortSignal;
  /** Called after each batch, with the number of pictures done and of all. */
  onBatch?: (done: number, total: number) => void;
}

/** Pictures decoded at a time; of 112 x 112 pixels, they take 5 MB. */
const BATCH_SIZE = 128;

/**
 * @returns [count, dim]: the embeddings of `partOf(...)`; verify() takes all parts, concatenated in rank order
 * @throws FacetrainError InvalidVerificationSet when a picture cannot be decoded
 */
export async function evaluateSet(
  embedder: Embedder,
  set: VerificationSet,
  options: EvaluateOptions,
): Promise<Float32Array> {
  const { input, channelOrder, flip, part = { rank: 0, size: 1 }, signal, onBatch } = options;
  const { first, count } = partOf(set.encoded.length, part);
  const embeddings = new Float32Array(count * embedder.dim);
  for (let done = 0; done < count; done += BATCH_SIZE) {
    signal?.throwIfAborted();
    const from = first + done;
    const encoded = set.encoded.slice(from, Math.min(from + BATCH_SIZE, first + count));
    const stop = signal ? { signal } : {};
    const pictures = await decodePictures(encoded, {
      channelOrder,
      ...input,
      subject: set.path,
      code: 'InvalidVerificationSet',
      first: from,
      ...stop,
    });
    embeddings.set(await embedder.embed(pictures, { flip, ...stop }), done * embedder.dim);
    onBatch?.(done + encoded.length, count);
  }
  return embeddings;
}
