/** `facetrain run` with real processes: a whole job, lost and stopped processes, folders in use, refused inputs. */

import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { cp, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { eventually, facetrain, Running, trainers, writeTinyJob } from '../testing/run-cli.ts';
import type { RunResult } from './run-result.ts';

let folder: string;
let out: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-run-'));
  out = join(folder, 'out');
});
afterEach(async () => {
  for (const { pid } of trainers(folder)) process.kill(pid, 'SIGKILL');
  await rm(folder, { recursive: true, force: true });
});

const checkpoints = () =>
  existsSync(join(out, 'checkpoints'))
    ? readdirSync(join(out, 'checkpoints')).filter((name) =>
        existsSync(join(out, 'checkpoints', name, 'manifest.json')),
      )
    : [];

/** The one object on standard output. */
function result(stdout: string): RunResult {
  const lines = stdout.split('\n');
  assert.equal(lines.length, 2, `standard output holds more than one line:\n${stdout}`);
  return JSON.parse(lines[0]!) as RunResult;
}

test('a manifest becomes a trained, evaluated, quantized and published model', async () => {
  const file = await writeTinyJob(folder, (spec) => {
    spec.evaluation = {
      sets: [{ name: 'lfw-small', uri: `file://${join(exampleFaces, 'lfw-small.bin')}` }],
      everyEpochs: 0,
    };
    spec.epochs = 4;
    spec.optimizer = { learningRate: 0.05 };
    spec.quantize = { calibration: { images: 8 }, search: { rounds: 1, candidates: 10 } };
  });
  const { code, stdout, stderr } = await facetrain('run', '-f', file, '--json');
  assert.equal(code, 0, stderr);
  const job = result(stdout);
  assert.deepEqual([job.job, job.phase, job.attempts, job.train?.steps], ['tiny', 'Succeeded', 1, 100]);
  assert.ok(job.train!.lossLast < job.train!.lossFirst, `loss ${job.train!.lossFirst} -> ${job.train!.lossLast}`);
  assert.deepEqual(
    job.evaluation.map(({ set, pairs }) => [set, pairs]),
    [['lfw-small', 600]],
  );
  assert.deepEqual(Object.keys(job.artifact!.files).sort(), [
    'model.int7.onnx',
    'report.html',
    'report.json',
    'scales.json',
  ]);
  for (const name of [...Object.keys(job.artifact!.files), 'manifest.json'])
    assert.ok(existsSync(join(job.artifact!.dir, name)), name);
  for (const name of ['model/backbone.onnx', 'train-report.json', 'train-report.html'])
    assert.ok(existsSync(join(out, name)), name);
  assert.deepEqual(trainers(folder), []);

  // The other commands read these files.
  for (const [runtime, model] of [
    ['fp32', join(out, 'model', 'backbone.onnx')],
    ['int7', join(job.artifact!.dir, 'model.int7.onnx')],
  ] as const) {
    const evaluation = JSON.parse(
      (await facetrain('eval', '--model', model, '--pairs', join(exampleFaces, 'lfw-small.bin'), '--json')).stdout,
    ) as { runtime: string; accuracy: number };
    assert.equal(evaluation.runtime, runtime);
    assert.ok(evaluation.accuracy > 0.55, `${runtime}: ${evaluation.accuracy}, where chance gives 0.5`);
    const reported = runtime === 'fp32' ? job.evaluation[0]!.accuracy : job.artifact!.evaluation[0]!.int7;
    // The trainer embeds in batches of another size: a pair at the threshold may fall to the other side.
    assert.ok(
      Math.abs(evaluation.accuracy - reported) <= 2 / 600,
      `${runtime}: ${evaluation.accuracy}, the job says ${reported}`,
    );
  }
  for (const path of [
    join(out, 'model', 'backbone.onnx'),
    join(out, 'checkpoints', checkpoints()[0]!),
    job.artifact!.dir,
  ])
    assert.equal((await facetrain('inspect', path)).code, 0, path);

  const saved = checkpoints()
    .sort()
    .map((name) => join(out, 'checkpoints', name));
  const [first, last] = [saved[0]!, saved.at(-1)!];
  const compared = await facetrain('inspect', first, last);
  assert.equal(compared.code, 0, compared.stderr);
  assert.match(compared.stdout, /\n +step +\d+ → \d+\n/);
  assert.match(compared.stdout, /\n +Class centres +\d+ compared, \d+ unchanged\n +turned by +\d+\.\d\d° on average/);
  const printed = JSON.parse((await facetrain('inspect', first, last, '--json')).stdout) as { type: string };
  assert.equal(printed.type, 'comparison');
  assert.equal((await facetrain('inspect', first, out)).code, 2);
});

