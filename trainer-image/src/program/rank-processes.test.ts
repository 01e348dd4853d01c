/** Several ranks in one pod: real processes that train on a few faces. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { after, afterEach, before, test } from 'node:test';
import {
  ExitCode,
  Progress,
  TerminationMessage,
  TerminationResult,
  type TrainerConfig,
  type TrainReport,
} from '@facetrain/api';
import { pino } from 'pino';
import { completeSteps } from '../checkpoint/directory.ts';
import {
  killRanks,
  type LogLine,
  type Rank,
  readReport,
  runGang,
  startPods,
  trainerConfig,
  until,
  writeSmallDataset,
} from '../testing/training-gang.ts';
import { firstFailure, type RankEnd, runRanks, writeLines } from './rank-processes.ts';

const top = await mkdtemp(join(tmpdir(), 'ranks-of-a-pod-'));
after(() => rm(top, { recursive: true }));
afterEach(killRanks);
const data = join(top, 'data');
const DEADLINE_MS = 300_000;
before(() => writeSmallDataset(data, { identities: 7, perIdentity: 3 }));

/** @param epochs more than a test needs, where it ends the training itself */
async function job(epochs = 3): Promise<{ folder: string; config: TrainerConfig }> {
  const folder = await mkdtemp(join(top, 'job-'));
  const dataset = { path: data, maxBadPictures: 0.001 };
  return { folder, config: trainerConfig(folder, { dataset, globalBatchSize: 8, epochs }) };
}

async function steps(pod: Rank, count: number): Promise<void> {
  const { port } = await pod.logged('serving progress', DEADLINE_MS);
  await until(async () => {
    if (!pod.running) assert.fail(pod.text);
    const progress = await fetch(`http://127.0.0.1:${port as number}/v1/progress`);
    return Progress.parse(await progress.json()).step >= count;
  }, DEADLINE_MS);
}
const messageOf = async (folder: string, pod = 0): Promise<unknown> =>
  JSON.parse(await readFile(join(folder, `termination-${pod}`), 'utf8'));
const ranksIn = (lines: LogLine[]) => [...new Set(lines.flatMap(({ rank }) => (rank === undefined ? [] : [rank])))];

test('two pods of two ranks train the model of four pods of one', async () => {
  const alone = await job();
  assert.deepEqual((await runGang(alone.folder, alone.config, 4)).codes, [0, 0, 0, 0]);
  const { folder, config } = await job();
  const pods = await startPods(folder, config, 2, 2);
  assert.deepEqual(await Promise.all(pods.map(({ ended }) => ended)), [0, 0], pods.map(({ text }) => text).join('\n'));
  const [one, several] = [await readReport(alone.config), await readReport(config)];
  const losses = ({ history }: TrainReport) => history.map(({ step, loss }) => ({ step, loss }));
  assert.equal(losses(one).length, 6);
  assert.deepEqual(losses(several), losses(one));
  assert.equal(several.trainers, 4);
  assert.deepEqual(
    pods.map(({ lines }) => ranksIn(lines).sort()),
    [
      [0, 1],
      [2, 3],
    ],
  );
  // Rank 0 reports its progress, as it does alone; the other pod has nothing to report.
  assert.equal(TerminationResult.parse(await messageOf(folder)).progress!.step, 6);
  assert.equal(existsSync(join(folder, 'termination-1')), false);
});

test('a rank that is killed ends its pod, with its exit code and its number', async () => {
  const { folder, config } = await job(10_000);
  const pods = await startPods(folder, config, 2, 2);
  await steps(pods[0]!, 2);
  const second = (await pods[1]!.children())[1]!;
  process.kill(second, 'SIGKILL');
  assert.deepEqual(await Promise.all(pods.map(({ ended }) => ended)), [4, 137]);
  assert.deepEqual(TerminationMessage.parse(await messageOf(folder, 1)), {
    code: 'ProcessKilled',
    message: 'its process was ended by SIGKILL',
    rank: 3,
  });
  const { code, rank } = TerminationMessage.parse(await messageOf(folder, 0));
  assert.equal(code, 'PeerLost');
  assert([0, 1].includes(rank!));
});

