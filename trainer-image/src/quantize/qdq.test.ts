/** INT7 networks as ONNX files: read back exactly, accepted by onnx.checker, run as integers by ONNX Runtime. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { Graph, LayerGraph, Scales, Tensor } from '@facetrain/native';
import * as ort from 'onnxruntime-node';
import { decodeModel } from '../onnx/proto.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, networkOfNodes, plainScales, smallFaceNet } from '../testing/graph-fixtures.ts';
import { checkWithOnnx } from '../testing/onnx-oracles.ts';
import { modelFile } from './artifact-files.ts';
import { fold } from './fold.ts';
import { decodeInt7, encodeInt7 } from './qdq.ts';

function throughFile(graph: Graph): Graph {
  return parseOnnx(encodeOnnx(graph), 'model.int7.onnx', { every: true }).graph;
}

/** The layers with the real values of the integers as weights and biases, as a file has them. */
function withRealWeights(graph: LayerGraph, scales: Scales): LayerGraph {
  const layers = graph.layers.map((layer) => {
    if (layer.kind !== 'conv' && layer.kind !== 'fc') return layer;
    const { values, scales: weightScales } = scales.weights[layer.name]!;
    const inputScale = scales.tensors[layer.input]!.scale;
    const perOutput = values.length / weightScales.length;
    const data = Float32Array.from(values, (integer, index) => integer * weightScales[Math.floor(index / perOutput)]!);
    const bias = Float32Array.from(
      scales.biases[layer.name]!,
      (integer, output) => integer * Math.fround(inputScale * weightScales[output]!),
    );
    return { ...layer, weight: { dims: layer.weight.dims, data }, bias };
  });
  return { ...graph, layers };
}

const NETWORKS: Record<string, () => Graph> = {
  'every kind of layer': smallFaceNet,
  'nodes, and two outputs': networkOfNodes,
  'a convolution at the end': () => {
    const b = new GraphBuilder();
    return b.graph(
      b.node('Reshape', [
        b.conv(b.prelu(b.conv('data', 3, 4, 3), 4), 4, 5, 6),
        { dims: [2], data: BigInt64Array.of(1n, 5n) },
      ]),
    );
  },
  'a batch norm on the picture': () => {
    const b = new GraphBuilder();
    return b.graph(b.flatten(b.conv(b.batchNorm('data', 3), 3, 4, 3, { pad: 1, stride: 2 })));
  },
  'names that layers and tensors share, and that the writer also uses': () => {
    const b = new GraphBuilder();
    const graph = b.graph(
      b.flatten(b.conv(b.batchNorm(b.node('Add', [b.conv('data', 3, 3, 1), 'data']), 3), 3, 4, 3, { pad: 1 })),
    );
    const names: Record<string, string> = {
      'Conv_0:0': 'data.scale',
      'Add_1:0': 'BatchNormalization_2.scale',
      'BatchNormalization_2:0': 'BatchNormalization_2',
      'Conv_3:0': 'Conv_3.weight',
    };
    const renamed = (list: string[]) => list.map((name) => names[name] ?? name);
    return {
      ...graph,
      nodes: graph.nodes.map((node) => ({ ...node, inputs: renamed(node.inputs), outputs: renamed(node.outputs) })),
    };
  },
  'names of JavaScript’s own properties': () => {
    const b = new GraphBuilder();
    const graph = b.graph(b.flatten(b.conv(b.prelu(b.batchNorm(b.conv('data', 3, 3, 1), 3), 3), 3, 4, 3, { pad: 1 })));
    const names = ['constructor', 'toString', 'hasOwnProperty', 'valueOf'];
    const tensors = graph.nodes.map(({ outputs }) => outputs[0]!).filter((name) => name !== graph.output.name);
    const renamed = (list: string[]) => list.map((name) => names[tensors.indexOf(name)] ?? name);
    const nodes = graph.nodes.map((node, index) => ({
      ...node,
      name: names[(index + 1) % names.length]! + (index < names.length ? '' : index),
      inputs: renamed(node.inputs),
      outputs: renamed(node.outputs),
    }));
    return { ...graph, nodes };
  },
  'a PRelu between two fc, and a sum of a flattened conv with an fc': () => {
    const b = new GraphBuilder();
    const hidden = b.gemm(b.node('PRelu', [b.gemm(b.flatten('data'), 192, 7), b.values([7])]), 7, 5);
    return b.graph(b.node('Add', [b.flatten(b.conv('data', 3, 5, 8)), hidden]));
  },
};

