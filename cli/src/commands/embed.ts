/** `facetrain embed`: what a model gives for pictures in files, and how alike two pictures are. */
import { readFile, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { counted, FacetrainError, fileCause } from '@facetrain/api';
import { type Device, decodePictures, EMBEDDING_BATCH, type Embedder, type Pictures } from '@facetrain/native';
import { type ChannelOrder, channelOrderOf } from '@facetrain/trainer/onnx/channel-order';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx, TAIL_METADATA } from '@facetrain/trainer/onnx/read';
import { cosines } from '@facetrain/trainer/quantize/compare';
import { npyFile } from '@facetrain/trainer/storage/npy';
import { lengthOf } from '@facetrain/trainer/verification/check-embeddings';
import type { StatusLine } from '../terminal-output.ts';
import { DEFAULT_ORDER, givenRange, type InputRangeOptions } from './input-range.ts';
import { checkDevice, openEmbedder, type Runtime, runtimeOf } from './open-embedder.ts';

export interface EmbedOptions extends InputRangeOptions {
  model: string;
  /** Pictures two by two, each pair to be compared. */
  pairs?: string[];
  /** Receives the embeddings. */
  npy?: string;
  /** Absent: int7 for a quantized model, fp32 for any other. */
  runtime?: Runtime;
  /** Absent: as the file's metadata says it, else DEFAULT_CHANNEL_ORDER. */
  channelOrder?: ChannelOrder;
  /** The output that is the embedding; absent: all, of which pairs need to be one. */
  output?: string;
  /** Absent: one for each CPU. */
  threads?: number;
  /** Where an FP32 model runs; absent: auto, a GPU if there is one. */
  device?: Device | 'auto';
}

/**
 * Embeds pictures, each of the size of the model's input. Embeddings are as the model gives them, not normalized.
 * @throws FacetrainError InvalidArgument about a picture or an option; NotANumber naming a picture of a pair whose
 *   embedding is zero or not finite; as readOnnx about the model
 */
export async function embed(images: string[], options: EmbedOptions, line: StatusLine, signal: AbortSignal) {
  const { model: file, pairs = [], npy, threads = availableParallelism(), device = 'auto' } = options;
  checkImages(images, pairs);
  if (npy !== undefined && images.length === 0)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--npy',
      found: 'no pictures but those of --pairs',
      allowed: 'the pictures whose embeddings it receives, before --pairs',
    });
  checkDevice(device);
  const read = await readOnnx(file, { output: options.output, every: 'several' });
  const channelOrder = options.channelOrder ?? channelOrderOf(read.metadata) ?? DEFAULT_ORDER;
  const { [TAIL_METADATA]: tail } = read.metadata;
  if (tail !== undefined)
    line.print(`${file} ends with operators for ONNX Runtime (${tail}): these are the outputs in front of them`);
  const { graph } = withInputRange(read, { given: givenRange(options), subject: file });
  const outputs = (graph.outputs ?? [{ name: graph.output.name, dims: [graph.output.dim] }]).map(({ name, dims }) => ({
    name,
    dims,
    size: dims.reduce((product, dim) => product * dim, 1),
  }));
  if (outputs.length > 1 && pairs.length > 0)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--pairs',
      found: `${file} has the outputs ${outputs.map(({ name }) => `"${name}"`).join(', ')}`,
      allowed: 'the name of the one that is the embedding: --output NAME',
    });
  const runtime = runtimeOf(graph, options.runtime);
  const files = [...images, ...pairs];
  const embedder = await openEmbedder(file, { ...read, graph }, runtime, {
    ...{ computeThreads: threads, device },
    output: options.output,
  });
  try {
    const { height, width } = graph.input;
    const decode = (path: string) => decodeFile(path, { channelOrder, height, width, signal });
    const rows = await embedFiles(embedder, files, decode, (done) =>
      line.show('Embedding', `${done} of ${files.length} pictures`),
    );
    line.clear();
    const row = (index: number) => rows.subarray(index * embedder.dim, (index + 1) * embedder.dim);
    const embeddings = images.map((image, index) => ({ image, values: row(index) }));
    const compared = pairs.flatMap((second, i) => {
      if (i % 2 === 0) return [];
      const [a, b] = [row(images.length + i - 1), row(images.length + i)];
      lengthOf(a, embedder.dim, 0, `embedding of ${pairs[i - 1]}`);
      lengthOf(b, embedder.dim, 0, `embedding of ${second}`);
      return [{ images: [pairs[i - 1]!, second], cosine: cosines(a, b, embedder.dim)[0]! }];
    });
    if (npy !== undefined) await writeNpy(npy, rows.subarray(0, images.length * embedder.dim), embedder.dim);
    const inOutputs = (values: Float32Array) => {
      let first = 0;
      return outputs.map(({ name, dims, size }) => {
        first += size;
        return { name, dims, values: Array.from(values.subarray(first - size, first)) };
      });
    };
    return {
      json: {
        model: file,
        runtime,
        channelOrder,
        ...(tail !== undefined && { tail }),
        images: embeddings.map(({ image, values }) => ({ image, outputs: inOutputs(values) })),
        pairs: compared,
      },
      text: [
        ...(npy === undefined ? embeddings : []).flatMap(({ image, values }) =>
          inOutputs(values).map(({ name, values: numbers }) =>
            [image, ...(outputs.length > 1 ? [name] : []), ...numbers.map(shown)].join('\t'),
          ),
        ),
        ...compared.map(({ images: both, cosine }) => [...both, cosine.toFixed(6)].join('\t')),
        ...(npy === undefined ? [] : [`${images.length} x ${embedder.dim} numbers in ${npy}`]),
      ]
        .map((text) => `${text}\n`)
        .join(''),
    };
  } finally {
    await embedder.close();
  }
}

