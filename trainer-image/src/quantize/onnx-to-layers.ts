/**
 * Reads an FP32 ONNX graph as layers: one layer, or one affine map, for each operator. The inverse of
 * layers-to-onnx.ts.
 *
 * Every operator becomes a layer, or an affine map y = scale·x + offset per channel (batch norms, and constants that
 * are added or multiplied). Flatten and Reshape change no numbers and disappear. What none of these layers is becomes a
 * node (node-layers.ts): quantized like other layers if it computes maps of maps, else in FP32.
 * Knows nothing of quantization, and moves no numbers between layers: that is fold.ts.
 */
import { counted, FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Layer, LayerGraph, NodeLayer, Tensor } from '@facetrain/native';
import { arithmeticMap, batchNormMap } from '../onnx/channel-map.ts';
import { COMPOSITE_OPERATORS } from '../onnx/composites.ts';
import { otherThanFloats } from '../onnx/element-types.ts';
import { inferShapes } from '../onnx/infer-shapes.ts';
import { axisIndex } from '../onnx/known-integers.ts';
import { UniqueNames } from '../onnx/unique-names.ts';
import { elementCount, inputsOf, outputShape, shapeOf } from './layer-shapes.ts';
import {
  functionRegions,
  isQuantizedNode,
  NODE_OPERATORS,
  nodeLayer,
  QUANTIZED_NODE_OPERATORS,
  whyReal,
} from './node-layers.ts';
import { dimsOf, Operands, type Value } from './onnx-operands.ts';

/** y = scale·x + offset per channel, or per value of a flattened feature map: in front of an fc, that is as good. */
export interface AffineMap {
  kind: 'affine';
  name: string;
  /** Where there is a scale for each value of a map: the node, for messages, and the map's dimensions. */
  perValue?: { node: string; dims: number[] };
  input: string;
  output: string;
  scale: Float32Array;
  offset: Float32Array;
}

export type Operation = Layer | AffineMap;

/** A node that stays in FP32, and why. */
export interface RealNode {
  /** `node "NAME" (OPERATOR)`. */
  node: string;
  reason: string;
}

export interface ReadLayersOptions {
  /** Refuses what would stay in FP32. */
  strict?: boolean | undefined;
  /** Values that the file quantizes: functions of several operators lie between them (node-layers.ts). */
  boundaries?: ReadonlySet<string> | undefined;
  /** Called for each node that stays in FP32. */
  onReal?: ((real: RealNode) => void) | undefined;
}

/**
 * The layers of a graph in topological order, an affine map as a pointwise layer.
 * @throws FacetrainError as onnxToOperations
 */
export function onnxToLayers(graph: Graph, options: ReadLayersOptions = {}): LayerGraph {
  return toLayerGraph(graph, onnxToOperations(graph, options), options);
}

/**
 * In topological order; outputs have the names of the graph's outputs.
 * @param graph as onnx/read.ts returns it: finite weights, unique node names, no node that no output needs
 * @throws FacetrainError UnsupportedOperator naming the operator and its node; InvalidModel
 */
export function onnxToOperations(graph: Graph, options: ReadLayersOptions = {}): Operation[] {
  return new OnnxReader(graph, options).read();
}

export function toLayerGraph(
  { input, output, outputs }: Graph,
  operations: Operation[],
  options: Pick<ReadLayersOptions, 'strict' | 'onReal'>,
): LayerGraph {
  return {
    input: { ...input },
    output: { ...output },
    ...(outputs && { outputs: structuredClone(outputs) }),
    layers: operations.map((operation) => (operation.kind === 'affine' ? affineLayer(operation, options) : operation)),
  };
}

/** An affine map that was not folded: a pointwise layer, or a node in FP32 if each value has a scale of its own. */
function affineLayer(
  { name, perValue, input, output, scale, offset }: AffineMap,
  { strict, onReal }: Pick<ReadLayersOptions, 'strict' | 'onReal'>,
): Layer {
  if (!perValue) return { kind: 'pointwise', name, input, output, positive: scale, negative: scale, offset };
  const { node, dims } = perValue;
  const reason = 'a scale or an offset for each value of a feature map';
  if (strict)
    throw new FacetrainError({
      code: 'UnsupportedOperator',
      subject: node,
      found: reason,
      allowed:
        'one for each channel, or in front of a Gemm or MatMul; or no search.strict (--strict), so that it stays FP32',
    });
  onReal?.({ node, reason });
  return {
    kind: 'node',
    name,
    inputs: [input],
    output,
    steps: [
      { op: 'Mul', attributes: {}, operands: [{ input: 0 }, { constant: { dims, data: scale } }] },
      { op: 'Add', attributes: {}, operands: [{ step: 0 }, { constant: { dims, data: offset } }] },
    ],
    inputDims: [dims],
    outputDims: dims,
    real: true,
  };
}

