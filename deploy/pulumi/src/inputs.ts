/** Inputs of a Pulumi program, held against the schemas in api/. */
import { type Input, Output, output } from '@pulumi/pulumi';

/** A document of which every part may be an output of another resource. */
export type Inputs<T> = Input<
  T extends (infer E)[] ? Inputs<E>[] : T extends object ? { [K in keyof T]: Inputs<T[K]> } : T
>;

/**
 * Checks a document at once if all of it is known, so that an error points at the line of the program; else once it is, and before anything that is made of it
 * is registered. What only `pulumi up` finds out passes a preview.
 * @param check throws what is wrong
 */
export function checked<T>(document: Inputs<T>, check: (document: T) => void): Output<T> {
  const resolved = output(document) as Output<T>;
  if (isKnown(document)) check(document as T);
  else
    return resolved.apply((known) => {
      check(known);
      return known;
    });
  return resolved;
}

function isKnown(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return true;
  return !Output.isInstance(value) && !(value instanceof Promise) && Object.values(value).every(isKnown);
}
