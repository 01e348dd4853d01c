/** Training with real processes: ranks over Gloo on the loopback, on a few faces. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  CHECKPOINT_EVALUATIONS,
  CheckpointManifest,
  ExitCode,
  Progress,
  TerminationMessage,
  TerminationResult,
  type TrainerConfig,
  TrainReport,
} from '@facetrain/api';
import { capabilities, Model } from '@facetrain/native';
import { checkpointDirectory, completeSteps, openCheckpoint } from '../checkpoint/directory.ts';
import { readEvaluations } from '../checkpoint/evaluations.ts';
import { Safetensors } from '../checkpoint/safetensors.ts';
import { readOnnx } from '../onnx/read.ts';
import { digestFile } from '../storage/digest.ts';
import {
  killRanks,
  port,
  type Rank,
  readReport,
  runGang,
  startGang,
  steps,
  trainerConfig,
  until,
  writeSmallDataset,
  writeSmallSet,
} from '../testing/training-gang.ts';
import { evaluateSet } from '../verification/evaluate-set.ts';
import { verify, verifyGroups } from '../verification/protocol.ts';
import { readVerificationSet } from '../verification/verification-set.ts';

afterEach(killRanks);
const top = await mkdtemp(join(tmpdir(), 'train-'));
after(() => rm(top, { recursive: true }));

const IDENTITIES = 7;
const BATCH = 6;
const EPOCHS = 3;
const STEPS_PER_EPOCH = Math.floor((IDENTITIES * 3) / BATCH);
const STEPS = EPOCHS * STEPS_PER_EPOCH;
const data = join(top, 'data');
const set = join(top, 'pairs.bin');
/** The group of each of its pairs. */
const groups = join(top, 'groups.txt');

/** A new folder with the configuration of a job. */
async function job(
  change: (config: TrainerConfig) => Partial<TrainerConfig> = () => ({}),
): Promise<{ folder: string; config: TrainerConfig }> {
  const folder = await mkdtemp(join(top, 'job-'));
  const config = trainerConfig(folder, {
    dataset: { path: data, maxBadPictures: 0.001 },
    globalBatchSize: BATCH,
    epochs: EPOCHS,
  });
  return { folder, config: { ...config, ...change(config) } };
}

const model = (config: TrainerConfig) => readFile(join(config.outputDirectory, 'model/backbone.onnx'));

function failure(rank: Rank): Record<string, unknown> {
  const line = rank.lines.findLast(({ level }) => level === 'error' || level === 'fatal');
  assert(line, `the rank reported no error:\n${rank.text}`);
  return line;
}

/**
 * Asserts that a report has the curves of the training that was not interrupted.
 * @param attempts the attempts with the steps done before
 */
async function assertWhole(config: TrainerConfig, attempts?: [attempt: number, fromStep: number][]): Promise<void> {
  const [report, uninterrupted] = [await readReport(config), await readReport(whole.config)].map((read) =>
    TrainReport.parse(read),
  );
  const curves = ({ history }: TrainReport) =>
    history.map(({ step, steps, epoch, loss, learningRate, sampleRate }) => ({
      ...{ step, steps, epoch, loss, learningRate, sampleRate },
    }));
  assert.deepEqual(curves(report!), curves(uninterrupted!));
  const evaluations = ({ evaluations: all }: TrainReport) =>
    all.map(({ set, step, accuracy, std, threshold, pairs, tarAtFar }) => ({
      ...{ set, step, accuracy, std, threshold, pairs, tarAtFar },
    }));
  if (config.evaluation.sets.length > 0) assert.deepEqual(evaluations(report!), evaluations(uninterrupted!));
  if (attempts)
    assert.deepEqual(
      report!.attempts!.map(({ attempt, fromStep }) => [attempt, fromStep]),
      attempts,
    );
}

/** The bytes of the one event file of a job, of which tags can be read. */
async function events({ outputDirectory }: TrainerConfig): Promise<string> {
  const folder = join(outputDirectory, 'tensorboard');
  const [name, ...others] = await readdir(folder);
  assert.deepEqual(others, []);
  return readFile(join(folder, name!), 'latin1');
}

/** NODE_OPTIONS with which every rank first runs a file of testing/. */
const preload = (name: string) => `--import ${join(import.meta.dirname, '..', 'testing', name)}`;

/** Of the job below: the newest two, and the one that was written because an evaluation judged it. */
const KEPT = [STEPS, 8, 2 * STEPS_PER_EPOCH];

/** A job of two ranks without interruption; other tests compare with it. */
const whole = await job((config) => ({
  evaluation: { sets: [{ name: 'pairs', path: set, groups }], everyEpochs: 2, everySteps: null },
  checkpoint: { ...config.checkpoint, everySteps: 4, keep: 2, keepBest: 1 },
}));

before(async () => {
  writeSmallDataset(data, { identities: IDENTITIES, perIdentity: 3 });
  await writeSmallSet(set, 5);
  await writeFile(groups, 'old\n'.repeat(4) + 'young\n'.repeat(6));
  const { codes, ranks } = await runGang(whole.folder, whole.config, 2);
  assert.deepEqual(codes, [0, 0], ranks.map(({ text }) => text).join('\n'));
});

