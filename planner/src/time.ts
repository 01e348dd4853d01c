/** Arithmetic with times. Those of a status are RFC 3339 in whole seconds, as Kubernetes writes them. */

/** RFC 3339 in UTC, without fractions of a second. */
export const timestamp = (date: Date): string => date.toISOString().replace(/\.\d{3}Z$/, 'Z');

export const secondsSince = (time: string, now: Date): number => (now.getTime() - Date.parse(time)) / 1000;

/** The shortest of several waits in seconds, at least 0; null if all are null. */
export function soonest(...waits: (number | null)[]): number | null {
  const some = waits.filter((wait) => wait !== null);
  return some.length === 0 ? null : Math.max(0, Math.min(...some));
}
