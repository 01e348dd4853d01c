/**
 * For tests: random small convolutional networks, as a list of steps that fast-check can shorten. A step that does not
 * fit the value that it would read changes its numbers or is left out, so any part of a list is a network, too.
 */
import type { Graph, Tensor } from '@facetrain/native';
import fc from 'fast-check';
import { ShapeInference } from '../onnx/infer-shapes.ts';
import { GraphBuilder } from './graph-fixtures.ts';

/** The numbers of a step; each operator reads those that it has. */
export interface Step {
  op: keyof typeof OPERATORS;
  /** Which value it reads: 0 is the newest. */
  from: number;
  /** The second operand, likewise. */
  other: number;
  channels: number;
  kernel: [number, number];
  strides: [number, number];
  dilations: [number, number];
  pads: [number, number, number, number];
  /** A choice between forms of the operator. */
  form: number;
}

export interface Recipe {
  channels: 1 | 3;
  height: number;
  width: number;
  layout: 'NCHW' | 'NHWC';
  steps: Step[];
  /** Which values are outputs besides the last, counted from it. */
  outputs: number[];
}

/** A recipe of given steps, everything else as small as it can be. */
export function recipe(
  steps: (Pick<Step, 'op'> & Partial<Step>)[],
  others: Partial<Omit<Recipe, 'steps'>> = {},
): Recipe {
  const least = { from: 0, other: 0, channels: 1, form: 0 };
  const window = { kernel: [1, 1], strides: [1, 1], dilations: [1, 1], pads: [0, 0, 0, 0] } as const;
  return {
    ...{ channels: 3, height: 5, width: 5, layout: 'NCHW', outputs: [] },
    ...others,
    steps: steps.map((step) => ({ ...least, ...structuredClone(window), ...step }) as Step),
  };
}

const small = (max: number, min = 0) => fc.integer({ min, max });

/** @param operators those to draw from; absent: all */
export function recipes(operators = Object.keys(OPERATORS) as Step['op'][]): fc.Arbitrary<Recipe> {
  const step: fc.Arbitrary<Step> = fc.record({
    op: fc.oneof(
      { weight: 3, arbitrary: fc.constantFrom<Step['op'][]>('conv', 'activation') },
      { weight: 7, arbitrary: fc.constantFrom(...operators) },
    ),
    from: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 2, arbitrary: small(4) }),
    other: small(5),
    channels: small(12, 1),
    kernel: fc.tuple(small(4, 1), small(4, 1)),
    strides: fc.tuple(small(3, 1), small(3, 1)),
    dilations: fc.tuple(small(2, 1), small(2, 1)),
    pads: fc.tuple(small(2), small(2), small(2), small(2)),
    form: small(59),
  });
  return fc.record({
    channels: fc.constantFrom(3, 1),
    height: small(16, 5),
    width: small(16, 5),
    layout: fc.oneof(
      { weight: 4, arbitrary: fc.constant('NCHW') },
      { weight: 1, arbitrary: fc.constant('NHWC') },
    ) as fc.Arbitrary<Recipe['layout']>,
    steps: fc.array(step, { minLength: 1, maxLength: 14, size: 'max' }),
    outputs: fc.array(small(6, 1), { maxLength: 2 }),
  });
}

/** The most numbers of a value. */
const LARGEST = 6000;

interface Value {
  name: string;
  /** Without the batch: [C, H, W] of a map, [d] of a vector, any other of what only an output is. */
  shape: number[];
}

const integers = (...values: number[]): Tensor => ({ dims: [values.length], data: BigInt64Array.from(values, BigInt) });
const number = (value: number): Tensor => ({ dims: [], data: Float32Array.of(value) });
const floats = (...values: number[]): Tensor => ({ dims: [values.length], data: Float32Array.from(values) });

/** What a step adds. */
class Network {
  readonly b: GraphBuilder;
  readonly values: Value[] = [];
  private readonly inference: ShapeInference;
  private visited = 0;

  constructor({ channels, height, width }: Recipe) {
    this.b = new GraphBuilder({ channels, height, width });
    this.values.push({ name: 'data', shape: [channels, height, width] });
    this.inference = new ShapeInference(this.b.graph('data'), 1);
  }

