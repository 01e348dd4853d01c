/** Long native calls, each on a thread of its own. */
import { translated } from './native-errors.ts';

/** A native call on a thread of its own; closing cancels it and ends the thread. */
export interface Call<T> {
  promise: Promise<T>;
  close(): Promise<void>;
}

/** What a call gives; its thread has ended by then. @throws the signal's reason once it is aborted; FacetrainError */
export async function result<T>(start: () => Call<T>, signal?: AbortSignal): Promise<T> {
  signal?.throwIfAborted();
  const call = start();
  const cancel = () => void call.close();
  signal?.addEventListener('abort', cancel);
  try {
    return await translated(() => call.promise);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener('abort', cancel);
    await call.close();
  }
}
