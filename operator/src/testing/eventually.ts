/** Waits for a condition, and never longer than its deadline. */
import { setTimeout as delay } from 'node:timers/promises';

/** Resolves to what `check` does once it does not throw. @throws what it threw last, after the deadline */
export async function eventually<T>(check: () => T | Promise<T>, milliseconds = 15_000): Promise<T> {
  const end = performance.now() + milliseconds;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (performance.now() >= end) throw error;
      await delay(20);
    }
  }
}
