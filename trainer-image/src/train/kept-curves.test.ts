/** The curves beside steps that are kept in memory, of processes that end after any of their writes. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { CurveInterval } from '@facetrain/api';
import type { KeptStep, TrainingSessionContract } from '@facetrain/native';
import { trainerConfig } from '../testing/training-gang.ts';
import { type EarlierSteps, History } from './history.ts';
import { KeptSteps, type RecalledState } from './kept-steps.ts';

const top = await mkdtemp(join(tmpdir(), 'kept-curves-'));
after(() => rm(top, { recursive: true }));

/** Intervals of three steps. */
const SIZE = { totalSteps: 2500, stepsPerEpoch: 100, globalBatchSize: 8 };
const LOG = { info() {}, warn: assert.fail } as never;

const newHistory = (attempt: number, earlier?: EarlierSteps) =>
  new History(SIZE, { job: 'j', attempt, startedAt: '', trainers: 1, device: 'cpu' }, earlier);

function addStep(history: History, step: number): void {
  const record = { step, loss: step, learningRate: 1, sampleRate: 1, seconds: 1, stageSeconds: null };
  history.add({ ...record, time: new Date(step) });
}

/** The rank of a gang of one, and a memory that outlives its process. */
class Pod {
  #kept: KeptStep[] = [];
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** What a process does before its first step. */
  async start(attempt: number): Promise<{ kept: KeptSteps; history: History; recalled: RecalledState | undefined }> {
    const session = {
      precision: 'fp32',
      allGather: async (values: Float32Array) => [values],
      openKeptSteps: async () => [...this.#kept],
      keepAll: async (step: KeptStep) => void (this.#kept = [step]),
      keep: async (step: KeptStep) => void (this.#kept = [step, this.#kept[0]!]),
      recall: async () => {},
      usePrecision: async () => {},
    } as unknown as TrainingSessionContract;
    const config = trainerConfig(this.#folder);
    config.checkpoint.memoryDirectory = this.#folder;
    const size = { numClasses: 7, totalSteps: SIZE.totalSteps };
    const ranks = { rank: 0, size: 1 } as Parameters<typeof KeptSteps.open>[3];
    const kept = await KeptSteps.open(session, config, size, ranks, { log: LOG });
    const recalled = await kept.recall(null);
    const history = newHistory(attempt, recalled);
    const { forCheckpoint, interval } = history;
    if (!recalled) await kept.begin(0, { history: forCheckpoint, interval }, undefined, null);
    await kept.keepCurves(() => ({ ...history.curves, evaluations: [] }));
    return { kept, history, recalled };
  }

  /** The newest step was not kept on another rank. */
  loseNewest(): void {
    this.#kept.shift();
  }
}

test('each step is in the curves once, wherever a process has ended', async () => {
  const whole = newHistory(0);
  for (let step = 0; step < 20; step++) addStep(whole, step);
  const rounded = (intervals: CurveInterval[]) =>
    intervals.map((interval) => ({ ...interval, loss: Number(interval.loss.toPrecision(12)) }));
  for (const before of [4, 5, 6, 7])
    for (const isNoted of [false, true])
      for (const isLost of [false, true]) {
        const pod = new Pod(await mkdtemp(join(top, 'pod-')));
        const run = async (attempt: number, to: number) => {
          const { kept, history, recalled } = await pod.start(attempt);
          for (let step = recalled?.step ?? 0; step < to; step++) {
            addStep(history, step);
            await kept.keep(step + 1, { history: history.forCheckpoint, interval: history.interval });
            if (!history.isIntervalOpen && (isNoted || step + 1 < to))
              await kept.keepCurves(() => ({ ...history.curves, evaluations: [] }));
          }
          return { history, recalled };
        };
        await run(0, before);
        if (isLost) pod.loseNewest();
        const { history, recalled } = await run(1, 20);
        const from = isLost ? before - 1 : before;
        assert.equal(recalled?.step, from);
        assert.deepEqual(rounded(history.curves.intervals), rounded(whole.curves.intervals));
        assert.deepEqual(
          history.curves.attempts.map(({ attempt, fromStep }) => [attempt, fromStep]),
          [
            [0, 0],
            [1, from],
          ],
        );
      }
});
