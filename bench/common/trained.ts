/** Trainings by the command that users have, and what their networks make of pictures. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Model } from '@facetrain/native';
import { withInputRange } from '@facetrain/trainer/onnx/input-range';
import { readOnnx } from '@facetrain/trainer/onnx/read';
import { root } from '../../hack/lib/paths.mjs';
import { readAll } from './pairs.ts';

/** @throws Error with what the command printed, if it fails */
export async function facetrain(...args: string[]): Promise<void> {
  const main = join(root, 'cli', 'src', 'main.ts');
  await promisify(execFile)(process.execPath, [main, ...args], { maxBuffer: 2 ** 26 });
}

/** Pictures that are decoded and embedded at a time. */
const AT_ONCE = 256;

/**
 * The embeddings of pictures of a dataset, [pictures, dim], each with that of its mirror image.
 *
 * @param model an ONNX file
 */
export async function embed(
  model: string,
  { folder, pictures, computeThreads }: { folder: string; pictures: readonly number[]; computeThreads: number },
): Promise<Float32Array> {
  const { graph } = withInputRange(await readOnnx(model), { subject: model });
  const network = await Model.open(graph, { computeThreads });
  const embeddings = new Float32Array(pictures.length * network.dim);
  for (let first = 0; first < pictures.length; first += AT_ONCE) {
    const some = await readAll(folder, pictures.slice(first, first + AT_ONCE));
    embeddings.set(await network.embed(some, { flip: true }), first * network.dim);
  }
  await network.close();
  return embeddings;
}
