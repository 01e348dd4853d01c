/** The quantize mode from end to end, on a small network and real pictures, and the input that it refuses. */
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { appendFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  ArtifactManifest,
  ExitCode,
  FacetrainError,
  OUTPUT,
  PAPER_SEARCH,
  QuantizeConfig,
  QuantizeReport,
  ScalesDocument,
  SEARCH_JOURNAL,
  TerminationMessage,
  TerminationResult,
} from '@facetrain/api';
import type { Graph } from '@facetrain/native';
import { pino } from 'pino';
import { decodeModel } from '../onnx/proto.ts';
import { parseOnnx } from '../onnx/read.ts';
import { encodeOnnx } from '../onnx/write.ts';
import type { Program } from '../program/program.ts';
import { createBoard } from '../program/progress-board.ts';
import { fetchTo } from '../storage/fetch.ts';
import { shippedJpeg, writeDataset } from '../testing/dataset-fixtures.ts';
import { splitModel } from '../testing/external-data.ts';
import { type Operation, SimulatedProcess } from '../testing/file-operations.ts';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { End, fileWithEnd, integers, value } from '../testing/tail-networks.ts';
import { writeSmallDataset, writeSmallSet } from '../testing/training-gang.ts';
import { runQuantize } from './run-quantize.ts';

const FILES = ['manifest.json', 'model.int7.onnx', 'model.int7.trt.onnx', 'report.html', 'report.json', 'scales.json'];

let server: S3Server;
let inputs: string;
let scratch: string;

before(async () => {
  Object.assign(process.env, AWS_ENVIRONMENT);
  server = await startS3Server('models');
  inputs = await mkdtemp(join(tmpdir(), 'facetrain-quantize-'));
  writeSmallDataset(join(inputs, 'data'), { identities: 4, perIdentity: 3 });
  await writeSmallSet(join(inputs, 'pairs.bin'), 10);
  await writeModel('model.onnx');
});
after(async () => {
  await server.stop();
  await rm(inputs, { recursive: true });
});
beforeEach(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'facetrain-quantized-'));
});
afterEach(() => rm(scratch, { recursive: true }));

/** A residual network for pictures of faces; its search takes less than a second. */
function network(builder = new GraphBuilder({ height: 112, width: 112 })): Graph {
  const b = builder;
  const stem = b.prelu(b.batchNorm(b.conv('data', 3, 8, 7, { pad: 3, stride: 8, bias: false }), 8), 8);
  const unit = b.batchNorm(
    b.conv(b.prelu(b.conv(b.batchNorm(stem, 8), 8, 8, 3, { pad: 1 }), 8), 8, 8, 3, { pad: 1, bias: false }),
    8,
  );
  return b.graph(b.gemm(b.flatten(b.batchNorm(b.node('Add', [unit, stem]), 8)), 8 * 14 * 14, 16));
}

async function writeModel(name: string, change: (graph: Graph) => void = () => {}): Promise<string> {
  const graph = network();
  change(graph);
  await writeFile(join(inputs, name), encodeOnnx(graph));
  return join(inputs, name);
}

/** Constants for arithmetic with 8 channels. */
const all = (b: GraphBuilder, value: number) => {
  const tensor = b.values([8, 1, 1]);
  tensor.data.fill(value);
  return tensor;
};

/** A model that adds a branch behind its stem: its embedding depends on the picture, whatever the branch is. */
async function withBranch(
  name: string,
  branch: (b: GraphBuilder, stem: string) => string,
): Promise<Partial<QuantizeConfig>> {
  const b = new GraphBuilder({ height: 112, width: 112 });
  const stem = b.prelu(b.batchNorm(b.conv('data', 3, 8, 7, { pad: 3, stride: 8, bias: false }), 8), 8);
  const sum = b.node('Add', [stem, branch(b, stem)]);
  await writeFile(join(inputs, name), encodeOnnx(b.graph(b.gemm(b.flatten(sum), 8 * 14 * 14, 16))));
  return { model: { path: join(inputs, name), channelOrder: 'rgb', input: null } };
}

function scale(graph: Graph, tensor: string, factor: number): void {
  const { data } = graph.initializers[tensor]!;
  data.forEach((value, index) => {
    data[index] = Number(value) * factor;
  });
}

function config(change: Partial<QuantizeConfig> = {}): QuantizeConfig {
  return QuantizeConfig.parse({
    schemaVersion: 1,
    job: { name: 'small', uid: 'uid', attempt: 0 },
    model: { path: join(inputs, 'model.onnx'), channelOrder: 'rgb', input: null },
    calibration: { datasetPath: join(inputs, 'data'), images: 6, seed: 3, maxBadPictures: 0 },
    search: {
      rounds: 1,
      candidates: 10,
      lower: 0.5,
      upper: 2,
      zeroPoints: true,
      equalize: true,
      biasCorrection: true,
      budget: 0,
      strict: false,
    },
    evaluation: { sets: [{ name: 'pairs', path: join(inputs, 'pairs.bin') }] },
    gate: { maxAccuracyDrop: null, minMeanCosine: 0.9 },
    publish: null,
    outputDirectory: join(scratch, 'out'),
    computeThreads: 1,
    progress: null,
    ...change,
  });
}

function program(signal = new AbortController().signal): Program & { stages: Set<string> } {
  const board = createBoard({ name: 'small', uid: 'uid', attempt: 0 }, 'Loading');
  const stages = new Set<string>();
  const update = board.update;
  board.update = (change) => {
    update(change);
    stages.add(board.current.stage);
  };
  return { log: pino({ level: 'silent' }), progress: board, signal, stages };
}

