/**
 * Measures the time of one picture through a network in FP32 and in INT7, with our runtime, ONNX Runtime and, where
 * Python has it, ncnn. A round runs each once, by turns. `npm run bench -- int7 --help`.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import {
  type Graph,
  type InstructionSet,
  Int7Model,
  instructionSets,
  type LayerGraph,
  LayerModel,
  type LayerTime,
  type Pictures,
  type SearchResult,
  searchScales,
} from '@facetrain/native';
import { buildBackbone } from '@facetrain/trainer/backbones/backbone';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { splitPRelus } from '@facetrain/trainer/onnx/prelu-parts';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { fold } from '@facetrain/trainer/quantize/fold';
import { writeNcnn } from '@facetrain/trainer/quantize/ncnn';
import { encodeInt7 } from '@facetrain/trainer/quantize/qdq';
import { MOBILEFACENET } from '@facetrain/trainer/testing/onnx-oracles';
import * as ort from 'onnxruntime-node';

const USAGE = `Usage: npm run bench -- int7 [OPTION...]

Times one picture in FP32 and INT7: Facetrain, ONNX Runtime, and ncnn where Python has it (pip install ncnn).
Without --model: a pretrained MobileFaceNet and an IResNet-50 with random weights.

--model M.onnx      another FP32 model
--threads N         for one picture; default 1
--isa SET           of our INT7: auto (default), portable, avx2, avxvnni, avx512vnni; on ARM neon, neondot. With avx2
                    also without Winograd (avx2direct) and without sums in int16, as INT8 would be (avx2int32)
--budget SHARE      also our INT7 with operands of 8 bits, as search.budget gives them; default 0, none
--rounds N          turns of five pictures; default 15 for MobileFaceNet, 4 to 5 for others
--layers            also GMAC/s of each step of our runtime
--reference PYTHON  the Python that has ncnn; none: without ncnn
--json              one object instead of the table: {runtime: {medianMs, p90Ms, gmacPerSecond}}; without --model, one
                    of those for each network
`;

const { values: options } = parseArgs({
  options: {
    model: { type: 'string' },
    threads: { type: 'string', default: '1' },
    isa: { type: 'string', default: 'auto' },
    budget: { type: 'string', default: '0' },
    rounds: { type: 'string' },
    layers: { type: 'boolean', default: false },
    reference: { type: 'string', default: 'none' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
if (options.help) {
  process.stdout.write(USAGE);
  process.exit(0);
}
const threads = Number(options.threads);
const isa = options.isa as InstructionSet | 'auto';
const peaks = instructionSets();
if (isa !== 'auto' && peaks[isa] === undefined) {
  console.error(`--isa: ${isa}; this machine has auto, ${Object.keys(peaks).join(', ')}`);
  process.exit(2);
}
if (!(Number.isInteger(threads) && threads >= 1 && threads <= 64)) {
  console.error(`--threads: ${options.threads}; 1 to 64`);
  process.exit(2);
}
const budget = Number(options.budget);
if (!(budget >= 0 && budget <= 1)) {
  console.error(`--budget: ${options.budget}; 0 to 1`);
  process.exit(2);
}
const say = options.json ? () => undefined : console.log;

interface Result {
  medianMs: number;
  p90Ms: number;
  gmacPerSecond: number;
}
/** Pictures of a turn, one after the other: the first finds its weights in no cache. */
const PICTURES = 5;
/** Between turns: threads of the one before would still wait actively, on processors that the next needs. */
const PAUSE_MILLISECONDS = 100;

/** Runs one picture and returns the milliseconds. */
type Contender = () => Promise<number>;

async function timed(run: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await run();
  return performance.now() - start;
}

