/**
 * Accuracy of the ways to keep and update class centres at an equal budget: optimizers, precisions of the rows and
 * sample rates, beside insightface's own head. `npm run bench -- accuracy --help`.
 *
 * No network is trained. Features are computed once: what a pretrained MobileFaceNet makes of a picture up to its last
 * residual block, averaged over the quarters of the map and scaled to mean 0 and deviation 1. A run trains a linear map
 * of them on some people (accuracy_bench.cc, reference.py). Learning rates are chosen by the pairs of other people, and
 * what is reported is judged by the pairs of yet others.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { type Graph, Model, readLabels } from '@facetrain/native';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { mapAtOnce } from '@facetrain/trainer/storage/map-at-once';
import { npyFile } from '@facetrain/trainer/storage/npy';
import { MOBILEFACENET } from '@facetrain/trainer/testing/onnx-oracles';
import { build, cache } from '../../hack/lib/paths.mjs';
import { Pairs, readAll } from '../common/pairs.ts';
import { folderOrUsage } from '../common/usage.ts';

const USAGE = `Usage: npm run bench -- accuracy --data FOLDER [OPTION...]

Trains a linear map of features with each optimizer, precision and sample rate of class centres, and judges it on pairs
of people who are not in the training.

--data FOLDER       a dataset of faces of 112x112 in insightface's RecordIO, such as LFW
--seeds N           runs of each way; default 3
--epochs N          default 20
--pairs N           default 20000
--only TEXT         ways whose name contains the text
--reference PYTHON  a Python with torch and NumPy, for insightface's head; none: without it
--insightface DIR   its recognition/arcface_torch; without it there are no such rows
--json              one object instead of the table
`;

const { values: options } = parseArgs({
  options: {
    data: { type: 'string' },
    seeds: { type: 'string', default: '3' },
    epochs: { type: 'string', default: '20' },
    pairs: { type: 'string', default: '20000' },
    only: { type: 'string', default: '' },
    reference: { type: 'string', default: 'none' },
    insightface: { type: 'string' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const folder = folderOrUsage(options, USAGE);
const seeds = Array.from({ length: Number(options.seeds) }, (_, i) => i + 1);

/** Learning rates that are tried: of the map, and of the class centres by optimizer. The same for insightface. */
const MAP_RATES = [3e-3, 0.01, 0.03, 0.1];
const ROW_RATES = {
  SGD: [0.03, 0.1, 0.3, 1, 3],
  AdamW: [1e-3, 3e-3, 0.01, 0.03, 0.1],
  AdaGrad: [3e-3, 0.01, 0.03, 0.1, 0.3],
};
const SAMPLE_RATES = [0.1, 1];
const CHOOSING_PAIRS = 8000;

interface Rates {
  map: number;
  rows: number;
}

/**
 * A way to train. Ways of one group (our head or insightface's, with one optimizer) have the same learning rates, which
 * are those of its first way: then the rates do not tell them apart.
 */
interface Way {
  name: string;
  group: string;
  optimizer: keyof typeof ROW_RATES;
  /** The program that trains, with its first arguments. */
  program: string[];
  arguments: string[];
}

function waysToTrain(): Way[] {
  const ways: Way[] = [];
  for (const sampleRate of SAMPLE_RATES)
    for (const optimizer of Object.keys(ROW_RATES) as (keyof typeof ROW_RATES)[]) {
      // At rate 1 every step has all classes, so Dense is Lazy; there is no dense AdamW.
      for (const update of sampleRate < 1 && optimizer !== 'AdamW' ? ['Lazy', 'Dense'] : ['Lazy'])
        for (const precision of ['FP32', 'BF16']) {
          const name = `${optimizer} ${update}, r = ${sampleRate}, ${precision}`;
          const dense = update === 'Dense' ? ['--dense'] : [];
          ways.push({
            ...{ name, group: optimizer, optimizer, program: [join(build, 'accuracy_bench')] },
            arguments: common(optimizer, sampleRate).concat('--rows-precision', precision.toLowerCase(), dense),
          });
        }
      if (options.insightface === undefined || options.reference === 'none' || optimizer === 'AdaGrad') continue;
      const group = `insightface ${optimizer}`;
      const program = [options.reference, join(import.meta.dirname, 'reference.py'), options.insightface];
      ways.push({
        name: `${group}, r = ${sampleRate}, FP32`,
        group,
        optimizer,
        program,
        arguments: common(optimizer, sampleRate),
      });
    }
  return ways.filter(({ name }) => name.includes(options.only));
}

const common = (optimizer: string, sampleRate: number) => [
  ...['--optimizer', optimizer.toLowerCase(), '--sample-rate', `${sampleRate}`, '--epochs', options.epochs],
];

/** Features of a picture: 128 channels in the quarters of a map. */
const FEATURES = 4 * 128;

