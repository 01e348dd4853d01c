/**
 * insightface's verification sets: `.bin` files, each a pickle of (pictures, issame). The pictures are encoded; issame
 * has a bool for each pair.
 */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { counted, FacetrainError, fileCause, type VerificationSet as SetConfig } from '@facetrain/api';
import { nameFileKind } from '@facetrain/native';
import { readGroups } from './groups.ts';
import { unpickle } from './pickle.ts';
import { NumpyArray, type PickleValue, Tuple } from './pickle-values.ts';

export interface VerificationSet {
  name: string;
  path: string;
  /** Encoded pictures: JPEG, PNG, WebP or BMP; 2i and 2i + 1 are pair i. */
  encoded: Uint8Array[];
  /** By pair: whether both pictures show the same person. */
  same: boolean[];
  /** By pair, if the set has groups. */
  groups?: string[];
}

/** Folds of the protocol, and so the smallest number of pairs. */
export const FOLDS = 10;

function items(value: PickleValue | undefined): readonly PickleValue[] | undefined {
  if (value instanceof Tuple) return value.items;
  if (value instanceof NumpyArray) return value.elements();
  return Array.isArray(value) ? value : undefined;
}

/** As numpy.logical_and takes it: a number that is not zero is true. */
function truthOf(value: PickleValue): boolean | undefined {
  // A scalar that was saved as an array. Others are not unfolded: a file may refer to a long one many times.
  if (value instanceof NumpyArray && value.length === 1 && value.dtype.kind !== 'O') value = value.elements()[0]!;
  return typeof value === 'boolean' ? value : typeof value === 'number' ? value !== 0 : undefined;
}

function pictureOf(value: PickleValue): Uint8Array | undefined {
  if (value instanceof Uint8Array) return value;
  return value instanceof NumpyArray && /^[ui]1$/.test(value.dtype.code) ? value.data : undefined;
}

/** @throws FacetrainError InvalidVerificationSet */
export function parseVerificationSet(bytes: Uint8Array, path: string): VerificationSet {
  const refuse = (found: string, allowed: string): never => {
    throw new FacetrainError({ code: 'InvalidVerificationSet', subject: path, found, allowed });
  };
  const kind = nameFileKind(bytes);
  if (kind) return refuse(`is ${kind.name}`, `an insightface .bin file, which is a pickle; ${kind.remedy}`);
  const top = items(unpickle(bytes, path));
  const pictures = items(top?.[0]);
  const answers = items(top?.[1]);
  if (top?.length !== 2 || !pictures || !answers)
    return refuse('no pair of two lists', 'a pickle of (pictures, issame)');

  const encoded = pictures.map(
    (value, i) => pictureOf(value) ?? refuse(`picture ${i} is no byte string`, 'encoded pictures'),
  );
  const same = answers.map(
    (value, i) =>
      truthOf(value) ?? refuse(`pair ${i} is said to be the same by what is no bool and no number`, 'true or false'),
  );
  if (encoded.length !== 2 * same.length)
    return refuse(`${counted(encoded.length, 'picture')} for ${counted(same.length, 'pair')}`, 'two pictures a pair');
  if (same.length < FOLDS)
    return refuse(counted(same.length, 'pair'), `at least ${FOLDS}: accuracy is measured in ${FOLDS} folds`);
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
      found: fileCause(cause),
      allowed: 'an insightface .bin file',
      cause,
    });
  }
  return parseVerificationSet(bytes, path);
}

/** A set as a configuration names it, with its groups. @throws FacetrainError InvalidVerificationSet */
export async function readSet({ name, path, groups }: SetConfig): Promise<VerificationSet> {
  const set = { ...(await readVerificationSet(path)), name };
  return groups === undefined ? set : { ...set, groups: await readGroups(groups, set.same.length) };
}
