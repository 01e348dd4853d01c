/**
 * Writes a graph's nodes anew with the operators that both readers know (operators.ts), wherever a node computes what
 * one of those does.
 *
 * A value of the file is a `View` of a value that is computed: its numbers in the same order under another shape (after
 * a Squeeze, Reshape, Flatten, ...), with its channels last (Transpose), a choice of its channels (Gather, Split,
 * Slice), with zeros around it that the next convolution adds (Pad), or to be averaged (half of a mean over height and
 * width). Most operators work on the viewed value itself. A view becomes a node, Flatten, Reshape or Transpose, where a
 * reader needs its shape.
 */
import type { FacetrainError } from '@facetrain/api';
import type { GraphNode, Tensor } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import { broadcastTo } from './constant-folding.ts';
import { axisIndex, sliceIndices } from './known-integers.ts';
import { isRelu } from './operators.ts';

/** What the canonical graph is written with. */
export interface CanonicalContext {
  /** The shape of a value of the file for one picture, without the batch; undefined if it is not known. */
  pictureShape: (name: string) => number[] | undefined;
  /** Integers that do not depend on the batch; undefined when they are not known. */
  integers: (name: string) => number[] | undefined;
  constantOf: (name: string) => Tensor | undefined;
  /** Adds an initializer, and returns its name: the given one, or one like it. */
  constant: (name: string, tensor: Tensor) => string;
  /** A name that no value or node has: the given one, or one like it. */
  freshName: (name: string) => string;
  refuse: (node: GraphNode, found: string, allowed: string) => FacetrainError;
  /** Whether a view that its reader cannot take over is written with operators that are not canonical. */
  keepsAll: boolean;
}

interface View {
  /** The value that is computed. */
  base: string;
  /** Without the batch. */
  shape: number[];
  /** The node of the file that makes this view, for messages. */
  node?: GraphNode;
  /** That node, if it only gives the base another shape, and its name is free for a node that does the same. */
  origin?: GraphNode | undefined;
  /**
   * The base [C, H, W] in the order [H, W, C]. `shape` is that, or a vector of the numbers in that order; of the
   * product of rows and a matrix, also those rows, [n, C].
   */
  channelsLast?: boolean | undefined;
  /** The channels of the base, in the view's order; absent: all, as they are. */
  channels?: number[] | undefined;
  /** Zeros around the base: top, left, bottom, right. */
  pads?: [number, number, number, number] | undefined;
  /** Axes of `shape` (from 0, without the batch) over which the mean is still to be taken. */
  averaged?: { axes: number[]; of: View } | undefined;
}

const product = (dims: number[]) => dims.reduce((total, dim) => total * dim, 1);
const same = (a: number[], b: number[]) => a.length === b.length && a.every((value, i) => value === b[i]);
const int64 = (values: number[]): Tensor => ({ dims: [values.length], data: BigInt64Array.from(values, BigInt) });

/** Operators that keep the order of the numbers, when they keep the batch. */
const RESHAPING = new Set(['Flatten', 'Identity', 'Reshape', 'Squeeze', 'Unsqueeze']);
/**
 * Functions of each number by itself, whose other inputs are constants of one number (Max: with 0, else it is refused).
 */
const UNARY = new Set(['Clip', 'LeakyRelu', 'Max', 'Relu', 'Sigmoid', 'Tanh']);
/** Those that keep a zero, so that they work in front of the zeros of a Pad as well. */
const KEEPS_ZERO = new Set(['LeakyRelu', 'PRelu', 'Relu', 'Tanh']);
/** Channels of a picture. */
const MOST_COLORS = 4;
const ARITHMETIC = new Set(['Add', 'Div', 'Mul', 'Sub']);
/** Those, with RESHAPING, UNARY and ARITHMETIC, that are rewritten for a value whose channels are last. */
const ALSO_CHANNELS_LAST = new Set([
  'Gather',
  'Gemm',
  'MatMul',
  'Pad',
  'PRelu',
  'ReduceMean',
  'Slice',
  'Split',
  'Transpose',
]);
/** Orders of axes between [N, C, H, W] and [N, H, W, C]. */
export const TO_CHANNELS_LAST = [0, 2, 3, 1];
export const TO_CHANNELS_FIRST = [0, 3, 1, 2];

export class Canonicalizer {
  readonly nodes: GraphNode[] = [];
  private readonly context: CanonicalContext;
  private readonly views = new Map<string, View>();
  /** Shapes of computed values, without the batch. */
  private readonly shapes = new Map<string, number[]>();
  /** Flattened and reshaped values by base and shape. */
  private readonly reshaped = new Map<string, string>();
  private readonly emitted = new Set<string>();
  /** Transposes by output: two of them may cancel out. */
  private readonly transposed = new Map<string, { input: string; order: number[] }>();

  constructor(input: { name: string; channels: number; height: number; width: number }, context: CanonicalContext) {
    this.context = context;
    const shape = [input.channels, input.height, input.width];
    this.views.set(input.name, { base: input.name, shape });
    this.shapes.set(input.name, shape);
  }

  /** Adds a node of the file. Nodes must come in topological order. */
  visit(node: GraphNode): void {
    if (this.rewrite(node)) return;
    // A choice of channels, a Pad or a mean that it does not take over is written. Then it may be rewritten after all,
    // as it will be when the graph is read again. An order with channels last stays a view: it may cancel out.
    const pending = node.inputs.filter((name) => isPending(this.views.get(name)));
    for (const name of new Set(pending)) this.writePending(name, this.views.get(name)!, node);
    if (pending.length === 0 || !this.rewrite(node)) this.copy(node);
  }

