/** Gang scheduling: whether a PodGroup makes the pods of an attempt start together. */
import type { FaceTrainJobSpec } from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import { type Failure, failedRank } from '../failure.ts';
import { attemptName, childMetadata, Label } from '../names.ts';
import type { PodGroup } from '../objects.ts';
import type { JobIdentity, ObservedObject } from '../observed.ts';
import { Reason } from '../reasons.ts';
import { requiredTopologyKey } from './topology.ts';

/** `unavailable`: the spec demands a PodGroup, and the cluster serves none. */
export type Gang = { mode: 'native'; apiVersion: string } | { mode: 'none' } | { mode: 'unavailable' };

/** @param podGroupApi as in ObservedFaceTrainJob */
export function gangOf(spec: FaceTrainJobSpec, podGroupApi: string | null): Gang {
  switch (spec.gang.mode) {
    case 'None':
      return { mode: 'none' };
    case 'Native':
      return podGroupApi === null ? { mode: 'unavailable' } : { mode: 'native', apiVersion: podGroupApi };
    case 'Auto':
      return podGroupApi === null ? { mode: 'none' } : { mode: 'native', apiVersion: podGroupApi };
  }
}

/**
 * Whether the attempt was begun when the cluster served no PodGroup. It goes on without one: pods cannot join a group
 * later, and a group would wait for them.
 */
export const beganAsPlainPods = ({ ranks }: JobView): boolean => ranks.some((pod) => pod?.ungrouped === true);

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
  if (gang.mode !== 'native' || existing === 0 || existing >= needed) return '';
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
 * A PodGroup per attempt: in a common one, pods of the old attempt would count towards the new gang.
 *
 * It names the PriorityClass of its pods: kube-scheduler schedules a group only if the priority and, with the feature
 * PodGroupPreemptionPolicy, the preemption policy of group and pods agree. The API server's admission sets both from
 * the class (plugin/pkg/admission/priority), and from the globalDefault class if none is named. The third field that
 * must agree, schedulerName, is a field of the pods only.
 */
export function podGroup(job: JobIdentity, attempt: number, spec: FaceTrainJobSpec, apiVersion: string): PodGroup {
  const priorityClassName = spec.trainers.podTemplate?.spec?.priorityClassName;
  const topologyKey = requiredTopologyKey(spec);
  return {
    apiVersion,
    kind: 'PodGroup',
    metadata: childMetadata('FaceTrainJob', job, attemptName('FaceTrainJob', job, attempt), {
      [Label.attempt]: String(attempt),
    }),
    spec: {
      schedulingPolicy: { gang: { minCount: minCountOf(spec) } },
      ...(topologyKey !== undefined && { schedulingConstraints: { topology: [{ key: topologyKey }] } }),
      ...(priorityClassName !== undefined && { priorityClassName }),
    },
  };
}
