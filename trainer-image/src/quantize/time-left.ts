/** An estimate of the time that a search still takes, by the steps that it has done. Pure. */
export class TimeLeft {
  #first: { done: number; at: number } | undefined;

  /**
   * @param at milliseconds of any clock
   * @returns null at the first call, by which time is measured, and until a step is done
   */
  seconds(done: number, total: number, at: number): number | null {
    this.#first ??= { done, at };
    const steps = done - this.#first.done;
    return steps === 0 ? null : (((at - this.#first.at) / 1000) * (total - done)) / steps;
  }
}
