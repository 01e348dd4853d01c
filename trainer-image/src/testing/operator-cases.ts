/**
 * For tests: a model of one operator, against ONNX Runtime on the file as it was; and its INT7 file in ONNX Runtime, in
 * our runtime and in the C library.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Int7Model, LayerModel, type Pictures, searchScales } from '@facetrain/native';
import { build } from '../../../hack/lib/paths.mjs';
import { withInputRange } from '../onnx/input-range.ts';
import { decodeModel, encodeModel } from '../onnx/proto.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { modelFile } from '../quantize/artifact-files.ts';
import { disposable } from '../quantize/disposable.ts';
import { fold } from '../quantize/fold.ts';
import { decodeInt7 } from '../quantize/qdq.ts';
import { GraphBuilder, QUICK_SEARCH } from './graph-fixtures.ts';
import { largestDifference, noise, runOrt } from './onnx-oracles.ts';

/** Of what stands between two convolutions: [1, CHANNELS, SIDE, SIDE]. */
export const SIDE = 8;
export const CHANNELS = 6;

export interface OperatorCase {
  /** Operator set of the file. */
  opset?: number;
  /** What stands between two convolutions: of [1, 6, 8, 8]. */
  step: (b: GraphBuilder, x: string) => string;
  /** Channels of its output; absent: 6. */
  channels?: number;
}

/** A model of two convolutions with the step between them. */
export function fileOf({ opset = 17, step, channels = CHANNELS }: OperatorCase): Uint8Array {
  const b = new GraphBuilder({ height: SIDE, width: SIDE });
  const x = b.node('Relu', [b.conv('data', 3, CHANNELS, 3, { pad: 1 })]);
  const map = b.node('GlobalAveragePool', [b.conv(step(b, x), channels, 5, 1)]);
  const graph = b.graph(b.flatten(map));
  const proto = decodeModel(encodeOnnx({ ...graph, output: { ...graph.output, dim: 5 } }));
  proto.opsetImport = [{ domain: '', version: opset }];
  return encodeModel(proto);
}

const COUNT = 4;
const AREA = SIDE * SIDE;
const PIXELS = Uint8Array.from(noise(COUNT * AREA * 3, 3), (value) => Math.round((value + 1) * 127));
const PICTURES: Pictures = { count: COUNT, height: SIDE, width: SIDE, channelOrder: 'rgb', data: PIXELS };
const VALUES = Array.from({ length: COUNT }, (_, picture) =>
  Float32Array.from(
    { length: 3 * AREA },
    (_, at) => PIXELS[(picture * AREA + (at % AREA)) * 3 + Math.floor(at / AREA)]! / 127.5 - 1,
  ),
);

async function inOrt(file: Uint8Array): Promise<Float32Array> {
  const results = await runOrt(file, ...VALUES);
  return Float32Array.from(results.flatMap(({ data }) => [...data]));
}

async function inCLibrary(file: Uint8Array): Promise<Float32Array> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-operators-'));
  try {
    const [model, pixels] = [join(folder, 'model.int7.onnx'), join(folder, 'pixels')];
    await writeFile(model, file);
    const rows = [];
    for (let picture = 0; picture < COUNT; picture++) {
      await writeFile(pixels, PIXELS.subarray(picture * AREA * 3, (picture + 1) * AREA * 3));
      const { stdout } = await promisify(execFile)(join(build, 'int7_embed'), [model, pixels]);
      rows.push(...stdout.trim().split('\n').map(Number));
    }
    return Float32Array.from(rows);
  } finally {
    await rm(folder, { recursive: true });
  }
}

const largest = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);

/** Reads, quantizes and runs the model of a case. */
export async function checkOperator(given: OperatorCase): Promise<void> {
  const file = fileOf(given);
  const expected = await inOrt(file);
  const subject = 'model.onnx';
  const { graph } = withInputRange(parseOnnx(file, subject, { every: true }), { subject });
  const layers = fold(graph);
  await using fp32 = disposable(await LayerModel.open(layers, { computeThreads: 1 }));
  const found = await fp32.model.embed(PICTURES);
  assert.ok(largestDifference(found, expected) < 1e-4 * largest(expected), 'FP32 is that of ONNX Runtime');

  const { graph: equal, scales } = await searchScales(layers, PICTURES, QUICK_SEARCH);
  const written = modelFile(equal, scales, { source: '', calibration: '', channelOrder: 'rgb' });
  const decoded = decodeInt7(withInputRange(parseOnnx(written, subject, { every: true }), { subject }).graph);
  await using int7 = disposable(await Int7Model.open(decoded.layers, decoded.scales, { computeThreads: 1 }));
  const ours = await int7.model.embed(PICTURES);
  assert.deepEqual(await inCLibrary(written), ours, 'the C library computes the same, bit for bit');
  assert.ok(largestDifference(ours, expected) < 0.15 * largest(expected), 'INT7 is close to FP32');
  assert.ok(largestDifference(await inOrt(written), ours) < 0.1 * largest(expected), 'and ONNX Runtime to INT7');
}