  /**
   * Makes the graph's output [N, d].
   * @returns false when it is the input itself
   */
  finish(output: string, input: string): boolean {
    const view = this.views.get(output);
    if (!view || this.emitted.has(output)) {
      // [C, 1, 1]: the network ends with a pool.
      if (view && view.shape.length !== 1 && this.isVector(view)) this.flattenOutput(output, view);
      return true;
    }
    if (view.base === input) {
      if (same(view.shape, this.shapes.get(input)!) && !view.channels && !view.pads) return false;
    }
    const isPlain = !view.channels && !view.pads && !view.averaged && !view.channelsLast;
    const vector = [product(view.shape)];
    if (!isPlain || !this.isVector(view)) {
      const name = this.materialise(output, view.node);
      if (name !== output) this.rename(name, output);
      if (view.shape.length !== 1 && this.isVector(view)) this.flattenOutput(output, view);
    } else if (same(this.shapes.get(view.base)!, vector)) {
      this.rename(view.base, output);
    } else {
      const node = { ...this.nodeOf(view, output), op: 'Flatten', inputs: [view.base], attributes: { axis: 1 } };
      this.emit(node, output, vector);
    }
    return true;
  }

  /** Makes each output a value of the shape that it has in the file. */
  finishAll(outputs: string[]): void {
    const taken = new Set(outputs);
    for (const output of outputs) {
      const view = this.views.get(output);
      if (!view || this.emitted.has(output)) continue;
      const shape = view.shape;
      const name = this.materialise(output, view.node);
      if (name === output) continue;
      // Another output, the picture, or a value that another node reads under its own name.
      if (taken.has(name) || !this.emitted.has(name)) {
        const node = { name: this.context.freshName(`${output}_identity`), op: 'Identity', inputs: [name] };
        this.emit({ ...node, attributes: {} }, output, shape);
      } else {
        this.rename(name, output);
        for (const other of this.views.values()) if (other.base === name) other.base = output;
        for (const [key, value] of this.reshaped) if (value === name) this.reshaped.set(key, output);
        this.shapes.set(output, shape);
        this.emitted.add(output);
      }
    }
  }

  private isVector({ shape }: Pick<View, 'shape'>): boolean {
    return shape.length > 0 && shape.filter((dim) => dim !== 1).length <= 1;
  }

  private flattenOutput(output: string, { shape }: View): void {
    const map = this.context.freshName(`${output}_spatial`);
    this.rename(output, map);
    const node = {
      name: this.context.freshName(`${output}_flatten`),
      op: 'Flatten',
      inputs: [map],
      attributes: { axis: 1 },
    };
    this.emit(node, output, [product(shape)]);
  }

  private rename(from: string, to: string): void {
    const renamed = (name: string) => (name === from ? to : name);
    for (const node of this.nodes) {
      node.inputs = node.inputs.map(renamed);
      node.outputs = node.outputs.map(renamed);
    }
  }

  private emit(node: Omit<GraphNode, 'outputs'>, output: string, shape: number[]): void {
    this.nodes.push({ ...node, outputs: [output] });
    this.emitted.add(output);
    this.shapes.set(output, shape);
  }

  /** The node of the file that reshapes a value to `output`, or a new one. */
  private nodeOf({ origin }: View, output: string): GraphNode {
    if (origin?.outputs[0] === output) return origin;
    return { name: this.context.freshName(`${output}_flatten`), op: '', inputs: [], outputs: [], attributes: {} };
  }

  /** The name of a computed value with exactly this value's shape. */
  private materialise(name: string, reader: GraphNode | undefined): string {
    const view = this.views.get(name);
    if (!view) return name;
    this.writePending(name, view, reader);
    const settled = this.views.get(name)!;
    const { shape } = settled;
    const base = settled.channelsLast ? this.channelsLastBase(name, settled) : settled.base;
    if (same(this.shapes.get(base)!, shape)) return base;
    const key = JSON.stringify([base, shape]);
    const existing = this.reshaped.get(key);
    if (existing !== undefined) return existing;
    const node = this.nodeOf(view, name);
    const output = node === view.origin ? name : this.context.freshName(`${name}_as_${shape.join('x')}`);
    if (shape.length === 1)
      this.emit({ ...node, op: 'Flatten', inputs: [base], attributes: { axis: 1 } }, output, shape);
    else {
      const target = [0, ...shape];
      const given = node.op === 'Reshape' ? this.context.integers(node.inputs[1]!) : undefined;
      const constant =
        given && same(given, target) && this.context.constantOf(node.inputs[1]!)
          ? node.inputs[1]!
          : this.context.constant(`${node.name}.shape`, int64(target));
      this.emit({ ...node, op: 'Reshape', inputs: [base, constant], attributes: {} }, output, shape);
    }
    this.reshaped.set(key, output);
    return output;
  }

  /**
   * The base of a view of channels last in this order: a Transpose, written once. The view stays as it is, so that all
   * that read it are written in the same way.
   */
  private channelsLastBase(name: string, { base, origin, shape }: View): string {
    const [channels, height, width] = this.shapes.get(base) as [number, number, number];
    const last = [height, width, channels];
    const key = JSON.stringify([base, 'channels last']);
    let transposed = this.reshaped.get(key);
    if (transposed === undefined) {
      const own = origin?.op === 'Transpose' && origin.outputs[0] === name && same(shape, last) ? origin : undefined;
      transposed = own ? name : this.context.freshName(`${base}_channels_last`);
      const written = { name: own?.name ?? transposed, op: 'Transpose', inputs: [base] };
      this.emit({ ...written, attributes: { perm: TO_CHANNELS_LAST } }, transposed, last);
      this.reshaped.set(key, transposed);
    }
    return transposed;
  }

  /**
   * Writes a Pad, a choice of channels or half a mean that a reader cannot take over, and makes the value a view of
   * that.
   * @throws FacetrainError unless all is kept
   */
  private writePending(name: string, view: View, reader: GraphNode | undefined): void {
    if (!this.context.keepsAll) return this.refusePending(view, reader);
    const { node, channels, pads, averaged, channelsLast, origin } = view;
    if (averaged) {
      const whole = this.context.freshName(`${name}_whole`);
      this.views.set(whole, averaged.of);
      const input = this.materialise(whole, node);
      const shape = averaged.of.shape.map((dim, axis) => (averaged.axes.includes(axis) ? 1 : dim));
      // The value keeps its name where it is this mean: an INT7 file is read as it was written.
      const isOwn = same(shape, view.shape) && !this.emitted.has(name);
      const mean = isOwn ? name : this.context.freshName(`${name}_mean`);
      const nodeName = isOwn && node?.op === 'ReduceMean' ? node.name : this.context.freshName(`${mean}_reduce`);
      const attributes = { axes: averaged.axes.map((axis) => axis + 1), keepdims: 1 };
      this.emit({ name: nodeName, op: 'ReduceMean', inputs: [input], attributes }, mean, shape);
      this.views.set(name, { base: mean, shape: view.shape, ...(node && { node }) });
      return;
    }
    if (!channels && !pads) return;
    const base = this.writeChoice(name, view);
    this.views.set(name, { base, shape: view.shape, ...(node && { node }), channelsLast, origin });
  }

