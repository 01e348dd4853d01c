/** Names in a graph that is being written: nodes and values share one set here, so that none is used twice. */
export class UniqueNames {
  readonly #used: Set<string>;

  /** @param used names that are taken from the start */
  constructor(used: Iterable<string>) {
    this.#used = new Set(used);
  }

  /** Reserves `preferredName`, or that with `_2`, `_3`, ... if it is taken, and returns the name reserved. */
  take(preferredName: string): string {
    let name = preferredName;
    for (let count = 2; this.#used.has(name); count++) name = `${preferredName}_${count}`;
    this.#used.add(name);
    return name;
  }
}