/** The files of a folder by name. */
async function contents(folder: string): Promise<Record<string, Buffer>> {
  const names = (await readdir(folder, { withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map(({ name }) => name)
    .sort();
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name))] as const)),
  );
}

async function failure(change: Partial<QuantizeConfig>): Promise<FacetrainError> {
  const error = await runQuantize(config(change), program()).then(
    () => assert.fail('it did not fail'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof FacetrainError, String((error as Error).stack));
  return error;
}

test('an artifact is complete, listed in its manifest, and published', async () => {
  const publish = server.address('s3://models/small/int7');
  const running = program();
  const report = await runQuantize(config({ publish }), running);
  for (const stage of ['Loading', 'Equalizing', 'Comparing', 'Publishing', 'Done'])
    assert.ok(running.stages.has(stage), stage);

  const local = await contents(join(scratch, 'out'));
  assert.deepEqual(Object.keys(local), FILES);
  const manifest = ArtifactManifest.parse(JSON.parse(local['manifest.json']!.toString()));
  assert.deepEqual(Object.keys(manifest.files).sort(), FILES.slice(1));
  for (const [name, { sha256, bytes }] of Object.entries(manifest.files)) {
    assert.equal(createHash('sha256').update(local[name]!).digest('hex'), sha256, name);
    assert.equal(local[name]!.length, bytes, name);
  }
  assert.equal(
    manifest.source.sha256,
    createHash('sha256')
      .update(await readFile(join(inputs, 'model.onnx')))
      .digest('hex'),
  );
  assert.deepEqual(QuantizeReport.parse(JSON.parse(local['report.json']!.toString())), report);
  ScalesDocument.parse(JSON.parse(local['scales.json']!.toString()));

  assert.equal(report.calibration.images, 6);
  assert.equal(report.metrics.comparisons[0]!.pairs, 20);
  assert.ok(
    report.metrics.meanCosine > 0.95 && report.metrics.meanCosine < 1,
    `mean cosine ${report.metrics.meanCosine}`,
  );
  const { source, weights, operands, others, all } = report.errorSplit!;
  assert.equal(source, 'calibration', 'with evaluation sets, no pictures are held out');
  assert.ok(Math.min(weights, operands, others) > all && Math.max(weights, operands, others) < 1);
  assert.deepEqual(new Set(report.layers.map(({ kind }) => kind)), new Set(['conv', 'pointwise', 'add', 'fc']));

  await fetchTo({ ...publish, to: join(scratch, 'fetched') });
  assert.deepEqual(await contents(join(scratch, 'fetched')), local);
});

test('a budget gives activations 8 bits, in the file that our runtimes read and in the report', async () => {
  const search = { ...config().search, budget: 0.6 };
  const gate = { ...config().gate, minMeanCosine: null };
  const [narrow, wide] = [
    await runQuantize(config({ outputDirectory: join(scratch, 'narrow'), gate }), program()),
    await runQuantize(config({ outputDirectory: join(scratch, 'wide'), gate, search }), program()),
  ];
  assert.ok(!('budget' in narrow.search));
  assert.equal(wide.search.budget, 0.6);
  const bitsOf = ({ layers }: QuantizeReport) =>
    layers.filter(({ kind }) => kind === 'conv' || kind === 'fc').map(({ bits, macs }) => ({ bits, macs }));
  assert.ok(bitsOf(narrow).every(({ bits }) => bits === 7));
  const macs = (layers: { macs: number }[]) => layers.reduce((sum, layer) => sum + layer.macs, 0);
  const share = macs(bitsOf(wide).filter(({ bits }) => bits === 8)) / macs(bitsOf(wide));
  assert.ok(share > 0 && share <= 0.6, `${share}`);
  assert.ok(wide.errorSplit!.operands > narrow.errorSplit!.operands);
  const { metadata } = parseOnnx(await readFile(join(scratch, 'wide', 'model.int7.onnx')), 'model.int7.onnx');
  assert.equal(metadata['facetrain.bits'], '7, 8');
  assert.match(
    await readFile(join(scratch, 'wide', 'report.html'), 'utf8'),
    /Activations of 8 bits<.*\d layers?, [\d.]+ % of the multiplications, of 60(\.0+)? % allowed/s,
  );
});

/** Runs the quantizer as its pod does. @returns its exit code, termination message and output */
async function runProgram(change: Partial<QuantizeConfig>, env: Record<string, string> = {}) {
  const files = {
    FACETRAIN_CONFIG: join(scratch, 'config.json'),
    FACETRAIN_TERMINATION_MESSAGE: join(scratch, 'termination.json'),
  };
  await writeFile(files.FACETRAIN_CONFIG, JSON.stringify(config(change)));
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(import.meta.dirname, '..', 'main.ts'), 'quantize'],
    { env: { ...process.env, ...files, ...env }, encoding: 'utf8', timeout: 120_000, killSignal: 'SIGKILL' },
  );
  return { status, message: await readFile(files.FACETRAIN_TERMINATION_MESSAGE, 'utf8'), output: stdout + stderr };
}

test('the paper’s search alone is compared when it is asked for, and changes nothing else', async () => {
  const { rounds, candidates, lower, upper, strict } = config().search;
  const plain = { rounds, candidates, lower, upper, strict, ...PAPER_SEARCH };
  const gate = { ...config().gate, minMeanCosine: null };
  const folder = (name: string) => ({ outputDirectory: join(scratch, name), gate });
  const alone = await runQuantize(config({ ...folder('alone'), search: plain }), program());
  const both = await runQuantize(config({ ...folder('both'), comparePaper: true }), program());
  assert.deepEqual(both.paperSearch, alone.metrics);
  assert.ok(!('paperSearch' in alone));
  const { paperSearch: _, ...rest } = both;
  assert.deepEqual(rest, await runQuantize(config(folder('one')), program()));
  assert.ok(both.metrics.meanCosine > alone.metrics.meanCosine, 'what is beside the paper brings nothing');
  const html = await readFile(join(scratch, 'both', 'report.html'), 'utf8');
  assert.ok(html.includes(both.paperSearch!.meanCosine.toFixed(4)), 'the page has the mean cosine');
});