/** The tensors that an operation reads. */
export function operandsOf(operation: Operation): string[] {
  return operation.kind === 'affine' ? [operation.input] : inputsOf(operation);
}

/** How each operator is read. */
const OPERATORS: Record<string, (reader: OnnxReader, node: GraphNode) => void> = {
  Add: (reader, node) => reader.arithmetic(node),
  BatchNormalization: (reader, node) => reader.batchNorm(node),
  Conv: (reader, node) => reader.conv(node),
  Div: (reader, node) => reader.arithmetic(node),
  Flatten: (reader, node) => reader.flatten(node),
  Gemm: (reader, node) => reader.gemm(node),
  GlobalAveragePool: (reader, node) => reader.pool(node),
  LeakyRelu: (reader, node) => reader.activation(node, () => reader.operands.number(node, 'alpha', 0.01)),
  MatMul: (reader, node) => reader.matMul(node),
  Mul: (reader, node) => reader.arithmetic(node),
  PRelu: (reader, node) => reader.prelu(node),
  Relu: (reader, node) => reader.activation(node, () => 0),
  Reshape: (reader, node) => reader.flatten(node),
  Sub: (reader, node) => reader.arithmetic(node),
};

/** All operators that the quantizer reads. */
export const QUANTIZER_OPERATORS = [...new Set([...Object.keys(OPERATORS), ...NODE_OPERATORS])].toSorted();

/** Those that need not stay FP32. */
const QUANTIZED_OPERATORS = [...new Set([...Object.keys(OPERATORS), ...QUANTIZED_NODE_OPERATORS])].toSorted();

/** Those that a model may have: others are written with these when it is read. */
const READ_OPERATORS = [...new Set([...QUANTIZER_OPERATORS, ...COMPOSITE_OPERATORS, 'Upsample'])].toSorted();

class OnnxReader {
  readonly operands: Operands;
  private readonly graph: Graph;
  private readonly options: ReadLayersOptions;
  private readonly operations: Operation[] = [];
  private readonly shapes: Map<string, number[]>;
  /** Values that are no floats: nodes in FP32 compute and read them. */
  private readonly others: Set<string>;

  constructor(graph: Graph, options: ReadLayersOptions) {
    this.graph = graph;
    this.options = options;
    this.operands = new Operands(graph);
    this.shapes = inferShapes(graph, 1);
    this.others = otherThanFloats(graph);
  }

  read(): Operation[] {
    const regions = functionRegions(this.graph, this.options.boundaries, this.others);
    const inside = new Set([...regions.values()].flatMap(({ nodes }) => nodes.slice(0, -1)));
    for (const node of this.graph.nodes) {
      if (inside.has(node)) continue;
      const region = regions.get(node);
      if (region && this.functionOf(region.nodes)) continue;
      // What is no function after all is read node by node.
      for (const each of region?.nodes ?? [node]) this.readNode(each);
    }
    return this.graph.outputs ? this.withOutputs() : this.withOutput();
  }

  private readNode(node: GraphNode): void {
    let refused: FacetrainError;
    try {
      if (this.hasOthers(node)) throw this.notFloats(node);
      if (!Object.hasOwn(OPERATORS, node.op))
        throw this.operands.unsupported(node, `operator ${node.op}`, `one of ${READ_OPERATORS.join(', ')}`);
      OPERATORS[node.op]!(this, node);
      return;
    } catch (error) {
      if (!(error instanceof FacetrainError) || error.code !== 'UnsupportedOperator') throw error;
      refused = error;
    }
    this.asNode(node, refused);
  }

  private hasOthers({ inputs, outputs }: GraphNode): boolean {
    return [...inputs, ...outputs].some((name) => this.others.has(name));
  }

  private notFloats(node: GraphNode): FacetrainError {
    return this.operands.unsupported(node, 'booleans or integers that are computed', 'floats');
  }

