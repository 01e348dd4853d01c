/**
 * The native executor computes what ONNX Runtime computes: every operator with awkward shapes, the pretrained fixture,
 * our backbones.
 */
import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { BACKBONES, FacetrainError } from '@facetrain/api';
import { type Graph, type GraphNode, Model, type Pictures, type Tensor } from '@facetrain/native';
import { buildBackbone } from '../backbones/backbone.ts';
import { keepVariance, largestDifference, MOBILEFACENET, noise, runOrt } from '../testing/onnx-oracles.ts';
import { inferShapes } from './infer-shapes.ts';
import { readOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

/**
 * Relative to the largest value: the running statistics of an untrained network do not fit it, so its values grow from
 * layer to layer.
 */
const TOLERANCE = 1e-4;

function agree(actual: Float32Array, expected: Float32Array): void {
  const largest = Math.max(1, largestDifference(expected, new Float32Array(expected.length)));
  const difference = largestDifference(actual, expected);
  assert.ok(difference <= TOLERANCE * largest, `values up to ${largest} differ by ${difference}`);
}

type Attributes = GraphNode['attributes'];

/** A graph as a chain of nodes, each of which reads the value before it. */
class Chain {
  readonly input: Graph['input'];
  readonly nodes: GraphNode[] = [];
  readonly initializers: Record<string, Tensor> = {};
  current: string;

  constructor(input: Graph['input']) {
    this.input = input;
    this.current = input.name;
  }

  /** @param others further inputs: constants, or names of values */
  node(op: string, attributes: Attributes = {}, ...others: (Tensor | string)[]): this {
    const name = `${op.toLowerCase()}${this.nodes.length}`;
    const inputs = others.map((other, i) => {
      if (typeof other === 'string') return other;
      this.initializers[`${name}.${i}`] = other;
      return `${name}.${i}`;
    });
    this.nodes.push({ name, op, inputs: [this.current, ...inputs], outputs: [name], attributes });
    this.current = name;
    return this;
  }

  graph(): Graph {
    const graph = {
      input: this.input,
      output: { name: this.current, dim: 0 },
      nodes: this.nodes,
      initializers: this.initializers,
    };
    const shape = inferShapes(graph, 1).get(this.current);
    graph.output.dim = shape?.[1] ?? 1;
    return graph;
  }
}

let seed = 7;
const floats = (...dims: number[]): Tensor<Float32Array> => ({
  dims,
  data: noise(
    dims.reduce((product, dim) => product * dim, 1),
    seed++,
  ),
});
const positive = (...dims: number[]) => ({ dims, data: floats(...dims).data.map((value) => 0.5 + Math.abs(value)) });
const scalar = (value: number): Tensor => ({ dims: [], data: Float32Array.of(value) });
const shape = (...dims: number[]): Tensor => ({ dims: [dims.length], data: BigInt64Array.from(dims, BigInt) });
/** Pictures of 3 x 7 x 5, and a convolution to `channels`: three channels would test too little. */
const start = (channels = 4) =>
  new Chain({ name: 'data', channels: 3, height: 7, width: 5 }).node('Conv', {}, floats(channels, 3, 1, 1));
const batchNorm = (channels: number) => [positive(channels), floats(channels), floats(channels), positive(channels)];

const cases: Record<string, () => Chain> = {
  'Conv, 3x3 with bias': () => start().node('Conv', { pads: [1, 1, 1, 1] }, floats(6, 4, 3, 3), floats(6)),
  'Conv, stride and unequal pads': () =>
    start().node('Conv', { pads: [0, 2, 1, 0], strides: [2, 1] }, floats(5, 4, 3, 2)),
  'Conv, dilation': () => start().node('Conv', { dilations: [2, 1], pads: [2, 1, 2, 1] }, floats(3, 4, 3, 3)),
  'Conv, groups': () => start(6).node('Conv', { group: 3, kernel_shape: [3, 3] }, floats(9, 2, 3, 3), floats(9)),
  'Conv, depthwise': () => start(6).node('Conv', { group: 6, pads: [1, 1, 1, 1], strides: [2, 2] }, floats(6, 1, 3, 3)),
  BatchNormalization: () => start().node('BatchNormalization', { epsilon: 1e-3, momentum: 0.9 }, ...batchNorm(4)),
  'BatchNormalization of vectors': () =>
    start()
      .node('Flatten')
      .node('BatchNormalization', {}, ...batchNorm(140)),
  'PRelu [C, 1, 1]': () => start().node('PRelu', {}, floats(4, 1, 1)),
  'PRelu, one slope': () => start().node('PRelu', {}, floats(1)),
  'PRelu of vectors': () => start().node('Flatten').node('PRelu', {}, floats(140)),
  Relu: () => start().node('Relu'),
  LeakyRelu: () => start().node('LeakyRelu', { alpha: 0.3 }),
  Clip: () => start().node('Clip', {}, scalar(-0.2), scalar(0.3)),
  'Clip, only above': () => start().node('Clip', {}, '', scalar(0.1)),
  Sigmoid: () => start().node('Sigmoid'),
  Tanh: () => start().node('Tanh'),
  'Add of two values': () => {
    const chain = start();
    const before = chain.current;
    return chain.node('Relu').node('Add', {}, before);
  },
  'Add to itself': () => {
    const chain = start();
    return chain.node('Add', {}, chain.current);
  },
  'Sub and Mul of constants': () =>
    start()
      .node('Sub', {}, scalar(0.4))
      .node('Mul', {}, floats(1, 4, 1, 1)),
  'Div by a constant per pixel': () => start().node('Div', {}, positive(7, 5)),
  'Mul broadcast over pixels': () => {
    const chain = start();
    const before = chain.current;
    return chain.node('GlobalAveragePool').node('Sigmoid').node('Mul', {}, before);
  },
  'Reshape, batch 0 and a rest': () => start().node('Reshape', {}, shape(0, -1)),
  'Reshape, to three dimensions': () =>
    start()
      .node('Reshape', {}, shape(0, 10, 14))
      .node('Transpose', { perm: [0, 2, 1] }),
  'Gemm, transposed, with bias': () => start().node('Flatten').node('Gemm', { transB: 1 }, floats(9, 140), floats(9)),
  'Gemm, alpha and beta': () =>
    start().node('Flatten').node('Gemm', { alpha: 0.5, beta: 2 }, floats(140, 9), floats(1, 9)),
  'MatMul by a weight': () => start().node('Flatten').node('MatMul', {}, floats(140, 9)),
  GlobalAveragePool: () => start().node('GlobalAveragePool'),
  'AveragePool, padding not counted': () =>
    start().node('AveragePool', { kernel_shape: [3, 2], strides: [2, 1], pads: [1, 0, 1, 0] }),
  'AveragePool, unequal pads': () =>
    start().node('AveragePool', { kernel_shape: [3, 3], strides: [2, 2], pads: [0, 0, 1, 1] }),
  'AveragePool, unequal pads counted': () =>
    start().node('AveragePool', { kernel_shape: [3, 3], pads: [0, 0, 1, 2], count_include_pad: 1 }),
  'MaxPool, stride and pads': () =>
    start().node('MaxPool', { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] }),
  'MaxPool, unequal pads': () => start().node('MaxPool', { kernel_shape: [2, 3], strides: [1, 2], pads: [0, 1, 1, 0] }),
  Concat: () => {
    const chain = start();
    const before = chain.current;
    return chain.node('Relu').node('Concat', { axis: 1 }, before);
  },
  'Concat, axis from the end': () => {
    const chain = start();
    const before = chain.current;
    return chain.node('Relu').node('Concat', { axis: -1 }, before);
  },
  Transpose: () => start().node('Transpose', { perm: [0, 2, 3, 1] }),
  Squeeze: () => start().node('GlobalAveragePool').node('Squeeze', {}, shape(3, -2)),
  Unsqueeze: () => start().node('Unsqueeze', {}, shape(1, -1)),
  'Identity and Dropout': () => start().node('Identity').node('Dropout'),
};