test('a job ends with a model, reports and its newest checkpoints', async () => {
  const report = TrainReport.parse(await readReport(whole.config));
  assert.deepEqual(
    [report.steps, report.trainers, report.resumedFromStep, report.dataset.images],
    [STEPS, 2, null, IDENTITIES * 3],
  );
  assert.equal(report.history.length, STEPS);
  // Other negatives from the middle of the second epoch on.
  assert.deepEqual(
    report.history.map(({ sampleRate }) => sampleRate),
    report.history.map(({ step }) => (step <= Math.round(1.5 * STEPS_PER_EPOCH) ? 0.5 : 1)),
  );
  assert.equal(report.lossFirst, report.history[0]!.loss);
  const stepSeconds = Object.values(report.stageSeconds!).reduce((sum, seconds) => sum + seconds);
  assert(stepSeconds > 0 && STEPS * (stepSeconds - 1e-5) <= report.trainSeconds, `${stepSeconds} s in stages`);
  assert.deepEqual(
    report.evaluations.map((result) => [result.set, result.step]),
    [
      ['pairs', 2 * STEPS_PER_EPOCH],
      ['pairs', STEPS],
    ],
  );
  assert.deepEqual(report.config, whole.config);
  assert.deepEqual(
    (await readEvaluations(whole.config.checkpoint.directory)).map(({ step, sets }) => [step, sets]),
    report.evaluations.map(({ step, accuracy, std, threshold, pairs, tarAtFar }) => [
      step,
      [{ set: 'pairs', accuracy, std, threshold, pairs, tarAtFar }],
    ]),
  );
  assert.equal(report.model.bytes, (await model(whole.config)).length);
  assert.deepEqual(await completeSteps(whole.config.checkpoint.directory), KEPT);
  assert.deepEqual((await readdir(whole.config.checkpoint.directory)).sort(), [
    'evaluations.json',
    'fences',
    'step-0000000006',
    'step-0000000008',
    'step-0000000009',
  ]);
  assert.deepEqual((await readdir(whole.config.outputDirectory)).sort(), [
    'fences',
    'model',
    'tensorboard',
    'train-report.html',
    'train-report.json',
  ]);
});

test('a checkpoint whose evaluation was cut off is evaluated before training goes on', async () => {
  const step = 2 * STEPS_PER_EPOCH;
  const [want] = await readEvaluations(whole.config.checkpoint.directory);
  assert.equal(want!.step, step);
  for (const wasEvaluated of [false, true]) {
    const { folder, config } = await job(({ checkpoint }) => ({
      evaluation: whole.config.evaluation,
      checkpoint: { ...whole.config.checkpoint, directory: checkpoint.directory },
    }));
    const { directory } = config.checkpoint;
    await cp(checkpointDirectory(whole.config.checkpoint.directory, step), checkpointDirectory(directory, step), {
      recursive: true,
    });
    // Else that of a training of the same name which was there before.
    const noted = { ...want, ...(!wasEvaluated && { time: new Date(0).toISOString() }) };
    const evaluations = { schemaVersion: 1, evaluations: [noted] };
    await writeFile(join(directory, CHECKPOINT_EVALUATIONS), JSON.stringify(evaluations));
    const { codes, ranks } = await runGang(folder, config, 2);
    assert.deepEqual(codes, [0, 0], ranks[0]!.text);
    const evaluated = ranks[0]!.lines.filter(({ msg }) => msg === 'evaluated').map((line) => line.step);
    assert.deepEqual(evaluated, wasEvaluated ? [STEPS] : [step, STEPS]);
    await assertWhole(config);
    assert.deepEqual((await readEvaluations(directory))[0], want);
    assert.deepEqual(await model(config), await model(whole.config));
  }
});

test('the exported model is the function that was evaluated', async () => {
  const { graph } = await readOnnx(join(whole.config.outputDirectory, 'model/backbone.onnx'));
  assert.deepEqual([graph.input.name, graph.output.name, graph.output.dim], ['data', 'embedding', 32]);
  const exported = await Model.open(graph, { computeThreads: 1 });
  const pairs = await readVerificationSet(set);
  const embeddings = await evaluateSet(exported, pairs, { input: graph.input, channelOrder: 'rgb', flip: true });
  await exported.close();
  const newest = (await readReport(whole.config)).evaluations.at(-1)!;
  const { accuracy, std, threshold, tarAtFar } = newest;
  const measured = verify(embeddings, 32, pairs.same);
  const groupOf = pairs.same.map((_, pair) => (pair < 4 ? 'old' : 'young'));
  assert.deepEqual(verifyGroups(embeddings, 32, pairs.same, groupOf, measured.threshold), newest.groups);
  assert.deepEqual(
    [measured.accuracy, measured.std, measured.threshold, measured.tarAtFar],
    [accuracy, std, threshold, tarAtFar],
  );
});

test('SIGTERM on one rank: all write a checkpoint and exit 143; the next attempt gives the same model', async () => {
  const { folder, config } = await job(({ evaluation }) => ({ evaluation }));
  const left = join(folder, 'termination.json');
  // Both ranks have the same file: rank 1 must not overwrite what rank 0 wrote.
  const ranks = await startGang(folder, config, 2, { FACETRAIN_TERMINATION_MESSAGE: left });
  await steps(ranks[0]!, 2);
  ranks[1]!.kill('SIGTERM');
  assert.deepEqual(
    await Promise.all(ranks.map(({ ended }) => ended)),
    [143, 143],
    ranks.map(({ text }) => text).join('\n'),
  );
  const [saved] = await completeSteps(config.checkpoint.directory);
  const { progress } = TerminationResult.parse(JSON.parse(await readFile(left, 'utf8')));
  assert.deepEqual([progress!.step, progress!.checkpoint!.step], [saved, saved]);
  assert(saved !== undefined && saved >= 2 && saved < STEPS, `checkpoint of step ${saved}`);
  assert.deepEqual((await readdir(config.outputDirectory)).sort(), ['fences', 'tensorboard']);
  assert.equal((await events(config)).match(/train\/loss/g)?.length, saved);

  // An unfinished checkpoint of a former version is removed, and does no harm.
  await mkdir(checkpointDirectory(config.checkpoint.directory, saved + 1));
  const { codes } = await runGang(folder, { ...config, job: { ...config.job, attempt: 1 } }, 2);
  assert.deepEqual(codes, [0, 0]);
  const report = await readReport(config);
  assert.equal(report.resumedFromStep, saved);
  await assertWhole(config, [
    [0, 0],
    [1, saved],
  ]);
  const uninterrupted = await readReport(whole.config);
  assert.deepEqual([report.lossFirst, report.lossLast], [uninterrupted.lossFirst, uninterrupted.lossLast]);
  assert((await model(config)).equals(await model(whole.config)), 'another model');
  assert.deepEqual(await completeSteps(config.checkpoint.directory), [STEPS, saved]);
});

