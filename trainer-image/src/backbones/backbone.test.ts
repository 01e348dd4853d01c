import assert from 'node:assert/strict';
import { test } from 'node:test';
import { countMacs, countParameters } from '../onnx/describe.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { checkWithOnnx, keepVariance, largestDifference, noise, runOrt } from '../testing/onnx-oracles.ts';
import { type BackboneOptions, buildBackbone } from './backbone.ts';

const reference = { embeddingDim: 512, width: 2, blocks: null, seed: 7 };
const SIZE = 3 * 112 * 112;

/** Millions of parameters and billions of multiply-accumulates of insightface's networks. */
const FIGURES = {
  iresnet18: [24.03, 2.61],
  iresnet34: [34.14, 4.46],
  iresnet50: [43.59, 6.31],
  iresnet100: [65.16, 12.09],
  iresnet200: [118.83, 23.42],
  mobilefacenet: [2.06, 0.44],
} as const;

for (const [name, [parameters, macs]] of Object.entries(FIGURES)) {
  test(`${name} has ${parameters} M parameters and ${macs} GMAC, and runs in ONNX Runtime for any batch`, async () => {
    const graph = buildBackbone({ ...reference, backbone: name as BackboneOptions['backbone'] });
    assert.equal((countParameters(graph) / 1e6).toFixed(2), String(parameters));
    assert.equal((countMacs(graph)! / 1e9).toFixed(2), String(macs));
    // Left out: it has the blocks of the others, and takes half a gigabyte.
    if (name === 'iresnet200') return;

    keepVariance(graph);
    const pictures = noise(3 * SIZE);
    const [three, second] = await runOrt(encodeOnnx(graph), pictures, pictures.slice(SIZE, 2 * SIZE));
    assert.deepEqual(three!.dims, [3, 512]);
    assert.deepEqual(second!.dims, [1, 512]);
    const scale = Math.max(...second!.data.map(Math.abs));
    assert.ok(scale > 0 && Number.isFinite(scale), `largest value ${scale}`);
    assert.ok(
      largestDifference(three!.data.slice(512, 1024), second!.data) <= 1e-4 * scale,
      'a picture’s embedding does not depend on the others',
    );
    assert.ok(
      largestDifference(three!.data.slice(0, 512), second!.data) > 1e-3 * scale,
      'different pictures have different embeddings',
    );
  });
}

test('graphs of other depths, widths and embedding lengths pass onnx.checker and are read back unchanged', () => {
  const variants: [string, Partial<BackboneOptions> & Pick<BackboneOptions, 'backbone'>][] = [
    ['5.11', { backbone: 'iresnet18', blocks: [1, 1, 1, 1], embeddingDim: 8 }],
    ['2.06', { backbone: 'mobilefacenet' }],
    // The reference's mbf_large.
    ['6.31', { backbone: 'mobilefacenet', blocks: [2, 8, 12, 4], width: 4 }],
    ['0.53', { backbone: 'mobilefacenet', blocks: [1, 1, 1, 1], width: 1, embeddingDim: 128 }],
  ];
  const files: Record<string, Uint8Array> = {};
  for (const [millions, options] of variants) {
    const graph = buildBackbone({ ...reference, ...options });
    const file = encodeOnnx(graph, { metadata: { backbone: options.backbone } });
    files[JSON.stringify(options)] = file;
    assert.deepEqual(parseOnnx(file, 'backbone.onnx').graph, graph);
    assert.equal(graph.output.dim, options.embeddingDim ?? 512);
    assert.equal((countParameters(graph) / 1e6).toFixed(2), millions);
  }
  checkWithOnnx(files);
});

