/**
 * Loads the weights that a model keeps in other files (ONNX, "External Data"; PyTorch >= 2.9 writes them by default).
 *
 * A model may name any file, so only regular files inside the model's own folder are read, also after symbolic links,
 * and only as many bytes as are allowed. What is loaded takes the place of `rawData`: the same checks follow.
 */
import { type FileHandle, open, realpath, stat } from 'node:fs/promises';
import { dirname, isAbsolute, join, relative, sep } from 'node:path';
import { FacetrainError } from '@facetrain/api';
import { readError } from './model-file.ts';
import { isExternal, type ModelProto, type TensorProto } from './proto.ts';
import type { Refuse } from './read-nodes.ts';

type GraphProto = NonNullable<ModelProto['graph']>;

/** All tensors of a graph: initializers and the values of its nodes. */
function tensorsOf({ initializer, node }: GraphProto): TensorProto[] {
  const values = node.flatMap(({ attribute }) => attribute.flatMap(({ t }) => (t ? [t] : [])));
  return [...initializer, ...values];
}

/**
 * Reads the data of each external tensor into the tensor.
 * @param path the model's file
 * @param limit most bytes of all tensors together
 * @returns the paths of the files that were read
 * @throws FacetrainError InvalidModel for a location, offset or length that is not allowed; StorageFailed
 */
export async function loadExternalData(
  graph: GraphProto,
  path: string,
  limit: number,
  refuse: Refuse,
): Promise<string[]> {
  const external = tensorsOf(graph).filter(isExternal);
  if (external.length === 0) return [];
  const files = new Map<string, { handle: FileHandle; size: number }>();
  let left = limit;
  try {
    for (const tensor of external) {
      const { location = '', offset, length } = entriesOf(tensor);
      const subject = `tensor "${tensor.name}"`;
      const file = join(dirname(path), checkedLocation(location, subject, refuse));
      if (!files.has(file)) files.set(file, await openInside(file, path, subject, refuse));
      const { handle, size } = files.get(file)!;
      const start = wholeNumber(offset, 'offset', subject, refuse) ?? 0;
      const count = wholeNumber(length, 'length', subject, refuse) ?? Math.max(0, size - start);
      if (start + count > size)
        throw refuse(
          `${subject} is at bytes ${start} to ${start + count} of ${location}, which has ${size}`,
          'the file that was written with the model; this one is cut short or another',
        );
      if (count > left)
        throw refuse(`keeps more than ${limit} bytes in other files`, 'a model of less than 2 GiB with its weights');
      left -= count;
      tensor.rawData = await readRange(handle, file, start, count);
      tensor.externalData = [];
      tensor.dataLocation = 0;
    }
  } finally {
    await Promise.all([...files.values()].map(({ handle }) => handle.close()));
  }
  return [...files.keys()];
}

function entriesOf({ externalData }: TensorProto): { location?: string; offset?: string; length?: string } {
  return Object.fromEntries((externalData ?? []).map(({ key, value }) => [key, value]));
}

function checkedLocation(location: string, subject: string, refuse: Refuse): string {
  const parts = location.split(/[/\\]/);
  if (location === '' || isAbsolute(location) || /^([a-z]:|\\)/i.test(location) || parts.includes('..'))
    throw refuse(
      `${subject} keeps its data at "${location}"`,
      'a path inside the folder of the model: relative, and without ".."',
    );
  if (location.includes('\0')) throw refuse(`${subject} keeps its data at a path with a zero byte`, 'a path');
  return location;
}

function wholeNumber(text: string | undefined, name: string, subject: string, refuse: Refuse): number | undefined {
  if (text === undefined) return undefined;
  const value = /^\d{1,16}$/.test(text) ? Number(text) : NaN;
  if (!Number.isSafeInteger(value)) throw refuse(`${subject} has ${name} "${text}"`, 'a whole number of bytes');
  return value;
}

/** Opens a file that is inside the model's folder, also when links are followed. */
async function openInside(
  file: string,
  model: string,
  subject: string,
  refuse: Refuse,
): Promise<{ handle: FileHandle; size: number }> {
  let handle: FileHandle | undefined;
  try {
    const [real, folder] = await Promise.all([realpath(file), realpath(dirname(model))]);
    const inside = relative(folder, real);
    if (inside === '..' || inside.startsWith(`..${sep}`) || isAbsolute(inside))
      throw refuse(`${subject} keeps its data in ${file}, a link to ${real}`, `a file inside ${folder}`);
    // Before it is opened: opening a pipe waits for a writer.
    if (!(await stat(real)).isFile()) throw refuse(`${subject} keeps its data in ${file}, which is no file`, 'a file');
    handle = await open(real, 'r');
    return { handle, size: (await handle.stat()).size };
  } catch (cause) {
    await handle?.close();
    if (cause instanceof FacetrainError) throw cause;
    const advice =
      'copy both (from an object store or with hostpath:// name their folder), or save the model as one file ' +
      '(onnx.save_model)';
    throw readError(file, cause, `the file that holds the weights of ${model}, beside it: ${advice}`);
  }
}

async function readRange(handle: FileHandle, file: string, start: number, count: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(count);
  for (let done = 0; done < count; ) {
    const { bytesRead } = await handle.read(bytes, done, Math.min(count - done, 2 ** 30), start + done);
    if (bytesRead === 0)
      throw new FacetrainError({
        code: 'StorageFailed',
        subject: file,
        found: `ends at byte ${start + done} while it is read`,
        allowed: 'a file that does not change',
      });
    done += bytesRead;
  }
  return bytes;
}
