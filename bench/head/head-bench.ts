/**
 * What `facetrain head add` and `remove` do to a trained network, on pairs of people who are in no training.
 * `npm run bench -- head --help`.
 *
 * A pretrained MobileFaceNet is trained on some people. Then the training goes on for one more part four times, from
 * the same checkpoint: unchanged; with others added by `head add`; with the same others, whose class centres are those
 * of the seed; and without some, removed by `head remove`.
 */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { TrainReport } from '@facetrain/api';
import { packDataset, readLabels } from '@facetrain/native';
import { completeSteps, openCheckpoint } from '@facetrain/trainer/checkpoint/directory';
import { readCentres } from '@facetrain/trainer/checkpoint/rows';
import { countByLabel, shuffled } from '@facetrain/trainer/dataset/hold-out';
import { MOBILEFACENET } from '@facetrain/trainer/testing/onnx-oracles';
import { Pairs } from '../common/pairs.ts';
import { embed, facetrain } from '../common/trained.ts';
import { folderOrUsage } from '../common/usage.ts';

const USAGE = `Usage: npm run bench -- head --data FOLDER [OPTION...]

Trains a pretrained MobileFaceNet on some people, adds and removes identities, and goes on. Judges each state on pairs
of people who are in no training, and by how many trained pictures are nearest to the class centre of their person.

--data FOLDER   a dataset of faces of 112x112, such as LFW
--people N      whom the training begins with, of at least 4 and at most 30 pictures; default 120
--join N        who are added; default 24
--leave N       who are removed; default 12
--epochs N      before the edits; default 2
--more N        epochs after them; default 1
--judged N      other people, whom the pairs are of, with two pictures or more each; default 700
--pairs N       a multiple of 20; default 20000
--seed N        of the people, the pairs and the training; default 1
--threads N     default 2
--json          one object instead of the table
`;

