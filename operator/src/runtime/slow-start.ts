/**
 * Many requests of one kind, few at first and, as long as they succeed, more and more at the same time. As in the
 * controllers of Jobs and ReplicaSets (slowStartBatch): what fails for one pod mostly fails for all of a gang, so the
 * first failure should cost one request, not hundreds.
 */

export interface SlowStartOptions {
  /** Calls that are begun before the first has ended. */
  initial: number;
  /** Most calls at the same time. */
  max: number;
}

/**
 * Calls `work` for each item. Each call that resolves to true lets one more run at the same time, which doubles their
 * number in the time that one call takes. After a call that resolves to false, or throws, no call is begun; those under
 * way are waited for.
 *
 * @throws what the first call that threw has thrown, when all have ended
 */
export async function slowStart<T>(
  items: Iterable<T>,
  { initial, max }: SlowStartOptions,
  work: (item: T) => Promise<boolean>,
): Promise<void> {
  const remaining = items[Symbol.iterator]();
  const failures: unknown[] = [];
  let allowed = initial;
  let running = 0;
  let stopped = false;
  await new Promise<void>((resolve) => {
    const run = async (item: T): Promise<void> => {
      running++;
      try {
        if (await work(item)) allowed = Math.min(allowed + 1, max);
        else stopped = true;
      } catch (error) {
        stopped = true;
        failures.push(error);
      }
      running--;
      begin();
    };
    const begin = (): void => {
      while (!stopped && running < allowed) {
        const next = remaining.next();
        if (next.done) break;
        void run(next.value);
      }
      if (running === 0) resolve();
    };
    begin();
  });
  if (failures.length > 0) throw failures[0];
}