  /** @param shape without the batch, where inference knows none: of what is no operator of a normalised graph */
  add(name: string, shape?: number[]): void {
    const { nodes, initializers } = this.b.graph('data');
    for (const node of nodes.slice(this.visited)) {
      for (const input of node.inputs)
        if (Object.hasOwn(initializers, input)) this.inference.define(input, initializers[input]!);
      this.inference.visit(node);
    }
    this.visited = nodes.length;
    if (shape) this.inference.shapes.set(name, [1, ...shape]);
    const found = this.inference.shapes.get(name)!.slice(1);
    const size = found.reduce((product, dim) => product * dim, 1);
    if (size > 0 && size <= LARGEST) this.values.push({ name, shape: found });
  }

  /** A value that fits; undefined when there is none. */
  pick(from: number, fits: (value: Value) => boolean): Value | undefined {
    const fitting = this.values.filter(fits).reverse();
    return fitting[from % Math.max(fitting.length, 1)];
  }
}

const isMap = ({ shape }: Value) => shape.length === 3;
const isVector = ({ shape }: Value) => shape.length === 1;
const isEither = (value: Value) => isMap(value) || isVector(value);
const same = (a: number[]) => (value: Value) => value.shape.join() === a.join();

/** Reads one value that fits and adds what `write` makes of it; nothing when it makes nothing. */
function reading(
  fits: (value: Value) => boolean,
  write: (network: Network, x: Value, step: Step) => string | Value | undefined,
): (network: Network, step: Step) => void {
  return (network, step) => {
    const x = network.pick(step.from, fits);
    const made = x && write(network, x, step);
    if (typeof made === 'string') network.add(made);
    else if (made) network.add(made.name, made.shape);
  };
}

/** A window that fits into a map, and its output's size is one at least. */
function windowOf({ shape }: Value, step: Step, { padsBelowKernel = false } = {}) {
  const { strides } = step;
  const pads = step.pads.map((pad, i) => (padsBelowKernel ? Math.min(pad, step.kernel[i % 2]! - 1) : pad));
  const dilations = [...step.dilations];
  const kernel = step.kernel.map((size, axis) => {
    const room = shape[1 + axis]! + pads[axis]! + pads[axis + 2]!;
    if (dilations[axis]! * (size - 1) + 1 <= room) return size;
    dilations[axis] = 1;
    return Math.min(size, shape[1 + axis]!);
  });
  const fitting = pads.map((pad, i) => (padsBelowKernel ? Math.min(pad, kernel[i % 2]! - 1) : pad));
  return { kernel_shape: kernel, strides, pads: fitting, dilations };
}

const divisors = (count: number) => Array.from({ length: count }, (_, i) => i + 1).filter((n) => count % n === 0);

function conv({ b }: Network, x: Value, step: Step): Value | string | undefined {
  const [channels] = x.shape as [number];
  const { kernel_shape, ...window } = windowOf(x, step);
  const groups = divisors(channels);
  // Half of the convolutions have one group, a quarter one for each channel.
  const group = [1, 1, channels, groups[step.other % groups.length]!][step.form % 4]!;
  const outputs =
    group === 1 ? step.channels : group * (1 + (step.channels % Math.max(1, Math.min(3, Math.floor(24 / group)))));
  const size = Math.sqrt(3 / ((channels / group) * kernel_shape[0]! * kernel_shape[1]!));
  const weight = b.values([outputs, channels / group, ...kernel_shape], -size, size);
  const inputs = step.form % 5 < 4 ? [x.name, weight, b.values([outputs])] : [x.name, weight];
  const { pads, ...rest } = window;
  if (step.form % 15 !== 14) return b.node('Conv', inputs, { kernel_shape, ...rest, pads, group });
  const auto = step.other % 2 ? 'SAME_UPPER' : 'SAME_LOWER';
  // ONNX Runtime knows no dilations there.
  const { strides } = rest;
  const shape = [outputs, ...strides.map((stride, axis) => Math.ceil(x.shape[1 + axis]! / stride))];
  return { name: b.node('Conv', inputs, { kernel_shape, strides, auto_pad: auto, group }), shape };
}

function convTranspose({ b }: Network, x: Value, step: Step): string | undefined {
  const [channels, height, width] = x.shape as [number, number, number];
  const { kernel, strides, dilations, pads } = step;
  const along = (axis: 0 | 1) =>
    strides[axis] * ([height, width][axis]! - 1) +
    dilations[axis] * (kernel[axis] - 1) +
    1 -
    pads[axis] -
    pads[axis + 2]!;
  if (along(0) < 1 || along(1) < 1) return undefined;
  const groups = divisors(channels);
  const group = groups[step.other % groups.length]!;
  const perGroup = 1 + (step.channels % 4);
  const size = Math.sqrt(3 / (channels / group));
  const weight = b.values([channels, perGroup, ...kernel], -size, size);
  return b.node('ConvTranspose', [x.name, weight, b.values([group * perGroup])], {
    ...{ kernel_shape: kernel, strides, dilations, pads, group },
  });
}

