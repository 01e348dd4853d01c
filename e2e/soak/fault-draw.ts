/** Which fault comes next: by weight, but each kind once before any comes again. */
import type { Random } from './random.ts';

/** @returns undefined: there was nothing to do it to */
export type FaultOf<Around, Done> = (around: Around) => Promise<Done | undefined>;

/** By kind, each with its weight. */
export type Faults<Around, Done> = Record<string, readonly [number, FaultOf<Around, Done>]>;

export class FaultDraw<Around extends { random: Random }, Done extends object> {
  readonly #faults: Faults<Around, Done>;
  readonly #missing: Set<string>;

  constructor(faults: Faults<Around, Done>) {
    this.#faults = faults;
    this.#missing = new Set(Object.keys(faults));
  }

  /** Kinds that nothing was done of yet. */
  get missing(): string[] {
    return [...this.#missing];
  }

  /** In words: how many kinds came, and which did not. */
  get kinds(): string {
    const all = Object.keys(this.#faults).length;
    const missing = this.missing.length > 0 ? `, without: ${this.missing.join(', ')}` : '';
    return `${all - this.#missing.size} of ${all} kinds${missing}`;
  }

  /** Does something at random. @returns its name and what was done; undefined: nothing was done */
  async next(around: Around): Promise<(Done & { name: string }) | undefined> {
    const untried = Object.fromEntries(this.missing.map((name) => [name, this.#faults[name]!]));
    while (Object.keys(untried).length > 0) {
      const name = around.random.weighted(untried);
      const done = await this.#do(name, around);
      if (done) return done;
      delete untried[name];
    }
    return this.#do(around.random.weighted(this.#faults), around);
  }

  async #do(name: string, around: Around): Promise<(Done & { name: string }) | undefined> {
    const done = await this.#faults[name]![1](around);
    if (!done) return undefined;
    this.#missing.delete(name);
    return { name, ...done };
  }
}