test('SIGTERM on one pod: all ranks stop in the same step, after a checkpoint', async () => {
  const { folder, config } = await job(10_000);
  const pods = await startPods(folder, config, 2, 2);
  await steps(pods[0]!, 2);
  pods[1]!.kill('SIGTERM');
  assert.deepEqual(await Promise.all(pods.map(({ ended }) => ended)), [143, 143], pods.map(({ text }) => text).join());
  const [saved] = await completeSteps(config.checkpoint.directory);
  assert.equal(TerminationResult.parse(await messageOf(folder)).progress!.step, saved);
});

test('ranks end with the process that started them', async () => {
  const { folder, config } = await job(10_000);
  const [pod] = (await startPods(folder, config, 1, 2)) as [Rank];
  await steps(pod, 2);
  const children = await pod.children();
  assert.equal(children.length, 2);
  pod.kill('SIGKILL');
  await pod.ended;
  // Where process 1 does not wait for orphans, they stay as zombies.
  const hasEnded = (pid: number) =>
    readFile(`/proc/${pid}/stat`, 'utf8').then(
      (stat) => /\) Z /.test(stat),
      () => true,
    );
  await until(async () => (await Promise.all(children.map(hasEnded))).every(Boolean), DEADLINE_MS);
});

test('what a rank refuses is the message of its pod', async () => {
  const { folder, config } = await job();
  const pods = await startPods(folder, { ...config, dataset: { path: join(top, 'none'), maxBadPictures: 0 } }, 1, 2);
  assert.equal(await pods[0]!.ended, 2);
  const { code, message, rank } = TerminationMessage.parse(await messageOf(folder));
  assert.equal(code, 'InvalidDataset');
  assert.match(message, /none/);
  assert([0, 1].includes(rank!));
});

test('ranks that a signal stops while they start have not failed', async (t) => {
  const message = join(await mkdtemp(join(top, 'starting-')), 'termination');
  process.env.FACETRAIN_TERMINATION_MESSAGE = message;
  t.after(() => delete process.env.FACETRAIN_TERMINATION_MESSAGE);
  const args = ['--eval', 'setInterval(() => {}, 1000)'];
  const common = { count: 2, firstRank: 0, args, log: pino({ level: 'silent' }) };
  assert.equal(await runRanks({ ...common, signal: AbortSignal.abort('SIGTERM') }), ExitCode.preempted);
  assert.equal(await runRanks({ ...common, signal: AbortSignal.abort('SIGINT') }), ExitCode.interrupted);
  assert.equal(existsSync(message), false);
});

test('a line of a log stays one line, however it arrives', async () => {
  const json = JSON.stringify({ msg: 'two\u2028lines\u2029for readline', name: 'é' });
  const bytes = Buffer.from(`NCCL INFO\n${json}\n\ncut off`);
  for (const size of [1, 7, bytes.length]) {
    const [from, to] = [new PassThrough(), new PassThrough()];
    writeLines(from, 3, to);
    from.once('close', () => to.end());
    for (let begin = 0; begin < bytes.length; begin += size) from.write(bytes.subarray(begin, begin + size));
    from.end();
    assert.equal(await text(to), `rank 3: NCCL INFO\n${json}\nrank 3: \nrank 3: cut off\n`);
  }
});

test('the first rank that did not follow another one is the cause', () => {
  const end = (rank: number, code: number, by: RankEnd['by'] = null): RankEnd => ({ rank, code, by });
  const cases: [string, RankEnd[], number | undefined][] = [
    ['none of those that succeed', [end(0, 0), end(1, 0)], undefined],
    ['none of those that stop', [end(1, 143), end(0, 130)], undefined],
    ['the first of several', [end(1, 1), end(0, 2)], 1],
    ['one that failed after it had ended its peers', [end(0, 4), end(2, 4), end(1, 1)], 1],
    ['a rank in another pod', [end(2, 4), end(3, 4)], 2],
    ['one that was killed while others stop', [end(0, 143), end(1, 137, 'SIGKILL')], 1],
    ['SIGTERM before the program could handle it', [end(1, 143, 'SIGTERM')], 1],
  ];
  for (const [name, ends, want] of cases) assert.equal(firstFailure(ends)?.rank, want, name);
});
