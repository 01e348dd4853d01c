/**
 * What the operator must know of the cluster before it can begin: which PodGroups it serves, whether Kueue's
 * Workloads and the restart rules of containers, what may be read. What the cluster serves can change (an upgrade, a
 * feature gate), so it is asked again from time to time.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { QUEUED_POD_GROUP_APIS } from '@facetrain/planner/facetrainjob/gang';
import type { PodGroupApis } from '@facetrain/planner/observed';
import type { Logger } from 'pino';
import { ApiError, isApiError } from '../runtime/api-error.ts';
import { Backoff } from '../runtime/backoff.ts';
import { type Client, untilAborted } from '../runtime/client.ts';
import type { Resource } from '../runtime/resource.ts';
import { PodNodesAndVolumes, type PodNodesAndVolumesOptions } from './pod-nodes-and-volumes.ts';
import { podGroups, workloads } from './resources.ts';

export interface Cluster {
  /** Without that of kube-scheduler, gangs of mode Auto start as plain pods. */
  podGroupApis: PodGroupApis;
  /** Kueue is installed, and its Workloads may be listed. */
  servesWorkloads: boolean;
  /** A container may have `restartPolicyRules`. */
  servesRestartRules: boolean;
  nodesAndVolumes: PodNodesAndVolumes;
}

/** From this minor version on `restartPolicyRules` are served by default (feature ContainerRestartRules, beta). */
const RESTART_RULES_SINCE = 35;

/** In the order in which they are tried. */
const POD_GROUP_VERSIONS = ['v1beta1', 'v1'];
const RETRY_BASE_MILLISECONDS = 200;
const RETRY_MAX_MILLISECONDS = 10_000;

/**
 * Answers below 500 that pass by themselves. A server that has just started may not know yet whom it permits what (401,
 * 403), and one that is overloaded says so (429). A wrong token or role can be corrected while a replica runs.
 */
const PASSING = [401, 403, 429];

/**
 * So often a kind of another project is asked for while the server answers everything else. The API server cannot read
 * Workloads that are stored in another version while Kueue does not run: it converts them. Jobs without a queue must
 * not wait for that.
 */
const LIST_TRIES = 5;

/**
 * An API server that cannot be reached, or answers 5xx or one of PASSING, is tried again: it may be starting, as after
 * an upgrade.
 *
 * @returns null when the signal aborts first
 * @throws ApiError for any other answer, such as 400
 */
export async function discoverCluster(
  options: PodNodesAndVolumesOptions & { client: Client },
  signal: AbortSignal,
): Promise<Cluster | null> {
  const { log } = options;
  const client = options.client.guardedBy(untilAborted(signal));
  const retry = new Backoff(RETRY_BASE_MILLISECONDS, RETRY_MAX_MILLISECONDS);
  const failures = new Map<Resource, number>();
  const mayList: MayList = (resource) =>
    isListed(client, resource, options.namespace).catch((error: unknown) => {
      const isOfKind = error instanceof ApiError && (error.status >= 500 || error.status === 429);
      const count = (failures.get(resource) ?? 0) + 1;
      failures.set(resource, count);
      if (!isOfKind || count < LIST_TRIES) throw error;
      const { apiVersion, plural } = resource;
      log.warn({ err: error, apiVersion, plural }, 'cannot be listed: until it can, jobs that need it do not start');
      return false;
    });
  while (!signal.aborted) {
    try {
      const podGroupApis = await servedPodGroups(client, mayList);
      const hasWorkloads = await mayList(workloads);
      const hasRestartRules = await servesRestartRules(client);
      const nodesAndVolumes = await PodNodesAndVolumes.open({ ...options, signal });
      return {
        podGroupApis,
        servesWorkloads: hasWorkloads,
        servesRestartRules: hasRestartRules,
        nodesAndVolumes,
      };
    } catch (error) {
      if (signal.aborted) return null;
      if (error instanceof ApiError && error.status < 500 && !PASSING.includes(error.status)) throw error;
      const wait = retry.next();
      log.warn({ err: error, retryInMs: Math.round(wait) }, 'the API server does not say what it serves');
      await delay(wait, undefined, { signal }).catch(() => {});
    }
  }
  return null;
}

/**
 * Asks again and again which PodGroups the cluster serves, whether Workloads and restart rules, and whether kinds that
 * were left out may be read. Each time costs five or six small requests, and one for each kind that was left out.
 *
 * @param cluster what was found at the start
 * @returns when two answers in a row differ from that, so that one API server of several that is being upgraded does
 * not count; or when the signal aborts
 */
export async function clusterChanged(
  { client, log, namespace }: { client: Client; log: Logger; namespace: string | null },
  { podGroupApis, servesWorkloads, servesRestartRules, nodesAndVolumes }: Cluster,
  everyMilliseconds: number,
  signal: AbortSignal,
): Promise<void> {
  const known = JSON.stringify([podGroupApis, servesWorkloads, servesRestartRules]);
  let before = known;
  let couldReadMore = false;
  while (!signal.aborted) {
    await delay(everyMilliseconds, undefined, { signal }).catch(() => {});
    const [served, readsMore] = await Promise.all([
      servedKinds(client, namespace).then(JSON.stringify, () => known),
      nodesAndVolumes.mayReadMore(signal),
    ]);
    if (served !== known && served === before) {
      log.info({ before: known, served }, 'the cluster serves other kinds or fields than before; starting anew');
      return;
    }
    if (readsMore && couldReadMore) {
      log.info('a kind that was left out may be read now; starting anew');
      return;
    }
    before = served;
    couldReadMore = readsMore;
  }
}

function servedKinds(client: Client, namespace: string | null): Promise<[PodGroupApis, boolean, boolean]> {
  const mayList: MayList = (resource) => isListed(client, resource, namespace);
  return Promise.all([servedPodGroups(client, mayList), mayList(workloads), servesRestartRules(client)]);
}

/** No API says which fields of a pod are served; the API server drops those of features that are off. */
async function servesRestartRules(client: Client): Promise<boolean> {
  try {
    const { major, minor } = await client.raw<{ major: string; minor: string }>('/version');
    // Some distributions write 35+.
    return major === '1' && Number.parseInt(minor, 10) >= RESTART_RULES_SINCE;
  } catch (error) {
    if (isApiError(error, 'NotFound', 'Forbidden')) return false;
    throw error;
  }
}

/** Whether a kind of another project is served, and may be listed: without the permission it is as if it were not. */
type MayList = (resource: Resource) => Promise<boolean>;

async function isListed(client: Client, resource: Resource, namespace: string | null): Promise<boolean> {
  try {
    await client.list(resource, namespace, { limit: 1 }, true);
    return true;
  } catch (error) {
    if (isApiError(error, 'NotFound', 'Forbidden')) return false;
    throw error;
  }
}

const QUEUED_POD_GROUPS = {
  KAI: podGroups(QUEUED_POD_GROUP_APIS.KAI),
  Volcano: podGroups(QUEUED_POD_GROUP_APIS.Volcano),
};

async function servedPodGroups(client: Client, mayList: MayList): Promise<PodGroupApis> {
  const [native, kai, volcano] = await Promise.all([
    nativePodGroup(client),
    mayList(QUEUED_POD_GROUPS.KAI),
    mayList(QUEUED_POD_GROUPS.Volcano),
  ]);
  return {
    ...(native !== null && { Native: native }),
    ...(kai && { KAI: QUEUED_POD_GROUP_APIS.KAI }),
    ...(volcano && { Volcano: QUEUED_POD_GROUP_APIS.Volcano }),
  };
}

async function nativePodGroup(client: Client): Promise<string | null> {
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