test('a killed rank: the gang restarts from the newest checkpoint, and the model is the same bit for bit', async () => {
  const undisturbed = await facetrain('run', '-f', await writeTinyJob(join(folder, 'undisturbed')), '--json');
  assert.equal(undisturbed.code, 0, undisturbed.stderr);

  const run = new Running(['run', '-f', await writeTinyJob(folder), '--json']);
  await eventually('a checkpoint', () => checkpoints().length > 0);
  process.kill(trainers(out).find(({ rank }) => rank === 1)!.pid, 'SIGKILL');
  const { code, stdout, stderr } = await run.outcome;
  assert.equal(code, 0, stderr);
  const job = result(stdout);
  assert.deepEqual([job.phase, job.attempts, job.restarts.count], ['Succeeded', 2, 1]);
  const report = JSON.parse(await readFile(join(out, 'train-report.json'), 'utf8')) as { resumedFromStep: number };
  assert.ok(report.resumedFromStep >= 5, `resumed from step ${report.resumedFromStep}`);
  const models = await Promise.all(
    [out, join(folder, 'undisturbed', 'out')].map((path) => readFile(join(path, 'model', 'backbone.onnx'))),
  );
  assert.ok(models[0]!.equals(models[1]!), 'the model is not that of the undisturbed run');
  assert.deepEqual(trainers(folder), []);
});

test('Ctrl-C writes a checkpoint; the same command continues from it', async () => {
  const file = await writeTinyJob(folder);
  const first = new Running(['run', '-f', file]);
  await eventually('a checkpoint', () => checkpoints().length > 0);
  first.child.kill('SIGINT');
  const stopped = await first.outcome;
  assert.equal(stopped.code, 130, stopped.stderr);
  assert.deepEqual(trainers(folder), []);

  const second = await facetrain('run', '-f', file, '--json');
  assert.equal(second.code, 0, second.stderr);
  assert.match(second.stderr, /^Continuing/m);
  assert.ok((await resumedFromStep()) > 0);
});

test('when `facetrain run` itself is killed, its ranks end; the same command continues', async () => {
  const file = await writeTinyJob(folder);
  const run = new Running(['run', '-f', file]);
  await eventually('both ranks', () => trainers(folder).length === 2);
  await eventually('a checkpoint', () => checkpoints().length > 0);
  run.child.kill('SIGKILL');
  await run.outcome;
  // At once: the next run waits for the ranks, which write a checkpoint first.
  const again = await facetrain('run', '-f', file, '--json');
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stderr, /^Continuing/m);
  assert.ok((await resumedFromStep()) > 0);
  assert.deepEqual(trainers(folder), []);
});

/** A job with one trainer and hardly any search. */
const quickJob = (change: (spec: Record<string, unknown>) => void = () => {}) =>
  writeTinyJob(folder, (spec) => {
    spec.trainers = { replicas: 1, computeThreads: 2 };
    spec.quantize = { calibration: { images: 4 }, search: { rounds: 0 } };
    change(spec);
  });
const gate = (minMeanCosine: number) => (spec: Record<string, unknown>) =>
  Object.assign(spec.quantize as object, { gate: { minMeanCosine } });
