/**
 * The node of a pod, its PersistentVolumeClaims, and the Events about it. The pod's status does not report that a node
 * is lost, that a claim is missing, or why the kubelet cannot start the pod, so they are watched, too. The planner gets
 * the result as fields of the pod: `lostNode`, `silentNode` and `waiting`.
 *
 * The operator works without them: no failure to read them keeps it from working. Nodes are cluster-scoped, so a Role
 * cannot permit reading them: a kind that the operator may not read is left out, a warning is logged once, and
 * cluster-discovery.ts asks again from time to time. After any other error the cache of the kind retries by itself.
 */
import type { ObservedPod } from '@facetrain/planner/observed';
import { timestamp } from '@facetrain/planner/time';
import type { Logger } from 'pino';
import { isApiError } from '../runtime/api-error.ts';
import { Cache, type CacheOptions } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import { type KubernetesObject, keyOf, type Resource } from '../runtime/resource.ts';
import { claims, type NodeObject, nodes, type PodEvent, type PodObject, podEvents, timeOfEvent } from './resources.ts';

export interface PodNodesAndVolumesOptions {
  client: Pick<Client, 'list' | 'watch'>;
  /** null: all namespaces. */
  namespace: string | null;
  log: Logger;
  /** Called when a list or a watch of a kind (by its plural) has failed. */
  onWatchError: (plural: string) => void;
  settleMilliseconds?: number;
  /** Ends the requests of `open`. */
  signal?: AbortSignal;
}

/** What is called when a node, a claim or a mount changes. */
export interface NodeAndVolumeListener {
  /** A node is lost, is ready again, or was deleted. @returns whether pods of ours are on it */
  onNode(name: string): boolean;
  /** @param key of a pod whose claim or mount has changed */
  onPod(key: string): void;
  /** All pods of the operator's jobs. */
  pods(): Iterable<PodObject>;
}

/**
 * A node counts as silent this long after its Ready condition has become Unknown. The node controller marks nodes one
 * by one, also when the control plane itself is cut off: after this time it has marked all of them, and none is lost.
 * When a silent node is a lost one, each job says itself (`failurePolicy.nodeLostSeconds`).
 */
const SETTLE_MILLISECONDS = 2_000;

/**
 * Shorter than other watches: the API server keeps no watch cache of Events, so it sends no bookmarks, and the client
 * would treat the silent watch as a dead connection.
 */
const EVENT_WATCH_SECONDS = 60;

/**
 * Warnings that are not watched: frequent ones whose cause is in the status of the pod, too, and those with which a pod
 * starts nevertheless. Each pod of the cluster may have some of them for as long as it lives.
 */
const UNWATCHED = [
  'Unhealthy',
  'BackOff',
  'FailedScheduling',
  'Evicted',
  'NodeNotReady',
  'DNSConfigForming',
  'MissingClusterDNS',
  'CheckLimitsForResolvConf',
  'FailedToRetrieveImagePullSecret',
  'ExceededGracePeriod',
  'FailedKillPod',
  'FailedPreStopHook',
  'VolumePermissionChangeInProgress',
];

/**
 * Warnings about pods. What a kubelet cannot do before it starts a container (mount a volume, create the sandbox,
 * prepare devices) is in such an Event and nowhere else; likewise a volume that the controller manager cannot attach.
 */
const POD_WARNINGS = [
  'involvedObject.kind=Pod',
  'type=Warning',
  ...UNWATCHED.map((reason) => `reason!=${reason}`),
].join(',');

/** Longest wait for the answer which says whether a kind may be read. */
const OPEN_MILLISECONDS = 10_000;

/** Whether the operator may read a kind; null: the server did not say. */
type MayRead = (signal: AbortSignal) => Promise<boolean | null>;

/** Longest message of an Event that is kept, in characters: the core API of Events does not limit it. */
const MAX_EVENT_MESSAGE = 1_024;

