/**
 * Our integers against the numbers of ONNX Runtime, on every tensor of a small network. The file has operands that are
 * clamped as in our runtime.
 */
import assert from 'node:assert/strict';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import {
  type Graph,
  type GraphNode,
  Int7Model,
  type LayerGraph,
  LayerModel,
  type Pictures,
  type Scales,
  searchScales,
  type TypedArray,
} from '@facetrain/native';
import { buildBackbone } from '../backbones/backbone.ts';
import { inferShapes } from '../onnx/infer-shapes.ts';
import { withInputRange } from '../onnx/input-range.ts';
import { readOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, networkOfNodes, plainScales, QUICK_SEARCH, smallFaceNet } from '../testing/graph-fixtures.ts';
import { largestDifference, MOBILEFACENET, noise, runOrt } from '../testing/onnx-oracles.ts';
import { fold } from './fold.ts';
import { layersToOnnx } from './layers-to-onnx.ts';
import { encodeInt7 } from './qdq.ts';

/** Of float32 sums, in steps: both may add and multiply in another order. */
const ROUNDING = 1e-3;

function pictures(count: number, height: number, width = height): Pictures {
  const data = Uint8Array.from(noise(count * height * width * 3), (value) => Math.round((value + 1) * 127.5));
  return { count, height, width, channelOrder: 'rgb', data };
}

function toChannelsFirst({ height, width, data }: Pictures): Float32Array {
  const area = height * width;
  return Float32Array.from(
    { length: 3 * area },
    (_, index) => data[(index % area) * 3 + Math.floor(index / area)]! / 127.5 - 1,
  );
}

interface Case {
  /** The file's graph, its operands clamped. */
  clamped: Graph;
  shapes: Map<string, number[]>;
  scales: Scales;
  picture: Float32Array;
  /** What our runtime computes for the picture, by tensor. */
  ours: Record<string, Int8Array>;
}

/** The nodes that some values depend on, and all that they read: of a large network, those of one layer. */
function needed(nodes: GraphNode[], values: string[]): { nodes: GraphNode[]; read: Set<string> } {
  const read = new Set(values);
  const found = nodes.toReversed().filter(({ inputs, outputs }) => {
    const isRead = outputs.some((name) => read.has(name));
    if (isRead) for (const name of inputs) read.add(name);
    return isRead;
  });
  return { nodes: found.toReversed(), read };
}

/**
 * The numbers of a tensor in ONNX Runtime before it rounds them, in steps of the tensor. Its layer reads our integers:
 * a sum that lies halfway between two may be rounded either way, and further layers would make many units of that one.
 */
async function ortSteps({ clamped, shapes, scales, picture, ours }: Case, tensor: string): Promise<number[]> {
  const input = clamped.input.name;
  const real = (name: string) => Float32Array.from(ours[name]!, (integer) => integer * scales.tensors[name]!.scale);
  const given = Object.keys(scales.tensors).filter((name) => name !== tensor && name !== input);
  const dim = ours[tensor]!.length;
  const probe = { name: 'probe', op: 'Flatten', inputs: [tensor], outputs: ['probe'], attributes: { axis: 1 } };
  const behind = clamped.nodes.filter(({ outputs }) => !given.includes(outputs[0]!));
  const { nodes, read } = needed([...behind, probe], ['probe', input]);
  const constants = given.flatMap((name) =>
    read.has(name) ? [[name, { dims: shapes.get(name)!, data: real(name) }]] : [],
  );
  const layer = {
    ...clamped,
    nodes,
    initializers: Object.fromEntries([
      ...Object.entries(clamped.initializers).filter(([name]) => read.has(name)),
      ...constants,
    ]),
    output: { name: 'probe', dim },
    outputs: [{ name: 'probe', dims: [dim] }],
  };
  const [result] = await runOrt(encodeOnnx(layer), tensor === input ? picture : real(input));
  return Array.from(result!.data, (value) => value / scales.tensors[tensor]!.scale);
}

/** A graph with one output: all of its own, flattened, one behind the other. */
function joined({ outputs, ...graph }: Graph): Graph {
  const own = outputs ?? [{ name: graph.output.name }];
  const flat = own.map(({ name }, i) => {
    const output = `probe.${i}`;
    return { name: output, op: 'Flatten', inputs: [name], outputs: [output], attributes: { axis: 1 } };
  });
  const inputs = flat.map(({ name }) => name);
  const all = { name: 'probe', op: 'Concat', inputs, outputs: ['probe'], attributes: { axis: 1 } };
  return { ...graph, nodes: [...graph.nodes, ...flat, all], output: { name: 'probe', dim: graph.output.dim } };
}

/** The network's outputs in ONNX Runtime, one behind the other, of layers that read our integers. */
async function ortOutputs({ clamped, shapes, scales, picture, ours }: Case): Promise<Float32Array> {
  const { input } = clamped;
  const given = Object.keys(scales.tensors).filter((name) => name !== input.name);
  const whole = joined(clamped);
  const behind = whole.nodes.filter(({ outputs: [first] }) => !given.includes(first!));
  const { nodes, read } = needed(behind, [whole.output.name, input.name]);
  const constants = given
    .filter((name) => read.has(name))
    .map((name) => {
      const data = Float32Array.from(ours[name]!, (integer) => integer * scales.tensors[name]!.scale);
      return [name, { dims: shapes.get(name)!, data }];
    });
  const kept = Object.entries(clamped.initializers).filter(([name]) => read.has(name));
  const last = { ...whole, nodes, initializers: Object.fromEntries([...kept, ...constants]) };
  return (await runOrt(encodeOnnx(last), picture))[0]!.data;
}

