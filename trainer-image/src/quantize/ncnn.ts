/**
 * Writes a LayerGraph as ncnn (https://github.com/Tencent/ncnn) reads it, a text `.param` and a `.bin`: in FP32, or
 * with the weights of an INT7 model as int8 and its scales. The formats are those of ncnn's documentation ("param and
 * model file structure", "operation param weight table"). Pure.
 *
 * With scales, ncnn computes convolutions in int8 by the integers of the INT7 model. It differs from our runtime in
 * three ways: operands of convolutions end at ±127 and not at 7 bits; everything between convolutions is FP32; and a
 * convolution of several groups with more than one channel each is FP32, with the real values of its weights. ncnn
 * knows no zero points, and needs none: our integers less their zero point are within ±126.
 */
import type { Layer, LayerGraph, NodeLayer, Scales } from '@facetrain/native';
import { inputsOf, tensorShapes } from './layer-shapes.ts';
import { NcnnFile, type NcnnParameters, unsupported } from './ncnn-file.ts';
import { ADD, GLOBAL_AVERAGE, type NcnnOperand, writeStep } from './ncnn-steps.ts';

export interface NcnnModel {
  param: string;
  bin: Uint8Array;
  /** Names of the blobs: of the picture, [channels, height, width], and of the outputs. */
  input: string;
  outputs: string[];
}

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
  private readonly file = new NcnnFile();
  private readonly blobOf = new Map<string, string>();
  /** How many layers read a tensor, and the copies of it that none has read yet. */
  private readonly readers = new Map<string, number>();
  private readonly unread = new Map<string, string[]>();
  /** Tensors that are of one dimension in ncnn: of vectors and of maps of one pixel, some are and some are not. */
  private readonly flat = new Set<string>();

  constructor(graph: LayerGraph, scales: Scales | undefined) {
    this.graph = graph;
    this.scales = scales;
    const read = [...graph.layers.flatMap(readsOf), ...(graph.outputs ?? [graph.output]).map(({ name }) => name)];
    for (const name of read) this.readers.set(name, (this.readers.get(name) ?? 0) + 1);
  }

  write(): NcnnModel {
    const { input, layers, output, outputs } = this.graph;
    const name = this.blob(input.name);
    this.file.layer('Input', name, [], [name], { 0: input.width, 1: input.height, 2: input.channels });
    this.copies(input.name);
    for (const layer of layers) {
      this.writeLayer(layer);
      this.copies(layer.output);
    }
    const shapes = tensorShapes(this.graph);
    const ends = (outputs ?? [{ ...output, dims: [output.dim] }]).map(({ name: end, dims }) => {
      const [, height, width] = shapes.get(end)!;
      // A vector, which the last layer may give as a map.
      if (dims.length > 1 || (height === 1 && width === 1 && this.flat.has(end))) return this.read(end);
      const flat = this.file.name(`${this.blob(end)}.flat`);
      this.file.layer('Flatten', flat, [this.read(end)], [flat], {});
      return flat;
    });
    return { ...this.file.contents(), input: name, outputs: ends };
  }

  private writeLayer(layer: Layer): void {
    switch (layer.kind) {
      case 'conv':
      case 'fc':
        this.weighted(layer);
        break;
      case 'pointwise':
        this.pointwise(layer);
        break;
      case 'add':
        this.layerOf(layer, 'BinaryOp', ADD);
        break;
      case 'pool':
        this.layerOf(layer, 'Pooling', GLOBAL_AVERAGE);
        break;
      case 'node':
        this.node(layer);
        return;
    }
    const isFlat =
      layer.kind === 'add' ? layer.inputs.every((name) => this.flat.has(name)) : this.flat.has(layer.input);
    if (layer.kind === 'fc' || layer.kind === 'pool' || isFlat) this.flat.add(layer.output);
  }

  private pointwise(layer: Extract<Layer, { kind: 'pointwise' }>): void {
    const { positive, negative, offset } = layer;
    const size = positive.length;
    const isAffine = positive.every((value, channel) => value === negative[channel]);
    const isPlain = positive.every((value) => value === 1) && offset.every((value) => value === 0);
    if (isAffine) {
      this.layerOf(layer, 'Scale', { 0: size, 1: 1 });
    } else if (isPlain) {
      this.layerOf(layer, 'PReLU', { 0: size });
      return this.file.floats(negative);
    } else {
      // PReLU, then Scale: of a factor of 0 or below, positive numbers would not stay on their side.
      if (!positive.every((value) => value > 0))
        throw unsupported(layer.name, 'a function of single numbers that is no PRelu and no batch norm');
      const between = this.file.name(`${this.blob(layer.output)}_prelu`);
      this.file.layer('PReLU', between, [this.read(layer.input)], [between], { 0: size });
      this.file.floats(negative.map((value, channel) => value / positive[channel]!));
      const output = this.blob(layer.output);
      this.file.layer('Scale', output, [between], [output], { 0: size, 1: 1 });
    }
    this.file.floats(positive);
    this.file.floats(offset);
  }

  /** Layers of ncnn compute in FP32 what is between convolutions. */
  private node(layer: NodeLayer): void {
    const { steps, inputs, inputDims, outputDims, output, name: subject } = layer;
    /** Blobs of the steps, each with one reader but for the copies. */
    const results: { blobs: string[]; isFlat: boolean; dims: number[] }[] = [];
    for (const [index, step] of steps.entries()) {
      const isLast = index === steps.length - 1;
      const readers = isLast
        ? 1
        : steps.flatMap(({ operands }) => operands).filter((operand) => 'step' in operand && operand.step === index)
            .length;
      const name = isLast ? this.blob(output) : this.file.name(`${this.blob(output)}_${index}`);
      const operands = step.operands.map((operand): NcnnOperand => {
        if ('constant' in operand) return { constant: operand.constant };
        if ('step' in operand) {
          const { blobs, ...rest } = results[operand.step]!;
          return { blob: () => blobs.shift()!, ...rest };
        }
        if (!('input' in operand)) return {};
        const tensor = inputs[operand.input]!;
        return { blob: () => this.read(tensor), isFlat: this.flat.has(tensor), dims: inputDims[operand.input]! };
      });
      const ends = isLast ? { outputDims } : {};
      const isFlat = writeStep(this.file, { ...step, subject, name, operands, ...ends });
      const dims = isLast ? outputDims : (operands.find((operand) => 'dims' in operand)?.dims ?? outputDims);
      results.push({ blobs: readers > 1 ? this.file.split(name, readers) : [name], isFlat, dims });
      if (isLast && isFlat) this.flat.add(output);
    }
  }

  private weighted(layer: Weighted): void {
    const { weight, bias } = layer;
    const isGrouped = layer.kind === 'conv' && layer.group > 1 && layer.group < bias.length;
    const integers = this.scales && !isGrouped ? this.scales.weights[layer.name] : undefined;
    const flag = integers ? { 8: 1 } : {};
    // ncnn lets a convolution read a vector, but quantizes it wrongly in int8.
    const readsVector = layer.kind === 'conv' && this.flat.has(layer.input);
    if (readsVector && (layer.group !== 1 || weight.dims[2] !== 1 || weight.dims[3] !== 1))
      throw unsupported(layer.name, 'a convolution of one pixel with groups or a larger kernel');
    if (layer.kind === 'fc' || readsVector) {
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
    this.file.weights(integers ? integers.values : weight.data);
    this.file.floats(this.realBias(layer));
    // ncnn's scales are integers per real value, ours real values per integer.
    if (!integers) return;
    this.file.floats(integers.scales.map((scale) => 1 / scale));
    this.file.floats(Float32Array.of(1 / this.scales!.tensors[layer.input]!.scale));
  }

  /** The bias after the search, which corrects it, in real values. */
  private realBias(layer: Weighted): Float32Array {
    const integers = this.scales?.biases[layer.name];
    if (!integers) return layer.bias;
    const input = this.scales!.tensors[layer.input]!.scale;
    const { scales } = this.scales!.weights[layer.name]!;
    return Float32Array.from(integers, (value, output) => value * Math.fround(input * scales[output]!));
  }

  private layerOf(layer: Layer, type: string, parameters: NcnnParameters): void {
    const inputs = inputsOf(layer).map((tensor) => this.read(tensor));
    const output = this.blob(layer.output);
    this.file.layer(type, output, inputs, [output], parameters);
  }

  /** A blob has one reader in ncnn, so others read copies. */
  private copies(tensor: string): void {
    const count = this.readers.get(tensor) ?? 0;
    if (count < 2) return;
    this.unread.set(tensor, this.file.split(this.blob(tensor), count));
  }

  private read(tensor: string): string {
    return this.unread.get(tensor)?.shift() ?? this.blob(tensor);
  }

  private blob(tensor: string): string {
    const known = this.blobOf.get(tensor);
    if (known !== undefined) return known;
    const name = this.file.name(tensor);
    this.blobOf.set(tensor, name);
    return name;
  }
}

/** The tensors that a layer reads, each as often as its steps do. */
const readsOf = (layer: Layer): string[] =>
  layer.kind === 'node'
    ? layer.steps.flatMap(({ operands }) =>
        operands.flatMap((operand) => ('input' in operand ? [layer.inputs[operand.input]!] : [])),
      )
    : inputsOf(layer);