export class PodNodesAndVolumes {
  /** Of the kinds that may be read. None of them needs to be filled before the jobs are planned. */
  readonly caches: {
    Node?: Cache<NodeObject>;
    PersistentVolumeClaim?: Cache<KubernetesObject>;
    Event?: Cache<PodEvent>;
  };
  /** For each kind that was left out: whether the operator may read it now. */
  readonly #leftOut: MayRead[];
  /**
   * Nodes that were deleted with pods on them. A node that the cache never had is not included: it may be newer than
   * the cache.
   */
  readonly #deleted = new Set<string>();
  /** Nodes whose Ready condition is Unknown, each with the timer at whose end it counts as silent. */
  readonly #unreachable = new Map<string, NodeJS.Timeout>();
  /** Nodes that have been unreachable for long enough, and when that was noticed (ms). */
  readonly #silent = new Map<string, number>();
  /** Nodes with the taint out-of-service. */
  readonly #outOfService = new Set<string>();
  /**
   * Every node is unreachable. Then the control plane is cut off, and no node counts as silent: the node controller,
   * too, stops evictions then (it calls this a full disruption), and counts from its end afterwards.
   */
  #isFullDisruption = false;
  #fullDisruptionEnd = 0;
  #listener: NodeAndVolumeListener = { onNode: () => false, onPod: () => {}, pods: () => [] };