test('the termination message has the artifact or the error, and no output has a credential', async () => {
  const publish = server.address('s3://models/program');
  const done = await runProgram({ publish });
  assert.equal(done.status, ExitCode.success, done.output);
  const { artifact } = TerminationResult.parse(JSON.parse(done.message));
  const published = await contents(join(scratch, 'out'));
  const { metrics, files } = ArtifactManifest.parse(JSON.parse(published['manifest.json']!.toString()));
  assert.deepEqual(artifact, {
    manifestSha256: createHash('sha256').update(published['manifest.json']!).digest('hex'),
    bytes: Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0),
    meanCosine: metrics.meanCosine,
    accuracyDrop: metrics.accuracyDrop,
    gate: 'Passed',
  });

  for (const wrong of [
    { AWS_SECRET_ACCESS_KEY: 'a-secret-that-is-wrong' },
    { AWS_ACCESS_KEY_ID: 'an-id-that-is-wrong', AWS_SECRET_ACCESS_KEY: 'a-secret-that-is-wrong' },
  ]) {
    const failed = await runProgram({ publish }, { FACETRAIN_LOG_LEVEL: 'trace', ...wrong });
    assert.equal(failed.status, ExitCode.refused, failed.output);
    const { code, message } = TerminationMessage.parse(JSON.parse(failed.message));
    assert.equal(code, 'StorageFailed');
    assert.match(message, /s3:\/\/models\/program at .*: the credentials are wrong \(\w+\)/);
    for (const value of ['a-secret-that-is-wrong', 'an-id-that-is-wrong'])
      assert(!(failed.message + failed.output).includes(value), value);
  }
});

test('the same inputs give the same bytes with any number of threads, and with activations in a file', async (t) => {
  await runQuantize(config(), program());
  // As where /tmp is in memory, which is no place for the file.
  const started = process.env;
  const { TMPDIR: _, ...environment } = started;
  process.env = { ...environment, TMP: '/dev/shm' };
  t.after(() => {
    process.env = started;
  });
  const again = { outputDirectory: join(scratch, 'again'), computeThreads: 2, searchMemoryBytes: 0 };
  await runQuantize(config(again), program());
  const written = await contents(again.outputDirectory);
  for (const [name, bytes] of Object.entries(await contents(join(scratch, 'out'))))
    assert.ok(bytes.equals(written[name]!), name);
});

test('without evaluation sets, embeddings of pictures that the search has not seen are compared', async () => {
  const { metrics, calibration } = await runQuantize(config({ evaluation: { sets: [] } }), program());
  assert.equal(calibration.images, 6);
  assert.deepEqual(metrics.measuredOn, { source: 'heldOut', pictures: 12 - 6 });
  assert.deepEqual(metrics.comparisons, []);
  assert.equal(metrics.accuracyDrop, null);
  assert.ok(metrics.meanCosine > 0.95);
});

test('every output of a model is compared, and what stays FP32 is named or, on demand, refused', async () => {
  const b = new GraphBuilder({ height: 112, width: 112 });
  const stem = b.prelu(b.batchNorm(b.conv('data', 3, 8, 7, { pad: 3, stride: 8, bias: false }), 8), 8);
  const pooled = b.node('MaxPool', [stem], { kernel_shape: [2, 2], strides: [2, 2] });
  const scores = b.node('Softmax', [b.gemm(b.flatten(b.node('Sigmoid', [pooled])), 8 * 7 * 7, 5)], { axis: 1 });
  const map = b.conv(pooled, 8, 2, 1);
  const graph = b.graph(scores);
  const outputs = [
    { name: scores, dims: [5] },
    { name: map, dims: [2, 7, 7] },
  ];
  const path = join(scratch, 'two.onnx');
  await writeFile(path, encodeOnnx({ ...graph, output: { ...graph.output, dim: 5 + 98 }, outputs }));
  const model = { path, channelOrder: 'rgb' as const, input: null };
  const change = { model, evaluation: { sets: [] } } satisfies Partial<QuantizeConfig>;

  const { metrics, realNodes, layers } = await runQuantize(config(change), program());
  assert.deepEqual(
    metrics.outputs!.map(({ name, top1Agreement }) => [name, typeof top1Agreement]),
    [
      [scores, 'number'],
      [map, 'object'],
    ],
  );
  for (const { name, meanCosine } of metrics.outputs!) assert.ok(meanCosine > 0.95 && meanCosine < 1, name);
  assert.equal(metrics.meanCosine, (metrics.outputs![0]!.meanCosine + metrics.outputs![1]!.meanCosine) / 2);
  assert.deepEqual(realNodes, [
    { node: 'node "Softmax_7" (Softmax)', reason: 'operator Softmax, which is computed in FP32' },
  ]);
  assert.equal(layers.find(({ name }) => name === 'Softmax_7')!.bits, 32);

  const strict = await failure({ ...change, search: { ...config().search, strict: true } });
  assert.equal(strict.code, 'UnsupportedOperator');
  assert.match(strict.message, /two\.onnx: node "Softmax_7" \(Softmax\): .*; or no search\.strict \(--strict\)/);
  const withSets = await failure({ model: change.model });
  assert.equal(withSets.code, 'InvalidConfig');
  assert.match(withSets.message, /two\.onnx: outputs "Softmax_7:0", "Conv_8:0", and evaluation sets; one embedding/);
});