test('kill -9 at random moments: the peer exits 4, and the job ends with the same model, bit for bit', async () => {
  const { folder, config } = await job((base) => ({ checkpoint: { ...base.checkpoint, everySteps: 1 } }));
  for (let attempt = 0; attempt < 2; attempt++) {
    const ranks = await startGang(folder, config, 2);
    const victim = Math.random() < 0.5 ? 0 : 1;
    // The moments are from the middle of a step to the middle of a checkpoint's files.
    await Promise.all(ranks.map((rank) => rank.logged('meeting the other ranks')));
    const newest = async () => (await completeSteps(config.checkpoint.directory))[0] ?? 0;
    await until(async () => (await newest()) >= 1 + 3 * attempt);
    const moment = performance.now() + Math.random() * 100;
    await until(() => performance.now() > moment);
    ranks[victim]!.kill('SIGKILL');
    const codes = await Promise.all(ranks.map(({ ended }) => ended));
    // On a fast machine, training may have ended by then, and the other rank then ends without an error.
    if ((await newest()) < STEPS)
      assert.deepEqual(codes, victim === 0 ? [137, 4] : [4, 137], ranks.map(({ text }) => text).join('\n'));
  }
  const { codes } = await runGang(folder, config, 2);
  assert.deepEqual(codes, [0, 0]);
  const { resumedFromStep } = await readReport(config);
  assert(resumedFromStep! >= 4);
  await assertWhole(config);
  assert((await model(config)).equals(await model(whole.config)), 'another model');
});

/**
 * A gang of two that has a checkpoint. One rank stands still while the other is killed, and then started again.
 * @param frozen the rank that stands still
 */
async function frozenAndStartedAgain(frozen: 0 | 1): Promise<{ config: TrainerConfig; still: Rank; again: Rank }> {
  const { folder, config } = await job((base) => ({
    checkpoint: { ...base.checkpoint, everySteps: 1 },
    rendezvousTimeoutSeconds: 300,
  }));
  const ranks = await startGang(folder, config, 2);
  const [still, killed] = [ranks[frozen]!, ranks[1 - frozen]!];
  await until(async () => ((await completeSteps(config.checkpoint.directory))[0] ?? 0) >= 1);
  still.kill('SIGSTOP');
  await still.isFrozen();
  killed.kill('SIGKILL');
  assert.equal(await killed.ended, 137);
  return { config, still, again: killed.startAgain() };
}

/** The rank that stood still loses its peer, and both end after it has started again, too. */
async function endTogether({ still, again }: { still: Rank; again: Rank }): Promise<void> {
  still.kill('SIGCONT');
  assert.equal(await still.ended, ExitCode.peerLost, still.text);
  const stillAgain = still.startAgain();
  const codes = await Promise.all([stillAgain.ended, again.ended]);
  assert.deepEqual(codes, [0, 0], `${again.text}\n${stillAgain.text}`);
}

test('ranks that are started again in one attempt meet, also if one is back before the other has ended', async () => {
  const gang = await frozenAndStartedAgain(0);
  await gang.again.logged('meeting the other ranks', 300_000);
  await endTogether(gang);
  assert((await readReport(gang.config)).resumedFromStep! >= 1);
  assert((await model(gang.config)).equals(await model(whole.config)), 'another model');
});

test('a rank that finds rank 0 started again in its attempt has lost a peer, and is not fenced off', async () => {
  const gang = await frozenAndStartedAgain(1);
  await gang.again.logged('claimed the folders of checkpoints and output', 300_000);
  await endTogether(gang);
});

/** All class centres of a checkpoint, in row order. */
async function centres(config: TrainerConfig, step: number): Promise<Float32Array> {
  const { directory, manifest } = await openCheckpoint(config.checkpoint.directory, step);
  const parts: number[] = [];
  for (const { file } of CheckpointManifest.parse(manifest).rows.files) {
    await using opened = await Safetensors.open(join(directory, file));
    for (const name of opened.names) if (name.startsWith('weight/')) parts.push(...(await opened.read(name)));
  }
  return Float32Array.from(parts);
}

test('one rank and three ranks can resume from a checkpoint of two', async () => {
  for (const size of [1, 3]) {
    // One more epoch with a rate below a float's precision: centres that were loaded correctly do not change.
    const { folder, config } = await job(({ optimizer, schedule }) => ({
      epochs: EPOCHS + 1,
      optimizer: { ...optimizer, learningRate: 1e-30 },
      schedule: { ...schedule, type: 'constant' },
    }));
    await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
    const { codes, ranks } = await runGang(folder, config, size);
    assert.deepEqual(codes, Array(size).fill(0), ranks.map(({ text }) => text).join('\n'));
    assert.deepEqual([(await readReport(config)).resumedFromStep, (await readReport(config)).trainers], [STEPS, size]);
    const { manifest } = await openCheckpoint(config.checkpoint.directory, STEPS + STEPS_PER_EPOCH);
    assert.deepEqual([manifest.worldSize, CheckpointManifest.parse(manifest).rows.files.length], [size, size]);
    assert.deepEqual(await centres(config, STEPS + STEPS_PER_EPOCH), await centres(whole.config, STEPS));
  }
});

test('with micro-batches, a gang of 4, 3, 4, 2 and 4 ranks gives the model of one rank, bit for bit', async () => {
  const pictures = 8;
  // More steps than a gang takes between the moments at which it is looked at.
  const all = 2 * 4 * Math.floor((IDENTITIES * 3) / pictures) * EPOCHS;
  const change = ({ checkpoint }: TrainerConfig): Partial<TrainerConfig> => ({
    globalBatchSize: pictures,
    microBatchSize: 2,
    epochs: 2 * 4 * EPOCHS,
    checkpoint: { ...checkpoint, everySteps: all - 1 },
  });
  const steady = await job(change);
  assert.deepEqual((await runGang(steady.folder, steady.config, 1)).codes, [0]);
  const { folder, config } = await job(change);
  // Four micro-batches are divided as 1, 1, 1, 1, as 2, 1, 1 and as 2, 2; of the blocks of classes, most are empty.
  for (const [attempt, size] of [4, 3, 4, 2].entries()) {
    const ranks = await startGang(folder, { ...config, job: { ...config.job, attempt } }, size);
    await steps(ranks[0]!, 2 + 3 * attempt);
    ranks[1]!.kill('SIGTERM');
    const codes = await Promise.all(ranks.map(({ ended }) => ended));
    assert.deepEqual(codes, Array(size).fill(143), ranks.map(({ text }) => text).join('\n'));
  }
  const { codes } = await runGang(folder, { ...config, job: { ...config.job, attempt: 4 } }, 4);
  assert.deepEqual(codes, [0, 0, 0, 0]);
  const [alone, changed] = [await readReport(steady.config), await readReport(config)];
  assert(changed.resumedFromStep! >= 11 && changed.resumedFromStep! < all - 1);
  const losses = ({ history }: TrainReport) => history.map(({ step, loss }) => [step, loss]);
  assert.deepEqual(losses(changed), losses(alone));
  assert.deepEqual(
    changed.attempts!.map(({ attempt, trainers }) => [attempt, trainers]),
    [4, 3, 4, 2, 4].map((trainers, attempt) => [attempt, trainers]),
  );
  assert.deepEqual(await centres(config, all), await centres(steady.config, all));
  assert.deepEqual(await model(config), await model(steady.config));
});