describe('a written network is read back exactly', () => {
  for (const [[name, build], wide] of Object.entries(NETWORKS).flatMap((one) => [
    [one, false] as const,
    [one, true] as const,
  ])) {
    test(wide ? `${name}, with operands of 8 bits` : name, () => {
      const layers = fold(build());
      const scales = plainScales(layers, { wide });
      const operands = layers.layers.flatMap((layer) =>
        layer.kind === 'conv' || layer.kind === 'fc' ? [layer.input] : [],
      );
      assert.equal(scales.tensors[operands[0]!]!.limit, wide ? 127 : 63);
      const file = encodeInt7(layers, scales);
      const decoded = decodeInt7(throughFile(file));
      assert.deepEqual(decoded.scales, scales);
      assert.deepEqual(decoded.layers, withRealWeights(layers, scales));
      assert.deepEqual(encodeOnnx(encodeInt7(decoded.layers, decoded.scales)), encodeOnnx(file));
    });
  }
});

test('a file that says that it is INT7 is read with all its outputs and nodes', () => {
  const layers = fold(networkOfNodes());
  const scales = plainScales(layers);
  const bytes = encodeOnnx(encodeInt7(layers, scales), { metadata: { 'facetrain.format': 'int7' } });
  assert.deepEqual(decodeInt7(parseOnnx(bytes, 'model.int7.onnx').graph).scales, scales);
  assert.throws(
    () => parseOnnx(encodeOnnx(encodeInt7(layers, scales)), 'other.onnx'),
    /other\.onnx: has 2 outputs: "\w+:0" \[N, 81, 2\], "\w+:0" \[N, 10\]/,
  );
});

test('the documentation of a file says what it computes, in how many bits', () => {
  const origin = { source: 'a', calibration: 'b', channelOrder: 'rgb' } as const;
  const docOf = (graph: Graph, wide: boolean): string => {
    const layers = fold(graph);
    return String(decodeModel(modelFile(layers, plainScales(layers, { wide }), origin)).docString);
  };
  assert.equal(docOf(smallFaceNet(), false), 'Embedding in 7-bit integers. Input: pictures in RGB, range -1..1.');
  assert.match(docOf(networkOfNodes(), true), /^Network of 2 outputs in 7- and 8-bit integers\. /);
});

test('onnx.checker accepts every written network', () => {
  checkWithOnnx(
    Object.fromEntries(
      Object.entries(NETWORKS).map(([name, build], index) => {
        const layers = fold(build());
        return [name, encodeOnnx(encodeInt7(layers, plainScales(layers, { wide: index % 2 === 0 })))];
      }),
    ),
  );
});

for (const wide of [false, true])
  test(`ONNX Runtime computes it in integers${wide ? ', of 8 bits, too' : ''}`, async () => {
    const folder = await mkdtemp(join(tmpdir(), 'facetrain-qdq-'));
    try {
      const layers = fold(smallFaceNet());
      const optimizedModelFilePath = join(folder, 'optimized.onnx');
      const session = await ort.InferenceSession.create(encodeOnnx(encodeInt7(layers, plainScales(layers, { wide }))), {
        optimizedModelFilePath,
        intraOpNumThreads: 1,
        logSeverityLevel: 3,
      });
      await session.release();
      const operators = decodeModel(await readFile(optimizedModelFilePath)).graph!.node.map(({ opType }) => opType);
      const count = (operator: string) => operators.filter((other) => other === operator).length;
      assert.deepEqual(
        {
          QLinearConv: count('QLinearConv'),
          QLinearAdd: count('QLinearAdd'),
          QGemm: count('QGemm'),
          QLinearGlobalAveragePool: count('QLinearGlobalAveragePool'),
        },
        { QLinearConv: 7, QLinearAdd: 3, QGemm: 3, QLinearGlobalAveragePool: 1 },
      );
      for (const operator of ['Conv', 'FusedConv', 'Gemm', 'PRelu', 'GlobalAveragePool'])
        assert.equal(count(operator), 0, `${operator} in float`);
      assert.equal(count('Add'), 4, 'in float only the sums of the parts of four PRelus');
    } finally {
      await rm(folder, { recursive: true });
    }
  });

