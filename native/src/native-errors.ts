/** Turns native errors into FacetrainError. */
import { type ErrorCode, FacetrainError } from '@facetrain/api';

/** native/error.h's Error as the addon passes it to JavaScript. */
interface NativeError extends Error {
  code: ErrorCode;
  subject: string;
  found: string;
  allowed: string;
}

/**
 * The FacetrainError with the fields of a native error. Any other error is a defect of the program and is returned
 * unchanged.
 */
export function asFacetrainError(error: unknown): unknown {
  if (!(error instanceof Error) || !('subject' in error)) return error;
  const { code, subject, found, allowed } = error as NativeError;
  return new FacetrainError({ code, subject, found, allowed });
}

/** Runs a native call. Its error, thrown or rejected, becomes a FacetrainError. */
export async function translateErrors<T>(call: () => Promise<T> | T): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw asFacetrainError(error);
  }
}
