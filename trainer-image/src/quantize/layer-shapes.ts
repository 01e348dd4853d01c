/** Shapes of a layer graph's tensors, for one picture. Pure. */
import type { Layer, LayerGraph } from '@facetrain/native';
import { windowOutputs } from '../onnx/shape-rules.ts';

/** Channels, height and width of one picture's tensor; an fc's output is [features, 1, 1]. */
export type Shape = [channels: number, height: number, width: number];

/** Numbers in a tensor. */
export function elementCount([channels, height, width]: Shape): number {
  return channels * height * width;
}

export function inputsOf(layer: Layer): string[] {
  return layer.kind === 'add' || layer.kind === 'node' ? layer.inputs : [layer.input];
}

/** The shape of a tensor with these dimensions, the first a batch of 1; of a rank without pixels, a vector. */
export function shapeOf(dims: number[]): Shape {
  const isMap = dims.length === 4 && dims[0] === 1;
  return isMap ? [dims[1]!, dims[2]!, dims[3]!] : [dims.reduce((product, dim) => product * dim, 1), 1, 1];
}

/** The shape of a layer's output, from that of its (first) input. */
export function outputShape(layer: Layer, [channels, height, width]: Shape): Shape {
  switch (layer.kind) {
    case 'conv': {
      const [outputs, , kernelHeight, kernelWidth] = layer.weight.dims as [number, number, number, number];
      const { strides, dilations } = layer;
      const [top, left, bottom, right] = layer.pads;
      const [vertical, horizontal] = [
        { kernel: kernelHeight, stride: strides[0], dilation: dilations[0], pads: top + bottom },
        { kernel: kernelWidth, stride: strides[1], dilation: dilations[1], pads: left + right },
      ];
      return [outputs, windowOutputs(height, vertical), windowOutputs(width, horizontal)];
    }
    case 'fc':
      return [layer.weight.dims[0]!, 1, 1];
    case 'pool':
      return [channels, 1, 1];
    case 'node':
      return shapeOf(layer.outputDims);
    case 'pointwise':
    case 'add':
      return [channels, height, width];
  }
}

/** The shape of every tensor, the graph's input included. */
export function tensorShapes(graph: LayerGraph): Map<string, Shape> {
  const shapes = new Map<string, Shape>([
    [graph.input.name, [graph.input.channels, graph.input.height, graph.input.width]],
  ]);
  for (const layer of graph.layers) shapes.set(layer.output, outputShape(layer, shapes.get(inputsOf(layer)[0]!)!));
  return shapes;
}