test('a rank without class centres writes none, and resumes', async () => {
  const few = join(top, 'few');
  writeSmallDataset(few, { identities: 3, perIdentity: 4 });
  const change = ({ checkpoint }: TrainerConfig): Partial<TrainerConfig> => ({
    dataset: { path: few, maxBadPictures: 0.001 },
    microBatchSize: 2,
    checkpoint: { ...checkpoint, everySteps: 1 },
  });
  // Of the blocks of 3 classes, the first of three ranks has none.
  const [first, resumed] = [await job(change), await job(change)];
  const { codes, ranks } = await runGang(first.folder, first.config, 3);
  assert.deepEqual(codes, [0, 0, 0], ranks.map(({ text }) => text).join('\n'));
  const { manifest } = await openCheckpoint(first.config.checkpoint.directory, 1);
  assert.deepEqual([manifest.worldSize, CheckpointManifest.parse(manifest).rows.files.length], [3, 2]);
  await cp(
    checkpointDirectory(first.config.checkpoint.directory, 1),
    checkpointDirectory(resumed.config.checkpoint.directory, 1),
    { recursive: true },
  );
  const memoryDirectory = join(resumed.folder, 'memory');
  const again = { ...resumed.config, checkpoint: { ...resumed.config.checkpoint, memoryDirectory } };
  assert.deepEqual((await runGang(resumed.folder, again, 3)).codes, [0, 0, 0]);
  assert.equal((await readReport(again)).resumedFromStep, 1);
  assert.deepEqual(await model(again), await model(first.config));
});

/** Names and digests of all files of a job. */
async function written(config: TrainerConfig): Promise<string[]> {
  const folders = [config.checkpoint.directory, config.outputDirectory];
  const listed = await Promise.all(
    folders.map(async (folder) =>
      (await readdir(folder, { recursive: true, withFileTypes: true }))
        .filter((entry) => entry.isFile())
        .map(({ parentPath, name }) => join(parentPath, name)),
    ),
  );
  return Promise.all(
    listed
      .flat()
      .sort()
      .map(async (path) => `${path} ${(await digestFile(path)).sha256}`),
  );
}

test('steps go on while a checkpoint is written, and it is the one for which training waits', async () => {
  const written: CheckpointManifest[][] = [];
  for (const preloaded of ['slow-checkpoint-files.ts', 'no-memory-for-a-copy.ts']) {
    const inBackground = preloaded.startsWith('slow');
    const evaluation = { sets: inBackground ? [] : [{ name: 'pairs', path: set }], everyEpochs: null, everySteps: 4 };
    const { folder, config } = await job((base) => ({
      evaluation,
      checkpoint: { ...base.checkpoint, everySteps: 4 },
    }));
    // What is written before an evaluation needs no step after it.
    const preloads = [preloaded, ...(inBackground ? [] : ['complete-before-next-step.ts'])];
    const ranks = await startGang(folder, config, 2, {
      NODE_OPTIONS: preloads.map(preload).join(' '),
      FACETRAIN_TEST_CHECKPOINTS: config.checkpoint.directory,
      FACETRAIN_TEST_CHECKPOINT_EVERY: '4',
    });
    const codes = await Promise.all(ranks.map(({ ended }) => ended));
    assert.deepEqual(codes, [0, 0], ranks.map(({ text }) => text).join('\n'));
    assert((await model(config)).equals(await model(whole.config)), 'another model');

    const lines = ranks[0]!.lines.filter(({ msg }) => msg === 'checkpoint written');
    assert.deepEqual(
      lines.map(({ step }) => step),
      [4, 8, STEPS],
    );
    if (inBackground) assert(Number(lines[0]!.whileAtStep) > 4, JSON.stringify(lines));
    const { checkpoints } = await readReport(config);
    assert.deepEqual([checkpoints!.count, checkpoints!.whileTrainingWaited], [3, inBackground ? 0 : 3]);
    assert(checkpoints!.stallSeconds > 0);
    for (const rank of ranks)
      assert.equal(rank.lines.filter(({ msg }) => /no memory for a copy/.test(msg)).length, inBackground ? 0 : 1);

    const { directory } = config.checkpoint;
    const manifests = [4, 8, STEPS].map(async (step) =>
      CheckpointManifest.parse((await openCheckpoint(directory, step)).manifest),
    );
    written.push(await Promise.all(manifests));
  }
  const [background, waited] = written.map((manifests) =>
    manifests.map(({ history, curves, ...manifest }) => ({
      ...{ ...manifest, time: '' },
      history: { ...history, trainSeconds: 0, stages: null },
      losses: curves!.intervals.map(({ step, loss }) => [step, loss]),
    })),
  );
  assert.deepEqual(background, waited);
});

