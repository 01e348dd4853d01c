/** Errors about a model that name its file. */
import { FacetrainError } from '@facetrain/api';

/** An error about a part of a model, with the model's file in front. Any other error is returned unchanged. */
export function withSubject(file: string, error: unknown): unknown {
  if (!(error instanceof FacetrainError) || error.subject.startsWith(file)) return error;
  const { code, subject, found, allowed, exitCode, cause } = error;
  return new FacetrainError({ code, subject: `${file}: ${subject}`, found, allowed, exitCode, cause });
}