const perChannel = ({ b }: Network, { shape }: Value, low: number, high: number) =>
  b.values(shape.length === 3 ? [shape[0]!, 1, 1] : [shape[0]!], low, high);

function batchNorm({ b }: Network, { name, shape }: Value): string {
  return b.batchNorm(name, shape[0]!);
}

/** Activations by form. */
const ACTIVATIONS: ((network: Network, x: Value) => string)[] = [
  (n, x) => n.b.node('Relu', [x.name]),
  (n, x) => n.b.node('PRelu', [x.name, perChannel(n, x, -0.3, 0.6)]),
  (n, x) => n.b.node('PRelu', [x.name, floats(0.3)]),
  (n, x) => n.b.node('LeakyRelu', [x.name], { alpha: 0.2 }),
  (n, x) => n.b.node('Clip', [x.name, number(0), number(6)]),
  (n, x) => n.b.node('Clip', [x.name, number(-0.5), number(1.5)]),
  (n, x) => n.b.node('Clip', [x.name, '', number(1)]),
  (n, x) => n.b.node('Clip', [x.name, number(0)]),
  (n, x) => n.b.node('Sigmoid', [x.name]),
  (n, x) => n.b.node('HardSigmoid', [x.name], { alpha: 0.25, beta: 0.4 }),
  (n, x) => n.b.node('HardSwish', [x.name]),
  (n, x) => {
    const gate = n.b.node('Clip', [n.b.node('Add', [x.name, number(3)]), number(0), number(6)]);
    return n.b.node('Div', [n.b.node('Mul', [x.name, gate]), number(6)]);
  },
  (n, x) => n.b.node('Mul', [x.name, n.b.node('Sigmoid', [x.name])]),
  (n, x) => n.b.node('Tanh', [x.name]),
  (n, x) => n.b.node('Elu', [x.name], { alpha: 0.7 }),
  (n, x) => n.b.node('Softplus', [x.name]),
  (n, x) => n.b.node('Softsign', [x.name]),
  (n, x) => n.b.node('Selu', [x.name]),
  (n, x) => n.b.node('Abs', [x.name]),
  (n, x) => n.b.node('Neg', [x.name]),
  (n, x) => n.b.node('Max', [x.name, number(0)]),
  (n, x) => n.b.node('Max', [x.name, number(-0.4)]),
  (n, x) => n.b.node('Min', [x.name, number(0.4)]),
  (n, x) => n.b.node('Sqrt', [n.b.node('Abs', [x.name])]),
  (n, x) => n.b.node('Exp', [n.b.node('Clip', [x.name, number(-4), number(2)])]),
  (n, x) => n.b.node('Pow', [x.name, number(2)]),
  // Maxout's form of a PReLU.
  (n, x) => n.b.node('Sub', [n.b.node('Relu', [x.name]), n.b.node('Relu', [n.b.node('Neg', [x.name])])]),
  (n, x) => n.b.node('Identity', [x.name]),
];

/** A constant of each shape that is broadcast to a value without changing its shape. */
function arithmetic(n: Network, x: Value, step: Step): string {
  const op = ['Add', 'Sub', 'Mul', 'Div'][step.form % 4]!;
  const isDivisor = op === 'Div' && step.form % 8 < 4;
  const [low, high] = op === 'Div' ? [0.5, 2] : [-1, 1.5];
  const shapes = isMap(x)
    ? [[], [1], [x.shape[0]!, 1, 1], [1, x.shape[0]!, 1, 1], [1, 1, 1], [1, 1, 1, 1], x.shape, [1, ...x.shape.slice(1)]]
    : [[], [1], x.shape, [1, ...x.shape], [1, 1]];
  const constant = n.b.values(shapes[step.other % shapes.length]!, low, high);
  // A constant divided by a computed value: of one that is not near zero.
  if (op === 'Div' && !isDivisor) {
    const away = n.b.node('Add', [n.b.node('Abs', [x.name]), number(0.5)]);
    return n.b.node(op, [constant, away]);
  }
  return n.b.node(op, isDivisor || step.form % 8 < 4 ? [x.name, constant] : [constant, x.name]);
}

