/** Reads config.json and checks it against its schema. */
import { readFile } from 'node:fs/promises';
import { FacetrainError, fileCause, parseDocument } from '@facetrain/api';
import type { z } from 'zod';

function refused(subject: string, found: string, allowed: string, cause?: unknown): FacetrainError {
  return new FacetrainError({ code: 'InvalidConfig', subject, found, allowed, cause });
}

const SAME_RELEASE = 'use an image of the same release';

/** @throws FacetrainError InvalidConfig, naming the file and the field */
export async function readConfig<T extends z.ZodType>(path: string | undefined, schema: T): Promise<z.output<T>> {
  if (!path) throw refused('FACETRAIN_CONFIG', 'not set', 'the path of config.json');
  let text: string;
  let value: unknown;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw refused(path, fileCause(cause), 'the configuration file that FACETRAIN_CONFIG names', cause);
  }
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw refused(path, (cause as Error).message, 'JSON', cause);
  }
  try {
    return parseDocument(schema, value, path, 'InvalidConfig');
  } catch (error) {
    if (!(error instanceof FacetrainError)) throw error;
    // An operator writes what its own release reads, and leaves out what is a default: only a job that uses a field, or
    // a value, of a later release comes here, or one of a release with another file.
    const hint = error.message.includes('unknown field')
      ? `This image is older than what wrote the file: ${SAME_RELEASE}, or leave the field out of the job`
      : `If an operator wrote the file, it is of another release than this image: ${SAME_RELEASE}`;
    const { subject, found, allowed } = error;
    throw refused(subject, found, `${allowed}\n${hint}`, error);
  }
}
