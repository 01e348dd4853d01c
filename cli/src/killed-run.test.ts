/**
 * `facetrain run` whose processes are killed at random moments (SIGKILL: the command, one trainer, or all at once, as
 * when the power fails), and which is given again each time, trains the model of the run that nobody disturbed.
 *
 * FACETRAIN_KILLS and FACETRAIN_SEED choose how many kills, and which:
 *
 *     FACETRAIN_KILLS=100 npm test -- cli/src/killed-run.test.ts
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { eventually, Running, trainers, writeTinyJob } from './testing/run-cli.ts';

const KILLS = Number(process.env.FACETRAIN_KILLS ?? 4);
/** Fresh choices in each run, so that all runs together see more than one. The seed stands in the test's name. */
const SEED = Number(process.env.FACETRAIN_SEED ?? Math.floor(Math.random() * 1e6));
/** Of the example’s 800 pictures, eight in a batch. */
const STEPS_PER_EPOCH = 100;
/** Between two checkpoints. */
const STEPS_APART = 5;
/** At most, on a machine of any speed: the training must outlast all lives. */
const STEPS_A_LIFE = 3 * STEPS_APART;

const kills = fc.sample(
  fc.record({
    victim: fc.constantFrom('command', 'rank 0', 'rank 1', 'all'),
    // Most lives train a little; the others end while they start, or read a checkpoint.
    after: fc.oneof(
      { weight: 2, arbitrary: fc.record({ checkpoint: fc.constant(true), milliseconds: fc.nat(200) }) },
      { weight: 1, arbitrary: fc.record({ checkpoint: fc.constant(false), milliseconds: fc.nat(4_000) }) },
    ),
  }),
  { seed: SEED, numRuns: KILLS },
);

const newestStep = (folder: string): number => {
  try {
    const steps = readdirSync(join(folder, 'out', 'checkpoints')).flatMap(
      (name) => /^step-(\d+)$/.exec(name)?.[1] ?? [],
    );
    return Math.max(0, ...steps.map(Number));
  } catch {
    return 0; // No checkpoint was written yet.
  }
};

const killed = (pid: number): void => {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {} // It has ended.
};

/** The bytes of the model, and of the weights in the newest checkpoint, by file. */
async function trained(folder: string): Promise<Map<string, Buffer>> {
  const checkpoints = join(folder, 'out', 'checkpoints');
  const newest = readdirSync(checkpoints)
    .filter((name) => name.startsWith('step-'))
    .sort()
    .at(-1)!;
  const weights = readdirSync(join(checkpoints, newest)).filter((name) => name.endsWith('.safetensors'));
  assert(weights.length > 0, `${newest} has no weights`);
  const files = [join('model', 'backbone.onnx'), ...weights.map((name) => join('checkpoints', newest, name))];
  return new Map(
    await Promise.all(files.map(async (file) => [file, await readFile(join(folder, 'out', file))] as const)),
  );
}

test(`${KILLS} kills, seed ${SEED}`, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-killed-'));
  const run = async (name: string) => {
    const file = await writeTinyJob(join(folder, name), (spec) => {
      spec.epochs = Math.ceil((KILLS * STEPS_A_LIFE) / STEPS_PER_EPOCH);
      spec.globalBatchSize = 8;
      spec.checkpoint = { everySteps: STEPS_APART };
      // No backoff: a kill that came longer than a second ago does not count.
      spec.failurePolicy = { maxRestarts: 100, windowSeconds: 1 };
    });
    return () => new Running(['run', '-f', file]);
  };
  let command: Running | undefined;
  t.after(async () => {
    for (const pid of [command?.child.pid, ...trainers(folder).map((each) => each.pid)]) if (pid) killed(pid);
    await command?.outcome;
    await rm(folder, { recursive: true, force: true, maxRetries: 10 });
  });
  const undisturbed = await (await run('undisturbed'))().outcome;
  assert.equal(undisturbed.code, 0, undisturbed.stderr);

  const start = await run('killed');
  const here = join(folder, 'killed');
  const isRunning = () => command !== undefined && command.child.exitCode === null && command.child.signalCode === null;
  let count = 0;
  for (const { victim, after } of kills) {
    if (!isRunning()) {
      assert.notEqual(command?.child.exitCode, 0, `it was trained after ${count} kills`);
      if (command?.child.signalCode === null) assert.fail(`it ended by itself: ${(await command.outcome).stderr}`);
      command = start();
    }
    const before = newestStep(here);
    if (after.checkpoint)
      await eventually(`a checkpoint after step ${before}`, () => newestStep(here) > before || !isRunning());
    const end = Date.now() + after.milliseconds;
    await eventually('the end of a life', () => Date.now() >= end || newestStep(here) >= before + 2 * STEPS_APART);
    const ranks = trainers(here);
    const hit = ranks.filter(({ rank }) => victim === 'all' || victim === `rank ${rank}`);
    const withCommand = victim === 'command' || victim === 'all' || hit.length === 0;
    const running = command!;
    if (withCommand) killed(running.child.pid!);
    for (const { pid } of hit) killed(pid);
    if (withCommand) await running.outcome;
    count++;
    t.diagnostic(`${count}: ${withCommand && hit.length === 0 ? 'command' : victim}, after step ${newestStep(here)}`);
  }
  if (!isRunning()) command = start();
  const { code, stderr } = await command!.outcome;
  assert.equal(code, 0, stderr);
  const [wanted, found] = await Promise.all(['undisturbed', 'killed'].map((name) => trained(join(folder, name))));
  assert.deepEqual([...found!.keys()], [...wanted!.keys()]);
  for (const [file, bytes] of wanted!) assert(found!.get(file)!.equals(bytes), `${file} has other bytes`);
});