/** The outputs for one picture of numbers between -1 and 1. */
async function outputsOf(graph: Graph): Promise<number[]> {
  const session = await ort.InferenceSession.create(encodeOnnx(graph), { intraOpNumThreads: 1, logSeverityLevel: 3 });
  try {
    const { channels, height, width } = graph.input;
    const data = Float32Array.from({ length: channels * height * width }, (_, i) => ((i * 7919) % 255) / 127.5 - 1);
    const feeds = { [session.inputNames[0]!]: new ort.Tensor('float32', data, [1, channels, height, width]) };
    const results = await session.run(feeds);
    return session.outputNames.flatMap((name) => [...(results[name]!.data as Float32Array)]);
  } finally {
    await session.release();
  }
}

describe('the form for TensorRT', () => {
  const written = Object.entries(NETWORKS).map(([name, build]) => {
    const layers = fold(build());
    const scales = plainScales(layers);
    const [ours, tensorRt] = [encodeInt7(layers, scales), encodeInt7(layers, scales, { runtime: 'tensorrt' })];
    return { name, ours, tensorRt };
  });

  test('has int8 alone, and zero points of 0', () => {
    for (const { tensorRt } of written)
      for (const { op, inputs } of tensorRt.nodes) {
        if (op !== 'QuantizeLinear' && op !== 'DequantizeLinear') continue;
        const zeros = tensorRt.initializers[inputs[2]!]!.data;
        assert.ok(zeros instanceof Int8Array && zeros.every((zero) => zero === 0), inputs[2]);
      }
    checkWithOnnx(Object.fromEntries(written.map(({ name, tensorRt }) => [name, encodeOnnx(tensorRt)])));
  });

  for (const { name, ours, tensorRt } of written)
    test(`computes the same: ${name}`, async () => {
      const [expected, found] = [await outputsOf(ours), await outputsOf(tensorRt)];
      const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
      // Biases are added in FP32, so single integers differ by one.
      const cosine = dot(expected, found) / Math.sqrt(dot(expected, expected) * dot(found, found));
      assert.ok(cosine > 0.9999, `${cosine}`);
      assert.equal(expected.length, found.length);
    });
});

test('zero points of weights and biases, as files of before have them, change nothing', () => {
  const layers = fold(smallFaceNet());
  const graph = throughFile(encodeInt7(layers, plainScales(layers)));
  const before = structuredClone(graph);
  for (const node of before.nodes.filter(({ name }) => /\.(weight|bias)$/.test(name))) {
    const [integers, scales] = node.inputs.map((name) => before.initializers[name]!) as [Tensor, Tensor];
    const outputs = scales.data.length;
    const data = integers.data instanceof Int8Array ? new Int8Array(outputs) : new Int32Array(outputs);
    before.initializers[`${node.name}.zero_point`] = { dims: [outputs], data };
    node.inputs.push(`${node.name}.zero_point`);
  }
  assert.deepEqual(decodeInt7(before), decodeInt7(graph));
});

