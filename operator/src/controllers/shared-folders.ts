/**
 * FaceTrainJobs that write to the same folder, as copies of a manifest do. Two gangs would destroy each other's
 * checkpoints, so one job waits for the other: for one that has pods, else for an older one.
 *
 * Only pvc:// and hostpath:// are compared. For file:// and object stores the operator does not know which URIs are the
 * same folder.
 */
import { joinStorageUri } from '@facetrain/api';
import { isIgnored } from '@facetrain/planner/attempt';
import { isTrue } from '@facetrain/planner/conditions';
import { checkpointsUri, type OutputFolders } from '@facetrain/planner/facetrainjob/make-trainer-config';
import { ConditionType } from '@facetrain/planner/reasons';
import type { Cache, Index } from '../runtime/cache.ts';
import { identityOf, isPodAlive } from './observe.ts';
import type { JobObject, PodObject } from './resources.ts';

/** Indexes for the cache of FaceTrainJobs. Specs there have passed the API server's schema and are not parsed yet. */
export const outputFolderIndexes = {
  output: ({ metadata, spec }) => folderOf((spec as unknown as OutputFolders).output.uri, metadata.namespace!),
  checkpoints: ({ metadata, spec }) => folderOf(checkpointsUri(spec as unknown as OutputFolders), metadata.namespace!),
} satisfies Record<string, Index<JobObject>>;

interface Caches {
  FaceTrainJob: Cache<JobObject>;
  Pod: Cache<PodObject>;
}

/**
 * @returns kind and name (with the namespace, where it is another) of each job that must finish before this one starts
 */
export function jobsBefore(caches: Caches, job: JobObject): string[] {
  const { uid, namespace } = job.metadata;
  const sharing = Object.entries(outputFolderIndexes).flatMap(([index, folderOfJob]) => {
    const folder = folderOfJob(job);
    return folder === undefined ? [] : caches.FaceTrainJob.indexed(index, folder);
  });
  const before = [...new Set(sharing)].filter(
    (other) => other.metadata.uid !== uid && (hasPods(caches, other) || (mayStart(other) && isOlder(other, job))),
  );
  return before.map(
    ({ metadata }) =>
      `FaceTrainJob ${metadata.namespace === namespace ? '' : `${metadata.namespace}/`}${metadata.name}`,
  );
}

/**
 * @returns equal strings for URIs of the same folder. A claim belongs to its namespace, a path of the node does not.
 */
function folderOf(uri: string, namespace: string): string | undefined {
  const [, scheme] = /^(pvc|hostpath):\/\//.exec(uri) ?? [];
  if (scheme === undefined) return undefined;
  const folder = joinStorageUri(uri);
  return scheme === 'pvc' ? `${namespace} ${folder}` : folder;
}

const hasPods = ({ Pod }: Caches, { metadata }: JobObject): boolean =>
  Pod.indexed('job', metadata.uid).some(isPodAlive);

/** A job that is suspended or stalled could wait for ever, so others do not wait for it. */
function mayStart(job: JobObject): boolean {
  const { spec, status = {} } = job;
  if (isIgnored({ identity: identityOf(job), spec })) return false;
  return (
    status.completionTime === undefined && spec.suspend !== true && !isTrue(status.conditions, ConditionType.stalled)
  );
}

/** By creationTimestamp, which has whole seconds; then by uid, so that of two jobs exactly one is older. */
function isOlder({ metadata: one }: JobObject, { metadata: other }: JobObject): boolean {
  if (one.creationTimestamp !== other.creationTimestamp) return one.creationTimestamp < other.creationTimestamp;
  return one.uid < other.uid;
}
