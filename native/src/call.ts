/** Long native calls: each runs on its own thread and can be cancelled. The C++ side is native/node/call.h. */
import { translateErrors } from './native-errors.ts';

/** A native call that is running on its own thread. `close` cancels it and resolves when the thread has ended. */
export interface Call<T> {
  promise: Promise<T>;
  close(): Promise<void>;
}

/**
 * Starts a call and resolves to its result after its thread has ended. An abort of `signal` cancels the call.
 * @throws the signal's reason once it is aborted; FacetrainError for errors of the call
 */
export async function runCall<T>(start: () => Call<T>, signal?: AbortSignal): Promise<T> {
  signal?.throwIfAborted();
  const call = start();
  const cancel = () => void call.close();
  signal?.addEventListener('abort', cancel);
  try {
    return await translateErrors(() => call.promise);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener('abort', cancel);
    await call.close();
  }
}