  /** Writes the chosen channels of a view as a Gather, and zeros around it as a Pad. @returns the value */
  private writeChoice(name: string, { base, channels, pads, node }: View): string {
    const [count, height, width] = this.shapes.get(base) as [number, number, number];
    // The value keeps its name, where it is what the Gather or the Pad computes.
    const isFree = (shape: number[]) => !this.emitted.has(name) && same(shape, this.context.pictureShape(name) ?? []);
    const valueName = (shape: number[], isLast: boolean) =>
      isLast && isFree(shape) ? name : this.context.freshName(`${name}_${isLast ? 'value' : 'channels'}`);
    const nodeName = (value: string, op: string) =>
      value === name && node?.op === op ? node.name : this.context.freshName(`${value}_${op.toLowerCase()}`);
    const once = (key: unknown[], write: () => string) => {
      const written = this.reshaped.get(JSON.stringify(key)) ?? write();
      this.reshaped.set(JSON.stringify(key), written);
      return written;
    };
    // Two nodes of the file that choose the same become one, also where one of them pads as well.
    const value =
      channels &&
      once([base, 'channels', channels], () => {
        const shape = [channels.length, height, width];
        const chosen = valueName(shape, !pads);
        const inputs = [base, this.context.constant(`${chosen}.channels`, int64(channels))];
        this.emit({ name: nodeName(chosen, 'Gather'), op: 'Gather', inputs, attributes: { axis: 1 } }, chosen, shape);
        return chosen;
      });
    if (!pads) return value!;
    return once([value ?? base, 'pads', pads], () => {
      const [top, left, bottom, right] = pads;
      const shape = [channels?.length ?? count, height + top + bottom, width + left + right];
      const padded = valueName(shape, true);
      const amounts = this.context.constant(`${padded}.pads`, int64([0, 0, top, left, 0, 0, bottom, right]));
      const inputs = [value ?? base, amounts];
      this.emit({ name: nodeName(padded, 'Pad'), op: 'Pad', inputs, attributes: {} }, padded, shape);
      return padded;
    });
  }

  /** @throws FacetrainError for a Pad, a choice of channels or half a mean that this reader cannot take over */
  private refusePending({ node, channels, pads, averaged }: View, reader: GraphNode | undefined): void {
    if (!node || !(channels || pads || averaged)) return;
    const where = reader && reader !== node ? ` in front of node "${reader.name}" (${reader.op})` : ' here';
    if (pads) throw this.context.refuse(node, `pads${where}`, 'zeros in front of a Conv');
    if (channels) throw this.context.refuse(node, `chooses channels${where}`, 'channels in front of a Conv');
    throw this.context.refuse(node, 'takes the mean over one of two axes', 'the mean over height and width');
  }

  /** Copies a node that has no canonical form, reading values of the shapes that the file has. */
  private copy(node: GraphNode): void {
    const inputs = node.inputs.map((name) => this.materialise(name, node));
    this.nodes.push({ ...node, inputs });
    for (const output of node.outputs) {
      this.emitted.add(output);
      const shape = this.context.pictureShape(output);
      if (!shape) continue;
      this.shapes.set(output, shape);
      this.views.set(output, { base: output, shape, node });
    }
  }

  /** Emits a node that computes a base of the view `shape`, and defines its view. */
  private define(node: GraphNode, inputs: string[], baseShape: number[], view: Omit<View, 'base' | 'node'>): void {
    const output = node.outputs[0]!;
    const isPlain = same(baseShape, view.shape) && !view.channels && !view.pads && !view.channelsLast;
    const base = isPlain ? output : this.context.freshName(`${output}_base`);
    this.emit({ ...node, inputs }, base, baseShape);
    this.views.set(output, { ...view, base, node, origin: undefined });
  }

  /**
   * The view on which a function of each number or channel works: that of a vector where the base is a map of one
   * pixel, so that what follows a pool stays behind its Flatten.
   */
  private settled(name: string): View | undefined {
    const view = this.views.get(name);
    if (!view || view.channels || view.pads || view.averaged || view.channelsLast) return view;
    const base = this.shapes.get(view.base)!;
    if (base.length === 1 || same(base, view.shape) || product(base) !== base[0] || !this.isVector(view)) return view;
    return { ...view, base: this.vector(name, view) };
  }

  /** @returns whether the node was written in canonical form, or has become a view */
  private rewrite(node: GraphNode): boolean {
    const output = node.outputs[0]!;
    const shape = this.context.pictureShape(output);
    const view = this.views.get(node.inputs[0]!);
    if (ARITHMETIC.has(node.op)) return shape !== undefined && this.arithmetic(node, shape);
    if (node.op === 'Concat') return shape !== undefined && this.concat(node, shape);
    if (!view || !shape) return false;
    if (view.averaged) return node.op === 'ReduceMean' ? this.mean(node, view, shape) : false;
    if (RESHAPING.has(node.op)) return this.reshape(node, view, shape);
    if (UNARY.has(node.op)) return this.unary(node, this.settled(node.inputs[0]!)!);
    if (view.channelsLast && !ALSO_CHANNELS_LAST.has(node.op)) return false;
    switch (node.op) {
      case 'AveragePool':
        return this.averagePool(node, view, shape);
      case 'BatchNormalization':
        return this.batchNorm(node, this.settled(node.inputs[0]!)!);
      case 'Conv':
        return this.conv(node, view, shape);
      case 'Gather':
      case 'Slice':
      case 'Split':
        return this.chooseChannels(node, view, shape);
      case 'Gemm':
      case 'MatMul':
        return this.product(node, view, shape);
      case 'GlobalAveragePool':
        return this.average(node, view, shape);
      case 'PRelu':
        return this.prelu(node, this.settled(node.inputs[0]!)!);
      case 'Pad':
        return this.pad(node, view, shape);
      case 'ReduceMean':
      case 'ReduceSum':
        return this.mean(node, view, shape);
      case 'Transpose':
        return this.transpose(node, view, shape);
      default:
        return false;
    }
  }

