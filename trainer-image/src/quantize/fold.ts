/**
 * The layers to be quantized: the same function in FP32 as the ONNX graph, with affine maps folded into weights.
 *
 * An affine map (see onnx-to-layers.ts) is folded where that is exact:
 *   - into the convolution or the fully connected layer in front of it, if nothing else reads that layer's output;
 *   - into the layers that read it. A convolution pads the *output* of a batch norm in front of it with zeros, and an
 *     offset that is folded into the convolution would also act on that border. Such a map (the first batch norm of
 *     IResNet's units) stays a `pointwise` layer, unless the convolution has no padding or the offset is zero.
 */
import type { Graph, Layer, LayerGraph } from '@facetrain/native';
import {
  type AffineMap,
  type Operation,
  onnxToOperations,
  operandsOf,
  type ReadLayersOptions,
  toLayerGraph,
} from './onnx-to-layers.ts';

type Weighted = Extract<Layer, { kind: 'conv' | 'fc' }>;

export interface FoldOptions extends Pick<ReadLayersOptions, 'strict' | 'onReal'> {
  /** Called for each affine map that is folded, by the name of its node, with the layers or maps that take it in. */
  onFold?: (node: string, into: string[]) => void;
}

/** @throws FacetrainError as onnxToOperations */
export function fold(graph: Graph, options: FoldOptions = {}): LayerGraph {
  const { onFold = () => {} } = options;
  const outputs = new Set((graph.outputs ?? [graph.output]).map(({ name }) => name));
  const merged = foldIntoProducers(onnxToOperations(graph, options), outputs, onFold);
  return toLayerGraph(graph, foldIntoReaders(merged, outputs, onFold), options);
}

/** Folds each affine map into the layer or the map in front of it, if nothing else reads the output of that. */
function foldIntoProducers(
  operations: Operation[],
  outputs: ReadonlySet<string>,
  onFold: NonNullable<FoldOptions['onFold']>,
): Operation[] {
  const readers = countReaders(operations, outputs);
  const producers = new Map<string, Operation>();
  const result: Operation[] = [];
  for (const operation of operations) {
    const producer =
      operation.kind === 'affine' && readers.get(operation.input) === 1 ? producers.get(operation.input) : undefined;
    if (
      operation.kind === 'affine' &&
      (producer?.kind === 'affine' || (isWeighted(producer) && producer.bias.length === operation.scale.length))
    ) {
      const merged = {
        ...(producer.kind === 'affine'
          ? affineAfterAffine(producer, operation)
          : affineAfterWeights(producer, operation)),
        output: operation.output,
      };
      onFold(operation.name, [producer.name]);
      result[result.indexOf(producer)] = merged;
      producers.set(operation.output, merged);
    } else {
      result.push(operation);
      producers.set(operation.output, operation);
    }
  }
  return result;
}

function isWeighted(operation: Operation | undefined): operation is Weighted {
  return operation?.kind === 'conv' || operation?.kind === 'fc';
}

function affineAfterAffine(first: AffineMap, second: AffineMap): AffineMap {
  // Behind a Flatten, the second map has a number for each of a channel's values.
  const perChannel = second.scale.length / first.scale.length;
  const before = (values: Float32Array, index: number) => values[Math.floor(index / perChannel)]!;
  const scale = second.scale.map((value, index) => before(first.scale, index) * value);
  const offset = second.offset.map((value, index) => before(first.offset, index) * second.scale[index]! + value);
  return { ...second, name: first.name, input: first.input, scale, offset };
}

function affineAfterWeights<T extends Weighted>(layer: T, { scale, offset }: AffineMap): T {
  const perOutput = layer.weight.data.length / layer.bias.length;
  const data = layer.weight.data.map((value, index) => value * scale[Math.floor(index / perOutput)]!);
  const bias = layer.bias.map((value, channel) => value * scale[channel]! + offset[channel]!);
  return { ...layer, weight: { dims: layer.weight.dims, data }, bias };
}

/**
 * Folds each remaining affine map into the layers that read it, if the result is exact for all of them. From the end,
 * so that a chain of maps folds completely.
 */
function foldIntoReaders(
  operations: Operation[],
  outputs: ReadonlySet<string>,
  onFold: NonNullable<FoldOptions['onFold']>,
): Operation[] {
  let result = operations;
  for (const operation of operations.toReversed()) {
    if (operation.kind !== 'affine' || outputs.has(operation.output)) continue;
    const readers = result.filter((reader) => operandsOf(reader).includes(operation.output));
    if (!readers.every((reader) => canFoldExactly(reader, operation))) continue;
    onFold(
      operation.name,
      readers.map(({ name }) => name),
    );
    result = result
      .filter((other) => other !== operation)
      .map((other) => (readers.includes(other) ? weightsAfterAffine(other as Weighted, operation) : other));
  }
  return result;
}

function canFoldExactly(reader: Operation, { offset }: AffineMap): boolean {
  if (reader.kind === 'fc') return true;
  return reader.kind === 'conv' && (reader.pads.every((pad) => pad === 0) || offset.every((value) => value === 0));
}

/** A layer that computes what the affine map and then `layer` compute. */
function weightsAfterAffine<T extends Weighted>(layer: T, { input, scale, offset }: AffineMap): T {
  const outputs = layer.bias.length;
  const perOutput = layer.weight.data.length / outputs;
  const group = layer.kind === 'conv' ? layer.group : 1;
  // The weights for one channel are neighbors, in a kernel and in a row on a flattened feature map.
  const perChannel = layer.kind === 'conv' ? layer.weight.dims[2]! * layer.weight.dims[3]! : perOutput / scale.length;
  const data = new Float32Array(layer.weight.data.length);
  const bias = new Float32Array(outputs);
  for (let out = 0; out < outputs; ++out) {
    const firstChannel = Math.floor(out / (outputs / group)) * (perOutput / perChannel);
    let sum = layer.bias[out]!;
    for (let index = 0; index < perOutput; ++index) {
      const channel = firstChannel + Math.floor(index / perChannel);
      const weight = layer.weight.data[out * perOutput + index]!;
      data[out * perOutput + index] = weight * scale[channel]!;
      sum += weight * offset[channel]!;
    }
    bias[out] = sum;
  }
  return { ...layer, input, weight: { dims: layer.weight.dims, data }, bias };
}

function countReaders(operations: Operation[], outputs: ReadonlySet<string>): Map<string, number> {
  const readers = new Map([...outputs].map((output) => [output, 1]));
  for (const operation of operations)
    for (const input of operandsOf(operation)) readers.set(input, (readers.get(input) ?? 0) + 1);
  return readers;
}
