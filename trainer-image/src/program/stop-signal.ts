/** Orderly stops: SIGTERM and SIGINT as an AbortSignal, and the exit codes that say which it was. */
import { ExitCode } from '@facetrain/api';

/**
 * Aborted by the first SIGTERM or SIGINT, with the signal's name as reason; and as if by SIGTERM when a parent that opened a channel to
 * this process (`facetrain run`) is gone, however it ended.
 */
export function stopSignal(): AbortSignal {
  const controller = new AbortController();
  process.on('disconnect', () => controller.abort('SIGTERM'));
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => controller.abort(name));
  return controller.signal;
}

/** A rank that stops because another one was told to counts as preempted, too. */
export function stopExitCode(signal: AbortSignal): ExitCode {
  return signal.reason === 'SIGINT' ? ExitCode.interrupted : ExitCode.preempted;
}

/** What an operation rejects with when it gives up because of `signal`. */
export class Stopped extends Error {
  override readonly name = 'AbortError';
  constructor(reason: unknown) {
    super(`stopped by ${String(reason)}`);
  }
}

/** True for what is thrown when an operation ends early because it was told to, whoever throws it. */
export function isStop(error: unknown, signal: AbortSignal): boolean {
  return signal.aborted && (error === signal.reason || (error instanceof Error && error.name === 'AbortError'));
}

/** The promise's outcome, or Stopped as soon as the signal is aborted; the operation itself goes on unseen. */
export function unlessStopped<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new Stopped(signal.reason));
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}
