/** `facetrain convert`: an INT7 model in the files of another runtime. */
import { join, resolve } from 'node:path';
import { FacetrainError } from '@facetrain/api';
import { type ChannelOrder, channelOrderOf } from '@facetrain/trainer/onnx/channel-order';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx, TAIL_METADATA } from '@facetrain/trainer/onnx/read';
import { withSubject } from '@facetrain/trainer/onnx/with-subject';
import { writeNcnn } from '@facetrain/trainer/quantize/ncnn';
import { decodeInt7, isQuantized } from '@facetrain/trainer/quantize/qdq';
import { makeFolder, storageError, writeAtomically } from '@facetrain/trainer/storage/atomic-files';
import { bytes, table } from '../terminal-output.ts';
import { DEFAULT_ORDER } from './input-range.ts';

export interface ConvertOptions {
  /** A model.int7.onnx, or the folder of an artifact. */
  model: string;
  to: 'ncnn';
  /** Folder. */
  out: string;
}

/** What a program has to know to run the files. */
interface Converted {
  param: string;
  bin: string;
  input: {
    blob: string;
    width: number;
    height: number;
    channels: number;
    channelOrder: ChannelOrder;
    /** The arguments of ncnn's substract_mean_normalize. */
    mean: number[];
    norm: number[];
  };
  outputs: string[];
  /** Operators that the model has behind these outputs, and these files do not; absent: none. */
  tail?: string;
}

/**
 * @throws FacetrainError InvalidModel for a model that is not INT7; UnsupportedOperator naming a layer that has no
 *   counterpart; InvalidArtifact; StorageFailed
 */
export async function convert({ model: file, out }: ConvertOptions): Promise<{ json: Converted; text: string }> {
  const read = await readOnnx(file);
  const { graph } = withInputRange(read, { subject: file });
  if (!isQuantized(graph))
    throw new FacetrainError({
      code: 'InvalidModel',
      subject: file,
      found: 'an FP32 model',
      allowed: 'a model.int7.onnx that `facetrain quantize` or a QuantizeJob has written',
    });
  const written = convertGraph(file, graph);
  const folder = resolve(out);
  const [param, bin] = [join(folder, 'model.int7.ncnn.param'), join(folder, 'model.int7.ncnn.bin')];
  try {
    await makeFolder(folder);
    // Without its .param, a .bin is of no use.
    await writeAtomically(bin, written.bin);
    await writeAtomically(param, written.param);
  } catch (error) {
    throw storageError(folder, error);
  }
  const { width, height, channels, mean, std } = graph.input;
  const each = (values: number[] | undefined) => values ?? new Array<number>(channels).fill(127.5);
  const channelOrder = channelOrderOf(read.metadata) ?? DEFAULT_ORDER;
  const input = {
    ...{ blob: written.input, width, height, channels, channelOrder },
    mean: each(mean),
    norm: each(std).map((value) => 1 / value),
  };
  const { [TAIL_METADATA]: tail } = read.metadata;
  return {
    json: { param, bin, input, outputs: written.outputs, ...(tail !== undefined && { tail }) },
    text: table([
      ['Network', param],
      ['Weights', `${bin} (${bytes(written.bin.length)})`],
      ['Input', `blob "${input.blob}", ${channelOrder.toUpperCase()} of ${width} x ${height}`],
      ['Normalize', `substract_mean_normalize([${input.mean}], [${input.norm.map((value) => value.toPrecision(7))}])`],
      ['Outputs', written.outputs.map((name) => `blob "${name}"`).join(', ')],
      ...(tail === undefined ? [] : [['Left out', `${tail}: what the model has behind these`] as [string, string]]),
    ]),
  };
}

function convertGraph(file: string, graph: Parameters<typeof decodeInt7>[0]): ReturnType<typeof writeNcnn> {
  try {
    const { layers, scales } = decodeInt7(graph);
    return writeNcnn(layers, scales);
  } catch (error) {
    throw withSubject(file, error);
  }
}
