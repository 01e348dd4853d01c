/** Names in a graph that is being written: nodes and values share one set here, so that none is used twice. */
export class UniqueNames {
  readonly #used: Set<string>;

  /** @param used names that are taken from the start */
  constructor(used: Iterable<string>) {
    this.#used = new Set(used);
  }

  /** Reserves `wish`, or `wish_2`, `wish_3`, ... where it is taken, and returns the name reserved. */
  take(wish: string): string {
    let name = wish;
    for (let count = 2; this.#used.has(name); count++) name = `${wish}_${count}`;
    this.#used.add(name);
    return name;
  }
}
