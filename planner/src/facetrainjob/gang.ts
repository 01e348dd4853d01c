/**
 * Gang scheduling: whether a PodGroup makes the pods of an attempt start together, and whose.
 *
 * | gang.mode | PodGroup | scheduler |
 * | --- | --- | --- |
 * | Native | scheduling.k8s.io | as the pod template says |
 * | KAI | scheduling.run.ai | kai-scheduler, or as the pod template says |
 * | Volcano | scheduling.volcano.sh | volcano, or as the pod template says |
 * | Kueue, None | none | as the pod template says |
 * | Auto | as Native where PodGroups are served, else none | |
 */
import type { FaceTrainJobSpec } from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import type { Blocker } from '../blocker.ts';
import { type Failure, failedRank } from '../failure.ts';
import { attemptName, childMetadata, Label } from '../names.ts';
import type { Pod, PodGroup, QueuedPodGroup } from '../objects.ts';
import type { JobIdentity, ObservedObject, PodGroupApis, PodGroupReader } from '../observed.ts';
import { Reason } from '../reasons.ts';
import { requiredTopologyKey } from './topology.ts';

/**
 * `grouped`: all pods are in a PodGroup. `unavailable`: the spec demands one, and the cluster does not serve its kind.
 */
export type Gang =
  | { mode: 'grouped'; reader: PodGroupReader; apiVersion: string }
  | { mode: 'none' }
  | { mode: 'unavailable'; reader: PodGroupReader };

/**
 * The gang of an attempt. Once it has a pod, the others follow that one, whatever the spec and the cluster say since:
 * pods cannot join a group later, and a group would wait for them.
 */
export function gangOf({ gang: { mode } }: FaceTrainJobSpec, served: PodGroupApis, { ranks }: JobView): Gang {
  const begun = ranks.find((pod) => pod?.podGroup !== undefined)?.podGroup;
  if (begun === 'None') return { mode: 'none' };
  if (begun !== undefined && served[begun] !== undefined) return grouped(begun, served[begun]);
  switch (mode) {
    case 'None':
    case 'Kueue':
      return { mode: 'none' };
    case 'Auto':
      return served.Native === undefined ? { mode: 'none' } : grouped('Native', served.Native);
    default:
      return served[mode] === undefined ? { mode: 'unavailable', reader: mode } : grouped(mode, served[mode]);
  }
}

const grouped = (reader: PodGroupReader, apiVersion: string): Gang => ({ mode: 'grouped', reader, apiVersion });

type QueuedReader = Exclude<PodGroupReader, 'Native'>;

/** The versions of the PodGroups that are made for schedulers other than kube-scheduler. */
export const QUEUED_POD_GROUP_APIS: Readonly<Record<QueuedReader, string>> = {
  KAI: 'scheduling.run.ai/v2alpha2',
  Volcano: 'scheduling.volcano.sh/v1beta1',
};

/** What has to be installed for a mode. */
const NEEDS: Readonly<Record<PodGroupReader, string>> = {
  Native: 'scheduling.k8s.io PodGroup, so use Auto or None',
  KAI:
    `${QUEUED_POD_GROUP_APIS.KAI} PodGroup, or the operator may not list them: ` +
    'install KAI Scheduler 0.15 or later, or use another mode',
  Volcano:
    `${QUEUED_POD_GROUP_APIS.Volcano} PodGroup, or the operator may not list them: ` +
    'install Volcano, or use another mode',
};

/**
 * How a pod becomes a member of its PodGroup, and who schedules it unless its template says so.
 *
 * KAI (docs/developer/designs/external-podgroups of its repository): the annotation skip-podgrouper, since 0.15, keeps
 * its podgrouper from making a group of one pod for the job, a kind that it does not know. The group's own field
 * decides on the queue, the label shows it. Volcano: its controller makes groups only for pods without the annotation.
 */
const MEMBERSHIP: Readonly<
  Record<QueuedReader, { schedulerName: string; annotations: (group: string) => Record<string, string> }>
> = {
  KAI: {
    schedulerName: 'kai-scheduler',
    annotations: (group) => ({ 'pod-group-name': group, 'kai.scheduler/skip-podgrouper': 'true' }),
  },
  Volcano: {
    schedulerName: 'volcano',
    annotations: (group) => ({ 'scheduling.k8s.io/group-name': group }),
  },
};
const KAI_QUEUE_LABEL = 'kai.scheduler/queue';

/** @returns the pod as a member of the PodGroup of its attempt */
export function joinGroup(pod: Pod, gang: Gang, group: string, { gang: { queue } }: FaceTrainJobSpec): Pod {
  if (gang.mode !== 'grouped') return pod;
  const { metadata, spec } = pod;
  if (gang.reader === 'Native') return { ...pod, spec: { ...spec, schedulingGroup: { podGroupName: group } } };
  const { schedulerName, annotations } = MEMBERSHIP[gang.reader];
  const hasQueueLabel = gang.reader === 'KAI' && queue !== undefined;
  return {
    ...pod,
    metadata: {
      ...metadata,
      labels: {
        ...metadata.labels,
        ...(hasQueueLabel && { [KAI_QUEUE_LABEL]: queue }),
        [Label.podGroup]: gang.reader,
      },
      annotations: { ...metadata.annotations, ...annotations(group) },
    },
    spec: { ...spec, schedulerName: spec.schedulerName ?? schedulerName },
  };
}