describe('a graph that encodeInt7 did not write is refused', () => {
  const file = (): Graph => throughFile(encodeInt7(fold(smallFaceNet()), plainScales(fold(smallFaceNet()))));
  const changed = (suffix: string, change: (data: Record<number, number>) => void) => () => {
    const graph = file();
    const name = Object.keys(graph.initializers).find((candidate) => candidate.endsWith(suffix))!;
    const { dims, data } = graph.initializers[name]!;
    const copy = data.slice();
    change(copy as unknown as Record<number, number>);
    graph.initializers[name] = { dims, data: copy };
    return graph;
  };
  const cases: Record<string, { build: () => Graph; expected: RegExp }> = {
    'a float model': {
      build: smallFaceNet,
      expected: /^node "Conv_0" \(Conv\): it reads "data" unquantized; a model\.int7\.onnx that Facetrain has written$/,
    },
    'a model with Clip': {
      build: () => encodeInt7(fold(smallFaceNet()), plainScales(fold(smallFaceNet())), { clamp: true }),
      expected: /^node "data\.clamped" \(Clip\): it reads "data" unquantized; /,
    },
    'the form for TensorRT': {
      build: () => encodeInt7(fold(smallFaceNet()), plainScales(fold(smallFaceNet())), { runtime: 'tensorrt' }),
      expected:
        /^tensor "data": is quantized to int8 with zero point 0, as in the file for TensorRT \(.*; the model\.int7/,
    },
    'a weight beyond 7 bits': {
      build: changed('.weight.quantized', (data) => (data[3] = 64)),
      expected: /^layer "Conv_0": it has a weight of 64; /,
    },
    'a zero point beyond 7 bits': {
      build: changed('zero_point', (data) => (data[0] = 64)),
      expected: /^node "data\.quantized": its zero point is not a uint8 from 65 to 191; /,
    },
    'a zero point of a tensor that is only mapped': {
      build: changed('zero_point', (data) => (data[0] = 127)),
      expected: /^tensor "BatchNormalization_1:0": it has a zero point, and no convolution reads it with 7 bits; /,
    },
    'another zero point behind the quantization': {
      build: () => {
        const graph = file();
        graph.initializers.other = { dims: [], data: Uint8Array.of(100) };
        graph.nodes.find(({ name }) => name === 'data.dequantized')!.inputs[2] = 'other';
        return graph;
      },
      expected: /its scale or zero point is not that of the quantization/,
    },
    'no zero point behind the quantization': {
      build: () => {
        const graph = file();
        graph.nodes.find(({ name }) => name === 'data.dequantized')!.inputs.pop();
        return graph;
      },
      expected: /^node "data\.dequantized": its zero point is not a uint8 from 65 to 191; /,
    },
    'a zero point of weights': {
      build: () => {
        const graph = file();
        const weight = graph.nodes.find(({ name }) => name.endsWith('.weight'))!;
        const [outputs] = graph.initializers[weight.inputs[1]!]!.dims as [number];
        graph.initializers.other = { dims: [outputs], data: new Int8Array(outputs).fill(1) };
        weight.inputs.push('other');
        return graph;
      },
      expected: /a zero point of its weights is not 0/,
    },
    'a zero point of an operand of 8 bits': {
      build: () => {
        const layers = fold(smallFaceNet());
        const scales = plainScales(layers, { wide: true });
        scales.tensors.data!.zeroPoint = 1;
        return throughFile(encodeInt7(layers, scales));
      },
      expected: /^tensor "data": it has a zero point, and no convolution reads it with 7 bits; /,
    },
    'integers that one layer reads with 8 bits, and another with 7': {
      build: () => {
        const graph = encodeInt7(fold(networkOfNodes()), plainScales(fold(networkOfNodes())));
        const biases = graph.nodes.filter(({ name }) => name.endsWith('.bias'));
        const inputOf = (bias: string) => graph.nodes.find(({ inputs }) => inputs[2] === bias)!.inputs[0];
        const shared = biases.find(
          ({ outputs: [one] }) => biases.filter(({ outputs: [other] }) => inputOf(other!) === inputOf(one!)).length > 1,
        )!;
        shared.attributes = { axis: -1 };
        return graph;
      },
      expected: /^layer ".*": it reads integers of other bits than another layer; /,
    },
    'scales of a bias along another axis': {
      build: () => {
        const graph = file();
        graph.nodes.find(({ name }) => name.endsWith('.bias'))!.attributes = { axis: -2 };
        return graph;
      },
      expected: /: its input is not a constant with one scale per output channel; /,
    },
    'a bias at another scale': {
      build: changed('.bias.scale', (data) => (data[0]! *= 2)),
      expected: /the scale of its bias is not input scale times weight scale/,
    },
    'a scale of zero': {
      build: changed('data.scale', (data) => (data[0] = 0)),
      expected: /its scale is not one positive number/,
    },
    'a tensor that stays real': {
      build: () => {
        const graph = file();
        const add = graph.nodes.find(({ op, inputs }) => op === 'Add' && inputs[0]!.endsWith('.dequantized'))!;
        add.inputs = add.inputs.map((name) => name.replace('.dequantized', ''));
        return graph;
      },
      expected: /^node "Add_\d+" \(Add\): it reads .* unquantized; /,
    },
  };
  for (const [name, { build, expected }] of Object.entries(cases)) {
    test(name, () => {
      assert.throws(
        () => decodeInt7(build()),
        (error) => {
          assert.ok(error instanceof FacetrainError, String(error));
          assert.match(error.message, expected);
          assert.equal(error.code, 'InvalidArtifact');
          return true;
        },
      );
    });
  }
});
