/** Orderly stops: SIGTERM and SIGINT as an AbortSignal, and the exit code of each. */
import { ExitCode } from '@facetrain/api';

/**
 * Aborted by the first SIGTERM or SIGINT, with the signal's name as reason. A parent process that opened an IPC channel
 * (`facetrain run`) and ends counts as SIGTERM, however it ended.
 */
export function stopSignal(): AbortSignal {
  const controller = new AbortController();
  process.on('disconnect', () => controller.abort('SIGTERM'));
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => controller.abort(name));
  return controller.signal;
}

/** A rank that stops because another rank got a signal has none itself. It exits as preempted. */
export function stopExitCode(signal: AbortSignal): ExitCode {
  return signal.reason === 'SIGINT' ? ExitCode.interrupted : ExitCode.preempted;
}

/** The error of an operation that was ended by the stop signal. */
export class Stopped extends Error {
  override readonly name = 'AbortError';
  constructor(reason: unknown) {
    super(`stopped by ${String(reason)}`);
  }
}

/** Whether an error is the consequence of the stop signal: its reason, or an AbortError of any API. */
export function isStop(error: unknown, signal: AbortSignal): boolean {
  return signal.aborted && (error === signal.reason || (error instanceof Error && error.name === 'AbortError'));
}

/** The promise's outcome, or Stopped as soon as the signal is aborted. The operation itself is not ended. */
export function abortable<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new Stopped(signal.reason));
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}
