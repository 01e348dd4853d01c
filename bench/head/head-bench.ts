/**
 * What `facetrain head add`, `merge` and `remove` do to a trained network, on pairs of people who are in no training.
 * `npm run bench -- head --help`.
 *
 * A pretrained MobileFaceNet is trained on some people, a few of whom have two classes, each with half of their
 * pictures. Then the training goes on for one more part five times, from the same checkpoint: unchanged; with others
 * added by `head add`; with the same others, whose class centres are those of the seed; with the two classes made one
 * by `head merge`; and without some people, removed by `head remove`.
 */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { TrainReport } from '@facetrain/api';
import { readEncoded, readLabels } from '@facetrain/native';
import { completeSteps, openCheckpoint } from '@facetrain/trainer/checkpoint/directory';
import { readCentres } from '@facetrain/trainer/checkpoint/rows';
import { countByLabel, shuffled } from '@facetrain/trainer/dataset/hold-out';
import { MOBILEFACENET } from '@facetrain/trainer/testing/onnx-oracles';
import { Pairs } from '../common/pairs.ts';
import { meanAndDeviation } from '../common/statistics.ts';
import { embed, facetrain } from '../common/trained.ts';
import { folderOrUsage } from '../common/usage.ts';

const USAGE = `Usage: npm run bench -- head --data FOLDER [OPTION...]

Trains a pretrained MobileFaceNet on some people, adds, merges and removes identities, and goes on. Judges each state
on pairs of people who are in no training, and by how many trained pictures are nearest to the class centre of their
person.

--data FOLDER   a dataset of faces of 112x112, such as LFW
--people N      whom the training begins with, of at least 4 and at most 30 pictures; default 120
--join N        who are added; default 24
--twice N       of the first, who have two classes, which are merged; default 12
--leave N       of the others, who are removed; default 12
--rows P,O,R    precision and optimizer of the class centres, and the sample rate; default FP32,SGD,1
--epochs N      before the edits; default 2
--more N        epochs after them; default 1
--judged N      other people, whom the pairs are of, with two pictures or more each; default 700
--pairs N       a multiple of 20; default 20000
--seeds N,...   of the people, the pairs and the training; default 1
--threads N     default 2
--json          one object instead of the table
`;