function randomPictures({ channels, height, width }: LayerGraph['input'], count: number): Pictures {
  let state = 1;
  const data = Uint8Array.from({ length: count * height * width * channels }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
  return { data, count, height, width, channelOrder: 'rgb' };
}

async function onnxRuntime(graph: Graph): Promise<Contender> {
  // Trained weights contain denormal numbers, which slow FP32 down tenfold. Our runtime flushes them to zero as well.
  const extra = { session: { set_denormal_as_zero: '1' } };
  const session = await ort.InferenceSession.create(encodeOnnx(graph), {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    extra,
  });
  const { channels, height, width, layout } = graph.input;
  const values = Float32Array.from({ length: channels * height * width }, (_, i) => ((i * 7919) % 255) / 127.5 - 1);
  const dims = layout === 'NHWC' ? [1, height, width, channels] : [1, channels, height, width];
  const input = { [session.inputNames[0]!]: new ort.Tensor('float32', values, dims) };
  return () => timed(() => session.run(input));
}

/**
 * Random weights double the variance in each block: after 50 layers values are 1e24, and their sums are infinite in
 * ncnn. Trained networks have norms that keep them small.
 */
function withSmallBlocks(graph: Graph): Graph {
  for (const [name, { data }] of Object.entries(graph.initializers)) {
    if (!name.includes('conv2') || !(data instanceof Float32Array)) continue;
    data.forEach((value, index) => {
      data[index] = value / 10;
    });
  }
  return graph;
}

/** ncnn's FP32, BF16 and INT8, in one process of Python. */
async function ncnn(layers: LayerGraph, quantized: SearchResult): Promise<Record<string, Contender>> {
  if (options.reference === 'none') return {};
  const folder = mkdtempSync(join(tmpdir(), 'facetrain-int7-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  const { channels, height, width } = layers.input;
  const networks = [];
  for (const [name, model, bf16] of [
    ['ncnn FP32', writeNcnn(layers), 0],
    ['ncnn BF16', writeNcnn(layers), 1],
    ['ncnn INT8', writeNcnn(quantized.graph, quantized.scales), 0],
  ] as const) {
    const file = join(folder, name.replace(' ', '-'));
    writeFileSync(`${file}.param`, model.param);
    writeFileSync(`${file}.bin`, model.bin);
    networks.push(name, `${file}.param`, `${file}.bin`, model.outputs[0]!, `${bf16}`);
  }
  const script = join(import.meta.dirname, 'reference.py');
  const child: ChildProcessByStdio<Writable, Readable, null> = spawn(
    options.reference,
    [script, `${threads}`, `${channels}`, `${height}`, `${width}`, ...networks],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error('ncnn: its process has ended');
    return value;
  };
  const { networks: names, version } = JSON.parse(await answer()) as { networks: string[]; version: string };
  say(`ncnn ${version}`);
  return Object.fromEntries(
    names.map((name) => [
      name,
      async () => {
        child.stdin.write(`${name}\n`);
        return Number(await answer());
      },
    ]),
  );
}

/** What `--isa avx2` is compared with. */
const AVX2_WITHOUT: Record<string, InstructionSet> = {
  'facetrain INT7, no Winograd': 'avx2direct',
  'facetrain INT7, int32 sums': 'avx2int32',
};

async function measure(title: string, graph: Graph, rounds: number): Promise<Record<string, Result>> {
  const layers = fold(graph);
  const pictures = randomPictures(layers.input, 2);
  // A short search: of the scales only the weights' matter to the time, by how often sums of taps exceed a byte.
  const search = (budget: number) =>
    searchScales(layers, pictures, {
      ...{ rounds: 1, candidates: 20, lower: 0.5, upper: 1.2, zeroPoints: false, equalize: false },
      ...{ biasCorrection: false, budget, memoryBytes: 2 ** 31, temporaryDirectory: tmpdir(), computeThreads: 2 },
    });
  const quantized = await search(0);
  const one = randomPictures(layers.input, 1);
  const open = ({ graph, scales }: SearchResult, set = isa) =>
    Int7Model.open(graph, scales, { computeThreads: threads, isa: set });
  const int7 = await open(quantized);
  const withoutShortcuts: Record<string, Contender> = {};
  for (const [name, other] of isa === 'avx2' ? Object.entries(AVX2_WITHOUT) : []) {
    const model = await open(quantized, other);
    withoutShortcuts[name] = () => timed(() => model.embed(one));
  }
  const wide = budget > 0 ? await open(await search(budget)) : undefined;
  const real = threads === 1 ? await LayerModel.open(layers, { computeThreads: 1 }) : undefined;
  const contenders: Record<string, Contender> = {
    'facetrain INT7': () => timed(() => int7.embed(one)),
    ...withoutShortcuts,
    ...(wide && { 'facetrain INT7, 8-bit operands': () => timed(() => wide.embed(one)) }),
    ...(real && { 'facetrain FP32': () => timed(() => real.embed(one)) }),
    'ONNX Runtime FP32': await onnxRuntime(graph),
    'ONNX Runtime FP32, no PRelu': await onnxRuntime(splitPRelus(graph)),
    'ONNX Runtime INT7 (QDQ)': await onnxRuntime(encodeInt7(quantized.graph, quantized.scales)),
    ...(await ncnn(layers, quantized)),
  };
  const times = new Map<string, number[]>(Object.keys(contenders).map((name) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    for (const [name, run] of Object.entries(contenders)) {
      if (threads > 1) await setTimeout(PAUSE_MILLISECONDS);
      for (let picture = 0; picture < PICTURES; picture++) {
        const milliseconds = await run();
        if (round >= 0) times.get(name)!.push(milliseconds); // the others warm up
      }
    }
  }
  const macs = quantized.layers.reduce((sum, layer) => sum + layer.macs, 0);
  const results = Object.fromEntries(
    [...times].map(([name, values]) => {
      values.sort((a, b) => a - b);
      const medianMs = values[values.length >> 1]!;
      const p90Ms = values[Math.ceil(values.length * 0.9) - 1]!;
      return [name, { medianMs, p90Ms, gmacPerSecond: macs / medianMs / 1e6 }];
    }),
  );
  say(`${title}: ${(macs / 1e9).toFixed(2)} GMAC, one picture, ${threads} thread(s); median of ${rounds} rounds`);
  const ours = results['facetrain INT7']!;
  for (const [name, { medianMs, p90Ms, gmacPerSecond }] of Object.entries(results)) {
    const numbers = `${medianMs.toFixed(2).padStart(9)} ms  p90 ${p90Ms.toFixed(2).padStart(8)}`;
    const ratio = name === 'facetrain INT7' ? '' : `  ${(medianMs / ours.medianMs).toFixed(2)}x of our INT7`;
    say(`${name.padEnd(30)}${numbers}  ${gmacPerSecond.toFixed(1).padStart(7)} GMAC/s${ratio}`);
  }
  const peak = peaks[isa === 'auto' ? best() : isa]!;
  if (peak > 0) {
    const share = ((100 * ours.gmacPerSecond) / (peak * threads)).toFixed(0);
    const name = isa === 'auto' ? best() : isa;
    say(`A bare loop of products (${name}): ${peak.toFixed(0)} GMAC/s a thread; our INT7 is ${share} % of it`);
  }
  if (options.layers) await printLayers(int7, one);
  return results;
}

function best(): InstructionSet {
  return (['avx512vnni', 'avxvnni', 'avx2', 'neondot', 'neon', 'portable'] as const).find(
    (name) => peaks[name] !== undefined,
  )!;
}

async function printLayers(model: Int7Model, picture: Pictures): Promise<void> {
  const runs: LayerTime[][] = [];
  for (let run = 0; run < 15; run++) runs.push(await model.timeLayers(picture));
  const medians = runs[0]!.map(({ name, macs }, index) => {
    const seconds = runs.map((times) => times[index]!.seconds).sort((a, b) => a - b)[runs.length >> 1]!;
    return { name, macs, seconds };
  });
  const total = medians.reduce((sum, { seconds }) => sum + seconds, 0);
  for (const { name, macs, seconds } of medians) {
    const share = `${((100 * seconds) / total).toFixed(1).padStart(5)} %`;
    const speed = macs > 0 ? `${(macs / seconds / 1e9).toFixed(1).padStart(7)} GMAC/s` : ''.padEnd(14);
    say(`${(seconds * 1e6).toFixed(1).padStart(8)} us ${share} ${speed}  ${name}`);
  }
}

async function models(): Promise<{ name: string; title: string; graph: Graph; rounds: number }[]> {
  const read = async (path: string) => withInputRange(await readOnnx(path), { subject: path }).graph;
  if (options.model) return [{ name: 'model', title: options.model, graph: await read(options.model), rounds: 5 }];
  const pretrained = await read(MOBILEFACENET);
  const iresnet50 = buildBackbone({ backbone: 'iresnet50', embeddingDim: 512, width: 2, blocks: null, seed: 1 });
  return [
    { name: 'mobilefacenet', title: 'MobileFaceNet, pretrained', graph: pretrained, rounds: 15 },
    { name: 'iresnet50', title: 'IResNet-50, random weights', graph: withSmallBlocks(iresnet50), rounds: 4 },
  ];
}

const all: Record<string, Record<string, Result>> = {};
for (const { name, title, graph, rounds } of await models())
  all[name] = await measure(title, graph, options.rounds ? Number(options.rounds) : rounds);
console.log(JSON.stringify(options.model ? all.model : all));
process.exit(0);
