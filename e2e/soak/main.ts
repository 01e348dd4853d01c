/** `npm run soak`: prints what happens, and a summary; exit code 1 after a violation. */
import { parseArgs } from 'node:util';
import { runKubeletSoak } from './kubelet/soak.ts';
import type { FaultSummary } from './recovery.ts';
import { runSoak } from './soak.ts';

const HELP = `Usage: npm run soak [-- --minutes COUNT] [--seed NUMBER] [OPTION...]

Runs jobs while random faults happen to pods, nodes, operators, API server, etcd and Kueue; then checks what was
stored. The seed also decides whether gangs are PodGroups, and whether the API server has a watch cache.

--minutes COUNT   of the time with faults (default 5)
--seed NUMBER     repeats the choices of an earlier run (default: a new one)
--faults COUNT    ends the time with faults after so many
--jobs COUNT      that run at the same time (default 16)
--nodes COUNT     (default 8)
--every MS        mean time between two faults (default 700)
--cluster         real trainers on the real kubelets of a cluster in containers, and faults of these (faults of every
                  8 s by default); needs root or a Docker engine. --jobs and --nodes are fixed
`;

class UsageError extends Error {}

function settings() {
  const text = { type: 'string' } as const;
  const options = { minutes: text, seed: text, faults: text, jobs: text, nodes: text, every: text };
  let values: ReturnType<typeof parseArgs<{ options: typeof options }>>['values'] & {
    help?: boolean;
    cluster?: boolean;
  };
  try {
    const flags = { help: { type: 'boolean', short: 'h' }, cluster: { type: 'boolean' } } as const;
    ({ values } = parseArgs({ options: { ...options, ...flags } }));
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const number = (name: keyof typeof options, fallback: number, min: number): number => {
    const value = Number(values[name] ?? fallback);
    if (!(value >= min) || (name !== 'minutes' && !Number.isInteger(value)))
      throw new UsageError(`--${name}: ${values[name]}; must be a number from ${min}`);
    return value;
  };
  if (values.help) return null;
  const { cluster = false } = values;
  if (cluster && (values.jobs ?? values.nodes) !== undefined)
    throw new UsageError('--cluster: without --jobs, --nodes');
  return {
    cluster,
    seconds: 60 * number('minutes', 5, 0.05),
    seed: number('seed', Math.floor(Math.random() * 1e6), 0),
    ...(values.faults !== undefined && { maxFaults: number('faults', 1, 1) }),
    jobs: number('jobs', 16, 1),
    nodes: number('nodes', 8, 2),
    faultMilliseconds: number('every', cluster ? 8000 : 700, 1),
  };
}

type Settings = NonNullable<ReturnType<typeof settings>>;

/** Recoveries: of jobs that a fault disturbed until they run again, or of the operator until it acts on an edit. */
function table(faults: FaultSummary[]): string {
  const seconds = (value: number | null) => (value === null ? '-' : value.toFixed(1));
  const rows = faults.map(({ fault, count, recoveries, medianSeconds, longestSeconds }) =>
    [fault, count, recoveries || '-', seconds(medianSeconds), seconds(longestSeconds)].map(String),
  );
  const all = [['fault', 'count', 'recoveries', 'median s', 'longest s'], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  const line = (row: string[]) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ');
  return all.map((row) => `${line(row)}\n`).join('');
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function conclude(seed: number, violations: string[]): void {
  for (const violation of violations) print(`VIOLATION  ${violation}`);
  print(`${violations.length} violations, seed ${seed}`);
  process.exitCode = violations.length === 0 ? 0 : 1;
}

const countOf = (faults: FaultSummary[]): number => faults.reduce((sum, { count }) => sum + count, 0);

async function simulated(options: Settings): Promise<void> {
  const result = await runSoak({ ...options, say: print });
  const { faults, jobs, restarts, changes, expiredWatches, overlent, quietSeconds, violations } = result;
  process.stdout.write(table(faults));
  print(
    `${countOf(faults)} faults; ${jobs.created} jobs created, ${jobs.succeeded} succeeded, ${jobs.deleted} deleted; ` +
      `${restarts.attempts} further attempts, ${restarts.inPlace} restarts in place; ` +
      `${expiredWatches} watches expired; Kueue lent too much ${overlent} times; ` +
      `all had ended ${quietSeconds} s after the last fault`,
  );
  print(
    `checked ${changes.pods} changes of pods, ${changes.facetrainjobs + changes.quantizejobs} of jobs and ` +
      `${changes.workloads} of Workloads`,
  );
  conclude(options.seed, violations);
}

async function onKubelets(options: Settings): Promise<void> {
  const { faults, restarts, checkpoints, changes, violations } = await runKubeletSoak({ ...options, say: print });
  process.stdout.write(table(faults));
  print(
    `${countOf(faults)} faults; ${restarts.attempts} further attempts, ${restarts.inPlace} restarts in place; ` +
      `checked ${changes.pods} changes of pods, ${changes.facetrainjobs} of jobs, and ${checkpoints} checkpoints`,
  );
  conclude(options.seed, violations);
}

try {
  const options = settings();
  if (options === null) process.stdout.write(HELP);
  else {
    print(`seed ${options.seed}`);
    await (options.cluster ? onKubelets(options) : simulated(options));
  }
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${error.message}\n\n${HELP}`);
  process.exitCode = 2;
}
