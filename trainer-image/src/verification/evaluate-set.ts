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

/** Pictures decoded at a time, unless the embedder wants more; of 112 x 112 pixels, they take 5 MB. */
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
  const size = Math.max(BATCH_SIZE, embedder.batch ?? 0);
  const stop = signal ? { signal } : {};
  const decode = (done: number) => {
    const encoded = set.encoded.slice(first + done, first + Math.min(done + size, count));
    return decodePictures(encoded, {
      channelOrder,
      ...input,
      subjects: encoded.map((_, i) => `${set.path}, picture ${first + done + i}`),
      code: 'InvalidVerificationSet',
      ...stop,
    });
  };
  signal?.throwIfAborted();
  let next = count > 0 ? decode(0) : undefined;
  for (let done = 0; next !== undefined; done += size) {
    const pictures = await next;
    signal?.throwIfAborted();
    // Decoded while the embedder, which may be a GPU, works on these.
    next = done + size < count ? decode(done + size) : undefined;
    next?.catch(() => undefined); // thrown by the next round, if there is one
    embeddings.set(await embedder.embed(pictures, { flip, ...stop }), done * embedder.dim);
    onBatch?.(done + pictures.count, count);
  }
  return embeddings;
}
