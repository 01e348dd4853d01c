/**
 * Writes a LayerGraph as ncnn reads it, for comparisons: its layers in FP32, or with ncnn's scales of INT8.
 *
 * The formats are those of ncnn's documentation ("param and model file structure", "operation param weight table").
 * ncnn quantizes the weights itself when it loads them, if a layer has scales and float weights.
 */
import type { Layer, LayerGraph, Scales } from '@facetrain/native';
import { inputsOf } from '@facetrain/trainer/quantize/layer-shapes';

export interface NcnnModel {
  param: string;
  bin: Uint8Array;
  output: string;
}

const ADD = 0;
const AVERAGE = 1;

/** @param scales with them, convolutions are in INT8, scaled by the maxima behind these scales */
export function writeNcnn(graph: LayerGraph, scales?: Scales): NcnnModel {
  const lines: string[] = [];
  const data: Uint8Array[] = [];
  let blobs = 0;
  const write = (
    type: string,
    name: string,
    inputs: string[],
    outputs: string[],
    parameters: Record<number, number>,
  ) => {
    blobs += outputs.length;
    const pairs = Object.entries(parameters).map(([key, value]) => `${key}=${value}`);
    lines.push([type, name, inputs.length, outputs.length, ...inputs, ...outputs, ...pairs].join(' '));
  };
  // A trained network has dead filters, whose tiny weights give denormal numbers. These slow ncnn down tenfold.
  const floats = (values: Float32Array) =>
    void data.push(new Uint8Array(values.map((value) => (Math.abs(value) < 1e-10 ? 0 : value)).buffer));

  // A blob has one reader in ncnn, so others read copies.
  const readers = new Map<string, number>();
  for (const layer of graph.layers) for (const name of inputsOf(layer)) readers.set(name, (readers.get(name) ?? 0) + 1);
  const taken = new Map<string, number>();
  const names = new Map<string, string>();
  const blob = (name: string) => {
    if (!names.has(name)) names.set(name, `b${names.size}`);
    return names.get(name)!;
  };
  const read = (name: string) => {
    if ((readers.get(name) ?? 0) < 2) return blob(name);
    const index = taken.get(name) ?? 0;
    taken.set(name, index + 1);
    return `${blob(name)}_${index}`;
  };
  const written = (name: string) => {
    const count = readers.get(name) ?? 0;
    if (count > 1)
      write(
        'Split',
        `split_${blob(name)}`,
        [blob(name)],
        Array.from({ length: count }, (_, i) => `${blob(name)}_${i}`),
        {},
      );
  };
  /** The scales that follow a layer's weights. */
  const int8 = (layer: Layer & { kind: 'conv' | 'fc' }) => {
    if (!scales) return {};
    const outputs = layer.bias.length;
    const filter = layer.weight.data.length / outputs;
    const ofWeights = Float32Array.from({ length: outputs }, (_, o) => {
      let largest = 1e-20;
      for (let i = o * filter; i < (o + 1) * filter; ++i) largest = Math.max(largest, Math.abs(layer.weight.data[i]!));
      return 127 / largest;
    });
    const { scale, limit } = scales.tensors[layer.input]!;
    return { flag: { 8: 1 }, values: [ofWeights, Float32Array.of(127 / (scale * limit))] };
  };

  const { name, channels, height, width } = graph.input;
  write('Input', 'input', [], [blob(name)], { 0: width, 1: height, 2: channels });
  written(name);
  for (const [index, layer] of graph.layers.entries()) {
    const id = `l${index}`;
    if (layer.kind === 'conv' || layer.kind === 'fc') {
      const { flag = {}, values = [] } = int8(layer);
      if (layer.kind === 'fc') {
        write('InnerProduct', id, [read(layer.input)], [blob(layer.output)], {
          ...{ 0: layer.bias.length, 1: 1, 2: layer.weight.data.length },
          ...flag,
        });
      } else {
        const [, , kh, kw] = layer.weight.dims as [number, number, number, number];
        const [top, left, bottom, right] = layer.pads;
        write(
          layer.group === 1 ? 'Convolution' : 'ConvolutionDepthWise',
          id,
          [read(layer.input)],
          [blob(layer.output)],
          {
            ...{ 0: layer.bias.length, 1: kw, 11: kh, 2: layer.dilations[1], 12: layer.dilations[0] },
            ...{ 3: layer.strides[1], 13: layer.strides[0], 4: left, 15: right, 14: top, 16: bottom },
            ...{ 5: 1, 6: layer.weight.data.length },
            ...(layer.group === 1 ? {} : { 7: layer.group }),
            ...flag,
          },
        );
      }
      data.push(new Uint8Array(4)); // float32
      floats(layer.weight.data);
      floats(layer.bias);
      for (const each of values) floats(each);
    } else if (layer.kind === 'pointwise') {
      const size = layer.positive.length;
      if (layer.positive.every((value) => value === 1) && layer.offset.every((value) => value === 0)) {
        write('PReLU', id, [read(layer.input)], [blob(layer.output)], { 0: size });
        floats(layer.negative);
      } else if (layer.positive.every((value, c) => value === layer.negative[c])) {
        write('Scale', id, [read(layer.input)], [blob(layer.output)], { 0: size, 1: 1 });
        floats(layer.positive);
        floats(layer.offset);
      } else throw new Error(`layer "${layer.name}" has no counterpart in ncnn`);
    } else if (layer.kind === 'add') {
      write('BinaryOp', id, layer.inputs.map(read), [blob(layer.output)], { 0: ADD });
    } else if (layer.kind === 'pool') {
      write('Pooling', id, [read(layer.input)], [blob(layer.output)], { 0: AVERAGE, 4: 1 });
    } else throw new Error(`layer "${layer.name}" has no counterpart in ncnn here`);
    written(layer.output);
  }
  const param = ['7767517', `${lines.length} ${blobs}`, ...lines, ''].join('\n');
  return { param, bin: Buffer.concat(data), output: blob(graph.output.name) };
}
