/** The files for ncnn, run by ncnn itself. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Int7Model, LayerModel, type Pictures, searchScales } from '@facetrain/native';
import { python, pythonNcnn } from '../../../hack/lib/paths.mjs';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { cosines } from './compare.ts';
import { fold } from './fold.ts';
import { type NcnnModel, writeNcnn } from './ncnn.ts';

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

const SCRIPT = `
import ncnn, numpy, sys
param, weights, pixels, count, side, name, output, result = sys.argv[1:]
net = ncnn.Net()
assert net.load_param(param) == 0 and net.load_model(weights) == 0
assert net.input_names() == [name] and output in net.output_names(), (net.input_names(), net.output_names())
found = []
for picture in numpy.fromfile(pixels, numpy.uint8).reshape(int(count), int(side), int(side), 3):
    extractor = net.create_extractor()
    real = picture.astype(numpy.float32).transpose(2, 0, 1) / numpy.float32(127.5) - 1
    # A Mat is a view of its array.
    real = numpy.ascontiguousarray(real)
    extractor.input(name, ncnn.Mat(real))
    code, values = extractor.extract(output)
    assert code == 0
    found.append(numpy.array(values).astype(numpy.float32))
assert found[0].ndim == 1, found[0].shape
numpy.array(found).tofile(result)
`;

/** What ncnn computes. */
function runNcnn({ param, bin, input, outputs }: NcnnModel, pictures: Pictures): Float32Array {
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-ncnn-'));
  try {
    const path = (name: string) => join(folder, name);
    writeFileSync(path('param'), param);
    writeFileSync(path('bin'), bin);
    writeFileSync(path('pixels'), pictures.data);
    const args = ['param', 'bin', 'pixels'].map(path);
    const { status, stderr } = spawnSync(
      python,
      ['-c', SCRIPT, ...args, `${pictures.count}`, `${SIDE}`, input, outputs[0]!, path('result')],
      { env: { ...process.env, PYTHONPATH: pythonNcnn }, encoding: 'utf8' },
    );
    assert.equal(status, 0, stderr);
    return new Float32Array(Uint8Array.from(readFileSync(path('result'))).buffer);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

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
};

for (const [name, build] of Object.entries(NETWORKS))
  test(`ncnn computes ${name} as we do`, async (t) => {
    const b = new GraphBuilder({ height: SIDE, width: SIDE });
    const graph = b.graph(build(b));
    const layers = fold(graph);
    const pictures = somePictures(12);
    const { graph: searched, scales } = await searchScales(layers, pictures, {
      ...{ rounds: 0, candidates: 2, lower: 0.5, upper: 2, equalize: true, biasCorrection: true },
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
      fp32: worst(runNcnn(writeNcnn(layers), pictures), fp32),
      int8: worst(runNcnn(writeNcnn(searched, scales), pictures), int7),
      int7: worst(int7, fp32),
    };
    t.diagnostic(JSON.stringify(found));
    assert.ok(found.fp32 > 0.99999, `FP32: ${found.fp32}`);
    assert.ok(found.int8 > 0.999, `int8: ${found.int8}`);
  });

test('a layer without a counterpart is refused by its name and operator', () => {
  const b = new GraphBuilder({ height: SIDE, width: SIDE });
  const pooled = b.node('MaxPool', [b.conv('data', 3, 8, 3)], { kernel_shape: [2, 2], strides: [2, 2] });
  const graph = b.graph(b.gemm(b.flatten(b.conv(pooled, 8, 8, 3)), 8 * 9 * 9, 4));
  assert.throws(() => writeNcnn(fold(graph)), {
    code: 'UnsupportedOperator',
    message: /^layer "MaxPool_\d": operator MaxPool has no counterpart in the files for ncnn; convolutions, /,
  });
});
