/**
 * Writes a LayerGraph as ncnn (https://github.com/Tencent/ncnn) reads it, a text `.param` and a `.bin`: in FP32, or
 * with the weights of an INT7 model as int8 and its scales. The formats are those of ncnn's documentation ("param and
 * model file structure", "operation param weight table"). Pure.
 *
 * With scales, ncnn computes convolutions in int8 by the integers of the INT7 model. It differs from our runtime in
 * three ways: operands of convolutions end at ±127 and not at ±63; everything between convolutions is FP32; and a
 * convolution of several groups with more than one channel each is FP32, with the real values of its weights.
 */
import { FacetrainError } from '@facetrain/api';
import type { Layer, LayerGraph, Scales } from '@facetrain/native';
import { UniqueNames } from '../onnx/unique-names.ts';
import { inputsOf, tensorShapes } from './layer-shapes.ts';

export interface NcnnModel {
  param: string;
  bin: Uint8Array;
  /** Names of the blobs: of the picture, [channels, height, width], and of the outputs. */
  input: string;
  outputs: string[];
}

/** The first line of each `.param`. */
const MAGIC = '7767517';
/** Before weights in `.bin`: their type. */
const [FLOAT32, INT8] = [0, 0x000d4b38];
/** BinaryOp's and Pooling's parameters. */
const [ADD, AVERAGE] = [0, 1];
/** A trained network has dead filters, whose tiny weights give denormal numbers. These slow ncnn down tenfold. */
const TINY = 1e-10;

type Weighted = Extract<Layer, { kind: 'conv' | 'fc' }>;

/**
 * @param scales with them, convolutions are in int8
 * @throws FacetrainError UnsupportedOperator naming the layer that has no counterpart in ncnn
 */
export function writeNcnn(graph: LayerGraph, scales?: Scales): NcnnModel {
  const writer = new NcnnWriter(graph, scales);
  return writer.write();
}

class NcnnWriter {
  private readonly graph: LayerGraph;
  private readonly scales: Scales | undefined;
  private readonly lines: string[] = [];
  private readonly data: Uint8Array[] = [];
  private blobs = 0;
  private readonly names = new UniqueNames([]);
  private readonly blobOf = new Map<string, string>();
  /** How many layers read a tensor, and the copies of it that none has read yet. */
  private readonly readers = new Map<string, number>();
  private readonly unread = new Map<string, string[]>();

  constructor(graph: LayerGraph, scales: Scales | undefined) {
    this.graph = graph;
    this.scales = scales;
    const read = [...graph.layers.flatMap(inputsOf), ...(graph.outputs ?? [graph.output]).map(({ name }) => name)];
    for (const name of read) this.readers.set(name, (this.readers.get(name) ?? 0) + 1);
  }

  write(): NcnnModel {
    const { input, layers, output, outputs } = this.graph;
    const name = this.blob(input.name);
    this.layer('Input', name, [], [name], { 0: input.width, 1: input.height, 2: input.channels });
    this.copies(input.name);
    for (const layer of layers) {
      this.writeLayer(layer);
      this.copies(layer.output);
    }
    const shapes = tensorShapes(this.graph);
    const ends = (outputs ?? [{ ...output, dims: [output.dim] }]).map(({ name: end, dims }) => {
      const [, height, width] = shapes.get(end)!;
      // A vector, which the last layer may give as a map.
      if (dims.length > 1 || (height === 1 && width === 1 && this.isVector(end))) return this.read(end);
      const flat = this.names.take(`${this.blob(end)}.flat`);
      this.layer('Flatten', flat, [this.read(end)], [flat], {});
      return flat;
    });
    const param = [MAGIC, `${this.lines.length} ${this.blobs}`, ...this.lines, ''].join('\n');
    return { param, bin: Buffer.concat(this.data), input: name, outputs: ends };
  }

  private isVector(tensor: string): boolean {
    return this.graph.layers.some(({ kind, output }) => kind === 'fc' && output === tensor);
  }

  private writeLayer(layer: Layer): void {
    switch (layer.kind) {
      case 'conv':
      case 'fc':
        return this.weighted(layer);
      case 'pointwise': {
        const { positive, negative, offset } = layer;
        const size = positive.length;
        if (positive.every((value) => value === 1) && offset.every((value) => value === 0)) {
          this.layerOf(layer, 'PReLU', { 0: size });
          this.floats(negative);
        } else if (positive.every((value, channel) => value === negative[channel])) {
          this.layerOf(layer, 'Scale', { 0: size, 1: 1 });
          this.floats(positive);
          this.floats(offset);
        } else throw unsupported(layer.name, 'another function of single numbers than PRelu and batch norm');
        return;
      }
      case 'add':
        return this.layerOf(layer, 'BinaryOp', { 0: ADD });
      case 'pool':
        return this.layerOf(layer, 'Pooling', { 0: AVERAGE, 4: 1 });
      case 'node':
        throw unsupported(layer.name, `operator ${layer.steps.map(({ op }) => op).join(', ')}`);
    }
  }

