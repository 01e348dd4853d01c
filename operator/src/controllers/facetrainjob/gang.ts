/** Who makes the pods of an attempt start together. */
import type { FaceTrainJobSpec } from '@facetrain/api';
import { attemptName, childMetadata, Label } from '../names.ts';
import type { PodGroup } from '../objects.ts';
import type { JobIdentity } from '../observed.ts';

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

/** One a attempt: new pods in a group whose old ones still run would start as part of a gang. */
export function podGroup(job: JobIdentity, attempt: number, replicas: number, apiVersion: string): PodGroup {
  return {
    apiVersion,
    kind: 'PodGroup',
    metadata: childMetadata('FaceTrainJob', job, attemptName(job, attempt), { [Label.attempt]: String(attempt) }),
    spec: { schedulingPolicy: { gang: { minCount: replicas } } },
  };
}
