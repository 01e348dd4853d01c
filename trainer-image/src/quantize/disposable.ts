/** Closes native models by `await using`. */
import type { Embedder } from '@facetrain/native';

/** Closes the model at the end of the scope. */
export function disposable<T extends Embedder>(model: T): { model: T } & AsyncDisposable {
  return { model, [Symbol.asyncDispose]: () => model.close() };
}
