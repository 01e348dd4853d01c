/** Amounts of resources as Kubernetes writes them. */

const SUFFIXES: Record<string, number> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  '': 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/**
 * The number of a resource.Quantity: "500m" is 0.5, "64Gi" is 64 * 2^30 (apimachinery, pkg/api/resource/quantity.go).
 * @param value one that the schema accepts
 */
export function quantity(value: string | number): number {
  if (typeof value === 'number') return value;
  const match = /^([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]*)$/.exec(value.trim());
  return match ? Number(match[1]) * (SUFFIXES[match[2]!] ?? NaN) : NaN;
}
