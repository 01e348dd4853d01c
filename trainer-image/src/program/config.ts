/** Reads a program's config.json and checks it against its schema: an error names the file and the field. */
import { readFile } from 'node:fs/promises';
import { FacetrainError } from '@facetrain/api';
import type { z } from 'zod';

function refused(subject: string, found: string, allowed: string, cause?: unknown): FacetrainError {
  return new FacetrainError({ code: 'InvalidConfig', subject, found, allowed, cause });
}

/** @throws FacetrainError InvalidConfig */
export async function readConfig<T>(path: string | undefined, schema: z.ZodType<T>): Promise<T> {
  if (!path) throw refused('FACETRAIN_CONFIG', 'not set', 'the path of config.json');
  let text: string;
  let value: unknown;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw refused(path, (cause as Error).message, 'the configuration file that FACETRAIN_CONFIG names', cause);
  }
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw refused(path, (cause as Error).message, 'JSON', cause);
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw issueError(path, value, result.error.issues);
}

/** One message for the first issue, with the number of the others. */
function issueError(file: string, root: unknown, issues: z.core.$ZodIssue[]): FacetrainError {
  const issue = issues[0]!;
  const path = issue.code === 'unrecognized_keys' ? [...issue.path, issue.keys[0]!] : issue.path;
  let value: unknown = root;
  for (const key of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[key];
  const shown = value === undefined ? 'nothing' : JSON.stringify(value).slice(0, 100);
  const field = path
    .map((key) => (typeof key === 'number' ? `[${key}]` : `.${String(key)}`))
    .join('')
    .replace(/^\./, '');
  const others = issues.length > 1 ? ` (and ${issues.length - 1} more)` : '';
  const found = issue.code === 'unrecognized_keys' ? 'unknown field' : `found ${shown}`;
  const allowed = issue.code === 'unrecognized_keys' ? 'only the fields of the schema' : issue.message;
  return refused(`${file}: ${field || 'the whole file'}`, found, `${allowed}${others}`);
}
