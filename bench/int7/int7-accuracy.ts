/**
 * The accuracy that INT7 costs, on pairs of people whom the calibration has not seen: a network in FP32 and in INT7,
 * each run by our runtimes and by ONNX Runtime from the files that users get. `npm run bench -- int7-accuracy --help`.
 */
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { parseArgs } from 'node:util';
import { DEFAULT_CALIBRATION, DEFAULT_SEARCH } from '@facetrain/api';
import { type Embedder, Int7FileModel, LayerModel, readLabels, searchScales } from '@facetrain/native';
import { countByLabel, holdOut } from '@facetrain/trainer/dataset/hold-out';
import { sampleIndices } from '@facetrain/trainer/dataset/sample-indices';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { parseOnnx } from '@facetrain/trainer/onnx/read';
import { modelFile } from '@facetrain/trainer/quantize/artifact-files';
import { fold } from '@facetrain/trainer/quantize/fold';
import { MOBILEFACENET, meanCosine } from '@facetrain/trainer/testing/onnx-oracles';
import * as ort from 'onnxruntime-node';
import { Pairs, readAll } from '../common/pairs.ts';
import { folderOrUsage } from '../common/usage.ts';

const USAGE = `Usage: npm run bench -- int7-accuracy --data FOLDER [OPTION...]

Accuracy of a network in FP32 and in INT7, by our runtimes and by ONNX Runtime, on pairs of people whom the calibration
has not seen.

--data FOLDER   a dataset of faces, such as LFW, of the size of the model's input
--model M.onnx  an embedding network in FP32; default a pretrained MobileFaceNet
--pairs N       a multiple of 20; default 20000
--people N      whom the pairs are of, with two pictures or more each; default 1300
--images N      calibration pictures, of other people; default ${DEFAULT_CALIBRATION.images}
--seed N        of the people, the pairs and the calibration pictures; default ${DEFAULT_CALIBRATION.seed}
--budget SHARE  of the multiplications whose operands may have 8 bits; default ${DEFAULT_SEARCH.budget}
--threads N     default 2
--json          one object instead of the table
`;

