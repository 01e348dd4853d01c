/** SIGINT and SIGTERM: the first aborts the command, which stops in order; the second ends the process at once. */
import { ExitCode } from '@facetrain/api';

const EXIT_CODES = { SIGINT: ExitCode.interrupted, SIGTERM: ExitCode.preempted } as const;

export type StopSignal = keyof typeof EXIT_CODES;

export interface Stop {
  readonly signal: AbortSignal;
  /** Undefined until a signal has come. */
  readonly received: { name: StopSignal; exitCode: ExitCode } | undefined;
}

/** Installs the handlers. */
export function listenForStop(): Stop {
  const controller = new AbortController();
  let received: Stop['received'];
  for (const name of Object.keys(EXIT_CODES) as StopSignal[]) {
    const exitCode = EXIT_CODES[name];
    process.on(name, () => {
      if (received !== undefined) process.exit(exitCode);
      received = { name, exitCode };
      controller.abort(new Error(name));
      process.stderr.write(`\n${name}: stopping; once more to stop at once\n`);
    });
  }
  return {
    signal: controller.signal,
    get received() {
      return received;
    },
  };
}
