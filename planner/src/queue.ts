/**
 * Kueue (sigs.k8s.io/kueue): a job with `spec.queue` has pods only while Kueue lends it the quota for all of them.
 *
 * The request is a Workload of our own, one for each job, with one podSet: plain pod groups neither start suspended nor
 * are suspended again. Of Kueue's contract with a job's controller (pkg/controller/jobframework, ReconcileGenericJob),
 * this file keeps:
 *
 *   Workload                                job
 *   absent                                  create it; no pod
 *   QuotaReserved False, checks pending     wait, and say why; no pod
 *   Admitted                                start the gang, as flavors and checks want it; keep PodsReady
 *   Evicted, deactivated, being deleted     end the attempt; the trainers write a checkpoint on SIGTERM
 *   Evicted, and no pod is alive            give the quota back: no admission, QuotaReserved False, Requeued
 *   made for other pods, before an attempt  replace it
 *   admitted for more pods than are wished  give the quota of the others back: reclaimablePods
 *   job suspended, and no pod is alive      delete it
 *   job over, and no pod is alive           Finished
 *
 * The finalizer of Kueue keeps a deleted Workload, and with it the quota, until no pod is alive. An executor without
 * queues (`facetrain run`) observes none, and nothing here applies.
 */
import type { Condition, Queue, Topology } from '@facetrain/api';
import { isAlive, type JobView, outcomeOf, specDigest } from './attempt.ts';
import type { Blocker } from './blocker.ts';
import type { Child } from './children.ts';
import { childMetadata, Label, workloadName } from './names.ts';
import type { Pod, Workload } from './objects.ts';
import type { ObservedQueue, ObservedWorkload, Placement } from './observed.ts';
import { truncate } from './plain-data.ts';
import type { Action } from './plan.ts';
import { countFetches, isFetchContainer } from './pod-storage.ts';
import { MAX_MESSAGE, Reason } from './reasons.ts';
import { hasBegun, type Stage } from './stage.ts';
import { timestamp } from './time.ts';

/** Of a Workload that a controller still looks after (apis/kueue/v1beta2, ResourceInUseFinalizerName). */
export const WORKLOAD_FINALIZER = 'kueue.x-k8s.io/resource-in-use';

/** Name of the only podSet: Kueue's own for a job of one. */
const POD_SET = 'main';

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

/** Annotations by which Kueue knows the pods that wait for its choice of their nodes; it looks at no others. */
export const TopologyAnnotation = {
  required: 'kueue.x-k8s.io/podset-required-topology',
  preferred: 'kueue.x-k8s.io/podset-preferred-topology',
  /** On pods that ask for no topology, and that have a flavor with one. */
  unconstrained: 'kueue.x-k8s.io/podset-unconstrained-topology',
} as const;

type Loose = Record<string, unknown>;

