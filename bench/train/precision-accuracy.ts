/**
 * What the precision of a training costs in accuracy: a MobileFaceNet from random weights, with the same pictures,
 * steps and seeds in each precision, judged on pairs of other people. `npm run bench -- precision --help`.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { TrainReport } from '@facetrain/api';
import { packDataset, readLabels } from '@facetrain/native';
import { countByLabel, shuffled } from '@facetrain/trainer/dataset/hold-out';
import { Pairs } from '../common/pairs.ts';
import { meanAndDeviation } from '../common/statistics.ts';
import { embed, facetrain } from '../common/trained.ts';
import { folderOrUsage } from '../common/usage.ts';

const USAGE = `Usage: npm run bench -- precision --data FOLDER [OPTION...]

Trains a MobileFaceNet from random weights in each precision, by turns, and judges it on pairs of people who are not in
the training.

--data FOLDER      a dataset of faces of 112x112, such as LFW
--precisions LIST  of trainers.precision; default FP32,BF16
--device NAME      CPU (default) or CUDA
--seeds N          trainings in each precision; default 3
--epochs N         default 16
--width N          a whole number, multiplier of the network's channels; default 1
--judged N         people whom the pairs are of, with two pictures or more each; default 700
--pairs N          a multiple of 20; default 20000
--threads N        default 2
--json             one object instead of the table
`;

const { values: options } = parseArgs({
  options: {
    data: { type: 'string' },
    precisions: { type: 'string', default: 'FP32,BF16' },
    device: { type: 'string', default: 'CPU' },
    seeds: { type: 'string', default: '3' },
    epochs: { type: 'string', default: '16' },
    width: { type: 'string', default: '1' },
    judged: { type: 'string', default: '700' },
    pairs: { type: 'string', default: '20000' },
    threads: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const folder = folderOrUsage(options, USAGE);
const precisions = options.precisions.split(',');
const computeThreads = Number(options.threads);
/** Of the people and the pairs. */
const SEED = 1;
/** Of a person who is trained: a class needs some, and should not be most of the pictures. */
const [LEAST_PICTURES, MOST_PICTURES] = [4, 40];

const scratch = mkdtempSync(join(tmpdir(), 'precision-bench-'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));

const { labels, identities } = await readLabels(folder);
const counts = countByLabel(labels, identities);
const several = shuffled(identities, SEED).filter((label) => counts[label]! >= 2);
const judged = new Set(several.slice(0, Number(options.judged)));
const trained = several
  .slice(judged.size)
  .filter((label) => counts[label]! >= LEAST_PICTURES && counts[label]! <= MOST_PICTURES);
const pairs = new Pairs(labels, (label) => judged.has(label), { count: Number(options.pairs), seed: SEED, folder });

const relabel = new Float64Array(identities).fill(-1);
trained.forEach((label, place) => {
  relabel[label] = place;
});
const dataset = join(scratch, 'dataset');
mkdirSync(dataset);
await packDataset(folder, { relabel, output: dataset, shardBytes: 2 ** 29 });

interface Training {
  precision: string;
  seed: number;
  /** Percent. */
  accuracy: number;
  /** True accepts at one false in 1,000, percent. */
  tar: number;
  lossLast: number;
}

async function train(precision: string, seed: number): Promise<Training> {
  const output = join(scratch, `${precision}-${seed}`);
  const job = {
    apiVersion: 'facetrain.dev/v1alpha1',
    kind: 'FaceTrainJob',
    metadata: { name: 'precision' },
    spec: {
      dataset: { uri: `file://${dataset}` },
      model: { backbone: 'mobilefacenet', width: Number(options.width), embeddingDim: 128 },
      loss: { scale: 32, margin: { type: 'CosFace', m3: 0.2 } },
      optimizer: { learningRate: 0.05 },
      epochs: Number(options.epochs),
      globalBatchSize: 64,
      seed,
      checkpoint: { everyEpochs: Number(options.epochs), keep: 1 },
      trainers: { replicas: 1, device: options.device, precision, computeThreads },
      output: { uri: `file://${output}` },
    },
  };
  const file = join(scratch, 'job.json');
  writeFileSync(file, JSON.stringify(job));
  await facetrain('run', '-f', file);
  const report: TrainReport = JSON.parse(await readFile(join(output, 'train-report.json'), 'utf8'));
  const model = join(output, 'model', 'backbone.onnx');
  const embeddings = await embed(model, { folder, pictures: pairs.pictures, computeThreads });
  rmSync(output, { recursive: true });
  const { accuracy, tarAtFar } = pairs.verify(embeddings);
  return { precision, seed, accuracy: 100 * accuracy, tar: 100 * tarAtFar['1e-3']!, lossLast: report.lossLast! };
}

const results: Training[] = [];
for (let seed = 1; seed <= Number(options.seeds); seed++)
  for (const precision of precisions) {
    results.push(await train(precision, seed));
    console.error(JSON.stringify(results.at(-1)));
  }

if (!options.json) {
  console.log(
    `${trained.length} people trained, ${options.epochs} epochs, ${options.seeds} seeds; ${options.pairs} pairs of ` +
      `${judged.size} others. Means and standard deviations over the seeds.`,
  );
  console.log(`${''.padEnd(6)}   accuracy, %   TAR at FAR 1e-3, %       last loss`);
  for (const precision of precisions) {
    const own = results.filter((result) => result.precision === precision);
    const columns = [own.map((r) => r.accuracy), own.map((r) => r.tar), own.map((r) => r.lossLast)];
    console.log(
      precision.padEnd(6) + columns.map((column, i) => meanAndDeviation(column).padStart([14, 21, 16][i]!)).join(''),
    );
  }
}
console.log(JSON.stringify({ benchmark: 'precision', pairs: Number(options.pairs), results }));
process.exit(0);
