/**
 * Translates one node from the file's operator set to operator set 17:
 *
 * - Attributes that became inputs (Clip, Squeeze, ...) become inputs; inputs that were attributes in operator set 17
 *   (the axes of ReduceMean) become attributes.
 * - `auto_pad` becomes explicit pads. A Reshape's target becomes a constant that holds for any batch size.
 * - Attributes that change nothing here are removed.
 */
import type { FacetrainError } from '@facetrain/api';
import type { GraphNode, Tensor } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import type { ShapeInference } from './infer-shapes.ts';
import { axisIndex } from './known-integers.ts';
import { dataTypeNumber } from './proto.ts';

export interface Context {
  /** Operator set of the file. */
  opset: number;
  /** Batch size of the file's input; null when it is free. */
  fixedBatch: number | null;
  /** Shapes for one picture and for two. */
  batches: [ShapeInference, ShapeInference];
  refuse: (node: GraphNode, found: string, allowed: string) => FacetrainError;
  /** Adds an initializer, and returns its name: the given one, or one like it. */
  constant: (name: string, tensor: Tensor) => string;
  /** Whether what no canonical operator computes is kept: for the quantizer, whose runtime has one picture. */
  keepsAll: boolean;
  isConstant: (name: string) => boolean;
}

/**
 * Integers as a constant. "To the end" is the largest int64 in a file. A number cannot hold it, and the largest safe
 * integer has the same meaning.
 */
function int64Tensor(values: number[]): Tensor {
  const { MIN_SAFE_INTEGER: least, MAX_SAFE_INTEGER: most } = Number;
  return {
    dims: [values.length],
    data: BigInt64Array.from(values, (value) => BigInt(Math.min(Math.max(value, least), most))),
  };
}

/** Changes a node, in place, to its form in operator set 17. @throws FacetrainError UnsupportedOperator */
export function translateNode(node: GraphNode, context: Context): void {
  const { opset, refuse } = context;
  const { attributes } = node;
  switch (node.op) {
    case 'Clip':
      if (opset < 11) attributesToInputs(node, { min: 'float', max: 'float' }, context);
      break;
    case 'Squeeze':
    case 'Unsqueeze':
    case 'ReduceSum':
      if (opset < 13) attributesToInputs(node, { axes: 'ints' }, context);
      if (node.op === 'Squeeze' && !node.inputs[1]) nameSqueezedAxes(node, context);
      break;
    case 'Concat':
    case 'Gather':
      countAxisFromFront(node, context);
      break;
    case 'Split':
      countAxisFromFront(node, context);
      if (opset < 13) attributesToInputs(node, { split: 'ints' }, context);
      delete attributes.num_outputs;
      break;
    case 'Slice':
      if (opset < 10) attributesToInputs(node, { starts: 'ints', ends: 'ints', axes: 'ints' }, context);
      break;
    case 'Pad':
      if (opset < 11) attributesToInputs(node, { pads: 'ints', value: 'float' }, context);
      if (node.inputs[3]) nameAllPads(node, context);
      break;
    case 'ReduceL1':
    case 'ReduceL2':
    case 'ReduceLogSum':
    case 'ReduceLogSumExp':
    case 'ReduceMax':
    case 'ReduceMean':
    case 'ReduceMin':
    case 'ReduceProd':
    case 'ReduceSumSquare':
      if (opset >= 18) axesToAttribute(node, context);
      break;
    case 'Softmax':
    case 'LogSoftmax':
      if (opset < 13) checkSoftmaxAxis(node, context);
      break;
    case 'Upsample':
    case 'Resize':
      if (opset < 11) scalesToResize(node, context);
      else nameAllSizes(node, context);
      break;
    case 'BatchNormalization':
      if (attributes.spatial === 0 && !hasStatisticsPerChannel(node, context))
        throw refuse(node, 'normalizes every position by itself (spatial = 0)', 'one mean and variance per channel');
      delete attributes.spatial;
      delete attributes.training_mode;
      break;
    case 'Cast':
      // Tensors of half and double precision are read as float32.
      if (
        [dataTypeNumber('FLOAT16'), dataTypeNumber('DOUBLE'), dataTypeNumber('BFLOAT16')].includes(
          intAttribute(node, 'to', 0),
        )
      )
        attributes.to = dataTypeNumber('FLOAT');
      delete attributes.saturate;
      delete attributes.round_mode;
      break;
    case 'QuantizeLinear':
    case 'DequantizeLinear':
      if (attributes.block_size || attributes.output_dtype)
        throw refuse(node, 'quantizes in blocks or names its type', 'scales per tensor or per axis, with a zero point');
      for (const name of ['block_size', 'output_dtype', 'saturate', 'precision']) delete attributes[name];
      break;
    case 'Reshape':
      makeTargetConstant(node, context);
      break;
    case 'AveragePool':
      makePadsExplicit(node, context);
      // What ceil_mode adds at the end is no pad, and counts in no mean.
      if (intAttribute(node, 'ceil_mode', 0) === 1 && intsAttribute(node, 'pads', []).every((pad) => pad === 0))
        delete attributes.count_include_pad;
      break;
    case 'Conv':
    case 'ConvTranspose':
    case 'LpPool':
    case 'MaxPool':
      makePadsExplicit(node, context);
      break;
  }
}

