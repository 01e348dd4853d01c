/** Opens the graph of a file in the native executor, whose errors name the node; these name the file as well. */
import { type Graph, Model, type ModelOptions } from '@facetrain/native';
import { withSubject } from './with-subject.ts';

/** @param file for messages @throws FacetrainError as Model.open */
export async function openModel(graph: Graph, file: string, options: ModelOptions): Promise<Model> {
  try {
    return await Model.open(graph, options);
  } catch (error) {
    throw withSubject(file, error);
  }
}
