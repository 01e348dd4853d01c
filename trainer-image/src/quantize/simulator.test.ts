/**
 * Our integers against those of ONNX Runtime, on every tensor of a small network. The file has operands that are
 * clamped as in our runtime.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  type Graph,
  Int7Model,
  type LayerGraph,
  LayerModel,
  type Pictures,
  type Scales,
  searchScales,
  type TypedArray,
} from '@facetrain/native';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, networkOfNodes, plainScales, QUICK_SEARCH, smallFaceNet } from '../testing/graph-fixtures.ts';
import { largestDifference, noise, runOrt } from '../testing/onnx-oracles.ts';
import { fold } from './fold.ts';
import { elementCount, tensorShapes } from './layer-shapes.ts';
import { encodeInt7 } from './qdq.ts';

/** Both round in the same way, but may multiply floats in another order. */
const LEAST_SIGNIFICANT_BITS = 1;

function pictures(count: number, edge: number): Pictures {
  return {
    count,
    height: edge,
    width: edge,
    channelOrder: 'rgb',
    data: Uint8Array.from(noise(count * edge * edge * 3), (value) => Math.round((value + 1) * 127.5)),
  };
}

/** The integers of a tensor in ONNX Runtime, for one picture: the graph gets an output behind its DequantizeLinear. */
async function ortIntegers(
  graph: Graph,
  tensor: string,
  dim: number,
  scale: number,
  picture: Float32Array,
): Promise<Int8Array> {
  const probe = {
    name: 'probe',
    op: 'Flatten',
    inputs: [`${tensor}.dequantized`],
    outputs: ['probe'],
    attributes: { axis: 1 },
  };
  const [result] = await runOrt(
    encodeOnnx({
      ...graph,
      nodes: [...graph.nodes, probe],
      output: { name: 'probe', dim },
      outputs: [{ name: 'probe', dims: [dim] }],
    }),
    picture,
  );
  return Int8Array.from(result!.data, (value) => Math.round(value / scale));
}

function toChannelsFirst({ height, width, data }: Pictures): Float32Array {
  const area = height * width;
  return Float32Array.from(
    { length: 3 * area },
    (_, index) => data[(index % area) * 3 + Math.floor(index / area)]! / 127.5 - 1,
  );
}

async function compare(graph: LayerGraph, scales: Scales): Promise<void> {
  const clamped = encodeInt7(graph, scales, { clamp: true });
  const picture = pictures(1, graph.input.height);
  const model = await Int7Model.open(graph, scales, { computeThreads: 1 });
  const ours = await model.runLayers(picture);
  const embedding = await model.embed(picture);
  await model.close();
  const shapes = tensorShapes(graph);
  let exact = 0;
  for (const [tensor, { scale, limit, zeroPoint }] of Object.entries(scales.tensors)) {
    const theirs = await ortIntegers(
      clamped,
      tensor,
      elementCount(shapes.get(tensor)!),
      scale,
      toChannelsFirst(picture),
    );
    const found = ours[tensor]!;
    assert.equal(found.length, theirs.length, tensor);
    const worst = found.reduce((largest, value, index) => Math.max(largest, Math.abs(value - theirs[index]!)), 0);
    assert.ok(worst <= LEAST_SIGNIFICANT_BITS, `${tensor}: ${worst}`);
    assert.ok(
      found.every((value) => Math.abs(value + zeroPoint) <= limit),
      `${tensor} stays within ${limit}, with zero point ${zeroPoint}`,
    );
    assert.ok(new Set(found).size > Math.min(10, found.length / 3), `${tensor} is not all but constant`);
    exact += Number(worst === 0);
  }
  assert.ok(exact > Object.keys(scales.tensors).length / 2, `${exact} tensors are equal`);
  const [result] = await runOrt(encodeOnnx(clamped), toChannelsFirst(picture));
  // The first output.
  const { data } = result!;
  const largest = data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  assert.ok(
    data.every((value, index) => Math.abs(value - embedding[index]!) < 0.02 * largest),
    'the embedding',
  );
}

describe('every tensor is that of ONNX Runtime, up to one unit', () => {
  test('with plain scales', async () => {
    const graph = fold(smallFaceNet());
    await compare(graph, plainScales(graph));
  });

  for (const [name, scalesOf] of Object.entries({ 'plain scales': 0, 'scales from the search': 1 }))
    test(`of a network of nodes, with ${name}`, async () => {
      const graph = fold(networkOfNodes());
      const found = scalesOf
        ? await searchScales(graph, pictures(4, 14), QUICK_SEARCH)
        : { graph, scales: plainScales(graph) };
      await compare(found.graph, found.scales);
    });

  test('with scales from the search', async () => {
    const found = await searchScales(fold(smallFaceNet()), pictures(4, 14), QUICK_SEARCH);
    await compare(found.graph, found.scales);
  });
});

/** What the layers compute in FP32 for one picture of 8 x 8. */
async function embedded(graph: LayerGraph): Promise<Float32Array> {
  const model = await LayerModel.open(graph, { computeThreads: 1 });
  try {
    return await model.embed(pictures(1, 8));
  } finally {
    await model.close();
  }
}

describe('in FP32, a node computes what ONNX Runtime does', () => {
  const window = { kernel_shape: [2, 2], strides: [3, 3], ceil_mode: 1 };
  const power = (data: TypedArray) => (b: GraphBuilder, map: string) => b.node('Pow', [map, { dims: [], data }]);
  const nodes: Record<string, (b: GraphBuilder, map: string) => string> = {
    // The fourth row and column of windows would begin behind the map of 8 x 8 and its first pad.
    'MaxPool that rounds up, where the last window is left out': (b, map) =>
      b.node('MaxPool', [map], { ...window, pads: [1, 1, 1, 1] }),
    'AveragePool that rounds up, where the last window is left out': (b, map) =>
      b.node('AveragePool', [map], { ...window, pads: [1, 1, 1, 1] }),
    'MaxPool that rounds up along one axis': (b, map) =>
      b.node('MaxPool', [map], { kernel_shape: [3, 2], strides: [2, 2], ceil_mode: 1 }),
    'Pow with an exponent of int64': power(BigInt64Array.of(3n)),
    'Pow with an exponent of int32': power(Int32Array.of(3)),
    'Concat of a value with itself': (b, map) => b.node('Concat', [map, map, map], { axis: 1 }),
  };
  for (const [name, build] of Object.entries(nodes))
    test(name, async () => {
      const b = new GraphBuilder();
      const graph = b.graph(b.flatten(build(b, b.conv('data', 3, 4, 1))));
      const [expected] = await runOrt(encodeOnnx(graph), toChannelsFirst(pictures(1, 8)));
      assert.ok(largestDifference(await embedded(fold(graph)), expected!.data) < 1e-5);
    });

  test('constants of 8 bits are numbers, too', async () => {
    const found = [];
    for (const exponent of [Float32Array.of(3), Int8Array.of(3), Uint8Array.of(3)]) {
      const b = new GraphBuilder();
      found.push(await embedded(fold(b.graph(b.flatten(power(exponent)(b, b.conv('data', 3, 4, 1)))))));
    }
    assert.deepEqual(found[1], found[0]);
    assert.deepEqual(found[2], found[0]);
  });
});
