/** EasyQuant (arXiv 2006.16669): the search for scales, and the networks in INT7 and in FP32 that it compares. */
import { FacetrainError } from '@facetrain/api';
import { native } from './addon.ts';
import { type Call, runCall } from './call.ts';
import type { Pictures } from './data.ts';
import type { Embedder } from './embedder.ts';
import { checkPictures, embedInBatches } from './model.ts';
import { translateErrors } from './native-errors.ts';
import type { Graph, GraphOutput, Layer, LayerGraph, Scales } from './types.ts';

/** Options of native/quant/search.h; their defaults are in api/src/shared-defaults.ts. */
export interface SearchOptions {
  rounds: number;
  candidates: number;
  lower: number;
  upper: number;
  /** Operands of convolutions may have a zero point; else it is 0. */
  zeroPoints: boolean;
  equalize: boolean;
  biasCorrection: boolean;
  /** Share of the multiply-accumulates whose operands may have eight bits: 0 to 1. */
  budget: number;
  /** For the activations of all pictures; when they take more, they lie in a file without a name. */
  memoryBytes: number;
  /** Of that file. */
  temporaryDirectory: string;
  computeThreads: number;
  signal?: AbortSignal;
  onProgress?: (progress: { stage: 'equalizing' | 'searching'; done: number; total: number }) => void;
  /** What an interrupted search of the same graph, pictures and options told `onDecisions`, in order. */
  decided?: readonly Float64Array[];
  /** Gets new decisions soon after they are made, the last before searchScales returns or throws. */
  onDecisions?: (made: Float64Array[]) => void;
}

/** The search's results for one layer; fields as in api's QuantizedLayer. */
export interface LayerResult {
  name: string;
  bits: 7 | 8 | 32;
  macs: number;
  cosineStart: number;
  cosine: number;
  inputScale: number | null;
  saturation: number;
  weightSumMax: number | null;
}

export interface SearchResult {
  /**
   * The layers that `scales` quantizes: equalized, so in FP32 they compute the same function as those given. Bias
   * correction changes `scales.biases` only.
   */
  graph: LayerGraph;
  scales: Scales;
  layers: LayerResult[];
}

/** The instruction sets that the INT7 runtime has kernels for (native/kernels/conv.h). */
export type InstructionSet =
  | 'portable'
  | 'avx2int32'
  | 'avx2direct'
  | 'avx2'
  | 'avxvnni'
  | 'avx512vnni'
  | 'neon'
  | 'neondot';

/**
 * The parts of an INT7 network's error: the weights and biases of convolutions; the tensors that convolutions multiply,
 * with 7 bits or 8; the others, which are added or mapped, with 8.
 */
export const QUANTIZED_PARTS = ['weights', 'operands', 'others'] as const;
export type QuantizedPart = (typeof QUANTIZED_PARTS)[number];

/** What a step of the INT7 runtime takes: a layer with the layers that follow in the same pass. */
export interface LayerTime {
  name: string;
  macs: number;
  seconds: number;
}

/** What an INT7 file says of itself. */
export interface Int7FileFacts {
  input: Pick<Graph['input'], 'name' | 'channels' | 'height' | 'width'>;
  outputs: GraphOutput[];
}

interface NativeNetwork {
  open(
    graph: LayerGraph,
    scales: Scales | null,
    computeThreads: number,
    isa: InstructionSet | 'auto',
    part: QuantizedPart | null,
  ): Promise<void>;
  openFile(
    bytes: Uint8Array,
    subject: string,
    computeThreads: number,
    isa: InstructionSet | 'auto',
  ): Promise<Int7FileFacts>;
  embed(pixels: Uint8Array, height: number, width: number, channels: number, flip: boolean): Promise<Float32Array>;
  runLayers(pixels: Uint8Array): Promise<Record<string, Int8Array>>;
  timeLayers(pixels: Uint8Array): Promise<LayerTime[]>;
  close(): Promise<void>;
}

/** The numbers of a layer that equalization changes. */
type LayerNumbers = { weight?: Float32Array; bias?: Float32Array; offset?: Float32Array };

interface QuantizationAddon {
  LayerNetwork: new () => NativeNetwork;
  instructionSets(): Partial<Record<InstructionSet, number>>;
  searchScales(
    graph: LayerGraph,
    pixels: Uint8Array,
    count: number,
    options: Pick<
      SearchOptions,
      'rounds' | 'candidates' | 'lower' | 'upper' | 'zeroPoints' | 'equalize' | 'biasCorrection' | 'budget'
    >,
    space: { memoryBytes: number; directory: string },
    computeThreads: number,
    decided: readonly Float64Array[],
  ): Call<{ numbers: LayerNumbers[]; scales: Scales; layers: LayerResult[] }> & {
    progress(): Parameters<NonNullable<SearchOptions['onProgress']>>[0];
    decisions(): Float64Array[];
  };
}

