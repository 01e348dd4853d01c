/** For tests: ONNX models with external data. */
import { decodeModel, encodeModel, type ModelProto, type TensorProto } from '../onnx/proto.ts';

export type Entries = Record<string, string | number>;
const entries = (values: Entries) => Object.entries(values).map(([key, value]) => ({ key, value: String(value) }));

/**
 * Splits a model as PyTorch does: weights go to a file beside it, each at a multiple of 64 bytes.
 * @param change what another writer would write for a tensor
 */
export function splitModel(
  bytes: Uint8Array,
  location: string,
  change: (tensor: TensorProto, values: Entries) => Entries = (_, values) => values,
): { model: Uint8Array; data: Uint8Array } {
  const model = decodeModel(bytes) as ModelProto & { graph: NonNullable<ModelProto['graph']> };
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const tensor of model.graph.initializer) {
    const raw = tensor.rawData!;
    const padded = new Uint8Array(Math.ceil(raw.length / 64) * 64);
    padded.set(raw);
    parts.push(padded);
    tensor.externalData = entries(change(tensor, { location, offset, length: raw.length }));
    tensor.dataLocation = 1;
    tensor.rawData = new Uint8Array();
    offset += padded.length;
  }
  return { model: encodeModel(model), data: Buffer.concat(parts) };
}
