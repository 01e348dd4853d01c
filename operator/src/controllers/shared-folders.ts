/**
 * FaceTrainJobs that write to the same folder, as copies of a manifest do. Two gangs would destroy each other's checkpoints, so one comes
 * after the other: first who runs, then who was made first. What `file://` and object stores stand for is not known here.
 */
import { joinStorageUri } from '@facetrain/api';
import { isIgnored } from '@facetrain/planner/attempt';
import { isTrue } from '@facetrain/planner/conditions';
import { checkpointsUri, type OutputFolders } from '@facetrain/planner/facetrainjob/make-trainer-config';
import { ConditionType } from '@facetrain/planner/reasons';
import type { Cache, Index } from '../runtime/cache.ts';
import { identityOf, mayRun } from './observe.ts';
import type { JobObject, PodObject } from './resources.ts';

/** For the cache of FaceTrainJobs, whose specs the API server's schema has checked and ours has not yet. */
export const folderIndexes = {
  output: ({ metadata, spec }) => folderOf((spec as unknown as OutputFolders).output.uri, metadata.namespace!),
  checkpoints: ({ metadata, spec }) => folderOf(checkpointsUri(spec as unknown as OutputFolders), metadata.namespace!),
} satisfies Record<string, Index<JobObject>>;

interface Caches {
  FaceTrainJob: Cache<JobObject>;
  Pod: Cache<PodObject>;
}

/** @returns how to call the jobs that must finish before this one begins */
export function jobsAhead(caches: Caches, job: JobObject): string[] {
  const { uid, namespace } = job.metadata;
  const sharing = Object.entries(folderIndexes).flatMap(([index, of]) => {
    const folder = of(job);
    return folder === undefined ? [] : caches.FaceTrainJob.indexed(index, folder);
  });
  const ahead = [...new Set(sharing)].filter(
    (other) => other.metadata.uid !== uid && (runs(caches, other) || (isAboutTo(other) && isEarlier(other, job))),
  );
  return ahead.map(
    ({ metadata }) =>
      `FaceTrainJob ${metadata.namespace === namespace ? '' : `${metadata.namespace}/`}${metadata.name}`,
  );
}

/** The same for who means the same folder. A claim belongs to its namespace. */
function folderOf(uri: string, namespace: string): string | undefined {
  const [, scheme] = /^(pvc|hostpath):\/\//.exec(uri) ?? [];
  if (scheme === undefined) return undefined;
  const folder = joinStorageUri(uri);
  return scheme === 'pvc' ? `${namespace} ${folder}` : folder;
}

const runs = ({ Pod }: Caches, { metadata }: JobObject): boolean => Pod.indexed('job', metadata.uid).some(mayRun);

/** One that is stuck or suspended holds nobody up. */
function isAboutTo(job: JobObject): boolean {
  const { spec, status = {} } = job;
  if (isIgnored({ identity: identityOf(job), spec })) return false;
  return (
    status.completionTime === undefined && spec.suspend !== true && !isTrue(status.conditions, ConditionType.stalled)
  );
}

function isEarlier({ metadata: one }: JobObject, { metadata: other }: JobObject): boolean {
  if (one.creationTimestamp !== other.creationTimestamp) return one.creationTimestamp < other.creationTimestamp;
  return one.uid < other.uid;
}
