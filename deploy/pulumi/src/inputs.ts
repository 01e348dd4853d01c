/** Inputs of a Pulumi program, validated by the schemas in api/. */
import { type Input, Output, output } from '@pulumi/pulumi';

/** A document of which every part may be an output of another resource. */
export type Inputs<T> = Input<
  T extends (infer E)[] ? Inputs<E>[] : T extends object ? { [K in keyof T]: Inputs<T[K]> } : T
>;

/**
 * Validates a document. If all of it is known this happens at once, so that the stack of the error has the line of the
 * program. Otherwise it happens when all is known (a preview may never know it), before a resource that uses it is
 * registered.
 *
 * @param check throws when the document is invalid
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
