/** Since when something has been failing, by key: what lasts is reported, and what does not is only tried again. */
export class FailingSince {
  readonly #milliseconds: number;
  /** By performance.now(). */
  readonly #since = new Map<string, number>();

  /** @param milliseconds after which a failure counts as lasting */
  constructor(milliseconds: number) {
    this.#milliseconds = milliseconds;
  }

  /** To be called at each failure. @returns whether it has failed for long, without a success in between */
  lasts(key: string): boolean {
    const since = this.#since.get(key) ?? performance.now();
    this.#since.set(key, since);
    return performance.now() - since >= this.#milliseconds;
  }

  /** To be called after a success, and for a key that no longer exists. */
  end(key: string): void {
    this.#since.delete(key);
  }
}
