/**
 * Finds the file of a model: the path itself, or the one `.onnx` file in a folder, beside which its weights may be. Of
 * an INT7 artifact it is model.int7.onnx, which Facetrain reads, and not the file for TensorRT.
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ARTIFACT, FacetrainError, fileCause } from '@facetrain/api';

/**
 * @param path an ONNX file, or a folder with one (a prefix of an object store is fetched to a folder)
 * @throws FacetrainError InvalidModel for a folder without an `.onnx` file or with several; StorageFailed
 */
export async function modelFile(path: string): Promise<string> {
  let names: string[];
  try {
    const info = await stat(path);
    // A device or a pipe may never end.
    if (!info.isFile() && !info.isDirectory()) throw new Error('is no file');
    if (!info.isDirectory()) return path;
    names = (await readdir(path)).filter((name) => name.endsWith('.onnx'));
  } catch (cause) {
    throw readError(path, cause, 'an ONNX file of less than 2 GiB');
  }
  const [first, ...others] = names.length > 1 ? names.filter((name) => name !== ARTIFACT.tensorRtModel) : names;
  if (first !== undefined && others.length === 0) return join(path, first);
  throw new FacetrainError({
    code: 'InvalidModel',
    subject: path,
    found: names.length === 0 ? 'a folder without an .onnx file' : `a folder with ${names.toSorted().join(', ')}`,
    allowed: 'an ONNX file, or a folder with one (and the files that hold its weights)',
  });
}

/** The error of a file that cannot be read. @param allowed what it must be, or what to do */
export function readError(path: string, cause: unknown, allowed: string): FacetrainError {
  const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
  const found = missing ? 'no such file' : fileCause(cause);
  return new FacetrainError({ code: 'StorageFailed', subject: path, found, allowed, cause });
}