/** Two computed values of one shape, or a map with a number for each channel or each pixel. */
function binary(n: Network, step: Step): void {
  const a = n.pick(step.from, isEither);
  if (!a) return;
  const b = n.pick(step.other, same(a.shape))!;
  const op = ['Add', 'Mul', 'Sub', 'Add', 'Max', 'Min', 'Sum', 'Mean'][step.form % 8]!;
  n.add(n.b.node(op, [a.name, b.name]));
}

function broadcast(n: Network, step: Step): void {
  const a = n.pick(step.from, isMap);
  if (!a) return;
  const [channels, height, width] = a.shape as [number, number, number];
  const fits = [
    [channels, 1, 1],
    [1, height, width],
    [1, 1, 1],
  ].map((shape) => shape.join());
  const b = n.pick(step.other, ({ shape }) => fits.includes(shape.join()));
  if (!b) return;
  const op = ['Mul', 'Add', 'Sub'][step.form % 3]!;
  n.add(n.b.node(op, step.form % 2 ? [a.name, b.name] : [b.name, a.name]));
}

/** Squeeze and excitation, by convolutions or by products. */
function excite(n: Network, x: Value, { channels: hidden, form }: Step): string {
  const { b } = n;
  const [channels] = x.shape as [number];
  const squeezed =
    form % 3 === 0
      ? b.node('ReduceMean', [x.name], { axes: [2, 3], keepdims: 1 })
      : b.node('GlobalAveragePool', [x.name]);
  const gate = (value: string) =>
    form % 4 < 2 ? b.node('Sigmoid', [value]) : b.node('HardSigmoid', [value], { alpha: 0.2, beta: 0.5 });
  if (form % 2 === 0) {
    const inner = b.node('Relu', [b.conv(squeezed, channels, hidden, 1)]);
    return b.node('Mul', [x.name, gate(b.conv(inner, hidden, channels, 1))]);
  }
  const inner = b.node('Relu', [b.gemm(b.flatten(squeezed), channels, hidden)]);
  const scale = b.node('Reshape', [gate(b.gemm(inner, hidden, channels)), integers(0, channels, 1, 1)]);
  return b.node('Mul', form % 5 ? [x.name, scale] : [scale, x.name]);
}

/** A residual unit, its activation before or behind the sum. */
function residual(n: Network, x: Value, { form, channels: hidden }: Step): string {
  const { b } = n;
  const [channels] = x.shape as [number];
  const first = form % 2 ? b.batchNorm(x.name, channels) : x.name;
  const inner = b.prelu(b.batchNorm(b.conv(first, channels, hidden, 3, { pad: 1, bias: false }), hidden), hidden);
  const last = b.batchNorm(b.conv(inner, hidden, channels, 3, { pad: 1, bias: form % 5 === 0 }), channels);
  const sum = b.node('Add', form % 3 ? [last, x.name] : [x.name, last]);
  return form % 4 < 2 ? sum : b.node('Relu', [sum]);
}

/** Whether each window has a pixel of the map: runtimes differ in what the largest of none is. */
const reachesMap = ({ shape }: Value, { kernel_shape, strides, pads, dilations }: ReturnType<typeof windowOf>) =>
  [0, 1].every((axis) => {
    const [size, before, dilation] = [shape[1 + axis]!, pads[axis]!, dilations[axis]!];
    const last = size + pads[axis + 2]! - dilation * (kernel_shape[axis]! - 1) - 1;
    for (let start = -before; start <= last; start += strides[axis]!) {
      const pixels = Array.from({ length: kernel_shape[axis]! }, (_, k) => start + k * dilation);
      if (!pixels.some((pixel) => pixel >= 0 && pixel < size)) return false;
    }
    return true;
  });

function pool({ b }: Network, x: Value, step: Step): string {
  const { dilations: asked, ...window } = windowOf(
    x,
    { ...step, dilations: step.form % 14 ? [1, 1] : step.dilations },
    { padsBelowKernel: true },
  );
  const dilations = reachesMap(x, { ...window, dilations: asked }) ? asked : [1, 1];
  // A last window that begins behind the map is left out, which ONNX Runtime's inference of shapes does not know.
  const isWhole = [0, 1].every((axis) => {
    const [size, stride, before] = [x.shape[1 + axis]!, window.strides[axis]!, window.pads[axis]!];
    const room = size + before + window.pads[axis + 2]! - dilations[axis]! * (window.kernel_shape[axis]! - 1) - 1;
    return Math.ceil(room / stride) * stride < size + before;
  });
  const ceil = step.form % 5 === 0 && isWhole ? { ceil_mode: 1 } : {};
  if (step.form % 10 === 9) return b.node('LpPool', [x.name], { ...window, p: 1 + (step.other % 3) });
  if (step.form % 2 === 0)
    return b.node('MaxPool', [x.name], { ...window, ...(step.form % 14 ? {} : { dilations }), ...ceil });
  // Both together are refused: runtimes differ in what they divide by.
  const counted = step.form % 3 || 'ceil_mode' in ceil ? 0 : 1;
  return b.node('AveragePool', [x.name], { ...window, ...ceil, count_include_pad: counted });
}

