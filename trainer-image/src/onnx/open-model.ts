/** Opens the graph of a file in the native executor, whose errors name the node; these name the file as well. */
import { FacetrainError } from '@facetrain/api';
import { type Graph, Model, type ModelOptions } from '@facetrain/native';

/** @param file for messages @throws FacetrainError as Model.open */
export async function openModel(graph: Graph, file: string, options: ModelOptions): Promise<Model> {
  try {
    return await Model.open(graph, options);
  } catch (error) {
    throw withSubject(file, error);
  }
}

/** An error about a part of a model, with the model's file in front. Any other error is returned unchanged. */
export function withSubject(file: string, error: unknown): unknown {
  if (!(error instanceof FacetrainError) || error.subject.startsWith(file)) return error;
  const { code, subject, found, allowed, exitCode, cause } = error;
  return new FacetrainError({ code, subject: `${file}: ${subject}`, found, allowed, exitCode, cause });
}
