/** Small values that ranks tell each other. */
import type { TrainingSessionContract } from '@facetrain/native';

type Gathers = Pick<TrainingSessionContract, 'allGather'>;

/** Every rank's value in rank order, on every rank. A collective moves floats: each carries one byte of JSON. */
export async function gatherJson<T>(session: Gathers, value: T): Promise<T[]> {
  const parts = await session.allGather(Float32Array.from(new TextEncoder().encode(JSON.stringify(value))));
  return parts.map((part) => JSON.parse(new TextDecoder().decode(Uint8Array.from(part))) as T);
}
