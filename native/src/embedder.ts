/** The interface of everything that embeds pictures: the FP32 executor, a training session, the INT7 runtime. */
import type { Pictures } from './data.ts';

export interface Embedder {
  /** Length of an embedding. */
  readonly dim: number;
  /** Pictures with which one call of embed() is fast, if it is not fast with any number. */
  readonly batch?: number;
  /**
   * Embeds pictures in evaluation mode; their bytes become numbers of the range of the network's input. With `flip`, an
   * embedding is the sum of the embeddings of the picture and of its mirror image, as in insightface's verification.
   * @returns [count, dim], not normalized. `onBatch` receives the number of pictures done so far.
   * @throws FacetrainError InvalidArgument when the pictures are not of the network's size; the signal's reason
   */
  embed(
    pictures: Pictures,
    options?: { flip?: boolean; signal?: AbortSignal; onBatch?: (done: number) => void },
  ): Promise<Float32Array>;
  /** Cancels running calls, and resolves when the native thread has ended. */
  close(): Promise<void>;
}
