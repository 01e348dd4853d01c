/** The class centres of a checkpoint on disk, without a session: block by block in row order, each digest compared. */
import { BYTES_OF, type StoredType } from '@facetrain/api';
import { type Checkpoint, OpenRowFile, openWhole } from './directory.ts';

/** Class centres that follow one another. */
export interface Centres {
  firstRow: number;
  rows: number;
  /** [rows, embeddingDim] */
  values: Float32Array;
}

/**
 * @param wanted which blocks to read; the others cost nothing. Absent: all
 * @throws DamagedCheckpoint; FacetrainError StorageFailed
 */
export async function* readCentres(
  checkpoint: Checkpoint,
  wanted: (block: { firstRow: number; rows: number }) => boolean = () => true,
): AsyncGenerator<Centres> {
  const { manifest } = checkpoint;
  if (manifest.schemaVersion === 1) {
    for (const block of manifest.rows.filter(wanted)) {
      await using file = await openWhole(checkpoint, block);
      yield { firstRow: block.firstRow, rows: block.rows, values: await file.read('weight') };
    }
    return;
  }
  const { tensors, files } = manifest.rows;
  const place = tensors.findIndex(({ name }) => name === 'weight');
  const { dtype, columns } = tensors[place]!;
  // In a block the tensors follow each other.
  const before = tensors.slice(0, place).reduce((sum, tensor) => sum + tensor.columns * BYTES_OF[tensor.dtype], 0);
  for (const stored of files) {
    const blocks = stored.blocks.filter(wanted);
    if (blocks.length === 0) continue;
    await using file = await OpenRowFile.open(checkpoint, stored);
    for (const block of blocks) {
      const bytes = await file.read(block);
      const start = block.rows * before;
      const weights = bytes.slice(start, start + block.rows * columns * BYTES_OF[dtype]);
      yield { firstRow: block.firstRow, rows: block.rows, values: toFloats(weights, dtype) };
    }
  }
}

/** @param bytes a whole buffer of little-endian numbers of the type */
export function toFloats({ buffer, byteOffset, byteLength }: Uint8Array, dtype: StoredType): Float32Array {
  if (dtype === 'float32') return new Float32Array(buffer, byteOffset, byteLength / 4);
  // The upper half of a 32-bit number.
  const bits = new Uint32Array(byteLength / 2);
  new Uint16Array(buffer, byteOffset, byteLength / 2).forEach((value, index) => {
    bits[index] = value << 16;
  });
  return new Float32Array(bits.buffer);
}
