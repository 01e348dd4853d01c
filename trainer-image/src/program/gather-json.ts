/** Exchanges small values between ranks. */
import type { TrainingSessionContract } from '@facetrain/native';

/**
 * A collective: to be called on every rank.
 * @returns every rank's value in rank order, on every rank
 */
export async function gatherJson<T>(session: Pick<TrainingSessionContract, 'allGather'>, value: T): Promise<T[]> {
  // Collectives move floats, so each float carries one byte of JSON.
  const parts = await session.allGather(Float32Array.from(new TextEncoder().encode(JSON.stringify(value))));
  return parts.map((part) => JSON.parse(new TextDecoder().decode(Uint8Array.from(part))) as T);
}
