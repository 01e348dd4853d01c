/** Runs the operator's bundled program in a separate process, to measure its memory, CPU time and requests alone. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { freePorts } from '../../hack/lib/free-ports.mjs';
import { root } from '../../hack/lib/paths.mjs';
import { OPERATOR } from './kwok-cluster.ts';
import { memoryOf } from './process-usage.ts';

const FOLDER = join(root, 'operator');
/** The bundle of the image; hack/bench.mjs builds it. */
const PROGRAM = join(FOLDER, 'dist', 'bundle', 'main.mjs');
const START_MILLISECONDS = 30_000;

/** What the process has used since its start. */
export interface Usage {
  cpuSeconds: number;
  /** Requests to the API server by method. */
  requests: Record<string, number>;
}

export class OperatorProcess {
  readonly #child: ChildProcess;
  readonly #address: string;
  #stopping = false;

  private constructor(child: ChildProcess, address: string) {
    this.#child = child;
    this.#address = address;
    // Without its operator a scenario would wait for ever.
    child.once('exit', (code, signal) => {
      if (this.#stopping) return;
      console.error(`The operator has ended (${signal ?? `exit code ${code}`}); its last messages are above.`);
      process.exit(1);
    });
  }

  /**
   * Resolves when it is ready. A replica that waits for the lease is ready, too.
   *
   * @param nodeOptions additional options of node, such as --cpu-prof
   */
  static async start(plane: ControlPlane, nodeOptions: string[] = []): Promise<OperatorProcess> {
    const [port] = await freePorts(1);
    const { folder, env } = await plane.serviceAccount(OPERATOR.namespace, OPERATOR.account);
    const args = ['--image', 'registry.example/trainer:1', '--service-account', folder, '--health-port', String(port)];
    const child = spawn(process.execPath, [...(await imageOptions()), ...nodeOptions, PROGRAM, ...args], {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, ...env },
    });
    const kill = () => child.kill('SIGKILL');
    process.once('exit', kill);
    child.once('exit', () => process.off('exit', kill));
    const operator = new OperatorProcess(child, `http://127.0.0.1:${port}`);
    await eventually(async () => {
      assert.equal((await fetch(`${operator.#address}/readyz`)).status, 200);
    }, START_MILLISECONDS);
    return operator;
  }

  async isLeading(): Promise<boolean> {
    return (await this.#metrics()).some(({ name, value }) => name === 'leader_election_master_status' && value === 1);
  }

  /** How many reconciles have ended, of any result. */
  async reconciles(): Promise<number> {
    const all = (await this.#metrics()).filter(({ name }) => name === 'controller_runtime_reconcile_total');
    return all.reduce((sum, { value }) => sum + value, 0);
  }

  async usage(): Promise<Usage> {
    const metrics = await this.#metrics();
    const requests: Record<string, number> = {};
    for (const { name, labels, value } of metrics) {
      if (name !== 'rest_client_requests_total') continue;
      const method = /method="(\w+)"/.exec(labels)![1]!;
      requests[method] = (requests[method] ?? 0) + value;
    }
    return { requests, cpuSeconds: metrics.find(({ name }) => name === 'process_cpu_seconds_total')!.value };
  }

  /** Resident memory in MiB: now, and at its peak. */
  async memory(): Promise<{ now: number; peak: number }> {
    return memoryOf(this.#child.pid!);
  }

  async stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    this.#stopping = true;
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill(signal);
    await ended;
  }

  async #metrics(): Promise<{ name: string; labels: string; value: number }[]> {
    // A connection that is kept may be closed by the server, after some idle seconds, just when it is used again.
    const text = await (await fetch(`${this.#address}/metrics`, { headers: { connection: 'close' } })).text();
    return text.split('\n').flatMap((line) => {
      const [, name, labels = '', value] = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
      return name === undefined ? [] : [{ name, labels, value: Number(value) }];
    });
  }
}

/** What was used between two readings. */
export function usageBetween(before: Usage, after: Usage): Usage {
  const requests = Object.fromEntries(
    Object.entries(after.requests).map(([method, count]) => [method, count - (before.requests[method] ?? 0)]),
  );
  return { cpuSeconds: after.cpuSeconds - before.cpuSeconds, requests };
}

/** The options that the image passes to node, from the Dockerfile's ENTRYPOINT. */
async function imageOptions(): Promise<string[]> {
  const [, entrypoint] = /^ENTRYPOINT (\[.*\])$/m.exec(await readFile(join(FOLDER, 'Dockerfile'), 'utf8'))!;
  return (JSON.parse(entrypoint!) as string[]).slice(1, -1);
}
