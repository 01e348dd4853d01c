/**
 * Kueue (sigs.k8s.io/kueue): a job with `spec.queue` has pods only while Kueue lends it the quota for all of them.
 *
 * The request is a Workload of our own, with one podSet: plain pod groups neither start suspended nor are suspended
 * again. An elastic gang may be admitted for fewer pods than it wishes (`minCount`), and asks for more, of what its
 * Workload does not have, by further ones, each for the pods after those of the others. Of Kueue's contract with a
 * job's controller (pkg/controller/jobframework, ReconcileGenericJob), this file keeps:
 *
 *   Workload                                job
 *   absent                                  create it; no pod
 *   QuotaReserved False, checks pending     wait, and say why; no pod
 *   Admitted                                start the gang, as flavors and checks want it; keep PodsReady
 *   Evicted, deactivated, being deleted     end the attempt; the trainers write a checkpoint on SIGTERM
 *   Evicted, and no pod is alive            give the quota back: no admission, QuotaReserved False, Requeued
 *   made for other pods, before an attempt  replace it
 *   admitted for more pods than are wished  give the quota of the others back: reclaimablePods
 *   of an elastic gang, for fewer           begin with them; then make a Workload for the others: growth
 *   growth admitted                         look for places for its pods: facetrainjob/elastic.ts
 *   growth evicted                          the gang goes on without its pods
 *   growth not wanted, and none of its pods is alive    delete it
 *   job suspended, and no pod is alive      delete it
 *   job over, and no pod is alive           Finished
 *
 * The finalizer of Kueue keeps a deleted Workload, and with it the quota, until no pod is alive. An executor without
 * queues (`facetrain run`) observes none, and nothing here applies. For jobs of MultiKueue see multikueue.ts.
 */
import { MAX_RESIZE_MESSAGE, type Queue } from '@facetrain/api';
import { isAlive, type JobView, outcomeOf, specDigest } from './attempt.ts';
import type { Blocker } from './blocker.ts';
import type { Child } from './children.ts';
import { workloadName } from './names.ts';
import type { Pod, Workload } from './objects.ts';
import type { ObservedQueue, ObservedWorkload, Placement } from './observed.ts';
import { truncate } from './plain-data.ts';
import type { Action } from './plan.ts';
import { MAX_MESSAGE, Reason } from './reasons.ts';
import { hasBegun, isEnding, type Stage } from './stage.ts';
import {
  adopt,
  askedBy,
  conditionOf,
  countOf,
  deletion,
  holds,
  isAdmitted,
  isForPodsOf,
  lentBy,
  makeWorkload,
  NOT_READY,
  POD_SET,
  patchOf,
  type QueuedGang,
  release,
  returnedQuota,
  sizeOf,
  type Wanted,
  withConditions,
} from './workload.ts';

/** Annotations by which Kueue knows the pods that wait for its choice of their nodes; it looks at no others. */
export const TopologyAnnotation = {
  required: 'kueue.x-k8s.io/podset-required-topology',
  preferred: 'kueue.x-k8s.io/podset-preferred-topology',
  /** On pods that ask for no topology, and that have a flavor with one. */
  unconstrained: 'kueue.x-k8s.io/podset-unconstrained-topology',
} as const;

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

/**
 * Whether the gang can have more quota by further Workloads. Kueue would choose the places of each without regard to
 * the others, so a gang that needs one domain of a topology gets it for all its pods at once.
 */
const growsInParts = ({ minCount, topology }: QueuedGang): boolean =>
  minCount !== undefined && topology?.required === undefined;

/**
 * Whether the quota that the Workload asks for is not what the gang needs to begin. More than that, once lent, can be
 * reduced. A Workload without `minCount` may be of a former version, or of a Kueue without PartialAdmission.
 */
export function isForOtherPods(gang: QueuedGang, observed: ObservedQueue, workload: ObservedWorkload): boolean {
  const { count, minCount = count } = gang;
  if (!isForPodsOf(gang, workload)) return true;
  if (holds(workload, 'QuotaReserved')) return Math.max(countOf(workload), sizeOf(lentBy(observed))) < minCount;
  return askedBy(workload) !== count || (workload.minCount !== undefined && workload.minCount !== minCount);
}

/** For how many pods Kueue lends the job quota; Infinity without a queue, or where no Workload is known. */
export const lentPods = (queue: Queue | undefined, observed: ObservedQueue | undefined): number =>
  queue === undefined || observed?.workloads !== 'Listed' ? Infinity : sizeOf(lentBy(observed));

