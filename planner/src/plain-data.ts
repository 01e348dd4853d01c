/** Small things about plain data. */

/** The same without properties that are undefined, at any depth: what JSON makes of it. */
export function compact<T>(value: { [K in keyof T]: T[K] | undefined }): T {
  return JSON.parse(JSON.stringify(value)) as T;
}

/** JSON with sorted keys: equal data gives equal text, whoever wrote it. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) =>
    part !== null && typeof part === 'object' && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}

export function truncate(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}

/** For people: `kubectl get` shows every digit there is. */
export const rounded = (value: number, digits: number): number => Number(value.toPrecision(digits));
