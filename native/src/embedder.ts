/** Anything that turns pictures into embeddings: the FP32 executor, a training session, the INT7 runtime. */
import type { Pictures } from './data.ts';

export interface Embedder {
  /** Length of an embedding. */
  readonly dim: number;
  /**
   * Embeds pictures scaled to [-1, 1] in evaluation mode. With `flip`, an embedding is the sum of that of the picture and that of its
   * mirror image, as insightface's verification has it. Not normalised.
   * @returns [count, dim]
   */
  embed(
    pictures: Pictures,
    options?: { flip?: boolean; signal?: AbortSignal; onBatch?: (done: number) => void },
  ): Promise<Float32Array>;
  close(): Promise<void>;
}