const WAYS: Record<string, string>[] = [
  { mode: 'nearest', coordinate_transformation_mode: 'asymmetric', nearest_mode: 'floor' },
  { mode: 'nearest', coordinate_transformation_mode: 'half_pixel', nearest_mode: 'round_prefer_floor' },
  { mode: 'nearest', coordinate_transformation_mode: 'align_corners', nearest_mode: 'round_prefer_ceil' },
  { mode: 'nearest', coordinate_transformation_mode: 'pytorch_half_pixel', nearest_mode: 'ceil' },
  { mode: 'linear', coordinate_transformation_mode: 'asymmetric' },
  { mode: 'linear', coordinate_transformation_mode: 'half_pixel' },
  { mode: 'linear', coordinate_transformation_mode: 'align_corners' },
  { mode: 'linear', coordinate_transformation_mode: 'pytorch_half_pixel' },
];
const FACTORS = [2, 1, 1.5, 3, 0.5, 0.75];

function resize({ b }: Network, { name, shape }: Value, { form, other, kernel }: Step): string {
  const [channels, height, width] = shape as [number, number, number];
  const way = WAYS[form % WAYS.length]!;
  const factors = [FACTORS[other]!, FACTORS[(other + kernel[0]) % FACTORS.length]!];
  const [h, w] = [Math.max(1, Math.floor(height * factors[0]!)), Math.max(1, Math.floor(width * factors[1]!))];
  const fits = height * factors[0]! >= 1 && width * factors[1]! >= 1;
  return form % 2 && fits
    ? b.node('Resize', [name, '', floats(1, 1, ...factors)], way)
    : b.node('Resize', [name, '', '', integers(1, channels, h, w)], way);
}

function pad({ b }: Network, { name, shape }: Value, { form, pads: [t, l, bottom, r] }: Step): string {
  const mode = ['constant', 'constant', 'constant', 'reflect', 'edge'][form % 5]!;
  const most = mode === 'reflect' ? [shape[1]! - 1, shape[2]! - 1] : [9, 9];
  const [top, left, under, right] = [t, l, bottom, r].map((amount, i) => Math.min(amount, most[i % 2]!));
  const channels = form % 7 === 0 && mode === 'constant' ? 1 : 0;
  const amounts = integers(0, channels, top!, left!, 0, 0, under!, right!);
  const value = form % 3 ? [] : [number(0.5)];
  return b.node('Pad', mode === 'constant' ? [name, amounts, ...value] : [name, amounts], { mode });
}

/** A choice of channels. */
function choice(n: Network, step: Step): void {
  const x = n.pick(step.from, isMap);
  if (!x) return;
  const { b } = n;
  const [channels, height, width] = x.shape as [number, number, number];
  const half = Math.max(1, Math.floor(channels / 2));
  switch (step.form % 6) {
    case 0:
      return n.add(b.node('Slice', [x.name, integers(channels - half), integers(channels), integers(1)]));
    case 1: {
      const order = Array.from({ length: channels }, (_, i) => (i * 5 + step.other) % channels);
      return n.add(b.node('Gather', [x.name, integers(...order)], { axis: 1 }));
    }
    case 2: {
      if (channels < 2) return;
      for (const part of b.nodeOfMany('Split', [x.name, integers(half, channels - half)], 2, { axis: 1 })) n.add(part);
      return;
    }
    case 3: {
      const groups = divisors(channels);
      const group = groups[step.other % groups.length]!;
      const split = b.node('Reshape', [x.name, integers(0, group, channels / group, height, width)]);
      const moved = b.node('Transpose', [split], { perm: [0, 2, 1, 3, 4] });
      return n.add(b.node('Reshape', [moved, integers(0, channels, height, width)]));
    }
    case 4:
      return n.add(b.node('Slice', [x.name, integers(0), integers(2 ** 31), integers(1), integers(2)]));
    default: {
      // A part of the rows, and of every second column.
      if (height < 2) return;
      return n.add(b.node('Slice', [x.name, integers(1, 0), integers(height, width), integers(2, 3), integers(1, 2)]));
    }
  }
}

