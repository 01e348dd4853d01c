/**
 * ONNX nodes as layers of kind `node`: operators that the INT7 network computes in FP32 between dequantized inputs and
 * a quantized output, and those that stay in FP32 altogether.
 *
 * Functions of single numbers are joined: HardSwish as an exporter writes it, Add, Clip, Mul and Div, is one layer, so
 * that nothing between the four is rounded.
 */
import type { Graph, GraphNode, NodeLayer, NodeOperand, NodeStep } from '@facetrain/native';

/** Operators of native/nodes/*_operators.cc. */
export const NODE_OPERATORS = `
  Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose DepthToSpace Div
  Elu Equal Erf Exp Expand Flatten Floor Gather Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
  HardSigmoid HardSwish Identity LRN LayerNormalization LeakyRelu Less LessOrEqual Log LpPool MatMul Max MaxPool Min
  Mul Neg Not Or PRelu Pad Pow Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Round
  Sigmoid Sign Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Transpose Unsqueeze Where
`
  .trim()
  .split(/\s+/);

/** Functions of each number by itself, where their other operands are single numbers. */
const ELEMENTWISE = new Set(
  `Abs Add And Cast Ceil Clip Div Elu Equal Erf Exp Floor Greater GreaterOrEqual HardSigmoid HardSwish LeakyRelu Less
   LessOrEqual Log Max Min Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Softplus Sqrt Sub Tanh
   ThresholdedRelu Where`.split(/\s+/),
);
/** Of these, those that are layers or affine maps of their own where one operand is computed. */
const SIMPLE = new Set(['Add', 'Sub', 'Mul', 'Div', 'Relu', 'LeakyRelu']);

/** Operators of maps whose output is quantized: a convolution may read it. */
const QUANTIZED = new Set(
  `Add AveragePool Concat DepthToSpace Div Gather GlobalMaxPool LRN LpPool Max MaxPool Min Mul Pad Resize Sub
   Sum`.split(/\s+/),
);

/** A function of one value, whose nodes become one layer. */
export interface FunctionRegion {
  /** In topological order; the last computes the function. */
  nodes: GraphNode[];
  input: string;
}

/**
 * The functions of single numbers in a graph, by their last node.
 * @param boundaries the values that a file quantizes: a function reads one of these, and has none inside. Absent: any
 * @param others values that are no floats: a function may have them inside, but neither reads nor computes them
 */
export function functionRegions(
  graph: Graph,
  boundaries: ReadonlySet<string> | undefined,
  others: ReadonlySet<string>,
): Map<GraphNode, FunctionRegion> {
  const readers = new Map<string, Set<GraphNode>>();
  const producers = new Map<string, GraphNode>();
  for (const node of graph.nodes) {
    for (const name of node.inputs) readers.set(name, (readers.get(name) ?? new Set()).add(node));
    for (const name of node.outputs) producers.set(name, node);
  }
  const outputs = new Set((graph.outputs ?? [graph.output]).map(({ name }) => name));
  const isConstant = (name: string) => name === '' || Object.hasOwn(graph.initializers, name);
  const isElementwise = (node: GraphNode) =>
    ELEMENTWISE.has(node.op) &&
    !(node.op === 'Div' && others.has(node.outputs[0]!)) &&
    node.inputs.every((name) => name === '' || !isConstant(name) || graph.initializers[name]!.data.length === 1);
  const computed = (node: GraphNode) => node.inputs.filter((name) => !isConstant(name));

  const taken = new Set<GraphNode>();
  const regions = new Map<GraphNode, FunctionRegion>();
  for (const last of graph.nodes.toReversed()) {
    if (taken.has(last) || !isElementwise(last) || others.has(last.outputs[0]!)) continue;
    const region = new Set<GraphNode>();
    let found: FunctionRegion | undefined;
    // One node at a time: what reads a value twice is a function of it before the value's own node is added.
    for (let added: GraphNode | undefined = last; added; ) {
      region.add(added);
      const inputs = new Set([...region].flatMap(computed).filter((name) => !region.has(producers.get(name)!)));
      const [input] = inputs;
      const isInput = input !== undefined && !others.has(input) && (boundaries?.has(input) ?? true);
      if (isInput && inputs.size === 1) found = { nodes: graph.nodes.filter((node) => region.has(node)), input };
      added = [...inputs].flatMap((name) => {
        const producer = producers.get(name);
        const isInside = [...readers.get(name)!].every((reader) => region.has(reader));
        const canGrow = producer && isElementwise(producer) && !taken.has(producer);
        return canGrow && isInside && !outputs.has(name) && !boundaries?.has(name) ? [producer] : [];
      })[0];
    }
    const isFunction = (node: GraphNode) => !SIMPLE.has(node.op) || computed(node).length > 1;
    if (!found?.nodes.some(isFunction)) continue;
    for (const node of found.nodes) taken.add(node);
    regions.set(last, found);
  }
  return regions;
}

