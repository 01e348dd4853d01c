/** Waits for a condition, with a deadline. */
import { setTimeout as delay } from 'node:timers/promises';

/**
 * Repeats `check` until it does not throw.
 * @param interval milliseconds between two checks
 * @returns its result @throws its last error, after the deadline
 */
export async function eventually<T>(check: () => T | Promise<T>, milliseconds = 90_000, interval = 20): Promise<T> {
  const end = performance.now() + milliseconds;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (performance.now() >= end) throw error;
      await delay(interval);
    }
  }
}
