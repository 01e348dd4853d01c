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
    const rest = withoutDefaults(schema.unwrap() as z.ZodType, value);
    return JSON.stringify(rest) === restOfDefault(schema) ? undefined : rest;
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

/** By schema: what is left of its own default, as JSON. An operator that starts asks for it for each of its jobs. */
const restsOfDefaults = new WeakMap<z.ZodType, string | undefined>();

function restOfDefault(schema: z.ZodDefault | z.ZodPrefault): string | undefined {
  if (!restsOfDefaults.has(schema)) {
    const inner = schema.unwrap() as z.ZodType;
    restsOfDefaults.set(schema, JSON.stringify(withoutDefaults(inner, inner.parse(schema.def.defaultValue))));
  }
  return restsOfDefaults.get(schema);
}