test('a rank that is killed while it writes in the background goes back to the checkpoint before', async () => {
  const { folder, config } = await job((base) => ({ checkpoint: { ...base.checkpoint, everySteps: 4 } }));
  const env = { NODE_OPTIONS: preload('slow-checkpoint-files.ts'), FACETRAIN_TEST_KILL: '1/8' };
  const ranks = await startGang(folder, config, 2, env);
  const codes = await Promise.all(ranks.map(({ ended }) => ended));
  assert.deepEqual(codes, [ExitCode.peerLost, 137], ranks.map(({ text }) => text).join('\n'));
  assert.deepEqual(await completeSteps(config.checkpoint.directory), [4]);
  assert.deepEqual((await runGang(folder, config, 2)).codes, [0, 0]);
  assert.equal((await readReport(config)).resumedFromStep, 4);
  assert((await model(config)).equals(await model(whole.config)), 'another model');
});

test('a gang that is frozen within a checkpoint, and wakes when the next one has ended, changes nothing', async () => {
  const { folder, config } = await job((base) => ({
    checkpoint: { ...base.checkpoint, everySteps: 1 },
    evaluation: whole.config.evaluation,
  }));
  const left = join(folder, 'termination.json');
  const old = await startGang(folder, config, 2, {
    FACETRAIN_TERMINATION_MESSAGE: left,
    NODE_OPTIONS: preload('freeze-before-checkpoint.ts'),
  });
  await old[0]!.isFrozen();
  old[1]!.kill('SIGSTOP');
  await old[1]!.isFrozen();
  assert.deepEqual(await completeSteps(config.checkpoint.directory), [1]);

  const next = { ...config, job: { ...config.job, attempt: 1 } };
  const { codes, ranks } = await runGang(folder, next, 2);
  assert.deepEqual(codes, [0, 0], ranks.map(({ text }) => text).join('\n'));
  assert((await model(config)).equals(await model(whole.config)), 'another model');
  const before = await written(config);
  for (const rank of old) rank.kill('SIGCONT');
  assert.deepEqual(
    await Promise.all(old.map(({ ended }) => ended)),
    [ExitCode.fencedOff, ExitCode.fencedOff],
    old.map(({ text }) => text).join('\n'),
  );
  for (const rank of old) {
    assert.equal(failure(rank).code, 'FencedOff');
    assert.match(String(failure(rank).msg), /attempt 1 of job small \(uid uid\) took it over at/);
  }
  assert.equal(TerminationMessage.parse(JSON.parse(await readFile(left, 'utf8'))).code, 'FencedOff');
  assert.deepEqual(await written(config), before);

  // It cannot come back either.
  const again = await runGang(folder, config, 1);
  assert.deepEqual(again.codes, [ExitCode.fencedOff], again.ranks[0]!.text);
  assert.deepEqual(await written(config), before);
});

test('a damaged newest checkpoint is set aside on all ranks, and the one before it gives the same model', async () => {
  const { folder, config } = await job();
  await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
  // Rank 0 does not read this file.
  const { directory, manifest } = await openCheckpoint(config.checkpoint.directory, STEPS);
  const path = join(directory, CheckpointManifest.parse(manifest).rows.files[1]!.file);
  const bytes = await readFile(path);
  bytes[bytes.length - 1]! ^= 1;
  await writeFile(path, bytes);
  const left = join(folder, 'termination.json');
  const ranks = await startGang(folder, config, 2, { FACETRAIN_TERMINATION_MESSAGE: left });
  assert.deepEqual(
    await Promise.all(ranks.map(({ ended }) => ended)),
    [0, 0],
    ranks.map(({ text }) => text).join('\n'),
  );
  assert.equal((await readReport(config)).resumedFromStep, 8);
  assert((await model(config)).equals(await model(whole.config)), 'another model');
  const { progress } = TerminationResult.parse(JSON.parse(await readFile(left, 'utf8')));
  assert.deepEqual(
    progress!.setAside!.map((entry) => entry.folder),
    ['damaged-step-0000000009.0000000002'],
  );
  assert.match(progress!.setAside![0]!.reason, /rows-.*: the digest/);
  assert.deepEqual(await completeSteps(config.checkpoint.directory), KEPT);
});

test('a rank that reads another file than rank 0 costs a restart, not the checkpoint', async () => {
  const { folder, config } = await job();
  await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
  const ranks = await startGang(folder, config, 2, { NODE_OPTIONS: preload('misread-on-rank-1.ts') });
  const codes = await Promise.all(ranks.map(({ ended }) => ended));
  assert.deepEqual(codes, [ExitCode.failure, ExitCode.failure], ranks.map(({ text }) => text).join('\n'));
  for (const rank of ranks) {
    assert.equal(failure(rank).code, 'StorageFailed');
    assert.match(String(failure(rank).msg), /step-0000000009: rank 0 finds it intact, rank 1 does not .*rows-.* bytes/);
  }
  assert.deepEqual(await completeSteps(config.checkpoint.directory), KEPT);
});

test('a training that an earlier attempt has finished is not done again', async () => {
  const { folder, config } = await job(() => ({ evaluation: whole.config.evaluation }));
  for (const directory of ['checkpoints', 'out'])
    await cp(join(whole.folder, directory), join(folder, directory), { recursive: true });
  // The paths in its report are those of this job.
  const report = { ...(await readReport(config)), config };
  await writeFile(join(folder, 'out', 'train-report.json'), JSON.stringify(report));
  const start = async (change: Partial<TrainerConfig> = {}, size = 2) => {
    const left = join(folder, 'termination.json');
    const next = { ...config, job: { ...config.job, attempt: 1 }, ...change };
    const ranks = await startGang(folder, next, size, { FACETRAIN_TERMINATION_MESSAGE: left });
    const codes = await Promise.all(ranks.map(({ ended }) => ended));
    assert.deepEqual(codes, Array(size).fill(0), ranks.map(({ text }) => text).join('\n'));
    const { progress } = TerminationResult.parse(JSON.parse(await readFile(left, 'utf8')));
    assert.deepEqual([progress!.stage, progress!.step, progress!.checkpoint!.step], ['Done', STEPS, STEPS]);
    assert.equal(progress!.evaluations[0]!.step, STEPS);
    return ranks[0]!.lines.some(({ msg }) => msg === 'finished by an earlier attempt') ? 'recognized' : 'done again';
  };
  assert.equal(await start(), 'recognized');
  // An elastic gang may have another size than the one that finished.
  assert.equal(await start({}, 1), 'recognized');
  assert.deepEqual(await readReport(config), report);

  const bytes = await model(config);
  bytes[100]! ^= 1;
  await writeFile(join(config.outputDirectory, 'model/backbone.onnx'), bytes);
  assert.equal(await start(), 'done again');
  assert((await model(config)).equals(await model(whole.config)), 'another model');
  assert.equal(await start({ evaluation: { ...config.evaluation, everyEpochs: 1 } }), 'done again');
});

