/**
 * Names, labels and owner references of children. They depend on the job alone, so each plan finds what earlier ones
 * created.
 */
import { API_VERSION } from '@facetrain/api';
import type { Metadata, OwnerReference } from './objects.ts';
import type { JobIdentity } from './observed.ts';

export type JobKind = 'FaceTrainJob' | 'QuantizeJob';

/** The label, with its value, of all objects that a plan creates: Kubernetes' recommended label for it. */
export const MANAGED_BY = { label: 'app.kubernetes.io/managed-by', value: 'facetrain' } as const;

/** Labels of children. */
export const Label = {
  jobUid: 'facetrain.dev/job-uid',
  jobName: 'facetrain.dev/job-name',
  jobKind: 'facetrain.dev/job-kind',
  attempt: 'facetrain.dev/attempt',
  rank: 'facetrain.dev/rank',
  /** Digest of the fields that decide the result: `fieldsDigest` in attempt.ts. */
  specDigest: 'facetrain.dev/spec-digest',
} as const;

/** Name of the container that runs our program, in every pod. */
export const CONTAINER = 'facetrain';

/** Name of the attempt's ConfigMap and PodGroup, and prefix of its pods' names. */
export const attemptName = (job: Pick<JobIdentity, 'name'>, attempt: number): string => `${job.name}-${attempt}`;
/** Name of a pod, and its host name. */
export const podName = (job: Pick<JobIdentity, 'name'>, attempt: number, rank: number): string =>
  `${attemptName(job, attempt)}-${rank}`;

/** Labels that select all pods of a job and no others: the uid differs between jobs of the same name. */
export const selectorLabels = (job: JobIdentity): Record<string, string> => ({ [Label.jobUid]: job.uid });

/** Metadata of a child: the labels that all children have, `labels`, and the job as owner. */
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
      [MANAGED_BY.label]: MANAGED_BY.value,
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