const { values: options } = parseArgs({
  options: {
    data: { type: 'string' },
    people: { type: 'string', default: '120' },
    join: { type: 'string', default: '24' },
    twice: { type: 'string', default: '12' },
    leave: { type: 'string', default: '12' },
    rows: { type: 'string', default: 'FP32,SGD,1' },
    epochs: { type: 'string', default: '2' },
    more: { type: 'string', default: '1' },
    judged: { type: 'string', default: '700' },
    pairs: { type: 'string', default: '20000' },
    seeds: { type: 'string', default: '1' },
    threads: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const folder = folderOrUsage(options, USAGE);
const [people, joining] = [Number(options.people), Number(options.join)];
const [twice, leaving] = [Number(options.twice), Number(options.leave)];
const computeThreads = Number(options.threads);
const [rowsPrecision, rowsOptimizer, sampleRate] = options.rows.split(',');
const seeds = options.seeds.split(',').map(Number);

const MOST_PICTURES = 30;
const LEAST_PICTURES = 4;
/** Of class centres, by their optimizer: of SGD for each step, of the others about what a number changes by. */
const ROWS_RATE = rowsOptimizer === 'SGD' ? 0.1 : 0.01;

const { labels, identities } = await readLabels(folder);
const counts = countByLabel(labels, identities);

interface Nearest {
  /** Pictures whose nearest class centre is one of their person, in percent. */
  began: number;
  /** Of those who joined. */
  joined: number;
}

interface Row {
  name: string;
  seed: number;
  accuracy: number;
  interval: number[];
  tar: number;
  nearestBefore?: Nearest;
  nearest?: Nearest;
  /** Of the first step after the edit, and of the last one. */
  losses?: [number, number];
}
const results: Row[] = [];

function unit(values: Float32Array): Float32Array {
  const length = Math.hypot(...values);
  return length > 0 ? values.map((value) => value / length) : values;
}

async function measure(seed: number): Promise<void> {
  const scratch = mkdtempSync(join(tmpdir(), 'head-bench-'));
  process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));

  // ---- Who is in which part ----
  const everybody = shuffled(identities, seed);
  const trained = everybody
    .filter((label) => counts[label]! >= LEAST_PICTURES && counts[label]! <= MOST_PICTURES)
    .slice(0, people + joining);
  if (trained.length < people + joining) throw new Error(`${folder}: ${trained.length} people have 4 to 30 pictures`);
  const isTrained = new Set(trained);
  const others = everybody.filter((label) => counts[label]! >= 2 && !isTrained.has(label));
  const judged = new Set(others.slice(0, Number(options.judged)));
  const pairs = new Pairs(labels, (label) => judged.has(label), { count: Number(options.pairs), seed, folder });

  // Classes: who begins, in the order of `trained`; the second ones of the first; who joins.
  const personOf = (class_: number) =>
    class_ < people ? class_ : class_ < people + twice ? class_ - people : class_ - twice;
  const pictures: { picture: number; class_: number }[] = [];
  trained.forEach((label, person) => {
    const own = [...labels.keys()].filter((picture) => labels[picture] === label);
    own.forEach((picture, i) => {
      const second = person < twice && i % 2 === 1;
      pictures.push({ picture, class_: person >= people ? person + twice : second ? people + person : person });
    });
  });
  const encoded = await readEncoded(
    folder,
    pictures.map(({ picture }) => picture),
  );
  const dataset = { first: join(scratch, 'first'), grown: join(scratch, 'grown') };
  for (const [at, classes] of [
    [dataset.first, people + twice],
    [dataset.grown, people + twice + joining],
  ] as const)
    pictures.forEach(({ picture, class_ }, i) => {
      if (class_ >= classes) return;
      const own = join(at, String(class_).padStart(6, '0'));
      mkdirSync(own, { recursive: true });
      writeFileSync(join(own, `${picture}.jpg`), encoded[i]!);
    });

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
          ...(data === dataset.grown && { numClasses: people + twice + joining }),
        },
        loss: {
          ...{ scale: 32, margin: { type: 'CosFace', m3: 0.2 }, sampleRate: Number(sampleRate) },
          rows: { precision: rowsPrecision, optimizer: rowsOptimizer, learningRate: ROWS_RATE },
        },
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

  /** @param embeddings of `pictures` */
  function nearest(embeddings: Float32Array, centres: readonly Float32Array[]): Nearest {
    const dim = embeddings.length / pictures.length;
    const found = { began: [0, 0], joined: [0, 0] };
    const there = centres.flatMap((centre, class_) =>
      centre.some((value) => value !== 0) ? { centre, person: personOf(class_) } : [],
    );
    const persons = new Set(there.map(({ person }) => person));
    pictures.forEach(({ class_ }, place) => {
      const own = personOf(class_);
      if (!persons.has(own)) return;
      const embedding = embeddings.subarray(place * dim, (place + 1) * dim);
      let best = { cosine: -Infinity, person: -1 };
      for (const { centre, person } of there) {
        const cosine = centre.reduce((sum, value, i) => sum + value * embedding[i]!, 0);
        if (cosine > best.cosine) best = { cosine, person };
      }
      const group = found[own < people ? 'began' : 'joined'];
      group[0]! += 1;
      if (best.person === own) group[1]! += 1;
    });
    const share = ([count, hits]: number[]) => (100 * hits!) / count!;
    return { began: share(found.began), joined: share(found.joined) };
  }

  async function judge(name: string, model: string, more: Partial<Row> = {}): Promise<void> {
    const { accuracy, intervals, tarAtFar } = pairs.verify(
      await embed(model, { folder, pictures: pairs.pictures, computeThreads }),
    );
    const interval = [...intervals.accuracy].map((end) => 100 * end);
    results.push({ name, seed, accuracy: 100 * accuracy, interval, tar: 100 * tarAtFar['1e-3']!, ...more });
    console.error(JSON.stringify(results.at(-1)));
  }

  const modelOf = (name: string) => join(output(name), 'model', 'backbone.onnx');
  const embedTrained = (name: string) =>
    embed(modelOf(name), { folder, pictures: pictures.map(({ picture }) => picture), computeThreads });

  await judge('pretrained', MOBILEFACENET);
  const base = await train('base', dataset.first, Number(options.epochs));
  const baseEmbeddings = await embedTrained('base');
  await judge('before the edits', modelOf('base'), {
    nearest: nearest(baseEmbeddings, await centresOf('base')),
    losses: [base.lossFirst!, base.lossLast!],
  });

  const leavers = Array.from({ length: leaving }, (_, i) => twice + i);
  const ways: { name: string; title: string; data: string; edit?: (folder: string) => Promise<void> }[] = [
    { name: 'unchanged', title: 'gone on without an edit', data: dataset.first },
    {
      name: 'added',
      title: `${joining} added by head add`,
      data: dataset.grown,
      edit: (at) => facetrain('head', 'add', at, '--dataset', dataset.grown, '--model', modelOf('base')),
    },
    { name: 'seeded', title: `${joining} more, rows from the seed`, data: dataset.grown },
    {
      name: 'merged',
      title: `${twice} merged by head merge`,
      data: dataset.first,
      edit: async (at) => {
        for (let person = 0; person < twice; person++)
          await facetrain('head', 'merge', at, '--classes', String(people + person), '--into', String(person));
      },
    },
    {
      name: 'removed',
      title: `${leaving} removed by head remove`,
      data: dataset.first,
      edit: (at) => facetrain('head', 'remove', at, '--classes', leavers.join(',')),
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
  rmSync(scratch, { recursive: true });
}

for (const seed of seeds) await measure(seed);

if (!options.json) {
  console.log(
    `${people} people of 4 to 30 pictures, ${twice} of them in two classes, ${joining} join, ${leaving} leave; class ` +
      `centres in ${rowsPrecision} with ${rowsOptimizer}, sample rate ${sampleRate}; ${options.pairs} pairs of ` +
      `${options.judged} others${seeds.length > 1 ? `; means and deviations over ${seeds.length} seeds` : ''}. ` +
      "Nearest: trained pictures whose nearest class centre is their person's.",
  );
  console.log(
    `${''.padEnd(32)}   accuracy, %  TAR at FAR 1e-3, %` +
      '   nearest, %: who began          after     who joined          after     first loss',
  );
  const widths = [14, 20, 24, 15, 15, 15, 15];
  for (const { name } of results.filter(({ seed }) => seed === seeds[0])) {
    const own = results.filter((result) => result.name === name);
    const columns: ((row: Row) => number | undefined)[] = [
      ({ accuracy }) => accuracy,
      ({ tar }) => tar,
      ({ nearestBefore }) => nearestBefore?.began,
      ({ nearest }) => nearest?.began,
      ({ nearestBefore }) => nearestBefore?.joined,
      ({ nearest }) => nearest?.joined,
      ({ losses }) => losses?.[0],
    ];
    const cells = columns.map((column) => {
      const values = own.map(column).filter((value) => value !== undefined && !Number.isNaN(value)) as number[];
      return values.length > 0 ? meanAndDeviation(values) : '';
    });
    console.log(name.padEnd(32) + cells.map((cell, i) => cell.padStart(widths[i]!)).join(''));
  }
}
console.log(JSON.stringify({ benchmark: 'head', pairs: Number(options.pairs), results }));
process.exit(0);
