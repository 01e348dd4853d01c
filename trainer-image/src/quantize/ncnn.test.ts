/** The files for ncnn, run by ncnn itself. */
import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { test } from 'node:test';
import { Int7Model, LayerModel, type Pictures, searchScales } from '@facetrain/native';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { runNcnn } from '../testing/ncnn-runner.ts';
import { cosines } from './compare.ts';
import { fold } from './fold.ts';
import { writeNcnn } from './ncnn.ts';

const SIDE = 24;

/** Pictures with structure: noise alone has nearly the same embedding everywhere. */
function somePictures(count: number): Pictures {
  const data = Uint8Array.from({ length: count * SIDE * SIDE * 3 }, (_, i) => {
    const [pixel, channel] = [Math.floor(i / 3), i % 3];
    const [picture, row, column] = [Math.floor(pixel / SIDE ** 2), Math.floor(pixel / SIDE) % SIDE, pixel % SIDE];
    return 127 + 60 * Math.sin((row * (picture + 1)) / 5 + channel) + 60 * Math.cos((column * (picture + 2)) / 7);
  });
  return { data, count, height: SIDE, width: SIDE, channelOrder: 'rgb' };
}

const scalar = (value: number) => ({ dims: [], data: Float32Array.of(value) });
const integers = (...values: number[]) => ({ dims: [values.length], data: BigInt64Array.from(values, BigInt) });

/** Every kind of layer: strides, one-sided pads, groups, depthwise, PRelu, batch norm, addition, pool. */
const NETWORKS: Record<string, (b: GraphBuilder) => string> = {
  'a residual network': (b) => {
    const stem = b.prelu(b.conv('data', 3, 8, 3, { pad: 1, stride: 2 }), 8);
    const unit = b.conv(b.prelu(b.conv(b.batchNorm(stem, 8), 8, 8, 3, { pad: 1 }), 8), 8, 8, 3, { pad: 1 });
    return b.gemm(b.flatten(b.node('Add', [unit, stem])), 8 * 12 * 12, 16);
  },
  'depthwise and grouped convolutions, and a map at the end': (b) => {
    const stem = b.node('Relu', [b.conv('data', 3, 8, 5, { stride: 3 })]);
    const depthwise = b.prelu(b.conv(stem, 8, 8, 3, { group: 8, pad: 1 }), 8);
    const grouped = b.conv(depthwise, 8, 12, 3, { group: 2 });
    return b.flatten(b.conv(b.prelu(grouped, 12), 12, 16, 5));
  },
  'pools, squeeze and excitation, branches, a shuffle and functions': (b) => {
    const stem = b.conv('data', 3, 8, 3, { pad: 1 });
    // HardSwish as exporters write it: its input is read twice.
    const clipped = b.node('Clip', [b.node('Add', [stem, scalar(3)]), scalar(0), scalar(6)]);
    const swish = b.node('Div', [b.node('Mul', [stem, clipped]), scalar(6)]);
    const pooled = b.node('MaxPool', [swish], { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] });
    // As many channels as the map has columns: ncnn must not take one for the other.
    const wide = b.node('Sigmoid', [b.conv(pooled, 8, 12, 1)]);
    const squeezed = b.conv(b.node('GlobalAveragePool', [wide]), 12, 12, 1);
    const excited = b.node('Mul', [wide, b.node('HardSigmoid', [squeezed])]);
    const mean = b.node('AveragePool', [excited], { kernel_shape: [3, 2], strides: [1, 2], pads: [1, 0, 1, 0] });
    const resized = b.node('Resize', [mean, '', '', integers(1, 12, 12, 12)], {
      ...{ mode: 'nearest', coordinate_transformation_mode: 'asymmetric', nearest_mode: 'floor' },
    });
    const both = b.node('Concat', [resized, wide], { axis: 1 });
    const shuffled = b.node(
      'Gather',
      [both, integers(...Array.from({ length: 24 }, (_, i) => (i % 2) * 12 + (i >> 1)))],
      {
        axis: 1,
      },
    );
    const some = b.node('Gather', [shuffled, integers(...Array.from({ length: 10 }, (_, i) => 4 + i))], { axis: 1 });
    return b.flatten(b.conv(b.node('Tanh', [b.conv(some, 10, 8, 3, { stride: 2 })]), 8, 16, 5));
  },
};

