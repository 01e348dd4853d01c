/** Processes of pods, as their node sees them. */
import assert from 'node:assert/strict';
import type { Cluster } from '../cluster/cluster.ts';

/** Ids of all processes of a pod's containers: each has the pod's name in its environment. */
export async function processesOf(cluster: Cluster, node: string, pod: string): Promise<string[]> {
  // -z: lines end with a NUL, as the variables in these files do. Processes that have ended meanwhile give errors.
  const script = `grep -lzx 'HOSTNAME=${pod}' /proc/[0-9]*/environ 2>/dev/null || true`;
  const files = await cluster.execute(node, ['sh', '-c', script]);
  const ids = [...files.matchAll(/\/proc\/(\d+)\//g)].map(([, id]) => id!);
  assert(ids.length > 0, `no process of ${pod} on ${node}`);
  return ids;
}

export async function kubeletOf(cluster: Cluster, node: string): Promise<string> {
  return (await cluster.execute(node, ['pgrep', '-x', 'kubelet'])).trim();
}

export async function signal(
  cluster: Cluster,
  node: string,
  name: 'STOP' | 'CONT' | 'KILL',
  ids: string[],
): Promise<void> {
  await cluster.execute(node, ['kill', `-${name}`, ...ids]);
}