/** What prevents the gang: a kind that the cluster lacks, or a template that says otherwise. */
export function gangConflict(gang: Gang, { trainers: { podTemplate } }: FaceTrainJobSpec): Blocker | null {
  if (gang.mode === 'unavailable')
    return {
      reason: Reason.gangUnavailable,
      message: `spec.gang.mode: ${gang.reader}; the cluster serves no ${NEEDS[gang.reader]}`,
    };
  if (gang.mode === 'none' || gang.reader === 'Native') return null;
  const { labels = {}, annotations = {} } = podTemplate?.metadata ?? {};
  const ours = MEMBERSHIP[gang.reader].annotations('');
  const refuse = (field: string, key: string): Blocker => ({
    reason: Reason.invalidSpec,
    message:
      `spec.trainers.podTemplate.metadata.${field}: ${key} is set by Facetrain with gang.mode ${gang.reader}; ` +
      'remove it',
  });
  const annotation = Object.keys(annotations).find((key) => key in ours);
  if (annotation !== undefined) return refuse('annotations', annotation);
  return gang.reader === 'KAI' && KAI_QUEUE_LABEL in labels ? refuse('labels', KAI_QUEUE_LABEL) : null;
}

/**
 * How many pods of a gang the scheduler places together at least. Of an elastic gang, it places as many as it can, but
 * no fewer than it may go on with.
 */
const minCountOf = ({ trainers: { replicas, elastic } }: FaceTrainJobSpec): number => elastic?.minReplicas ?? replicas;

/**
 * A hint for a message: the scheduler waits for pods of the gang that cannot be created. The scheduler itself does not
 * report that. Empty if it does not apply.
 */
export function missingPodsHint(gang: Gang, { ranks }: JobView, spec: FaceTrainJobSpec): string {
  const existing = ranks.filter((pod) => pod !== undefined).length;
  const needed = Math.min(minCountOf(spec), ranks.length);
  if (gang.mode !== 'grouped' || existing === 0 || existing >= needed) return '';
  const enough = needed === ranks.length ? 'all' : needed;
  return `; ${existing} of ${ranks.length} pods of the gang exist, and none of them starts before ${enough} do`;
}

/**
 * A PodGroup that a user deletes stays until its pods are gone, but they are not scheduled any more. A new one of the
 * same name cannot be created meanwhile. So the attempt fails, if pods still wait to be scheduled.
 */
export function findDeletedPodGroup(view: JobView, objects: ObservedObject[]): Failure | null {
  const name = attemptName(view.kind, view.identity, view.attempt);
  const isDeleting = objects.some(
    (object) => object.kind === 'PodGroup' && object.name === name && object.owned && object.deleting,
  );
  if (!isDeleting || view.ranks.every((pod) => pod === undefined || pod.removed || pod.node !== undefined)) return null;
  return {
    reason: Reason.groupDeleted,
    message: `PodGroup ${name} was deleted before all pods of the gang had a place`,
    disruption: true,
    ruleReasons: [Reason.groupDeleted],
  };
}

/**
 * A PodGroup whose priority differs from that of its pods. kube-scheduler refuses such a group with SchedulerError
 * until it is replaced (validatePodGroup in schedule_one_podgroup.go), and both priorities are immutable. The API
 * server sets each when the object is created, so they differ if a globalDefault PriorityClass changes in between (the
 * next attempt agrees again), or if a webhook gives pods another class (no attempt does). The failure counts as a
 * restart, so that the second case ends.
 */
export function findPriorityMismatch(view: JobView, objects: ObservedObject[]): Failure | null {
  const name = attemptName(view.kind, view.identity, view.attempt);
  const group = objects.find((object) => object.kind === 'PodGroup' && object.name === name && object.owned);
  if (group?.priority === undefined) return null;
  const pod = view.ranks.find(
    (one) =>
      one !== undefined && one.node === undefined && one.priority !== undefined && one.priority !== group.priority,
  );
  if (!pod) return null;
  const reason = Reason.priorityMismatch;
  return {
    reason,
    message:
      `pod ${pod.name} has priority ${pod.priority}, its PodGroup ${group.priority}: a scheduler places neither; ` +
      'name the PriorityClass in spec.trainers.podTemplate.spec.priorityClassName',
    disruption: false,
    ruleReasons: [reason],
    rank: failedRank(pod, view),
  };
}

/**
 * A PodGroup per attempt: in a common one, pods of the old attempt would count towards the new gang. So the number of
 * an elastic gang changes with its attempts, and never in a group.
 *
 * It names the PriorityClass of its pods: kube-scheduler schedules a group only if the priority and, with the feature
 * PodGroupPreemptionPolicy, the preemption policy of group and pods agree. The API server's admission sets both from
 * the class (plugin/pkg/admission/priority), and from the globalDefault class if none is named. The third field that
 * must agree, schedulerName, is a field of the pods only. KAI and Volcano take the priority from the group alone.
 *
 * @param gang in a group
 */
export function podGroup(
  job: JobIdentity,
  attempt: number,
  spec: FaceTrainJobSpec,
  { reader, apiVersion }: Extract<Gang, { mode: 'grouped' }>,
): PodGroup | QueuedPodGroup {
  const priorityClassName = spec.trainers.podTemplate?.spec?.priorityClassName;
  const priority = priorityClassName !== undefined && { priorityClassName };
  const metadata = childMetadata('FaceTrainJob', job, attemptName('FaceTrainJob', job, attempt), {
    [Label.attempt]: String(attempt),
  });
  const minCount = minCountOf(spec);
  const { queue } = spec.gang;
  if (reader !== 'Native')
    return {
      apiVersion,
      kind: 'PodGroup',
      metadata,
      spec: { minMember: minCount, ...(queue !== undefined && { queue }), ...priority },
    };
  const topologyKey = requiredTopologyKey(spec);
  return {
    apiVersion,
    kind: 'PodGroup',
    metadata,
    spec: {
      schedulingPolicy: { gang: { minCount } },
      ...(topologyKey !== undefined && { schedulingConstraints: { topology: [{ key: topologyKey }] } }),
      ...priority,
    },
  };
}