test('nodes and weights carry the names of the reference’s state_dict', () => {
  const names = Object.keys(buildBackbone({ ...reference, backbone: 'iresnet18', embeddingDim: 8 }).initializers);
  const layer = (name: string) =>
    names.filter((key) => key.startsWith(`${name}.`)).map((key) => key.slice(name.length + 1));
  assert.deepEqual(layer('layer1.0'), [
    ...['bn1.weight', 'bn1.bias', 'bn1.running_mean', 'bn1.running_var', 'conv1.weight'],
    ...['bn2.weight', 'bn2.bias', 'bn2.running_mean', 'bn2.running_var', 'prelu.weight', 'conv2.weight'],
    ...['bn3.weight', 'bn3.bias', 'bn3.running_mean', 'bn3.running_var'],
    ...[
      'downsample.0.weight',
      'downsample.1.weight',
      'downsample.1.bias',
      'downsample.1.running_mean',
      'downsample.1.running_var',
    ],
  ]);
  assert.ok(
    !names.includes('layer1.1.downsample.0.weight'),
    'only the first block of a stage has a shortcut of its own',
  );
  assert.deepEqual(layer('fc'), ['weight', 'bias']);
  assert.deepEqual(layer('features'), ['weight', 'bias', 'running_mean', 'running_var']);

  const mobile = Object.keys(buildBackbone({ ...reference, backbone: 'mobilefacenet' }).initializers);
  for (const name of [
    'layers.0.layers.0.weight',
    'layers.2.layers.1.layers.0.weight',
    'layers.3.layers.0.layers.2.layers.1.running_var',
    'conv_sep.layers.2.weight',
    'features.layers.0.layers.0.weight',
    'features.layers.2.weight',
    'features.layers.3.bias',
  ]) {
    assert.ok(mobile.includes(name), name);
  }
  assert.ok(!mobile.includes('features.layers.2.bias'));
});

test('initial weights have the reference’s distributions and depend only on seed and name', () => {
  const build = (seed: number, blocks: number[]) =>
    buildBackbone({ ...reference, backbone: 'iresnet18', embeddingDim: 64, seed, blocks }).initializers;
  const weights = build(1, [2, 2, 2, 2]);
  const values = (name: string, of = weights) => of[name]!.data as Float32Array;
  const moment = (data: Float32Array, power: number) =>
    data.reduce((sum, value) => sum + value ** power, 0) / data.length;

  const conv = values('layer4.1.conv1.weight');
  assert.ok(Math.abs(moment(conv, 1)) < 5e-4);
  assert.ok(Math.abs(moment(conv, 2) / 0.01 - 1) < 5e-3);
  assert.ok(Math.abs(moment(conv, 4) / (3 * 0.01 ** 2) - 1) < 2e-2, 'the tails of a normal distribution');
  const neighbors = conv.reduce((sum, value, i) => sum + value * (conv[i + 1] ?? 0), 0) / conv.length / 0.01;
  assert.ok(Math.abs(neighbors) < 5e-3, `neighbors correlate by ${neighbors}`);

  const bound = 1 / Math.sqrt(25088);
  const fc = values('fc.weight');
  assert.ok(fc.every((value) => Math.abs(value) <= bound * (1 + 1e-6)));
  assert.ok(Math.abs(moment(fc, 2) / (bound ** 2 / 3) - 1) < 5e-3);
  assert.ok(values('prelu.weight').every((value) => value === 0.25));
  assert.ok(values('features.weight').every((value) => value === 1));

  assert.notDeepEqual(values('layer4.1.conv1.weight'), values('layer4.1.conv2.weight'), 'two tensors of one shape');
  assert.deepEqual(
    values('layer4.0.conv1.weight', build(1, [1, 1, 1, 1])),
    values('layer4.0.conv1.weight'),
    'independent of other layers',
  );
  assert.notDeepEqual(values('layer4.0.conv1.weight', build(2, [1, 1, 1, 1])), values('layer4.0.conv1.weight'));

  const mobile = buildBackbone({ ...reference, backbone: 'mobilefacenet' }).initializers;
  // fan_out counts all output channels, also in a depthwise convolution, as torch does.
  const depthwise = mobile['layers.6.layers.1.layers.0.weight']!;
  assert.deepEqual(depthwise.dims, [512, 1, 3, 3]);
  assert.ok(Math.abs(moment(depthwise.data as Float32Array, 2) / (2 / (512 * 9)) - 1) < 0.1);
});