/** Number of the job's pods, of all attempts, of which a container can run. */
const livePods = ({ ranks, otherPods, placeholders }: JobView): number =>
  [...ranks, ...otherPods, ...placeholders].filter((pod) => pod !== undefined && !pod.removed && isAlive(pod)).length;

/**
 * Ends an attempt whose quota Kueue has taken back. A cluster that no longer serves Workloads takes none back: the gang
 * goes on.
 *
 * @param minReplicas of an elastic gang, which goes on when Kueue takes back the quota of some pods
 */
export function evicted(
  view: JobView,
  queue: Queue | undefined,
  observed: ObservedQueue | undefined,
  minReplicas?: number,
): Stage | null {
  if (queue === undefined || observed === undefined || observed.workloads !== 'Listed' || !hasBegun(view)) return null;
  const { workload, growth = [] } = observed;
  const stop = (message: string): Stage => ({ name: 'Replace', reason: Reason.queueEvicted, message });
  if (!isAdmitted(workload))
    return stop(`Kueue takes the quota back, and the gang stops: ${whyLost(view, workload, 0)}`);
  const size = view.ranks.length;
  const left = sizeOf(lentBy(observed));
  if (minReplicas === undefined || left >= size || isEnding(view)) return null;
  const why = whyLost(
    view,
    growth.find(({ first }) => first === left),
    left,
  );
  const lost = `Kueue takes the quota of ${size - left} of ${size} pods back`;
  return left < minReplicas
    ? stop(`${lost}, and the gang stops: ${why}`)
    : {
        name: 'Replace',
        reason: Reason.scaledDown,
        message: truncate(`${lost}, and the gang goes on with ${left}: ${why}`, MAX_RESIZE_MESSAGE),
        trainers: left,
      };
}

