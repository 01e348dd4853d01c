/**
 * Names, labels and owner references of children. They depend on the job alone, so each plan finds what earlier ones
 * created.
 */
import { API_VERSION } from '@facetrain/api';
import type { Metadata, OwnerReference } from './objects.ts';
import type { JobIdentity } from './observed.ts';

export { FACETRAIN_CONTAINER as CONTAINER } from '@facetrain/api';

export type JobKind = 'FaceTrainJob' | 'QuantizeJob';

/** The label, with its value, of all objects that a plan creates: Kubernetes' recommended label for it. */
export const MANAGED_BY = { label: 'app.kubernetes.io/managed-by', value: 'facetrain' } as const;

/** Labels of children. */
export const Label = {
  jobUid: 'facetrain.dev/job-uid',
  jobName: 'facetrain.dev/job-name',
  jobKind: 'facetrain.dev/job-kind',
  attempt: 'facetrain.dev/attempt',
  /** Number of the pod in its gang: its rank, unless `trainers.ranksPerPod` gives a pod several. */
  rank: 'facetrain.dev/rank',
  /** "true" on a pod that holds a place for a rank that an elastic gang lacks. */
  placeholder: 'facetrain.dev/placeholder',
  /** On a pod in a PodGroup of another scheduler than kube-scheduler: KAI or Volcano, as in gang.mode. */
  podGroup: 'facetrain.dev/pod-group',
  /** On a pod of an elastic gang: number of pods with which it was started. */
  gangSize: 'facetrain.dev/gang-size',
  /** Digest of the fields that decide the result: `fieldsDigest` in attempt.ts. */
  specDigest: 'facetrain.dev/spec-digest',
} as const;

/** Annotations of pods. */
export const Annotation = {
  /** A list, as JSON, of the places that the pod writes to: written-places.ts. */
  writesTo: 'facetrain.dev/writes-to',
} as const;

/**
 * Last part of the names of a QuantizeJob's children. Those of a FaceTrainJob end in a number, so jobs of both kinds
 * may have one name.
 */
const QUANTIZER = 'quantizer';

/** Name of the attempt's ConfigMap and PodGroup. */
export const attemptName = (kind: JobKind, { name }: Pick<JobIdentity, 'name'>, attempt: number): string =>
  kind === 'QuantizeJob' ? `${name}-${attempt}-${QUANTIZER}` : `${name}-${attempt}`;

/**
 * Name of a pod. That of a trainer is its host name, too. Pods are found by their labels, not by this name: those of a
 * QuantizeJob that a former version of the operator started are called NAME-ATTEMPT-0.
 */
export const podName = (kind: JobKind, job: Pick<JobIdentity, 'name'>, attempt: number, rank: number): string =>
  kind === 'QuantizeJob' ? attemptName(kind, job, attempt) : `${attemptName(kind, job, attempt)}-${rank}`;

/**
 * Name of a Workload of a job, which outlives attempts. Names of jobs have no dot, so that of no other job is equal.
 *
 * @param first number of the first pod for which it asks quota; 0: it is the Workload with which the job begins
 */
export const workloadName = (kind: JobKind, { name }: Pick<JobIdentity, 'name'>, first = 0): string =>
  `${kind.toLowerCase()}-${name}${first === 0 ? '' : `.${first}`}`;

/** The number in the name of a Workload that `workloadName` has made. */
export const firstPodOf = (name: string): number => Number(/\.(\d+)$/.exec(name)?.[1] ?? 0);

/** What follows the name of a job in that of a ConfigMap or PodGroup, also of a former version of the operator. */
const ATTEMPT_PART = new RegExp(`^(\\d+)(-${QUANTIZER})?$`);

/** The attempt of a ConfigMap or a PodGroup of the job, by its name; null for any other name. */
export function attemptOfName(name: string, job: Pick<JobIdentity, 'name'>): number | null {
  const prefix = `${job.name}-`;
  const [, number] = (name.startsWith(prefix) && ATTEMPT_PART.exec(name.slice(prefix.length))) || [];
  return number === undefined ? null : Number(number);
}

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
