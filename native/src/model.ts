/** A float32 backbone that embeds pictures: the native graph executor (native/model/executor.h) on its own thread. */
import { counted, FacetrainError } from '@facetrain/api';
import { native } from './addon.ts';
import type { Pictures } from './data.ts';
import type { Embedder } from './embedder.ts';
import { translateErrors } from './native-errors.ts';
import type { Graph } from './types.ts';

/**
 * Pictures per call of a backbone: enough to keep the cores busy; an abort takes effect between two calls. On a GPU
 * more are needed to keep it busy.
 */
export const EMBEDDING_BATCH = 32;
export const EMBEDDING_BATCHES = { cpu: EMBEDDING_BATCH, cuda: 256 };

export type Device = keyof typeof EMBEDDING_BATCHES;

export interface ModelOptions {
  computeThreads: number;
  /** `auto`: CUDA if this machine has a device, otherwise the CPU. Absent: the CPU. */
  device?: Device | 'auto';
}

/** What a node's output is on a few pictures. A channel is one of a map [N, C, H, W], or one number of a vector. */
export interface NodeValues {
  /** As in messages: node 'conv1' (Conv). */
  node: string;
  /** Of the finite values. */
  smallest: number;
  largest: number;
  notFinite: number;
  /** Values in each channel. */
  samples: number;
  channels: number;
  /** Channels that have the same value, up to rounding, at every pixel of all pictures. */
  constantChannels: number;
}

interface NativeModel {
  open(graph: Graph, computeThreads: number, device: Device | 'auto'): Promise<Device>;
  embed(pixels: Uint8Array, height: number, width: number, channels: number, flip: boolean): Promise<Float32Array>;
  nodeValues(pixels: Uint8Array, height: number, width: number, channels: number): Promise<NodeValues[]>;
  close(): Promise<void>;
}

const addon = native<{ Model: new () => NativeModel }>();

/** A backbone in float32, on the CPU or a GPU. Close it: it keeps a thread. */
export class Model implements Embedder {
  readonly dim: number;
  readonly #graph: Graph;
  readonly #native = new addon.Model();
  #device: Device = 'cpu';

  private constructor(graph: Graph) {
    this.#graph = graph;
    this.dim = graph.output.dim;
  }

  /**
   * Plans the graph and runs it once on two blank pictures, which finds shapes that do not fit.
   * @throws FacetrainError UnsupportedOperator (names operator and node), InvalidModel (shapes that do not fit, weights
   *   that are not finite), InvalidConfig (there is no CUDA device)
   */
  static async open(graph: Graph, options: ModelOptions): Promise<Model> {
    const model = new Model(graph);
    try {
      const { computeThreads, device = 'cpu' } = options;
      model.#device = await translateErrors(() => model.#native.open(graph, computeThreads, device));
      return model;
    } catch (error) {
      await model.close();
      throw error;
    }
  }

  /** The one that was chosen. */
  get device(): Device {
    return this.#device;
  }

  get batch(): number {
    return EMBEDDING_BATCHES[this.#device];
  }

  async embed(pictures: Pictures, options: Parameters<Embedder['embed']>[1] = {}): Promise<Float32Array> {
    return await embedInBatches(this.#native, this.#graph, pictures, options, this.#device);
  }

  /**
   * Runs the pictures and describes the output of each node, in the order of the graph. A batch norm that is computed
   * together with the PRelu behind it is left out.
   * @throws FacetrainError InvalidArgument when the pictures are not of the graph's size
   */
  async nodeValues(pictures: Pictures): Promise<NodeValues[]> {
    checkPictures(this.#graph, pictures);
    const { data, height, width } = pictures;
    return await translateErrors(() => this.#native.nodeValues(data, height, width, 3));
  }

  async close(): Promise<void> {
    await this.#native.close();
  }
}

/**
 * @param data of the channels that the graph reads
 * @throws FacetrainError InvalidArgument when the pictures are not of the graph's size
 */
export function checkPictures(
  { input }: Pick<Graph, 'input'>,
  { count, height, width, data }: Omit<Pictures, 'channelOrder'>,
): void {
  if (height === input.height && width === input.width && data.length === count * height * width * input.channels)
    return;
  throw new FacetrainError({
    code: 'InvalidArgument',
    subject: `input '${input.name}'`,
    found: `${counted(count, 'picture')} of ${height} x ${width} in ${counted(data.length, 'byte')}`,
    allowed: `pictures of ${input.height} x ${input.width} with ${counted(input.channels, 'channel')}, a byte each`,
  });
}

/**
 * Embeds pictures in batches with anything native that embeds one batch.
 * @returns [count, dim]
 * @throws FacetrainError InvalidArgument when the pictures are not of the graph's size; the signal's reason
 */
export async function embedInBatches(
  backbone: Pick<NativeModel, 'embed'>,
  { input, output }: Pick<Graph, 'input' | 'output'>,
  { count, height, width, data }: Pictures,
  { flip = false, signal, onBatch }: NonNullable<Parameters<Embedder['embed']>[1]>,
  device: Device = 'cpu',
): Promise<Float32Array> {
  signal?.throwIfAborted();
  checkPictures({ input }, { count, height, width, data });
  const size = height * width * input.channels;
  const embeddings = new Float32Array(count * output.dim);
  for (let done = 0; done < count; ) {
    const next = Math.min(done + EMBEDDING_BATCHES[device], count);
    const batch = await translateErrors(() =>
      backbone.embed(data.subarray(done * size, next * size), height, width, input.channels, flip),
    );
    signal?.throwIfAborted();
    embeddings.set(batch, done * output.dim);
    done = next;
    onBatch?.(done);
  }
  return embeddings;
}