  /** @returns whether a layer computes the function; not where it is of a value of another rank */
  private functionOf(nodes: GraphNode[]): boolean {
    const layer = this.layerOf(nodes);
    if (!layer || !isQuantizedNode(layer)) return false;
    this.addNode({ ...layer, real: false });
    return true;
  }

  /** Nodes as one layer in FP32; undefined where an operand or the output's shape is not known. */
  private layerOf(nodes: GraphNode[], initializers = this.graph.initializers): NodeLayer | undefined {
    const name = nodes.at(-1)!.outputs[0]!;
    const dims = this.shapes.get(name);
    const made = new Set(nodes.map(({ outputs }) => outputs[0]!));
    const isKnown = (input: string) =>
      input === '' || made.has(input) || Object.hasOwn(initializers, input) || this.operands.find(input) !== undefined;
    if (!dims?.length || !nodes.every(({ inputs }) => inputs.every(isKnown))) return undefined;
    const input = (value: string) => {
      const found = this.operands.find(value)!;
      return { tensor: found.tensor, dims: dimsOf(found) };
    };
    return nodeLayer(nodes, { initializers }, input, { name, dims }, true);
  }

  /** A node that no other layer is. @param refused why not */
  private asNode(node: GraphNode, refused: FacetrainError): void {
    // The runtime's division is that of floats.
    const isInteger = node.op === 'Div' && this.others.has(node.outputs[0]!);
    if (!NODE_OPERATORS.includes(node.op) || isInteger) throw refused;
    const parts = node.op === 'Split' ? slicesOf(node, this.shapes) : [{ node, constants: {} }];
    for (const { node: part, constants } of parts ?? []) {
      const layer = this.layerOf([part], { ...this.graph.initializers, ...constants });
      if (!layer) throw refused;
      if (isQuantizedNode(layer) && !this.hasOthers(node)) {
        this.addNode({ ...layer, real: false });
        continue;
      }
      // An operator that this file reads was refused for a reason of its own.
      const [reason, allowed] = Object.hasOwn(OPERATORS, node.op)
        ? [refused.found, refused.allowed]
        : [whyReal(layer), `feature maps through ${QUANTIZED_OPERATORS.join(', ')}`];
      if (this.options.strict)
        throw this.operands.unsupported(
          node,
          reason,
          `${allowed}; or no search.strict (--strict), so that it stays FP32`,
        );
      this.options.onReal?.({ node: this.operands.subject(node), reason });
      this.addNode(layer);
    }
    if (!parts) throw refused;
  }

  private addNode(layer: NodeLayer): void {
    this.operations.push(layer);
    const { output, outputDims } = layer;
    const isMap = outputDims.length === 4 && outputDims[0] === 1;
    const isFlat = outputDims.length === 2 && outputDims[0] === 1;
    const dims = isMap || isFlat ? {} : { dims: outputDims };
    this.operands.define(output, { tensor: output, shape: shapeOf(outputDims), flat: isFlat, ...dims });
  }