/** The gang as Kueue sees it. */
export interface QueuedGang {
  queue: Queue;
  /** Number of pods. An elastic gang asks quota for all that its spec wishes, and keeps it while it has fewer. */
  count: number;
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

/** The Workload as a child of its job; none without a queue. */
export const workloadChildren = (
  view: JobView,
  gang: QueuedGang | null,
  observed: ObservedQueue | undefined,
): Child[] =>
  gang === null
    ? []
    : [
        {
          kind: 'Workload',
          name: workloadName(view.kind, view.identity),
          make: () => makeWorkload(view, gang, observed?.priority),
        },
      ];

function makeWorkload({ kind, identity }: JobView, gang: QueuedGang, priority: number | undefined): Workload {
  const { queue, count, pod, topology, tolerations } = gang;
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
      ...childMetadata(kind, identity, workloadName(kind, identity), { [Label.specDigest]: queueDigest(gang) }),
      finalizers: [WORKLOAD_FINALIZER],
    },
    spec: {
      podSets: [
        {
          name: POD_SET,
          count,
          ...(topology && { topologyRequest: { ...topology, podIndexLabel: Label.rank } }),
          template: {
            spec: {
              ...pick(pod.spec as unknown as Loose),
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

const conditionOf = ({ conditions }: ObservedWorkload, type: string): Condition | undefined =>
  conditions.find((condition) => condition.type === type);
const holds = (workload: ObservedWorkload, type: string): boolean => conditionOf(workload, type)?.status === 'True';

/** Number of pods for which the Workload asks quota, or has it. */
const countOf = ({ count, reclaimable }: ObservedWorkload): number => count - reclaimable;

/** Whether the Workload was made for such pods, be it for another number of them. */
const isForPodsOf = (gang: QueuedGang, { specDigest: made, count }: ObservedWorkload): boolean =>
  made === queueDigest({ ...gang, count });

/**
 * Whether the quota that the Workload asks for is not what the gang needs. More than that, once lent, can be reduced.
 */
const isForOtherPods = (gang: QueuedGang, workload: ObservedWorkload): boolean =>
  !isForPodsOf(gang, workload) ||
  countOf(workload) < gang.count ||
  (countOf(workload) > gang.count && !holds(workload, 'QuotaReserved'));

/** Whether Kueue lends the job its quota. */
const isAdmitted = (workload: ObservedWorkload | undefined): boolean =>
  workload !== undefined &&
  !workload.deleting &&
  workload.active &&
  holds(workload, 'Admitted') &&
  !holds(workload, 'Evicted') &&
  !holds(workload, 'Finished');

/** Number of the job's pods, of all attempts, of which a container can run. */
const livePods = ({ ranks, otherPods, placeholders }: JobView): number =>
  [...ranks, ...otherPods, ...placeholders].filter((pod) => pod !== undefined && !pod.removed && isAlive(pod)).length;

const hasEnded = (view: JobView): boolean => livePods(view) === 0;

/**
 * Ends an attempt whose quota Kueue has taken back. A cluster that no longer serves Workloads takes none back: the gang
 * goes on.
 */
export function evicted(view: JobView, queue: Queue | undefined, observed: ObservedQueue | undefined): Stage | null {
  if (queue === undefined || observed === undefined || observed.workloads !== 'Listed' || !hasBegun(view)) return null;
  const { workload } = observed;
  if (isAdmitted(workload)) return null;
  const name = workloadName(view.kind, view.identity);
  const why =
    workload === undefined
      ? `Workload ${name} is gone`
      : workload.deleting
        ? `Workload ${name} is being deleted`
        : evictionOf(workload);
  return {
    name: 'Replace',
    reason: Reason.queueEvicted,
    message: `Kueue takes the quota back, and the gang stops: ${why}`,
  };
}

function evictionOf(workload: ObservedWorkload): string {
  const eviction = conditionOf(workload, 'Evicted');
  if (eviction?.status === 'True') return `${eviction.reason}: ${eviction.message}`;
  return workload.active ? whyNotAdmitted(workload) : DEACTIVATED;
}

const DEACTIVATED = 'the Workload is deactivated; set its spec.active to true to queue it again';

/**
 * What a job that has a queue waits for, before its pods are created.
 *
 * @returns null once Kueue has admitted the job, and its flavors are known
 */
export function awaitAdmission(
  view: JobView,
  gang: QueuedGang | null,
  observed: ObservedQueue | undefined,
): Stage | null {
  if (gang === null || observed === undefined) return null;
  const { queue } = gang;
  const { workload } = observed;
  const wait = (message: string, actions: Action[] = []): Stage => ({
    name: 'Queued',
    message: truncate(`queue ${queue.name}: ${message}`, MAX_MESSAGE),
    actions,
  });
  if (workload === undefined) {
    const create: Action = { type: 'create', object: makeWorkload(view, gang, observed.priority) };
    return wait('the Workload is being made', [create]);
  }
  const { name, uid } = workload;
  if (workload.deleting) return wait(`Workload ${name} is being deleted`);
  const isStale = isForOtherPods(gang, workload) || holds(workload, 'Finished');
  if (isStale && !hasBegun(view))
    return wait('the Workload is made anew, as the job asks for other pods', [
      { type: 'delete', kind: 'Workload', name, uid, reason: Reason.specChanged },
    ]);
  if (!isAdmitted(workload)) return wait(whyNotAdmitted(workload));
  const unread = unreadFlavor(workload, observed);
  return unread === undefined ? null : wait(`admitted; ResourceFlavor ${unread} has not been read yet`);
}

const NOT_SERVED =
  'the cluster serves no kueue.x-k8s.io/v1beta2 Workload, or the operator may not list them: install Kueue 0.15 or ' +
  'later, or remove spec.queue';

const NOT_LISTED =
  'the API server cannot list Workloads (kueue.x-k8s.io/v1beta2) yet, which needs Kueue where they are stored in ' +
  'another version: see to it that Kueue runs';

/** What a job needs before it can queue; null: nothing. Workloads that are not listed yet will be, without the user. */
export function queueBlocker(gang: QueuedGang | null, observed: ObservedQueue | undefined): Blocker | null {
  if (gang === null || observed === undefined) return null;
  const { queue } = gang;
  const reason = Reason.queueUnavailable;
  const { workloads } = observed;
  const problem = { Listed: observed.problem, NotListed: NOT_LISTED, NotServed: NOT_SERVED }[workloads];
  if (problem === undefined) return null;
  const temporary = workloads === 'NotListed';
  return { reason, message: `spec.queue: ${queue.name}; ${problem}`, ...(temporary && { temporary }) };
}

/** A flavor of the assignment that says where pods belong, and was not read. */
const unreadFlavor = ({ assignment }: ObservedWorkload, { flavors }: ObservedQueue): string | undefined =>
  assignment?.flavors.find((flavor) => flavors[flavor] === undefined);

/**
 * Whether Kueue lends quota for a gang as it is now, with all the ranks that its spec wishes, and it is known where its
 * pods belong; true without a queue.
 */
export const hasQuotaFor = (gang: QueuedGang | null, observed: ObservedQueue | undefined): boolean =>
  gang === null ||
  observed === undefined ||
  (observed.workload !== undefined &&
    isAdmitted(observed.workload) &&
    !isForOtherPods(gang, observed.workload) &&
    unreadFlavor(observed.workload, observed) === undefined);

/** Kueue's words about a Workload that is not admitted. */
function whyNotAdmitted(workload: ObservedWorkload): string {
  if (!workload.active) return DEACTIVATED;
  const reserved = conditionOf(workload, 'QuotaReserved');
  if (holds(workload, 'Evicted') && reserved?.status === 'True') return `evicted: ${evictionOf(workload)}`;
  if (reserved?.status === 'True') {
    const pending = workload.checks.filter(({ state }) => state !== 'Ready');
    const checks = pending.map(({ name, state, message }) => `${name} (${state})${message && `: ${message}`}`);
    return `quota is reserved; admission checks: ${checks.join('; ') || 'none is left'}`;
  }
  return reserved ? reserved.message : 'Kueue has not looked at the Workload yet';
}

/** What flavors and admission checks want of the pods, as Kueue's integrations apply it (pkg/podset). */
export function placementOf({ workload, flavors }: ObservedQueue): PodPlacement {
  if (workload === undefined) return {};
  const { name, assignment, checks } = workload;
  const parts = [
    ...(assignment?.flavors ?? []).map((flavor) => flavors[flavor] ?? {}),
    ...checks.map(({ update }) => update ?? {}),
  ];
  const all = <K extends 'labels' | 'annotations' | 'nodeSelector'>(field: K): Record<string, string> =>
    Object.assign({}, ...parts.map((part) => part[field]));
  return {
    labels: { ...all('labels'), 'kueue.x-k8s.io/podset': POD_SET },
    annotations: { ...all('annotations'), 'kueue.x-k8s.io/workload': name },
    nodeSelector: all('nodeSelector'),
    tolerations: parts.flatMap(({ tolerations = [] }) => tolerations),
    // Kueue opens the gate of each pod once it has chosen the pod's place in the topology.
    ...(assignment?.hasTopology && { schedulingGates: [{ name: 'kueue.x-k8s.io/topology' }] }),
  };
}

/** A placement, with the gates that keep a pod from being scheduled. */
export type PodPlacement = Placement & { schedulingGates?: { name: string }[] };

/** @returns the pod where Kueue wants it; our own labels and annotations stay */
export function placed(pod: Pod, placement: PodPlacement): Pod {
  const { labels, annotations, nodeSelector = {}, tolerations = [], schedulingGates = [] } = placement;
  const { metadata, spec } = pod;
  const known = new Set((spec.tolerations ?? []).map((toleration) => specDigest(toleration)));
  const added = tolerations.filter((toleration) => !known.has(specDigest(toleration)));
  const asksForTopology = Object.values(TopologyAnnotation).some((name) => metadata.annotations?.[name] !== undefined);
  const allAnnotations = {
    ...annotations,
    ...(schedulingGates.length > 0 && !asksForTopology && { [TopologyAnnotation.unconstrained]: 'true' }),
    ...metadata.annotations,
  };
  return {
    ...pod,
    metadata: {
      ...metadata,
      labels: { ...labels, ...metadata.labels },
      ...(Object.keys(allAnnotations).length > 0 && { annotations: allAnnotations }),
    },
    spec: {
      ...spec,
      ...(Object.keys(nodeSelector).length > 0 && { nodeSelector: { ...spec.nodeSelector, ...nodeSelector } }),
      ...(added.length > 0 && { tolerations: [...(spec.tolerations ?? []), ...added] }),
      ...(schedulingGates.length > 0 && { schedulingGates: [...(spec.schedulingGates ?? []), ...schedulingGates] }),
    },
  };
}

/**
 * What a stage changes in the Workload: quota is given back once no pod is alive, that of ranks that are not wished any
 * more once as few pods are alive as are wished, and PodsReady is kept, by which Kueue may wait for the gang
 * (`waitForPodsReady` of its configuration).
 *
 * @param count number of pods that the spec wishes
 * @param isOver whether, by the observed status, no attempt follows: also of a training whose QuantizeJob cannot be
 * made
 */
export function workloadUpdates(
  stage: Stage,
  view: JobView,
  queue: Queue | undefined,
  count: number,
  observed: ObservedQueue | undefined,
  isOver: boolean,
): Action[] {
  const workload = observed?.workload;
  if (workload === undefined) return [];
  const { name, uid, resourceVersion, finalizers, deleting } = workload;
  const patch = (reason: string, change: { status?: Loose; finalizers?: string[] }): Action[] => [
    { type: 'patchWorkload', kind: 'Workload', name, uid, resourceVersion, reason, ...change },
  ];
  const release = (reason: string): Action[] =>
    finalizers.includes(WORKLOAD_FINALIZER)
      ? patch(reason, { finalizers: finalizers.filter((finalizer) => finalizer !== WORKLOAD_FINALIZER) })
      : [];
  const isWanted = !isOver && queue !== undefined && stage.name !== 'Suspended' && isAdmitted(workload);
  if (isWanted && count < countOf(workload) && livePods(view) <= count)
    // The number never decreases while the quota is lent (validateReclaimablePodsUpdate of Kueue's webhook).
    return patch(Reason.scaledDown, {
      status: { reclaimablePods: [{ name: POD_SET, count: workload.count - count }] },
    });
  if (!hasEnded(view)) return stage.name === 'Active' && isAdmitted(workload) ? podsReady(workload, view, patch) : [];
  if (deleting) return release(Reason.attemptOver);
  if (stage.name === 'Suspended' || queue === undefined)
    return [{ type: 'delete', kind: 'Workload', name, uid, reason: Reason.notWanted }];
  if (isOver) {
    if (holds(workload, 'Finished')) return release(Reason.over);
    const finished = {
      type: 'Finished',
      status: 'True' as const,
      reason: stage.name === 'Failed' ? 'Failed' : 'Succeeded',
      message: 'message' in stage ? stage.message : stage.name,
    };
    return patch(Reason.over, { status: { conditions: withConditions(workload, view, finished) } });
  }
  const eviction = conditionOf(workload, 'Evicted');
  if (eviction?.status !== 'True' || !holds(workload, 'QuotaReserved')) return [];
  return patch(Reason.queueEvicted, { status: returnedQuota(workload, view, eviction) });
}

/** Evictions after which Kueue puts the Workload back into its queue at once; after others it does so itself later. */
const REQUEUED = new Set(['Preempted', 'NodeFailures']);

/** The status by which a controller gives quota back (step 6 of ReconcileGenericJob; UnsetQuotaReservation). */
function returnedQuota(workload: ObservedWorkload, view: JobView, { reason, message }: Condition): Loose {
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

const NOT_READY = 'Not all pods are ready or succeeded';

/** The reasons are Kueue's (generatePodsReadyCondition): its timeouts for a start and for a recovery differ. */
function podsReady(
  workload: ObservedWorkload,
  view: JobView,
  patch: (reason: string, change: { status: Loose }) => Action[],
): Action[] {
  const before = conditionOf(workload, 'PodsReady');
  const hasBeenReady = before?.status === 'True' || before?.reason === 'WaitForRecovery';
  const ready = view.ranks.every((pod) => pod !== undefined && (pod.ready || outcomeOf(pod) === 'succeeded'));
  const wanted: Wanted = ready
    ? {
        type: 'PodsReady',
        status: 'True',
        reason: before?.status === 'True' ? before.reason : hasBeenReady ? 'Recovered' : 'Started',
        message: 'All pods reached readiness and the workload is running',
      }
    : {
        type: 'PodsReady',
        status: 'False',
        reason: hasBeenReady ? 'WaitForRecovery' : 'WaitForStart',
        message: NOT_READY,
      };
  if (before?.status === wanted.status && before.reason === wanted.reason) return [];
  return patch(Reason.podsReady, { status: { conditions: withConditions(workload, view, wanted) } });
}

type Wanted = Pick<Condition, 'type' | 'status' | 'reason' | 'message'>;

/** All conditions of the Workload, with these changed: a merge patch replaces the whole list. */
function withConditions(workload: ObservedWorkload, { now }: JobView, ...wanted: Wanted[]): Condition[] {
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
