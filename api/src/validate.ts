/** Turns the issues that zod reports into a FacetrainError: path of the field, what was found, what is allowed. */
import { z } from 'zod';
import { type ErrorCode, FacetrainError } from './errors.ts';

/** One problem of a document. */
export interface Problem {
  /** Path of the field, as `kubectl explain` writes it: spec.trainers.replicas, spec.evaluation.sets[0].uri. */
  path: string;
  found: string;
  allowed: string;
}

const pathOf = (path: readonly PropertyKey[]) =>
  path.map((part, i) => (typeof part === 'number' ? `[${part}]` : `${i > 0 ? '.' : ''}${String(part)}`)).join('');

function valueAt(document: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (value, part) =>
      typeof value === 'object' && value !== null ? (value as Record<PropertyKey, unknown>)[part] : undefined,
    document,
  );
}

/** A value for a message, cut after 80 characters. */
function quoted(value: unknown): string {
  if (value === undefined) return 'nothing';
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/**
 * The schema of a field, below objects, arrays, defaults and optionals; undefined if there is anything else on the
 * path.
 */
function schemaAt(schema: z.ZodType, path: readonly PropertyKey[]): z.ZodType | undefined {
  let current: z.ZodType | undefined = unwrap(schema);
  for (const part of path) {
    if (current instanceof z.ZodObject) current = (current.shape as Record<PropertyKey, z.ZodType>)[part];
    else if (current instanceof z.ZodArray) current = current.element as z.ZodType;
    else return undefined;
    if (current) current = unwrap(current);
  }
  return current;
}

function unwrap(schema: z.ZodType): z.ZodType {
  let current = schema;
  while (
    current instanceof z.ZodOptional ||
    current instanceof z.ZodNullable ||
    current instanceof z.ZodDefault ||
    current instanceof z.ZodPrefault ||
    current instanceof z.ZodReadonly
  ) {
    current = current.unwrap() as z.ZodType;
  }
  return current;
}

/** Levenshtein distance. Quadratic: for short names. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length]!;
}

function allowedFields(schema: z.ZodType | undefined, key: string): string {
  if (!(schema instanceof z.ZodObject)) return 'no such field';
  const names = Object.keys(schema.shape);
  const near = names
    .map((name) => ({ name, edits: distance(name.toLowerCase(), key.toLowerCase()) }))
    .sort((a, b) => a.edits - b.edits)[0];
  const hint = near && near.edits <= Math.max(2, key.length / 3) ? `did you mean "${near.name}"? ` : '';
  return `${hint}fields here are ${names.join(', ')}`;
}

function range(issue: z.core.$ZodIssueTooSmall | z.core.$ZodIssueTooBig): string {
  const small = issue.code === 'too_small';
  const bound = small ? issue.minimum : issue.maximum;
  const word = small ? (issue.inclusive ? 'at least' : 'more than') : issue.inclusive ? 'at most' : 'less than';
  const unit =
    issue.origin === 'string'
      ? ' characters long'
      : issue.origin === 'array' || issue.origin === 'set'
        ? ' entries long'
        : '';
  return `must be ${word} ${bound}${unit}`;
}

function problemsOf(issue: z.core.$ZodIssue, schema: z.ZodType, document: unknown): Problem[] {
  const path = pathOf(issue.path);
  const value = valueAt(document, issue.path);
  switch (issue.code) {
    case 'unrecognized_keys': {
      const parent = schemaAt(schema, issue.path);
      return issue.keys.map((key) => ({
        path: pathOf([...issue.path, key]),
        found: 'unknown field',
        allowed: allowedFields(parent, key),
      }));
    }
    case 'invalid_type':
      return [
        {
          path,
          found: value === undefined ? 'missing' : quoted(value),
          allowed:
            issue.expected === 'int'
              ? 'must be a whole number'
              : `must be ${/^[aeiou]/.test(issue.expected) ? 'an' : 'a'} ${issue.expected}`,
        },
      ];
    case 'invalid_value':
      return [
        {
          path,
          found: value === undefined ? 'missing' : quoted(value),
          allowed: `must be one of ${issue.values.map(String).join(', ')}`,
        },
      ];
    case 'too_small':
    case 'too_big':
      return [{ path, found: quoted(value), allowed: range(issue) }];
    default:
      return [{ path, found: quoted(value), allowed: issue.message }];
  }
}

/**
 * Checks a document against a schema and fills in defaults.
 * @param where the file, for the message
 * @throws FacetrainError with `code`. Its subject is the file and the field; with several problems, the file alone, and
 *   the message lists all of them.
 */
export function parseDocument<T extends z.ZodType>(
  schema: T,
  document: unknown,
  where: string,
  code: ErrorCode,
): z.output<T> {
  const result = schema.safeParse(document);
  if (result.success) return result.data;
  const problems = result.error.issues.flatMap((issue) => problemsOf(issue, schema, document));
  const [first] = problems as [Problem];
  if (problems.length === 1) {
    throw new FacetrainError({
      code,
      subject: first.path ? `${where}: ${first.path}` : where,
      found: first.found,
      allowed: first.allowed,
      cause: result.error,
    });
  }
  const lines = problems.map(({ path, found, allowed }) => `\n  ${path || '(the document)'}: ${found}; ${allowed}`);
  throw new FacetrainError({
    code,
    subject: where,
    found: `${problems.length} fields are wrong`,
    allowed: `each of these has to change:${lines.join('')}`,
    cause: result.error,
  });
}
