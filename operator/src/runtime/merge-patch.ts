/** RFC 7386: the smallest merge patch that makes one JSON document of another. */
import { isDeepStrictEqual } from 'node:util';

type Json = Record<string, unknown>;
const isObject = (value: unknown): value is Json =>
  value !== null && typeof value === 'object' && !Array.isArray(value);

/** Empty when there is nothing to change. Values that are undefined count as absent. */
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