test('a training goes on in micro-batches, with fewer activations', async () => {
  const change = (microBatchSize: number | null, checkpointActivations: boolean) =>
    job(({ model, optimizer, schedule }) => ({
      epochs: EPOCHS + 1,
      microBatchSize,
      model: { ...model, checkpointActivations },
      // A rate below a float's precision: with batch norms over three pictures, gradients are ill-conditioned.
      optimizer: { ...optimizer, learningRate: 1e-30 },
      schedule: { ...schedule, type: 'constant' },
    }));
  const loss = async ({ folder, config }: Awaited<ReturnType<typeof change>>, size: number) => {
    await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
    const { codes, ranks } = await runGang(folder, config, size);
    assert.deepEqual(codes, Array(size).fill(0), ranks.map(({ text }) => text).join('\n'));
    const { resumedFromStep, lossLast } = await readReport(config);
    assert.equal(resumedFromStep, STEPS);
    return lossLast;
  };
  // A batch in two parts is to batch norms what it is on two ranks.
  const onTwo = await loss(await change(null, false), 2);
  const distance = async (microBatchSize: number | null) =>
    Math.abs((await loss(await change(microBatchSize, true), 1)) - onTwo) / onTwo;
  const [inParts, atOnce] = [await distance(BATCH / 2), await distance(null)];
  assert.ok(inParts < 1e-5 && atOnce > 1e-3, `relative distances ${inParts}, ${atOnce}`);
});

test('a training that goes on with class centres in host memory has the same result', async () => {
  const goOn = async (placement: 'device' | 'host' | 'auto') => {
    const { folder, config } = await job(({ loss }) => ({
      epochs: EPOCHS + 1,
      loss: { ...loss, sampleRateChanges: [], rows: { ...loss.rows, placement } },
    }));
    await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
    const { codes, ranks } = await runGang(folder, config, 2);
    assert.deepEqual(codes, [0, 0], ranks.map(({ text }) => text).join('\n'));
    const { resumedFromStep, lossLast } = await readReport(config);
    const used = ranks[0]!.lines.find(({ msg }) => msg === 'met the other ranks')?.rowsPlacement;
    return { used, resumedFromStep, lossLast, model: await model(config) };
  };
  const device = await goOn('auto');
  assert.deepEqual([device.used, device.resumedFromStep], ['device', STEPS]);
  assert.deepEqual(await goOn('host'), { ...device, used: 'host' });
});

test('a training goes on with class centres of another type and optimizer', async () => {
  const { folder, config } = await job(({ loss, optimizer }) => ({
    epochs: EPOCHS + 1,
    loss: {
      ...loss,
      margin: { ...loss.margin, m3: 0.3 },
      rows: { precision: 'bf16', optimizer: 'adagrad', learningRate: 0.002, placement: 'host' },
    },
    optimizer: { ...optimizer, rowUpdate: 'dense' },
  }));
  await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
  const { codes, ranks } = await runGang(folder, config, 2);
  assert.deepEqual(codes, [0, 0], ranks.map(({ text }) => text).join('\n'));
  const converted = ranks[0]!.lines.find(({ msg }) => msg === 'converted the class centres');
  assert.deepEqual([converted?.from, converted?.to], ['float32', 'bfloat16']);
  const anew = ranks[0]!.lines.find(({ msg }) =>
    String(msg).startsWith('the optimizer of the class centres is another'),
  );
  assert.deepEqual([anew?.from, anew?.to], ['SGD', 'AdaGrad']);
  const settings = ranks[0]!.lines.filter(({ msg }) => msg === 'a setting is another than before');
  assert.deepEqual(
    settings.map(({ setting, from, to }) => [setting, from, to]),
    [
      ['loss.margin', 'cosface, m1 1, m2 0, m3 0.4, m 0, h 0', 'cosface, m1 1, m2 0, m3 0.3, m 0, h 0'],
      ['loss.rows.placement', 'device', 'host'],
      ['optimizer.rowUpdate', 'lazy', 'dense'],
    ],
  );
  assert.equal((await readReport(config)).resumedFromStep, STEPS);
  const { manifest } = await openCheckpoint(config.checkpoint.directory, STEPS + STEPS_PER_EPOCH);
  assert.deepEqual(
    CheckpointManifest.parse(manifest).rows.tensors.map(({ name, dtype }) => [name, dtype]),
    [
      ['weight', 'bfloat16'],
      ['squares', 'float32'],
    ],
  );
});

test('a finished training that is started again only evaluates and exports', async () => {
  const { folder, config } = await job();
  await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
  assert.deepEqual((await runGang(folder, config, 1)).codes, [0]);
  const report = await readReport(config);
  await assertWhole(config);
  const uninterrupted = await readReport(whole.config);
  assert.deepEqual([report.lossFirst, report.lossLast], [uninterrupted.lossFirst, uninterrupted.lossLast]);
  assert((await model(config)).equals(await model(whole.config)), 'another model');
});