/**
 * MXNet's exporter writes spatial = 0, "statistics for every position", and has one for each channel (as ONNX Runtime).
 */
function hasStatisticsPerChannel(node: GraphNode, { batches: [{ shapes }] }: Context): boolean {
  const channels = shapes.get(node.inputs[0]!)?.[1];
  return node.inputs.slice(1).every((name) => shapes.get(name)?.join() === String(channels));
}

/** Turns attributes into inputs, in the given order. A missing one between two others gets the empty name. */
function attributesToInputs(
  node: GraphNode,
  forms: Record<string, 'ints' | 'float'>,
  { constant, refuse }: Context,
): void {
  const added = Object.entries(forms).map(([name, form]) => {
    const value = node.attributes[name];
    delete node.attributes[name];
    if (value === undefined) return '';
    if (form === 'ints' && Array.isArray(value) && value.every(Number.isInteger))
      return constant(`${node.name}.${name}`, int64Tensor(value));
    if (form === 'float' && typeof value === 'number')
      return constant(`${node.name}.${name}`, { dims: [], data: Float32Array.of(value) });
    throw refuse(node, `has ${name} ${value}`, form === 'ints' ? 'a list of integers' : 'a number');
  });
  node.inputs = [...node.inputs.slice(0, 1), ...added.slice(0, added.findLastIndex(Boolean) + 1)];
}

/** Pads of chosen axes (operator set 18) as pads of all. */
function nameAllPads(node: GraphNode, { batches: [{ shapes, integers }], constant, refuse }: Context): void {
  const [data, padsName, value, axesName] = node.inputs as [string, string, string, string];
  const rank = shapes.get(data)?.length;
  const [pads, axes] = [integers.get(padsName), integers.get(axesName)];
  if (!rank || !pads || !axes || pads.length !== 2 * axes.length)
    throw refuse(node, 'computes its pads', 'constant pads');
  const all = new Array<number>(2 * rank).fill(0);
  axes.forEach((axis, i) => {
    const at = axis < 0 ? axis + rank : axis;
    all[at] = pads[i]!;
    all[at + rank] = pads[i + axes.length]!;
  });
  if (all.length !== 2 * rank) throw refuse(node, `pads axes ${axes.join(', ')}`, `axes of ${rank}`);
  node.inputs = [data, constant(`${node.name}.pads`, int64Tensor(all)), ...(value ? [value] : [])];
}

/** An axis that is counted from the last is written as one from the first, where the rank is known. */
function countAxisFromFront({ inputs, attributes }: GraphNode, { batches: [{ shapes }] }: Context): void {
  const rank = shapes.get(inputs[0]!)?.length;
  if (rank !== undefined && typeof attributes.axis === 'number') attributes.axis = axisIndex(attributes.axis, rank);
}

/** Upsample, and Resize of operator set 10: both begin in the corner, and know two modes. */
function scalesToResize(node: GraphNode, { opset, constant, refuse }: Context): void {
  const { scales, mode = 'nearest' } = node.attributes;
  const isList = Array.isArray(scales) && opset < 9;
  const name = isList
    ? constant(`${node.name}.scales`, { dims: [scales.length], data: Float32Array.from(scales) })
    : node.inputs[1];
  if (!name) throw refuse(node, 'has no scales', 'a scale for each axis');
  node.op = 'Resize';
  node.inputs = [node.inputs[0]!, '', name];
  node.attributes = { mode, coordinate_transformation_mode: 'asymmetric', nearest_mode: 'floor' };
}

