/** For tests of ONNX files: the pretrained fixture, ONNX Runtime and onnx.checker. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Graph, Pictures } from '@facetrain/native';
import * as ort from 'onnxruntime-node';
import { python, root } from '../../../hack/lib/paths.mjs';
import { fileSizes } from '../onnx/input-layout.ts';
import { cosines } from '../quantize/compare.ts';

/**
 * A pretrained MobileFaceNet: IR 7, operator set 9, batch 1, batch norms folded. Its weights come from an npm
 * package.
 */
export const MOBILEFACENET = join(root, 'node_modules/faceplugin-face-recognition-js/model/fr_feature.onnx');

/** Deterministic values in [-1, 1]. */
export function noise(count: number, seed = 1): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Pictures with noise, each of its own color and slope, so that their embeddings differ. */
export function variedPictures(count: number, height: number, width: number): Pictures {
  const size = height * width * 3;
  const data = Uint8Array.from(noise(count * size), (value, i) => {
    const [picture, place] = [Math.floor(i / size), i % size];
    return Math.min(255, Math.max(0, 128 + 60 * value + 50 * Math.sin(picture * (1 + (i % 3)) + place / 90)));
  });
  return { count, height, width, channelOrder: 'rgb', data };
}

/** Bytes [pictures, height, width, channels] as a model of so many channels reads them: one is gray (ITU-R BT.601). */
export function bytesOf({ data }: Pictures, { channels }: Pick<Graph['input'], 'channels'>): Uint8Array {
  if (channels !== 1) return data;
  return Uint8Array.from({ length: data.length / 3 }, (_, i) =>
    Math.floor((299 * data[3 * i]! + 587 * data[3 * i + 1]! + 114 * data[3 * i + 2]! + 500) / 1000),
  );
}

/** The input of one picture as a file reads it, in -1..1. */
export function inputOf(picture: Pictures, { channels, layout }: Graph['input']): ort.Tensor {
  const { height, width } = picture;
  const area = height * width;
  const values = new Float32Array(channels * area);
  bytesOf(picture, { channels }).forEach((byte, i) => {
    const [pixel, channel] = [Math.floor(i / channels), i % channels];
    values[layout === 'NHWC' ? i : channel * area + pixel] = byte / 127.5 - 1;
  });
  return new ort.Tensor('float32', values, fileSizes({ channels, height, width, layout }, 1));
}

/** The mean over pictures of the cosine between their embeddings [pictures, dim] by two models. */
export function meanCosine(a: Float32Array, b: Float32Array, dim: number): number {
  const each = cosines(a, b, dim);
  return each.reduce((sum, value) => sum + value) / each.length;
}

/**
 * Runs a model with one input and one output in ONNX Runtime on batches of any sizes.
 * @returns the output of each batch
 */
export async function runOrt(
  model: Uint8Array,
  ...batches: (Float32Array | Uint8Array)[]
): Promise<{ dims: readonly number[]; data: Float32Array }[]> {
  const session = await ort.InferenceSession.create(model, {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
  });
  try {
    const [input] = session.inputMetadata;
    if (!input?.isTensor) throw new Error('the model has no tensor input');
    const sizes = input.shape.slice(1).map(Number);
    const results = [];
    for (const values of batches) {
      const dims = [values.length / sizes.reduce((product, dim) => product * dim, 1), ...sizes];
      const { [session.outputNames[0]!]: result } = await session.run({
        [session.inputNames[0]!]:
          values instanceof Uint8Array
            ? new ort.Tensor('uint8', values, dims)
            : new ort.Tensor('float32', values, dims),
      });
      results.push({ dims: result!.dims, data: result!.data as Float32Array });
    }
    return results;
  } finally {
    await session.release();
  }
}

export function largestDifference(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) throw new Error(`${a.length} values and ${b.length}`);
  return a.reduce((largest, value, i) => Math.max(largest, Math.abs(value - b[i]!)), 0);
}

/**
 * Runs onnx.checker with strict shape inference on every model.
 * @throws Error with its message when it refuses one, or when that Python is missing
 */
export function checkWithOnnx(models: Record<string, Uint8Array>): void {
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-onnx-'));
  try {
    const names = Object.keys(models);
    const paths = names.map((_, i) => join(folder, `${i}.onnx`));
    paths.forEach((path, i) => writeFileSync(path, models[names[i]!]!));
    const script = [
      'import onnx, sys',
      'for path in sys.argv[1:]:',
      '  print(path, flush=True)',
      '  onnx.checker.check_model(path, full_check=True)',
    ].join('\n');
    const { status, stdout, stderr, error } = spawnSync(python, ['-c', script, ...paths], { encoding: 'utf8' });
    if (error) throw new Error(`${python} cannot be run: npm run setup makes it`, { cause: error });
    const seen = stdout.trim().split('\n').length;
    if (status !== 0 || seen !== names.length) throw new Error(`onnx.checker on "${names[seen - 1]}": ${stderr}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * Scales every kernel so that its convolution keeps the variance. Without batch statistics, weights of N(0, 0.1^2)
 * overflow in a deep network.
 */
export function keepVariance(graph: Graph): void {
  for (const { dims, data } of Object.values(graph.initializers)) {
    if (dims.length !== 4 || !(data instanceof Float32Array)) continue;
    const factor = 10 / Math.sqrt(dims[1]! * dims[2]! * dims[3]!);
    for (let i = 0; i < data.length; i++) data[i]! *= factor;
  }
}
