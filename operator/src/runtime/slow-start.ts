/**
 * Work on many things, of which at first few are under way and, as long as all goes well, more and more: what fails for one fails for most, and should not be tried
 * for all.
 */

export interface SlowStartOptions {
  /** How many are begun before one has ended. */
  first: number;
  /** How many may be under way. */
  most: number;
}

/**
 * Each piece of work that resolves to true lets one more be under way than before, which doubles their number in the time that one takes. After the first that does
 * not none is begun; what is under way is waited for.
 *
 * @throws what the first piece of work that threw did, when all have ended
 */
export async function slowStart<T>(
  items: Iterable<T>,
  { first, most }: SlowStartOptions,
  work: (item: T) => Promise<boolean>,
): Promise<void> {
  const left = items[Symbol.iterator]();
  const failures: unknown[] = [];
  let allowed = first;
  let running = 0;
  let stopped = false;
  await new Promise<void>((resolve) => {
    const run = async (item: T): Promise<void> => {
      running++;
      try {
        if (await work(item)) allowed = Math.min(allowed + 1, most);
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
        const next = left.next();
        if (next.done) break;
        void run(next.value);
      }
      if (running === 0) resolve();
    };
    begin();
  });
  if (failures.length > 0) throw failures[0];
}