function picturesFor({ input }: Graph, count: number): { pictures: Pictures; values: Float32Array } {
  const { channels, height, width } = input;
  const area = height * width;
  const data = Uint8Array.from(noise(count * area * channels, 3), (value) => Math.round((value + 1) * 127));
  const values = new Float32Array(data.length);
  for (let i = 0; i < count * area; i++) {
    for (let c = 0; c < channels; c++)
      values[(Math.floor(i / area) * channels + c) * area + (i % area)] = data[i * channels + c]! / 127.5 - 1;
  }
  return { pictures: { count, height, width, channelOrder: 'rgb', data }, values };
}

async function embedded(graph: Graph, pictures: Pictures, options = {}): Promise<Float32Array> {
  const model = await Model.open(graph, { computeThreads: 1 });
  try {
    return await model.embed(pictures, options);
  } finally {
    await model.close();
  }
}

suite('executor against ONNX Runtime', () => {
  for (const [name, build] of Object.entries(cases)) {
    test(name, async () => {
      const graph = build().node('Flatten').graph();
      const { pictures, values } = picturesFor(graph, 3);
      const [expected] = await runOrt(encodeOnnx(graph), values);
      const actual = await embedded(graph, pictures);
      assert.equal(actual.length, 3 * graph.output.dim);
      agree(actual, expected!.data);
    });
  }

  test('the pretrained MobileFaceNet, with another batch size than its own', async () => {
    const { graph } = await readOnnx(MOBILEFACENET);
    const { pictures, values } = picturesFor(graph, 2);
    const [expected] = await runOrt(encodeOnnx(graph), values);
    agree(await embedded(graph, pictures), expected!.data);
  });

  for (const backbone of BACKBONES) {
    test(`${backbone}, with the reference’s depth and width`, async () => {
      const graph = buildBackbone({ backbone, embeddingDim: 512, width: 2, blocks: null, seed: 5 });
      if (backbone.startsWith('iresnet')) keepVariance(graph);
      const { pictures, values } = picturesFor(graph, 2);
      const [expected] = await runOrt(encodeOnnx(graph), values);
      // The values of some untrained networks are very small, so the difference is compared with the largest value.
      const largest = largestDifference(expected!.data, new Float32Array(expected!.data.length));
      const difference = largestDifference(await embedded(graph, pictures), expected!.data);
      assert.ok(largest > 0 && difference <= TOLERANCE * largest, `values up to ${largest} differ by ${difference}`);
    });
  }
});