function concat(n: Network, step: Step): void {
  const a = n.pick(step.from, isEither);
  if (!a) return;
  const area = a.shape.slice(1).join();
  const fits = ({ shape }: Value) => shape.length === a.shape.length && shape.slice(1).join() === area;
  const others = Array.from({ length: 1 + (step.form % 3) }, (_, i) => n.pick(step.other + i, fits)!.name);
  n.add(n.b.node('Concat', [a.name, ...others], { axis: step.form % 4 ? 1 : 1 - (a.shape.length + 1) }));
}

function blocks({ b }: Network, { name, shape }: Value, { form }: Step): Value | string | undefined {
  const [channels, height, width] = shape as [number, number, number];
  if (form % 2 === 0)
    return channels % 4 === 0
      ? b.node('DepthToSpace', [name], { blocksize: 2, mode: form % 4 ? 'CRD' : 'DCR' })
      : undefined;
  if (height % 2 || width % 2) return undefined;
  return { name: b.node('SpaceToDepth', [name], { blocksize: 2 }), shape: [channels * 4, height / 2, width / 2] };
}

/** A map of other channels and rows, with the numbers in their order. */
function regroup({ b }: Network, { name, shape }: Value, { form }: Step): string | undefined {
  const [channels, height, width] = shape as [number, number, number];
  if (form % 2 === 0)
    return height % 2 ? undefined : b.node('Reshape', [name, integers(0, 2 * channels, height / 2, width)]);
  return channels % 2 ? undefined : b.node('Reshape', [name, integers(0, channels / 2, 2 * height, width)]);
}

function reduce(n: Network, x: Value, { form, other }: Step): string {
  const op = ['ReduceMean', 'ReduceMax', 'ReduceSum', 'ReduceMin', 'ReduceL2'][form % 5]!;
  const axes = [[2, 3], [1], [-1, -2], [3], [1, 2, 3]][other % 5]!;
  if (op === 'ReduceSum') return n.b.node(op, [x.name, integers(...axes)], { keepdims: 1 });
  return n.b.node(op, [x.name], { axes, keepdims: 1 });
}

/** A vector of a map. */
function head({ b }: Network, { name, shape }: Value, { form, channels: outputs }: Step): string {
  const size = shape.reduce((product, dim) => product * dim, 1);
  switch (form % 6) {
    case 0:
      return b.flatten(name);
    case 1:
      return b.flatten(b.node('GlobalAveragePool', [name]));
    case 2:
      return b.node('ReduceMean', [name], { axes: [2, 3], keepdims: 0 });
    case 3:
      return b.gemm(b.flatten(name), size, outputs);
    case 4:
      return b.gemm(b.node('Reshape', [name, integers(0, -1)]), size, outputs);
    default:
      return b.flatten(b.node('GlobalMaxPool', [name]));
  }
}

/** Products of a map's pixels as rows, as transformers and ConvNeXt have them. */
function rowProducts(n: Network, x: Value, { form, channels: outputs }: Step): string {
  const { b } = n;
  const [channels, height, width] = x.shape as [number, number, number];
  const last = b.node('Transpose', [x.name], { perm: [0, 2, 3, 1] });
  const rows = form % 2 ? b.node('Reshape', [last, integers(0, height * width, channels)]) : last;
  const normal = b.node('LayerNormalization', [rows, b.values([channels], 0.5, 2), b.values([channels])], { axis: -1 });
  const size = Math.sqrt(3 / channels);
  const product = b.node('MatMul', [form % 3 ? normal : rows, b.values([channels, outputs], -size, size)]);
  const sum = form % 5 ? b.node('Add', [product, b.values([outputs])]) : product;
  const function_ = form % 4 ? sum : b.node('Mul', [sum, b.node('Sigmoid', [sum])]);
  const back = b.node('MatMul', [function_, b.values([outputs, channels])]);
  if (form % 7 === 0) return form % 2 ? back : b.node('Reshape', [back, integers(0, height * width, channels)]);
  const map = form % 2 ? b.node('Reshape', [back, integers(0, height, width, channels)]) : back;
  return b.node('Add', [b.node('Transpose', [map], { perm: [0, 3, 1, 2] }), x.name]);
}