const resumedFromStep = async () =>
  (JSON.parse(await readFile(join(out, 'train-report.json'), 'utf8')) as { resumedFromStep: number }).resumedFromStep;
const contentOf = (...names: string[]) => Promise.all(names.map((name) => readFile(join(out, name), 'base64')));

test('a missed gate costs the quantization, not the training; a finished run is kept until --fresh', async () => {
  const strict = await facetrain('run', '-f', await quickJob(gate(1)), '--json');
  assert.equal(strict.code, 3, strict.stderr);
  const trained = await contentOf('model/backbone.onnx', 'train-report.json');

  const loose = await facetrain('run', '-f', await quickJob(gate(0.5)), '--json');
  assert.equal(loose.code, 0, loose.stderr);
  assert.match(loose.stderr, /Changed since the earlier run: spec\.quantize\.gate\.minMeanCosine/);
  assert.equal(result(loose.stdout).attempts, 0);
  assert.deepEqual(await contentOf('model/backbone.onnx', 'train-report.json'), trained);

  await writeFile(join(out, 'checkpoints', 'mine.txt'), 'precious');
  const kept = await contentOf('int7/model.int7.onnx', 'int7/manifest.json', 'checkpoints/mine.txt');
  const again = await facetrain('run', '-f', await quickJob(gate(0.5)), '--json');
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stderr, /^Nothing to do/m);
  assert.deepEqual(result(again.stdout).artifact, result(loose.stdout).artifact);
  assert.deepEqual(result(again.stdout).train, result(loose.stdout).train);

  // What cannot be used, and what would train something else, leaves all as it is.
  for (const [change, options, wantMessage] of [
    [(spec) => (spec.seed = 1), [], /spec\.seed.*--out.*--fresh/],
    [(spec) => (spec.dataset = { uri: `file://${folder}` }), ['--fresh'], /out the dataset\?/],
  ] as [(spec: Record<string, unknown>) => void, string[], RegExp][]) {
    const refused = await facetrain('run', '-f', await quickJob(change), ...options);
    assert.equal(refused.code, 2, refused.stderr);
    assert.match(refused.stderr, wantMessage);
  }
  assert.deepEqual(await contentOf('model/backbone.onnx', 'train-report.json'), trained);
  assert.deepEqual(await contentOf('int7/model.int7.onnx', 'int7/manifest.json', 'checkpoints/mine.txt'), kept);

  const fresh = await facetrain('train', '-f', await quickJob((spec) => (spec.seed = 1)), '--fresh', '--json');
  assert.equal(fresh.code, 0, fresh.stderr);
  assert.match(
    fresh.stderr,
    new RegExp(`^--fresh removes .*:\n(  .*\n)*  ${out}/model/backbone.onnx \\(.* MB\\)$`, 'm'),
  );
  assert.deepEqual(readdirSync(join(out, 'int7')), ['fences']);
  assert.equal(await readFile(join(out, 'checkpoints', 'mine.txt'), 'utf8'), 'precious');
  assert.equal(await resumedFromStep(), null);
});

test('a trainer that a signal ends is a failure with exit code 1; the same command continues', async () => {
  const file = await quickJob((spec) => {
    delete spec.quantize;
    spec.failurePolicy = { maxRestarts: 0 };
  });
  const run = new Running(['run', '-f', file, '--json']);
  await eventually('a checkpoint', () => checkpoints().length > 0);
  process.kill(trainers(out)[0]!.pid, 'SIGSEGV');
  const { code, stdout, stderr } = await run.outcome;
  assert.equal(code, 1, stderr);
  assert.equal(result(stdout).exitCode, 1);
  assert.match(result(stdout).message!, /tiny-0-0 was ended by SIGSEGV/);

  const again = await facetrain('run', '-f', file, '--json');
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stderr, /The earlier run failed: .*SIGSEGV/);
  assert.equal(result(again.stdout).attempts, 1, 'only those of this invocation');
  assert.ok((await resumedFromStep()) > 0);
});

