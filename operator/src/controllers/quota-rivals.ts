/** FaceTrainJobs that wait for the same ResourceQuota as a job: planner/src/refusal.ts decides who is served first. */
import type { FaceTrainJobStatus } from '@facetrain/api';
import type { JobStatus } from '@facetrain/planner/attempt';
import type { JobKind } from '@facetrain/planner/names';
import type { QuotaRivals } from '@facetrain/planner/observed';
import { quotaRivalsOf } from '@facetrain/planner/refusal';
import type { Cache } from '../runtime/cache.ts';
import type { JobObject } from './resources.ts';
import { isOlder, mayStart } from './shared-folders.ts';

/** Index of FaceTrainJobs: the ResourceQuota that refused the pods of a job, with its namespace. */
export const waitedForQuota = ({ metadata: { namespace }, status }: JobObject): string | undefined =>
  status?.refusal?.quota === undefined ? undefined : `${namespace}/${status.refusal.quota}`;

/**
 * @param caches its FaceTrainJobs have the index `quota`, waitedForQuota: a plan of a job that a quota refuses reads
 * only those that it refuses, too
 * @returns undefined if no quota refuses the job
 */
export function quotaRivals(
  { FaceTrainJob }: { FaceTrainJob: Cache<JobObject> },
  job: JobObject,
  now: Date,
): QuotaRivals | undefined {
  const quota = waitedForQuota(job);
  if (quota === undefined) return undefined;
  const jobs = FaceTrainJob.indexed('quota', quota)
    .filter((other) => other.metadata.uid === job.metadata.uid || mayWantPods(other))
    .sort((one, other) => (isOlder(one, other) ? -1 : 1));
  return quotaRivalsOf(
    job.metadata.uid,
    jobs.map(({ metadata: { uid, name }, status = {} }) => ({
      uid,
      label: `FaceTrainJob ${name}`,
      status: status as JobStatus,
    })),
    now,
  );
}

/** Index of jobs of both kinds: the namespace of one whose pods a ResourceQuota refuses. */
export const refusedIn = ({ metadata: { namespace }, status }: JobObject): string | undefined =>
  status?.refusal?.quota === undefined ? undefined : namespace;

/** @param caches have the index `refusedIn` @returns whether a ResourceQuota refuses pods of another job */
export const othersWaitForQuota = (
  caches: Record<JobKind, Cache<JobObject>>,
  { metadata: { namespace, uid } }: JobObject,
): boolean =>
  (['FaceTrainJob', 'QuantizeJob'] as const).some((kind) =>
    caches[kind].indexed('refusedIn', namespace!).some((other) => other.metadata.uid !== uid && mayStart(other)),
  );

/** A job that waits to create its QuantizeJob needs no pods any more. */
const mayWantPods = (job: JobObject): boolean =>
  mayStart(job) && (job.status as FaceTrainJobStatus | undefined)?.trainingCompletionTime === undefined;