async function compare(
  graph: LayerGraph,
  scales: Scales,
  { bytes = pictures(1, graph.input.height), mayBeConstant = false } = {},
): Promise<void> {
  const picture = toChannelsFirst(bytes);
  const model = await Int7Model.open(graph, scales, { computeThreads: 1 });
  const ours = await model.runLayers(bytes);
  const embedding = await model.embed(bytes);
  await model.close();
  const clamped = encodeInt7(graph, scales, { clamp: true });
  const shapes = inferShapes(layersToOnnx(graph), 1);
  for (const [tensor, { limit, zeroPoint }] of Object.entries(scales.tensors)) {
    const steps = await ortSteps({ clamped, shapes, scales, picture, ours }, tensor);
    const found = ours[tensor]!;
    assert.equal(found.length, steps.length, tensor);
    const [low, high] = [-limit - zeroPoint, limit - zeroPoint];
    const errors = steps.map((value, index) => Math.abs(Math.min(high, Math.max(low, value)) - found[index]!));
    const worst = errors.reduce((most, error) => Math.max(most, error), 0);
    assert.ok(worst <= 0.5 + ROUNDING, `${tensor}: ${worst} steps`);
    const isVaried = new Set(found).size > Math.min(10, found.length / 3);
    assert.ok(isVaried || mayBeConstant, `${tensor} is not all but constant`);
  }
  const outputs = await ortOutputs({ clamped, shapes, scales, picture, ours });
  assertClose(embedding, outputs, 1e-5, 'the outputs of the last layers, on our integers');
  if (mayBeConstant) return;
  const [whole] = await runOrt(encodeOnnx(joined(clamped)), picture);
  assertClose(embedding, whole!.data, 0.02, 'the outputs');
}

/** @param allowed in parts of the largest number */
function assertClose(found: Float32Array, expected: Float32Array, allowed: number, what: string): void {
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  assert.equal(found.length, expected.length, what);
  const difference = largestDifference(found, expected) / largest;
  assert.ok(difference < allowed, `${what}: ${difference} of the largest`);
}

describe('every integer is the nearest to what ONNX Runtime computes', () => {
  for (const [name, build] of Object.entries({ 'a face network': smallFaceNet, 'a network of nodes': networkOfNodes }))
    for (const wide of [false, true]) {
      const bits = wide ? '7 and 8 bits' : '7 bits';
      test(`of ${name}, with plain scales of ${bits}`, async () => {
        const graph = fold(build());
        await compare(graph, plainScales(graph, { wide }));
      });

      test(`of ${name}, with scales of ${bits} from the search`, async () => {
        const search = { ...QUICK_SEARCH, budget: wide ? 0.5 : 0 };
        const { graph, scales } = await searchScales(fold(build()), pictures(4, 14), search);
        const inputs = graph.layers.flatMap((layer) => (layer.kind === 'conv' ? [layer.input] : []));
        const limits = new Set(inputs.map((input) => scales.tensors[input]!.limit));
        assert.deepEqual([...limits].sort(), wide ? [127, 63] : [63]);
        await compare(graph, scales);
      });
    }
});

describe('the same in whole networks, each layer on our integers', () => {
  const read = async (file: string) => withInputRange(await readOnnx(file, { every: true }), { subject: file }).graph;
  const iresnet18 = { backbone: 'iresnet18', embeddingDim: 64, width: 1, blocks: null, seed: 5 } as const;
  const NETWORKS: Record<string, () => Promise<Graph> | Graph> = {
    'a pretrained MobileFaceNet': () => read(MOBILEFACENET),
    'an IResNet-18 of random weights': () => buildBackbone(iresnet18),
    'a pretrained detector': () => read(join(dirname(MOBILEFACENET), 'fr_detect.onnx')),
  };
  for (const [name, graphOf] of Object.entries(NETWORKS))
    test(name, async () => {
      const layers = fold(await graphOf());
      const { height, width } = layers.input;
      // Scales of the maximum: nothing that is searched is at stake here.
      const search = { ...QUICK_SEARCH, rounds: 0, budget: 0.3 };
      const { graph, scales } = await searchScales(layers, pictures(2, height, width), search);
      await compare(graph, scales, { bytes: pictures(1, height, width), mayBeConstant: true });
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
    LRN: (b, map) => b.node('LRN', [map], { size: 3, alpha: 0.5, beta: 0.6, bias: 1.5 }),
    LpPool: (b, map) => b.node('LpPool', [map], { kernel_shape: [3, 2], strides: [2, 1], pads: [1, 0, 1, 1] }),
    'LpPool of sums': (b, map) => b.node('LpPool', [map], { kernel_shape: [2, 2], p: 1 }),
    ThresholdedRelu: (b, map) => b.node('ThresholdedRelu', [map], { alpha: 0.3 }),
    ...Object.fromEntries(
      ['Ceil', 'Floor', 'Round', 'Sign'].map((op) => [
        op,
        (b: GraphBuilder, map: string) => b.node(op, [b.node('Mul', [map, { dims: [], data: Float32Array.of(3) }])]),
      ]),
    ),
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
