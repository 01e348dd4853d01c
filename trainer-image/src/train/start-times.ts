/** How long each part of a trainer's start takes: what a restart of its gang costs beside the pods. */

/** `program`: Node, the addon and our modules. `step`: the first one, with what it allocates. */
type Part = 'program' | 'preflight' | 'rendezvous' | 'loading' | 'step';

export class StartTimes {
  /** In seconds; together the time since the process began. */
  readonly seconds: Partial<Record<Part, number>> = {};
  #end = 0;

  /** Ends a part, and begins the next. @returns false when it has ended before */
  end(part: Part): boolean {
    if (this.seconds[part] !== undefined) return false;
    // Counts from the start of the process.
    const now = performance.now() / 1000;
    this.seconds[part] = Math.round((now - this.#end) * 1000) / 1000;
    this.#end = now;
    return true;
  }
}
