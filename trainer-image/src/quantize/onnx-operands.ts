/**
 * Reads the operands and attributes of a graph's nodes for onnx-to-layers.ts, and refuses those that no layer can have.
 * @throws FacetrainError UnsupportedOperator in every method, naming the operator and its node
 */
import { counted, FacetrainError } from '@facetrain/api';
import type { Graph, GraphNode, Tensor } from '@facetrain/native';
import { elementCount, type Shape } from './layer-shapes.ts';

/** An ONNX value: the tensor that an operation computes, or its flattened form [N, channels·height·width]. */
export interface Value {
  tensor: string;
  shape: Shape;
  flat: boolean;
  /** Of a value that is neither a map nor flat: its dimensions for one picture. Only nodes in FP32 read it. */
  dims?: number[];
}

/** The dimensions of a value for one picture, with the batch of 1. */
export function dimsOf({ shape, flat, dims }: Value): number[] {
  return dims ?? (flat ? [1, elementCount(shape)] : [1, ...shape]);
}

export class Operands {
  readonly #initializers: Graph['initializers'];
  readonly #values = new Map<string, Value>();

  constructor({ input, initializers }: Graph) {
    this.#initializers = initializers;
    const shape: Shape = [input.channels, input.height, input.width];
    this.#values.set(input.name, { tensor: input.name, shape, flat: false });
  }

  /** Adds a value that a node computes. */
  define(name: string, value: Value): void {
    this.#values.set(name, value);
  }

  /** A computed value by name. */
  find(name: string): Value | undefined {
    return this.#values.get(name);
  }

  isConstant(name: string): boolean {
    return Object.hasOwn(this.#initializers, name);
  }

  /** A computed operand, which is a map or flat. */
  value(node: GraphNode, index: number): Value {
    const value = this.#values.get(node.inputs[index] ?? '');
    if (value?.dims)
      throw this.unsupported(
        node,
        `an input of ${counted(value.dims.length, 'dimension')}`,
        'a feature map [N, channels, height, width] or rows of features [N, features]',
      );
    if (!value)
      throw this.unsupported(
        node,
        `input ${index} ("${node.inputs[index] ?? ''}") that the graph does not compute from its input`,
        'a computed tensor',
      );
    return value;
  }

  /** The first operand, which must have height and width. */
  featureMap(node: GraphNode): Value {
    const value = this.value(node, 0);
    if (value.flat) throw this.unsupported(node, 'a flattened input', 'a feature map [N, channels, height, width]');
    return value;
  }

  /** The first operand, which must be flattened. */
  flattened(node: GraphNode): Value {
    const value = this.value(node, 0);
    if (!value.flat)
      throw this.unsupported(node, 'a feature map as its input', 'rows of features: put a Flatten in front of it');
    return value;
  }

  /** A value whose second axis is its tensor’s channels, so not a flattened feature map. */
  channelwise(node: GraphNode, index: number): Value {
    const value = this.value(node, index);
    if (value.flat && elementCount(value.shape) !== value.shape[0])
      throw this.unsupported(node, 'a flattened feature map as its input', 'it in front of the Flatten');
    return value;
  }

  /** A constant operand of any element type. */
  initializer(node: GraphNode, index: number): Tensor {
    const name = node.inputs[index] ?? '';
    if (!this.isConstant(name))
      throw this.unsupported(node, `input ${index} ("${name}") that is computed`, 'a constant');
    return this.#initializers[name]!;
  }

  /** A constant operand of floats. */
  constant(node: GraphNode, index: number): Tensor<Float32Array> {
    const { dims, data } = this.initializer(node, index);
    if (!(data instanceof Float32Array))
      throw this.unsupported(
        node,
        `input ${index} ("${node.inputs[index]}") of ${data.constructor.name}`,
        '32-bit floats',
      );
    return { dims, data };
  }

  floats(node: GraphNode, index: number): Float32Array {
    return this.constant(node, index).data;
  }

  /** A constant that ONNX broadcasts over a picture, as one value per channel. */
  perChannelConstant(node: GraphNode, index: number, channels: number, flat: boolean): Float32Array {
    const { dims, data } = this.constant(node, index);
    if (data.length === 1) return new Float32Array(channels).fill(data[0]!);
    const trailing = flat ? [channels] : [channels, 1, 1];
    const fits = [trailing, [1, ...trailing]].some((want) => want.join() === dims.join());
    if (!fits)
      throw this.unsupported(
        node,
        `a constant of shape [${dims.join(', ')}]`,
        `one number, or one for each of ${counted(channels, 'channel')}`,
      );
    return data;
  }

  number(node: GraphNode, attribute: string, fallback: number): number {
    return (node.attributes[attribute] as number | undefined) ?? fallback;
  }

  numbers(node: GraphNode, attribute: string, fallback: number[]): number[] {
    return (node.attributes[attribute] as number[] | undefined) ?? fallback;
  }

  subject(node: GraphNode): string {
    return `node "${node.name}" (${node.op})`;
  }

  /** The error of a node that no layer can represent. */
  unsupported(node: GraphNode, found: string, allowed: string): FacetrainError {
    return new FacetrainError({ code: 'UnsupportedOperator', subject: this.subject(node), found, allowed });
  }
}