test('a tail for ONNX Runtime is in the report, or, on demand, refused', async () => {
  const b = new GraphBuilder({ height: 112, width: 112 });
  const stem = b.prelu(b.conv('data', 3, 8, 7, { pad: 3, stride: 8 }), 8);
  const scores = b.gemm(b.flatten(b.node('GlobalAveragePool', [stem])), 8, 5);
  const end = new End();
  end.node('TopK', [scores, end.constant('k', integers([2]))], ['top', 'places']);
  const outputs = [value('top', 'FLOAT', ['N', 2]), value('places', 'INT64', ['N', 2])];
  const path = join(scratch, 'top.onnx');
  await writeFile(path, fileWithEnd(b.graph(scores), end, { outputs }));
  const change = { model: { path, channelOrder: 'rgb' as const, input: null }, evaluation: { sets: [] } };

  const { metrics, tail } = await runQuantize(config(change), program());
  assert.equal(typeof metrics.top1Agreement, 'number');
  assert.deepEqual(tail, {
    inputs: [scores],
    operators: 'TopK 1',
    causes: [{ node: 'node "top" (TopK)', reason: 'operator TopK is not supported' }],
  });
  const written = await contents(config().outputDirectory);
  assert.match(String(written['report.html']), /<h2>Tail .*[\s\S]*TopK is not supported/);
  for (const name of ['model.int7.onnx', 'model.int7.trt.onnx'])
    assert.deepEqual(
      decodeModel(written[name]!).graph!.output.map((output) => output.name),
      ['top', 'places'],
    );

  const strict = await failure({ ...change, search: { ...config().search, strict: true } });
  assert.equal(strict.code, 'UnsupportedOperator');
  assert.match(strict.message, /top\.onnx: ends with node "top" \(TopK\): operator TopK is not supported; layers that/);
});

test('a missed gate leaves the reports alone, and the artifact that was there', async () => {
  const publish = server.address('s3://models/missed');
  const error = await failure({ publish, gate: { maxAccuracyDrop: null, minMeanCosine: 1 } });
  assert.equal(error.code, 'GateFailed');
  assert.equal(error.exitCode, ExitCode.gateFailed);
  assert.match(error.message, /the mean cosine of embeddings is 0\.9\d{3}, less than minMeanCosine 1; /);
  assert.deepEqual(await readdir(join(scratch, 'out')), [OUTPUT.fences, 'rejected']);
  const local = await contents(join(scratch, 'out', 'rejected'));
  assert.deepEqual(Object.keys(local), ['report.html', 'report.json']);
  assert.equal(QuantizeReport.parse(JSON.parse(local['report.json']!.toString())).gate.passed, false);
  await fetchTo({ ...publish, to: join(scratch, 'fetched') });
  assert.deepEqual(await readdir(join(scratch, 'fetched'), { recursive: true }), [
    'rejected',
    'rejected/report.html',
    'rejected/report.json',
  ]);

  await runQuantize(config({ publish }), program());
  assert.deepEqual(await readdir(join(scratch, 'out', 'rejected')), [], 'the artifact is of a model that has passed');
  await fetchTo({ ...publish, to: join(scratch, 'passed') });
  assert.deepEqual((await readdir(join(scratch, 'passed'), { recursive: true })).sort(), FILES);
  const artifact = await contents(join(scratch, 'out'));
  await failure({ calibration: { ...config().calibration, seed: 4 }, gate: { ...config().gate, minMeanCosine: 1 } });
  assert.deepEqual(await contents(join(scratch, 'out')), artifact);
});

test('a signal stops the search, and no file but what it decided is left', async () => {
  const controller = new AbortController();
  const running = program(controller.signal);
  const { update } = running.progress;
  running.progress.update = (change) => {
    update(change);
    // After the native call has begun.
    if (change.stage === 'Equalizing') setImmediate(() => controller.abort('SIGTERM'));
  };
  await assert.rejects(
    runQuantize(config({ search: { ...config().search, candidates: 1000 } }), running),
    (reason) => reason === 'SIGTERM' || (reason as Error).name === 'AbortError',
  );
  assert.deepEqual(Object.keys(await contents(join(scratch, 'out'))), [SEARCH_JOURNAL]);
});

/** The numbers of decisions that a search went on with. */
const resumedWith = (output: string) =>
  [...output.matchAll(/"decisions":(\d+)/g)].map(([, decisions]) => Number(decisions));

test('a quantizer that was stopped or killed goes on where it was, and writes the same bytes', async () => {
  // So many candidates that it is still at work when its first decisions are written.
  const search = { ...config().search, rounds: 2, candidates: 2000 };
  await runQuantize(config({ search }), program());
  const whole = await contents(join(scratch, 'out'));
  assert.deepEqual(Object.keys(whole), FILES);

  const outputDirectory = join(scratch, 'resumed');
  const change = { search, outputDirectory };
  const journal = join(outputDirectory, SEARCH_JOURNAL);
  const decisions = async () => Math.max(0, (await readFile(journal, 'utf8').catch(() => '')).split('\n').length - 2);
  for (const [signal, ended] of [
    ['SIGKILL', [null, 'SIGKILL']],
    ['SIGTERM', [128 + 15, null]],
  ] as const) {
    const before = await decisions();
    await writeFile(join(scratch, 'config.json'), JSON.stringify(config(change)));
    const child = spawn(process.execPath, [join(import.meta.dirname, '..', 'main.ts'), 'quantize'], {
      env: { ...process.env, FACETRAIN_CONFIG: join(scratch, 'config.json') },
      stdio: 'ignore',
    });
    const exit = once(child, 'exit');
    const end = Date.now() + 120_000;
    while ((await decisions()) < before + 2 && child.exitCode === null && Date.now() < end) await delay(5);
    child.kill(signal);
    assert.deepEqual(await exit, ended, 'it was at work');
    assert.deepEqual(Object.keys(await contents(outputDirectory)), [SEARCH_JOURNAL]);
    assert.ok((await decisions()) >= before + 2);
  }
  const kept = await decisions();
  // A line that was cut off counts as not written, and so does the line behind it.
  await appendFile(journal, '[0.5,0.');
  const { status, output } = await runProgram(change);
  assert.equal(status, ExitCode.success, output);
  assert.deepEqual(resumedWith(output), [kept]);
  assert.deepEqual(await contents(outputDirectory), whole);
});

