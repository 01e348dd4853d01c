/** Groups of pairs: people by age, by skin, by camera, ... whatever a threshold may treat differently. */
import { readFile } from 'node:fs/promises';
import { counted, FacetrainError, fileCause } from '@facetrain/api';

/**
 * The groups of a set's pairs: a text file with a line for each pair.
 * @throws FacetrainError InvalidVerificationSet
 */
export async function readGroups(path: string, pairs: number): Promise<string[]> {
  const refuse = (found: string, cause?: unknown) =>
    new FacetrainError({
      code: 'InvalidVerificationSet',
      subject: path,
      found,
      allowed: `a text file with a line for each of the ${pairs} pairs: the name of its group`,
      cause,
    });
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw refuse(fileCause(cause), cause);
  }
  const groups = text.replace(/\r?\n$/, '').split(/\r?\n/);
  if (groups.length !== pairs) throw refuse(counted(groups.length, 'line'));
  const empty = groups.findIndex((group) => group.trim() === '');
  if (empty >= 0) throw refuse(`line ${empty + 1} is empty`);
  return groups.map((group) => group.trim());
}