const addon = native<QuantizationAddon>();

/**
 * The instruction sets of the INT7 runtime that this machine has, each with the GMAC/s of one thread that does nothing
 * but its products; 0 where that is not measured. Takes a tenth of a second.
 */
export function instructionSets(): Partial<Record<InstructionSet, number>> {
  return addon.instructionSets();
}

/** Milliseconds between two reports of progress. */
const progressInterval = 100;

/**
 * Searches scales as EasyQuant does; native/quant/search.h describes the algorithm. The pictures' channels must be in
 * the order that the graph expects.
 * @throws FacetrainError InvalidArgument (no pictures, or of another size), InvalidModel, NotANumber,
 *   InsufficientMemory when neither memory nor the folder has room for the activations; the signal's
 *   reason once it is aborted
 */
export async function searchScales(
  graph: LayerGraph,
  pictures: Pictures,
  options: SearchOptions,
): Promise<SearchResult> {
  const { memoryBytes, temporaryDirectory: directory, computeThreads, signal, ...rest } = options;
  const { onProgress, decided = [], onDecisions, ...search } = rest;
  const space = { memoryBytes, directory };
  const data = inChannelsOf(graph, pictures);
  checkPictures(graph, { ...pictures, data });
  if (pictures.count === 0)
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: 'calibration',
      found: 'no pictures',
      allowed: 'one picture at least',
    });
  let timer: NodeJS.Timeout | undefined;
  let report = () => {};
  try {
    const { numbers, scales, layers } = await runCall(() => {
      const call = addon.searchScales(graph, data, pictures.count, search, space, computeThreads, decided);
      report = () => {
        onProgress?.(call.progress());
        onDecisions?.(call.decisions());
      };
      timer = setInterval(report, progressInterval);
      return call;
    }, signal);
    return {
      graph: { ...graph, layers: graph.layers.map((layer, index) => withNumbers(layer, numbers[index]!)) },
      scales,
      layers,
    };
  } finally {
    clearInterval(timer);
    report();
  }
}

/** Weights of red, green and blue in a gray (ITU-R BT.601), of 1000. */
const LUMA = [299, 587, 114] as const;

/** The bytes of pictures, gray if the graph reads one channel. */
function inChannelsOf({ input }: Pick<Int7FileFacts, 'input'>, { channelOrder, data }: Pictures): Uint8Array {
  if (input.channels !== 1) return data;
  const [first, second, third] = channelOrder === 'bgr' ? LUMA.toReversed() : LUMA;
  return Uint8Array.from({ length: data.length / 3 }, (_, i) =>
    Math.floor((data[3 * i]! * first! + data[3 * i + 1]! * second! + data[3 * i + 2]! * third! + 500) / 1000),
  );
}

function withNumbers(layer: Layer, { weight, bias, offset }: LayerNumbers): Layer {
  if (layer.kind === 'conv' || layer.kind === 'fc')
    return { ...layer, weight: { dims: layer.weight.dims, data: weight! }, bias: bias! };
  return layer.kind === 'pointwise' ? { ...layer, offset: offset! } : layer;
}

/** The common part of the FP32 and the INT7 network. */
abstract class LayerNetwork implements Embedder {
  readonly dim: number;
  protected readonly graph: LayerGraph;
  protected readonly network = new addon.LayerNetwork();

  constructor(graph: LayerGraph) {
    this.graph = graph;
    this.dim = graph.output.dim;
  }