  private reshape(node: GraphNode, view: View, shape: number[]): boolean {
    if (product(shape) !== product(view.shape)) return false;
    const { channels, pads } = view;
    let { channelsLast } = view;
    if (!same(shape, view.shape)) {
      if (pads) return false;
      const [count, height, width] = this.shapes.get(view.base) as [number, number, number];
      const last = [height, width, channels?.length ?? count];
      if (channels) {
        // Of chosen channels, the axis itself may go and come, when it is one, in front or behind.
        const isOne = channels.length === 1;
        const isFirst = same(shape, [channels.length, height, width]) && (isOne || !channelsLast);
        const isLast = same(shape, last) && (isOne || channelsLast);
        if (!isFirst && !isLast && !(isOne && same(shape, [height, width]))) return false;
        if (isFirst || isLast) channelsLast = !isFirst;
      } else if (channelsLast && !same(shape, last)) {
        // Of one channel or one pixel, both orders are one.
        if (count === 1 || height * width === 1) channelsLast = undefined;
        else if (!this.isVector({ shape })) return false;
      }
    }
    this.views.set(node.outputs[0]!, { ...view, shape, channelsLast, node, origin: node });
    return true;
  }

  /**
   * A Transpose that moves axes of size 1 alone changes no order, nor do two that cancel out. One between channels
   * first and last is a view, so operators may stand between the two that cancel out.
   */
  private transpose(node: GraphNode, view: View, shape: number[]): boolean {
    const order = intsAttribute(node, 'perm', []);
    const [input, output] = [node.inputs[0]!, node.outputs[0]!];
    const first = this.transposed.get(input);
    const combined = first ? { input: first.input, order: order.map((axis) => first.order[axis]!) } : { input, order };
    this.transposed.set(output, combined);
    const source = first ? this.views.get(first.input)! : view;
    const moved = combined.order.slice(1).filter((axis) => source.shape[axis - 1] !== 1);
    const isMixed = moved.some((axis, i) => i > 0 && axis < moved[i - 1]!);
    const isPlain = !source.channels && !source.pads && !source.averaged;
    if (combined.order[0] === 0 && isPlain && !isMixed && this.reshape(node, source, shape)) return true;
    if (this.shuffle(node, view, shape, order)) return true;
    if (view.averaged || view.shape.length !== 3) return false;
    if (!same(order, view.channelsLast ? TO_CHANNELS_FIRST : TO_CHANNELS_LAST)) return false;
    const map = this.context.keepsAll ? this.asMap(node, view) : view;
    const isWhole = map.channelsLast || map.channels || map.pads || same(map.shape, this.shapes.get(map.base)!);
    if (!isWhole) return false;
    this.views.set(output, { ...map, shape, channelsLast: !map.channelsLast, node, origin: node });
    return true;
  }

  /** A Transpose of groups of channels, [N, a, b, H, W] to [N, b, a, H, W], is a choice of channels (ShuffleNet). */
  private shuffle(node: GraphNode, view: View, shape: number[], order: number[]): boolean {
    const base = this.shapes.get(view.base)!;
    const [a, b, ...area] = view.shape as [number, number, ...number[]];
    const isPlain = !view.channels && !view.pads && !view.averaged && !view.channelsLast && this.context.keepsAll;
    if (!isPlain || base.length !== 3 || !same(order, [0, 2, 1, 3, 4]) || !same(area, base.slice(1))) return false;
    if (a * b !== base[0]) return false;
    const channels = Array.from({ length: a * b }, (_, i) => (i % a) * b + Math.floor(i / a));
    this.views.set(node.outputs[0]!, { base: view.base, shape, node, channels });
    return true;
  }

  private unary(node: GraphNode, view: View): boolean {
    if (node.op !== 'Relu' && isRelu(node, this.context.constantOf))
      return this.unary({ ...node, op: 'Relu', inputs: node.inputs.slice(0, 1) }, view);
    if (node.op === 'Max' || (view.pads && !KEEPS_ZERO.has(node.op))) return false;
    this.define(node, [view.base, ...node.inputs.slice(1)], this.shapes.get(view.base)!, view);
    return true;
  }

  private prelu(node: GraphNode, view: View): boolean {
    const slope = this.perChannel(node, 1, view, `${node.name}.slope`);
    if (slope === undefined) return false;
    this.define(node, [view.base, slope], this.shapes.get(view.base)!, view);
    return true;
  }

  private batchNorm(node: GraphNode, view: View): boolean {
    const shape = this.shapes.get(view.base)!;
    const count = view.shape[0]!;
    if (view.pads || !(view.channels ? view.channels.length === shape[0] : count === shape[0])) return false;
    const parameters = node.inputs.slice(1).map((name) => this.context.constantOf(name));
    if (parameters.some((tensor) => tensor?.data.length !== count)) return false;
    const names = node.inputs.slice(1).map((name, i) => {
      const data = inBaseOrder(parameters[i]!.data as Float32Array, view.channels);
      if (!data) return undefined;
      const isAsGiven = !view.channels && parameters[i]!.dims.length === 1;
      return isAsGiven ? name : this.context.constant(`${node.name}.${i + 1}`, { dims: [count], data });
    });
    if (!names.every((name) => name !== undefined)) return false;
    this.define(node, [view.base, ...names], shape, view);
    return true;
  }

  private arithmetic(node: GraphNode, shape: number[]): boolean {
    const [a, b] = node.inputs.map((name) => this.views.get(name));
    if (a && b) {
      const baseShape = this.shapes.get(a.base)!;
      const isAlike =
        same(a.shape, b.shape) &&
        same(baseShape, this.shapes.get(b.base)!) &&
        same(a.channels ?? [], b.channels ?? []) &&
        !a.channelsLast === !b.channelsLast &&
        !a.pads &&
        !b.pads &&
        !a.averaged &&
        !b.averaged;
      if (!isAlike) return false;
      this.define(node, [a.base, b.base], baseShape, a);
      return true;
    }
    const view = this.settled(node.inputs[a ? 0 : 1]!);
    if (!view || view.averaged || view.pads || !same(view.shape, shape)) return false;
    const constant = this.perChannel(node, a ? 1 : 0, view, `${node.name}.constant`);
    if (constant === undefined) return false;
    this.define(node, a ? [view.base, constant] : [constant, view.base], this.shapes.get(view.base)!, view);
    return true;
  }

