/** Storage that is away for a moment, as while it is upgraded, must not end what has run for days. */
import { setTimeout as delay } from 'node:timers/promises';
import { ExitCode, FacetrainError } from '@facetrain/api';

export interface Patience {
  signal: AbortSignal;
  /** Told of each failure after which it is tried again. */
  onWait: (error: FacetrainError, milliseconds: number) => void;
  /** How long a failure that may pass is waited for, in milliseconds: a wrong address should be told soon, too. */
  patience?: number;
  /** The first wait, in milliseconds; the next ones double. */
  wait?: number;
}

const PATIENCE_MILLISECONDS = 60_000;
const FIRST_WAIT_MILLISECONDS = 1_000;
const LONGEST_WAIT_MILLISECONDS = 10_000;

/** What `work` resolves to once it does. @throws what it threw, if that does not pass by itself, or has not passed in time; Error AbortError when stopped */
export async function patiently<T>(
  work: () => Promise<T>,
  { signal, onWait, patience = PATIENCE_MILLISECONDS, wait = FIRST_WAIT_MILLISECONDS }: Patience,
): Promise<T> {
  let failedAt: number | undefined;
  for (let next = wait; ; next = Math.min(2 * next, LONGEST_WAIT_MILLISECONDS)) {
    try {
      return await work();
    } catch (error) {
      failedAt ??= performance.now();
      if (!mayPass(error) || performance.now() + next - failedAt > patience) throw error;
      onWait(error, next);
      await delay(next, undefined, { signal });
    }
  }
}

const mayPass = (error: unknown): error is FacetrainError =>
  error instanceof FacetrainError && error.code === 'StorageFailed' && error.exitCode === ExitCode.failure;
