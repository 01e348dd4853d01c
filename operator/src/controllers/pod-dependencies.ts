/**
 * What stands around a pod and decides whether it can run, where the pod itself does not say: its node, its claims, its mounts.
 *
 * All of it is a help, not a need. What the operator may not read (nodes belong to no namespace, and a Role cannot allow them) is left out, which is logged once.
 */
import type { Logger } from 'pino';
import { hasReason } from '../runtime/api-error.ts';
import { Cache, type CacheOptions } from '../runtime/cache.ts';
import type { Client } from '../runtime/client.ts';
import { type KubernetesObject, keyOf, type Resource } from '../runtime/resource.ts';
import { claims, type NodeObject, nodes, type PodEvent, type PodObject, podEvents } from './resources.ts';

export interface SurroundingsOptions {
  client: Pick<Client, 'list' | 'watch'>;
  /** null: all of them. */
  namespace: string | null;
  log: Logger;
  onRestart: (plural: string) => void;
  settleMilliseconds?: number;
}

/** Kubernetes calls nodes silent one after the other, also when it is itself that nobody can reach: by then it has called them all. */
const SETTLE_MILLISECONDS = 2_000;

/** Events are not kept in the server's watch cache, and only from there come bookmarks. */
const EVENT_WATCH_SECONDS = 60;

/** Kubelets tell of a volume that they cannot mount in an event, and nowhere else. */
const MOUNT_FAILURES = 'involvedObject.kind=Pod,reason=FailedMount';

export class Surroundings {
  readonly caches: {
    Node?: Cache<NodeObject>;
    PersistentVolumeClaim?: Cache<KubernetesObject>;
    Event?: Cache<PodEvent>;
  };
  /** Nodes that were deleted while pods were on them. One that was never seen is no loss: it may be newer than the cache. */
  readonly #gone = new Set<string>();
  readonly #silent = new Map<string, NodeJS.Timeout>();
  /** Silent for long enough. */
  readonly #lost = new Set<string>();
  /** No node answers: then it is the control plane that is cut off, as Kubernetes concludes too, and they all go on. */
  #isCutOff = false;
  #onNode: (name: string) => boolean = () => false;