  /**
   * A constant that is broadcast to a view, as a constant for its base: one number, or one for each channel.
   * @returns its name; undefined when it is neither
   */
  private perChannel(node: GraphNode, index: number, view: View, preferredName: string): string | undefined {
    const name = node.inputs[index]!;
    const tensor = this.context.constantOf(name);
    if (!(tensor?.data instanceof Float32Array)) return undefined;
    const baseShape = this.shapes.get(view.base)!;
    const { dims } = tensor;
    const data: Float32Array = tensor.data;
    if (data.length === 1) {
      const fits = dims.length === 1 || (dims.length === 0 && node.op !== 'PRelu');
      return fits ? name : this.context.constant(preferredName, { dims: [1], data });
    }
    const channels = baseShape[0]!;
    const chosen = view.channels?.length ?? channels;
    const values = this.channelValues(node, view, dims, data, chosen);
    const ordered = values && inBaseOrder(values, view.channels, channels);
    if (!ordered) return undefined;
    const wanted = [channels, ...baseShape.slice(1).map(() => 1)];
    return ordered === data && same(wanted, dims)
      ? name
      : this.context.constant(preferredName, { dims: wanted, data: ordered });
  }

  /** The values of a constant by the channels of a view; undefined when they differ within a channel. */
  private channelValues(
    node: GraphNode,
    view: View,
    dims: number[],
    data: Float32Array,
    channels: number,
  ): Float32Array | undefined {
    const rank = view.shape.length;
    if (view.channelsLast) {
      const isLast = dims.at(-1) === channels && data.length === channels && dims.length <= rank + 1;
      return rank > 1 && isLast ? data : undefined;
    }
    // Before operator set 7 a slope was [C]; some exporters write it so. Where it fits the last axis, it belongs to
    // that.
    if (node.op === 'PRelu' && rank === 3 && same(dims, [channels]) && view.shape[2] !== channels) return data;
    const padded = [...new Array<number>(Math.max(0, rank + 1 - dims.length)).fill(1), ...dims];
    if (padded.length !== rank + 1 || padded[0] !== 1) return undefined;
    const own = padded.slice(1);
    if (own.some((dim, i) => dim !== 1 && dim !== view.shape[i])) return undefined;
    if (view.shape[0] === channels && own[0] === channels && data.length === channels) return data;
    // A view of [C, 1, 1], such as [1, C]: a number for each element is one for each channel.
    if (product(view.shape) !== channels) return undefined;
    return broadcastTo({ dims: own, data }, view.shape)?.data as Float32Array | undefined;
  }

  private conv(node: GraphNode, view: View, shape: number[]): boolean {
    if (view.shape.length !== 3) return false;
    // Weights of zero for the channels of a map that are not chosen would be multiplied, too.
    if (this.context.keepsAll && view.channels && this.shapes.get(view.base)![0]! > MOST_COLORS) return false;
    if (!view.channels && !view.pads) return this.productOfOnePixel(node, view, shape);
    const [, weightName, bias] = node.inputs as [string, string, string | undefined];
    if (view.channels && intAttribute(node, 'group', 1) !== 1) return this.depthwise(node, view, shape);
    let weight = weightName;
    if (view.channels) {
      const tensor = this.context.constantOf(weightName);
      if (!(tensor?.data instanceof Float32Array) || tensor.dims.length !== 4) return false;
      weight = this.context.constant(
        `${node.name}.weight`,
        forChannels({ dims: tensor.dims, data: tensor.data }, view.channels, this.shapes.get(view.base)![0]!),
      );
    }
    const attributes = { ...node.attributes };
    if (view.pads) {
      const own = intsAttribute(node, 'pads', [0, 0, 0, 0]);
      attributes.pads = own.map((pad, i) => pad + view.pads![i]!);
    }
    const baseShape = this.shapes.get(view.base)!;
    const unpadded = [baseShape[0]!, ...view.shape.slice(1).map((size, i) => size - padsOf(view, i))];
    if (!view.channels && !same(unpadded, baseShape)) return false;
    const output = node.outputs[0]!;
    this.emit({ ...node, inputs: [view.base, weight, ...(bias ? [bias] : [])], attributes }, output, shape);
    this.views.set(output, { base: output, shape, node });
    return true;
  }

  /** A convolution of vectors that were made [N, d, 1, 1], as a Gemm. */
  private productOfOnePixel(node: GraphNode, view: View, shape: number[]): boolean {
    const [features, height, width] = view.shape as [number, number, number];
    if (same(view.shape, this.shapes.get(view.base)!) || height * width !== 1 || !same(shape.slice(1), [1, 1]))
      return false;
    const weight = this.context.constantOf(node.inputs[1]!);
    const isPlain = weight && same(weight.dims.slice(1), [features, 1, 1]) && intAttribute(node, 'group', 1) === 1;
    if (!isPlain || intsAttribute(node, 'pads', []).some((pad) => pad !== 0)) return false;
    const matrix = this.context.constant(`${node.name}.matrix`, {
      dims: weight.dims.slice(0, 2),
      data: weight.data,
    });
    const gemm = { ...node, op: 'Gemm', attributes: { transB: 1 } };
    this.define(gemm, [this.vector(node.inputs[0]!, view), matrix, ...node.inputs.slice(2)], shape.slice(0, 1), {
      shape,
    });
    return true;
  }

  /** The name of a value as vectors [N, d]. */
  private vector(name: string, view: View): string {
    const shape = [product(view.shape)];
    if (same(view.shape, shape)) return this.materialise(name, view.node);
    const flat = this.context.freshName(`${name}_vector`);
    this.views.set(flat, { base: view.base, shape });
    return this.materialise(flat, view.node);
  }

