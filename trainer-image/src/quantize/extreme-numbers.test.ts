/**
 * Networks whose numbers are far from those of trained ones: untrained weights, dead channels, statistics of nothing.
 * Whatever the search finds for them, both our readers and ONNX Runtime take the file and agree on it.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Graph, Int7FileModel, Int7Model, searchScales, type Tensor } from '@facetrain/native';
import { withInputRange } from '../onnx/input-range.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, QUICK_SEARCH } from '../testing/graph-fixtures.ts';
import { inputOf, meanCosine, runOrt, variedPictures } from '../testing/onnx-oracles.ts';
import { modelFile } from './artifact-files.ts';
import { disposable } from './disposable.ts';
import { fold } from './fold.ts';
import { decodeInt7 } from './qdq.ts';

const RANGE = { mean: [127.5], std: [127.5] };
const ORIGIN = { source: 'a', calibration: 'b', channelOrder: 'rgb' } as const;
const PICTURES = 3;
const CHANNELS = 8;

/** A builder whose convolutions are multiplied by numbers. */
class Scaled extends GraphBuilder {
  scaledConv(input: string, factor: number | number[], { outputs = CHANNELS, kernel = 3, group = 1, bias = 0 } = {}) {
    const channels = input === 'data' ? 3 : CHANNELS;
    const weight = this.values([outputs, channels / group, kernel, kernel], -0.5, 0.5);
    const filter = weight.data.length / outputs;
    const by = (output: number) => (typeof factor === 'number' ? factor : factor[output % factor.length]!);
    const scaled = { ...weight, data: weight.data.map((value, i) => value * by(Math.floor(i / filter))) };
    const pad = (kernel - 1) / 2;
    const biases = this.values([outputs], -bias, bias);
    return this.node('Conv', [input, scaled, biases], {
      ...{ kernel_shape: [kernel, kernel], pads: [pad, pad, pad, pad], strides: [1, 1], dilations: [1, 1], group },
    });
  }

  /** Squeeze and excitation: the convolutions read a mean and write a gate, which no division reaches. */
  excite(map: string, factor: number): string {
    const squeezed = this.scaledConv(this.node('GlobalAveragePool', [map]), factor, { kernel: 1 });
    const gate = this.scaledConv(this.node('Relu', [squeezed]), factor, { kernel: 1 });
    return this.node('Mul', [map, this.node('HardSigmoid', [gate], { alpha: 1 / 6, beta: 0.5 })]);
  }

  each(...values: number[]): Tensor<Float32Array> {
    return { dims: [CHANNELS], data: Float32Array.from({ length: CHANNELS }, (_, i) => values[i % values.length]!) };
  }

  end(map: string, factor = 1, bias = 0.1): Graph {
    return this.graph(this.flatten(this.node('GlobalAveragePool', [this.scaledConv(map, factor, { bias })])));
  }
}

const blocks = (count: number, factor: number, build: (b: Scaled, map: string) => string) => {
  const b = new Scaled();
  let map = b.scaledConv('data', factor);
  for (let i = 0; i < count; i++) map = build(b, map);
  return { b, map };
};

