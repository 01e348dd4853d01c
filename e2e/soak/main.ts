/** `npm run soak`: prints what happens, and a summary; exit code 1 after a violation. */
import { parseArgs } from 'node:util';
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
`;

class UsageError extends Error {}

function settings() {
  const text = { type: 'string' } as const;
  const options = { minutes: text, seed: text, faults: text, jobs: text, nodes: text, every: text };
  let values: ReturnType<typeof parseArgs<{ options: typeof options }>>['values'] & { help?: boolean };
  try {
    ({ values } = parseArgs({ options: { ...options, help: { type: 'boolean', short: 'h' } } }));
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
  return {
    seconds: 60 * number('minutes', 5, 0.05),
    seed: number('seed', Math.floor(Math.random() * 1e6), 0),
    ...(values.faults !== undefined && { maxFaults: number('faults', 1, 1) }),
    jobs: number('jobs', 16, 1),
    nodes: number('nodes', 8, 2),
    faultMilliseconds: number('every', 700, 1),
  };
}

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

try {
  const options = settings();
  if (options === null) process.stdout.write(HELP);
  else {
    process.stdout.write(`seed ${options.seed}\n`);
    const result = await runSoak({ ...options, say: (line) => process.stdout.write(`${line}\n`) });
    const { faults, jobs, restarts, changes, expiredWatches, overlent, quietSeconds, violations } = result;
    process.stdout.write(table(faults));
    const total = faults.reduce((sum, { count }) => sum + count, 0);
    process.stdout.write(
      `${total} faults; ${jobs.created} jobs created, ${jobs.succeeded} succeeded, ${jobs.deleted} deleted; ` +
        `${restarts.attempts} further attempts, ${restarts.inPlace} restarts in place; ` +
        `${expiredWatches} watches expired; Kueue lent too much ${overlent} times; ` +
        `all had ended ${quietSeconds} s after the last fault\n` +
        `checked ${changes.pods} changes of pods, ${changes.facetrainjobs + changes.quantizejobs} of jobs and ` +
        `${changes.workloads} of Workloads\n`,
    );
    for (const violation of violations) process.stdout.write(`VIOLATION  ${violation}\n`);
    process.stdout.write(`${violations.length} violations, seed ${options.seed}\n`);
    process.exitCode = violations.length === 0 ? 0 : 1;
  }
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${error.message}\n\n${HELP}`);
  process.exitCode = 2;
}