suite('Model', () => {
  test('embeds the same with any number of pictures, mirrored ones included, and reports its progress', async () => {
    const graph = start()
      .node('Conv', { pads: [1, 1, 1, 1] }, floats(6, 4, 3, 3))
      .node('Flatten')
      .graph();
    const { pictures } = picturesFor(graph, 70);
    const done: number[] = [];
    const all = await embedded(graph, pictures, { onBatch: (count: number) => done.push(count) });
    assert.deepEqual(done, [32, 64, 70]);
    const size = 7 * 5 * 3;
    const last = { ...pictures, count: 1, data: pictures.data.slice(69 * size) };
    assert.ok(largestDifference(await embedded(graph, last), all.slice(69 * graph.output.dim)) < 1e-6);

    const mirrored = {
      ...last,
      data: last.data.map((_, i, data) => data[(Math.floor(i / 15) * 5 + 4 - (Math.floor(i / 3) % 5)) * 3 + (i % 3)]!),
    };
    const [plain, mirror, sum] = await Promise.all([
      embedded(graph, last),
      embedded(graph, mirrored),
      embedded(graph, last, { flip: true }),
    ]);
    assert.ok(
      largestDifference(
        sum,
        plain.map((value, i) => value + mirror[i]!),
      ) < 1e-6,
    );
    assert.ok(
      largestDifference(
        sum,
        plain.map((value) => 2 * value),
      ) > 1e-2,
    );
  });

  test('an abort ends it', async () => {
    const graph = start().node('Flatten').graph();
    const model = await Model.open(graph, { computeThreads: 1 });
    const { pictures } = picturesFor(graph, 70);
    const abort = new AbortController();
    await assert.rejects(model.embed(pictures, { signal: abort.signal, onBatch: () => abort.abort() }), {
      name: 'AbortError',
    });
    await assert.rejects(model.embed(pictures, { signal: abort.signal }), { name: 'AbortError' });
    await model.close();
    await assert.rejects(model.embed(pictures), { name: 'AbortError' });
    await model.close();
  });

  const refused: Record<string, { chain: () => Chain; code: string; message: RegExp }> = {
    'an operator that is not supported': {
      chain: () => start().node('Softsign'),
      code: 'UnsupportedOperator',
      message: /^node 'softsign1' \(Softsign\): .*one of Add, AveragePool/,
    },
    'an attribute that would not be obeyed': {
      chain: () => start().node('MaxPool', { kernel_shape: [2, 2], ceil_mode: 1 }),
      code: 'UnsupportedOperator',
      message: /^node 'maxpool1' \(MaxPool\): attribute 'ceil_mode' is 1; only 0/,
    },
    'an attribute that is unknown': {
      chain: () => start().node('Relu', { slope: 3 }),
      code: 'UnsupportedOperator',
      message: /^node 'relu1' \(Relu\): attribute 'slope'/,
    },
    'NaN in a weight': {
      chain: () => start().node('Conv', {}, { dims: [1, 4, 1, 1], data: Float32Array.of(1, 2, NaN, 4) }),
      code: 'InvalidModel',
      message: /^tensor 'conv1.0': holds NaN or infinite/,
    },
    'a missing input': {
      chain: () => start().node('Conv'),
      code: 'InvalidModel',
      message: /^node 'conv1' \(Conv\): 1 input; 2 to 3 inputs/,
    },
    'shapes that do not fit': {
      chain: () => start().node('Conv', {}, floats(2, 5, 1, 1)),
      code: 'InvalidModel',
      message: /^node 'conv1' \(Conv\): .*\[N, 3, 7, 5\]/,
    },
    'a value that nothing makes': {
      chain: () => start().node('Add', {}, 'nowhere'),
      code: 'InvalidModel',
      message: /^node 'add1' \(Add\): input 'nowhere'/,
    },
    'a batch that is mixed': {
      chain: () => start().node('Flatten', { axis: 2 }),
      code: 'InvalidModel',
      message: /^node 'flatten1' \(Flatten\): axis 2 would mix/,
    },
    'an output that is no vector': {
      chain: () => start(),
      code: 'InvalidModel',
      message: /^output 'conv0': has the shape \[2, 4, 7, 5\]/,
    },
  };
  for (const [name, { chain, code, message }] of Object.entries(refused)) {
    test(`refuses ${name}`, async () => {
      await assert.rejects(Model.open(chain().graph(), { computeThreads: 1 }), (error: unknown) => {
        assert.ok(error instanceof FacetrainError);
        assert.equal(error.code, code);
        assert.match(error.message, message);
        return true;
      });
    });
  }

  test('refuses pictures of another size', async () => {
    const graph = start().node('Flatten').graph();
    const { pictures } = picturesFor(graph, 1);
    await assert.rejects(
      embedded(graph, { ...pictures, height: 5, width: 7 }),
      /^FacetrainError: input 'data': 1 picture of 5 x 7 .* 7 x 5 with 3 channels/,
    );
  });
});
