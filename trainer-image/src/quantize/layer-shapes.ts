/** Shapes of a layer graph's tensors, for one picture. Pure. */
import type { Layer, LayerGraph } from '@facetrain/native';

/** Channels, height and width of one picture's tensor; an fc's output is [features, 1, 1]. */
export type Shape = [channels: number, height: number, width: number];

/** Numbers in a tensor. */
export function elementCount([channels, height, width]: Shape): number {
  return channels * height * width;
}

/** Output height or width of a convolution; pads are those before and after it. */
function convolved(
  length: number,
  kernel: number,
  stride: number,
  dilation: number,
  before: number,
  after: number,
): number {
  return Math.floor((length + before + after - dilation * (kernel - 1) - 1) / stride) + 1;
}

export function inputsOf(layer: Layer): string[] {
  return layer.kind === 'add' ? layer.inputs : [layer.input];
}

/** The shape of a layer's output, from that of its (first) input. */
export function outputShape(layer: Layer, [channels, height, width]: Shape): Shape {
  switch (layer.kind) {
    case 'conv': {
      const [outputs, , kernelHeight, kernelWidth] = layer.weight.dims as [number, number, number, number];
      const [top, left, bottom, right] = layer.pads;
      return [
        outputs,
        convolved(height, kernelHeight, layer.strides[0], layer.dilations[0], top, bottom),
        convolved(width, kernelWidth, layer.strides[1], layer.dilations[1], left, right),
      ];
    }
    case 'fc':
      return [layer.weight.dims[0]!, 1, 1];
    case 'pool':
      return [channels, 1, 1];
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