/** Nine digits, which tell every float32 from the next. */
const shown = (value: number) => String(Number(value.toPrecision(9)));

/** @throws FacetrainError InvalidArgument when there is nothing to embed, or a picture without its pair */
function checkImages(images: string[], pairs: string[]): void {
  if (pairs.length % 2 === 1)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: '--pairs',
      found: counted(pairs.length, 'picture'),
      allowed: 'two for each pair: --pairs A B, or --pairs A B C D',
    });
  if (images.length + pairs.length === 0)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: 'pictures',
      found: 'none',
      allowed: 'files to embed, or two to compare: --pairs A B',
    });
}

async function decodeFile(
  path: string,
  options: { channelOrder: ChannelOrder; height: number; width: number; signal: AbortSignal },
): Promise<Pictures> {
  const bytes = await readFile(path).catch((cause: Error) => {
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: path,
      found: fileCause(cause),
      allowed: `a picture of ${options.height} x ${options.width} (JPEG, PNG, WebP or BMP)`,
      cause,
    });
  });
  return decodePictures([bytes], { ...options, subjects: [path], code: 'InvalidArgument' });
}

/** The embeddings [files, dim], of so many pictures at a time as fit in a batch. */
async function embedFiles(
  embedder: Embedder,
  files: string[],
  decode: (path: string) => Promise<Pictures>,
  onBatch: (done: number) => void,
): Promise<Float32Array> {
  const rows = new Float32Array(files.length * embedder.dim);
  for (let first = 0; first < files.length; first += EMBEDDING_BATCH) {
    const pictures = [];
    for (const path of files.slice(first, first + EMBEDDING_BATCH)) pictures.push(await decode(path));
    const data = new Uint8Array(Buffer.concat(pictures.map((picture) => picture.data)));
    rows.set(await embedder.embed({ ...pictures[0]!, count: pictures.length, data }), first * embedder.dim);
    onBatch(first + pictures.length);
  }
  return rows;
}

/** @throws FacetrainError StorageFailed */
async function writeNpy(path: string, rows: Float32Array, dim: number): Promise<void> {
  await writeFile(path, npyFile(rows, dim)).catch((cause: Error) => {
    throw new FacetrainError({
      code: 'StorageFailed',
      subject: path,
      found: fileCause(cause),
      allowed: 'a file that can be written',
      cause,
    });
  });
}
