/**
 * Schemas that serve twice: zod checks documents with them, and they become part of a CustomResourceDefinition.
 *
 * The API server takes only structural schemas, so a schema of a job's spec uses no unions. Every string, list and map
 * has a bound, because the API server estimates the cost of a CEL rule from the bounds. A rule over several fields is
 * written with `rules`: once as a refinement for zod, once in CEL.
 */
import { z } from 'zod';

/** A rule over several fields of an object. */
export interface Rule<T> {
  /** The rule in the Common Expression Language, over `self` (and, for a rule on changes, `oldSelf`). */
  cel: string;
  message: string;
  /** The same rule for zod. Absent for a rule on changes: one manifest alone shows no change. */
  check?: (value: T) => boolean;
  /** Path of the field that the error names, relative to the object that carries the rule. */
  path?: string[];
}

/** Attaches rules to an object schema: as refinements of zod, and as `x-kubernetes-validations` of its JSON schema. */
export function rules<T extends z.ZodType>(schema: T, list: Rule<z.output<T>>[]): T {
  let refined: z.ZodType = schema;
  for (const { check, message, path } of list) {
    if (check) refined = refined.refine(check as (value: unknown) => boolean, path ? { message, path } : { message });
  }
  const validations = list.map(({ cel, message, path }) => ({
    rule: cel,
    message,
    ...(path ? { fieldPath: `.${path.join('.')}` } : {}),
  }));
  return refined.meta({ ...schema.meta(), 'x-kubernetes-validations': validations }) as T;
}

/** An object that may be left out: the defaults of its fields then apply. */
export function section<T extends z.ZodRawShape>(shape: T, description: string) {
  return z
    .strictObject(shape)
    .prefault({} as never)
    .describe(description);
}

/** CEL for a rule on changes: none of these fields (paths below `self`) has changed. */
export const unchanged = (...fields: string[]): string =>
  fields.map((field) => `self.${field} == oldSelf.${field}`).join(' && ');

/** The same for fields that may be absent. Their parents are always there. */
export const unchangedOptional = (...fields: string[]): string =>
  fields
    .map((field) => `has(self.${field}) == has(oldSelf.${field}) && (!has(self.${field}) || ${unchanged(field)})`)
    .join(' && ');
