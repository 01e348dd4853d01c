/**
 * The ONNX operators that ncnn computes in FP32 between convolutions, each as a layer of ncnn: a table of functions.
 * Numbers of parameters and operations are those of ncnn's documentation ("operators").
 */
import { counted } from '@facetrain/api';
import type { NodeStep, Tensor } from '@facetrain/native';
import { type NcnnFile, type NcnnParameters, real, unsupported } from './ncnn-file.ts';

/** What a step reads: a blob, a constant, or nothing. `isFlat`: the blob has one dimension in ncnn. */
export type NcnnOperand =
  | { blob: () => string; isFlat: boolean; dims: number[]; constant?: undefined }
  | { constant: Tensor; blob?: undefined; isFlat?: undefined; dims?: undefined }
  | { blob?: undefined; constant?: undefined; isFlat?: undefined; dims?: undefined };
type Blob = Extract<NcnnOperand, { isFlat: boolean }>;

export interface NcnnStep extends Pick<NodeStep, 'op' | 'attributes'> {
  /** The layer that it is of, for messages. */
  subject: string;
  /** Of the blob that it writes. */
  name: string;
  operands: NcnnOperand[];
  /** Absent: not known. */
  outputDims?: number[];
}

/** @returns whether the result has one dimension in ncnn */
type StepWriter = (file: NcnnFile, step: NcnnStep, first: Blob) => boolean;

/** Pooling's parameter. */
const [MAXIMUM, AVERAGE] = [0, 1];
export const GLOBAL_AVERAGE = { 0: AVERAGE, 4: 1 };
/** BinaryOp's operation. */
const BINARY: Record<string, number> = { Add: 0, Sub: 1, Mul: 2, Div: 3, Max: 4, Min: 5, Sum: 0 };
export const ADD = { 0: BINARY.Add! };
/** What it becomes when its operands change places. */
const REVERSED: Record<string, number> = { Add: 0, Sub: 7, Mul: 2, Div: 8, Max: 4, Min: 5, Sum: 0 };
/** Permute's order by that of ONNX's axes, of which the first is the batch. */
const ORDERS: Record<string, number> = {
  '0,1,2,3': 0,
  '0,1,3,2': 1,
  '0,2,1,3': 2,
  '0,2,3,1': 3,
  '0,3,1,2': 4,
  '0,3,2,1': 5,
};
const LARGEST = 3.4e38;
/** In pixels, of a size and a scale that is rounded, such as 4/3: it moves places by less. */
const LARGEST_DIFFERENCE = 1e-3;

/** A function of single numbers. */
function map(type: string, parameters: (step: NcnnStep) => NcnnParameters = () => ({})): StepWriter {
  return (file, step, first) => {
    write(file, step, type, parameters(step), [first]);
    return first.isFlat;
  };
}

const WRITERS: Record<string, StepWriter> = {
  Abs: map('UnaryOp', () => ({ 0: 0 })),
  Add: arithmetic,
  AveragePool: pool,
  Clip: clip,
  Concat: concat,
  ConvTranspose: convTranspose,
  Div: arithmetic,
  Elu: map('ELU', (step) => ({ 0: real(numberOf(step, 'alpha', 1)) })),
  Erf: map('Erf'),
  Exp: map('UnaryOp', () => ({ 0: 7 })),
  Gather: gather,
  GlobalMaxPool: globalMaxPool,
  HardSigmoid: map('HardSigmoid', (step) => ({
    0: real(numberOf(step, 'alpha', 0.2)),
    1: real(numberOf(step, 'beta', 0.5)),
  })),
  HardSwish: map('HardSwish', () => ({ 0: real(1 / 6), 1: real(0.5) })),
  LeakyRelu: map('ReLU', (step) => ({ 0: real(numberOf(step, 'alpha', 0.01)) })),
  Log: map('UnaryOp', () => ({ 0: 8 })),
  Max: arithmetic,
  MaxPool: pool,
  Min: arithmetic,
  Mul: arithmetic,
  Neg: map('UnaryOp', () => ({ 0: 1 })),
  Reciprocal: map('UnaryOp', () => ({ 0: 15 })),
  Relu: map('ReLU'),
  Resize: resize,
  Sigmoid: map('Sigmoid'),
  Softmax: softmax,
  Softplus: map('Softplus'),
  Sqrt: map('UnaryOp', () => ({ 0: 5 })),
  Sub: arithmetic,
  Sum: arithmetic,
  Tanh: map('TanH'),
  Transpose: transpose,
};

/** @returns whether the result has one dimension in ncnn @throws FacetrainError UnsupportedOperator */
export function writeStep(file: NcnnFile, step: NcnnStep): boolean {
  const [first] = step.operands;
  if (!first?.blob) return arithmeticOfConstant(file, step);
  const writer = WRITERS[step.op];
  if (writer === undefined) throw refusal(step);
  return writer(file, step, first);
}

function write(file: NcnnFile, { name }: NcnnStep, type: string, parameters: NcnnParameters, operands: Blob[]): void {
  const inputs = operands.map(({ blob }) => blob());
  file.layer(type, name, inputs, [name], parameters);
}

