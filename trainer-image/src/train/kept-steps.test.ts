/** checkpoint.inMemory with real processes, which are killed and started again in their attempt, as in their pods. */
import assert from 'node:assert/strict';
import { cp, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { ExitCode, type TrainerConfig } from '@facetrain/api';
import { editedFolder, editHead, openHeads, removal } from '../checkpoint/edit-head.ts';
import { trainingFacts } from '../estimate/plan-training.ts';
import { trainingMemory } from '../estimate/training-memory.ts';
import { Fence } from '../storage/fence.ts';
import {
  killRanks,
  type Rank,
  readReport,
  runGang,
  startGang,
  steps,
  trainerConfig,
  writeSmallDataset,
} from '../testing/training-gang.ts';
import { type HeadFacts, newestCommonStep, wasEdited } from './kept-steps.ts';
import { backboneGraph } from './training-preflight.ts';

afterEach(killRanks);
const top = await mkdtemp(join(tmpdir(), 'kept-steps-'));
after(() => rm(top, { recursive: true }));
const data = join(top, 'data');

/** More steps than a gang does before it is killed. */
const STEPS = 90;

/** A new folder with the configuration of a job, whose only checkpoint is that of its end. */
async function job(
  change: (config: TrainerConfig) => Partial<TrainerConfig> = () => ({}),
): Promise<{ folder: string; config: TrainerConfig }> {
  const folder = await mkdtemp(join(top, 'job-'));
  const config = trainerConfig(folder, {
    dataset: { path: data, maxBadPictures: 0.001 },
    globalBatchSize: 7,
    epochs: 30,
  });
  const checkpoint = { ...config.checkpoint, memoryDirectory: join(folder, 'memory') };
  return { folder, config: { ...config, checkpoint, ...change({ ...config, checkpoint }) } };
}

const model = (config: TrainerConfig) => readFile(join(config.outputDirectory, 'model/backbone.onnx'));
const logs = (ranks: readonly Rank[]) => ranks.map(({ text }) => text).join('\n');

/** Of a training that keeps nothing in memory, and that nobody kills: its model, and the loss of each step. */
let wanted: Buffer;
let losses: number[];

/** The curves of a training that was killed: each step once, and marks where it went on. */
async function assertWhole(config: TrainerConfig): Promise<void> {
  const { history, attempts, resumedFromStep } = await readReport(config);
  assert.deepEqual(
    history.map(({ loss }) => loss),
    losses,
  );
  const marks = attempts!.map(({ fromStep }) => fromStep);
  assert.deepEqual([marks[0], marks.at(-1)], [0, resumedFromStep]);
  assert.deepEqual(
    marks,
    [...new Set(marks)].toSorted((a, b) => a - b),
  );
}

before(async () => {
  writeSmallDataset(data, { identities: 7, perIdentity: 3 });
  const { folder, config } = await job(({ checkpoint }) => ({ checkpoint: { ...checkpoint, memoryDirectory: null } }));
  const { codes, ranks } = await runGang(folder, config, 2);
  assert.deepEqual(codes, [0, 0], logs(ranks));
  const report = await readReport(config);
  assert.equal(report.steps, STEPS);
  losses = report.history.map(({ loss }) => loss);
  wanted = await model(config);
});

/** Kills a rank, and waits until the others have lost it. */
async function kill(ranks: readonly Rank[], victim: number): Promise<void> {
  ranks[victim]!.kill('SIGKILL');
  const codes = await Promise.all(ranks.map(({ ended }) => ended));
  assert.deepEqual(
    codes,
    ranks.map((_, rank) => (rank === victim ? 137 : ExitCode.peerLost)),
    logs(ranks),
  );
}

test('kill -9 at random moments costs one step at most, and gives the same model, bit for bit', async () => {
  const { folder, config } = await job();
  let ranks = await startGang(folder, config, 2);
  for (let done = 0, round = 0; round < 4; round++) {
    await ranks[0]!.logged('first step');
    if (round > 0) {
      const [recalled, other] = await Promise.all(ranks.map(({ lines }) => lines.find(isRecall)));
      assert(recalled, logs(ranks));
      assert.equal(other, undefined);
      assert((recalled.step as number) >= done - 1, `${recalled.step} after ${done} steps`);
    }
    await steps(ranks[0]!, done + 2);
    await delay(Math.random() * 50);
    done = (await steps(ranks[0]!, 0)).step;
    await kill(ranks, Math.random() < 0.5 ? 0 : 1);
    assert(done < STEPS, 'the test needs more steps');
    ranks = ranks.map((rank) => rank.startAgain());
  }
  assert.deepEqual(await Promise.all(ranks.map(({ ended }) => ended)), [0, 0], logs(ranks));
  assert((await readReport(config)).resumedFromStep! > 0);
  await assertWhole(config);
  assert((await model(config)).equals(wanted), 'another model');
});

const isRecall = ({ msg }: { msg: string }) => msg === 'went on from memory';

/** Of a rank of two, as `facetrain plan` says. */
async function keptBytes(config: TrainerConfig): Promise<number> {
  const gang = { numClasses: 7, replicas: 2, ranksPerPod: 1, maxReplicas: null, device: 'cpu' } as const;
  const { device } = trainingMemory(trainingFacts(config, await backboneGraph(config), gang));
  return device.find(({ name }) => name === 'steps kept in memory')!.bytes;
}

test('a rank that has lost its memory sends all to the checkpoint', async () => {
  const { folder, config } = await job(({ checkpoint }) => ({ checkpoint: { ...checkpoint, everySteps: 4 } }));
  const ranks = await startGang(folder, config, 2);
  await steps(ranks[0]!, 9);
  await kill(ranks, 1);
  const memory = config.checkpoint.memoryDirectory!;
  assert.deepEqual((await readdir(memory)).sort(), ['rank-0', 'rank-0-curves.json', 'rank-1']);
  const { size } = await stat(join(memory, 'rank-0'));
  const wantedSize = await keptBytes(config);
  assert(Math.abs(size - wantedSize) < 0.05 * wantedSize, `${size} bytes, where facetrain plan says ${wantedSize}`);
  await rm(join(memory, 'rank-1'));
  const again = ranks.map((rank) => rank.startAgain());
  await again[0]!.logged('no newer steps in the memory of all ranks');
  const { step } = await again[0]!.logged('resumed from a checkpoint');
  assert((step as number) % 4 === 0 && (step as number) >= 4, String(step));
  // Both keep their steps again.
  await steps(again[0]!, (step as number) + 3);
  await kill(again, 0);
  const last = again.map((rank) => rank.startAgain());
  assert.deepEqual(await Promise.all(last.map(({ ended }) => ended)), [0, 0], logs(last));
  assert(last[0]!.lines.some(isRecall), last[0]!.text);
  await assertWhole(config);
  assert((await model(config)).equals(wanted), 'another model');
});

test('identities that were removed before stay so', async () => {
  const { folder, config } = await job();
  const [begun] = await startGang(folder, config, 1);
  await steps(begun!, 2);
  begun!.kill('SIGTERM');
  assert.equal(await begun!.ended, 143, begun!.text);
  const { checkpoint } = config;
  const [head] = await openHeads(checkpoint.directory);
  const fence = await Fence.claim(checkpoint.directory, { ...config.job, start: 'edit' });
  await editHead(editedFolder(fence, head!.checkpoint.directory), head!, removal(head!, [3]));
  const attempt = { ...config, job: { ...config.job, attempt: 1 } };
  const untouched = await job(({ checkpoint: own }) => ({
    job: attempt.job,
    checkpoint: { ...own, memoryDirectory: null },
  }));
  await cp(checkpoint.directory, untouched.config.checkpoint.directory, { recursive: true });
  assert.deepEqual((await runGang(untouched.folder, untouched.config, 1)).codes, [0]);

  const [first] = await startGang(folder, attempt, 1);
  await steps(first!, head!.checkpoint.manifest.step + 3);
  await kill([first!], 0);
  const again = first!.startAgain();
  assert.equal(await again.ended, 0, again.text);
  for (const message of ['went on from memory', 'identities that are no longer trained'])
    assert(
      again.lines.some(({ msg }) => msg === message),
      again.text,
    );
  const models = [await model(attempt), await model(untouched.config)];
  assert(models[0]!.equals(models[1]!), 'another model');
});

test('an identity that is removed from the checkpoint does not come back from memory', async () => {
  const { folder, config } = await job(({ checkpoint }) => ({ checkpoint: { ...checkpoint, everySteps: 8 } }));
  const ranks = await startGang(folder, config, 2);
  await ranks[0]!.logged('checkpoint written');
  await steps(ranks[0]!, 9);
  await kill(ranks, 1);
  const { directory } = config.checkpoint;
  const fence = await Fence.claim(directory, { name: 'head', uid: 'head', attempt: 0, start: 'edit' });
  for (const head of await openHeads(directory))
    await editHead(editedFolder(fence, head.checkpoint.directory), head, removal(head, [3]));
  const again = ranks.map((rank) => rank.startAgain());
  await again[0]!.logged('the identities of the newest checkpoint were edited: forgot the steps in memory');
  const { step } = await again[0]!.logged('resumed from a checkpoint');
  for (const rank of again) await rank.logged('identities that are no longer trained');
  // From here on they keep steps of the edited head.
  await steps(again[0]!, (step as number) + 3);
  await kill(again, 0);
  const last = again.map((rank) => rank.startAgain());
  await last[0]!.logged('went on from memory');
  for (const rank of last) await rank.logged('identities that are no longer trained');
  last[0]!.kill('SIGTERM');
  await Promise.all(last.map(({ ended }) => ended));
  for (const { identities, checkpoint } of await openHeads(directory))
    assert.deepEqual(identities.retired, [{ class: 3, into: null }], checkpoint.directory);
});

test('memory counts only with the checkpoints that its training began with and wrote', () => {
  const head = (change: Partial<HeadFacts> = {}): HeadFacts => ({
    ...{ step: 4, numClasses: 7, classesAdded: false, retired: null },
    ...change,
  });
  const cases: [newest: HeadFacts, begun: HeadFacts | null, want: boolean][] = [
    [head(), null, false],
    [head({ retired: 'a' }), null, true],
    [head({ classesAdded: true }), null, true],
    [head({ numClasses: 6 }), head({ numClasses: 6 }), false],
    [head({ step: 8 }), head({ numClasses: 6 }), false],
    [head(), head({ numClasses: 6 }), true],
    [head({ step: 8, retired: 'a' }), head({ retired: 'a' }), false],
    [head({ step: 8, retired: 'b' }), head({ retired: 'a' }), true],
    [head({ step: 8 }), head({ retired: 'a' }), true],
    [head({ step: 8, classesAdded: true }), head({ classesAdded: true }), false],
    [head({ step: 8, numClasses: 8, classesAdded: true }), head({ classesAdded: true }), true],
  ];
  for (const [newest, begun, want] of cases)
    assert.equal(wasEdited(newest, begun, 7), want, JSON.stringify([newest, begun]));
});

test('ranks go on from the newest step that all have of one training', () => {
  const of = (lineage: string, ...steps: number[]) => steps.map((step) => ({ step, lineage }));
  const cases: [of: { step: number; lineage: string }[][], want: number | null][] = [
    [[of('a', 8, 7)], 8],
    [[of('a', 8, 7), of('a', 8, 7)], 8],
    [[of('a', 8, 7), of('a', 9, 8), of('a', 8)], 8],
    [[of('a', 8), of('a', 9, 8), of('a', 8, 7)], 8],
    [[of('a', 8, 7), of('a', 9)], null],
    [[of('a', 8, 7), []], null],
    [[[], of('a', 8, 7)], null],
    [[of('a', 8, 7), of('b', 8, 7)], null],
    [[of('a', 8, 7), of('a', 8, 7), of('b', 8, 7)], null],
    [[of('a', 0)], 0],
  ];
  for (const [found, want] of cases) assert.equal(newestCommonStep(found), want, JSON.stringify(found));
});

test('a checkpoint of the same step is preferred, as after a stop', async () => {
  const { folder, config } = await job();
  const [rank] = await startGang(folder, config, 1);
  await steps(rank!, 2);
  rank!.kill('SIGTERM');
  assert.equal(await rank!.ended, 143, rank!.text);
  const again = rank!.startAgain();
  await again.logged('resumed from a checkpoint');
  assert(
    again.lines.some(({ msg }) => msg === 'no newer steps in the memory of all ranks'),
    again.text,
  );
});

test('training goes on without memory for its steps', async () => {
  const { folder, config } = await job(() => ({ epochs: 1 }));
  await writeFile(config.checkpoint.memoryDirectory!, 'a file in place of the folder');
  const { codes, ranks } = await runGang(folder, config, 2);
  assert.deepEqual(codes, [0, 0], logs(ranks));
  const warning = ranks[1]!.lines.find(({ msg }) => msg.startsWith('no more steps are kept in memory'));
  assert(warning, ranks[1]!.text);
});
