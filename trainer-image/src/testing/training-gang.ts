/** For tests of training: a small dataset, the configuration of a small backbone, ranks as real processes. */

import { type ChildProcess, spawn } from 'node:child_process';
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Progress, TrainerConfig, type TrainReport } from '@facetrain/api';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { readVerificationSet } from '../verification/verification-set.ts';
import { shippedJpeg, writeDataset } from './dataset-fixtures.ts';

const MAIN = join(import.meta.dirname, '..', 'main.ts');

/** Of the example's dataset, which has its 40 identities one after another. */
const PICTURES_OF_AN_IDENTITY = 20;

/**
 * Writes a dataset of the first `perIdentity` pictures of the example's first identities.
 * @param change replaces a picture's bytes
 */
export function writeSmallDataset(
  directory: string,
  size: { identities: number; perIdentity: number },
  change: (index: number, jpeg: Uint8Array) => Uint8Array = (_, jpeg) => jpeg,
): void {
  const records = Array.from({ length: size.identities * size.perIdentity }, (_, index) => {
    const label = Math.floor(index / size.perIdentity);
    return { label, jpeg: change(index, shippedJpeg(label * PICTURES_OF_AN_IDENTITY + (index % size.perIdentity))) };
  });
  writeDataset(directory, `${size.identities},112,112\n`, records);
}

/** Writes a verification set of the first `pairs` pairs of each kind of the example's set. @returns `path` */
export async function writeSmallSet(path: string, pairs: number): Promise<string> {
  const set = await readVerificationSet(join(exampleFaces, 'lfw-small.bin'));
  const chosen = [true, false].flatMap((kind) =>
    set.same.flatMap((same, pair) => (same === kind ? [pair] : [])).slice(0, pairs),
  );
  const file = await open(path, 'w');
  // Pickle, protocol 3: a tuple of a list of bytes and a list of bools.
  await file.write(Buffer.from('\x80\x03(](', 'latin1'));
  for (const jpeg of chosen.flatMap((pair) => set.encoded.slice(2 * pair, 2 * pair + 2))) {
    const head = Buffer.from('B\0\0\0\0', 'latin1');
    head.writeUInt32LE(jpeg.length, 1);
    await file.write(Buffer.concat([head, jpeg]));
  }
  await file.write(Buffer.from(`e](${chosen.map((pair) => (set.same[pair] ? '\x88' : '\x89')).join('')}et.`, 'latin1'));
  await file.close();
  return path;
}

/** A training of 3 epochs that takes a second, with the smallest mobilefacenet. All folders are below `folder`. */
export function trainerConfig(folder: string, change: Partial<TrainerConfig> = {}): TrainerConfig {
  return {
    schemaVersion: 1,
    job: { name: 'small', uid: 'uid', attempt: 0 },
    dataset: { path: join(folder, 'data'), maxBadPictures: 0.001 },
    model: {
      onnxPath: null,
      backbone: 'mobilefacenet',
      embeddingDim: 32,
      width: 1,
      blocks: [1, 1, 1, 1],
      numClasses: null,
      channelOrder: 'rgb',
      input: null,
      checkpointActivations: false,
      syncBatchNorm: false,
    },
    loss: {
      margin: { type: 'cosface', m1: 1, m2: 0, m3: 0.4, m: 0, h: 0 },
      gradient: 'exact',
      scale: 32,
      sampleRate: 0.5,
      sampleRateChanges: [{ fromEpoch: 1.5, rate: 1 }],
      interclassFilter: null,
      rows: { precision: 'fp32', optimizer: 'sgd', placement: 'device', learningRate: null },
    },
    optimizer: { learningRate: 0.02, momentum: 0.9, weightDecay: 5e-4, gradientClipNorm: 5, rowUpdate: 'lazy' },
    schedule: { type: 'polynomial', power: 2, warmupEpochs: 0.5 },
    globalBatchSize: 4,
    microBatchSize: null,
    epochs: 3,
    seed: 7,
    augment: {
      flip: true,
      shift: 2,
      cropProbability: 0.2,
      lowResolutionProbability: 0.2,
      colorJitterProbability: 0.2,
    },
    loaderThreads: 1,
    computeThreads: 1,
    device: 'cpu',
    precision: 'auto',
    deterministic: true,
    rendezvousTimeoutSeconds: 30,
    collectiveTimeoutSeconds: 30,
    checkpoint: {
      directory: join(folder, 'checkpoints'),
      store: null,
      shared: false,
      everyEpochs: null,
      everySteps: null,
      everySeconds: null,
      keep: 100,
      memoryDirectory: null,
      keepBest: 0,
    },
    evaluation: { sets: [], everyEpochs: null, everySteps: null },
    outputDirectory: join(folder, 'out'),
    outputStore: null,
    progress: { host: '127.0.0.1', port: 0 },
    ...change,
  };
}

export type LogLine = { msg: string } & Record<string, unknown>;

const started = new Set<Rank>();

/** Ends the ranks that a failed test has left running; for afterEach. */
export function killRanks(): void {
  for (const rank of started) rank.kill('SIGKILL');
  started.clear();
}