/** The pretrained network up to its last residual block, and the means of its 7 x 7 map in quarters, which overlap. */
async function featureGraph(path: string): Promise<Graph> {
  const { graph } = withInputRange(await readOnnx(path), { subject: path });
  const last = graph.nodes.findLastIndex((node) => node.op === 'Add');
  const pool = { kernel_shape: [4, 4], strides: [3, 3] };
  const nodes = [
    ...graph.nodes.slice(0, last + 1),
    { name: 'pool', op: 'AveragePool', inputs: graph.nodes[last]!.outputs, outputs: ['pool'], attributes: pool },
    { name: 'features', op: 'Flatten', inputs: ['pool'], outputs: ['features'], attributes: { axis: 1 } },
  ];
  const used = new Set(nodes.flatMap((node) => node.inputs));
  const initializers = Object.fromEntries(Object.entries(graph.initializers).filter(([name]) => used.has(name)));
  return { ...graph, nodes, initializers, output: { name: 'features', dim: FEATURES } };
}

/** The features of all pictures [count, FEATURES], kept in the cache by what they are made of. */
async function readFeatures(count: number): Promise<Float32Array> {
  const graph = await featureGraph(MOBILEFACENET);
  const digest = createHash('sha256').update(JSON.stringify([graph.nodes, FEATURES]));
  for (const path of [MOBILEFACENET, join(folder, 'train.rec')]) digest.update(await readFile(path));
  const path = join(cache, 'accuracy-bench', `${digest.digest('hex')}.npy`);
  if (existsSync(path)) return await readFloats(path);

  const model = await Model.open(graph, { computeThreads: 2 });
  const features = new Float32Array(count * FEATURES);
  const atOnce = 512;
  for (let first = 0; first < count; first += atOnce) {
    const indices = Array.from({ length: Math.min(atOnce, count - first) }, (_, i) => first + i);
    features.set(await model.embed(await readAll(folder, indices)), first * FEATURES);
    process.stderr.write(`\rfeatures of ${first + indices.length} of ${count} pictures`);
  }
  process.stderr.write('\n');
  await model.close();
  normalizeColumns(features);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.${process.pid}`, npyFile(features, FEATURES));
  renameSync(`${path}.${process.pid}`, path);
  return features;
}

function normalizeColumns(features: Float32Array): void {
  const count = features.length / FEATURES;
  for (let column = 0; column < FEATURES; column++) {
    let sum = 0;
    let squares = 0;
    for (let at = column; at < features.length; at += FEATURES) {
      sum += features[at]!;
      squares += features[at]! ** 2;
    }
    const deviation = Math.sqrt(squares / count - (sum / count) ** 2) || 1;
    for (let at = column; at < features.length; at += FEATURES)
      features[at] = (features[at]! - sum / count) / deviation;
  }
}

async function readFloats(path: string): Promise<Float32Array> {
  const file = await readFile(path);
  return new Float32Array(
    file.buffer.slice(file.byteOffset + 10 + file.readUInt16LE(8), file.byteOffset + file.length),
  );
}

/** The rows of a matrix with FEATURES columns. */
function rowsOf(matrix: Float32Array, rows: readonly number[]): Float32Array {
  const out = new Float32Array(rows.length * FEATURES);
  rows.forEach((row, i) => {
    out.set(matrix.subarray(row * FEATURES, (row + 1) * FEATURES), i * FEATURES);
  });
  return out;
}

const scratch = mkdtempSync(join(tmpdir(), 'accuracy-bench-'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));
const inScratch = (name: string) => join(scratch, `${name}.npy`);

const { labels } = await readLabels(folder);
const features = await readFeatures(labels.length);

// By a hash, as the order of labels may mean something: of ten people four are trained on, two choose the learning
// rates, and four are judged on.
const partOf = (label: number) => (Math.imul(label + 1, 0x9e3779b1) >>> 0) % 10;
const trained = [...labels.keys()].filter((picture) => partOf(labels[picture]!) < 4);
const classOf = new Map([...new Set(trained.map((picture) => labels[picture]!))].map((label, i) => [label, i]));
writeFileSync(inScratch('features'), npyFile(rowsOf(features, trained), FEATURES));
const classes = BigInt64Array.from(trained, (picture) => BigInt(classOf.get(labels[picture]!)!));
writeFileSync(inScratch('labels'), npyFile(classes));

interface Figures {
  /** Of the 10-fold protocol, in percent. */
  accuracy: number;
  /** The pairs of one person that are accepted where one of 1,000 pairs of two people is, in percent. */
  tar: number;
}

/** Pairs of some people. */
class Judge {
  readonly #pairs: Pairs;
  /** What a training has to embed. */
  readonly pictures: number[];
  readonly name: string;

  constructor(name: string, isJudged: (part: number) => boolean, count: number) {
    this.name = name;
    this.#pairs = new Pairs(labels, (label) => isJudged(partOf(label)), { count, seed: 1, folder });
    this.pictures = this.#pairs.pictures;
    writeFileSync(inScratch(name), npyFile(rowsOf(features, this.pictures), FEATURES));
  }

  /** @param embeddings of `pictures` */
  figures(embeddings: Float32Array): Figures {
    const { accuracy, tarAtFar } = this.#pairs.verify(embeddings);
    return { accuracy: 100 * accuracy, tar: 100 * tarAtFar['1e-3']! };
  }
}

async function train(way: Way, rates: Rates, seed: number, judge: Judge): Promise<Figures> {
  const output = inScratch([way.name, rates.map, rates.rows, seed, judge.name].join(' ').replaceAll(/\W+/g, '-'));
  const [program, ...first] = way.program;
  await promisify(execFile)(program!, [
    ...first,
    ...way.arguments,
    ...['--learning-rate', `${rates.map}`, '--rows-learning-rate', `${rates.rows}`, '--seed', `${seed}`],
    ...['--features', inScratch('features'), '--labels', inScratch('labels')],
    ...['--test', inScratch(judge.name), '--output', output],
  ]);
  const figures = judge.figures(await readFloats(output));
  rmSync(output);
  const { map, rows } = rates;
  console.error(
    `${judge.name}: ${way.name}, rates ${map}, ${rows}, seed ${seed}: ` +
      `${figures.accuracy.toFixed(2)} %, TAR ${figures.tar.toFixed(2)} %`,
  );
  return figures;
}

/** Trainings of one thread each that run at the same time. */
const AT_ONCE = 2;

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const spread = (values: readonly number[]) =>
  Math.sqrt(values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / Math.max(values.length - 1, 1));

/**
 * The learning rates by group that are best for people who are neither trained nor reported on, by the sum of both
 * figures: the accuracy alone is the same within its noise for many rates. First that of the map, with the middle one
 * of the class centres, then theirs: the whole grid of SGD had its best rates there, too.
 */
async function chooseRates(ways: readonly Way[], judge: Judge): Promise<Map<string, Rates>> {
  const firstOfGroup = ways.filter((way, i) => ways.findIndex(({ group }) => group === way.group) === i);
  const best = new Map<string, { rates: Rates; score: number }>();
  const tryAll = async (ratesOf: (way: Way) => Rates[]) => {
    const trials = firstOfGroup.flatMap((way) => ratesOf(way).map((rates) => ({ way, rates })));
    const figures = await mapAtOnce(trials, AT_ONCE, ({ way, rates }) => train(way, rates, seeds[0]!, judge));
    trials.forEach(({ way: { group }, rates }, i) => {
      const score = figures[i]!.accuracy + figures[i]!.tar;
      if (score > (best.get(group)?.score ?? 0)) best.set(group, { rates, score });
    });
  };
  await tryAll(({ optimizer }) => MAP_RATES.map((map) => ({ map, rows: ROW_RATES[optimizer][2]! })));
  await tryAll(({ group, optimizer }) => {
    const { map, rows: tried } = best.get(group)!.rates;
    return ROW_RATES[optimizer].filter((rows) => rows !== tried).map((rows) => ({ map, rows }));
  });
  return new Map([...best].map(([group, { rates }]) => [group, rates]));
}

const chooser = new Judge('chooser', (part) => part === 4 || part === 5, CHOOSING_PAIRS);
const judge = new Judge('judge', (part) => part > 5, Number(options.pairs));
const untrained = judge.figures(rowsOf(features, judge.pictures));
console.error(
  `${trained.length} pictures of ${classOf.size} people; ${options.pairs} pairs of ${judge.pictures.length} pictures`,
);
const ways = waysToTrain();
const rates = await chooseRates(ways, chooser);
// Seed by seed, so that a run that is stopped by other work hits all ways alike.
const runs = seeds.flatMap((seed) => ways.map((way) => ({ way, seed })));
const figures = await mapAtOnce(runs, AT_ONCE, ({ way, seed }) => train(way, rates.get(way.group)!, seed, judge));
const rows = ways.map((way) => {
  const own = figures.filter((_, i) => runs[i]!.way === way);
  const [accuracies, tars] = [own.map(({ accuracy }) => accuracy), own.map(({ tar }) => tar)];
  return {
    ...{ name: way.name, rates: rates.get(way.group)! },
    ...{ accuracy: mean(accuracies), accuracySpread: spread(accuracies), tar: mean(tars), tarSpread: spread(tars) },
  };
});
if (!options.json) {
  console.log(`${''.padEnd(32)} rate of map, rows   accuracy, %      TAR at FAR 1e-3, %`);
  console.log(
    `${'features, untrained'.padEnd(52)} ${untrained.accuracy.toFixed(2)}            ${untrained.tar.toFixed(2)}`,
  );
  for (const row of rows)
    console.log(
      `${row.name.padEnd(32)} ${`${row.rates.map}, ${row.rates.rows}`.padEnd(19)} ` +
        `${row.accuracy.toFixed(2)} ± ${row.accuracySpread.toFixed(2)}     ` +
        `${row.tar.toFixed(2)} ± ${row.tarSpread.toFixed(2)}`,
    );
}
console.log(JSON.stringify({ benchmark: 'accuracy', untrained, rows }));
process.exit(0);
