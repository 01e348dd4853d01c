/** Waits for conditions that become true with an event, without polling. */

/** A thousand jobs beside other work take long; a benchmark never fails because of a time. */
const DEADLINE_MILLISECONDS = 7_200_000;

export class Conditions {
  readonly #waiting = new Set<() => void>();

  /** Looks at each condition that is waited for. Call it after each event. */
  changed(): void {
    for (const look of [...this.#waiting]) look();
  }

  /** @returns when the condition has become true (performance.now()) */
  when(check: () => boolean, what: string): Promise<number> {
    if (check()) return Promise.resolve(performance.now());
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => settle(() => reject(new Error(`not within ${DEADLINE_MILLISECONDS / 1000} s: ${what}`))),
        DEADLINE_MILLISECONDS,
      );
      const settle = (end: () => void) => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        end();
      };
      const look = () => {
        if (check()) settle(() => resolve(performance.now()));
      };
      this.#waiting.add(look);
    });
  }
}