  /** A kernel for each channel: the kernels go to the channels of the base, and the choice stays. */
  private depthwise(node: GraphNode, view: View, shape: number[]): boolean {
    const count = this.shapes.get(view.base)![0]!;
    const [weight, bias] = node.inputs.slice(1).map((name) => this.context.constantOf(name));
    const isOneToOne = weight?.dims[0] === count && intAttribute(node, 'group', 1) === count;
    if (view.pads || !isOneToOne || (node.inputs[2] && !bias)) return false;
    const constants = [weight, ...(bias ? [bias] : [])].map(({ dims, data }, i) => {
      const ordered = rowsInBaseOrder(data as Float32Array, view.channels!, count);
      return ordered && this.context.constant(`${node.name}.${i + 1}`, { dims, data: ordered });
    });
    if (!constants.every((name) => name !== undefined)) return false;
    this.define(node, [view.base, ...constants], shape, { shape, channels: view.channels });
    return true;
  }

  private averagePool(node: GraphNode, view: View, shape: number[]): boolean {
    const kernel = intsAttribute(node, 'kernel_shape', []);
    const pads = intsAttribute(node, 'pads', [0, 0, 0, 0]);
    const isPadded = pads.some((pad) => pad !== 0);
    const isWhole = same(shape.slice(1), [1, 1]) && same(kernel, view.shape.slice(1)) && !isPadded;
    if (!view.pads) return isWhole && this.average(node, view, shape);
    // The zeros of a Pad count as values.
    if (view.channels || (isPadded && intAttribute(node, 'count_include_pad', 0) !== 1)) return false;
    if (intAttribute(node, 'ceil_mode', 0) === 1) return false;
    const sums = pads.map((pad, i) => pad + view.pads![i]!);
    // ONNX Runtime refuses a pool of which some windows see nothing but its pads.
    if (sums.some((pad, i) => pad >= kernel[i % 2]!)) return false;
    const output = node.outputs[0]!;
    const attributes = { ...node.attributes, pads: sums, count_include_pad: 1 };
    this.emit({ ...node, inputs: [view.base], attributes }, output, shape);
    this.views.set(output, { base: output, shape, node });
    return true;
  }

  /** The mean over all but the channels. */
  private average(node: GraphNode, view: View, shape: number[]): boolean {
    if (view.channels || view.pads || view.averaged) return false;
    const hasOthers = () => view.shape[0] !== this.shapes.get(base)![0];
    let { base } = view;
    const isOperand = this.views.get(node.inputs[0]!) === view;
    if (hasOthers() && this.context.keepsAll && view.shape.length === 3 && isOperand)
      ({ base } = this.asMap(node, view));
    if (hasOthers()) return false;
    if (product(view.shape) === view.shape[0]) {
      this.views.set(node.outputs[0]!, { base, shape, node, origin: node });
      return true;
    }
    const baseShape = this.shapes.get(base)!;
    if (baseShape.length !== 3) return false;
    const pooled = { ...node, op: 'GlobalAveragePool', attributes: {} };
    this.define(pooled, [base], [baseShape[0]!, 1, 1], { shape });
    return true;
  }

  /** ReduceMean and ReduceSum, whose axes may come in two nodes, such as x.mean(3).mean(2). */
  private mean(node: GraphNode, view: View, shape: number[]): boolean {
    if (view.channelsLast) return this.meanOfChannelsLast(node, view, shape);
    const given =
      node.op === 'ReduceSum' ? this.context.integers(node.inputs[1] ?? '') : intsAttribute(node, 'axes', []);
    if (!given?.length || view.channels || view.pads) return false;
    const axes = given.map((axis) => axisIndex(axis, view.shape.length + 1) - 1);
    if (axes.some((axis) => !(axis >= 0))) return false;
    const { of } = view.averaged ?? { of: view };
    const averaged = view.averaged ? [...view.averaged.axes, ...originalAxes(view, axes)] : axes;
    const missing = of.shape.flatMap((dim, axis) => (axis > 0 && dim !== 1 && !averaged.includes(axis) ? [axis] : []));
    // A mean over axes of size 1 changes nothing.
    if (averaged.every((axis) => of.shape[axis] === 1)) return this.reshape(node, { ...of }, shape);
    if (averaged.includes(0)) return false;
    if (missing.length > 0) {
      if (node.op !== 'ReduceMean') return false;
      this.views.set(node.outputs[0]!, { base: of.base, shape, node, averaged: { axes: averaged, of } });
      return true;
    }
    if (node.op === 'ReduceMean') return this.average(node, of, shape);
    const mean = {
      ...node,
      name: this.context.freshName(`${node.name}_mean`),
      outputs: [this.context.freshName(`${node.outputs[0]!}_mean`)],
    };
    if (!this.average(mean, of, shape)) return false;
    const pooled = this.views.get(mean.outputs[0]!)!;
    const count = this.context.constant(`${node.name}.count`, {
      dims: [1],
      data: Float32Array.of(product(of.shape) / of.shape[0]!),
    });
    this.define({ ...node, op: 'Mul', attributes: {} }, [pooled.base, count], this.shapes.get(pooled.base)!, pooled);
    return true;
  }

  /** The mean over height and width of [N, H, W, C]. */
  private meanOfChannelsLast(node: GraphNode, { base, shape: own, channels, pads }: View, shape: number[]): boolean {
    const axes = intsAttribute(node, 'axes', []).map((axis) => axisIndex(axis, own.length + 1));
    if (channels || pads || own.length !== 3 || !same(axes.toSorted(), [1, 2])) return false;
    return this.average(node, { base, shape: this.shapes.get(base)! }, shape);
  }

