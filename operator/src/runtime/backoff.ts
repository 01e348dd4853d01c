/** Exponential backoff with jitter, so that clients that failed together do not all try again at the same time. */

export class Backoff {
  readonly #base: number;
  readonly #max: number;
  readonly #random: () => number;
  #failures = 0;

  /**
   * @param base first wait in milliseconds
   * @param max longest wait in milliseconds
   * @param random in [0, 1)
   */
  constructor(base: number, max: number, random: () => number = Math.random) {
    this.#base = base;
    this.#max = max;
    this.#random = random;
  }

  get failures(): number {
    return this.#failures;
  }

  /** The next wait in milliseconds: between three quarters of its nominal length and all of it. */
  next(): number {
    const nominal = Math.min(this.#base * 2 ** this.#failures++, this.#max);
    return nominal * (0.75 + 0.25 * this.#random());
  }

  reset(): void {
    this.#failures = 0;
  }
}
