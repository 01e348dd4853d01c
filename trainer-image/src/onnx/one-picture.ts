/**
 * A file of one picture at a time may take the picture out of its batch, x[0], and put it back: torchvision's detectors
 * do, in front of their first convolution. What stands between is a Resize, a Pad or a function of each number, which
 * work on the batch of one as well.
 *
 * Values between are marked: the graph has them with the batch, the file without it. Sizes that are read of them are
 * the file's.
 */
import type { GraphNode, Tensor } from '@facetrain/native';
import { intAttribute, intsAttribute } from './attributes.ts';
import { computedIntegers } from './known-integers.ts';
import type { Context } from './translate-node.ts';

/** Functions of each number, of which other operands are constants or values of the same kind. */
const KEEPS_PLACES = new Set(
  'Abs Add Cast Clip Div Identity Max Min Mul Neg Pow Relu Sigmoid Sqrt Sub Tanh'.split(' '),
);

const zero: Tensor = { dims: [], data: BigInt64Array.of(0n) };

export class OnePicture {
  /** Values that the graph has with a batch of one, and the file without it. */
  readonly values = new Set<string>();
  readonly #context: Context;
  readonly #constantOf: (name: string) => Tensor | undefined;
  readonly #freshName: (name: string) => string;

  constructor(context: Context, constantOf: (name: string) => Tensor | undefined, freshName: (name: string) => string) {
    this.#context = context;
    this.#constantOf = constantOf;
    this.#freshName = freshName;
  }

  /**
   * Changes a node of the file, in place, so that it works on the batch.
   * @param given the inputs by their names in the file; the node has those of the graph
   * @returns a constant that is its value; or nodes in front of it
   */
  change(node: GraphNode, given: string[]): { constant: Tensor } | { before: GraphNode[] } {
    const none = { before: [] };
    const [output] = node.outputs as [string];
    const isTaken = given.map((name) => this.values.has(name));
    if (!isTaken.includes(true)) {
      if (!this.#takesFirst(node)) return none;
      Object.assign(node, { op: 'Identity', inputs: node.inputs.slice(0, 1), attributes: {} });
      this.values.add(output);
      return none;
    }
    if (isTaken[0] && node.op === 'Shape') {
      const [{ shapes }] = this.#context.batches;
      const sizes = computedIntegers(node, { shapes: [shapes.get(node.inputs[0]!)?.slice(1)], integers: [] });
      if (sizes) return { constant: { dims: [sizes.length], data: BigInt64Array.from(sizes, BigInt) } };
    }
    if (isTaken[0] && node.op === 'Unsqueeze' && this.#axesOf(node)?.join() === '0') {
      Object.assign(node, { op: 'Identity', inputs: node.inputs.slice(0, 1), attributes: {} });
      return none;
    }
    if ((isTaken[0] && node.op === 'Pad' && this.#padsBatch(node)) || this.#keepsPlaces(node, isTaken)) {
      this.values.add(output);
      return none;
    }
    // Others read the value as the file has it.
    const before: GraphNode[] = [];
    node.inputs = node.inputs.map((value, i) => {
      if (!isTaken[i]) return value;
      const picture = this.#freshName(`${value}_picture`);
      const inputs = [value, this.#context.constant(`${picture}.index`, zero)];
      before.push({ name: picture, op: 'Gather', inputs, outputs: [picture], attributes: { axis: 0 } });
      return picture;
    });
    return { before };
  }

  /** x[0] of values whose first axis is the batch. */
  #takesFirst(node: GraphNode): boolean {
    const { op, inputs } = node;
    const [x, index] = inputs as [string, string?];
    if (op !== 'Gather' || index === undefined || intAttribute(node, 'axis', 0) !== 0) return false;
    const at = this.#constantOf(index);
    const isFirst = at?.dims.length === 0 && Number(at.data[0]) === 0;
    const shapes = this.#context.batches.map((batch) => batch.shapes.get(x));
    return isFirst && shapes.every((shape, i) => shape?.length === 4 && shape[0] === i + 1);
  }

  #axesOf(node: GraphNode): number[] | undefined {
    const name = node.inputs[1];
    return name === undefined ? intsAttribute(node, 'axes', []) : this.#context.batches[0].integers.get(name);
  }

  /** Pads of [C, H, W] as those of [N, C, H, W]. */
  #padsBatch(node: GraphNode): boolean {
    const pads = this.#context.batches[0].integers.get(node.inputs[1] ?? '');
    if (pads?.length !== 6 || node.inputs[3]) return false;
    const data = BigInt64Array.from([0, ...pads.slice(0, 3), 0, ...pads.slice(3)], BigInt);
    node.inputs[1] = this.#context.constant(`${node.name}.pads`, { dims: [8], data });
    return true;
  }

  #keepsPlaces({ op, inputs }: GraphNode, isTaken: boolean[]): boolean {
    return (
      KEEPS_PLACES.has(op) &&
      inputs.every((name, i) => name === '' || isTaken[i] || (this.#constantOf(name)?.dims.length ?? 4) < 4)
    );
  }
}
