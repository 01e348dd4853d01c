/**
 * Workloads (kueue.x-k8s.io): how one is made for a gang, what one says, and how one is changed. queue.ts decides when,
 * and multikueue.ts for jobs that another cluster runs.
 */
import type { Condition, Queue, Topology } from '@facetrain/api';
import { type JobView, specDigest } from './attempt.ts';
import { childMetadata, Label, workloadName } from './names.ts';
import type { Pod, Workload } from './objects.ts';
import type { ObservedQueue, ObservedWorkload } from './observed.ts';
import { truncate } from './plain-data.ts';
import type { Action } from './plan.ts';
import { countFetches, isFetchContainer } from './pod-storage.ts';
import { MAX_MESSAGE, Reason } from './reasons.ts';
import { timestamp } from './time.ts';

/** Of a Workload that a controller still looks after (apis/kueue/v1beta2, ResourceInUseFinalizerName). */
export const WORKLOAD_FINALIZER = 'kueue.x-k8s.io/resource-in-use';

/** Name of the only podSet: Kueue's own for a job of one. */
export const POD_SET = 'main';

/** Fields of a pod's spec by which Kueue counts its resources and chooses flavors, besides its containers. */
const POD_FIELDS = [
  'nodeSelector',
  'affinity',
  'runtimeClassName',
  'overhead',
  'priorityClassName',
  'resourceClaims',
  'resources',
  'topologySpreadConstraints',
];

type Loose = Record<string, unknown>;

/** The gang as Kueue sees it. */
export interface QueuedGang {
  queue: Queue;
  /** Number of pods. An elastic gang asks quota for all that its spec wishes, and keeps it while it has fewer. */
  count: number;
  /** Of an elastic gang: it can begin with as few. */
  minCount?: number | undefined;
  /** Any pod of the gang: all ask for the same. */
  pod: Pod;
  /** Levels of Kueue's topology, as in `gang.topology`. */
  topology?: Topology | undefined;
  /** Tolerations of the user's pod template. Ours are for lost nodes, and change with the failure policy. */
  tolerations: Loose[];
}

/**
 * Digest of what quota was asked for; another image needs no other quota. Containers that fetch need none beside the
 * one after them. They count as former versions made them, one without resources for each input: otherwise an upgrade
 * would take their quota from the gangs that have it.
 */
export function queueDigest({ queue, count, pod, topology, tolerations }: QueuedGang): string {
  const { spec } = pod;
  const resources = [...(spec.initContainers ?? []), ...spec.containers].flatMap((container) =>
    isFetchContainer(container.name)
      ? Array.from({ length: countFetches(container) }, () => ({}))
      : [container.resources ?? {}],
  );
  return specDigest({
    queue,
    count,
    resources,
    tolerations,
    ...(topology && { topology }),
    ...pick(spec as unknown as Loose),
  });
}

const pick = (spec: Loose): Loose =>
  Object.fromEntries(POD_FIELDS.flatMap((field) => (spec[field] === undefined ? [] : [[field, spec[field]]])));

/** @param first number of the first of the pods; 0: it is the Workload with which the job begins */
export function makeWorkload(
  { kind, identity }: Pick<JobView, 'kind' | 'identity'>,
  gang: QueuedGang,
  priority: number | undefined,
  first = 0,
  nodeSelector: Record<string, string> = {},
): Workload {
  const { queue, count, minCount = count, pod, topology, tolerations } = gang;
  const container = ({ name, image, resources, restartPolicy }: Loose): Loose => ({
    name,
    ...(image !== undefined && { image }),
    ...(resources !== undefined && { resources }),
    ...(restartPolicy !== undefined && { restartPolicy }),
  });
  const { initContainers, containers } = pod.spec as unknown as { initContainers?: Loose[]; containers: Loose[] };
  return {
    apiVersion: 'kueue.x-k8s.io/v1beta2',
    kind: 'Workload',
    metadata: {
      ...childMetadata(kind, identity, workloadName(kind, identity, first), { [Label.specDigest]: queueDigest(gang) }),
      finalizers: [WORKLOAD_FINALIZER],
    },
    spec: {
      podSets: [
        {
          name: POD_SET,
          count,
          ...(minCount < count && { minCount }),
          ...(topology && { topologyRequest: { ...topology, podIndexLabel: Label.rank } }),
          template: {
            spec: {
              ...pick(pod.spec as unknown as Loose),
              ...(Object.keys(nodeSelector).length > 0 && {
                nodeSelector: { ...pod.spec.nodeSelector, ...nodeSelector },
              }),
              ...(tolerations.length > 0 && { tolerations }),
              ...(initContainers && { initContainers: initContainers.map(container) }),
              containers: containers.map(container),
              restartPolicy: 'Never',
            },
          },
        },
      ],
      queueName: queue.name,
      ...(queue.priorityClassName !== undefined && {
        priorityClassRef: {
          group: 'kueue.x-k8s.io',
          kind: 'WorkloadPriorityClass',
          name: queue.priorityClassName,
        },
        priority: priority ?? 0,
      }),
    },
  };
}