const { values: options } = parseArgs({
  options: {
    data: { type: 'string' },
    people: { type: 'string', default: '120' },
    join: { type: 'string', default: '24' },
    leave: { type: 'string', default: '12' },
    epochs: { type: 'string', default: '2' },
    more: { type: 'string', default: '1' },
    judged: { type: 'string', default: '700' },
    pairs: { type: 'string', default: '20000' },
    seed: { type: 'string', default: '1' },
    threads: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const folder = folderOrUsage(options, USAGE);
const [people, join_, leave] = [Number(options.people), Number(options.join), Number(options.leave)];
const [seed, computeThreads] = [Number(options.seed), Number(options.threads)];

const MOST_PICTURES = 30;
const LEAST_PICTURES = 4;

const scratch = mkdtempSync(join(tmpdir(), 'head-bench-'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));

// ---- Who is in which part ----
const { labels, identities } = await readLabels(folder);
const counts = countByLabel(labels, identities);
const everybody = shuffled(identities, seed);
const trained = everybody
  .filter((label) => counts[label]! >= LEAST_PICTURES && counts[label]! <= MOST_PICTURES)
  .slice(0, people + join_);
if (trained.length < people + join_) throw new Error(`${folder}: ${trained.length} people have 4 to 30 pictures`);
const isTrained = new Set(trained);
const others = everybody.filter((label) => counts[label]! >= 2 && !isTrained.has(label));
const judged = new Set(others.slice(0, Number(options.judged)));
const pairs = new Pairs(labels, (label) => judged.has(label), { count: Number(options.pairs), seed, folder });

/** The class of a person of `folder`: the place in `trained`; -1 for the others. */
const classOf = new Float64Array(identities).fill(-1);
trained.forEach((label, place) => {
  classOf[label] = place;
});
const dataset = { first: join(scratch, 'first'), grown: join(scratch, 'grown') };
for (const [output, classes] of [
  [dataset.first, people],
  [dataset.grown, people + join_],
] as const) {
  mkdirSync(output);
  const relabel = classOf.map((place) => (place < classes ? place : -1));
  await packDataset(folder, { relabel, output, shardBytes: 2 ** 29 });
}
const trainedPictures = [...labels.keys()].filter(
  (picture) => labels[picture]! >= 0 && classOf[labels[picture]!]! >= 0,
);

// ---- Training, by the commands that users have ----
const output = (name: string) => join(scratch, name);
const checkpoints = (name: string) => join(scratch, `${name}-checkpoints`);

async function train(name: string, data: string, epochs: number): Promise<TrainReport> {
  const job = {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'head' },
    spec: {
      dataset: { uri: `file://${data}` },
      model: {
        onnx: { uri: `file://${MOBILEFACENET}` },
        channelOrder: 'RGB',
        ...(data === dataset.grown && { numClasses: people + join_ }),
      },
      loss: { scale: 32, margin: { type: 'CosFace', m3: 0.2 }, rows: { learningRate: 0.1 } },
      optimizer: { learningRate: 0.003 },
      schedule: { type: 'Constant' },
      epochs,
      globalBatchSize: 64,
      seed,
      checkpoint: { uri: `file://${checkpoints(name)}`, everyEpochs: 1, keep: 1 },
      trainers: { replicas: 1, device: 'CPU', computeThreads },
      output: { uri: `file://${output(name)}` },
    },
  };
  const file = join(scratch, `${name}.json`);
  writeFileSync(file, JSON.stringify(job));
  console.error(`training ${name}`);
  await facetrain('run', '-f', file);
  return JSON.parse(await readFile(join(output(name), 'train-report.json'), 'utf8'));
}

// ---- Judging ----

/** The class centres of the newest checkpoint at unit length; zero where a class is removed. */
async function centresOf(name: string): Promise<Float32Array[]> {
  const [step] = await completeSteps(checkpoints(name));
  const centres: Float32Array[] = [];
  for await (const { rows, values } of readCentres(await openCheckpoint(checkpoints(name), step!))) {
    const dim = values.length / rows;
    for (let row = 0; row < rows; row++) centres.push(unit(values.subarray(row * dim, (row + 1) * dim)));
  }
  return centres;
}

function unit(values: Float32Array): Float32Array {
  const length = Math.hypot(...values);
  return length > 0 ? values.map((value) => value / length) : values;
}

interface Nearest {
  /** Pictures whose nearest class centre is that of their person, in percent. */
  began: number;
  /** Of those who joined. */
  joined: number;
}

/** @param embeddings of `trainedPictures` */
function nearest(embeddings: Float32Array, centres: readonly Float32Array[]): Nearest {
  const dim = embeddings.length / trainedPictures.length;
  const found = { began: [0, 0], joined: [0, 0] };
  trainedPictures.forEach((picture, place) => {
    const own = classOf[labels[picture]!]!;
    if (own >= centres.length || centres[own]!.every((value) => value === 0)) return;
    const embedding = embeddings.subarray(place * dim, (place + 1) * dim);
    const cosines = centres.map((centre) => centre.reduce((sum, value, i) => sum + value * embedding[i]!, 0));
    const group = found[own < people ? 'began' : 'joined'];
    group[0]! += 1;
    if (cosines[own] === Math.max(...cosines)) group[1]! += 1;
  });
  const share = ([count, hits]: number[]) => (100 * hits!) / count!;
  return { began: share(found.began), joined: share(found.joined) };
}

interface Row {
  name: string;
  accuracy: number;
  interval: number[];
  tar: number;
  nearestBefore?: Nearest;
  nearest?: Nearest;
  /** Of the first step after the edit, and of the last one. */
  losses?: [number, number];
}
const results: Row[] = [];

async function judge(name: string, model: string, more: Partial<Row> = {}): Promise<void> {
  const { accuracy, intervals, tarAtFar } = pairs.verify(
    await embed(model, { folder, pictures: pairs.pictures, computeThreads }),
  );
  const interval = [...intervals.accuracy].map((end) => 100 * end);
  results.push({ name, accuracy: 100 * accuracy, interval, tar: 100 * tarAtFar['1e-3']!, ...more });
  console.error(JSON.stringify(results.at(-1)));
}

const modelOf = (name: string) => join(output(name), 'model', 'backbone.onnx');
const embedTrained = (name: string) => embed(modelOf(name), { folder, pictures: trainedPictures, computeThreads });

await judge('pretrained', MOBILEFACENET);
const base = await train('base', dataset.first, Number(options.epochs));
const baseEmbeddings = await embedTrained('base');
await judge('before the edits', modelOf('base'), {
  nearest: nearest(baseEmbeddings, await centresOf('base')),
  losses: [base.lossFirst!, base.lossLast!],
});

const removed = Array.from({ length: leave }, (_, i) => i);
const ways: { name: string; title: string; data: string; edit?: (folder: string) => Promise<void> }[] = [
  { name: 'unchanged', title: 'gone on without an edit', data: dataset.first },
  {
    name: 'added',
    title: `${join_} added by head add`,
    data: dataset.grown,
    edit: (at) => facetrain('head', 'add', at, '--dataset', dataset.grown, '--model', modelOf('base')),
  },
  { name: 'seeded', title: `${join_} more, rows from the seed`, data: dataset.grown },
  {
    name: 'removed',
    title: `${leave} removed by head remove`,
    data: dataset.first,
    edit: (at) => facetrain('head', 'remove', at, '--classes', removed.join(',')),
  },
];
for (const { name, title, data, edit } of ways) {
  cpSync(checkpoints('base'), checkpoints(name), { recursive: true });
  await edit?.(checkpoints(name));
  const nearestBefore = nearest(baseEmbeddings, await centresOf(name));
  const { history, lossLast } = await train(name, data, Number(options.epochs) + Number(options.more));
  const firstLoss = history.find(({ step }) => step > base.steps)!.loss;
  const after = nearest(await embedTrained(name), await centresOf(name));
  await judge(title, modelOf(name), { nearestBefore, nearest: after, losses: [firstLoss, lossLast!] });
}

if (!options.json) {
  const percent = (value: number | undefined) => (value === undefined || Number.isNaN(value) ? '' : value.toFixed(2));
  console.log(
    `${people} people of 4 to 30 pictures, ${join_} join, ${leave} leave; ${options.pairs} pairs of ${judged.size} ` +
      `others, ${pairs.pictures.length} pictures. ` +
      "Nearest: trained pictures whose nearest class centre is their person's.",
  );
  console.log(
    `${''.padEnd(32)} accuracy, %  TAR at FAR 1e-3, %` +
      '   nearest, %: who began   after   who joined   after   first loss',
  );
  for (const { name, accuracy, tar, nearestBefore, nearest: after, losses } of results)
    console.log(
      `${name.padEnd(32)} ${percent(accuracy).padStart(11)}${percent(tar).padStart(20)}` +
        `${percent(nearestBefore?.began).padStart(24)}${percent(after?.began).padStart(8)}` +
        `${percent(nearestBefore?.joined).padStart(13)}${percent(after?.joined).padStart(8)}` +
        `${percent(losses?.[0]).padStart(13)}`,
    );
}
console.log(JSON.stringify({ benchmark: 'head', pairs: Number(options.pairs), results }));
process.exit(0);
