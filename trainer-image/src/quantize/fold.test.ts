/** Folding: every pattern against ONNX Runtime on the original graph. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { Graph, Layer, LayerGraph } from '@facetrain/native';
import { parseOnnx, readOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { largestDifference, MOBILEFACENET, noise, runOrt } from '../testing/onnx-oracles.ts';
import { fold } from './fold.ts';
import { layersToOnnx } from './layers-to-onnx.ts';

const TOLERANCE = 1e-4;

/** The largest difference between a graph's output and that of layers, in ONNX Runtime. */
async function difference(graph: Graph, layers: LayerGraph): Promise<number> {
  const { channels, height, width } = graph.input;
  const pictures = noise(2 * channels * height * width);
  const expected = (await runOrt(encodeOnnx(graph), pictures))[0]!.data;
  const found = (await runOrt(encodeOnnx(layersToOnnx(layers)), pictures))[0]!.data;
  assert.ok(
    expected.some((value) => Math.abs(value) > 0.1),
    'the expected output is not all but zero',
  );
  return largestDifference(expected, found);
}

function kinds(layers: LayerGraph): string {
  return layers.layers.map(({ kind }) => kind).join(' ');
}

const PATTERNS: Record<string, { build: (b: GraphBuilder) => string; want: string }> = {
  'conv, batch norm, PRelu': {
    build: (b) => b.flatten(b.prelu(b.batchNorm(b.conv('data', 3, 6, 3, { pad: 1, bias: false }), 6), 6)),
    want: 'conv pointwise',
  },
  'a grouped and a depthwise conv with batch norms on both sides': {
    build: (b) =>
      b.flatten(b.batchNorm(b.conv(b.batchNorm(b.conv('data', 3, 6, 1), 6), 6, 12, 3, { group: 3, stride: 2 }), 12)),
    want: 'conv conv',
  },
  'batch norm in front of a grouped conv without padding': {
    build: (b) => b.flatten(b.conv(b.batchNorm(b.prelu(b.conv('data', 3, 6, 1), 6), 6), 6, 9, 3, { group: 3 })),
    want: 'conv pointwise conv',
  },
  'batch norm in front of a padded conv': {
    build: (b) => b.flatten(b.conv(b.batchNorm(b.prelu(b.conv('data', 3, 6, 1), 6), 6), 6, 4, 3, { pad: 1 })),
    want: 'conv pointwise pointwise conv',
  },
  'a scaling in front of a padded conv': {
    build: (b) =>
      b.flatten(b.conv(b.node('Mul', [b.prelu(b.conv('data', 3, 6, 1), 6), b.values([6, 1, 1])]), 6, 4, 3, { pad: 1 })),
    want: 'conv pointwise conv',
  },
  'IResNet unit with its tail': {
    build: (b) => {
      const stem = b.prelu(b.batchNorm(b.conv('data', 3, 4, 3, { pad: 1, bias: false }), 4), 4);
      const first = b.batchNorm(b.conv(b.batchNorm(stem, 4), 4, 8, 3, { pad: 1, bias: false }), 8);
      const second = b.batchNorm(b.conv(b.prelu(first, 8), 8, 8, 3, { pad: 1, stride: 2, bias: false }), 8);
      const identity = b.batchNorm(b.conv(stem, 4, 8, 1, { stride: 2, bias: false }), 8);
      const tail = b.batchNorm(b.node('Add', [second, identity]), 8);
      return b.batchNorm(b.gemm(b.flatten(tail), 8 * 4 * 4, 16), 16);
    },
    want: 'conv pointwise pointwise conv pointwise conv conv add fc',
  },
  'batch norm that several convs read': {
    build: (b) => {
      const shared = b.batchNorm(b.prelu(b.conv('data', 3, 4, 1), 4), 4);
      return b.flatten(b.node('Add', [b.conv(shared, 4, 4, 1), b.conv(shared, 4, 4, 1)]));
    },
    want: 'conv pointwise conv conv add',
  },
  'a conv whose output is read beside its batch norm': {
    build: (b) => {
      const conv = b.conv('data', 3, 4, 3, { pad: 1 });
      return b.flatten(b.node('Add', [b.batchNorm(conv, 4), conv]));
    },
    want: 'conv pointwise add',
  },
  'a batch norm at the end': {
    build: (b) => b.flatten(b.batchNorm(b.node('Add', [b.conv('data', 3, 4, 1), b.conv('data', 3, 4, 1)]), 4)),
    want: 'conv conv add pointwise',
  },
  'preprocessing in front of a conv without padding': {
    build: (b) => {
      const shifted = b.node('Sub', ['data', b.values([1, 3, 1, 1])]);
      return b.flatten(
        b.conv(
          b.node('Div', [
            b.node('Mul', [shifted, { dims: [], data: Float32Array.of(2) }]),
            b.values([3, 1, 1], 0.5, 1),
          ]),
          3,
          4,
          3,
        ),
      );
    },
    want: 'conv',
  },
  'preprocessing in front of a padded conv': {
    build: (b) =>
      b.flatten(b.conv(b.node('Sub', [{ dims: [1], data: Float32Array.of(0.5) }, 'data']), 3, 4, 3, { pad: 1 })),
    want: 'pointwise conv',
  },
  'MatMul with a bias, then batch norm': {
    build: (b) =>
      b.batchNorm(
        b.node('Add', [b.node('MatMul', [b.flatten(b.conv('data', 3, 2, 1)), b.values([128, 5])]), b.values([5])]),
        5,
      ),
    want: 'conv fc',
  },
  'Gemm with alpha, beta and untransposed weights': {
    build: (b) => b.node('Gemm', [b.flatten('data'), b.values([192, 5]), b.values([1, 5])], { alpha: 0.5, beta: 2 }),
    want: 'fc',
  },
  'fc, PRelu, fc': {
    build: (b) => b.gemm(b.node('PRelu', [b.gemm(b.flatten('data'), 192, 7), b.values([7])]), 7, 5),
    want: 'fc pointwise fc',
  },
  'pool, then fc': {
    build: (b) => b.gemm(b.flatten(b.node('GlobalAveragePool', [b.conv('data', 3, 6, 3)])), 6, 5),
    want: 'conv pool fc',
  },
  'a sum of a flattened conv and an fc': {
    build: (b) => b.node('Add', [b.flatten(b.conv('data', 3, 5, 8)), b.gemm(b.flatten('data'), 192, 5)]),
    want: 'conv fc add',
  },
  'Relu and LeakyRelu': {
    build: (b) =>
      b.flatten(b.node('LeakyRelu', [b.conv(b.node('Relu', [b.conv('data', 3, 4, 3)]), 4, 4, 3)], { alpha: 0.1 })),
    want: 'conv pointwise conv pointwise',
  },
  'a Reshape at the end': {
    build: (b) => b.node('Reshape', [b.conv('data', 3, 5, 8), { dims: [2], data: BigInt64Array.of(0n, -1n) }]),
    want: 'conv',
  },
  'one slope for all channels': {
    build: (b) => b.flatten(b.node('PRelu', [b.conv('data', 3, 4, 1), b.values([1])])),
    want: 'conv pointwise',
  },
};

