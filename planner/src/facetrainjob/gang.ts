/** Who makes the pods of an attempt start together. */
import type { FaceTrainJobSpec } from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import type { Failure } from '../failure.ts';
import { attemptName, childMetadata, Label } from '../names.ts';
import type { PodGroup } from '../objects.ts';
import type { JobIdentity, ObservedObject } from '../observed.ts';
import { Reason } from '../reasons.ts';

export type Gang = { mode: 'native'; apiVersion: string } | { mode: 'none' } | { mode: 'unavailable' };

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

/** What a scheduler does not say: that it waits for pods which nobody may make. */
export function missingPodsHint(gang: Gang, { ranks }: JobView): string {
  const there = ranks.filter((pod) => pod !== undefined).length;
  if (gang.mode !== 'native' || there === 0 || there === ranks.length) return '';
  return `; ${there} of ${ranks.length} pods of the gang exist, and none of them starts before all do`;
}

/** A PodGroup that somebody deletes stays until its pods are gone, but does not get them a place any more. It cannot be made anew beside them. */
export function findDeletedPodGroup(view: JobView, objects: ObservedObject[]): Failure | null {
  const name = attemptName(view.identity, view.attempt);
  const isGoing = objects.some(
    (object) => object.kind === 'PodGroup' && object.name === name && object.owned && object.deleting,
  );
  if (!isGoing || view.ranks.every((pod) => pod === undefined || pod.node !== undefined)) return null;
  return {
    reason: Reason.groupDeleted,
    message: `PodGroup ${name} was deleted before all pods of the gang had a place`,
    disruption: true,
    ruleReasons: [Reason.groupDeleted],
  };
}

/** One an attempt: new pods in a group whose old ones still run would start as part of a gang. */
export function podGroup(job: JobIdentity, attempt: number, replicas: number, apiVersion: string): PodGroup {
  return {
    apiVersion,
    kind: 'PodGroup',
    metadata: childMetadata('FaceTrainJob', job, attemptName(job, attempt), { [Label.attempt]: String(attempt) }),
    spec: { schedulingPolicy: { gang: { minCount: replicas } } },
  };
}