  /** A product of a vector that was made of a map with its channels last: the rows of the matrix change their order. */
  private productOfChannelsLast(node: GraphNode, { base, shape: own, channels, pads }: View, shape: number[]): boolean {
    const matrix = this.context.constantOf(node.inputs[1]!);
    const [count, ...area] = this.shapes.get(base) as [number, ...number[]];
    const [pixels, features] = [product(area), product(own)];
    if (channels || pads || own.at(-1) !== features || !(matrix?.data instanceof Float32Array)) return false;
    if (node.op === 'Gemm' && intAttribute(node, 'transA', 0) === 1) return false;
    const isTransposed = node.op === 'Gemm' && intAttribute(node, 'transB', 0) === 1;
    const outputs = matrix.data.length / features;
    if (!same(matrix.dims, isTransposed ? [outputs, features] : [features, outputs])) return false;
    const [row, column] = isTransposed ? [1, features] : [outputs, 1];
    const data = new Float32Array(matrix.data.length);
    for (let output = 0; output < outputs; output++)
      for (let pixel = 0; pixel < pixels; pixel++)
        for (let channel = 0; channel < count; channel++)
          data[(channel * pixels + pixel) * row + output * column] =
            matrix.data[(pixel * count + channel) * row + output * column]!;
    const ordered = this.context.constant(`${node.name}.matrix`, { dims: matrix.dims, data });
    const vector = this.vector(node.inputs[0]!, { base, shape: [count, ...area] });
    this.define(node, [vector, ordered, ...node.inputs.slice(2)], [shape.at(-1)!], { shape });
    return true;
  }

  /** Gemm and MatMul of vectors and a constant matrix. */
  private product(node: GraphNode, view: View, shape: number[]): boolean {
    if (this.context.keepsAll && node.op === 'MatMul' && this.productOfRows(node, view, shape)) return true;
    if (view.channelsLast) return this.productOfChannelsLast(node, view, shape);
    const features = view.shape.at(-1);
    const matrix = this.context.constantOf(node.inputs[1]!);
    const isPlain = !view.channels && !view.pads && product(view.shape) === features;
    if (!isPlain || matrix?.dims.length !== 2 || node.op === 'Gemm' || view.shape.length === 1) return false;
    // [N, 1, d]
    this.define(node, [this.vector(node.inputs[0]!, view), ...node.inputs.slice(1)], [shape.at(-1)!], { shape });
    return true;
  }

  /**
   * A product of the rows of a picture, [N, rows, d] or [N, H, W, d], and a constant matrix, as a convolution of one
   * pixel with the features as channels: a convolution is quantized.
   */
  private productOfRows(node: GraphNode, view: View, shape: number[]): boolean {
    const matrix = this.context.constantOf(node.inputs[1]!);
    const features = view.shape.at(-1)!;
    const isRows = [2, 3].includes(view.shape.length) && product(view.shape) > features;
    if (!isRows || view.channels || view.pads || !(matrix?.data instanceof Float32Array)) return false;
    if (matrix.dims.length !== 2 || matrix.dims[0] !== features) return false;
    const outputs = matrix.dims[1]!;
    const data = new Float32Array(matrix.data.length);
    for (let feature = 0; feature < features; feature++)
      for (let output = 0; output < outputs; output++)
        data[output * features + feature] = matrix.data[feature * outputs + output]!;
    const base = this.featuresFirst(node, view);
    const weight = this.context.constant(`${node.name}.weight`, { dims: [outputs, features, 1, 1], data });
    const conv = { ...node, op: 'Conv', attributes: { kernel_shape: [1, 1] } };
    const baseShape = [outputs, ...this.shapes.get(base)!.slice(1)];
    // Of one channel, the order is the same.
    this.define(conv, [base, weight], baseShape, { shape, channelsLast: outputs > 1 });
    return true;
  }

  /** The rows that a node reads as a map whose channels are their features: [d, 1, rows] or [d, H, W]. */
  private featuresFirst(node: GraphNode, view: View): string {
    const features = view.shape.at(-1)!;
    const own = this.shapes.get(view.base)!;
    if (view.channelsLast && own.length === 3 && own[0] === features) return view.base;
    const rows = view.channelsLast ? this.materialise(node.inputs[0]!, node) : view.base;
    const key = JSON.stringify([rows, view.shape, 'features first']);
    const existing = this.reshaped.get(key);
    if (existing !== undefined) return existing;
    const [height, width] = (view.shape.length === 3 ? view.shape : [1, view.shape[0]!]) as [number, number];
    const map = this.context.freshName(`${rows}_map`);
    const first = [features, height, width];
    this.views.set(map, { base: rows, shape: features === 1 ? first : [height, width, features] });
    const source = this.materialise(map, node);
    if (features === 1) return source;
    const turned = this.context.freshName(`${rows}_features_first`);
    const attributes = { perm: TO_CHANNELS_FIRST };
    this.emit({ name: turned, op: 'Transpose', inputs: [source], attributes }, turned, first);
    this.reshaped.set(key, turned);
    return turned;
  }

  private pad(node: GraphNode, view: View, shape: number[]): boolean {
    const pads = this.context.integers(node.inputs[1] ?? '');
    const value = node.inputs[2] ? Number(this.context.constantOf(node.inputs[2])?.data[0] ?? NaN) : 0;
    const mode = node.attributes.mode ?? 'constant';
    if (!pads || pads.length !== 2 * (view.shape.length + 1)) return false;
    if (pads.every((pad) => pad === 0)) return this.reshape(node, view, shape);
    // Along height, width and the channels; the batch is axis 0.
    const [height, width, channels] = view.channelsLast ? [1, 2, 3] : [2, 3, 1];
    const [top, left] = [pads[height]!, pads[width]!];
    const [bottom, right] = [pads[4 + height]!, pads[4 + width]!];
    const others = [pads[0], pads[channels], pads[4], pads[4 + channels]];
    if (mode !== 'constant' || value !== 0 || view.shape.length !== 3 || pads.some((pad) => pad < 0)) return false;
    if (others.some((pad) => pad !== 0)) return false;
    const [t, l, b, r] = view.pads ?? [0, 0, 0, 0];
    const total: View['pads'] = [t + top, l + left, b + bottom, r + right];
    this.views.set(node.outputs[0]!, { ...this.asMap(node, view), shape, node, pads: total });
    return true;
  }

  /** The view of a map that a node reads: a value of another shape, such as a vector, becomes that map. */
  private asMap(node: GraphNode, view: View): View {
    const isMap = view.channels || view.channelsLast || view.pads || same(view.shape, this.shapes.get(view.base)!);
    if (isMap) return view;
    return { base: this.materialise(node.inputs[0]!, node), shape: view.shape, ...(view.node && { node: view.node }) };
  }