describe('the folded layers are the same function', () => {
  for (const [name, { build, want }] of Object.entries(PATTERNS)) {
    test(name, async () => {
      const builder = new GraphBuilder();
      const graph = builder.graph(build(builder));
      const layers = fold(graph);
      assert.equal(kinds(layers), want);
      assert.equal(layers.layers.at(-1)!.output, graph.output.name);
      assert.ok((await difference(graph, layers)) < TOLERANCE);
    });
  }

  test('a pretrained MobileFaceNet', async () => {
    const { graph } = await readOnnx(MOBILEFACENET);
    const layers = fold(graph);
    const count = (kind: Layer['kind']) => layers.layers.filter((layer) => layer.kind === kind).length;
    assert.deepEqual(
      { conv: count('conv'), pointwise: count('pointwise'), add: count('add') },
      { conv: 50, pointwise: 33, add: 12 },
    );
    assert.ok((await difference(graph, layers)) < TOLERANCE);
  });
});

test('the mean of a map that a Reshape makes is the pool that it is when the INT7 file is read back', () => {
  const b = new GraphBuilder();
  const target = { dims: [4], data: BigInt64Array.of(0n, 8n, 4n, 8n) };
  const map = b.node('Reshape', [b.conv('data', 3, 4, 1), target]);
  const graph = b.graph(b.flatten(b.conv(b.node('ReduceMean', [map], { axes: [2, 3], keepdims: 1 }), 8, 5, 1)));
  const read = parseOnnx(encodeOnnx(graph), 'model.onnx', { every: true });
  assert.equal(kinds(fold(read.graph)), 'conv node pool conv');
});

