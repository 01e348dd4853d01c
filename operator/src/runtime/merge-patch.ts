/** JSON Merge Patch (RFC 7386): the smallest patch that turns one document into another. */
import { isDeepStrictEqual } from 'node:util';

type Json = Record<string, unknown>;
const isObject = (value: unknown): value is Json =>
  value !== null && typeof value === 'object' && !Array.isArray(value);

/** @returns {} when the documents are equal. Fields that are undefined count as absent. */
export function mergePatch(before: Json, after: Json): Json {
  const patch: Json = {};
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    const [old, wanted] = [before[name], after[name]];
    if (isDeepStrictEqual(old, wanted)) continue;
    if (wanted === undefined) patch[name] = null;
    else patch[name] = isObject(old) && isObject(wanted) ? mergePatch(old, wanted) : wanted;
  }
  return patch;
}