test('storage that fails at the end of the training costs no step', async () => {
  const file = await quickJob((spec) => delete spec.quantize);
  const run = new Running(['run', '-f', file, '--json']);
  await eventually('a checkpoint', () => checkpoints().length > 0);
  await writeFile(join(out, 'model'), 'a file where the folder should be');
  const failed = await run.outcome;
  assert.equal(failed.code, 2, failed.stderr);
  await rm(join(out, 'model'));
  const again = await facetrain('run', '-f', file, '--json');
  assert.equal(again.code, 0, again.stderr);
  assert.equal(await resumedFromStep(), 25);
});

test('of two runs that begin at once in a folder, one is refused', async () => {
  const file = await quickJob((spec) => delete spec.quantize);
  const outcomes = await Promise.all([facetrain('run', '-f', file), facetrain('run', '-f', file)]);
  const [done, refused] = outcomes.sort((a, b) => a.code! - b.code!);
  assert.deepEqual([done!.code, refused!.code], [0, 2], `${done!.stderr}\n${refused!.stderr}`);
  assert.match(refused!.stderr, /is running a job there/);
});

test('a folder that another run uses, or that holds other files, is refused and not changed', async () => {
  const file = await writeTinyJob(folder);
  const run = new Running(['run', '-f', file]);
  await eventually('both ranks', () => trainers(folder).length === 2);
  const second = await facetrain('run', '-f', file);
  assert.equal(second.code, 2);
  assert.match(second.stderr, new RegExp(`${out}: process ${run.child.pid} is running a job there`));
  run.child.kill('SIGTERM');
  assert.equal((await run.outcome).code, 143);

  await writeFile(join(folder, 'mine.txt'), 'precious');
  const third = await facetrain('run', '-f', file, '--out', folder);
  assert.equal(third.code, 2);
  assert.match(third.stderr, /is not empty, and no run of facetrain made it/);
  assert.equal(await readFile(join(folder, 'mine.txt'), 'utf8'), 'precious');
});

const refusals: Record<
  string,
  { spoil: (data: string) => Promise<void>; change?: (spec: Record<string, unknown>) => void; wantMessage: RegExp }
> = {
  'a .rec that is cut short': {
    spoil: (data) => truncate(join(data, 'train.rec'), 1_000_001),
    wantMessage: /train\.rec/,
  },
  'a dataset that does not exist': { spoil: (data) => rm(data, { recursive: true }), wantMessage: /data/ },
  'fewer classes than the data has': {
    spoil: async () => {},
    change: (spec) => Object.assign(spec.model as object, { numClasses: 39 }),
    wantMessage: /39/,
  },
  'a verification set that would run code': {
    spoil: (data) => writeFile(join(data, 'evil.bin'), "cposix\nsystem\n(S'true'\ntR."),
    change: (spec) =>
      (spec.evaluation = {
        sets: [{ name: 'evil', uri: `file://${join((spec.dataset as { uri: string }).uri.slice(7), 'evil.bin')}` }],
      }),
    wantMessage: /evil\.bin.*posix.system/,
  },
};
for (const [name, { spoil, change, wantMessage }] of Object.entries(refusals)) {
  test(`refused, with a message that names the input: ${name}`, async () => {
    const data = join(folder, 'data');
    await cp(exampleFaces, data, { recursive: true });
    await spoil(data);
    const file = await writeTinyJob(folder, (spec) => {
      spec.dataset = { uri: `file://${data}` };
      change?.(spec);
    });
    const { code, stdout, stderr } = await facetrain('run', '-f', file, '--json');
    assert.equal(code, 2, stderr);
    const job = result(stdout);
    assert.equal(job.phase, 'Failed');
    assert.equal(job.attempts, 1, 'a refused input is not tried again');
    assert.match(job.message!, wantMessage);
    assert.equal(existsSync(join(out, 'model')), false);
    assert.deepEqual(trainers(folder), []);
  });
}
