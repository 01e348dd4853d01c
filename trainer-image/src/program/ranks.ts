/**
 * This process's place among the ranks of its gang, from torchrun's environment variables: RANK, WORLD_SIZE,
 * LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
 */
import { availableParallelism } from 'node:os';
import { FacetrainError } from '@facetrain/api';

export interface Ranks {
  rank: number;
  size: number;
  masterAddr: string;
  masterPort: number;
  /** Its number among the ranks on this machine, or in this container. Each uses the GPU of that number. */
  localRank: number;
  /** Ranks that share this machine's CPUs and GPUs. */
  localSize: number;
}

type Environment = Record<string, string | undefined>;

/** An integer variable. @throws FacetrainError InvalidConfig when it is unset without a fallback, or out of range */
function integerVariable(env: Environment, name: string, least: number, most: number, fallback?: number): number {
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
 * Without WORLD_SIZE this process is the only rank. LOCAL_RANK and LOCAL_WORLD_SIZE are optional: with a master on the
 * loopback all ranks are on this machine, otherwise this rank is alone on it.
 * @throws FacetrainError InvalidConfig naming the variable
 */
export function readRanks(env: Environment): Ranks {
  const size = integerVariable(env, 'WORLD_SIZE', 1, 65_536, env.RANK === undefined ? 1 : undefined);
  const rank = integerVariable(env, 'RANK', 0, size - 1, size === 1 ? 0 : undefined);
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
  const masterPort = integerVariable(env, 'MASTER_PORT', 1, 65_535);
  const loopback = /^(127\.\d+\.\d+\.\d+|::1|localhost)$/.test(masterAddr);
  const localSize = integerVariable(env, 'LOCAL_WORLD_SIZE', 1, size, loopback ? size : 1);
  return {
    rank,
    size,
    masterAddr,
    masterPort,
    localRank: integerVariable(env, 'LOCAL_RANK', 0, size - 1, rank % localSize),
    localSize,
  };
}

/** Threads for arithmetic: as configured, else this rank's share of the CPUs that the container may use. */
export function computeThreads(configured: number | null, ranks: Ranks): number {
  return configured ?? Math.max(1, Math.floor(availableParallelism() / ranks.localSize));
}
