/** Runs `facetrain` in a child process, and makes jobs for it. */

import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { stringify } from 'yaml';
import { exampleFaces } from '../../../hack/lib/paths.mjs';

const MAIN = join(import.meta.dirname, '..', 'main.ts');
/** Longer than any command takes: only a hang reaches it. */
const DEADLINE_MILLISECONDS = 900_000;

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export class Running {
  readonly child: ChildProcess;
  readonly outcome: Promise<Outcome>;
  stdout = '';
  stderr = '';

  constructor(args: string[], options: { cwd?: string; env?: Record<string, string>; input?: string } = {}) {
    this.child = spawn(process.execPath, [MAIN, ...args], {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    });
    this.child.stdin?.end(options.input);
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => (this.stdout += text));
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
    const timer = setTimeout(() => this.child.kill('SIGKILL'), DEADLINE_MILLISECONDS);
    this.outcome = new Promise((resolve) =>
      this.child.once('close', (code, signal) => {
        clearTimeout(timer);
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr });
      }),
    );
  }
}

export function facetrain(...args: string[]): Promise<Outcome> {
  return new Running(args).outcome;
}

/** Waits until `condition` returns a value, and fails with `what` after the deadline. */
export async function eventually<T>(what: string, condition: () => T | undefined | false): Promise<T> {
  const deadline = Date.now() + DEADLINE_MILLISECONDS;
  for (;;) {
    const value = condition();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`);
    await delay(20);
  }
}

/** Processes of the trainer program whose config lies below `folder`, by their rank. */
export function trainers(folder: string): { pid: number; rank: number }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const env = new Map(
          readFileSync(`/proc/${pid}/environ`, 'utf8')
            .split('\0')
            .map((line) => line.split('=', 2) as [string, string]),
        );
        const zombie = / Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\)/, ''));
        return !zombie && env.get('FACETRAIN_CONFIG')?.startsWith(folder)
          ? [{ pid: Number(pid), rank: Number(env.get('RANK')) }]
          : [];
      } catch {
        return []; // it has ended, or belongs to another user
      }
    });
}

type Fields = Record<string, unknown>;

/** A job that takes seconds: a narrow network, one epoch of 25 steps, two trainers. */
export async function writeTinyJob(folder: string, change: (spec: Fields) => void = () => {}): Promise<string> {
  const spec: Fields = {
    dataset: { uri: `file://${exampleFaces}` },
    model: { backbone: 'mobilefacenet', width: 1, blocks: [1, 1, 1, 1], embeddingDim: 32 },
    optimizer: { learningRate: 0.02 },
    epochs: 1,
    globalBatchSize: 32,
    checkpoint: { everySteps: 5 },
    output: { uri: `file://${join(folder, 'out')}` },
    trainers: { replicas: 2, computeThreads: 1 },
  };
  change(spec);
  await mkdir(folder, { recursive: true });
  const file = join(folder, 'job.yaml');
  await writeFile(
    file,
    stringify({ apiVersion: 'facetrain.dev/v1alpha1', kind: 'FaceTrainJob', metadata: { name: 'tiny' }, spec }),
  );
  return file;
}
