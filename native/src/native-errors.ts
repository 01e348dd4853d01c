/** Native errors as FacetrainError. */
import { type ErrorCode, FacetrainError } from '@facetrain/api';

/** What native/error.h's Error looks like in JavaScript. */
interface NativeError extends Error {
  code: ErrorCode;
  subject: string;
  found: string;
  allowed: string;
}

/** The FacetrainError of a native error that names what it is about; any other error is a defect and is returned as it is. */
export function asFacetrainError(error: unknown): unknown {
  if (!(error instanceof Error) || !('subject' in error)) return error;
  const { code, subject, found, allowed } = error as NativeError;
  return new FacetrainError({ code, subject, found, allowed });
}

/** Runs a native call; its error, thrown or rejected, becomes a FacetrainError. */
export async function translated<T>(call: () => Promise<T> | T): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw asFacetrainError(error);
  }
}