test('each folded node is named, with what takes it in', () => {
  const b = new GraphBuilder({ height: 8, width: 8 });
  const stem = b.batchNorm(b.conv('data', 3, 6, 1), 6);
  const graph = b.graph(b.flatten(b.conv(b.batchNorm(b.prelu(stem, 6), 6), 6, 4, 3)));
  const folded: [string, string[]][] = [];
  fold(graph, { onFold: (node, into) => folded.push([node, into]) });
  assert.deepEqual(folded, [
    ['BatchNormalization_1', ['Conv_0']],
    ['BatchNormalization_3', ['Conv_4']],
  ]);
});

test('folding a batch norm into a padded conv behind it would be wrong, at the border only', async () => {
  const builder = new GraphBuilder();
  const graph = builder.graph(builder.flatten(builder.conv(builder.batchNorm('data', 3), 3, 4, 3, { pad: 1 })));
  // Without pads in the graph, fold() folds it; then the pads are put back.
  const unpadded = structuredClone(graph);
  const conv = unpadded.nodes.find(({ op }) => op === 'Conv')!;
  const { pads } = conv.attributes;
  conv.attributes.pads = [0, 0, 0, 0];
  const plain = fold({ ...unpadded, output: { ...unpadded.output, dim: 4 * 6 * 6 } });
  assert.equal(kinds(plain), 'conv');
  Object.assign(plain.layers[0]!, { pads });
  plain.output.dim = graph.output.dim;

  const pictures = noise(3 * 8 * 8);
  const expected = (await runOrt(encodeOnnx(graph), pictures))[0]!.data;
  const found = (await runOrt(encodeOnnx(layersToOnnx(plain)), pictures))[0]!.data;
  let border = 0;
  for (let index = 0; index < expected.length; ++index) {
    const [row, column] = [Math.floor(index / 8) % 8, index % 8];
    const error = Math.abs(expected[index]! - found[index]!);
    if (row % 7 === 0 || column % 7 === 0) border = Math.max(border, error);
    else assert.ok(error < TOLERANCE, `inside, at ${row}, ${column}`);
  }
  assert.ok(border > 0.1, 'the border shows the difference');
});