/** Sizes or scales of chosen axes (operator set 18) as those of all; and what our runtime does not do is refused. */
function nameAllSizes(node: GraphNode, { batches: [{ shapes, integers, floats }], constant, refuse }: Context): void {
  const { antialias = 0, keep_aspect_ratio_policy: policy = 'stretch' } = node.attributes;
  if (antialias !== 0) throw refuse(node, 'takes means over what it makes smaller (antialias = 1)', 'antialias = 0');
  if (policy !== 'stretch') throw refuse(node, `has keep_aspect_ratio_policy ${policy}`, 'stretch');
  for (const name of ['antialias', 'keep_aspect_ratio_policy']) delete node.attributes[name];
  const axes = intsAttribute(node, 'axes', []);
  delete node.attributes.axes;
  if (axes.length === 0) return;
  const [x, , scalesName = '', sizesName = ''] = node.inputs as [string, ...string[]];
  const [dims, scales, sizes] = [shapes.get(x), floats.get(scalesName), integers.get(sizesName)];
  const given = scales ?? sizes;
  if (!dims || given?.length !== axes.length)
    throw refuse(node, 'resizes axes by numbers that are not known', 'constant scales or sizes');
  const all = dims.map((dim, axis) => {
    const at = axes.findIndex((each) => axisIndex(each, dims.length) === axis);
    return given[at] ?? (scales ? 1 : dim);
  });
  const tensor = scales ? { dims: [all.length], data: Float32Array.from(all) } : int64Tensor(all);
  const name = constant(`${node.name}.${scales ? 'scales' : 'sizes'}`, tensor);
  node.inputs = scales ? [x, '', name] : [x, '', '', name];
}

/** Names the axes of a Squeeze of all axes of size 1, without the batch, which may be 1. */
function nameSqueezedAxes(node: GraphNode, { batches, constant, refuse }: Context): void {
  const [one, two] = batches.map(({ shapes }) => shapes.get(node.inputs[0]!));
  if (!one || !two) throw refuse(node, 'squeezes a value of unknown shape', 'axes to squeeze');
  const axes = one.flatMap((dim, axis) => (dim === 1 && two[axis] === 1 ? [axis] : []));
  node.inputs = [node.inputs[0]!, constant(`${node.name}.axes`, int64Tensor(axes))];
}

function axesToAttribute(node: GraphNode, { batches, refuse }: Context): void {
  const [, name] = node.inputs;
  if (name) {
    const axes = batches[0].integers.get(name);
    if (!axes) throw refuse(node, 'computes its axes', 'constant axes');
    if (axes.length) node.attributes.axes = axes;
  }
  if (!node.attributes.axes && node.attributes.noop_with_empty_axes === 1)
    throw refuse(node, 'reduces nothing', 'axes to reduce');
  delete node.attributes.noop_with_empty_axes;
  node.inputs = node.inputs.slice(0, 1);
}

/**
 * Before operator set 13, Softmax normalized all axes from `axis` on together. Where one of them alone is longer than
 * one, that is its axis today; for the quantizer, composites.ts writes the others.
 */
function checkSoftmaxAxis(node: GraphNode, { batches, keepsAll, refuse }: Context): void {
  const dims = batches[0].shapes.get(node.inputs[0]!);
  const axis = axisIndex(intAttribute(node, 'axis', 1), dims?.length ?? 0);
  const long = dims?.flatMap((dim, i) => (i >= axis && dim !== 1 ? [i] : []));
  if (axis === -1 || (dims && axis + 1 === dims.length)) node.attributes.axis = -1;
  else if (keepsAll && long?.length === 1) node.attributes.axis = long[0]!;
  else if (!keepsAll || !dims || axis < 1 || node.op !== 'Softmax')
    throw refuse(node, `normalizes over axis ${axis} and all after it`, 'the last axis alone');
}

/**
 * Gives a Reshape a constant target for any batch size: its first entry is 0, "as in the input", where the batch is.
 * Exporters compute the target from Shape, or write their own batch size into it.
 */
