/**
 * The search and the INT7 runtime through the addon. Their numbers are tested in native/quant/quant_test.cc and
 * trainer-image/src/quantize/simulator.test.ts.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { Pictures } from './data.ts';
import {
  Int7Model,
  LayerModel,
  PartlyQuantizedModel,
  QUANTIZED_PARTS,
  type SearchOptions,
  type SearchResult,
  searchScales,
} from './quantization.ts';
import type { Layer, LayerGraph } from './types.ts';

type Conv = Extract<Layer, { kind: 'conv' }>;

const options: SearchOptions = {
  rounds: 1,
  candidates: 20,
  lower: 0.5,
  upper: 2,
  zeroPoints: true,
  equalize: true,
  biasCorrection: true,
  budget: 0,
  memoryBytes: 2 ** 30,
  temporaryDirectory: '/var/tmp',
  computeThreads: 1,
};

let state = 1;
const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const values = (count: number, size: number) => Float32Array.from({ length: count }, () => (random() * 2 - 1) * size);

function conv(name: string, input: string, inputs: number, outputs: number): Conv {
  return {
    kind: 'conv',
    name,
    input,
    output: `${name}:0`,
    weight: { dims: [outputs, inputs, 3, 3], data: values(outputs * inputs * 9, 0.3) },
    bias: values(outputs, 0.1),
    strides: [2, 2],
    pads: [1, 1, 1, 1],
    dilations: [1, 1],
    group: 1,
  };
}

function network(width = 8): LayerGraph {
  return {
    input: { name: 'data', channels: 3, height: 16, width: 16 },
    output: { name: 'embedding', dim: 8 },
    layers: [
      conv('a', 'data', 3, width),
      {
        kind: 'pointwise',
        name: 'b',
        input: 'a:0',
        output: 'b:0',
        positive: new Float32Array(width).fill(1),
        negative: values(width, 0.3),
        offset: new Float32Array(width),
      },
      conv('c', 'b:0', width, width),
      {
        kind: 'fc',
        name: 'd',
        input: 'c:0',
        output: 'embedding',
        weight: { dims: [8, width * 16], data: values(8 * width * 16, 0.2) },
        bias: values(8, 0.1),
      },
    ],
  };
}

function pictures(count: number, size = 16): Pictures {
  return {
    count,
    height: size,
    width: size,
    channelOrder: 'rgb',
    data: Uint8Array.from({ length: count * size * size * 3 }, () => random() * 256),
  };
}

async function embedded(
  model: Promise<LayerModel | Int7Model | PartlyQuantizedModel>,
  of: Pictures,
): Promise<Float32Array> {
  const opened = await model;
  try {
    return await opened.embed(of);
  } finally {
    await opened.close();
  }
}

const refused =
  (code: string, ...words: string[]) =>
  (error: unknown) => {
    assert.ok(error instanceof FacetrainError, String(error));
    assert.equal(error.code, code);
    for (const word of words) assert.match(error.message, new RegExp(word));
    return true;
  };

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * y[i]!, 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

test('scales that are found embed as the network in FP32 does, and come with a report on each layer', async () => {
  const graph = network();
  const seen = pictures(12);
  const found = await searchScales(graph, seen, options);
  const real = await embedded(LayerModel.open(graph, { computeThreads: 1 }), seen);
  const equalized = await embedded(LayerModel.open(found.graph, { computeThreads: 1 }), seen);
  assert.ok(real.every((value, i) => Math.abs(value - equalized[i]!) < 1e-5));
  const integers = await embedded(Int7Model.open(found.graph, found.scales, { computeThreads: 1 }), seen);
  assert.ok(cosine(real, integers) > 0.99);

  assert.deepEqual(
    found.layers.map(({ name, bits, macs }) => [name, bits, macs]),
    [
      ['a', 7, 8 * 27 * 64],
      ['b', 8, 0],
      ['c', 7, 8 * 72 * 16],
      ['d', 7, 8 * 128],
    ],
  );
  for (const { cosine, cosineStart, saturation } of found.layers)
    assert.ok(cosine > 0.9 && cosine <= 1.000001 && cosineStart > 0.9 && saturation >= 0 && saturation < 0.1);
  const { values } = found.scales.weights.c!;
  const sums = Array.from({ length: 8 }, (_, o) =>
    values.subarray(o * 72, (o + 1) * 72).reduce((sum, value) => sum + Math.abs(value), 0),
  );
  assert.equal(found.layers[2]!.weightSumMax, Math.max(...sums));
  assert.deepEqual(
    Object.entries(found.scales.tensors).map(([name, { limit }]) => [name, limit]),
    [
      ['data', 63],
      ['a:0', 127],
      ['b:0', 63],
      ['c:0', 63],
    ],
  );
});

test('each part of a network that is quantized alone has its own error, and no other', async () => {
  const seen = pictures(4);
  const { graph, scales } = await searchScales(network(), seen, options);
  const parts = async (of: typeof scales) =>
    await Promise.all(
      QUANTIZED_PARTS.map((part) => embedded(PartlyQuantizedModel.open(graph, of, { part, computeThreads: 1 }), seen)),
    );
  const real = await embedded(LayerModel.open(graph, { computeThreads: 1 }), seen);
  const found = await parts(scales);
  for (const embeddings of found) {
    const similar = cosine(real, embeddings);
    assert.ok(similar > 0.99 && similar < 1 - 1e-9, `${similar}`);
  }
  // Each change is seen by one part.
  const { a } = scales.weights as { a: (typeof scales.weights)[string] };
  const { 'a:0': other, 'c:0': operand } = scales.tensors as Record<string, (typeof scales.tensors)[string]>;
  const changes = [
    { ...scales, weights: { ...scales.weights, a: { ...a, values: a.values.map((value) => value >> 1) } } },
    { ...scales, tensors: { ...scales.tensors, 'c:0': { ...operand!, scale: operand!.scale * 8 } } },
    { ...scales, tensors: { ...scales.tensors, 'a:0': { ...other!, scale: other!.scale * 8 } } },
  ];
  // The scale of c:0 is also that of the bias of d.
  for (const [changed, of] of changes.entries())
    for (const [part, embeddings] of (await parts(of)).entries())
      if (part === changed) assert.notDeepEqual(embeddings, found[part]);
      else if (!(changed === 1 && part === 0)) assert.deepEqual(embeddings, found[part]);
});

test('progress only grows', async () => {
  const reports: { stage: string; done: number; total: number }[] = [];
  // Long enough for several reports, one every 0.1 s.
  await searchScales(network(96), pictures(64), {
    ...options,
    candidates: 60,
    onProgress: (progress) => reports.push(progress),
  });
  assert.ok(reports.length > 0);
  for (const { done, total } of reports) assert.ok(done <= total);
  const searching = reports.filter(({ stage }) => stage === 'searching').map(({ done }) => done);
  assert.deepEqual(
    searching,
    searching.toSorted((a, b) => a - b),
  );
});

test('an aborted search rejects with the reason of the signal', async () => {
  const graph = network(96);
  const reason = new Error('enough');
  await assert.rejects(searchScales(graph, pictures(1), { ...options, signal: AbortSignal.abort(reason) }), reason);
  const controller = new AbortController();
  const search = searchScales(graph, pictures(64), {
    ...options,
    rounds: 50,
    candidates: 5000,
    signal: controller.signal,
    onProgress: () => controller.abort(reason),
  });
  await assert.rejects(search, reason);
});

test('a search ends between two pictures of a layer', async () => {
  const size = 64;
  const layer = conv('a', 'data', 3, 64);
  const inputs = 3 * size * size;
  const graph: LayerGraph = {
    input: { name: 'data', channels: 3, height: size, width: size },
    output: { name: 'a:0', dim: 64 },
    layers: [
      {
        ...layer,
        ...{
          weight: { dims: [64, 3, size, size], data: values(64 * inputs, 0.1) },
          pads: [0, 0, 0, 0],
          strides: [1, 1],
        },
      },
    ],
  };
  const controller = new AbortController();
  const done: number[] = [];
  // The layer takes a second.
  const data = new Uint8Array(2000 * inputs).fill(100);
  const search = searchScales(
    graph,
    { ...pictures(0, size), count: 2000, data },
    {
      ...options,
      signal: controller.signal,
      onProgress: (progress) => {
        done.push(progress.done);
        controller.abort();
      },
    },
  );
  await assert.rejects(search, { name: 'AbortError' });
  assert.ok(done.length > 0 && done.every((layers) => layers === 0), `layers done: ${done}`);
});

test('no pictures, and pictures of another size, are refused', async () => {
  await assert.rejects(searchScales(network(), pictures(0), options), refused('InvalidArgument', 'no pictures'));
  await assert.rejects(
    searchScales(network(), pictures(2, 12), options),
    refused('InvalidArgument', '12 x 12', '16 x 16'),
  );
  await assert.rejects(
    embedded(LayerModel.open(network(), { computeThreads: 1 }), pictures(2, 12)),
    refused('InvalidArgument', '12 x 12'),
  );
});

test('invalid networks are refused with the name of the layer', async () => {
  const change = (change: (layers: Layer[]) => void, more: Partial<SearchOptions> = {}) => {
    const graph = network();
    change(graph.layers);
    return searchScales(graph, pictures(1), { ...options, ...more });
  };
  await assert.rejects(
    change((layers) => void ((layers[2] as Conv).weight.data[5] = NaN)),
    refused('InvalidModel', "layer 'c'", 'finite'),
  );
  await assert.rejects(
    change((layers) => void ((layers[2] as Conv).bias = new Float32Array(7))),
    refused('InvalidModel', "layer 'c'", 'bias has 7'),
  );
  await assert.rejects(
    change((layers) => void ((layers[2] as Conv).input = 'nowhere')),
    refused('InvalidModel', "layer 'c'", 'nowhere'),
  );
  const wide = network(4);
  const filter = { dims: [1, 5, 256, 256], data: new Float32Array(5 * 256 * 256) };
  wide.input = { name: 'data', channels: 5, height: 256, width: 256 };
  wide.layers = [{ ...conv('wide', 'data', 5, 1), weight: filter, pads: [0, 0, 0, 0], output: 'embedding' }];
  await assert.rejects(
    LayerModel.open(wide, { computeThreads: 1 }),
    refused('InvalidModel', "layer 'wide'", 'filters of 327680 weights; at most 262144'),
  );
  // Without equalization, which would move the overflow to a later layer.
  const overflowing = change((layers) => void (layers[2] as Conv).weight.data.fill(3e38), { equalize: false });
  await assert.rejects(overflowing, refused('NotANumber', "tensor 'c:0'"));
});

test('scales that do not fit the network are refused', async () => {
  const found = await searchScales(network(), pictures(4), { ...options, rounds: 0 });
  const open = (change: (scales: SearchResult['scales']) => void) => {
    const scales = structuredClone(found.scales);
    change(scales);
    return Int7Model.open(found.graph, scales, { computeThreads: 1 });
  };
  await assert.rejects(
    open(({ tensors }) => void delete tensors['b:0']),
    refused('InvalidArtifact', "tensor 'b:0'", 'missing'),
  );
  await assert.rejects(
    open(({ weights }) => void (weights.c!.values[0] = 64)),
    refused('InvalidArtifact', "layer 'c'", 'weight 64'),
  );
  await assert.rejects(
    open(({ biases }) => void delete biases.d),
    refused('InvalidArtifact', "layer 'd'", '0 biases'),
  );
});