test('a quantizer that cannot publish does not search again, in the same pod or in another', async () => {
  const publish = server.address('s3://models/late');
  for (const [name, gate] of Object.entries({
    artifact: config().gate,
    reports: { maxAccuracyDrop: null, minMeanCosine: 1 },
  })) {
    const out = join(scratch, name);
    const change = { publish, gate, outputDirectory: out };
    const other = { ...change, outputDirectory: join(scratch, `${name} in another pod`) };
    const controller = new AbortController();
    const stopped = program(controller.signal);
    const { update } = stopped.progress;
    stopped.progress.update = (progress) => {
      update(progress);
      if (progress.stage === 'Publishing') controller.abort('SIGTERM');
    };
    await assert.rejects(runQuantize(config(change), stopped), { name: 'AbortError' });
    assert.ok(Object.keys(await contents(out)).includes(SEARCH_JOURNAL), name);

    const found: string[] = [];
    const log = pino({ level: 'info' }, { write: (line: string) => found.push(line) });
    const inStore = server.address(`${publish.uri}/${SEARCH_JOURNAL}`);
    await fetchTo({ ...inStore, to: join(scratch, `${name}.journal`) });
    for (const folders of [other, change]) {
      const again = runQuantize(config(folders), { ...program(), log });
      if (name === 'artifact') await again;
      else await assert.rejects(again, { code: 'GateFailed' });
      assert.ok(!Object.keys(await contents(folders.outputDirectory)).includes(SEARCH_JOURNAL), name);
    }
    assert.equal(resumedWith(found.join('')).length, 2, name);
    await assert.rejects(fetchTo({ ...inStore, to: join(scratch, 'left') }), { code: 'StorageFailed' });
  }
});

test('decisions of another search are not used', async () => {
  const { signal } = new AbortController();
  const found: string[] = [];
  const logged = { ...program(signal), log: pino({ level: 'info' }, { write: (line: string) => found.push(line) }) };
  const out = join(scratch, 'out');
  await mkdir(out);
  // Both would end a search that reads them: the key is of no search.
  await writeFile(join(out, SEARCH_JOURNAL), `${JSON.stringify({ key: 'other' })}\n[1]\n`);
  await runQuantize(config(), logged);
  assert.deepEqual(resumedWith(found.join('')), []);
  assert.deepEqual(Object.keys(await contents(out)), FILES);
});

test('an older quantizer that wakes after a newer one has begun changes nothing, and says why it ends', async () => {
  const out = join(scratch, 'out');
  const moments: Record<string, (operation: Operation) => boolean> = {
    'before it deletes the manifest': ({ name, args }) => name === 'rename' && args[0] === join(out, 'manifest.json'),
    'before its model gets its name': ({ name, args }) => name === 'rename' && args[1] === join(out, 'model.int7.onnx'),
    'before its manifest gets its name': ({ name, args }) =>
      name === 'rename' && args[1] === join(out, 'manifest.json'),
  };
  for (const [name, moment] of Object.entries(moments)) {
    await runQuantize(config(), program());
    const old = new SimulatedProcess('frozen', moment);
    const publish = server.address('s3://models/old');
    const { reached, ended } = await old.run(() =>
      runQuantize(config({ publish, calibration: { ...config().calibration, seed: 4 } }), program()),
    );
    assert(reached, name);
    // Another job, as the same one with a higher attempt would have the same.
    await runQuantize(config({ job: { name: 'newer', uid: 'newer', attempt: 0 } }), program());
    const before = await contents(out);
    old.wake();
    await assert.rejects(ended, (error) => {
      assert(error instanceof FacetrainError && error.exitCode === ExitCode.fencedOff, `${name}: ${String(error)}`);
      assert.match(error.message, /attempt 0 of job newer \(uid newer\) took it over/);
      return true;
    });
    assert.deepEqual(await contents(out), before, name);
    // What it has decided is for the next that publishes there.
    assert.deepEqual(await readdir(join(server.folder, 'models', 'old')), [SEARCH_JOURNAL], name);
    await rm(out, { recursive: true });
  }
});

test('a model with external data comes from a prefix of an object store', async () => {
  const { model, data } = splitModel(await readFile(join(inputs, 'model.onnx')), 'model.onnx.data');
  await mkdir(join(server.folder, 'models/source'), { recursive: true });
  await writeFile(join(server.folder, 'models/source/model.onnx'), model);
  await writeFile(join(server.folder, 'models/source/model.onnx.data'), data);
  const path = join(scratch, 'fetched');
  await fetchTo({ ...server.address('s3://models/source'), to: path });
  const { model: source } = config();
  const { metrics } = await runQuantize(config({ model: { ...source, path } }), program());
  const whole = await runQuantize(config({ outputDirectory: join(scratch, 'whole') }), program());
  assert.deepEqual(metrics, whole.metrics);
});