  private constructor(caches: Surroundings['caches'], settleMilliseconds: number) {
    this.caches = caches;
    caches.Node?.onChange(({ object, deleted }) => {
      const { name } = object.metadata;
      if (deleted) this.#gone.add(name);
      else this.#gone.delete(name);
      const wasLost = this.#lost.has(name);
      if (!deleted && silence(object))
        this.#silent.set(
          name,
          this.#silent.get(name) ?? setTimeout(() => this.#lose(name), settleMilliseconds).unref(),
        );
      else {
        clearTimeout(this.#silent.get(name));
        this.#silent.delete(name);
        this.#lost.delete(name);
      }
      const wasCutOff = this.#isCutOff;
      this.#isCutOff = this.#silent.size === caches.Node!.size;
      // Nobody asks for it any more, and names of nodes are many in a cluster that grows and shrinks.
      if ((deleted || wasLost !== this.#lost.has(name)) && !this.#onNode(name)) this.#gone.delete(name);
      if (wasCutOff && !this.#isCutOff) for (const lost of this.#lost) this.#onNode(lost);
    });
  }

  #lose(name: string): void {
    this.#lost.add(name);
    this.#onNode(name);
  }

  static async open(options: SurroundingsOptions): Promise<Surroundings> {
    const { client, namespace, log, onRestart } = options;
    const cache = async <T extends KubernetesObject>(
      resource: Resource<T>,
      scope: string | null,
      consequence: string,
      more: Partial<CacheOptions<T>> = {},
    ) => {
      try {
        await client.list(resource, scope, { limit: 1 }, more.metadataOnly);
      } catch (error) {
        if (!hasReason(error, 'Forbidden')) throw error;
        log.warn({ resource: resource.plural }, `may not be read: ${consequence}`);
        return undefined;
      }
      return new Cache({
        client,
        resource,
        namespace: scope,
        log,
        onRestart: () => onRestart(resource.plural),
        ...more,
      });
    };
    const [node, claim, event] = await Promise.all([
      cache(nodes, null, 'a lost node is noticed when Kubernetes evicts its pods', { strip: withoutContent }),
      cache(claims, namespace, 'a missing PersistentVolumeClaim is named where the scheduler names it', {
        metadataOnly: true,
      }),
      cache(podEvents, namespace, 'why a volume cannot be mounted is told by the pod’s events alone', {
        fieldSelector: MOUNT_FAILURES,
        watchSeconds: EVENT_WATCH_SECONDS,
        indexes: {
          pod: ({ involvedObject: { namespace, name } }) => keyOf({ metadata: { namespace: namespace!, name } }),
        },
      }),
    ]);
    return new Surroundings(
      { ...(node && { Node: node }), ...(claim && { PersistentVolumeClaim: claim }), ...(event && { Event: event }) },
      options.settleMilliseconds ?? SETTLE_MILLISECONDS,
    );
  }

  /**
   * @param onNode told of a node that was lost or has come back; whether pods of ours are on it
   * @param onPod told of a pod (its key) of which there is news
   * @param podsThere all of them
   */
  listen(onNode: (name: string) => boolean, onPod: (key: string) => void, podsThere: () => Iterable<PodObject>): void {
    this.#onNode = onNode;
    const { PersistentVolumeClaim } = this.caches;
    PersistentVolumeClaim?.onChange(({ object: { metadata }, old, deleted }) => {
      // Before all are there, nobody has been told that one is missing.
      if (!PersistentVolumeClaim.isSynced || (old && !deleted)) return;
      for (const pod of podsThere())
        if (pod.metadata.namespace === metadata.namespace && isPending(pod) && claimsOf(pod).includes(metadata.name))
          onPod(keyOf(pod));
    });
    this.caches.Event?.onChange(({ object: { involvedObject }, deleted }) => {
      if (!deleted) onPod(keyOf({ metadata: { namespace: involvedObject.namespace!, name: involvedObject.name } }));
    });
  }

  /** Why a node counts as lost; undefined for one that works, and for one that nobody knows. */
  lostNode(name: string): string | undefined {
    if (this.#gone.has(name)) return `node ${name} is gone`;
    if (this.#isCutOff || !this.#lost.has(name)) return undefined;
    return silence(this.caches.Node!.get(keyOf({ metadata: { name } }))!);
  }

  /** Why a pod that waits cannot start. */
  hindrance(pod: PodObject): { reason: string; message: string } | undefined {
    const { namespace } = pod.metadata;
    const { PersistentVolumeClaim, Event } = this.caches;
    // A native gang hears of a missing claim only that its scheduler met an error.
    const missing =
      PersistentVolumeClaim &&
      claimsOf(pod).find((name) => !PersistentVolumeClaim.get(keyOf({ metadata: { namespace: namespace!, name } })));
    if (missing !== undefined)
      return { reason: 'PersistentVolumeClaimNotFound', message: `persistentvolumeclaim "${missing}" not found` };
    if (pod.status?.conditions?.some(({ type, status }) => type === 'PodReadyToStartContainers' && status === 'True'))
      return undefined;
    const told =
      Event?.indexed('pod', keyOf(pod)).filter(({ involvedObject }) => involvedObject.uid === pod.metadata.uid) ?? [];
    const latest = told.sort((a, b) => (a.lastTimestamp ?? '').localeCompare(b.lastTimestamp ?? '')).at(-1);
    return latest && { reason: latest.reason, message: latest.message ?? '' };
  }
}

export const isPending = ({ status }: PodObject): boolean => (status?.phase ?? 'Pending') === 'Pending';

const claimsOf = ({ spec }: PodObject): string[] =>
  spec.volumes?.flatMap(({ persistentVolumeClaim }) => persistentVolumeClaim?.claimName ?? []) ?? [];

/** "Unknown" is the node controller's word for a kubelet that is silent; one that says "False" is there, and may yet run what it has. */
function silence({ metadata, status }: NodeObject): string | undefined {
  const ready = status?.conditions?.find(({ type }) => type === 'Ready');
  return ready?.status === 'Unknown'
    ? `node ${metadata.name} does not answer (${ready.reason ?? 'Ready is Unknown'})`
    : undefined;
}

function withoutContent({ apiVersion, kind, metadata, status }: NodeObject): NodeObject {
  const { name, uid, resourceVersion, creationTimestamp } = metadata;
  const ready = status?.conditions
    ?.filter(({ type }) => type === 'Ready')
    .map(({ type, status, reason }) => ({ type, status, ...(reason !== undefined && { reason }) }));
  return {
    ...(apiVersion && { apiVersion }),
    ...(kind && { kind }),
    metadata: { name, uid, resourceVersion, creationTimestamp },
    ...(ready && { status: { conditions: ready } }),
  };
}