  protected async load(
    scales: Scales | null,
    computeThreads: number,
    { isa = 'auto', part = null }: { isa?: InstructionSet | 'auto'; part?: QuantizedPart | null } = {},
  ): Promise<this> {
    try {
      await translateErrors(() => this.network.open(this.graph, scales, computeThreads, isa, part));
      return this;
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  /** @throws FacetrainError InvalidArgument when the pictures are not of the graph's size */
  embed(pictures: Pictures, options: Parameters<Embedder['embed']>[1] = {}): Promise<Float32Array> {
    const data = inChannelsOf(this.graph, pictures);
    return embedInBatches(this.network, this.graph, { ...pictures, data }, options);
  }

  close(): Promise<void> {
    return this.network.close();
  }
}

/** A LayerGraph in FP32: the reference that the integers are compared with. */
export class LayerModel extends LayerNetwork {
  /** @throws FacetrainError InvalidModel naming the layer whose sizes do not fit or whose weights are not finite */
  static open(graph: LayerGraph, { computeThreads }: { computeThreads: number }): Promise<LayerModel> {
    return new LayerModel(graph).load(null, computeThreads);
  }
}

/**
 * A LayerGraph in FP32 but for one part, which is rounded as in the INT7 network: to see where its error comes from.
 */
export class PartlyQuantizedModel extends LayerNetwork {
  /** @throws FacetrainError as Int7Model.open */
  static open(
    graph: LayerGraph,
    scales: Scales,
    { part, computeThreads }: { part: QuantizedPart; computeThreads: number },
  ): Promise<PartlyQuantizedModel> {
    return new PartlyQuantizedModel(graph).load(scales, computeThreads, { part });
  }
}

/** A LayerGraph in integers: the INT7 runtime (native/quant/model.h). */
export class Int7Model extends LayerNetwork {
  /**
   * @throws FacetrainError InvalidModel as LayerModel.open; InvalidArtifact naming the tensor or layer whose scales
   *   do not fit the graph
   */
  static open(
    graph: LayerGraph,
    scales: Scales,
    { computeThreads, isa = 'auto' }: { computeThreads: number; isa?: InstructionSet | 'auto' },
  ): Promise<Int7Model> {
    return new Int7Model(graph).load(scales, computeThreads, { isa });
  }

  /** Embeds one picture, and tells what each step took. Which layers are one step is the runtime's choice. */
  timeLayers(picture: Pictures): Promise<LayerTime[]> {
    checkPictures(this.graph, picture);
    return translateErrors(() => this.network.timeLayers(picture.data));
  }

  /**
   * Every quantized tensor's integers for one picture, [channels, height, width], by name: for tests and diagnosis.
   * @throws FacetrainError InvalidArgument unless there is one picture, of the graph's size
   */
  async runLayers(picture: Pictures): Promise<Record<string, Int8Array>> {
    const data = inChannelsOf(this.graph, picture);
    checkPictures(this.graph, { ...picture, data });
    if (picture.count !== 1)
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: 'pictures',
        found: `${picture.count}`,
        allowed: 'one',
      });
    return translateErrors(() => this.network.runLayers(data));
  }
}

export interface Int7FileOptions {
  /** The file's name, for messages. */
  subject: string;
  computeThreads: number;
  isa?: InstructionSet | 'auto';
  /** The only output to give; absent or null: all, one behind the other. */
  output?: string | null | undefined;
}

/** A model.int7.onnx in the INT7 runtime: by the reader of the C library (native/int7/onnx_reader.h). */
export class Int7FileModel implements Embedder {
  readonly dim: number;
  readonly input: Int7FileFacts['input'];
  readonly outputs: GraphOutput[];
  readonly #network: NativeNetwork;
  /** Of an embedding, in all outputs of the file. */
  readonly #first: number;
  readonly #fileDim: number;

  private constructor(network: NativeNetwork, { input, outputs }: Int7FileFacts, chosen: GraphOutput[]) {
    this.#network = network;
    this.input = input;
    this.outputs = chosen;
    this.dim = numbersOf(chosen);
    this.#first = numbersOf(outputs.slice(0, outputs.indexOf(chosen[0]!)));
    this.#fileDim = numbersOf(outputs);
  }

  /**
   * @param bytes the file
   * @throws FacetrainError InvalidArtifact for what is no model.int7.onnx, or of a newer format; InsufficientMemory;
   *   InvalidModel for an output that it has not
   */
  static async open(bytes: Uint8Array, options: Int7FileOptions): Promise<Int7FileModel> {
    const { subject, computeThreads, isa = 'auto', output = null } = options;
    const network = new addon.LayerNetwork();
    try {
      const facts = await translateErrors(() => network.openFile(bytes, subject, computeThreads, isa));
      const chosen = facts.outputs.filter(({ name }) => output === null || name === output);
      if (chosen.length > 0) return new Int7FileModel(network, facts, chosen);
      throw new FacetrainError({
        code: 'InvalidModel',
        subject,
        found: `has no output "${output}"`,
        allowed: `one of its outputs: ${facts.outputs.map(({ name }) => `"${name}"`).join(', ')}`,
      });
    } catch (error) {
      await network.close();
      throw error;
    }
  }

  /** @throws FacetrainError InvalidArgument when the pictures are not of the model's size */
  async embed(pictures: Pictures, options: Parameters<Embedder['embed']>[1] = {}): Promise<Float32Array> {
    const data = inChannelsOf(this, pictures);
    const file = { input: this.input, output: { name: '', dim: this.#fileDim } };
    const rows = await embedInBatches(this.#network, file, { ...pictures, data }, options);
    if (this.dim === this.#fileDim) return rows;
    const chosen = new Float32Array(pictures.count * this.dim);
    for (let row = 0; row < pictures.count; row++) {
      const first = row * this.#fileDim + this.#first;
      chosen.set(rows.subarray(first, first + this.dim), row * this.dim);
    }
    return chosen;
  }

  close(): Promise<void> {
    return this.#network.close();
  }
}

const numbersOf = (outputs: readonly GraphOutput[]) =>
  outputs.reduce((sum, { dims }) => sum + dims.reduce((product, dim) => product * dim, 1), 0);
