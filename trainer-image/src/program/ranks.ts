/** Who this process is among the ranks of its gang, by the convention of torchrun: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. */
import { availableParallelism } from 'node:os';
import { FacetrainError } from '@facetrain/api';

export interface Ranks {
  rank: number;
  size: number;
  masterAddr: string;
  masterPort: number;
  /** Which of them this one is on this machine, or in this container: each takes the GPU of its number. */
  localRank: number;
  /** Ranks that share this machine's CPUs and GPUs. */
  localSize: number;
}

type Environment = Record<string, string | undefined>;

function whole(env: Environment, name: string, least: number, most: number, fallback?: number): number {
  const text = env[name];
  if (text === undefined && fallback !== undefined) return fallback;
  const value = text !== undefined && /^\d{1,10}$/.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new FacetrainError({
    code: 'InvalidConfig',
    subject: `environment variable ${name}`,
    found: text === undefined ? 'not set' : JSON.stringify(text),
    allowed: `an integer from ${least} to ${most}`,
  });
}

/**
 * Without WORLD_SIZE this process is alone. The LOCAL_ ones are optional: a master on the loopback means that all ranks are here, any other that no
 * other is.
 * @throws FacetrainError InvalidConfig naming the variable
 */
export function readRanks(env: Environment): Ranks {
  const size = whole(env, 'WORLD_SIZE', 1, 65_536, env.RANK === undefined ? 1 : undefined);
  const rank = whole(env, 'RANK', 0, size - 1, size === 1 ? 0 : undefined);
  if (size === 1) return { rank, size, masterAddr: '127.0.0.1', masterPort: 0, localRank: 0, localSize: 1 };
  const masterAddr = env.MASTER_ADDR;
  if (!masterAddr) {
    throw new FacetrainError({
      code: 'InvalidConfig',
      subject: 'environment variable MASTER_ADDR',
      found: 'not set',
      allowed: 'host name or address of rank 0',
    });
  }
  const masterPort = whole(env, 'MASTER_PORT', 1, 65_535);
  const loopback = /^(127\.\d+\.\d+\.\d+|::1|localhost)$/.test(masterAddr);
  const localSize = whole(env, 'LOCAL_WORLD_SIZE', 1, size, loopback ? size : 1);
  return {
    rank,
    size,
    masterAddr,
    masterPort,
    localRank: whole(env, 'LOCAL_RANK', 0, size - 1, rank % localSize),
    localSize,
  };
}

/** Threads for arithmetic: as configured, or this rank's share of the CPUs that the container may use. */
export function computeThreads(configured: number | null, ranks: Ranks): number {
  return configured ?? Math.max(1, Math.floor(availableParallelism() / ranks.localSize));
}