  /** The operations of a graph of one embedding, whose last output has the name of the graph's output. */
  private withOutput(): Operation[] {
    const { name, dim } = this.graph.output;
    const output = this.operands.find(name);
    if (!output || output.tensor === this.graph.input.name) throw this.noLayer(name);
    if (elementCount(output.shape) !== dim) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: `output "${name}"`,
        found: `${counted(elementCount(output.shape), 'value')} a picture`,
        allowed: `the ${dim} it declares`,
      });
    }
    return this.operations.map((operation) => renamed(operation, output.tensor, name));
  }

  /**
   * The operations with a tensor for each output that no layer reads: of one that a layer reads, or that is several
   * outputs, and of a flattened map, a node in FP32 makes it.
   */
  private withOutputs(): Operation[] {
    let { operations } = this;
    const names = new UniqueNames([
      this.graph.input.name,
      ...this.graph.outputs!.map(({ name }) => name),
      ...operations.flatMap(({ name, output }) => [name, output]),
    ]);
    for (const { name, dims } of this.graph.outputs!) {
      const value = this.operands.find(name);
      if (!value || elementCount(value.shape) !== dims.reduce((count, dim) => count * dim, 1)) throw this.noLayer(name);
      const { tensor } = value;
      const isRead = operations.some((operation) => operandsOf(operation).includes(tensor));
      const isOutput = this.graph.outputs!.some(
        (other) => other.name !== name && (other.name === tensor || this.operands.find(other.name)?.tensor === tensor),
      );
      const isMade = operations.some(({ output }) => output === tensor);
      const own = [1, ...dims];
      const isVector = value.flat && elementCount(value.shape) === value.shape[0];
      const from = value.dims ?? (isVector ? [1, value.shape[0]] : [1, ...value.shape]);
      const isSame = from.join() === own.join();
      if (isMade && !isRead && !isOutput && isSame) {
        operations = operations.map((operation) => renamed(operation, tensor, name));
        continue;
      }
      // The tensor may have the output's name: it gets another.
      const source = tensor === name ? names.take(`${name}.value`) : tensor;
      operations = operations.map((operation) => renamed(operation, tensor, source));
      for (const other of this.graph.outputs!) {
        const shared = this.operands.find(other.name);
        if (shared?.tensor === tensor) this.operands.define(other.name, { ...shared, tensor: source });
      }
      operations = [
        ...operations,
        {
          kind: 'node',
          name: names.take(`${name}.output`),
          inputs: [source],
          output: name,
          steps: [
            isSame
              ? { op: 'Identity', attributes: {}, operands: [{ input: 0 }] }
              : { op: 'Flatten', attributes: { axis: 1 }, operands: [{ input: 0 }] },
          ],
          inputDims: [from],
          outputDims: own,
          real: true,
        },
      ];
    }
    return operations;
  }

  private noLayer(name: string): FacetrainError {
    return new FacetrainError({
      code: 'InvalidModel',
      subject: `output "${name}"`,
      found: 'no layer computes it',
      allowed: 'an output that depends on the input through a layer',
    });
  }

  conv(node: GraphNode): void {
    const input = this.operands.featureMap(node);
    const weight = this.operands.constant(node, 1);
    const group = this.operands.number(node, 'group', 1);
    const [outputs, perGroup] = weight.dims as [number, number];
    if (weight.dims.length !== 4 || perGroup * group !== input.shape[0] || outputs % group !== 0) {
      throw this.operands.unsupported(
        node,
        `weights [${weight.dims.join(', ')}] in ${counted(group, 'group')} on ${counted(input.shape[0], 'channel')}`,
        'two-dimensional convolutions whose weights fit their input',
      );
    }
    const strides = this.operands.numbers(node, 'strides', [1, 1]) as [number, number];
    const dilations = this.operands.numbers(node, 'dilations', [1, 1]) as [number, number];
    const pads = this.operands.numbers(node, 'pads', [0, 0, 0, 0]) as [number, number, number, number];
    const bias = node.inputs[2] ? this.operands.floats(node, 2) : new Float32Array(outputs);
    this.addLayer(node, input, {
      kind: 'conv',
      name: node.name,
      input: input.tensor,
      output: node.outputs[0]!,
      weight,
      bias,
      strides,
      pads,
      dilations,
      group,
    });
  }

  gemm(node: GraphNode): void {
    const input = this.operands.flattened(node);
    const alpha = this.operands.number(node, 'alpha', 1);
    if (this.operands.number(node, 'transA', 0) !== 0)
      throw this.operands.unsupported(node, 'a transposed first operand', 'rows of features');
    const weight = scaled(
      this.operands.number(node, 'transB', 0)
        ? this.operands.constant(node, 1)
        : transposed(this.operands.constant(node, 1)),
      alpha,
    );
    const beta = this.operands.number(node, 'beta', 1);
    const bias = node.inputs[2]
      ? this.operands.perChannelConstant(node, 2, weight.dims[0]!, true).map((value) => value * beta)
      : new Float32Array(weight.dims[0]!);
    this.fc(node, input, weight, bias);
  }

  matMul(node: GraphNode): void {
    const matrix = this.operands.constant(node, 1);
    if (matrix.dims.length !== 2)
      throw this.operands.unsupported(
        node,
        `weights of shape [${matrix.dims.join(', ')}]`,
        'one matrix [features, outputs]',
      );
    const weight = transposed(matrix);
    this.fc(node, this.operands.flattened(node), weight, new Float32Array(weight.dims[0]!));
  }

  private fc(node: GraphNode, input: Value, weight: Tensor<Float32Array>, bias: Float32Array): void {
    if (weight.dims[1] !== elementCount(input.shape)) {
      throw this.operands.unsupported(
        node,
        `weights for ${counted(weight.dims[1]!, 'feature')} on ${elementCount(input.shape)}`,
        'weights that fit their input',
      );
    }
    this.addLayer(
      node,
      { ...input, flat: true },
      { kind: 'fc', name: node.name, input: input.tensor, output: node.outputs[0]!, weight, bias },
    );
  }

  batchNorm(node: GraphNode): void {
    const input = this.operands.value(node, 0);
    const [gamma, beta, mean, variance] = [1, 2, 3, 4].map((index) => this.operands.floats(node, index)) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const channels = input.flat ? elementCount(input.shape) : input.shape[0];
    if (gamma.length !== channels)
      throw this.operands.unsupported(
        node,
        `${counted(gamma.length, 'channel')} on ${channels}`,
        'one value a channel',
      );
    const { scale, offset } = batchNormMap([gamma, beta, mean, variance], this.operands.number(node, 'epsilon', 1e-5));
    const bad = scale.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) {
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: this.operands.subject(node),
        found: `variance ${variance[bad]} of channel ${bad}`,
        allowed: 'variances whose sum with epsilon is positive',
      });
    }
    this.addAffine(node, input, scale, offset);
  }

  /** Add, Sub, Mul and Div: of two tensors only Add is a layer; with a constant, an affine map. */
  arithmetic(node: GraphNode): void {
    const constants = node.inputs.map((name) => this.operands.isConstant(name));
    if (!constants[0] && !constants[1]) {
      const [a, b] = [this.operands.value(node, 0), this.operands.value(node, 1)];
      if (node.op !== 'Add')
        throw this.operands.unsupported(
          node,
          `${node.op} of two computed tensors`,
          'Add of two, or a constant operand',
        );
      if (a.shape.join() !== b.shape.join() || a.flat !== b.flat)
        throw this.operands.unsupported(
          node,
          `shapes [${a.shape.join(', ')}] and [${b.shape.join(', ')}]`,
          'two tensors of one shape',
        );
      this.addLayer(node, a, { kind: 'add', name: node.name, inputs: [a.tensor, b.tensor], output: node.outputs[0]! });
      return;
    }
    const input = this.operands.value(node, constants[0] ? 1 : 0);
    const channels = input.flat ? elementCount(input.shape) : input.shape[0];
    const constant = this.operands.perChannelConstant(node, constants[0] ? 0 : 1, channels, input.flat);
    const map = arithmeticMap(node.op, constant, constants[0]!);
    if (!map)
      throw this.operands.unsupported(
        node,
        'a division that is no scaling',
        'a computed tensor divided by constants other than 0',
      );
    this.addAffine(node, input, map.scale, map.offset);
  }

  prelu(node: GraphNode): void {
    const [shape, slopes] = node.inputs.map((name) => this.shapes.get(name));
    const own = slopes?.map((dim, i) => shape?.[i + (shape.length - slopes.length)] === dim || dim === 1);
    if (shape && own?.includes(false))
      throw new FacetrainError({
        code: 'InvalidModel',
        subject: this.operands.subject(node),
        found: `slopes of shape [${slopes!.join(', ')}] for an input of [${shape.join(', ')}]`,
        allowed: 'slopes that are broadcast to the shape of the input',
      });
    const input = this.operands.channelwise(node, 0);
    const slope = this.operands.perChannelConstant(node, 1, input.shape[0], input.flat);
    this.activation(node, (channel) => slope[channel]!);
  }

  activation(node: GraphNode, slope: (channel: number) => number): void {
    const input = this.operands.channelwise(node, 0);
    const channels = input.shape[0];
    const negative = Float32Array.from({ length: channels }, (_, channel) => slope(channel));
    this.addLayer(node, input, {
      kind: 'pointwise',
      name: node.name,
      input: input.tensor,
      output: node.outputs[0]!,
      positive: new Float32Array(channels).fill(1),
      negative,
      offset: new Float32Array(channels),
    });
  }

  pool(node: GraphNode): void {
    const input = this.operands.featureMap(node);
    this.addLayer(node, input, { kind: 'pool', name: node.name, input: input.tensor, output: node.outputs[0]! });
  }

  /** Flatten, and Reshape to two dimensions or to [N, C, 1, 1]: the numbers stay the same. */
  flatten(node: GraphNode): void {
    const input = this.operands.value(node, 0);
    if (node.op === 'Flatten') {
      if (this.operands.number(node, 'axis', 1) !== 1)
        throw this.operands.unsupported(node, `axis ${this.operands.number(node, 'axis', 1)}`, 'axis 1');
    } else {
      const target = node.inputs[1]
        ? Array.from(this.operands.initializer(node, 1).data, Number)
        : this.operands.numbers(node, 'shape', []);
      const [channels] = input.shape;
      if (elementCount(input.shape) === channels && target.slice(1).join() === `${channels},1,1`) {
        this.operands.define(node.outputs[0]!, { ...input, flat: false });
        return;
      }
      if (target.length !== 2 || (target[1] !== -1 && target[1] !== elementCount(input.shape))) {
        throw this.operands.unsupported(
          node,
          `shape [${target.join(', ')}]`,
          `a reshape of every picture to its ${elementCount(input.shape)} values`,
        );
      }
    }
    this.operands.define(node.outputs[0]!, { ...input, flat: true });
  }

  /** Adds an affine map. */
  private addAffine(node: GraphNode, input: Value, scale: Float32Array, offset: Float32Array): void {
    const output = node.outputs[0]!;
    const perValue = { node: this.operands.subject(node), dims: [1, ...input.shape] };
    this.operations.push({
      kind: 'affine',
      name: node.name,
      ...(scale.length !== input.shape[0] && { perValue }),
      input: input.tensor,
      output,
      scale,
      offset,
    });
    this.operands.define(output, { ...input, tensor: output });
  }

  /** Adds a layer. */
  private addLayer(node: GraphNode, input: Value, layer: Layer): void {
    const shape = outputShape(layer, input.shape);
    if (shape.some((length) => length < 1))
      throw this.operands.unsupported(
        node,
        `an output of [${shape.join(', ')}]`,
        'a kernel that fits into its padded input',
      );
    this.operations.push(layer);
    this.operands.define(layer.output, { tensor: layer.output, shape, flat: input.flat });
  }
}