const refusal = ({ subject, op }: NcnnStep, what = `operator ${op}`) => unsupported(subject, what);

const numberOf = ({ attributes }: NcnnStep, attribute: string, absent: number) =>
  Number(attributes[attribute] ?? absent);

const listOf = ({ attributes }: NcnnStep, attribute: string, absent: number[]) =>
  ((attributes[attribute] as (number | bigint)[] | undefined) ?? absent).map(Number);

const scalarOf = ({ data }: Tensor): number | undefined => (data.length === 1 ? Number(data[0]) : undefined);

/** Where the constant is the first operand. */
function arithmeticOfConstant(file: NcnnFile, step: NcnnStep): boolean {
  const [first, second] = step.operands;
  const scalar = first?.constant && scalarOf(first.constant);
  const operation = REVERSED[step.op];
  if (scalar === undefined || !second?.blob || operation === undefined || step.operands.length > 2) throw refusal(step);
  write(file, step, 'BinaryOp', { 0: operation, 1: 1, 2: real(scalar) }, [second]);
  return second.isFlat;
}

function arithmetic(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const { op, name, operands } = step;
  const [, second] = operands;
  if (operands.length !== 2) throw refusal(step, `${op} of ${counted(operands.length, 'operand')}`);
  if (second?.constant) {
    const scalar = scalarOf(second.constant);
    if (scalar === undefined) throw refusal(step, `${op} with a constant of several numbers`);
    write(file, step, 'BinaryOp', { 0: BINARY[op]!, 1: 1, 2: real(scalar) }, [first]);
    return first.isFlat;
  }
  if (!second?.blob) throw refusal(step);
  // A vector is repeated over the pixels of a map, but not over its channels.
  const channels = first.dims[1]!;
  if (channels !== second.dims[1]) throw refusal(step, `${op} of ${channels} and ${second.dims[1]} channels`);
  const isFlat = first.isFlat && second.isFlat;
  // Of a vector beside a map, ncnn guesses by the sizes which axis it is.
  const blobs = [first, second].map((operand) => {
    const blob = operand.blob();
    if (isFlat || !operand.isFlat) return blob;
    const column = file.name(`${name}_column`);
    file.layer('Reshape', column, [blob], [column], { 0: 1, 1: 1, 2: channels });
    return column;
  });
  file.layer('BinaryOp', name, blobs, [name], { 0: BINARY[op]! });
  return isFlat;
}

function clip(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const [, min, max] = step.operands;
  const bound = (operand: NcnnOperand | undefined, attribute: string, absent: number) =>
    operand?.constant ? scalarOf(operand.constant) : operand?.blob ? undefined : numberOf(step, attribute, absent);
  const [low, high] = [bound(min, 'min', -LARGEST), bound(max, 'max', LARGEST)];
  if (low === undefined || high === undefined) throw refusal(step);
  write(file, step, 'Clip', { 0: real(low), 1: real(high) }, [first]);
  return first.isFlat;
}

function pool(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const { op, outputDims } = step;
  const [height, width] = listOf(step, 'kernel_shape', []) as [number, number];
  const [top = 0, left = 0, bottom = 0, right = 0] = listOf(step, 'pads', []);
  if (listOf(step, 'dilations', [1, 1]).some((value) => value !== 1)) throw refusal(step, `${op} with dilations`);
  if (first.isFlat) throw refusal(step, `${op} of a vector`);
  const isCeil = numberOf(step, 'ceil_mode', 0) === 1;
  const counted = numberOf(step, 'count_include_pad', 0);
  const hasPads = top + left + bottom + right > 0;
  // At the end, ncnn leaves out of the mean what ceil_mode adds, and counts of pads all or none.
  if (op === 'AveragePool' && isCeil && hasPads) throw refusal(step, 'AveragePool with pads and ceil_mode');
  const [vertical, horizontal] = listOf(step, 'strides', [1, 1]) as [number, number];
  // With ceil_mode, ncnn keeps a last window that lies in the pads alone, which ONNX leaves out.
  const windows = [first.dims[2]! + top + bottom - height, first.dims[3]! + left + right - width].map(
    (room, axis) => Math[isCeil ? 'ceil' : 'floor'](room / [vertical, horizontal][axis]!) + 1,
  );
  if (outputDims && windows.some((count, axis) => count !== outputDims[2 + axis]))
    throw refusal(step, `${op} with ceil_mode and a last window in the pads`);
  const parameters = {
    ...{ 0: op === 'MaxPool' ? MAXIMUM : AVERAGE, 1: width, 11: height, 2: horizontal, 12: vertical },
    ...{ 3: left, 13: top, 14: right, 15: bottom, 5: isCeil ? 0 : 1, 6: counted },
  };
  write(file, step, 'Pooling', parameters, [first]);
  return false;
}

function globalMaxPool(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  write(file, step, 'Pooling', { 0: MAXIMUM, 4: 1 }, [first]);
  return true;
}

