/**
 * insightface's verification sets: `.bin` files, each a pickle of (pictures, issame). The pictures are encoded; issame
 * has a bool for each pair.
 */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { FacetrainError } from '@facetrain/api';
import { unpickle } from './pickle.ts';
import { ByteArray, type PickleValue, Tuple } from './pickle-values.ts';

export interface VerificationSet {
  name: string;
  path: string;
  /** Encoded pictures: JPEG, PNG, WebP or BMP; 2i and 2i + 1 are pair i. */
  encoded: Uint8Array[];
  /** By pair: whether both pictures show the same person. */
  same: boolean[];
}

/** Folds of the protocol, and so the smallest number of pairs. */
export const FOLDS = 10;

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

  const encoded = pictures.map(
    (value, i) => pictureOf(value) ?? refuse(`picture ${i} is no byte string`, 'encoded pictures'),
  );
  const same = answers.map((value, i) =>
    typeof value === 'boolean' ? value : refuse(`pair ${i} is said to be the same by what is no bool`, 'true or false'),
  );
  if (encoded.length !== 2 * same.length)
    return refuse(`${encoded.length} pictures for ${same.length} pairs`, 'two pictures a pair');
  if (same.length < FOLDS)
    return refuse(`${same.length} pairs`, `at least ${FOLDS}: accuracy is measured in ${FOLDS} folds`);
  const positive = same.filter(Boolean).length;
  if (positive === 0 || positive === same.length)
    return refuse(`all pairs ${positive === 0 ? 'differ' : 'are the same'}`, 'pairs of both kinds');
  return { name: basename(path).replace(/\.bin$/, ''), path, encoded, same };
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
