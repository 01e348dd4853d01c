/** insightface's verification sets: `.bin` files, each a pickle of (encoded pictures, whether the pictures of a pair show one person). */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { FacetrainError } from '@facetrain/api';
import { ByteArray, type PickleValue, Tuple, unpickle } from './pickle.ts';

export interface VerificationSet {
  name: string;
  path: string;
  /** Pictures 2i and 2i + 1 are pair i. */
  jpegs: Uint8Array[];
  /** By pair: whether it shows one person. */
  same: boolean[];
}

/** Folds of the protocol, and so the least number of pairs. */
export const folds = 10;

const items = (value: PickleValue | undefined): readonly PickleValue[] | undefined =>
  value instanceof Tuple ? value.items : Array.isArray(value) ? value : undefined;

function pictureOf(value: PickleValue): Uint8Array | undefined {
  if (value instanceof Uint8Array) return value;
  return value instanceof ByteArray && value.dtype === 'u1' ? value.data : undefined;
}

/** @throws FacetrainError InvalidVerificationSet */
export function parseVerificationSet(bytes: Uint8Array, path: string): VerificationSet {
  const refuse = (found: string, allowed: string): never => {
    throw new FacetrainError({ code: 'InvalidVerificationSet', subject: path, found, allowed });
  };
  const top = items(unpickle(bytes, path));
  const pictures = items(top?.[0]);
  const second = top?.[1];
  const answers =
    second instanceof ByteArray && second.dtype === 'b1' ? [...second.data].map((byte) => byte !== 0) : items(second);
  if (top?.length !== 2 || !pictures || !answers)
    return refuse('no pair of two lists', 'a pickle of (pictures, issame)');

  const jpegs = pictures.map(
    (value, i) => pictureOf(value) ?? refuse(`picture ${i} is no byte string`, 'encoded pictures'),
  );
  const same = answers.map((value, i) =>
    typeof value === 'boolean' ? value : refuse(`pair ${i} is said to be the same by what is no bool`, 'true or false'),
  );
  if (jpegs.length !== 2 * same.length)
    return refuse(`${jpegs.length} pictures for ${same.length} pairs`, 'two pictures a pair');
  if (same.length < folds)
    return refuse(`${same.length} pairs`, `at least ${folds}: accuracy is measured in ${folds} folds`);
  const positive = same.filter(Boolean).length;
  if (positive === 0 || positive === same.length)
    return refuse(`all pairs ${positive === 0 ? 'differ' : 'are the same'}`, 'pairs of both kinds');
  return { name: basename(path).replace(/\.bin$/, ''), path, jpegs, same };
}

/** @throws FacetrainError InvalidVerificationSet */
export async function readVerificationSet(path: string): Promise<VerificationSet> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw new FacetrainError({
      code: 'InvalidVerificationSet',
      subject: path,
      found: `cannot be read (${(cause as Error).message})`,
      allowed: 'an insightface .bin file',
      cause,
    });
  }
  return parseVerificationSet(bytes, path);
}
