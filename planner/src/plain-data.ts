/** Helpers for plain data. */
import { isPlainObject } from '@facetrain/api';

/** A copy without properties that are undefined, at any depth: the result of a JSON round trip. */
export function compact<T>(value: { [K in keyof T]: T[K] | undefined }): T {
  return JSON.parse(JSON.stringify(value)) as T;
}

/** JSON with sorted keys: equal data gives equal text. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) =>
    isPlainObject(part) ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1))) : part,
  );
}

export function truncate(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}

/** Rounds to significant digits, for a status: `kubectl get` shows all digits of a number. */
export function rounded(value: number, digits: number): number {
  const result = Number(value.toPrecision(digits));
  // The largest numbers are rounded up to Infinity, which JSON does not have.
  return Number.isFinite(result) ? result : value;
}