export const conditionOf = ({ conditions }: ObservedWorkload, type: string): Condition | undefined =>
  conditions.find((condition) => condition.type === type);
export const holds = (workload: ObservedWorkload, type: string): boolean =>
  conditionOf(workload, type)?.status === 'True';

/** Number of pods for which the Workload asks quota. */
export const askedBy = ({ count, reclaimable }: ObservedWorkload): number => count - reclaimable;

/** Number of pods for which it has quota when it is admitted (totalRequestsFromAdmission in Kueue's pkg/workload). */
export const countOf = (workload: ObservedWorkload): number =>
  Math.min(askedBy(workload), workload.assignment?.count ?? workload.count);

/** Whether the Workload was made for such pods, be it for another number of them. */
export const isForPodsOf = (gang: QueuedGang, { specDigest: made, count }: ObservedWorkload): boolean =>
  made === queueDigest({ ...gang, count });

/** Whether Kueue lends the job its quota. */
export const isAdmitted = (workload: ObservedWorkload | undefined): boolean =>
  workload !== undefined &&
  !workload.deleting &&
  workload.active &&
  holds(workload, 'Admitted') &&
  !holds(workload, 'Evicted') &&
  !holds(workload, 'Finished');

/** The Workloads that lend the job quota now, in the order of the pods that they are for. */
export function lentBy({ workload, growth = [] }: ObservedQueue): ObservedWorkload[] {
  if (workload === undefined || !isAdmitted(workload)) return [];
  const all = [workload];
  for (;;) {
    const next = growth.find((each) => each.first === sizeOf(all) && isAdmitted(each) && countOf(each) > 0);
    if (next === undefined) return all;
    all.push(next);
  }
}

export const sizeOf = (lent: ObservedWorkload[]): number => lent.reduce((sum, workload) => sum + countOf(workload), 0);

export const patchOf = (
  { name, uid, resourceVersion }: ObservedWorkload,
  reason: string,
  change: Partial<Extract<Action, { type: 'patchWorkload' }>>,
): Action => ({ type: 'patchWorkload', kind: 'Workload', name, uid, resourceVersion, reason, ...change });

export const deletion = ({ name, uid }: ObservedWorkload, reason: string): Action => ({
  type: 'delete',
  kind: 'Workload',
  name,
  uid,
  reason,
});

/** Makes a Workload that MultiKueue has made the job's own, as if the operator had. */
export function adopt({ kind, identity }: Pick<JobView, 'kind' | 'identity'>, workload: ObservedWorkload): Action {
  const { labels, ownerReferences } = childMetadata(kind, identity, workload.name);
  const finalizers = [...new Set([...workload.finalizers, WORKLOAD_FINALIZER])];
  return patchOf(workload, Reason.adopted, { labels, ownerReferences, finalizers });
}

export function release(workload: ObservedWorkload, reason: string): Action[] {
  const finalizers = workload.finalizers.filter((finalizer) => finalizer !== WORKLOAD_FINALIZER);
  return finalizers.length < workload.finalizers.length ? [patchOf(workload, reason, { finalizers })] : [];
}

/** Evictions after which Kueue puts the Workload back into its queue at once; after others it does so itself later. */
const REQUEUED = new Set(['Preempted', 'NodeFailures']);

/** The status by which a controller gives quota back (step 6 of ReconcileGenericJob; UnsetQuotaReservation). */
export function returnedQuota(
  workload: ObservedWorkload,
  view: Pick<JobView, 'now'>,
  { reason, message }: Condition,
): Loose {
  return {
    admission: null,
    conditions: withConditions(
      workload,
      view,
      { type: 'Requeued', status: REQUEUED.has(reason) ? 'True' : 'False', reason, message },
      { type: 'QuotaReserved', status: 'False', reason: 'Pending', message },
      { type: 'Admitted', status: 'False', reason: 'NoReservation', message: 'The workload has no reservation' },
      ...(conditionOf(workload, 'PodsReady')
        ? [{ type: 'PodsReady', status: 'False' as const, reason: 'WaitForStart', message: NOT_READY }]
        : []),
    ),
  };
}

export const NOT_READY = 'Not all pods are ready or succeeded';

export type Wanted = Pick<Condition, 'type' | 'status' | 'reason' | 'message'>;

/** All conditions of the Workload, with these changed: a merge patch replaces the whole list. */
export function withConditions(
  workload: ObservedWorkload,
  { now }: Pick<JobView, 'now'>,
  ...wanted: Wanted[]
): Condition[] {
  const changed = wanted.map((condition) => ({
    ...condition,
    message: truncate(condition.message, MAX_MESSAGE),
    observedGeneration: workload.generation,
    lastTransitionTime:
      conditionOf(workload, condition.type)?.status === condition.status
        ? conditionOf(workload, condition.type)!.lastTransitionTime
        : timestamp(now),
  }));
  const types = new Set(wanted.map(({ type }) => type));
  return [...workload.conditions.filter(({ type }) => !types.has(type)), ...changed];
}