/** Choices by comparisons, each without a jump where the two are equal: either is right there, to rounding. */
function compare(n: Network, step: Step): void {
  const a = n.pick(step.from, isEither);
  if (!a) return;
  const { b } = n;
  const limit = step.form % 4 < 2 ? number(0.21) : n.pick(step.other, same(a.shape))!.name;
  const [above, below] = step.form % 2 ? ['Greater', 'Less'] : ['GreaterOrEqual', 'LessOrEqual'];
  const is = (op: string) => b.node(op, [a.name, limit]);
  const gap = () => b.node('Sub', [a.name, limit]);
  const cases = [
    () => b.node('Where', [is(above!), a.name, limit]),
    () => b.node('Where', [b.node('Not', [is(below!)]), a.name, b.node('Add', [limit, b.node('Neg', [gap()])])]),
    () => b.node('Mul', [gap(), b.node('Cast', [is(above!)], { to: 1 })]),
    () => b.node('Where', [b.node('And', [is('Equal'), is(below!)]), limit, a.name]),
    () => b.node('Where', [b.node('Or', [is(below!), is('Equal')]), limit, a.name]),
  ];
  n.add(cases[step.channels % cases.length]!());
}

/** The place of the largest or the least channel, which rounding may change, so that it counts for nothing. */
function place({ b }: Network, x: Value, { form }: Step): string {
  const found = b.node(form % 2 ? 'ArgMin' : 'ArgMax', [x.name], { axis: form % 3 ? 1 : 1 - (x.shape.length + 1) });
  return b.node('Add', [x.name, b.node('Mul', [b.node('Cast', [found], { to: 1 }), number(0)])]);
}

/** Values that depend on the sizes of others, as exporters compute them. */
function bySizes(n: Network, step: Step): void {
  const [a, other] = [n.pick(step.from, isMap), n.pick(step.other, isMap)];
  if (!a || !other) return;
  const { b } = n;
  const area = b.node('Slice', [b.node('Shape', [other.name]), integers(2), integers(4)]);
  if (step.form % 2 === 0) {
    const sizes = b.node('Concat', [b.node('Slice', [b.node('Shape', [a.name]), integers(0), integers(2)]), area], {
      axis: 0,
    });
    const way = { mode: 'nearest', coordinate_transformation_mode: 'asymmetric', nearest_mode: 'floor' };
    return n.add(b.node('Resize', [a.name, '', '', sizes], way), [a.shape[0]!, ...other.shape.slice(1)]);
  }
  const pooled = b.node('GlobalAveragePool', [a.name]);
  const target = b.node('Concat', [integers(1, a.shape[0]!), area], { axis: 0 });
  // With numbers of its own for each pixel: less its mean it would be rounding alone.
  const expanded = b.node('Expand', [pooled, target]);
  n.add(b.node('Add', [expanded, b.values([1, ...other.shape.slice(1)])]), [a.shape[0]!, ...other.shape.slice(1)]);
}

function product({ b }: Network, { name, shape }: Value, { form, channels: outputs }: Step): string {
  const [features] = shape as [number];
  const size = Math.sqrt(3 / features);
  const bias = b.values([outputs]);
  switch (form % 4) {
    case 0:
      return b.node('Gemm', [name, b.values([features, outputs], -size, size), bias], { alpha: 0.7, beta: 0.5 });
    case 1:
      return b.gemm(name, features, outputs);
    case 2:
      return b.node('MatMul', [name, b.values([features, outputs], -size, size)]);
    default:
      return b.node('Add', [b.node('MatMul', [name, b.values([features, outputs], -size, size)]), bias]);
  }
}

/** Operators around which the channels are last, as TensorFlow's exporter leaves them. */
function channelsLast(n: Network, x: Value, { form }: Step): string {
  const { b } = n;
  const [channels] = x.shape as [number];
  const last = b.node('Transpose', [x.name], { perm: [0, 2, 3, 1] });
  const inner = [
    (value: string) => b.node('Relu', [value]),
    (value: string) => b.node('Add', [value, b.values([channels])]),
    (value: string) => b.node('Mul', [value, b.values([1, 1, 1, channels])]),
    (value: string) => b.node('Sigmoid', [value]),
    (value: string) => value,
    (value: string) => b.node('Softmax', [value], { axis: -1 }),
  ][form % 6]!(last);
  return b.node('Transpose', [inner], { perm: [0, 3, 1, 2] });
}

/** What detectors end with: numbers of each pixel as rows; of it nothing but an output is made. */
function rows({ b }: Network, { name, shape }: Value, { form }: Step): string {
  const [channels] = shape as [number];
  const last = b.node('Transpose', [name], { perm: [0, 2, 3, 1] });
  const scores = b.node('Reshape', [last, integers(0, -1, channels)]);
  return [
    () => scores,
    () => b.node('Softmax', [scores], { axis: 2 }),
    () => b.node('Sigmoid', [scores]),
    () => b.node('Reshape', [b.node('Softmax', [name], { axis: 1 }), integers(0, channels, -1)]),
  ][form % 4]!();
}

