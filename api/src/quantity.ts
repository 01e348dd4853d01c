/** Amounts of resources as Kubernetes writes them. */
import { z } from 'zod';

const FORM = 'a quantity such as 2, 0.5, 500m, 64Gi or 1e3';
const MEMORY_FORM = 'a number of bytes from 1M on, such as 512Mi or 2Gi';

/** The form that is allowed and, for bytes as people write them (4GB, 4 gb, 4GiB), the quantity that is meant. */
const withFix = (form: string) => (issue: { input?: unknown }) => {
  const [, number, prefix] = /^(\d+(?:\.\d+)?)\s*([kmgt])i?b?$/i.exec(String(issue.input)) ?? [];
  return number === undefined ? form : `${form}; write ${number}${prefix!.toUpperCase()}i`;
};

/** A resource.Quantity of Kubernetes, as YAML has it: 500m, 64Gi, 1e3, and the numbers 2 and 0.5. */
export const Quantity = z
  .union(
    [
      z
        .string()
        .max(64)
        .regex(/^(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$/, { error: withFix(FORM) }),
      z.number().min(0),
    ],
    { error: withFix(FORM) },
  )
  // A structural schema has int-or-string, but no number-or-string, and kubectl users write "cpu: 0.5".
  .meta({ 'x-kubernetes-preserve-unknown-fields': true });

/** Memory for a program: a resource.Quantity of whole bytes from 1M on, as a string. Less is a unit that is missing. */
export const MemoryQuantity = z
  .string()
  .max(64)
  .regex(/^0*([1-9]\d{6,14}|[1-9]\d{3,14}(Ki|k)|[1-9]\d{0,14}([MGT]i|[MGT]))$/, { error: withFix(MEMORY_FORM) });

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
export function parseQuantity(value: string | number): number {
  if (typeof value === 'number') return value;
  const match = /^([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)([a-zA-Z]*)$/.exec(value.trim());
  return match ? Number(match[1]) * (SUFFIXES[match[2]!] ?? NaN) : NaN;
}