  private constructor(caches: PodNodesAndVolumes['caches'], leftOut: MayRead[], settleMilliseconds: number) {
    this.caches = caches;
    this.#leftOut = leftOut;
    caches.Node?.onChange(({ object, deleted }) => {
      const { name } = object.metadata;
      if (deleted) this.#deleted.add(name);
      else this.#deleted.delete(name);
      const before = [this.#silent.has(name), this.#outOfService.has(name)];
      if (!deleted && isOutOfService(object)) this.#outOfService.add(name);
      else this.#outOfService.delete(name);
      if (!deleted && isUnreachable(object))
        this.#unreachable.set(
          name,
          this.#unreachable.get(name) ?? setTimeout(() => this.#markSilent(name), settleMilliseconds).unref(),
        );
      else {
        clearTimeout(this.#unreachable.get(name));
        this.#unreachable.delete(name);
        this.#silent.delete(name);
      }
      const wasFullDisruption = this.#isFullDisruption;
      this.#isFullDisruption = this.#unreachable.size === caches.Node!.size;
      const isOver = wasFullDisruption && !this.#isFullDisruption;
      // While the first list is read, its first nodes may be silent ones.
      if (isOver && caches.Node!.isSynced) this.#fullDisruptionEnd = Date.now();
      const hasChanged = before[0] !== this.#silent.has(name) || before[1] !== this.#outOfService.has(name);
      const isOccupied = deleted || hasChanged ? this.#listener.onNode(name) : true;
      // Without pods of ours on it, a deleted node is not needed any more. A cluster that scales has many of them.
      if (!isOccupied) this.#deleted.delete(name);
      if (isOver) for (const silent of this.#silent.keys()) this.#listener.onNode(silent);
    });
  }

  #markSilent(name: string): void {
    this.#silent.set(name, Date.now());
    this.#listener.onNode(name);
  }

  /** Finds out which kinds may be read. An answer other than Forbidden leaves no kind out, nor does the lack of one. */
  static async open(options: PodNodesAndVolumesOptions): Promise<PodNodesAndVolumes> {
    const { client, namespace, log, onWatchError } = options;
    const leftOut: MayRead[] = [];
    const cache = async <T extends KubernetesObject>(
      resource: Resource<T>,
      scope: string | null,
      consequence: string,
      cacheOptions: Partial<CacheOptions<T>> = {},
    ) => {
      const mayRead: MayRead = async (signal) => {
        try {
          await client.list(resource, scope, { limit: 1 }, cacheOptions.metadataOnly, signal);
          return true;
        } catch (error) {
          return isApiError(error, 'Forbidden') ? false : null;
        }
      };
      const limit = AbortSignal.timeout(OPEN_MILLISECONDS);
      if ((await mayRead(options.signal ? AbortSignal.any([options.signal, limit]) : limit)) === false) {
        log.warn({ resource: resource.plural }, `may not be read: ${consequence}`);
        leftOut.push(mayRead);
        return undefined;
      }
      return new Cache({
        client,
        resource,
        namespace: scope,
        log,
        onWatchError: () => onWatchError(resource.plural),
        ...cacheOptions,
      });
    };
    const [node, claim, event] = await Promise.all([
      cache(nodes, null, 'a lost node is noticed when Kubernetes evicts its pods', { strip: stripNode, inPages: true }),
      cache(claims, namespace, 'a missing PersistentVolumeClaim is named where the scheduler names it', {
        metadataOnly: true,
      }),
      cache(podEvents, namespace, 'why a pod cannot start may be in the pod’s events only', {
        fieldSelector: POD_WARNINGS,
        strip: stripEvent,
        watchSeconds: EVENT_WATCH_SECONDS,
        indexes: {
          pod: ({ involvedObject: { namespace, name } }) => keyOf({ metadata: { namespace: namespace!, name } }),
        },
      }),
    ]);
    return new PodNodesAndVolumes(
      { ...(node && { Node: node }), ...(claim && { PersistentVolumeClaim: claim }), ...(event && { Event: event }) },
      leftOut,
      options.settleMilliseconds ?? SETTLE_MILLISECONDS,
    );
  }

  /** Whether a kind that was left out may be read by now. */
  async mayReadMore(signal: AbortSignal): Promise<boolean> {
    const answers = await Promise.all(this.#leftOut.map((mayRead) => mayRead(signal)));
    return answers.includes(true);
  }

  /** To be called once, before the caches run. */
  listen(listener: NodeAndVolumeListener): void {
    this.#listener = listener;
    const { PersistentVolumeClaim, Event } = this.caches;
    PersistentVolumeClaim?.onChange(({ object: { metadata }, old, deleted }) => {
      // Before the first list is complete no claim counts as missing.
      if (!PersistentVolumeClaim.isSynced || (old && !deleted)) return;
      for (const pod of listener.pods())
        if (pod.metadata.namespace === metadata.namespace && isPending(pod) && claimsOf(pod).includes(metadata.name))
          listener.onPod(keyOf(pod));
    });
    void PersistentVolumeClaim?.synced.then(() => {
      for (const pod of listener.pods())
        if (isPending(pod) && this.#missingClaim(pod) !== undefined) listener.onPod(keyOf(pod));
    });
    Event?.onChange(({ object: { involvedObject }, deleted }) => {
      if (!deleted)
        listener.onPod(keyOf({ metadata: { namespace: involvedObject.namespace!, name: involvedObject.name } }));
    });
  }

  /** Why a node is lost; undefined for a node that works, that is silent, or that was never seen. */
  lostNode(name: string): string | undefined {
    if (this.#deleted.has(name)) return `node ${name} is gone`;
    return this.#outOfService.has(name) ? `node ${name} is out of service (taint ${OUT_OF_SERVICE})` : undefined;
  }

  /** Why a node does not answer, and since when; undefined for a node that answers, and for one that was never seen. */
  silentNode(name: string): ObservedPod['silentNode'] {
    const noticed = this.#silent.get(name);
    if (this.#isFullDisruption || noticed === undefined) return undefined;
    const node = this.caches.Node!.get(keyOf({ metadata: { name } }))!;
    const { lastTransitionTime, reason = 'Ready is Unknown' } = readyOf(node)!;
    const changed = lastTransitionTime === undefined ? noticed : Date.parse(lastTransitionTime);
    const since = Math.max(changed, this.#fullDisruptionEnd);
    return { reason: `node ${name} does not answer (${reason})`, since: timestamp(new Date(since)) };
  }

  /** Why a pending pod cannot start: a claim that does not exist, or the latest Event that warns of something. */
  pendingReason(pod: PodObject): { reason: string; message: string } | undefined {
    const { Event } = this.caches;
    // For a gang with a missing claim the scheduler reports only an error, not the name of the claim.
    const missing = this.#missingClaim(pod);
    if (missing !== undefined)
      return { reason: 'PersistentVolumeClaimNotFound', message: `persistentvolumeclaim "${missing}" not found` };
    // With this condition the sandbox exists and all volumes are mounted. Older Events no longer apply, and the status
    // says what containers wait for.
    if (pod.status?.conditions?.some(({ type, status }) => type === 'PodReadyToStartContainers' && status === 'True'))
      return undefined;
    const warnings =
      Event?.indexed('pod', keyOf(pod)).filter(({ involvedObject }) => involvedObject.uid === pod.metadata.uid) ?? [];
    const latest = warnings.sort((a, b) => timeOfEvent(a) - timeOfEvent(b)).at(-1);
    return latest && { reason: latest.reason, message: latest.message ?? '' };
  }

  /** The first claim of a pod that does not exist; undefined if all do, and as long as that is not known. */
  #missingClaim(pod: PodObject): string | undefined {
    const { PersistentVolumeClaim: all } = this.caches;
    const namespace = pod.metadata.namespace!;
    return all?.isSynced ? claimsOf(pod).find((name) => !all.get(keyOf({ metadata: { namespace, name } }))) : undefined;
  }
}

/** Keeps the fields that are read: the pods of the whole cluster may have warnings. */
function stripEvent({
  metadata,
  involvedObject,
  reason,
  message,
  lastTimestamp,
  eventTime,
  series,
}: PodEvent): PodEvent {
  const { name, namespace, uid, resourceVersion, creationTimestamp } = metadata;
  return {
    metadata: { name, ...(namespace && { namespace }), uid, resourceVersion, creationTimestamp },
    involvedObject: {
      ...(involvedObject.namespace && { namespace: involvedObject.namespace }),
      name: involvedObject.name,
      ...(involvedObject.uid && { uid: involvedObject.uid }),
    },
    reason,
    // A copy: a slice would keep the whole message in memory.
    ...(message && { message: Buffer.from(message.slice(0, MAX_EVENT_MESSAGE)).toString() }),
    ...(lastTimestamp && { lastTimestamp }),
    ...(eventTime && { eventTime }),
    ...(series && { series }),
  };
}

export const isPending = ({ status }: PodObject): boolean => (status?.phase ?? 'Pending') === 'Pending';

const claimsOf = ({ spec }: PodObject): string[] =>
  spec.volumes?.flatMap(({ persistentVolumeClaim }) => persistentVolumeClaim?.claimName ?? []) ?? [];

type ReadyCondition = NonNullable<NonNullable<NodeObject['status']>['conditions']>[number];

const readyOf = ({ status }: NodeObject): ReadyCondition | undefined =>
  status?.conditions?.find(({ type }) => type === 'Ready');

/**
 * The node controller sets Ready to Unknown when a kubelet has stopped renewing its Lease. A kubelet that reports False
 * itself is alive, and its pods may still run: Kubernetes evicts them by the taint not-ready, and the kubelet ends
 * them.
 */
const isUnreachable = (node: NodeObject): boolean => readyOf(node)?.status === 'Unknown';

/** A person, or a controller of the infrastructure, sets this taint when the machine is down for certain. */
const OUT_OF_SERVICE = 'node.kubernetes.io/out-of-service';

/** As Kubernetes' pod garbage collector judges it: a node that is ready is in service, whatever its taints. */
const isOutOfService = (node: NodeObject): boolean =>
  readyOf(node)?.status !== 'True' && (node.spec?.taints?.some(({ key }) => key === OUT_OF_SERVICE) ?? false);

/** Keeps the Ready condition, the taint and the metadata that a cache needs. */
function stripNode(node: NodeObject): NodeObject {
  const { apiVersion, kind, metadata } = node;
  const { name, uid, resourceVersion, creationTimestamp } = metadata;
  const ready = readyOf(node);
  return {
    ...(apiVersion && { apiVersion }),
    ...(kind && { kind }),
    metadata: { name, uid, resourceVersion, creationTimestamp },
    ...(isOutOfService(node) && { spec: { taints: [{ key: OUT_OF_SERVICE }] } }),
    ...(ready && {
      status: {
        conditions: [
          {
            type: 'Ready',
            status: ready.status,
            ...(ready.reason !== undefined && { reason: ready.reason }),
            ...(ready.lastTransitionTime !== undefined && { lastTransitionTime: ready.lastTransitionTime }),
          },
        ],
      },
    }),
  };
}
