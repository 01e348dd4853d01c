/** `npm run soak`: prints what happens, and a summary; exit code 1 after a violation. */
import { parseArgs } from 'node:util';
import { runSoak } from './soak.ts';

const HELP = `Usage: npm run soak [-- --minutes COUNT] [--seed NUMBER] [OPTION...]

Runs jobs while random faults happen to pods, nodes, operators, API server and etcd; then checks what was stored.

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

try {
  const options = settings();
  if (options === null) process.stdout.write(HELP);
  else {
    process.stdout.write(`seed ${options.seed}\n`);
    const result = await runSoak({ ...options, say: (line) => process.stdout.write(`${line}\n`) });
    const faults = Object.entries(result.faults).sort(([, a], [, b]) => b - a);
    for (const [name, count] of faults) process.stdout.write(`${String(count).padStart(6)}  ${name}\n`);
    const { jobs, restarts, changes, quietSeconds, violations } = result;
    const total = faults.reduce((sum, [, count]) => sum + count, 0);
    process.stdout.write(
      `${total} faults; ${jobs.created} jobs created, ${jobs.succeeded} succeeded, ${jobs.deleted} deleted; ` +
        `${restarts.attempts} further attempts, ${restarts.inPlace} restarts in place; ` +
        `all had ended ${quietSeconds} s after the last fault\n` +
        `checked ${changes.pods} changes of pods and ${changes.facetrainjobs + changes.quantizejobs} of jobs\n`,
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