  private weighted(layer: Weighted): void {
    const { weight, bias } = layer;
    const isGrouped = layer.kind === 'conv' && layer.group > 1 && layer.group < bias.length;
    const integers = this.scales && !isGrouped ? this.scales.weights[layer.name] : undefined;
    const flag = integers ? { 8: 1 } : {};
    if (layer.kind === 'fc') {
      this.layerOf(layer, 'InnerProduct', { 0: bias.length, 1: 1, 2: weight.data.length, ...flag });
    } else {
      const [, , kernelHeight, kernelWidth] = weight.dims as [number, number, number, number];
      const [top, left, bottom, right] = layer.pads;
      this.layerOf(layer, layer.group === 1 ? 'Convolution' : 'ConvolutionDepthWise', {
        ...{ 0: bias.length, 1: kernelWidth, 11: kernelHeight, 2: layer.dilations[1], 12: layer.dilations[0] },
        ...{ 3: layer.strides[1], 13: layer.strides[0], 4: left, 15: right, 14: top, 16: bottom },
        ...{ 5: 1, 6: weight.data.length },
        ...(layer.group === 1 ? {} : { 7: layer.group }),
        ...flag,
      });
    }
    this.type(integers ? INT8 : FLOAT32);
    if (integers) {
      const padded = new Int8Array(Math.ceil(integers.values.length / 4) * 4);
      padded.set(integers.values);
      this.data.push(new Uint8Array(padded.buffer));
    } else this.floats(weight.data);
    this.floats(this.realBias(layer));
    // ncnn's scales are integers per real value, ours real values per integer.
    if (!integers) return;
    this.floats(integers.scales.map((scale) => 1 / scale));
    this.floats(Float32Array.of(1 / this.scales!.tensors[layer.input]!.scale));
  }

  /** The bias after the search, which corrects it, in real values. */
  private realBias(layer: Weighted): Float32Array {
    const integers = this.scales?.biases[layer.name];
    if (!integers) return layer.bias;
    const input = this.scales!.tensors[layer.input]!.scale;
    const { scales } = this.scales!.weights[layer.name]!;
    return Float32Array.from(integers, (value, output) => value * Math.fround(input * scales[output]!));
  }

  private layerOf(layer: Layer, type: string, parameters: Record<number, number>): void {
    const inputs = inputsOf(layer).map((tensor) => this.read(tensor));
    const output = this.blob(layer.output);
    this.layer(type, output, inputs, [output], parameters);
  }

  private layer(type: string, name: string, inputs: string[], outputs: string[], parameters: Record<number, number>) {
    this.blobs += outputs.length;
    const pairs = Object.entries(parameters).map(([key, value]) => `${key}=${value}`);
    this.lines.push([type, name, inputs.length, outputs.length, ...inputs, ...outputs, ...pairs].join(' '));
  }

  /** A blob has one reader in ncnn, so others read copies. */
  private copies(tensor: string): void {
    const count = this.readers.get(tensor) ?? 0;
    if (count < 2) return;
    const blob = this.blob(tensor);
    const outputs = Array.from({ length: count }, (_, i) => this.names.take(`${blob}_copy${i}`));
    this.layer('Split', this.names.take(`${blob}_split`), [blob], outputs, {});
    this.unread.set(tensor, [...outputs]);
  }

  private read(tensor: string): string {
    return this.unread.get(tensor)?.shift() ?? this.blob(tensor);
  }

  /** ncnn separates names by spaces. */
  private blob(tensor: string): string {
    const known = this.blobOf.get(tensor);
    if (known !== undefined) return known;
    const name = this.names.take(tensor.replaceAll(/\s/g, '_') || 'blob');
    this.blobOf.set(tensor, name);
    return name;
  }

  private type(tag: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(tag);
    this.data.push(bytes);
  }

  private floats(values: Float32Array): void {
    this.data.push(new Uint8Array(values.map((value) => (Math.abs(value) < TINY ? 0 : value)).buffer));
  }
}

function unsupported(layer: string, found: string): FacetrainError {
  return new FacetrainError({
    code: 'UnsupportedOperator',
    subject: `layer "${layer}"`,
    found: `${found} has no counterpart in the files for ncnn`,
    allowed: 'convolutions, fully connected layers, batch norms, PRelu and Relu, additions and global average pools',
  });
}