const { values: options } = parseArgs({
  options: {
    data: { type: 'string' },
    model: { type: 'string', default: MOBILEFACENET },
    pairs: { type: 'string', default: '20000' },
    people: { type: 'string', default: '1300' },
    images: { type: 'string', default: `${DEFAULT_CALIBRATION.images}` },
    seed: { type: 'string', default: `${DEFAULT_CALIBRATION.seed}` },
    budget: { type: 'string', default: `${DEFAULT_SEARCH.budget}` },
    threads: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const folder = folderOrUsage(options, USAGE);
const [seed, computeThreads] = [Number(options.seed), Number(options.threads)];

/** Pictures that are decoded and embedded at a time. */
const AT_ONCE = 256;

/** A network run by ONNX Runtime, from the bytes of its file. */
async function onnxRuntime(bytes: Uint8Array, name: string): Promise<Pick<Embedder, 'embed'>> {
  const { graph, range } = withInputRange(parseOnnx(bytes, name), { subject: name });
  if ((range.layout ?? 'NCHW') !== 'NCHW' || range.elementType === 'uint8')
    throw new Error(`${name}: its input is no float32 [N, channels, height, width], which ONNX Runtime gets here`);
  const extra = { session: { set_denormal_as_zero: '1' } };
  const session = await ort.InferenceSession.create(bytes, { intraOpNumThreads: computeThreads, extra });
  const { channels, height, width } = graph.input;
  const dim = graph.output.dim;
  const area = height * width;
  const input = new Float32Array(channels * area);
  const one = async (pixels: Uint8Array, isMirrored: boolean) => {
    for (let at = 0; at < area; at++) {
      const from = isMirrored ? at - (at % width) + width - 1 - (at % width) : at;
      for (let channel = 0; channel < channels; channel++)
        input[channel * area + at] = (pixels[from * channels + channel]! - range.mean[channel]!) / range.std[channel]!;
    }
    const tensor = new ort.Tensor('float32', input, [1, channels, height, width]);
    const outputs = await session.run({ [session.inputNames[0]!]: tensor });
    return outputs[graph.output.name]!.data as Float32Array;
  };
  return {
    async embed({ data, count }) {
      const embeddings = new Float32Array(count * dim);
      for (let picture = 0; picture < count; picture++) {
        const pixels = data.subarray(picture * area * channels, (picture + 1) * area * channels);
        const [plain, mirrored] = [await one(pixels, false), await one(pixels, true)];
        embeddings.set(
          plain.map((value, i) => value + mirrored[i]!),
          picture * dim,
        );
      }
      return embeddings;
    },
  };
}

// ---- Whom the pairs are of, and who calibrates ----
const { labels, identities } = await readLabels(folder);
const heldOut = new Set(holdOut(countByLabel(labels, identities), Number(options.people), seed).heldOut);
const pairs = new Pairs(labels, (label) => heldOut.has(label), { count: Number(options.pairs), seed, folder });
const { pictures } = pairs;
const others = [...labels.keys()].filter((picture) => labels[picture]! >= 0 && !heldOut.has(labels[picture]!));
const calibration = sampleIndices(others.length, Number(options.images), seed).map((place) => others[place]!);

// ---- The models ----
const source = await readFile(options.model);
const { graph } = withInputRange(parseOnnx(source, options.model), { subject: options.model });
const layers = fold(graph);
const found = await searchScales(layers, await readAll(folder, calibration), {
  ...DEFAULT_SEARCH,
  ...{ budget: Number(options.budget), memoryBytes: 2 ** 31, temporaryDirectory: tmpdir(), computeThreads },
});
const subject = 'the INT7 model';
const file = modelFile(found.graph, found.scales, { source: '', calibration: '', channelOrder: 'rgb' });
const runtimes: { name: string; model: Pick<Embedder, 'embed'>; reference: number }[] = [
  { name: 'FP32, Facetrain', model: await LayerModel.open(layers, { computeThreads }), reference: 0 },
  { name: 'FP32, ONNX Runtime', model: await onnxRuntime(source, options.model), reference: 1 },
  { name: 'INT7, Facetrain', model: await Int7FileModel.open(file, { subject, computeThreads }), reference: 0 },
  { name: 'INT7, ONNX Runtime', model: await onnxRuntime(file, subject), reference: 1 },
];

// ---- Each picture once, with its mirror image, by all of them ----
const { dim } = graph.output;
const embeddings = runtimes.map(() => new Float32Array(pictures.length * dim));
for (let first = 0; first < pictures.length; first += AT_ONCE) {
  const some = await readAll(folder, pictures.slice(first, first + AT_ONCE));
  for (const [i, { model }] of runtimes.entries())
    embeddings[i]!.set(await model.embed(some, { flip: true }), first * dim);
  process.stderr.write(`\rembedded ${first + some.count} of ${pictures.length} pictures`);
}
process.stderr.write('\n');

const results = runtimes.map(({ name, reference }, i) => {
  const { accuracy, intervals, tarAtFar } = pairs.verify(embeddings[i]!);
  const cosine = meanCosine(embeddings[reference]!, embeddings[i]!, dim);
  return { name, accuracy, interval: intervals.accuracy, tar: tarAtFar['1e-3']!, cosine };
});

if (!options.json) {
  console.log(
    `${options.pairs} pairs of ${heldOut.size} people, ${pictures.length} pictures; calibrated on ` +
      `${calibration.length} pictures of others. Cosines are those to FP32 in the same runtime.`,
  );
  console.log(`${''.padEnd(20)} accuracy, %   95 % interval   TAR at FAR 1e-3, %   mean cosine`);
  const percent = (share: number, digits: number) => (100 * share).toFixed(digits);
  for (const { name, accuracy, interval, tar, cosine } of results)
    console.log(
      `${name.padEnd(20)} ${percent(accuracy, 3).padStart(11)}   ` +
        `${interval.map((end) => percent(end, 2)).join(' to ')}${percent(tar, 2).padStart(17)}` +
        `${cosine.toFixed(5).padStart(19)}`,
    );
}
console.log(
  JSON.stringify({ benchmark: 'int7-accuracy', pairs: Number(options.pairs), pictures: pictures.length, results }),
);
process.exit(0);