const NETWORKS: Record<string, () => Graph> = {
  'values that vanish layer by layer, with gates': () => {
    const { b, map } = blocks(7, 1e-2, (b, x) => b.excite(b.node('Relu', [b.scaledConv(x, 1e-2)]), 1e-2));
    return b.end(map);
  },
  'values that vanish layer by layer, and biases': () => {
    const { b, map } = blocks(7, 1e-2, (b, x) => b.excite(b.node('HardSwish', [b.scaledConv(x, 1e-2)]), 1e-2));
    return b.end(map, 1, 3);
  },
  'values that grow layer by layer': () => {
    const { b, map } = blocks(5, 50, (b, x) => b.node('Relu', [b.scaledConv(x, 50, { bias: 10 })]));
    return b.end(map);
  },
  'weights that grow again what has vanished': () => {
    const { b, map } = blocks(3, 1e-4, (b, x) => b.node('Relu', [b.scaledConv(x, 1e-3)]));
    return b.end(b.excite(map, 1e6), 1e10);
  },
  'filters of zeros, with biases': () => {
    const { b, map } = blocks(2, 1, (b, x) => b.node('Relu', [b.scaledConv(x, [1, 0], { bias: 5 })]));
    return b.end(map, 0.3, 1);
  },
  'filters of zeros, and no biases': () => {
    const { b, map } = blocks(2, 1, (b, x) => b.node('Relu', [b.scaledConv(x, [1, 0, 1e-41, 1e-30])]));
    return b.end(map);
  },
  'a Relu that is dead, and biases behind it': () => {
    const b = new Scaled();
    const x = b.node('BatchNormalization', [
      b.scaledConv('data', 1),
      ...[b.each(1), b.each(-100), b.each(0), b.each(1)],
    ]);
    return b.end(b.scaledConv(b.node('Relu', [x]), 1, { bias: 1e5 }), 1e-5);
  },
  'biases of millions beside weights of millionths': () => {
    const { b, map } = blocks(2, 1, (b, x) => b.node('Relu', [b.scaledConv(x, [1e-6, 1], { bias: 1e6 })]));
    return b.end(map);
  },
  'statistics of channels that were constant': () => {
    const { b, map } = blocks(1, 1, (b, x) =>
      b.node('BatchNormalization', [x, b.each(1), b.each(0.1), b.each(0), b.each(1, 0, 1e-14)], { epsilon: 1e-12 }),
    );
    return b.end(b.node('Relu', [map]));
  },
  'slopes of millions': () => {
    const b = new Scaled();
    const slopes = { dims: [CHANNELS, 1, 1], data: b.each(0.25, 1e6, -1e7, 0).data };
    return b.end(b.node('PRelu', [b.scaledConv('data', 1, { bias: 1 }), slopes]));
  },
  'depthwise filters of many sizes': () => {
    const { b, map } = blocks(3, 1, (b, x) =>
      b.node('Relu', [b.scaledConv(x, [1, 1e-12, 1e5, 1e-3], { group: CHANNELS })]),
    );
    return b.end(map);
  },
};

for (const [name, build] of Object.entries(NETWORKS)) {
  test(name, async () => {
    const network = build();
    const bytes = encodeOnnx(network);
    const subject = 'model.onnx';
    const { graph } = parseOnnx(bytes, subject, { every: true });
    const layers = fold(withInputRange({ graph, metadata: {} }, { subject, given: RANGE }).graph);
    const pictures = variedPictures(PICTURES, graph.input.height, graph.input.width);
    const found = await searchScales(layers, pictures, QUICK_SEARCH);

    for (const runtime of ['onnxruntime', 'tensorrt'] as const) {
      const file = modelFile(found.graph, found.scales, ORIGIN, runtime);
      const size = pictures.data.length / PICTURES;
      const inputs = Array.from({ length: PICTURES }, (_, i) => {
        const one = { ...pictures, count: 1, data: pictures.data.subarray(i * size, (i + 1) * size) };
        return inputOf(one, graph.input).data as Float32Array;
      });
      const concatenated = (results: { data: Float32Array }[]) =>
        Float32Array.from(results.flatMap(({ data }) => [...data]));
      const inOrt = concatenated(await runOrt(file, ...inputs));
      assert.ok(inOrt.every(Number.isFinite), 'finite in ONNX Runtime');
      if (runtime === 'tensorrt') continue;

      await using inC = disposable(await Int7FileModel.open(file, { subject, computeThreads: 1 }));
      const ours = await inC.model.embed(pictures);
      const decoded = decodeInt7(withInputRange(parseOnnx(file, subject), { subject }).graph);
      assert.deepEqual(decoded.scales, found.scales);
      await using read = disposable(await Int7Model.open(decoded.layers, decoded.scales, { computeThreads: 1 }));
      assert.deepEqual(await read.model.embed(pictures), ours, 'what is read back');
      const withOrt = meanCosine(ours, inOrt, graph.output.dim);
      assert.ok(withOrt > 0.99, `cosine with ONNX Runtime ${withOrt}`);
      const fp32 = concatenated(await runOrt(bytes, ...inputs));
      const withFp32 = meanCosine(ours, fp32, graph.output.dim);
      assert.ok(withFp32 > 0.97, `cosine with FP32 ${withFp32}`);
    }
  });
}