/** What each step adds to a network. */
const OPERATORS = {
  conv: reading(isMap, conv),
  activation: reading(isEither, (n, x, { form }) => ACTIVATIONS[form % ACTIVATIONS.length]!(n, x)),
  batchNorm: reading(isEither, batchNorm),
  arithmetic: reading(isEither, arithmetic),
  binary,
  broadcast,
  residual: reading(isMap, residual),
  excite: reading(isMap, excite),
  pool: reading(isMap, pool),
  globalPool: reading(isMap, ({ b }, { name }, { form }) =>
    b.node(form % 3 ? 'GlobalAveragePool' : 'GlobalMaxPool', [name]),
  ),
  reduce: reading(isMap, reduce),
  resize: reading(isMap, resize),
  pad: reading(isMap, pad),
  choice,
  concat,
  blocks: reading(isMap, blocks),
  regroup: reading(isMap, regroup),
  convTranspose: reading(isMap, convTranspose),
  channelsLast: reading(isMap, channelsLast),
  head: reading(isMap, head),
  product: reading(isVector, product),
  rowProducts: reading(isMap, rowProducts),
  compare,
  place: reading(isEither, place),
  bySizes,
  lrn: reading(isMap, ({ b }, { name }, { kernel: [size], form }) =>
    b.node('LRN', [name], { size: size | 1, alpha: 0.5, beta: form % 2 ? 0.75 : 0.5, bias: 1 + (form % 3) }),
  ),
  softmax: reading(isEither, ({ b }, { name }) => b.node('Softmax', [name], { axis: 1 })),
  asMap: reading(isVector, ({ b }, { name, shape }) => b.node('Reshape', [name, integers(0, shape[0]!, 1, 1)])),
  rows: reading(isMap, rows),
};

/** Operators that keep the numbers of a value. */
const VIEWS = new Set(['Flatten', 'Identity', 'Reshape', 'Transpose']);
/** And those that keep them where they take the mean of one number. */
const MEANS = new Set(['AveragePool', 'GlobalAveragePool', 'ReduceMean']);
/** And those that, by a constant, give the picture another range, which is read as that. */
const RANGES = new Set(['Add', 'BatchNormalization', 'Div', 'Mul', 'Sub']);

/** The network of a recipe; undefined when its steps make none. */
export function networkOf(recipe: Recipe): Graph | undefined {
  const network = new Network(recipe);
  for (const step of recipe.steps) OPERATORS[step.op](network, step);
  // A value that is the picture in another form is no output: no layer computes it.
  const views = new Set(['data']);
  const count = (name: string) =>
    network.values.find((value) => value.name === name)?.shape.reduce((product, dim) => product * dim, 1);
  const { initializers } = network.b.graph('data');
  for (const { op, inputs, outputs } of network.b.graph('data').nodes) {
    const [from, to] = [inputs.find((name) => views.has(name)), outputs[0]!];
    const isRange = RANGES.has(op) && inputs.some((name) => Object.hasOwn(initializers, name));
    if (from && (isRange || VIEWS.has(op) || (MEANS.has(op) && count(from) === count(to)))) views.add(to);
  }
  const made = network.values.filter(({ name }) => !views.has(name)).reverse();
  if (made.length === 0) return undefined;
  const chosen = new Set([made[0]!, ...recipe.outputs.flatMap((at) => made[at % made.length] ?? [])]);
  const outputs = [...chosen].map(({ name, shape }) => ({ name, dims: shape }));
  const graph = network.b.graph(outputs[0]!.name);
  // What no output needs is not in the file.
  const needed = new Set(outputs.map(({ name }) => name));
  const nodes = graph.nodes
    .toReversed()
    .filter((node) => {
      const isNeeded = node.outputs.some((name) => needed.has(name));
      if (isNeeded) for (const name of node.inputs) needed.add(name);
      return isNeeded;
    })
    .reverse();
  const dim = outputs.reduce((sum, { dims }) => sum + dims.reduce((size, length) => size * length, 1), 0);
  return {
    ...graph,
    input: { ...graph.input, layout: recipe.layout },
    nodes,
    initializers: Object.fromEntries(Object.entries(graph.initializers).filter(([name]) => needed.has(name))),
    output: { name: outputs[0]!.name, dim },
    outputs,
  };
}