/** A value that a node reads, with the dimensions that it reads it with. */
export interface NodeInput {
  tensor: string;
  dims: number[];
}

/** The layer of nodes of which the last computes `output`. @param input by the name of a computed value */
export function nodeLayer(
  nodes: GraphNode[],
  { initializers }: Pick<Graph, 'initializers'>,
  input: (name: string) => NodeInput,
  output: { name: string; dims: number[] },
  real: boolean,
): NodeLayer {
  const names: string[] = [];
  const steps = nodes.map(({ op, inputs, attributes }): NodeStep => {
    const operands = inputs.map((name): NodeOperand => {
      if (name === '') return {};
      const step = nodes.findIndex(({ outputs }) => outputs[0] === name);
      if (step >= 0) return { step };
      if (Object.hasOwn(initializers, name)) return { constant: initializers[name]! };
      if (!names.includes(name)) names.push(name);
      return { input: names.indexOf(name) };
    });
    return { op, attributes, operands };
  });
  const values = names.map(input);
  return {
    kind: 'node',
    name: nodes.at(-1)!.name,
    inputs: values.map(({ tensor }) => tensor),
    output: output.name,
    steps,
    inputDims: values.map(({ dims }) => dims),
    outputDims: output.dims,
    real,
  };
}

const isMap = (dims: number[]) => dims.length === 4 && dims[0] === 1;
const isVector = (dims: number[]) => dims.length === 2 && dims[0] === 1;

/** Whether the output of a layer of one node is quantized: maps to a map, or vectors to a vector. */
export function isQuantizedNode({ steps, inputDims, outputDims }: Omit<NodeLayer, 'real'>): boolean {
  const all = [...inputDims, outputDims];
  if (!all.every(isMap) && !all.every(isVector)) return false;
  const [{ op, attributes, operands }] = steps as [NodeStep];
  if (steps.length > 1 || !QUANTIZED.has(op)) return steps.every((step) => ELEMENTWISE.has(step.op));
  // Along the channels: a Concat of rows or columns, or one that repeats an entry of them, is rare.
  if (op === 'Concat' || op === 'Gather') return attributes.axis === 1;
  if (op === 'Resize') return attributes.mode !== 'cubic';
  return op === 'Pad' || operands.every((operand) => 'input' in operand);
}

/** Operators of nodes that may be quantized. */
export const QUANTIZED_NODE_OPERATORS: readonly string[] = [...QUANTIZED, ...ELEMENTWISE];

/** Why isQuantizedNode is false of a layer of one node. */
export function whyReal({ steps, inputDims, outputDims }: Omit<NodeLayer, 'real'>): string {
  const [{ op, attributes, operands }] = steps as [NodeStep];
  const all = [...inputDims, outputDims];
  if (!QUANTIZED_NODE_OPERATORS.includes(op)) return `operator ${op}, which is computed in FP32`;
  if (!all.every(isMap) && !all.every(isVector))
    return `operator ${op} of other than feature maps, or than rows of features: only FP32`;
  if (op === 'Concat' || op === 'Gather') return `operator ${op} along axis ${attributes.axis}, not the channels`;
  if (op === 'Resize') return `operator ${op} of mode ${attributes.mode}`;
  return `operator ${op} with ${operands.length === 1 ? 'an operand' : 'operands'} that the graph does not compute`;
}

/** Whether an operator only moves numbers, so that its input and its output have one scale (float_steps.h). */
export function movesNumbers({ op, attributes, operands }: NodeStep): boolean {
  if (MOVING.has(op)) return true;
  if (op === 'Resize') return (attributes.mode ?? 'nearest') === 'nearest';
  if (op !== 'Pad') return false;
  const [, , value] = operands;
  const filled =
    value && 'constant' in value
      ? Number((value as { constant: { data: ArrayLike<number> } }).constant.data[0] ?? 0)
      : 0;
  return filled === 0 || (attributes.mode ?? 'constant') !== 'constant';
}

const MOVING = new Set(
  `DepthToSpace Flatten Gather GlobalMaxPool Identity MaxPool Reshape Slice Squeeze Transpose Unsqueeze`.split(/\s+/),
);
