/** Names, labels and owners of children: all of them a function of the job, so that every plan finds what an earlier one made. */
import { API_VERSION } from '@facetrain/api';
import type { Metadata, OwnerReference } from './objects.ts';
import type { JobIdentity } from './observed.ts';

export type JobKind = 'FaceTrainJob' | 'QuantizeJob';

export const Label = {
  jobUid: 'facetrain.dev/job-uid',
  jobName: 'facetrain.dev/job-name',
  jobKind: 'facetrain.dev/job-kind',
  attempt: 'facetrain.dev/attempt',
  rank: 'facetrain.dev/rank',
  /** Of what is trained; see the spec digest in attempt.ts. */
  specDigest: 'facetrain.dev/spec-digest',
} as const;

/** The container of ours in every pod. */
export const CONTAINER = 'facetrain';

/** Also the name of the attempt's ConfigMap and PodGroup. */
export const attemptName = (job: Pick<JobIdentity, 'name'>, attempt: number): string => `${job.name}-${attempt}`;
export const podName = (job: Pick<JobIdentity, 'name'>, attempt: number, rank: number): string =>
  `${attemptName(job, attempt)}-${rank}`;

/** Labels by which a selector finds all pods of a job and nobody else's. */
export const selectorLabels = (job: JobIdentity): Record<string, string> => ({ [Label.jobUid]: job.uid });

export function childMetadata(
  kind: JobKind,
  job: JobIdentity,
  name: string,
  labels: Record<string, string> = {},
): Metadata {
  return {
    name,
    namespace: job.namespace,
    labels: {
      'app.kubernetes.io/managed-by': 'facetrain',
      [Label.jobKind]: kind,
      [Label.jobName]: job.name,
      ...selectorLabels(job),
      ...labels,
    },
    ownerReferences: [ownerReference(kind, job)],
  };
}

function ownerReference(kind: JobKind, job: JobIdentity): OwnerReference {
  return { apiVersion: API_VERSION, kind, name: job.name, uid: job.uid, controller: true, blockOwnerDeletion: true };
}
