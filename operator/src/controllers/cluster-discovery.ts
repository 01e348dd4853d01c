/**
 * What the operator must know of the cluster before it can begin: which PodGroup API it serves, what may be read. What
 * the cluster serves can change (an upgrade, a feature gate), so it is asked again from time to time.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { ApiError, isApiError } from '../runtime/api-error.ts';
import { Backoff } from '../runtime/backoff.ts';
import { type Client, untilAborted } from '../runtime/client.ts';
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
  const { log } = options;
  const client = options.client.guardedBy(untilAborted(signal));
  const retry = new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
  while (!signal.aborted) {
    try {
      const podGroupApi = await servedPodGroup(client);
      return { podGroupApi, nodesAndVolumes: await PodNodesAndVolumes.open(options) };
    } catch (error) {
      if (signal.aborted) return null;
      if (error instanceof ApiError && error.status < 500) throw error;
      const wait = retry.next();
      log.warn({ err: error, retryInMs: Math.round(wait) }, 'the API server does not answer');
      await delay(wait, undefined, { signal }).catch(() => {});
    }
  }
  return null;
}

/**
 * Asks again and again which PodGroup API the cluster serves. Each time costs one or two small requests.
 *
 * @param known what was found at the start
 * @returns when two answers in a row differ from that, so that one API server of several that is being upgraded does
 * not count; or when the signal aborts
 */
export async function podGroupApiChanged(
  { client, log }: { client: Client; log: Logger },
  known: string | null,
  everyMilliseconds: number,
  signal: AbortSignal,
): Promise<void> {
  let before = known;
  while (!signal.aborted) {
    await delay(everyMilliseconds, undefined, { signal }).catch(() => {});
    const served = await servedPodGroup(client).catch(() => known);
    if (served !== known && served === before) {
      log.info({ before: known, podGroupApi: served }, 'the cluster serves another PodGroup API; starting anew');
      return;
    }
    before = served;
  }
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