for (const [name, build] of Object.entries(NETWORKS))
  test(`ncnn computes ${name} as we do`, async (t) => {
    const b = new GraphBuilder({ height: SIDE, width: SIDE });
    const graph = b.graph(build(b));
    const layers = fold(graph);
    const pictures = somePictures(12);
    const { graph: searched, scales } = await searchScales(layers, pictures, {
      ...{ rounds: 0, candidates: 2, lower: 0.5, upper: 2, zeroPoints: true, equalize: true, biasCorrection: true },
      budget: 0.5,
      ...{ memoryBytes: 2 ** 28, temporaryDirectory: tmpdir(), computeThreads: 1 },
    });
    const embed = async (model: Int7Model | LayerModel) => {
      const values = await model.embed(pictures);
      await model.close();
      return values;
    };
    const fp32 = await embed(await LayerModel.open(layers, { computeThreads: 1 }));
    const int7 = await embed(await Int7Model.open(searched, scales, { computeThreads: 1 }));
    const worst = (a: Float32Array, c: Float32Array) => Math.min(...cosines(a, c, graph.output.dim));
    const found = {
      fp32: worst(runNcnn(writeNcnn(layers), { ...pictures, channels: 3 }), fp32),
      int8: worst(runNcnn(writeNcnn(searched, scales), { ...pictures, channels: 3 }), int7),
      int7: worst(int7, fp32),
    };
    t.diagnostic(JSON.stringify(found));
    assert.ok(found.fp32 > 0.99999, `FP32: ${found.fp32}`);
    assert.ok(found.int8 > 0.999, `int8: ${found.int8}`);
  });

test('a layer without a counterpart is refused by its name and operator', () => {
  const b = new GraphBuilder({ height: SIDE, width: SIDE });
  const folded = b.node('DepthToSpace', [b.conv('data', 3, 8, 3)], { blocksize: 2 });
  const graph = b.graph(b.gemm(b.flatten(b.conv(folded, 2, 8, 3)), 8 * 42 * 42, 4));
  assert.throws(() => writeNcnn(fold(graph)), {
    code: 'UnsupportedOperator',
    message: /^layer "DepthToSpace_\d": operator DepthToSpace has no counterpart in the files for ncnn; convolutions, /,
  });
});

test('what ncnn would compute otherwise is refused', () => {
  const resize = (b: GraphBuilder, more: Parameters<GraphBuilder['node']>[1], attributes: Record<string, string>) =>
    b.node('Resize', [b.conv('data', 3, 8, 4, { stride: 2 }), '', ...more], attributes);
  const scales = (value: number) => ({ dims: [4], data: Float32Array.of(1, 1, value, value) });
  const pool = (b: GraphBuilder, kernel: number) =>
    b.node('MaxPool', [b.conv('data', 3, 8, kernel)], {
      ...{ kernel_shape: [2, 2], strides: [2, 2], pads: [1, 1, 1, 1], ceil_mode: 1 },
    });
  const nearest = (nearest_mode: string) => ({ ...{ mode: 'nearest', nearest_mode } });
  const half = { coordinate_transformation_mode: 'half_pixel' };
  const cases: [name: string, side: number, build: (b: GraphBuilder) => string, refused?: RegExp][] = [
    [
      'nearest, rounded',
      22,
      (b) => resize(b, ['', integers(1, 8, 22, 22)], { ...nearest('round_prefer_ceil'), ...half }),
    ],
    [
      ...(['nearest, the floor of middles', 22] as const),
      (b) => resize(b, ['', integers(1, 8, 22, 22)], { ...nearest('floor'), ...half }),
      /Resize of mode nearest, half_pixel, rounded by floor has no counterpart/,
    ],
    ['linear, by a scale that is rounded', 15, (b) => resize(b, [scales(15 / 11)], { mode: 'linear', ...half })],
    [
      ...(['linear, by a scale of no whole size', 18] as const),
      (b) => resize(b, [scales(1.7)], { mode: 'linear', ...half }),
      /Resize by scales 1\.7\d*,1\.7\d*, which give no whole size, has no counterpart/,
    ],
    ['a last window of pixels', 13, (b) => pool(b, 1)],
    ['a last window in the pads', 12, (b) => pool(b, 2), /MaxPool with ceil_mode and a last window in the pads has no/],
  ];
  for (const [name, side, build, refused] of cases) {
    const b = new GraphBuilder({ height: SIDE, width: SIDE });
    const layers = fold(b.graph(b.gemm(b.flatten(build(b)), 8 * side * side, 4)));
    if (refused) assert.throws(() => writeNcnn(layers), { code: 'UnsupportedOperator', message: refused }, name);
    else assert.doesNotThrow(() => writeNcnn(layers), name);
  }
});