function makeTargetConstant(node: GraphNode, { batches, fixedBatch, constant, isConstant, refuse }: Context): void {
  const [data, shape] = node.inputs as [string, string];
  const [one, two] = batches.map(({ integers: known }) => known.get(shape));
  if (!one || !two || one.length !== two.length || ![...one, ...two].every(Number.isSafeInteger))
    throw refuse(node, 'computes its target in a way unknown here', 'a constant target, or one computed from shapes');
  const batchFirst = batches.every(({ shapes }, i) => shapes.get(data)?.[0] === i + 1);
  const isFixed = one[0] === (fixedBatch ?? 1) && two[0] === one[0];
  const target = one.map((dim, i) => {
    if (i === 0 && batchFirst && one.length > 1 && (isFixed || (dim === 1 && two[0] === 2))) return 0;
    return dim === two[i] ? dim : -1;
  });
  if (target.filter((dim) => dim === -1).length > 1)
    throw refuse(
      node,
      `has target [${one.join(', ')}] for one picture and [${two.join(', ')}] for two`,
      'a target in which one entry depends on the batch',
    );
  if (node.attributes.allowzero === 1 && one.includes(0))
    throw refuse(node, 'has a target with a size of 0', 'sizes above zero');
  delete node.attributes.allowzero;
  if (isConstant(shape) && target.every((dim, i) => dim === one[i])) return;
  node.inputs = [data, constant(`${node.name}.shape`, int64Tensor(target))];
}

/** Replaces `auto_pad` by the pads that it means. */
function makePadsExplicit(node: GraphNode, context: Context): void {
  const { batches, refuse } = context;
  const autoPad = node.attributes.auto_pad ?? 'NOTSET';
  delete node.attributes.auto_pad;
  if (node.op === 'ConvTranspose' && (node.attributes.output_shape || String(autoPad).startsWith('SAME')))
    return makeTransposedPadsExplicit(node, autoPad === 'SAME_UPPER', context);
  if (autoPad === 'NOTSET') return;
  if (autoPad === 'VALID') {
    node.attributes.pads = [0, 0, 0, 0];
    return;
  }
  const shape = batches[0].shapes.get(node.inputs[0]!);
  const kernel =
    node.op === 'Conv' ? batches[0].shapes.get(node.inputs[1]!)?.slice(2) : intsAttribute(node, 'kernel_shape', []);
  const strides = intsAttribute(node, 'strides', [1, 1]);
  const dilations = intsAttribute(node, 'dilations', [1, 1]);
  const totals = [0, 1].map((axis) => {
    const size = shape?.[axis + 2] ?? NaN;
    const needed =
      (Math.ceil(size / strides[axis]!) - 1) * strides[axis]! + ((kernel?.[axis] ?? NaN) - 1) * dilations[axis]! + 1;
    return Math.max(0, needed - size);
  });
  if (shape?.length !== 4 || !totals.every(Number.isSafeInteger))
    throw refuse(node, `has auto_pad ${autoPad} on a value of unknown shape`, 'explicit pads');
  const less = totals.map((total) => Math.floor(total / 2));
  const more = totals.map((total) => Math.ceil(total / 2));
  node.attributes.pads = autoPad === 'SAME_UPPER' ? [...less, ...more] : [...more, ...less];
}

/**
 * The pads of a ConvTranspose that names the sizes of its output, or makes them those of its input times the strides
 * (ONNX, ConvTranspose).
 */
function makeTransposedPadsExplicit(node: GraphNode, isUpper: boolean, { batches, refuse }: Context): void {
  const [x, weight] = node.inputs.map((name) => batches[0].shapes.get(name));
  const named = intsAttribute(node, 'output_shape', []).slice(-2);
  delete node.attributes.output_shape;
  if (x?.length !== 4 || weight?.length !== 4) throw refuse(node, 'pads a value of unknown shape', 'explicit pads');
  const strides = intsAttribute(node, 'strides', [1, 1]);
  const dilations = intsAttribute(node, 'dilations', [1, 1]);
  const extra = [...intsAttribute(node, 'output_padding', [0, 0])];
  const totals = [0, 1].map((axis) => {
    const reached = strides[axis]! * (x[2 + axis]! - 1) + dilations[axis]! * (weight[2 + axis]! - 1) + 1;
    const total = reached + extra[axis]! - (named[axis] ?? x[2 + axis]! * strides[axis]!);
    // Where the kernels do not reach, there are zeros.
    if (total < 0) extra[axis]! -= total;
    return Math.max(0, total);
  });
  const [less, more] = [totals.map((total) => Math.floor(total / 2)), totals.map((total) => Math.ceil(total / 2))];
  node.attributes.pads = isUpper ? [...less, ...more] : [...more, ...less];
  node.attributes.output_padding = extra;
}
