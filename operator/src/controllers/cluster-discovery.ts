/** What the operator must know of the cluster before it can begin: which PodGroup API it serves, what may be read. */
import { setTimeout as delay } from 'node:timers/promises';
import { ApiError, isApiError } from '../runtime/api-error.ts';
import { Backoff } from '../runtime/backoff.ts';
import type { Client } from '../runtime/client.ts';
import { PodNodesAndVolumes, type PodNodesAndVolumesOptions } from './pod-nodes-and-volumes.ts';

export interface Cluster {
  /** apiVersion of the PodGroup that the cluster serves; null: none, so gangs start as plain pods. */
  podGroupApi: string | null;
  nodesAndVolumes: PodNodesAndVolumes;
}

/** In the order in which they are tried. */
const POD_GROUP_VERSIONS = ['v1beta1', 'v1'];
const RETRY_BASE_MILLISECONDS = 200;
const RETRY_MAX_MILLISECONDS = 10_000;

/**
 * An API server that cannot be reached or answers 5xx is tried again: it may be starting, as after an upgrade.
 *
 * @returns null when the signal aborts first
 * @throws ApiError for any other answer, such as 401
 */
export async function discoverCluster(
  options: PodNodesAndVolumesOptions & { client: Client },
  signal: AbortSignal,
): Promise<Cluster | null> {
  const { client, log } = options;
  const retry = new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
  while (!signal.aborted) {
    try {
      const podGroupApi = await servedPodGroup(client);
      return { podGroupApi, nodesAndVolumes: await PodNodesAndVolumes.open(options) };
    } catch (error) {
      if (error instanceof ApiError && error.status < 500) throw error;
      const wait = retry.next();
      log.warn({ err: error, retryInMs: Math.round(wait) }, 'the API server does not answer');
      await delay(wait, undefined, { signal }).catch(() => {});
    }
  }
  return null;
}

async function servedPodGroup(client: Client): Promise<string | null> {
  for (const version of POD_GROUP_VERSIONS) {
    try {
      const { resources } = await client.raw<{ resources: { name: string }[] }>(`/apis/scheduling.k8s.io/${version}`);
      if (resources.some(({ name }) => name === 'podgroups')) return `scheduling.k8s.io/${version}`;
    } catch (error) {
      if (!isApiError(error, 'NotFound')) throw error;
    }
  }
  return null;
}