function concat(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const blobs = step.operands.filter((operand) => operand.blob !== undefined);
  if (numberOf(step, 'axis', 1) !== 1 || blobs.length < step.operands.length)
    throw refusal(step, 'Concat along other axes');
  if (blobs.some(({ isFlat }) => isFlat !== first.isFlat)) throw refusal(step, 'Concat of vectors and maps');
  write(file, step, 'Concat', { 0: 0 }, blobs);
  return first.isFlat;
}

function gather(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const { name, operands } = step;
  const indices = operands[1]?.constant && Array.from(operands[1].constant.data, Number);
  const channels = first.dims[1]!;
  const found = numberOf(step, 'axis', 0) === 1 && indices && !first.isFlat && channelChoice(indices, channels);
  if (!found) throw refusal(step, 'a choice of channels that is no range and no shuffle');
  const { group, from } = found;
  const isWhole = indices.length === channels;
  if (isWhole) {
    write(file, step, 'ShuffleChannel', { 0: group }, [first]);
    return false;
  }
  let blob = first.blob();
  if (group > 1) {
    const shuffled = file.name(`${name}_shuffle`);
    file.layer('ShuffleChannel', shuffled, [blob], [shuffled], { 0: group });
    blob = shuffled;
  }
  file.layer('Crop', name, [blob], [name], { 2: from, 3: -233, 4: -233, 5: indices.length });
  return false;
}

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

function resize(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const { attributes, operands, outputDims = [] } = step;
  const { dims, isFlat } = first;
  const [, , height, width] = outputDims;
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
    throw refusal(
      step,
      `Resize of mode ${attributes.mode ?? 'nearest'}, ${place}${isNearest ? `, rounded by ${rounding}` : ''}`,
    );
  // ONNX finds places by the scales that are given, ncnn by the sizes.
  const given = operands[3]?.constant?.data.length ? [] : Array.from(operands[2]?.constant?.data ?? [], Number);
  const difference = (scale: number, axis: number) => Math.abs(scale * dims[2 + axis]! - sizes[axis]!);
  const most = isNearest ? 0 : LARGEST_DIFFERENCE;
  if (place !== 'align_corners' && given.slice(2).some((scale, axis) => difference(scale, axis) > most))
    throw refusal(step, `Resize by scales ${given.slice(2)}, which give no whole size,`);
  const parameters = { 0: isNearest ? 1 : 2, 3: height!, 4: width!, 6: place === 'align_corners' ? 1 : 0 };
  write(file, step, 'Interp', parameters, [first]);
  return false;
}

function convTranspose(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const { op, attributes, operands } = step;
  const [weight, bias] = [operands[1]?.constant, operands[2]?.constant];
  const adds = listOf(step, 'output_padding', [0, 0]);
  if (!weight || (operands[2] && !bias) || numberOf(step, 'group', 1) !== 1 || attributes.auto_pad) throw refusal(step);
  if (first.isFlat) throw refusal(step, `${op} of a vector`);
  const [inputs, outputs, height, width] = weight.dims as [number, number, number, number];
  const [[vertical, horizontal], [down, across]] = [
    listOf(step, 'strides', [1, 1]) as [number, number],
    listOf(step, 'dilations', [1, 1]) as [number, number],
  ];
  const [top = 0, left = 0, bottom = 0, right = 0] = listOf(step, 'pads', []);
  const parameters = {
    ...{ 0: outputs, 1: width, 11: height, 2: across, 12: down, 3: horizontal, 13: vertical },
    ...{ 4: left, 15: right, 14: top, 16: bottom, 18: adds[1]!, 19: adds[0]!, 5: 1, 6: weight.data.length },
  };
  write(file, step, 'Deconvolution', parameters, [first]);
  // ONNX has [inputs, outputs, height, width], ncnn [outputs, inputs, height, width].
  const area = height * width;
  file.weights(
    Float32Array.from({ length: weight.data.length }, (_, at) => {
      const [pixel, filter] = [at % area, Math.floor(at / area)];
      return Number(weight.data[((filter % inputs) * outputs + Math.floor(filter / inputs)) * area + pixel]);
    }),
  );
  file.floats(bias ? Float32Array.from(bias.data, Number) : new Float32Array(outputs));
  return false;
}

function softmax(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const { dims, isFlat } = first;
  const axis = (numberOf(step, 'axis', -1) + dims.length) % dims.length;
  if (axis < 1 || (isFlat && axis > 1)) throw refusal(step);
  if (!isFlat && dims.length === 2) throw refusal(step, 'Softmax of a map that is read as a vector');
  write(file, step, 'Softmax', { 0: axis - 1, 1: 1 }, [first]);
  return isFlat;
}

function transpose(file: NcnnFile, step: NcnnStep, first: Blob): boolean {
  const order = ORDERS[listOf(step, 'perm', []).join()];
  if (order === undefined || first.isFlat) throw refusal(step);
  write(file, step, 'Permute', { 0: order }, [first]);
  return false;
}
