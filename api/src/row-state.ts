/** What the trainers keep for each class centre: one table for the schema, checkpoints and estimates of memory. */
import { BYTES_OF, type StoredType } from './checkpoint-manifest.ts';
import type { RowsOptimizer, RowUpdate } from './ranges.ts';

/** Names in manifests and checkpoints. */
export const ROWS_OPTIMIZER_NAMES = { sgd: 'SGD', adamw: 'AdamW', adagrad: 'AdaGrad' } as const satisfies Record<
  RowsOptimizer,
  string
>;

/**
 * Numbers that an optimizer keeps for a class centre, as native/pfc/partial_fc.h's RowTensor: `likeRow` tensors have
 * the length and type of the centre (momentum, moments), `scalars` are one float32 each (AdamW's number of updates,
 * AdaGrad's sum of squares).
 */
const STATE: Readonly<Record<RowsOptimizer, { likeRow: number; scalars: number }>> = {
  sgd: { likeRow: 1, scalars: 0 },
  adamw: { likeRow: 2, scalars: 1 },
  adagrad: { likeRow: 0, scalars: 1 },
};

/**
 * Bytes that a class takes on the rank that holds it: its centre, what its optimizer keeps (both are in checkpoints),
 * and, with dense updates, the number of the last update that it has seen (in memory only).
 * @param options.dim of the embedding
 */
export function bytesPerClass({
  dim,
  type,
  optimizer,
  update,
}: {
  dim: number;
  type: StoredType;
  optimizer: RowsOptimizer;
  update: RowUpdate;
}): { weight: number; state: number; pending: number } {
  const weight = dim * BYTES_OF[type];
  const { likeRow, scalars } = STATE[optimizer];
  return { weight, state: likeRow * weight + scalars * BYTES_OF.float32, pending: update === 'dense' ? 4 : 0 };
}
