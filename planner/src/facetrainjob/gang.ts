/** Gang scheduling: whether a PodGroup makes the pods of an attempt start together. */
import type { FaceTrainJobSpec } from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import type { Failure } from '../failure.ts';
import { attemptName, childMetadata, Label } from '../names.ts';
import type { PodGroup } from '../objects.ts';
import type { JobIdentity, ObservedObject } from '../observed.ts';
import { Reason } from '../reasons.ts';

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
 * A hint for a message: the scheduler waits for pods of the gang that cannot be created. The scheduler itself does not
 * report that. Empty if it does not apply.
 */
export function missingPodsHint(gang: Gang, { ranks }: JobView): string {
  const existing = ranks.filter((pod) => pod !== undefined).length;
  if (gang.mode !== 'native' || existing === 0 || existing === ranks.length) return '';
  return `; ${existing} of ${ranks.length} pods of the gang exist, and none of them starts before all do`;
}

/**
 * A PodGroup that a user deletes stays until its pods are gone, but they are not scheduled any more. A new one of the
 * same name cannot be created meanwhile. So the attempt fails, if pods still wait to be scheduled.
 */
export function findDeletedPodGroup(view: JobView, objects: ObservedObject[]): Failure | null {
  const name = attemptName(view.identity, view.attempt);
  const isDeleting = objects.some(
    (object) => object.kind === 'PodGroup' && object.name === name && object.owned && object.deleting,
  );
  if (!isDeleting || view.ranks.every((pod) => pod === undefined || pod.node !== undefined)) return null;
  return {
    reason: Reason.groupDeleted,
    message: `PodGroup ${name} was deleted before all pods of the gang had a place`,
    disruption: true,
    ruleReasons: [Reason.groupDeleted],
  };
}

/** A PodGroup per attempt: in a common one, pods of the old attempt would count towards the new gang. */
export function podGroup(job: JobIdentity, attempt: number, replicas: number, apiVersion: string): PodGroup {
  return {
    apiVersion,
    kind: 'PodGroup',
    metadata: childMetadata('FaceTrainJob', job, attemptName(job, attempt), { [Label.attempt]: String(attempt) }),
    spec: { schedulingPolicy: { gang: { minCount: replicas } } },
  };
}