test('bad calibration pictures are left out within the budget', async () => {
  const damaged = join(scratch, 'damaged');
  const records = [0, 1, 2, 3, 4].map((i) => ({ label: i % 2, jpeg: shippedJpeg(i) }));
  writeDataset(damaged, '2,112,112', [...records, { label: 1, jpeg: Buffer.from('GIF89a') }]);
  const calibration = { datasetPath: damaged, images: 6, seed: 3 };
  const report = await runQuantize(config({ calibration: { ...calibration, maxBadPictures: 0.001 } }), program());
  assert.equal(report.calibration.images, 5);
  const { code, message } = await failure({ calibration: { ...calibration, maxBadPictures: 0 } });
  assert.equal(code, 'InvalidDataset');
  assert.match(message, /damaged: 1 bad picture \(.*record 5 .*: is a GIF\); at most 0 of 6/);
});

test('a model is refused that needs more memory than there is, also without verification sets', async (t) => {
  const b = new GraphBuilder({ height: 112, width: 112 });
  const wide = b.node('Conv', ['data', b.values([4096, 3, 1, 1])], { pads: [100, 100, 100, 100] });
  const path = join(scratch, 'wide.onnx');
  await writeFile(path, encodeOnnx(b.graph(b.gemm(b.flatten(b.node('GlobalAveragePool', [wide])), 4096, 8))));
  t.mock.method(process, 'availableMemory', () => 8 * 2 ** 30);
  const { code, message } = await failure({
    model: { path, channelOrder: 'rgb', input: null },
    evaluation: { sets: [] },
    gate: { maxAccuracyDrop: null, minMeanCosine: null },
  });
  assert.equal(code, 'InsufficientMemory');
  assert.match(message, /wide\.onnx: node "Conv_0" \(Conv\): embedding 32 pictures needs 47\.5 GiB/);
});

test('calibration pictures of another size than the model’s input are stretched, if that is asked for', async () => {
  const b = new GraphBuilder({ height: 40, width: 64 });
  const path = join(scratch, 'wide.onnx');
  await writeFile(path, encodeOnnx(b.graph(b.flatten(b.prelu(b.conv('data', 3, 4, 8, { stride: 8 }), 4)))));
  const change = {
    ...{ model: { path, channelOrder: 'rgb' as const, input: null }, evaluation: { sets: [] } },
    calibration: { ...config().calibration, resize: true as const },
  };
  const { calibration, metrics } = await runQuantize(config(change), program());
  assert.equal(calibration.images, 6);
  assert.ok(metrics.meanCosine > 0.95, `${metrics.meanCosine}`);
  assert.equal(typeof metrics.top1Agreement, 'number');
});