/** @param first number of its first pod */
function whyLost(view: JobView, workload: ObservedWorkload | undefined, first: number): string {
  const name = workloadName(view.kind, view.identity, first);
  if (workload === undefined) return `Workload ${name} is gone`;
  return workload.deleting ? `Workload ${name} is being deleted` : evictionOf(workload);
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
  if (workload === undefined && observed.prebuilt !== undefined)
    return wait(`Workload ${observed.prebuilt}, which MultiKueue makes, is not there`);
  if (workload === undefined) {
    const create: Action = { type: 'create', object: makeWorkload(view, gang, observed.priority) };
    return wait('the Workload is being made', [create]);
  }
  const { name } = workload;
  if (workload.deleting) return wait(`Workload ${name} is being deleted`);
  if (workload.orphan) return wait(`Workload ${name} of MultiKueue is adopted`, [adopt(view, workload)]);
  const isStale = isForOtherPods(gang, observed, workload) || holds(workload, 'Finished');
  if (isStale && !hasBegun(view) && observed.prebuilt === undefined)
    return wait('the Workload is made anew, as the job asks for other pods', [deletion(workload, Reason.specChanged)]);
  if (!isAdmitted(workload)) return wait(whyNotAdmitted(workload));
  const unread = unreadFlavor(observed);
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

/** By this label Kueue knows the queue of jobs of other kinds. */
export const QUEUE_LABEL = 'kueue.x-k8s.io/queue-name';

/**
 * Why a job without `spec.queue` does not start: its label says that it shall wait for quota, and nothing would keep it
 * from starting past that. Null for a job that has begun, and where there is no Kueue.
 */
export function labelBlocker(
  view: JobView,
  queue: Queue | undefined,
  observed: ObservedQueue | undefined,
): Blocker | null {
  if (queue !== undefined || observed?.label === undefined || observed.workloads === 'NotServed' || hasBegun(view))
    return null;
  return {
    reason: Reason.queueNotSet,
    message:
      `label ${QUEUE_LABEL}: ${observed.label}; a queue is set by spec.queue.name, which can change while the job is ` +
      'suspended; without a queue, remove the label',
  };
}

/** A flavor of the assignments that says where pods belong, and was not read. */
const unreadFlavor = (observed: ObservedQueue): string | undefined =>
  lentBy(observed)
    .flatMap(({ assignment }) => assignment?.flavors ?? [])
    .find((flavor) => observed.flavors[flavor] === undefined);

/**
 * For how many pods of a gang as it is now Kueue lends quota, as far as it is known where they belong; Infinity without
 * a queue.
 */
export function quotaFor(gang: QueuedGang | null, observed: ObservedQueue | undefined): number {
  if (gang === null || observed === undefined) return Infinity;
  const { workload } = observed;
  const isUsable = workload !== undefined && isForPodsOf(gang, workload) && unreadFlavor(observed) === undefined;
  return isUsable ? sizeOf(lentBy(observed)) : 0;
}

/** The Workload by which a gang asks for the pods that it has no quota for; undefined: it is not made yet. */
const nextGrowth = ({ growth = [], ...observed }: ObservedQueue): ObservedWorkload | undefined => {
  const size = sizeOf(lentBy({ ...observed, growth }));
  return growth.find(({ first }) => first === size);
};

/** The pods that an elastic gang wishes beyond its quota, and can have by another Workload; null: none. */
function lackOfQuota(gang: QueuedGang | null, observed: ObservedQueue | undefined) {
  if (gang === null || observed === undefined || !growsInParts(gang)) return null;
  const quota = quotaFor(gang, observed);
  if (quota === 0 || quota >= gang.count) return null;
  // Kueue may admit any number of them.
  return { observed, quota, missing: { ...gang, count: gang.count - quota, minCount: 1 }, made: nextGrowth(observed) };
}

/** The Workload to be made for pods that an elastic gang lacks. They go to nodes of the flavors of the others. */
export function growthWorkload(
  view: JobView,
  gang: QueuedGang | null,
  queue: ObservedQueue | undefined,
): Workload | null {
  const lack = lackOfQuota(gang, queue);
  if (lack === null || lack.made !== undefined) return null;
  const { observed, missing, quota } = lack;
  const { nodeSelector } = merged(flavorsOf(observed.workload!, observed));
  return makeWorkload(view, missing, observed.priority, quota, nodeSelector);
}

/** Deletes a Workload that asks, in vain so far, for other pods than the gang lacks, or another number of them. */
export function staleGrowth(gang: QueuedGang | null, queue: ObservedQueue | undefined): Action[] {
  const { missing, made } = lackOfQuota(gang, queue) ?? {};
  if (!missing || !made || made.deleting || holds(made, 'QuotaReserved')) return [];
  const isCurrent = isForPodsOf(missing, made) && askedBy(made) === missing.count && !holds(made, 'Finished');
  return isCurrent ? [] : [deletion(made, Reason.specChanged)];
}

/** What a gang that has fewer pods than it wishes waits for in its queue; undefined: for nothing. */
export function whatGrowthWaitsFor(gang: QueuedGang | null, observed: ObservedQueue | undefined): string | undefined {
  if (gang === null || observed === undefined || observed.workloads !== 'Listed') return undefined;
  const { queue, count, topology } = gang;
  const missing = count - sizeOf(lentBy(observed));
  if (missing <= 0) return undefined;
  const wait = (why: string) =>
    `queue ${queue.name}: quota for ${missing} more ${missing === 1 ? 'pod' : 'pods'} ${why}`;
  if (topology?.required !== undefined)
    return wait('needs a new admission of the whole gang, for gang.topology.required: suspend the job and resume it');
  if (observed.workload === undefined || !isForPodsOf(gang, observed.workload))
    return wait('comes with the next attempt, as the pods were changed');
  const made = nextGrowth(observed);
  if (made === undefined)
    return wait(observed.problem === undefined ? 'is not asked for yet' : `is not asked for: ${observed.problem}`);
  return wait(`is waited for: ${made.deleting ? `Workload ${made.name} is being deleted` : whyNotAdmitted(made)}`);
}

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

const flavorsOf = ({ assignment }: ObservedWorkload, { flavors }: ObservedQueue): Placement[] =>
  (assignment?.flavors ?? []).map((flavor) => flavors[flavor] ?? {});

function merged(parts: Placement[]): Placement {
  const all = <K extends 'labels' | 'annotations' | 'nodeSelector'>(field: K): Record<string, string> =>
    Object.assign({}, ...parts.map((part) => part[field]));
  return {
    labels: all('labels'),
    annotations: all('annotations'),
    nodeSelector: all('nodeSelector'),
    tolerations: parts.flatMap(({ tolerations = [] }) => tolerations),
  };
}

/**
 * What flavors and admission checks want of a pod, as Kueue's integrations apply it (pkg/podset).
 *
 * @param number of the pod in its gang: the Workload that has quota for it decides
 */
export function placementOf(observed: ObservedQueue, number = 0): PodPlacement {
  const workload = lentBy(observed).findLast(({ first }) => first <= number) ?? observed.workload;
  if (workload === undefined) return {};
  const { name, assignment, checks } = workload;
  const { labels, annotations, ...where } = merged([
    ...flavorsOf(workload, observed),
    ...checks.map(({ update }) => update ?? {}),
  ]);
  return {
    labels: { ...labels, 'kueue.x-k8s.io/podset': POD_SET },
    annotations: { ...annotations, 'kueue.x-k8s.io/workload': name },
    ...where,
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
 * What a stage changes in the Workloads: quota is given back once no pod that needs it is alive, and PodsReady is kept,
 * by which Kueue may wait for the gang (`waitForPodsReady` of its configuration).
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
  if (observed?.workload === undefined && observed?.growth === undefined) return [];
  const { workload, growth = [] } = observed;
  const wished = isOver || queue === undefined || stage.name === 'Suspended' ? 0 : count;
  const lent = lentBy(observed);
  const next = lent.length > 0 ? nextGrowth(observed) : undefined;
  return [
    ...(workload === undefined
      ? []
      : quotaUpdates(stage, view, workload, wished, () => giveUp(stage, view, observed, workload, queue, isOver))),
    ...growth.flatMap((each) => {
      const isWanted = each.first < wished && (each === next || lent.includes(each));
      return quotaUpdates(stage, view, each, wished, () => (isWanted ? null : [deletion(each, Reason.notWanted)]));
    }),
  ];
}

/**
 * @param wished number of pods that the job wishes now
 * @param whenUnused what becomes of the Workload when no pod of it is alive; null: it stays
 */
function quotaUpdates(
  stage: Stage,
  view: JobView,
  workload: ObservedWorkload,
  wished: number,
  whenUnused: () => Action[] | null,
): Action[] {
  const { first } = workload;
  const alive = livePods(view);
  const needed = wished - first;
  if (needed > 0 && needed < countOf(workload) && isAdmitted(workload) && alive <= wished)
    // The number never decreases while the quota is lent (validateReclaimablePodsUpdate of Kueue's webhook).
    return [
      patchOf(workload, Reason.scaledDown, {
        status: { reclaimablePods: [{ name: POD_SET, count: workload.count - needed }] },
      }),
    ];
  if (alive > first) return stage.name === 'Active' && isAdmitted(workload) ? podsReady(workload, view) : [];
  if (workload.deleting) return release(workload, Reason.attemptOver);
  const given = whenUnused();
  if (given !== null) return given;
  const eviction = conditionOf(workload, 'Evicted');
  if (eviction?.status === 'True' && holds(workload, 'QuotaReserved'))
    return [patchOf(workload, Reason.queueEvicted, { status: returnedQuota(workload, view, eviction) })];
  // The gang goes on without those pods, for want of places.
  return conditionOf(workload, 'PodsReady') && isAdmitted(workload) && hasBegun(view) ? podsReady(workload, view) : [];
}

/** What becomes of the Workload with which a job began, when no pod is alive; null: the next attempt needs it. */
function giveUp(
  stage: Stage,
  view: JobView,
  { prebuilt }: ObservedQueue,
  workload: ObservedWorkload,
  queue: Queue | undefined,
  isOver: boolean,
): Action[] | null {
  if (stage.name === 'Suspended' || queue === undefined)
    return prebuilt === undefined ? [deletion(workload, Reason.notWanted)] : [];
  // MultiKueue deletes the job once its Workload is Finished: also its quantization has to be over by then.
  if (!isOver || (prebuilt !== undefined && view.status.completionTime === undefined)) return null;
  if (holds(workload, 'Finished')) return release(workload, Reason.over);
  const finished = {
    type: 'Finished',
    status: 'True' as const,
    reason: stage.name === 'Failed' ? 'Failed' : 'Succeeded',
    message: 'message' in stage ? stage.message : stage.name,
  };
  return [patchOf(workload, Reason.over, { status: { conditions: withConditions(workload, view, finished) } })];
}

/** The reasons are Kueue's (generatePodsReadyCondition): its timeouts for a start and for a recovery differ. */
function podsReady(workload: ObservedWorkload, view: JobView): Action[] {
  const before = conditionOf(workload, 'PodsReady');
  const hasBeenReady = before?.status === 'True' || before?.reason === 'WaitForRecovery';
  const ready =
    view.ranks.length > workload.first &&
    view.ranks.every((pod) => pod !== undefined && (pod.ready || outcomeOf(pod) === 'succeeded'));
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
  return [patchOf(workload, Reason.podsReady, { status: { conditions: withConditions(workload, view, wanted) } })];
}