  /** Gather, Slice and Split along the channels. A Slice may also take everything. */
  private chooseChannels(node: GraphNode, view: View, shape: number[]): boolean {
    const channelAxis = view.channelsLast ? 3 : 1;
    const channels = view.shape[channelAxis - 1]!;
    if (view.pads || view.shape.length !== 3) return false;
    const before = view.channels ?? Array.from({ length: channels }, (_, i) => i);
    const choose = (output: string, chosen: number[], dims: number[]) => {
      if (!chosen.every((index) => index >= 0 && index < channels)) return false;
      const order = chosen.map((index) => before[index]!);
      const { base, channelsLast } = this.asMap(node, view);
      this.views.set(output, this.chosen({ base, shape: dims, node, channelsLast, channels: order }));
      return true;
    };
    const axis = axisIndex(intAttribute(node, 'axis', 0), 4);
    if (node.op === 'Gather') {
      const indices = this.context.integers(node.inputs[1]!);
      const isKnown =
        axis === channelAxis && indices && (shape.length === 3 || (shape.length === 2 && indices.length === 1));
      if (!isKnown) return false;
      const chosen = indices.map((index) => axisIndex(index, channels));
      return choose(node.outputs[0]!, chosen, shape);
    }
    if (node.op === 'Split') {
      let first = 0;
      return (
        axis === channelAxis &&
        node.outputs.every((output) => {
          const part = this.context.pictureShape(output);
          if (!part) return false;
          const length = part[channelAxis - 1]!;
          const chosen = Array.from({ length }, (_, i) => first + i);
          first += length;
          return output === '' || choose(output, chosen, part);
        })
      );
    }
    const [starts, ends, axes, steps] = [1, 2, 3, 4].map((i) =>
      node.inputs[i] ? this.context.integers(node.inputs[i]) : undefined,
    );
    if (!starts || !ends || (node.inputs[3] && !axes) || (node.inputs[4] && !steps)) return false;
    let chosen = Array.from({ length: channels }, (_, i) => i);
    for (const [i, start] of starts.entries()) {
      const at = axisIndex(axes?.[i] ?? i, 4);
      const step = steps?.[i] ?? 1;
      const size = [NaN, ...view.shape][at] ?? NaN;
      const { first, length } = sliceIndices(size, start, ends[i]!, step);
      if (at === channelAxis) chosen = Array.from({ length }, (_, n) => chosen[first + n * step]!);
      else if (!(at > 1 && first === 0 && length === size && step === 1)) return false;
    }
    return choose(node.outputs[0]!, chosen, shape);
  }

  /** Puts channels of one value together. */
  private concat(node: GraphNode, shape: number[]): boolean {
    const views = node.inputs.map((name) => this.views.get(name));
    const [first] = views;
    if (!first) return false;
    const { base, channelsLast } = first;
    if (axisIndex(intAttribute(node, 'axis', 0), shape.length + 1) !== (channelsLast ? 3 : 1)) return false;
    const channels = views.flatMap((view) => {
      const isAlike = view?.base === base && !view.channelsLast === !channelsLast;
      return isAlike && view.channels && view.shape.length === 3 && !view.pads ? view.channels : [NaN];
    });
    if (channels.some(Number.isNaN)) return false;
    this.views.set(node.outputs[0]!, this.chosen({ base, shape, node, channelsLast, channels }));
    return true;
  }

  /** A view of chosen channels, without the choice when it is all of them in their order. */
  private chosen({ channels, ...view }: View & { channels: number[] }): View {
    const all = this.shapes.get(view.base)!;
    const whole = view.channelsLast ? [...all.slice(1), all[0]!] : all;
    const isAll = channels.every((channel, i) => channel === i) && same(view.shape, whole);
    return isAll ? view : { ...view, channels };
  }
}

/** Whether a view has other numbers than its base. */
function isPending(view: View | undefined): boolean {
  return view !== undefined && (view.channels ?? view.pads ?? view.averaged) !== undefined;
}

/** What a Pad adds along height (0) or width (1). */
function padsOf({ pads = [0, 0, 0, 0] }: View, axis: number): number {
  return pads[axis]! + pads[axis + 2]!;
}

/** Axes of a view of which a part was averaged, as axes of the value that is averaged. */
function originalAxes({ shape, averaged }: View, axes: number[]): number[] {
  const { axes: done, of } = averaged!;
  // With keepdims the axes are the same; without, those that were averaged are gone.
  if (shape.length === of.shape.length) return axes;
  const left = of.shape.map((_, axis) => axis).filter((axis) => !done.includes(axis));
  return axes.map((axis) => left[axis] ?? NaN);
}

/**
 * One value for each channel of a view, as one for each channel of its base.
 * @returns undefined when the view does not have each channel of the base once
 */
function inBaseOrder(
  values: Float32Array,
  channels: number[] | undefined,
  count = values.length,
): Float32Array | undefined {
  if (!channels) return values;
  if (channels.length !== count || new Set(channels).size !== count) return undefined;
  const ordered = new Float32Array(count);
  channels.forEach((channel, i) => {
    ordered[channel] = values[i]!;
  });
  return ordered;
}

/** As inBaseOrder, for several values of each channel. */
function rowsInBaseOrder(values: Float32Array, channels: number[], count: number): Float32Array | undefined {
  const positions = inBaseOrder(
    Float32Array.from(channels, (_, i) => i),
    channels,
    count,
  );
  if (!positions) return undefined;
  const row = values.length / count;
  const ordered = new Float32Array(values.length);
  positions.forEach((from, channel) => {
    ordered.set(values.subarray(from * row, (from + 1) * row), channel * row);
  });
  return ordered;
}

/** Kernels on chosen channels as kernels on all `count` channels; zero for those that are not chosen. */
function forChannels({ dims, data }: Tensor<Float32Array>, channels: number[], count: number): Tensor {
  const [outputs, inputs, height, width] = dims as [number, number, number, number];
  const area = height * width;
  const result = new Float32Array(outputs * count * area);
  for (let output = 0; output < outputs; output++)
    channels.forEach((channel, input) => {
      for (let i = 0; i < area; i++)
        result[(output * count + channel) * area + i]! += data[(output * inputs + input) * area + i]!;
    });
  return { dims: [outputs, count, height, width], data: result };
}
