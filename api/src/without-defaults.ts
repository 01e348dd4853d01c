/** Removes what a schema fills in, so that a field which a later version adds with a default makes no difference. */
import { z } from 'zod';
import { isPlainObject } from './plain-object.ts';

/**
 * A copy of a parsed value without the values that are the defaults of the schema, at any depth: also in objects that
 * are optional themselves, and in the entries of lists. An optional object stays, even if nothing is left in it: that
 * it is there may mean something. A section of which nothing is left goes, as it is there always.
 *
 * @returns undefined if the whole value is the default
 */
export function withoutDefaults(schema: z.ZodType, value: unknown): unknown {
  if (schema instanceof z.ZodOptional) return withoutDefaults(schema.unwrap() as z.ZodType, value);
  if (schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault) {
    const inner = schema.unwrap() as z.ZodType;
    const rest = withoutDefaults(inner, value);
    const ofDefault = withoutDefaults(inner, inner.parse(schema.def.defaultValue));
    return JSON.stringify(rest) === JSON.stringify(ofDefault) ? undefined : rest;
  }
  if (schema instanceof z.ZodArray && Array.isArray(value))
    return value.map((entry) => withoutDefaults(schema.element as z.ZodType, entry));
  if (!(schema instanceof z.ZodObject) || !isPlainObject(value)) return value;
  const shape = schema.shape as Record<string, z.ZodType | undefined>;
  const rest = Object.entries(value)
    .map(([name, field]) => [name, shape[name] ? withoutDefaults(shape[name], field) : field] as const)
    .filter(([, field]) => field !== undefined);
  return Object.fromEntries(rest);
}
