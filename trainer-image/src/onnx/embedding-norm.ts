/**
 * Finds the normalisation that ends a model, in any spelling: LpNormalization, ReduceL2 with Clip, Expand and Div,
 * Mul, ReduceSum, Sqrt and Div, ... It multiplies each picture's embedding by one number that is not negative.
 * Embeddings are compared by their cosine, which such a factor does not change, so the normalisation may go.
 */
import type { GraphNode, Tensor } from '@facetrain/native';
import { intAttribute } from './attributes.ts';

export interface KnownValues {
  constant: (name: string) => Tensor | undefined;
  /** The shape of a value for one picture, without the batch; undefined when it is not known. */
  pictureShape: (name: string) => number[] | undefined;
}

/** Deepest chain of nodes between an embedding and its norm. */
const DEEPEST = 24;
/** Operators that keep the numbers, or repeat them. */
const MOVES = new Set([
  'Cast',
  'Expand',
  'Flatten',
  'Identity',
  'Reshape',
  'Squeeze',
  'Tile',
  'Transpose',
  'Unsqueeze',
]);
/** Operators that change the form alone, so an embedding in front of them is the same embedding. */
const FORMS = new Set(['Cast', 'Flatten', 'Identity', 'Reshape', 'Squeeze', 'Unsqueeze']);
/** Reductions whose result is not negative for any input. */
const NORMS = new Set(['ReduceL1', 'ReduceL2', 'ReduceSumSquare']);
/** Reductions whose result is not negative where the input is not. */
const KEEPING = new Set(['ReduceMax', 'ReduceMean', 'ReduceMin', 'ReduceSum']);

const isPositiveNumber = (tensor: Tensor | undefined) => tensor?.data.length === 1 && Number(tensor.data[0]) > 0;
const isOneNumber = (shape: number[] | undefined) => shape?.every((dim) => dim === 1) === true;

/** Answers are kept by name: a value that many nodes read is looked at once. */
function remembered(question: (name: string, depth: number) => boolean): (name: string, depth: number) => boolean {
  const answers = new Map<string, boolean>();
  return (name, depth) => {
    const known = answers.get(name);
    if (known !== undefined) return known;
    const answer = question(name, depth);
    answers.set(name, answer);
    return answer;
  };
}

/** @returns the nodes that normalise, each with the value that it normalises, from the end */
export function normalisationsAtEnd(
  nodes: GraphNode[],
  output: string,
  { constant, pictureShape }: KnownValues,
): { node: GraphNode; embedding: string }[] {
  const producers = new Map(nodes.flatMap((node) => node.outputs.map((name) => [name, node] as const)));

  /** Whether no element of a value can be negative. */
  const isNotNegative = remembered((name: string, depth: number): boolean => {
    const given = constant(name);
    if (given) return given.data.every((value) => Number(value) >= 0);
    const node = producers.get(name);
    if (!node || depth > DEEPEST) return false;
    const [a, b] = node.inputs;
    const every = () => node.inputs.every((input) => isNotNegative(input, depth + 1));
    if (['Abs', 'Exp', 'Relu', 'Sqrt', 'Sigmoid', 'Softmax'].includes(node.op) || NORMS.has(node.op)) return true;
    if (MOVES.has(node.op) || KEEPING.has(node.op) || node.op === 'Reciprocal') return isNotNegative(a!, depth + 1);
    if (node.op === 'Mul' && a === b) return true;
    if (['Add', 'Div', 'Mul', 'Min'].includes(node.op)) return every();
    if (node.op === 'Max') return node.inputs.some((input) => isNotNegative(input, depth + 1));
    if (node.op === 'Clip') {
      const low = constant(b ?? '');
      return (low !== undefined && Number(low.data[0]) >= 0) || (!node.inputs[2] && isNotNegative(a!, depth + 1));
    }
    if (node.op === 'Pow') {
      const power = constant(b ?? '');
      return (power?.data.length === 1 && Number(power.data[0]) % 2 === 0) || isNotNegative(a!, depth + 1);
    }
    return false;
  });

  /** Whether a value has one number for each picture, perhaps repeated. */
  const isOneForEachPicture = remembered((name: string, depth: number): boolean => {
    const given = constant(name);
    if (given) return given.data.length === 1;
    if (isOneNumber(pictureShape(name))) return true;
    const node = producers.get(name);
    if (!node || depth > DEEPEST) return false;
    const elementwise = ['Abs', 'Add', 'Clip', 'Div', 'Max', 'Min', 'Mul', 'Pow', 'Reciprocal', 'Sqrt'];
    if (MOVES.has(node.op)) return isOneForEachPicture(node.inputs[0]!, depth + 1);
    return (
      elementwise.includes(node.op) && node.inputs.every((input) => !input || isOneForEachPicture(input, depth + 1))
    );
  });

  const isFactor = (name: string) => !constant(name) && isOneForEachPicture(name, 0) && isNotNegative(name, 0);

  const found: { node: GraphNode; embedding: string }[] = [];
  const readers = new Map<string, number>();
  for (const name of nodes.flatMap(({ inputs }) => [...new Set(inputs)]))
    readers.set(name, (readers.get(name) ?? 0) + 1);

  for (let value = output; ; ) {
    const node = producers.get(value);
    // What else reads a normalised value reads a part of the embedding's own computation.
    if (!node || (readers.get(value) ?? 0) > (value === output ? 0 : 1)) return found;
    const [a, b] = node.inputs as [string, string | undefined];
    const embedding = normalised(node);
    if (embedding !== undefined) {
      found.push({ node, embedding });
      // Its readers are those of the normalised value now, and the norm's nodes, which go.
      readers.set(embedding, 1);
      value = embedding;
    } else if (FORMS.has(node.op) || (['Mul', 'Div'].includes(node.op) && isPositiveNumber(constant(b ?? ''))))
      value = a;
    else if (node.op === 'Mul' && isPositiveNumber(constant(a))) value = b!;
    else return found;
  }

  /** The value that a node normalises; undefined when it does not normalise. */
  function normalised(node: GraphNode): string | undefined {
    const [a, b] = node.inputs as [string, string | undefined];
    if (node.op === 'LpNormalization') {
      const shape = pictureShape(a);
      const axis = intAttribute(node, 'axis', -1);
      // Counted with the batch, which is axis 0.
      const along = axis < 0 ? axis + (shape?.length ?? 0) : axis - 1;
      return shape?.every((dim, i) => i === along || dim === 1) && along >= 0 ? a : undefined;
    }
    if (b === undefined || constant(a) || constant(b)) return undefined;
    const isScaling = (x: string, factor: string) => {
      const [shape, result] = [pictureShape(x), pictureShape(node.outputs[0]!)];
      return isFactor(factor) && shape !== undefined && shape.join() === result?.join();
    };
    if (['Div', 'Mul'].includes(node.op) && isScaling(a, b)) return a;
    if (node.op === 'Mul' && isScaling(b, a)) return b;
    return undefined;
  }
}