describe('what has no quantized layer is refused by operator and node, if nothing may stay FP32', () => {
  const cases: Record<string, { build: (b: GraphBuilder) => string; code?: string; expected: RegExp }> = {
    'an operator that only FP32 has': {
      build: (b) => b.flatten(b.node('Softmax', [b.conv('data', 3, 4, 3)])),
      expected:
        /^node "Softmax_1" \(Softmax\): operator Softmax, .* in FP32; feature maps through Abs, (?!.* Softmax,)/,
    },
    'a Concat of rows': {
      build: (b) => {
        const map = b.conv('data', 3, 4, 1);
        return b.flatten(b.node('Concat', [map, b.conv('data', 3, 4, 1)], { axis: 2 }));
      },
      expected: /^node "Concat_2" \(Concat\): operator Concat along axis 2, not the channels; feature maps through /,
    },
    'a division by zero': {
      build: (b) => b.flatten(b.node('Div', [b.conv('data', 3, 4, 1), { dims: [], data: Float32Array.of(0) }])),
      expected: /^node "Div_1" \(Div\): a division that is no scaling; /,
    },
    'a reciprocal': {
      build: (b) => b.flatten(b.node('Div', [b.values([1]), b.conv('data', 3, 4, 1)])),
      expected: /^node "Div_1" \(Div\): a division/,
    },
    'a slope for every pixel': {
      build: (b) => b.flatten(b.node('PRelu', [b.conv('data', 3, 4, 1), b.values([4, 8, 8])])),
      expected: /^node "PRelu_1" \(PRelu\): a constant of shape \[4, 8, 8\]; one number, or one for each of 4 channels/,
    },
    'a PRelu behind a Flatten': {
      build: (b) => b.node('PRelu', [b.flatten('data'), b.values([192])]),
      expected: /^node "PRelu_1" \(PRelu\): a flattened feature map/,
    },
    'computed weights': {
      build: (b) => b.flatten(b.node('Conv', ['data', 'data'], { kernel_shape: [8, 8] })),
      expected: /^node "Conv_0" \(Conv\): input 1 \("data"\) that is computed; a constant/,
    },
    'a Reshape to another picture': {
      build: (b) => b.flatten(b.node('Reshape', ['data', { dims: [4], data: BigInt64Array.of(0n, 12n, 4n, 4n) }])),
      expected: /^node "Reshape_0" \(Reshape\): shape \[0, 12, 4, 4\]; /,
    },
    'MatMul on a feature map': {
      build: (b) => b.node('MatMul', ['data', b.values([8, 8])]),
      expected: /^node "MatMul_0" \(MatMul\): a feature map as its input; /,
    },
    'a negative variance': {
      build: (b) =>
        b.flatten(
          b.node('BatchNormalization', [
            'data',
            b.values([3]),
            b.values([3]),
            b.values([3]),
            { dims: [3], data: Float32Array.of(1, -1, 1) },
          ]),
        ),
      code: 'InvalidModel',
      expected: /^node "BatchNormalization_0" \(BatchNormalization\): variance -1 of channel 1; /,
    },
    'slopes of several channels for one': {
      build: (b) => b.flatten(b.node('PRelu', [b.conv('data', 3, 1, 1), b.values([4, 1, 1])])),
      code: 'InvalidModel',
      expected:
        /^node "PRelu_1" \(PRelu\): slopes of shape \[4, 1, 1\] for an input of \[1, 1, 8, 8\]; slopes that are /,
    },
    'an output that is the input': {
      build: (b) => b.flatten('data'),
      code: 'InvalidModel',
      expected: /^output "Flatten_0:0": no layer computes it; /,
    },
  };
  for (const [name, { build, code = 'UnsupportedOperator', expected }] of Object.entries(cases)) {
    test(name, () => {
      const builder = new GraphBuilder();
      assert.throws(
        () => fold(builder.graph(build(builder)), { strict: true }),
        (error) => {
          assert.ok(error instanceof FacetrainError);
          assert.match(error.message, expected);
          assert.equal(error.code, code);
          assert.equal(error.exitCode, 2);
          return true;
        },
      );
    });
  }
});

test('an axis that is counted from the last is that of the channels, too', () => {
  for (const axis of [1, -3]) {
    const b = new GraphBuilder();
    const joined = b.node('Concat', [b.conv('data', 3, 4, 1), 'data'], { axis });
    const graph = b.graph(b.flatten(b.conv(joined, 7, 4, 1)));
    const { layers } = fold(parseOnnx(encodeOnnx(graph), 'model.onnx', { every: true }).graph);
    assert.deepEqual(
      layers.map((layer) => (layer.kind === 'node' ? layer.real : layer.kind)),
      ['conv', false, 'conv'],
    );
  }
});