test('ranks agree on checkpoints by time, and rank 0 serves its progress', async () => {
  const { folder, config } = await job((base) => ({
    epochs: 10_000,
    checkpoint: { ...base.checkpoint, everySeconds: 1, keep: 1 },
    evaluation: { sets: [{ name: 'pairs', path: set }], everyEpochs: null, everySteps: 2 },
  }));
  const portFile = join(folder, 'port');
  const ranks = await startGang(folder, config, 2, { FACETRAIN_PORT_FILE: portFile });
  const url = `http://127.0.0.1:${await port(ranks[0]!)}`;
  assert.equal(Number(await readFile(portFile, 'utf8')), await port(ranks[0]!));
  const progress = await until(async () => {
    const current = Progress.parse(await (await fetch(`${url}/v1/progress`)).json());
    return current.checkpoint !== null && current.evaluations.length > 0 && current.stage === 'Training' && current;
  });
  assert.equal(progress.totalSteps, 10_000 * STEPS_PER_EPOCH);
  assert(progress.loss! > 0 && progress.imagesPerSecond! > 0 && progress.etaSeconds! > 0 && progress.learningRate! > 0);
  assert(Math.abs(progress.epoch - progress.step / STEPS_PER_EPOCH) < 1e-9);
  assert.equal((await fetch(`${url}/healthz`)).status, 200);
  const { data, backward, communication } = progress.stageSeconds!;
  assert(data >= 0 && backward > 0 && communication > 0);
  const metrics = await (await fetch(`${url}/metrics`)).text();
  assert.match(metrics, /^facetrain_loss \d/m);
  assert.match(metrics, /^facetrain_step_stage_seconds_total\{stage="backward"\} [\d.e-]*[1-9]/m);
  ranks[0]!.kill('SIGINT');
  assert.deepEqual(await Promise.all(ranks.map(({ ended }) => ended)), [130, 143]);
  assert.equal((await completeSteps(config.checkpoint.directory)).length, 1);
});

test('with a master that never answers, the rank ends at the deadline', async () => {
  const { folder, config } = await job(() => ({ rendezvousTimeoutSeconds: 1 }));
  // It accepts connections, and sends nothing.
  const silent = createServer().listen(0, '127.0.0.1');
  await until(() => silent.listening);
  after(() => silent.close());
  const { port: silentPort } = silent.address() as { port: number };
  const ranks = await startGang(folder, config, 2, { MASTER_PORT: String(silentPort) });
  ranks[0]!.kill('SIGKILL');
  assert.equal(await ranks[1]!.ended, 2);
  const { code, msg } = failure(ranks[1]!);
  assert.equal(code, 'RendezvousTimeout');
  const why = 'something accepts connections and does not answer as rank 0 does';
  assert.match(String(msg), new RegExp(`rank 0 at 127\\.0\\.0\\.1:${silentPort}, where ${why}`));
});

test('a rank that waits for others says so, and stops at once on SIGTERM', async () => {
  const { folder, config } = await job(() => ({ rendezvousTimeoutSeconds: 600 }));
  const ranks = await startGang(folder, config, 2);
  ranks[1]!.kill('SIGKILL');
  await ranks[0]!.logged('meeting the other ranks');
  const url = `http://127.0.0.1:${await port(ranks[0]!)}/v1/progress`;
  const { waitsFor } = await until(async () => {
    const progress = Progress.parse(await (await fetch(url)).json());
    return progress.waitsFor !== undefined && progress;
  });
  assert.match(waitsFor!, /^rank 1 to come to 127\.0\.0\.1:\d+$/);
  await ranks[0]!.logged(`waiting for ${waitsFor}`);
  const stoppedAt = performance.now();
  ranks[0]!.kill('SIGTERM');
  assert.equal(await ranks[0]!.ended, 143);
  assert(performance.now() - stoppedAt < 120_000);
});