/** The slices that a Split makes, each with its constants; undefined when its sizes are not known. */
function slicesOf(
  node: GraphNode,
  shapes: Map<string, number[]>,
): { node: GraphNode; constants: Graph['initializers'] }[] | undefined {
  const rank = shapes.get(node.inputs[0]!)?.length ?? NaN;
  const at = axisIndex(Number(node.attributes.axis ?? 0), rank);
  const lengths = node.outputs.map((output) => shapes.get(output)?.[at] ?? NaN);
  if (lengths.some(Number.isNaN)) return undefined;
  let first = 0;
  return node.outputs.map((output, i) => {
    const bounds = { start: first, end: first + lengths[i]!, axis: at };
    first = bounds.end;
    const constants = Object.fromEntries(
      Object.entries(bounds).map(([key, value]) => [
        `${node.name}.${i}.${key}`,
        { dims: [1], data: BigInt64Array.of(BigInt(value)) },
      ]),
    );
    const inputs = [node.inputs[0]!, ...Object.keys(constants)];
    const name = i === 0 ? node.name : `${node.name}.${i}`;
    return { node: { name, op: 'Slice', inputs, outputs: [output], attributes: {} }, constants };
  });
}

function renamed(operation: Operation, from: string, to: string): Operation {
  const rename = (tensor: string): string => (tensor === from ? to : tensor);
  if (operation.kind === 'add')
    return {
      ...operation,
      inputs: [rename(operation.inputs[0]), rename(operation.inputs[1])],
      output: rename(operation.output),
    };
  if (operation.kind === 'node')
    return { ...operation, inputs: operation.inputs.map(rename), output: rename(operation.output) };
  return { ...operation, input: rename(operation.input), output: rename(operation.output) };
}

function transposed({ dims, data }: Tensor<Float32Array>): Tensor<Float32Array> {
  const [rows, columns] = dims as [number, number];
  const result = new Float32Array(data.length);
  for (let row = 0; row < rows; ++row) {
    for (let column = 0; column < columns; ++column) result[column * rows + row] = data[row * columns + column]!;
  }
  return { dims: [columns, rows], data: result };
}

function scaled(tensor: Tensor<Float32Array>, factor: number): Tensor<Float32Array> {
  return factor === 1 ? tensor : { dims: tensor.dims, data: tensor.data.map((value) => value * factor) };
}