describe('refused before any work', () => {
  const cases: Record<string, { change: () => Promise<Partial<QuantizeConfig>>; code: string; expected: RegExp }> = {
    'no model': {
      change: async () => ({ model: { path: join(inputs, 'absent.onnx'), channelOrder: 'rgb', input: null } }),
      code: 'StorageFailed',
      expected: /absent\.onnx: no such file; /,
    },
    'weights that are no numbers': {
      change: async () => ({
        model: {
          path: await writeModel('nan.onnx', (graph) => {
            graph.initializers['Conv_0.1']!.data[5] = NaN;
          }),
          channelOrder: 'rgb',
          input: null,
        },
      }),
      code: 'InvalidModel',
      expected: /nan\.onnx: tensor "Conv_0\.1" holds NaN at index 5; /,
    },
    'an operator that is unknown': {
      change: async () => ({
        model: {
          path: await writeModel('mystery.onnx', (graph) => {
            Object.assign(graph.nodes.find(({ op }) => op === 'PRelu')!, {
              op: 'Mystery',
              inputs: ['BatchNormalization_1:0'],
            });
          }),
          channelOrder: 'rgb',
          input: null,
        },
      }),
      code: 'UnsupportedOperator',
      expected: /mystery\.onnx: node ["']PRelu_2["'] \(Mystery\): operator Mystery is not supported, and node "Conv/,
    },
    'values that overflow in a layer': {
      change: async () => ({
        model: {
          path: await writeModel('overflow.onnx', (graph) => {
            for (const name of ['Conv_0.1', 'Conv_4.1', 'Conv_6.1']) scale(graph, name, 1e12);
          }),
          channelOrder: 'rgb',
          input: null,
        },
      }),
      code: 'InvalidModel',
      expected: /overflow\.onnx: node 'Conv_4' \(Conv\) gives values of up to \d\.\de\+2\d; values below 1e\+13: /,
    },
    'values that are not finite in a layer': {
      change: async () => ({
        model: {
          path: await writeModel('infinite.onnx', (graph) => {
            for (const name of ['Conv_0.1', 'Conv_4.1', 'Conv_6.1']) scale(graph, name, 1e30);
          }),
          channelOrder: 'rgb',
          input: null,
        },
      }),
      code: 'InvalidModel',
      expected: /infinite\.onnx: node 'Conv_0' \(Conv\) gives values of up to \d\.\de\+\d\d; /,
    },
    'the same embedding for each picture': {
      change: async () => ({
        model: {
          path: await writeModel('constant.onnx', (graph) => scale(graph, 'Conv_0.1', 0)),
          channelOrder: 'rgb',
          input: null,
        },
      }),
      code: 'InvalidModel',
      expected:
        /constant\.onnx: .* nearly the same \(.*1\.0000\); the output of node 'Conv_0' \(Conv\) .* is 0 everywhere; /,
    },
    'an embedding of zeros': {
      change: async () => ({
        model: {
          path: await writeModel('zeros.onnx', (graph) => {
            const { inputs } = graph.nodes.find(({ op }) => op === 'Gemm')!;
            for (const name of inputs.slice(1)) scale(graph, name, 0);
          }),
          channelOrder: 'rgb',
          input: null,
        },
      }),
      code: 'InvalidModel',
      expected:
        /zeros\.onnx: the output of node 'Gemm_\d+' \(Gemm\) does not depend on the picture: it is 0 everywhere; /,
    },
    'an overflow behind which values are small again': {
      change: () =>
        withBranch('recovers.onnx', (b, stem) => {
          // Everything is -Infinity where the stem is positive, and 0 behind the Relu.
          const huge = b.node('Mul', [b.node('Mul', [stem, all(b, -1e30)]), all(b, 1e30)]);
          return b.node('Relu', [huge]);
        }),
      code: 'InvalidModel',
      expected: /recovers\.onnx: node 'Mul_3' \(Mul\) gives values of up to \d\.\de\+3\d; /,
    },
    'infinity behind which values are small again': {
      change: () =>
        withBranch('recovers.onnx', (b, stem) =>
          b.node('Relu', [
            b.batchNorm(b.node('Mul', [b.node('Relu', [stem]), b.values([8, 1, 1], -3.4e38, -3.3e38)]), 8),
          ]),
        ),
      code: 'NotANumber',
      expected: /recovers\.onnx: node 'Mul_4' \(Mul\) gives values that are not finite \(\d+ of 9408\); /,
    },
    'a branch whose Relu is never positive': {
      change: () => withBranch('dead.onnx', (b, stem) => b.node('Relu', [b.node('Sub', [stem, all(b, 1e6)])])),
      code: 'InvalidModel',
      expected: /dead\.onnx: the output of node 'Relu_4' \(Relu\) does not depend on the picture: it is 0 everywhere; /,
    },
    'a dataset without pictures': {
      change: async () => {
        writeSmallDataset(join(scratch, 'empty'), { identities: 4, perIdentity: 0 });
        return { calibration: { datasetPath: join(scratch, 'empty'), images: 6, seed: 0, maxBadPictures: 0 } };
      },
      code: 'InvalidDataset',
      expected: /empty/,
    },
    'a bound on accuracy without a set': {
      change: async () => ({ evaluation: { sets: [] }, gate: { maxAccuracyDrop: 0.01, minMeanCosine: null } }),
      code: 'InvalidConfig',
      expected: /^gate\.maxAccuracyDrop: 0\.01 without any evaluation set; /,
    },
    'a bound on true accept rates for sets with too few pairs': {
      change: async () => {
        await writeSmallSet(join(inputs, 'few.bin'), 5);
        return {
          evaluation: { sets: [{ name: 'few', path: join(inputs, 'few.bin') }] },
          gate: { maxAccuracyDrop: null, minMeanCosine: null, maxTarDrop: 0.1 },
        };
      },
      code: 'InvalidConfig',
      expected: /^gate\.maxTarDrop: no evaluation set has more than \d pairs of different people; /,
    },
    'a bound on groups for sets without any': {
      change: async () => {
        const path = await writeSmallSet(join(inputs, 'few.bin'), 5);
        return {
          evaluation: { sets: [{ name: 'few', path }] },
          gate: { maxAccuracyDrop: null, minMeanCosine: null, maxGroupAccuracyDrop: 0.1 },
        };
      },
      code: 'InvalidConfig',
      expected: /^gate\.maxGroupAccuracyDrop: no evaluation set has groups; /,
    },
    'a bound on groups that are too small': {
      change: async () => {
        const path = await writeSmallSet(join(inputs, 'few.bin'), 5);
        await writeFile(join(inputs, 'groups.txt'), 'old\n'.repeat(4) + 'young\n'.repeat(6));
        return {
          evaluation: { sets: [{ name: 'few', path, groups: join(inputs, 'groups.txt') }] },
          gate: { maxAccuracyDrop: null, minMeanCosine: null, maxGroupAccuracyDrop: 0.1 },
        };
      },
      code: 'InvalidConfig',
      expected: /^gate\.maxGroupAccuracyDrop: no group has more than 6 pairs; .* with 10 pairs or more for 0\.1; /,
    },
    'a bound on true accept rates of groups with too few pairs of one person': {
      change: async () => {
        const path = await writeSmallSet(join(inputs, 'few.bin'), 15);
        await writeFile(join(inputs, 'groups.txt'), 'old\nyoung\n'.repeat(15));
        return {
          evaluation: { sets: [{ name: 'few', path, groups: join(inputs, 'groups.txt') }] },
          gate: { maxAccuracyDrop: null, minMeanCosine: null, maxGroupTarDrop: 0.05 },
        };
      },
      code: 'InvalidConfig',
      expected:
        /^gate\.maxGroupTarDrop: no group has more than \d+ pairs of one person; .* with 20 pairs of one person/,
    },
    'groups of another set': {
      change: async () => {
        const path = await writeSmallSet(join(inputs, 'few.bin'), 5);
        await writeFile(join(inputs, 'groups.txt'), 'old\n');
        return { evaluation: { sets: [{ name: 'few', path, groups: join(inputs, 'groups.txt') }] } };
      },
      code: 'InvalidVerificationSet',
      expected: /groups\.txt: 1 line; a text file with a line for each of the 10 pairs/,
    },
    'a set that is missing': {
      change: async () => ({ evaluation: { sets: [{ name: 'gone', path: join(inputs, 'gone.bin') }] } }),
      code: 'InvalidVerificationSet',
      expected: /gone\.bin: /,
    },
    'a bucket that is missing': {
      change: async () => ({ publish: server.address('s3://nowhere/x') }),
      code: 'StorageFailed',
      expected: /bucket "nowhere" does not exist/,
    },
    'an output folder that is a file': {
      change: async () => {
        await writeFile(join(scratch, 'out'), '');
        return {};
      },
      code: 'StorageFailed',
      expected: /out: is a file; a folder, or a name that is free$/,
    },
    'an output folder that the system will not make': {
      change: async () => ({ outputDirectory: '/proc/facetrain/out' }),
      code: 'StorageFailed',
      expected: /^\/proc\/facetrain\/out: no such file or directory \(ENOENT\)/,
    },
    'a model that is quantized already': {
      change: async () => {
        const b = new GraphBuilder();
        const graph = b.graph(b.flatten(b.conv('data', 3, 4, 112)));
        await writeFile(join(inputs, 'int7.onnx'), encodeOnnx(graph, { metadata: { 'facetrain.format': 'int7' } }));
        return { model: { path: join(inputs, 'int7.onnx'), channelOrder: 'rgb', input: null } };
      },
      code: 'InvalidModel',
      expected: /int7\.onnx: is quantized already; the FP32 model, of which the report /,
    },
    'a model for other pictures': {
      change: async () => {
        const b = new GraphBuilder({ height: 64, width: 64 });
        await writeFile(
          join(inputs, 'small.onnx'),
          encodeOnnx(b.graph(b.flatten(b.conv('data', 3, 4, 8, { stride: 8 })))),
        );
        return { model: { path: join(inputs, 'small.onnx'), channelOrder: 'rgb', input: null } };
      },
      code: 'InvalidDataset',
      expected: /data: pictures of 112 x 112; the 64 x 64 of the model’s input, or calibration\.resize \(--resize\)/,
    },
    'stretched pictures with evaluation sets': {
      change: async () => ({ calibration: { ...config({}).calibration, resize: true } }),
      code: 'InvalidConfig',
      expected: /^calibration\.resize: true, and evaluation sets; /,
    },
  };
  for (const [name, { change, code, expected }] of Object.entries(cases)) {
    test(name, async () => {
      const error = await failure(await change());
      assert.equal(error.code, code, error.message);
      assert.match(error.message, expected);
      assert.equal(error.exitCode, ExitCode.refused);
      const left = await readdir(join(scratch, 'out')).catch(() => []);
      assert.deepEqual(left, []);
    });
  }
});

test('a node of which more than half is constant is a warning: trained networks have such', async () => {
  const half = await withBranch('half.onnx', (b, stem) => {
    const offsets = b.values([8, 1, 1]);
    offsets.data.set([0, 0, 0, 1e6, 1e6, 1e6, 1e6, 1e6]);
    return b.node('Relu', [b.node('Sub', [stem, offsets])]);
  });
  const running = program();
  const warnings: unknown[] = [];
  running.log.warn = ((text: unknown) => warnings.push(text)) as typeof running.log.warn;
  await runQuantize(config({ ...half, gate: { maxAccuracyDrop: null, minMeanCosine: null } }), running);
  assert.equal(warnings.length, 1);
  assert.match(String(warnings[0]), /^5 of 8 channels of node 'Relu_4' \(Relu\) are constant: /);
});

test('files of other programs that have the names of an artifact’s are refused, and stay', async () => {
  const out = join(scratch, 'out');
  await mkdir(out);
  for (const [name, content] of [
    ['manifest.json', '{"name": "A web app", "icons": []}'],
    ['manifest.json', 'null'],
    ['manifest.json', 'not JSON'],
    ['report.json', '{"tests": 12}'],
    ['scales.json', '[1, 2]'],
  ] as const) {
    await writeFile(join(out, name), content);
    const error = await failure({});
    assert.deepEqual([error.code, error.exitCode], ['InvalidArtifact', ExitCode.refused]);
    assert.equal(error.subject, join(out, name));
    assert.deepEqual(await readdir(out), [name], 'nothing else is written');
    assert.equal(await readFile(join(out, name), 'utf8'), content);
    await rm(join(out, name));
  }
});

test('a quantizer ends with its error while a file operation hangs', async () => {
  const fifo = join(scratch, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const missing = { path: join(scratch, 'missing.onnx'), channelOrder: 'rgb', input: null } as const;
  const { status, message, output } = await runProgram(
    { model: missing },
    {
      NODE_OPTIONS: `--import ${join(import.meta.dirname, '..', 'testing', 'hanging-storage.ts')}`,
      FACETRAIN_TEST_FIFO: fifo,
    },
  );
  assert.equal(status, ExitCode.refused, output);
  assert.match(message, /missing\.onnx/);
});

test('a full disk is an error with the path, and no file is half-written', async () => {
  const disk = join(scratch, 'disk');
  await mkdir(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=32k', 'tmpfs', disk]);
  try {
    const error = await failure({ outputDirectory: join(disk, 'out') });
    assert.equal(error.code, 'DiskFull');
    assert.equal(error.subject, join(disk, 'out', 'model.int7.onnx'));
    // The search stays: the next quantizer needs the room alone.
    assert.deepEqual(Object.keys(await contents(join(disk, 'out'))), [SEARCH_JOURNAL]);
    const fence = join(disk, 'out', 'fences', '0000000001');
    const [start, ...others] = (await readdir(fence)).filter((name) => name !== 'owner.json');
    assert.deepEqual([await readdir(join(fence, start!)), others], [[], []]);
  } finally {
    execFileSync('umount', [disk]);
  }
});
