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
import { FacetrainError } from '@facetrain/api';
import type { Layer, LayerGraph, NodeLayer, NodeStep, Scales, Tensor } from '@facetrain/native';
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
/** Pooling's parameter. */
const [MAXIMUM, AVERAGE] = [0, 1];
/** BinaryOp's operation. */
const BINARY: Record<string, number> = { Add: 0, Sub: 1, Mul: 2, Div: 3, Max: 4, Min: 5, Sum: 0 };
/** What it becomes when its operands change places. */
const REVERSED: Record<string, number> = { Add: 0, Sub: 7, Mul: 2, Div: 8, Max: 4, Min: 5, Sum: 0 };
/** Layers of functions of single numbers, with their parameters by ONNX's attributes and their defaults. */
const FUNCTIONS: Record<
  string,
  { type: string; parameters?: (of: (name: string, absent: number) => number) => object }
> = {
  Abs: { type: 'UnaryOp', parameters: () => ({ 0: 0 }) },
  Elu: { type: 'ELU', parameters: (of) => ({ 0: real(of('alpha', 1)) }) },
  Erf: { type: 'Erf' },
  Exp: { type: 'UnaryOp', parameters: () => ({ 0: 7 }) },
  HardSigmoid: {
    type: 'HardSigmoid',
    parameters: (of) => ({ 0: real(of('alpha', 0.2)), 1: real(of('beta', 0.5)) }),
  },
  HardSwish: { type: 'HardSwish', parameters: () => ({ 0: real(1 / 6), 1: real(0.5) }) },
  LeakyRelu: { type: 'ReLU', parameters: (of) => ({ 0: real(of('alpha', 0.01)) }) },
  Log: { type: 'UnaryOp', parameters: () => ({ 0: 8 }) },
  Neg: { type: 'UnaryOp', parameters: () => ({ 0: 1 }) },
  Reciprocal: { type: 'UnaryOp', parameters: () => ({ 0: 15 }) },
  Relu: { type: 'ReLU' },
  Sigmoid: { type: 'Sigmoid' },
  Softplus: { type: 'Softplus' },
  Sqrt: { type: 'UnaryOp', parameters: () => ({ 0: 5 }) },
  Tanh: { type: 'TanH' },
};
/** Permute's order by that of ONNX's axes, of which the first is the batch. */
const ORDERS: Record<string, number> = {
  '0,1,2,3': 0,
  '0,1,3,2': 1,
  '0,2,1,3': 2,
  '0,2,3,1': 3,
  '0,3,1,2': 4,
  '0,3,2,1': 5,
};
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
      if (dims.length > 1 || (height === 1 && width === 1 && this.flat.has(end))) return this.read(end);
      const flat = this.names.take(`${this.blob(end)}.flat`);
      this.layer('Flatten', flat, [this.read(end)], [flat], {});
      return flat;
    });
    const param = [MAGIC, `${this.lines.length} ${this.blobs}`, ...this.lines, ''].join('\n');
    return { param, bin: Buffer.concat(this.data), input: name, outputs: ends };
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
        this.layerOf(layer, 'BinaryOp', { 0: BINARY.Add! });
        break;
      case 'pool':
        this.layerOf(layer, 'Pooling', { 0: AVERAGE, 4: 1 });
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
      return this.floats(negative);
    } else {
      // PReLU, then Scale: of a factor of 0 or below, positive numbers would not stay on their side.
      if (!positive.every((value) => value > 0))
        throw unsupported(layer.name, 'a function of single numbers that is no PRelu and no batch norm');
      const between = this.names.take(`${this.blob(layer.output)}_prelu`);
      this.layer('PReLU', between, [this.read(layer.input)], [between], { 0: size });
      this.floats(negative.map((value, channel) => value / positive[channel]!));
      const output = this.blob(layer.output);
      this.layer('Scale', output, [between], [output], { 0: size, 1: 1 });
    }
    this.floats(positive);
    this.floats(offset);
  }

  /** Layers of ncnn compute in FP32 what is between convolutions. */
  private node(layer: NodeLayer): void {
    const { steps, inputs, inputDims, outputDims, output } = layer;
    /** Blobs of the steps, each with one reader but for the copies. */
    const results: { blobs: string[]; isFlat: boolean; dims: number[] }[] = [];
    for (const [index, step] of steps.entries()) {
      const isLast = index === steps.length - 1;
      const readers = isLast
        ? 1
        : steps.flatMap(({ operands }) => operands).filter((operand) => 'step' in operand && operand.step === index)
            .length;
      const name = isLast ? this.blob(output) : this.names.take(`${this.blob(output)}_${index}`);
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
      const isFlat = this.step(layer, step, name, operands, isLast ? outputDims : undefined);
      const dims = isLast ? outputDims : (operands.find((operand) => 'dims' in operand)?.dims ?? outputDims);
      results.push({ blobs: readers > 1 ? this.split(name, readers) : [name], isFlat, dims });
      if (isLast && isFlat) this.flat.add(output);
    }
  }

  /** @returns whether the result has one dimension @throws FacetrainError UnsupportedOperator */
  private step(
    { name: subject }: NodeLayer,
    { op, attributes }: NodeStep,
    name: string,
    operands: NcnnOperand[],
    outputDims: number[] | undefined,
  ): boolean {
    const refuse = (what = `operator ${op}`) => unsupported(subject, what);
    const number = (attribute: string, absent: number) => Number(attributes[attribute] ?? absent);
    const list = (attribute: string, absent: number[]) =>
      ((attributes[attribute] as (number | bigint)[] | undefined) ?? absent).map(Number);
    const [first, second] = operands;
    if (!first?.blob) {
      // A constant is the first operand of an arithmetic operator.
      const scalar = first?.constant && scalarOf(first.constant);
      if (scalar === undefined || !second?.blob || REVERSED[op] === undefined || operands.length > 2) throw refuse();
      this.layer('BinaryOp', name, [second.blob()], [name], { 0: REVERSED[op], 1: 1, 2: real(scalar) });
      return second.isFlat;
    }
    const { isFlat, dims } = first;
    const write = (type: string, parameters: object, inputs = [first.blob!()]) =>
      this.layer(type, name, inputs, [name], parameters as Record<number, number | string>);

    if (FUNCTIONS[op]) {
      const { type, parameters } = FUNCTIONS[op];
      write(type, parameters?.(number) ?? {});
      return isFlat;
    }
    switch (op) {
      case 'Clip': {
        const bound = (operand: NcnnOperand | undefined, attribute: string, absent: number) =>
          operand?.constant ? scalarOf(operand.constant) : operand?.blob ? undefined : number(attribute, absent);
        const [low, high] = [bound(second, 'min', -LARGEST), bound(operands[2], 'max', LARGEST)];
        if (low === undefined || high === undefined) throw refuse();
        write('Clip', { 0: real(low), 1: real(high) });
        return isFlat;
      }
      case 'Add':
      case 'Sub':
      case 'Mul':
      case 'Div':
      case 'Max':
      case 'Min':
      case 'Sum': {
        if (operands.length !== 2) throw refuse(`${op} of ${operands.length} operands`);
        if (second?.constant) {
          const scalar = scalarOf(second.constant);
          if (scalar === undefined) throw refuse(`${op} with a constant of several numbers`);
          write('BinaryOp', { 0: BINARY[op], 1: 1, 2: real(scalar) });
          return isFlat;
        }
        // A vector is repeated over the pixels of a map, but not over its channels.
        const channels = [first, second!].map((operand) => ('dims' in operand ? operand.dims?.[1] : undefined));
        if (channels[0] !== channels[1]) throw refuse(`${op} of ${channels[0]} and ${channels[1]} channels`);
        const isAllFlat = isFlat && second!.isFlat!;
        // Of a vector beside a map, ncnn guesses by the sizes which axis it is.
        const blobs = [first, second!].map((operand) => {
          const blob = operand.blob!();
          if (isAllFlat || !operand.isFlat) return blob;
          const column = this.names.take(`${name}_column`);
          this.layer('Reshape', column, [blob], [column], { 0: 1, 1: 1, 2: channels[0]! });
          return column;
        });
        write('BinaryOp', { 0: BINARY[op] }, blobs);
        return isAllFlat;
      }
      case 'MaxPool':
      case 'AveragePool': {
        const [height, width] = list('kernel_shape', []) as [number, number];
        const [top = 0, left = 0, bottom = 0, right = 0] = list('pads', []);
        if (list('dilations', [1, 1]).some((value) => value !== 1)) throw refuse(`${op} with dilations`);
        if (isFlat) throw refuse(`${op} of a vector`);
        const isCeil = number('ceil_mode', 0) === 1;
        const counted = number('count_include_pad', 0);
        const hasPads = top + left + bottom + right > 0;
        // At the end, ncnn leaves out of the mean what ceil_mode adds, and counts of pads all or none.
        if (op === 'AveragePool' && isCeil && hasPads) throw refuse('AveragePool with pads and ceil_mode');
        const [vertical, horizontal] = list('strides', [1, 1]) as [number, number];
        // With ceil_mode, ncnn keeps a last window that lies in the pads alone, which ONNX leaves out.
        const windows = [dims[2]! + top + bottom - height, dims[3]! + left + right - width].map(
          (room, axis) => Math[isCeil ? 'ceil' : 'floor'](room / [vertical, horizontal][axis]!) + 1,
        );
        if (outputDims && windows.some((count, axis) => count !== outputDims[2 + axis]))
          throw refuse(`${op} with ceil_mode and a last window in the pads`);
        write('Pooling', {
          ...{ 0: op === 'MaxPool' ? MAXIMUM : AVERAGE, 1: width, 11: height, 2: horizontal, 12: vertical },
          ...{ 3: left, 13: top, 14: right, 15: bottom, 5: isCeil ? 0 : 1, 6: counted },
        });
        return false;
      }
      case 'GlobalMaxPool':
        write('Pooling', { 0: MAXIMUM, 4: 1 });
        return true;
      case 'Concat': {
        const all = operands.map((operand) => operand.isFlat);
        if (number('axis', 1) !== 1 || all.some((flat) => flat === undefined)) throw refuse('Concat along other axes');
        if (new Set(all).size > 1) throw refuse('Concat of vectors and maps');
        write(
          'Concat',
          { 0: 0 },
          operands.map((operand) => operand.blob!()),
        );
        return isFlat;
      }
      case 'Gather': {
        const indices = second?.constant && Array.from(second.constant.data, Number);
        const channels = dims[1]!;
        const found = number('axis', 0) === 1 && indices && !isFlat && channelChoice(indices, channels);
        if (!found) throw refuse('a choice of channels that is no range and no shuffle');
        const { group, from } = found;
        const isWhole = indices.length === channels;
        const shuffled = isWhole ? name : this.names.take(`${name}_shuffle`);
        if (group > 1 || isWhole) this.layer('ShuffleChannel', shuffled, [first.blob()], [shuffled], { 0: group });
        if (!isWhole)
          write('Crop', { 2: from, 3: -233, 4: -233, 5: indices.length }, [group > 1 ? shuffled : first.blob()]);
        return false;
      }
      case 'Resize': {
        const [, , height, width] = outputDims ?? [];
        const [sizes, [fromHeight, fromWidth]] = [[height!, width!], dims.slice(2) as [number, number]];
        const isWhole = sizes[0]! % fromHeight === 0 && sizes[1]! % fromWidth === 0;
        const place = attributes.coordinate_transformation_mode ?? 'half_pixel';
        const isNearest = (attributes.mode ?? 'nearest') === 'nearest';
        const rounding = String(attributes.nearest_mode ?? 'round_prefer_floor');
        // ncnn's nearest is the floor of the place, from the corner: of a pixel's middle, its rounded place.
        const isTheirs = isNearest
          ? isWhole &&
            (place === 'asymmetric'
              ? rounding === 'floor'
              : ['half_pixel', 'pytorch_half_pixel'].includes(String(place)) && rounding.startsWith('round_prefer'))
          : attributes.mode === 'linear' && (place === 'half_pixel' || place === 'align_corners');
        if (isFlat || !isTheirs)
          throw refuse(
            `Resize of mode ${attributes.mode ?? 'nearest'}, ${place}${isNearest ? `, rounded by ${rounding}` : ''}`,
          );
        // ONNX finds places by the scales that are given, ncnn by the sizes.
        const given = operands[3]?.constant?.data.length ? [] : Array.from(operands[2]?.constant?.data ?? [], Number);
        const difference = (scale: number, axis: number) => Math.abs(scale * dims[2 + axis]! - sizes[axis]!);
        const most = isNearest ? 0 : LARGEST_DIFFERENCE;
        if (place !== 'align_corners' && given.slice(2).some((scale, axis) => difference(scale, axis) > most))
          throw refuse(`Resize by scales ${given.slice(2)}, which give no whole size,`);
        write('Interp', { 0: isNearest ? 1 : 2, 3: height, 4: width, 6: place === 'align_corners' ? 1 : 0 });
        return false;
      }
      case 'ConvTranspose': {
        const [weight, bias] = [second?.constant, operands[2]?.constant];
        const adds = list('output_padding', [0, 0]);
        if (!weight || (operands[2] && !bias) || number('group', 1) !== 1 || attributes.auto_pad) throw refuse();
        if (isFlat) throw refuse(`${op} of a vector`);
        const [inputs, outputs, height, width] = weight.dims as [number, number, number, number];
        const [[vertical, horizontal], [down, across]] = [list('strides', [1, 1]), list('dilations', [1, 1])];
        const [top = 0, left = 0, bottom = 0, right = 0] = list('pads', []);
        write('Deconvolution', {
          ...{ 0: outputs, 1: width, 11: height, 2: across, 12: down, 3: horizontal, 13: vertical },
          ...{ 4: left, 15: right, 14: top, 16: bottom, 18: adds[1], 19: adds[0], 5: 1, 6: weight.data.length },
        });
        // ONNX has [inputs, outputs, height, width], ncnn [outputs, inputs, height, width].
        const area = height * width;
        this.type(FLOAT32);
        this.floats(
          Float32Array.from({ length: weight.data.length }, (_, at) => {
            const [pixel, filter] = [at % area, Math.floor(at / area)];
            return Number(weight.data[((filter % inputs) * outputs + Math.floor(filter / inputs)) * area + pixel]);
          }),
        );
        this.floats(bias ? Float32Array.from(bias.data, Number) : new Float32Array(outputs));
        return false;
      }
      case 'Softmax': {
        const axis = (number('axis', -1) + dims.length) % dims.length;
        if (axis < 1 || (isFlat && axis > 1)) throw refuse();
        if (!isFlat && dims.length === 2) throw refuse('Softmax of a map that is read as a vector');
        write('Softmax', { 0: axis - 1, 1: 1 });
        return isFlat;
      }
      case 'Transpose': {
        const order = ORDERS[list('perm', []).join()];
        if (order === undefined || isFlat) throw refuse();
        write('Permute', { 0: order });
        return false;
      }
      default:
        throw refuse();
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

  private layer(
    type: string,
    name: string,
    inputs: string[],
    outputs: string[],
    parameters: Record<number, number | string>,
  ) {
    this.blobs += outputs.length;
    const pairs = Object.entries(parameters).map(([key, value]) => `${key}=${value}`);
    this.lines.push([type, name, inputs.length, outputs.length, ...inputs, ...outputs, ...pairs].join(' '));
  }

  /** A blob has one reader in ncnn, so others read copies. */
  private copies(tensor: string): void {
    const count = this.readers.get(tensor) ?? 0;
    if (count < 2) return;
    this.unread.set(tensor, this.split(this.blob(tensor), count));
  }

  private split(blob: string, count: number): string[] {
    const outputs = Array.from({ length: count }, (_, i) => this.names.take(`${blob}_copy${i}`));
    this.layer('Split', this.names.take(`${blob}_split`), [blob], outputs, {});
    return outputs;
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

/** The tensors that a layer reads, each as often as its steps do. */
const readsOf = (layer: Layer): string[] =>
  layer.kind === 'node'
    ? layer.steps.flatMap(({ operands }) =>
        operands.flatMap((operand) => ('input' in operand ? [layer.inputs[operand.input]!] : [])),
      )
    : inputsOf(layer);

/** What a step reads: a blob, a constant, or nothing. */
type NcnnOperand =
  | { blob: () => string; isFlat: boolean; dims: number[]; constant?: undefined }
  | { constant: Tensor; blob?: undefined; isFlat?: undefined; dims?: undefined }
  | { blob?: undefined; constant?: undefined; isFlat?: undefined; dims?: undefined };

/** ncnn reads a parameter with a point or an exponent as a real number, and any other as an integer. */
function real(value: number): string {
  const text = Math.fround(value).toExponential(8);
  return text.replace('e+', 'e');
}

const LARGEST = 3.4e38;
/** In pixels, of a size and a scale that is rounded, such as 4/3: it moves places by less. */
const LARGEST_DIFFERENCE = 1e-3;

const scalarOf = ({ data }: Tensor): number | undefined => (data.length === 1 ? Number(data[0]) : undefined);

/**
 * A choice of channels as ncnn has it: `indices` are those from `from` on after a shuffle of `group` groups, as
 * ShuffleNet does; 1: without. Undefined for any other.
 */
function channelChoice(indices: number[], channels: number): { group: number; from: number } | undefined {
  for (let group = 1; group < channels; ++group) {
    if (channels % group !== 0) continue;
    const size = channels / group;
    const shuffled = (channel: number) => (channel % group) * size + Math.floor(channel / group);
    const from = (indices[0]! % size) * group + Math.floor(indices[0]! / size);
    if (indices.every((index, i) => from + i < channels && index === shuffled(from + i))) return { group, from };
  }
  return undefined;
}

function unsupported(layer: string, found: string): FacetrainError {
  return new FacetrainError({
    code: 'UnsupportedOperator',
    subject: `layer "${layer}"`,
    found: `${found} has no counterpart in the files for ncnn`,
    allowed:
      'convolutions, fully connected layers, pools, batch norms, functions of single numbers, arithmetic of two ' +
      'tensors, Concat, ranges and shuffles of channels, Resize, ConvTranspose, Softmax and Transpose',
  });
}
