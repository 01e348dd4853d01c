/**
 * Brings a graph of any operator set and exporter into one form, so that all commands read the same graphs:
 *
 * 1. Every node has its form of operator set 17 (translate-node.ts). Nodes of constants are computed
 *    (constant-folding.ts); Identity, Dropout and casts between floats are gone; of an If whose condition is known, the
 *    chosen branch stays.
 * 2. A normalisation that ends the model is gone (embedding-norm.ts), and a PRelu in parts is one node
 *    (prelu-parts.ts).
 * 3. What can be written with the operators of operators.ts is written with them (canonical.ts); a MatMul and the Add
 *    of its bias are a Gemm. The output is [N, d].
 * 4. There is no node or constant that the output does not depend on.
 */
import { counted, FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { intAttribute } from './attributes.ts';
import type { Branch, Branches } from './branches.ts';
import { Canonicalizer } from './canonical.ts';
import { composite } from './composites.ts';
import { foldConstants, MAX_FOLDED_ELEMENTS } from './constant-folding.ts';
import { computesFloats } from './element-types.ts';
import { normalisationsAtEnd } from './embedding-norm.ts';
import { inferShapes, ShapeInference } from './infer-shapes.ts';
import { OnePicture } from './one-picture.ts';
import { joinPRelus } from './prelu-parts.ts';
import { dataTypeNumber } from './proto.ts';
import { type Cut, notSupported, TailSearch, type TailSource } from './tail.ts';
import { type Context, translateNode } from './translate-node.ts';
import { UniqueNames } from './unique-names.ts';
import { unsupportedArgument } from './unsupported-arguments.ts';

export interface NormalizeOptions {
  /** Operator set of the file. */
  opset: number;
  /** Batch size of the file's input; null when it is free. */
  fixedBatch: number | null;
  /** Of the nodes If, by name. */
  branches: Map<string, Branches>;
  /** The file's name, for messages. */
  subject: string;
  /**
   * The outputs to keep, each in its own shape, if they are not one embedding. What no canonical operator computes is
   * then written with other operators instead of being refused: the quantizer runs it in FP32.
   */
  outputs?: string[] | undefined;
  /** Keeps a normalisation at the end: a file of the quantizer has none, and what looks like one is a function. */
  keepsNorms?: boolean | undefined;
  /** Where what our runtime does not compute may be a tail (tail.ts). */
  tail?: TailSource | undefined;
}

export interface Normalized {
  graph: Graph;
  /** What the graph does not compute any more, each a sentence for people. */
  removed: string[];
  /** Where the file's nodes have a tail: the graph is without it, and has the cut's outputs. */
  cut?: Cut | undefined;
}

/** @throws FacetrainError UnsupportedOperator for a node that has no form in operator set 17; InvalidModel */
export function normalize(
  graph: Graph,
  { opset, fixedBatch, branches, subject, outputs: kept, keepsNorms = false, tail }: NormalizeOptions,
): Normalized {
  const initializers = new Map(Object.entries(graph.initializers));
  const names = new UniqueNames([
    graph.input.name,
    ...initializers.keys(),
    ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
  ]);
  // Shapes are inferred for two batch sizes: an entry that differs depends on the batch.
  const batches = [1, 2].map((batch) => new ShapeInference(graph, batch)) as [ShapeInference, ShapeInference];
  const define = (name: string, tensor: Tensor) => {
    initializers.set(name, tensor);
    for (const inference of batches) inference.define(name, tensor);
  };
  const context: Context = {
    opset,
    fixedBatch,
    batches,
    refuse: (node, found, allowed) =>
      new FacetrainError({
        code: 'UnsupportedOperator',
        subject,
        found: `node "${node.name}" (${node.op}) ${found}`,
        allowed,
      }),
    keepsAll: kept !== undefined,
    isConstant: (name) => initializers.has(name),
    constant: (name, tensor) => {
      const unique = names.take(name);
      define(unique, tensor);
      return unique;
    },
  };
  const pictureShape = (name: string) => pictureShapeOf(batches, name);
  const constantOf = (name: string) => initializers.get(name);

  const {
    nodes: translated,
    outputs,
    cut,
  } = translateAll(graph, context, {
    initializers,
    define,
    branches,
    freshName: (name) => names.take(name),
    outputs: kept ?? [graph.output.name],
    tail,
  });
  const live = liveNodes(translated, outputs);
  // One vector is an embedding; of others, nothing is known. A tail reads values as they are.
  const isEmbedding = !cut && outputs.length === 1 && (!kept || isVector(pictureShape(outputs[0]!)));
  const findsNorms = isEmbedding && !keepsNorms;
  const norms = findsNorms ? normalisationsAtEnd(live, outputs[0]!, { constant: constantOf, pictureShape }) : [];
  const removed = norms.map(
    ({ node: { name, op } }) =>
      `node "${name}" (${op}), which normalises the embedding: its cosine with others stays the same`,
  );
  for (const { node, embedding } of norms) Object.assign(node, identity(node, embedding));

  const canonical = new Canonicalizer(graph.input, {
    pictureShape,
    constantOf,
    constant: context.constant,
    freshName: (name) => names.take(name),
    refuse: context.refuse,
    integers: (name) => {
      const [one, two] = batches.map(({ integers }) => integers.get(name));
      return one && one.join() === two?.join() ? one : undefined;
    },
    keepsAll: kept !== undefined,
  });
  const { nodes: whole } = joinPRelus(
    {
      ...graph,
      nodes: liveNodes(live, outputs),
      initializers: Object.fromEntries(initializers),
      outputs: outputs.map((name) => ({ name, dims: [] })),
    },
    batches[0].shapes,
  );
  for (const node of whole) canonical.visit(node);
  if (!isEmbedding) canonical.finishAll(outputs);
  else if (!canonical.finish(outputs[0]!, graph.input.name))
    throw new FacetrainError({
      code: 'InvalidModel',
      subject,
      found: `output "${outputs[0]}" is the picture itself`,
      allowed: 'an embedding [N, d]',
    });
  const written = liveNodes(canonical.nodes, outputs);
  // A product of several rows a picture is no Gemm.
  const shapes = inferShapes({ ...graph, nodes: written, initializers: Object.fromEntries(initializers) }, 1);
  const isRow = (name: string) => (shapes.get(name)?.length ?? (kept ? 0 : 2)) === 2;
  const nodes = biasedProducts(written, outputs, initializers, isRow);
  const used = new Set(nodes.flatMap(({ inputs }) => inputs));
  return {
    graph: { ...graph, nodes, initializers: Object.fromEntries([...initializers].filter(([name]) => used.has(name))) },
    removed,
    cut,
  };
}

function isVector(shape: number[] | undefined): boolean {
  return shape !== undefined && shape.length > 0 && shape.filter((dim) => dim !== 1).length <= 1;
}

/** The shape of a value for one picture, without the batch; undefined if it is not known, or the batch is not first. */
function pictureShapeOf(batches: [ShapeInference, ShapeInference], name: string): number[] | undefined {
  const [one, two] = batches.map(({ shapes }) => shapes.get(name));
  const isKnown = one?.[0] === 1 && two?.[0] === 2 && one.slice(1).join() === two.slice(1).join();
  return isKnown ? one.slice(1) : undefined;
}

interface Translation {
  initializers: Map<string, Tensor>;
  define: (name: string, tensor: Tensor) => void;
  branches: Map<string, Branches>;
  freshName: (name: string) => string;
  outputs: string[];
  tail: TailSource | undefined;
}

/**
 * The nodes that depend on the picture, in the form of operator set 17. Where all is kept, operators that others can
 * compute are written with those (composites.ts).
 * @returns with the outputs that they have: without a tail, those of the translation
 */
function translateAll(
  graph: Graph,
  context: Context,
  { initializers, define, branches, freshName, outputs, tail: source }: Translation,
): { nodes: GraphNode[]; outputs: string[]; cut: Cut | undefined } {
  /** Values that a branch may read. */
  const known = new Set([graph.input.name]);
  const nodes = graph.nodes.toReversed();
  const aliases = new Map<string, string>();
  const translated: GraphNode[] = [];
  /** Parts of composites, which have the form of operator set 17. */
  const written = new Set<GraphNode>();
  /** Computed values that are no floats. */
  const others = new Set<string>();
  const isFloat = (name: string) => {
    const constant = initializers.get(name);
    return constant ? constant.data instanceof Float32Array : !others.has(name);
  };
  const tail = source && new TailSearch(source);
  /** What has no sizes since the attributes of a node are wrong. What plans the layers refuses it. */
  const wrong = new Set<string>();
  /** The node of the file that a node is a part of. */
  const owners = new Map<GraphNode, GraphNode>();
  // Two pictures at once would not be the file's one.
  const picture =
    context.keepsAll && context.fixedBatch === 1
      ? new OnePicture(context, (name) => initializers.get(name), freshName)
      : undefined;
  let folded = 0;
  const translate = (original: GraphNode, owner: GraphNode): void => {
    const replaceBy = (parts: GraphNode[]) => {
      for (const part of parts) owners.set(part, owner);
      nodes.push(...parts.toReversed());
    };
    const node: GraphNode = {
      ...original,
      inputs: original.inputs.map((name) => aliases.get(name) ?? name),
      attributes: { ...original.attributes },
    };
    const branch = node.op === 'If' && branches.get(node.name);
    if (branch) {
      const chosen = branch(conditionOf(node, context));
      for (const [name, tensor] of chosen.outerConstants) if (!initializers.has(name)) define(name, tensor);
      const isKnown = (name: string) => known.has(name) || initializers.has(name);
      replaceBy(inPlaceOf(node, chosen, { isKnown, freshName }, context));
      return;
    }
    if (!written.has(original)) {
      const changed = picture?.change(node, original.inputs);
      if (changed && 'constant' in changed) return define(node.outputs[0]!, changed.constant);
      if (changed && changed.before.length > 0) {
        for (const part of changed.before) written.add(part);
        written.add(node);
        replaceBy([...changed.before, node]);
        return;
      }
      translateNode(node, context);
      if (context.keepsAll) makeIntegersConstant(node, context);
      const parts = context.keepsAll ? composite(node, context, freshName) : undefined;
      if (parts) {
        for (const part of parts) written.add(part);
        replaceBy(parts);
        return;
      }
    }
    const [output] = node.outputs as [string];
    const tensors = node.inputs.map((name) => initializers.get(name));
    if (tensors.every((tensor) => tensor !== undefined)) {
      const { shapes, integers } = context.batches[0];
      const value = foldConstants(node, tensors, {
        shapes: node.inputs.map((name) => shapes.get(name)),
        integers: node.inputs.map((name) => integers.get(name)),
      });
      // Data that is shared with the inputs is not new.
      folded += value && !tensors.some(({ data }) => data === value.data) ? value.data.length : 0;
      if (folded > MAX_FOLDED_ELEMENTS)
        throw context.refuse(node, 'computes too much of constants', `${MAX_FOLDED_ELEMENTS} numbers in all`);
      if (value) {
        define(output, value);
        return;
      }
    }
    for (const inference of context.batches) inference.visit(node);
    const integers = integersOf(node, context);
    if (integers) {
      define(output, integers);
      return;
    }
    if (!computesFloats(node, isFloat)) for (const name of node.outputs) others.add(name);
    const isAlias = isIdentity(node, isFloat);
    if (tail && !isAlias) checkComputed(node, tail, { wrong, isFloat }, context);
    if (!isAlias) translated.push(node);
    else {
      // An output keeps its name, and with it a node. Others read what is in front of it.
      if (outputs.includes(output)) translated.push(identity(node, node.inputs[0]!));
      aliases.set(output, node.inputs[0]!);
    }
  };
  const isSize = (name: string) =>
    name === '' || initializers.has(name) || context.batches.every(({ integers }) => integers.has(name));
  for (let original = nodes.pop(); original; original = nodes.pop()) {
    const owner = owners.get(original) ?? original;
    try {
      if (!tail?.takes(owner.name, original.inputs, isSize)) translate(original, owner);
    } catch (error) {
      if (!tail || !(error instanceof FacetrainError) || error.code !== 'UnsupportedOperator') throw error;
      tail.addRefused(owner.name, error);
    }
    for (const name of original.outputs) known.add(name);
  }
  const cut =
    tail &&
    cutTail(
      tail,
      graph,
      { translated, aliases, outputs, isFloat, initializers, changed: picture?.values ?? new Set() },
      context,
    );
  const given = cut?.outputs ?? outputs;
  // Of the values that enter the tail, those of nodes that are gone.
  const made = new Set(translated.flatMap((node) => node.outputs));
  for (const name of cut?.inputs ?? [])
    if (!made.has(name))
      translated.push({
        ...{ name: freshName(`${name}_identity`), op: 'Identity', attributes: {} },
        ...{ inputs: [aliases.get(name)!], outputs: [name] },
      });
  if (context.keepsAll)
    for (const output of given) translated.push(...readable(output, translated, { isFloat, freshName }, context));
  return { nodes: translated, outputs: given, cut };
}

/**
 * @param wrong gets the outputs of a node with wrong attributes, and of those that read them
 * @throws FacetrainError UnsupportedOperator for a node that our runtime does not compute
 */
function checkComputed(
  node: GraphNode,
  tail: TailSearch,
  { wrong, isFloat }: { wrong: Set<string>; isFloat: (name: string) => boolean },
  { batches, isConstant, refuse }: Context,
): void {
  const [output] = node.outputs as [string];
  // Sizes of the batch: what reads them has a form without them, or is refused itself.
  if (batches.every(({ integers }) => integers.has(output))) return;
  if (!tail.computes(node.op)) throw refuse(node, notSupported(node.op), 'an operator that is');
  const shape = (name: string) => batches[0].shapes.get(name);
  const argument = unsupportedArgument(node, { shape, isConstant, isFloat });
  if (argument !== undefined) throw refuse(node, argument, 'arguments that our runtime computes');
  const hasSizes = (name: string) => name === '' || batches[0].shapes.has(name);
  if (node.outputs.every(hasSizes)) return;
  const isWrong = WINDOWED.has(node.op) && hasSizes(node.inputs[0] ?? '');
  if (!isWrong && !node.inputs.some((name) => wrong.has(name)))
    throw refuse(node, `computes "${output}" of sizes that are not known`, 'known sizes');
  for (const name of node.outputs) wrong.add(name);
}

/** Operators whose outputs have sizes by those of the input and the attributes alone. */
const WINDOWED = new Set(['Conv', 'ConvTranspose', 'MaxPool', 'AveragePool', 'LpPool']);
/** Operators of layers that are quantized, of which one at least is in front of a tail. */
const WEIGHTED = new Set(['Conv', 'ConvTranspose', 'Gemm', 'MatMul']);

/** Cuts the tail off. A value enters it that is of floats, [N, ...], and behind a layer with weights. */
function cutTail(
  tail: TailSearch,
  graph: Graph,
  {
    translated,
    aliases,
    outputs,
    isFloat,
    initializers,
    changed,
  }: {
    translated: GraphNode[];
    aliases: ReadonlyMap<string, string>;
    /** Values that the graph has in another shape than the file. */
    changed: ReadonlySet<string>;
    outputs: string[];
    isFloat: (name: string) => boolean;
    initializers: ReadonlyMap<string, Tensor>;
  },
  { batches, fixedBatch }: Context,
): Cut | undefined {
  const behindWeights = new Set<string>();
  for (const { op, inputs, outputs: made } of translated) {
    const isWeighted = WEIGHTED.has(op) && initializers.has(inputs[1] ?? '');
    if (isWeighted || inputs.some((name) => behindWeights.has(name))) for (const name of made) behindWeights.add(name);
  }
  // What casts keep is a value of one type: the tail has the cast. An If is more than that.
  const ifs = new Set(graph.nodes.flatMap((node) => (node.op === 'If' ? node.outputs : [])));
  const canEnter = (name: string) => {
    if ((aliases.has(name) && !ifs.has(name)) || changed.has(name)) return false;
    const value = aliases.get(name) ?? name;
    const shape = pictureShapeOf(batches, value);
    return behindWeights.has(value) && isFloat(value) && shape !== undefined && shape.length > 0 && !shape.includes(0);
  };
  return tail.cut(outputs, canEnter, (name) => {
    const shape = pictureShapeOf(batches, aliases.get(name) ?? name);
    return shape && (changed.has(name) ? shape : [fixedBatch ?? Number.NaN, ...shape]);
  });
}

/** Integers that a node computes of shapes, the same for every batch. */
function integersOf({ op, outputs }: GraphNode, { batches }: Context): Tensor | undefined {
  const [one, two] = batches.map(({ integers }) => integers.get(outputs[0]!));
  const isKnown = one && one.join() === two?.join() && one.every(Number.isSafeInteger);
  // A Cast may make floats, and comparisons booleans.
  if (!isKnown || !INTEGER_OPERATORS.has(op)) return undefined;
  return integerTensor(one, batches[0].shapes.get(outputs[0]!));
}

/** @param dims of the value, if they are known: a scalar stays one */
function integerTensor(values: number[], dims = [values.length]): Tensor {
  const fits = dims.reduce((product, dim) => product * dim, 1) === values.length;
  return { dims: fits ? dims : [values.length], data: BigInt64Array.from(values, BigInt) };
}

/** Of those of known-integers.ts. */
const INTEGER_OPERATORS = new Set(
  'Add Concat Div Gather Max Min Mul Shape Slice Squeeze Sub Unsqueeze Where'.split(' '),
);

/** Operators that have integers behind their first operand: places, sizes, axes. */
const WITH_INTEGERS = new Set('Expand Gather Pad ReduceSum Resize Slice Split Squeeze Unsqueeze'.split(' '));

/** Makes the integers that a node reads constants, where they are known for one picture. */
function makeIntegersConstant(node: GraphNode, { batches, constant, isConstant }: Context): void {
  if (!WITH_INTEGERS.has(node.op)) return;
  const [{ integers, shapes }] = batches;
  node.inputs = node.inputs.map((name, i) => {
    const known = i > 0 && name !== '' && !isConstant(name) ? integers.get(name) : undefined;
    if (!known?.every(Number.isSafeInteger)) return name;
    return constant(`${node.name}.${i}`, integerTensor(known, shapes.get(name)));
  });
}

/**
 * Nodes that make an output one of floats whose first dimension is the batch: places and booleans become numbers, and
 * rows of one picture, [n, d], become [1, n, d]. What computed it before gets another name.
 */
function readable(
  output: string,
  nodes: GraphNode[],
  { isFloat, freshName }: { isFloat: (name: string) => boolean; freshName: (name: string) => string },
  { batches, constant }: Context,
): GraphNode[] {
  const dims = batches[0].shapes.get(output);
  const parts: Omit<GraphNode, 'inputs' | 'outputs'>[] = [];
  if (!isFloat(output)) parts.push({ name: '', op: 'Cast', attributes: { to: dataTypeNumber('FLOAT') } });
  if (dims && dims[0] !== 1) parts.push({ name: '', op: 'Reshape', attributes: {} });
  if (parts.length === 0) return [];
  let value = freshName(`${output}_value`);
  const renamed = (name: string) => (name === output ? value : name);
  for (const node of nodes) {
    node.inputs = node.inputs.map(renamed);
    node.outputs = node.outputs.map(renamed);
  }
  for (const { shapes } of batches) {
    if (shapes.has(output)) shapes.set(value, shapes.get(output)!);
    shapes.delete(output);
  }
  return parts.map((part, i) => {
    const made = i + 1 < parts.length ? freshName(`${output}_number`) : output;
    const target = part.op === 'Reshape' ? [constant(`${output}.shape`, integerTensor([1, ...dims!]))] : [];
    const inputs = [value, ...target];
    const node = { ...part, name: freshName(`${output}_${part.op.toLowerCase()}`), inputs, outputs: [made] };
    for (const inference of batches) inference.visit(node);
    value = made;
    return node;
  });
}

/** The condition of an If. @throws FacetrainError UnsupportedOperator when it depends on the picture or the batch */
function conditionOf(node: GraphNode, { batches, refuse }: Context): boolean {
  const [one, two] = batches.map(({ integers }) => integers.get(node.inputs[0]!));
  if (one?.length !== 1 || two?.length !== 1 || one[0] !== two[0])
    throw refuse(
      node,
      'has a condition that is not known before a picture is',
      'a constant condition, or one of shapes',
    );
  return one[0] !== 0;
}

/** The nodes of a branch, with the outputs of its If, and other names that no other branch has. */
function inPlaceOf(
  original: GraphNode,
  { nodes, constants, outputs }: Branch,
  { isKnown, freshName }: { isKnown: (name: string) => boolean; freshName: (name: string) => string },
  { refuse, constant }: Context,
): GraphNode[] {
  if (outputs.length !== original.outputs.length)
    throw refuse(
      original,
      `has a branch of ${counted(outputs.length, 'output')}`,
      counted(original.outputs.length, 'output'),
    );
  const made = new Map([...constants].map(([name, tensor]) => [name, constant(name, tensor)]));
  const placed = nodes.map((node): GraphNode => {
    const inputs = node.inputs.map((name) => {
      const inner = made.get(name);
      if (inner === undefined && name !== '' && !isKnown(name))
        throw refuse(
          original,
          `has a branch that reads "${name}", which no node before it makes`,
          'values that are made',
        );
      return inner ?? name;
    });
    const own = node.outputs.map((name) => (name === '' ? '' : freshName(name)));
    node.outputs.forEach((name, i) => {
      made.set(name, own[i]!);
    });
    return { ...node, name: freshName(node.name), inputs, outputs: own };
  });
  // An Identity for each output: a value may be several outputs, or be made outside.
  const identities = original.outputs.map((output, i): GraphNode => {
    const value = made.get(outputs[i]!) ?? outputs[i]!;
    if (!made.has(outputs[i]!) && !isKnown(value))
      throw refuse(original, `has a branch that returns "${value}", which no node makes`, 'values that are made');
    return { name: freshName(original.name), op: 'Identity', inputs: [value], outputs: [output], attributes: {} };
  });
  return [...placed, ...identities];
}

function identity(node: GraphNode, input: string): GraphNode {
  return { ...node, op: 'Identity', inputs: [input], attributes: {} };
}

/** Whether a node's value is its first input. Half precision is read as float32, so a cast to it rounds nothing. */
function isIdentity(node: GraphNode, isFloat: (name: string) => boolean): boolean {
  if (node.op === 'Identity' || node.op === 'Dropout') return true;
  if (node.op === 'Concat' && node.inputs.length === 1) return true;
  return node.op === 'Cast' && intAttribute(node, 'to', 0) === dataTypeNumber('FLOAT') && isFloat(node.inputs[0]!);
}

/** Writes a product by a constant matrix and the bias that alone reads it as one Gemm, whose bias is learned. */
function biasedProducts(
  nodes: GraphNode[],
  outputs: string[],
  initializers: Map<string, Tensor>,
  isRow: (name: string) => boolean,
): GraphNode[] {
  const readers = new Map<string, GraphNode[]>();
  for (const node of nodes) for (const name of node.inputs) readers.set(name, [...(readers.get(name) ?? []), node]);
  const gone = new Set<GraphNode>();
  const result = nodes.map((node) => {
    const [product, more] = readers.get(node.outputs[0]!) ?? [];
    const matrix = initializers.get(node.inputs[1] ?? '');
    if (node.op !== 'MatMul' || product?.op !== 'Add' || more || outputs.includes(node.outputs[0]!)) return node;
    if (!isRow(node.inputs[0]!)) return node;
    const bias = product.inputs.find((name) => name !== node.outputs[0])!;
    const dims = initializers.get(bias)?.dims;
    if (matrix?.dims.length !== 2 || dims?.length !== 1 || dims[0] !== matrix.dims[1]) return node;
    gone.add(product);
    return { ...node, op: 'Gemm', inputs: [...node.inputs, bias], outputs: product.outputs, attributes: {} };
  });
  return result.filter((node) => !gone.has(node));
}

/** The nodes that the outputs depend on. */
function liveNodes(nodes: GraphNode[], outputs: string[]): GraphNode[] {
  const needed = new Set(outputs);
  const live: GraphNode[] = [];
  for (const node of nodes.toReversed()) {
    if (!node.outputs.some((name) => needed.has(name))) continue;
    live.push(node);
    for (const name of node.inputs) needed.add(name);
  }
  return live.reverse();
}
