/** What the benchmark does with jobs of either kind: FaceTrainJobs (kwok-cluster.ts) and JobSets (jobset.ts). */
import { pods } from '@facetrain/operator/controllers/resources';
import { isApiError } from '@facetrain/operator/runtime/api-error';
import type { ObjectMeta, Resource } from '@facetrain/operator/runtime/resource';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';

export const NAMESPACE = 'bench';
/** Requests at the same time, when many objects are created or deleted. */
const PARALLEL = 32;

export interface Gangs {
  apply(job: string, replicas: number): Promise<unknown>;
  applyAll(jobs: string[], replicas: number): Promise<void>;
  /** Resolves when all pods of these attempts exist, to the time (performance.now()). */
  podsExist(jobs: string[], attempt: number, replicas: number): Promise<number>;
  /** Resolves when all these jobs run, to the time (performance.now()). */
  jobsRun(jobs: string[]): Promise<number>;
  /** Makes one pod of the job fail. */
  failOne(job: string): Promise<void>;
  /** Deletes these jobs; resolves when their pods are gone. */
  remove(jobs: string[]): Promise<void>;
}

/** Writes the status that a kubelet writes when a container has failed. */
export async function failPod({ client }: ControlPlane, name: string, container: string): Promise<void> {
  const terminated = { exitCode: 1, reason: 'Error', finishedAt: new Date().toISOString() };
  const containerStatuses = [
    { name: container, ready: false, restartCount: 0, image: 'x', imageID: '', state: { terminated } },
  ];
  const status = { phase: 'Failed', conditions: [{ type: 'Ready', status: 'False' }], containerStatuses };
  await client.patch(pods, NAMESPACE, name, { status }, 'status');
}

/** Deletes the objects of the namespace that are selected. */
export async function deleteAll(
  { client }: ControlPlane,
  resource: Resource,
  query: { labelSelector?: string },
  isSelected: (metadata: ObjectMeta) => boolean = () => true,
): Promise<void> {
  const { items } = await client.list(resource, NAMESPACE, query, true);
  await inParallel(
    (items ?? []).filter(({ metadata }) => isSelected(metadata)),
    async ({ metadata: { name, uid } }) => {
      await client.delete(resource, NAMESPACE, name, uid).catch((error: unknown) => {
        if (!isApiError(error, 'NotFound')) throw error;
      });
    },
  );
}

export async function inParallel<T>(items: T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const left = items.values();
  await Promise.all(
    Array.from({ length: PARALLEL }, async () => {
      for (const item of left) await work(item);
    }),
  );
}