/** A rank as a process, or with other arguments the program of a pod with several. */
export class Rank {
  readonly lines: LogLine[] = [];
  readonly ended: Promise<number>;
  /** Starts the same program again, as a kubelet starts a container again in its pod. */
  readonly startAgain: () => Rank;
  #child: ChildProcess;
  #text = '';

  constructor(config: string, env: Record<string, string>, args: string[] = []) {
    this.startAgain = () => new Rank(config, env, args);
    this.#child = spawn(process.execPath, [MAIN, 'train', ...args], {
      env: { ...process.env, ...env, FACETRAIN_CONFIG: config },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      const lines = (this.#text + text).split('\n');
      this.#text = lines.pop()!;
      this.lines.push(...lines.map((line) => parseLine(line)));
    });
    started.add(this);
    this.ended = new Promise((resolve) =>
      this.#child.on('close', (code, signal) => resolve(code ?? (signal === 'SIGKILL' ? 137 : -1))),
    );
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Waits until SIGSTOP has stopped the process. */
  async isFrozen(): Promise<void> {
    await until(async () => {
      if (!this.running) throw new Error(`the rank ended:\n${this.text}`);
      // proc_pid_stat(5): the state follows the name, which is in parentheses.
      return /\) T /.test(await readFile(`/proc/${this.#child.pid}/stat`, 'utf8'));
    }, 120_000);
  }

  /** The processes that it has started. */
  async children(): Promise<number[]> {
    const { pid } = this.#child;
    return (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim().split(' ').map(Number);
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Waits for the first line of the log with this message. */
  async logged(message: string, deadlineMs = 300_000): Promise<LogLine> {
    return until(() => {
      const line = this.lines.find(({ msg }) => msg === message);
      if (!line && !this.running) throw new Error(`the rank ended without logging "${message}":\n${this.text}`);
      return line;
    }, deadlineMs);
  }

  get text(): string {
    return this.lines.map((line) => JSON.stringify(line)).join('\n') + this.#text;
  }
}

function parseLine(line: string): LogLine {
  try {
    return JSON.parse(line) as LogLine;
  } catch {
    return { msg: line, notJson: true };
  }
}

/** Waits until a condition returns a value other than undefined and false. @throws Error after the deadline */
export async function until<T>(
  condition: () => T | undefined | false | Promise<T | undefined | false>,
  deadlineMs = 30_000,
): Promise<T> {
  const end = performance.now() + deadlineMs;
  for (;;) {
    const value = await condition();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > end) throw new Error(`not within ${deadlineMs} ms: ${condition}`);
    await delay(5);
  }
}

/** Starts `size` ranks of a job. */
export async function startGang(
  folder: string,
  config: TrainerConfig,
  size: number,
  env: Record<string, string> = {},
): Promise<Rank[]> {
  const path = join(folder, 'config.json');
  await writeFile(path, JSON.stringify(TrainerConfig.parse(config)));
  const port = String((await freePorts(1))[0]);
  return Array.from(
    { length: size },
    (_, rank) =>
      new Rank(path, {
        RANK: String(rank),
        WORLD_SIZE: String(size),
        MASTER_ADDR: '127.0.0.1',
        MASTER_PORT: port,
        ...env,
      }),
  );
}

/** Starts `pods` programs with `perPod` ranks each. The termination message of each is a file `termination-NUMBER`. */
export async function startPods(folder: string, config: TrainerConfig, pods: number, perPod: number): Promise<Rank[]> {
  const path = join(folder, 'config.json');
  await writeFile(path, JSON.stringify(TrainerConfig.parse(config)));
  const env = {
    WORLD_SIZE: String(pods * perPod),
    LOCAL_RANK: '0',
    LOCAL_WORLD_SIZE: String(perPod),
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String((await freePorts(1))[0]),
  };
  return Array.from({ length: pods }, (_, pod) => {
    const own = { RANK: String(pod * perPod), FACETRAIN_TERMINATION_MESSAGE: join(folder, `termination-${pod}`) };
    return new Rank(path, { ...env, ...own }, ['--ranks', String(perPod)]);
  });
}

/** Runs a gang to its end. @returns the ranks' exit codes */
export async function runGang(
  folder: string,
  config: TrainerConfig,
  size: number,
): Promise<{ codes: number[]; ranks: Rank[] }> {
  const ranks = await startGang(folder, config, size);
  return { codes: await Promise.all(ranks.map(({ ended }) => ended)), ranks };
}

export const port = async (rank: Rank): Promise<number> => Number((await rank.logged('serving progress')).port);

/** Waits until a rank has done so many steps. */
export async function steps(rank: Rank, atLeast: number): Promise<Progress> {
  const url = `http://127.0.0.1:${await port(rank)}/v1/progress`;
  return until(async () => {
    const progress = Progress.parse(await (await fetch(url)).json());
    return progress.step >= atLeast && progress;
  }, 300_000);
}

export async function readReport(config: TrainerConfig): Promise<TrainReport> {
  return JSON.parse(await readFile(join(config.outputDirectory, 'train-report.json'), 'utf8')) as TrainReport;
}
