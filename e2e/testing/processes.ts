/** Processes of pods, as their node sees them. */
import assert from 'node:assert/strict';
import type { Cluster } from '../cluster/cluster.ts';

/**
 * Ids of all processes of a pod's containers: each has the pod's name in its environment.
 * @param variable NAME=VALUE, which they have there as well
 */
export async function processesOf(cluster: Cluster, node: string, pod: string, variable = ''): Promise<string[]> {
  // -z: lines end with a NUL, as the variables in these files do. Processes that have ended meanwhile give errors.
  const grep = (line: string) => `grep -lzx '${line}'`;
  const also = variable === '' ? '' : `| xargs -r ${grep(variable)}`;
  const script = `${grep(`HOSTNAME=${pod}`)} /proc/[0-9]*/environ 2>/dev/null ${also} || true`;
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