test('ranks end with their error while a file operation hangs', async () => {
  const { folder, config } = await job(() => ({ globalBatchSize: 1 }));
  const fifo = join(folder, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const env = { NODE_OPTIONS: preload('hanging-storage.ts'), FACETRAIN_TEST_FIFO: fifo };
  const ranks = await startGang(folder, config, 2, env);
  const refused = Promise.all(ranks.map(({ ended }) => ended));
  const codes = await Promise.race([refused, delay(60_000, 'the ranks are still there', { ref: false })]);
  assert.deepEqual(codes, [2, 2]);
  for (const rank of ranks) assert.equal(failure(rank).code, 'InvalidConfig');
});

test('a loss that is not finite ends training on every rank, without a model', async () => {
  const { folder, config } = await job(({ optimizer, schedule }) => ({
    optimizer: { ...optimizer, learningRate: 1e30, gradientClipNorm: null },
    schedule: { ...schedule, warmupEpochs: 0 },
  }));
  const { codes, ranks } = await runGang(folder, config, 2);
  assert.deepEqual(codes, [2, 2], ranks.map(({ text }) => text).join('\n'));
  for (const rank of ranks) assert.equal(failure(rank).code, 'NotANumber');
  // Its curve shows how it went there.
  assert.deepEqual((await readdir(config.outputDirectory)).sort(), ['fences', 'tensorboard']);
  assert((await events(config)).includes('train/loss'));
  assert.deepEqual(await completeSteps(config.checkpoint.directory), []);
});

test('a full disk is an error with the path, and no checkpoint is incomplete', async (t) => {
  const { folder, config } = await job((base) => ({ checkpoint: { ...base.checkpoint, everySteps: 1 } }));
  await mkdir(config.checkpoint.directory);
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', config.checkpoint.directory]);
  if (mounted.status !== 0) return t.skip(`needs the right to mount: ${mounted.stderr}`);
  try {
    const { codes, ranks } = await runGang(folder, config, 1);
    assert.deepEqual(codes, [2]);
    const { code, msg } = failure(ranks[0]!);
    assert.equal(code, 'DiskFull');
    assert.match(String(msg), /step-0000000001.backbone\.safetensors: no space left/);
    assert.deepEqual(await completeSteps(config.checkpoint.directory), []);
    // What it had written of the checkpoint does not fill the disk.
    const left = await readdir(config.checkpoint.directory, { recursive: true });
    assert.deepEqual(
      left.filter((name) => name.endsWith('.safetensors') || name.includes('tmp')),
      [],
    );
  } finally {
    assert.equal(spawnSync('umount', [config.checkpoint.directory]).status, 0);
  }
});

test('input that does not fit is refused before ranks meet, with the field or file', async () => {
  const damaged = join(top, 'damaged');
  writeSmallDataset(damaged, { identities: IDENTITIES, perIdentity: 3 }, (index, jpeg) =>
    index === 2 ? jpeg.subarray(0, 10) : jpeg,
  );
  const noPairs = join(top, 'none.bin');
  await writeFile(noPairs, 'no pickle');
  const cases: [string, (config: TrainerConfig) => Partial<TrainerConfig>, string, RegExp][] = [
    ['batch', () => ({ globalBatchSize: 1 }), 'InvalidConfig', /globalBatchSize: 1; a picture for each of the 2 ranks/],
    [
      'picture',
      () => ({ globalBatchSize: 2 }),
      'InvalidConfig',
      /globalBatchSize: 2; at least 2 pictures for the batch/,
    ],
    [
      'micro-batch',
      () => ({ globalBatchSize: 8, microBatchSize: 3 }),
      'InvalidConfig',
      /microBatchSize: 3; a divisor of the 8 pictures of a step, with a micro-batch for each of the 2 ranks/,
    ],
    ['batch larger than the dataset', () => ({ globalBatchSize: 100 }), 'InvalidDataset', /21 pictures/],
    [
      'classes',
      (config) => ({ model: { ...config.model, numClasses: 3 } }),
      'InvalidDataset',
      /labels up to 6; labels up to 2, as model\.numClasses is 3/,
    ],
    ['dataset', () => ({ dataset: { path: damaged, maxBadPictures: 0 } }), 'InvalidDataset', /damaged.*record 2/],
    [
      'verification set',
      (config) => ({ evaluation: { ...config.evaluation, sets: [{ name: 'none', path: noPairs }] } }),
      'InvalidVerificationSet',
      /none\.bin/,
    ],
    [
      'gate that the sets cannot judge',
      (config) => ({
        evaluation: {
          ...config.evaluation,
          sets: [{ name: 'pairs', path: set }],
          gate: { maxGroupAccuracyDrop: 0.01 },
        },
      }),
      'InvalidConfig',
      /gate\.maxGroupAccuracyDrop: no evaluation set has groups/,
    ],
    ['model', (config) => ({ model: { ...config.model, onnxPath: noPairs } }), 'InvalidModel', /none\.bin/],
    [
      'output',
      (config) => ({
        model: {
          ...config.model,
          onnxPath: join(whole.config.outputDirectory, 'model/backbone.onnx'),
          onnxOutput: 'norm',
        },
      }),
      'InvalidModel',
      /has no output "norm"; one of its outputs: "embedding" \[N, 32\]/,
    ],
  ];
  await Promise.all(
    cases.map(async ([name, change, code, message]) => {
      const { folder, config } = await job(change);
      const [rank, other] = await startGang(folder, config, 2);
      other!.kill('SIGKILL');
      assert.equal(await rank!.ended, 2, name);
      assert.equal(failure(rank!).code, code, name);
      assert.match(String(failure(rank!).msg), message, name);
      assert.deepEqual((await readdir(folder)).sort(), ['config.json'], name);
    }),
  );
});

test('a checkpoint that does not fit the job is refused; training does not start from step 0', async () => {
  const { folder, config } = await job(() => ({ seed: 8 }));
  await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
  const { codes, ranks } = await runGang(folder, config, 1);
  assert.deepEqual(codes, [2]);
  assert.equal(failure(ranks[0]!).code, 'InvalidCheckpoint');
  assert.match(String(failure(ranks[0]!).msg), /manifest\.json: seed: 7; 8, as in this job/);
});

test('a job in BF16 says so in its report, and its checkpoint is not continued in FP32', async () => {
  const { folder, config } = await job(() => ({ precision: 'bf16', epochs: 1 }));
  assert.deepEqual((await runGang(folder, config, 1)).codes, [0]);
  assert.equal((await readReport(config)).precision, 'bf16');
  const { directory, manifest } = await openCheckpoint(config.checkpoint.directory, STEPS_PER_EPOCH);
  assert.deepEqual(CheckpointManifest.parse(manifest).bf16, [capabilities().bf16]);

  const { codes, ranks } = await runGang(folder, { ...config, precision: 'fp32', epochs: 2 }, 1);
  assert.deepEqual(codes, [2]);
  assert.equal(failure(ranks[0]!).code, 'InvalidCheckpoint');
  assert.match(String(failure(ranks[0]!).msg), /manifest\.json: precision: BF16; FP32, as trainers\.precision of this/);

  // As if other processors had written it.
  await writeFile(join(directory, 'manifest.json'), JSON.stringify({ ...manifest, bf16: ['amx', 'emulated'] }));
  const again = await runGang(folder, { ...config, precision: 'auto', epochs: 2 }, 1);
  assert.deepEqual(again.codes, [0]);
  assert.equal((await readReport(config)).precision, 'bf16');
  const warning = again.ranks[0]!.lines.find(({ msg }) => /^other processors than before/.test(msg));
  assert.deepEqual([warning?.from, warning?.to], [['amx', 'emulated'], [capabilities().bf16]]);
});

test('a job resumes from another job’s checkpoint only with checkpoint.uri', async () => {
  for (const [shared, code] of [
    [false, 2],
    [true, 0],
  ] as const) {
    const { folder, config } = await job((base) => ({
      job: { ...base.job, name: 'copy' },
      checkpoint: { ...base.checkpoint, shared },
    }));
    await cp(whole.config.checkpoint.directory, config.checkpoint.directory, { recursive: true });
    const { codes, ranks } = await runGang(folder, config, 1);
    assert.deepEqual(codes, [code], ranks[0]!.text);
    if (shared) assert((await readReport(config)).resumedFromStep! > 0);
    else assert.match(String(failure(ranks[0]!).msg), /job\.name: "small"; "copy", the name of this job/);
  }
});

test('a user’s own ONNX backbone is trained', async () => {
  const onnxPath = join(whole.config.outputDirectory, 'model/backbone.onnx');
  // The graph has embeddings of 32; embeddingDim is that of a backbone that we build.
  const { folder, config } = await job((base) => ({
    model: { ...base.model, onnxPath, onnxOutput: 'embedding', embeddingDim: 512 },
    epochs: 1,
  }));
  const { codes, ranks } = await runGang(folder, config, 1);
  assert.deepEqual(codes, [0], ranks.map(({ text }) => text).join('\n'));
  const { graph: before } = await readOnnx(onnxPath);
  const { graph: after } = await readOnnx(join(config.outputDirectory, 'model/backbone.onnx'));
  assert.deepEqual(after.nodes, before.nodes);
  assert.notDeepEqual(after.initializers, before.initializers);
});
