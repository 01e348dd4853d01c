/**
 * Measures the time of one picture through a pretrained MobileFaceNet on one thread, in FP32 and in INT7, with our
 * runtime and with ONNX Runtime. A round runs each once. Usage: `npm run bench -- int7 [rounds=15]`.
 */
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type Embedder, Int7Model, LayerModel, readPictures, searchScales } from '@facetrain/native';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { fold } from '@facetrain/trainer/quantize/fold';
import { encodeInt7 } from '@facetrain/trainer/quantize/qdq';
import * as ort from 'onnxruntime-node';
import { exampleFaces } from '../../hack/lib/paths.mjs';

const PICTURES = 8;
const rounds = Number(process.argv[2] ?? 15);
const model = join(
  dirname(createRequire(import.meta.url).resolve('faceplugin-face-recognition-js/package.json')),
  'model',
  'fr_feature.onnx',
);

const { graph } = withInputRange(await readOnnx(model), { subject: model });
const layers = fold(graph);
const pictures = await readPictures(
  exampleFaces,
  Array.from({ length: PICTURES }, (_, i) => i * 97),
  { channelOrder: 'bgr' },
);
const options = {
  rounds: 0,
  candidates: 2,
  lower: 0.5,
  upper: 2,
  equalize: true,
  biasCorrection: false,
  memoryBytes: 2 ** 30,
  temporaryDirectory: tmpdir(),
  computeThreads: 1,
};
// The values of the scales do not affect the time, so the search has no rounds.
const quantized = await searchScales(layers, pictures, options);

const planar = new Float32Array(pictures.data.length);
const area = pictures.height * pictures.width;
for (let n = 0; n < PICTURES; n++)
  for (let p = 0; p < area; p++)
    for (let c = 0; c < 3; c++) planar[(n * 3 + c) * area + p] = pictures.data[(n * area + p) * 3 + c]! / 127.5 - 1;

async function onnxRuntime(bytes: Uint8Array) {
  // Trained weights contain denormal numbers, which slow FP32 down tenfold. Our runtime flushes them to zero as well.
  const extra = { session: { set_denormal_as_zero: '1' } };
  const session = await ort.InferenceSession.create(bytes, { intraOpNumThreads: 1, interOpNumThreads: 1, extra });
  const input = session.inputNames[0]!;
  // One picture a call: the model's batch dimension is fixed to one.
  return async () => {
    for (let n = 0; n < PICTURES; n++)
      await session.run({
        [input]: new ort.Tensor('float32', planar.subarray(n * 3 * area, (n + 1) * 3 * area), [
          1,
          3,
          pictures.height,
          pictures.width,
        ]),
      });
  };
}
const ours = (embedder: Embedder) => async () => void (await embedder.embed(pictures));

const contenders: Record<string, () => Promise<void>> = {
  'facetrain FP32': ours(await LayerModel.open(layers, { computeThreads: 1 })),
  'ONNX Runtime FP32': await onnxRuntime(encodeOnnx(graph)),
  'facetrain INT7': ours(await Int7Model.open(quantized.graph, quantized.scales, { computeThreads: 1 })),
  'ONNX Runtime INT7 (QDQ)': await onnxRuntime(encodeOnnx(encodeInt7(quantized.graph, quantized.scales))),
};
const times = new Map<string, number[]>(Object.keys(contenders).map((name) => [name, []]));
for (let round = -1; round < rounds; round++) {
  for (const [name, run] of Object.entries(contenders)) {
    const start = performance.now();
    await run();
    if (round >= 0) times.get(name)!.push((performance.now() - start) / PICTURES); // round -1 warms up
  }
}
const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1]!;
const results = [...times].map(([name, values]) => ({ name, milliseconds: median(values) }));
const reference = results.find(({ name }) => name === 'ONNX Runtime FP32')!.milliseconds;
console.log(`MobileFaceNet (1.19 M parameters), one picture, one thread; median of ${rounds} rounds`);
for (const { name, milliseconds } of results) {
  const speedUp = `${(reference / milliseconds).toFixed(2)}x ONNX Runtime FP32`;
  console.log(`${name.padEnd(26)}${milliseconds.toFixed(2).padStart(8)} ms   ${speedUp}`);
}
console.log(JSON.stringify({ benchmark: 'int7', rounds, results }));
process.exit(0);
