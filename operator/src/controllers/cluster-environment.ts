/**
 * The cluster as the pods of a job see it: claims and paths of the node are mounted, objects of a store are fetched by
 * init containers, and the ranks find rank 0 by its DNS name.
 */
import { PROGRESS_HOST, parseStorageUri, type StorageRef } from '@facetrain/api';
import type { Environment, MountedStorage } from '@facetrain/planner/environment';
import { podName } from '@facetrain/planner/names';
import { SHARED_MEMORY } from '@facetrain/planner/pod';
import { cachePath, fetchContainer } from '@facetrain/planner/pod-storage';

const ROOT = '/mnt/facetrain';

/** @param defaultImage image of the pods of jobs that name none */
export function clusterEnvironment(defaultImage: string): Environment {
  return {
    defaultImage,
    storage,
    credentials: (name, secretName) => {
      const path = `${ROOT}/${name}`;
      return { path, volume: { name, secret: { secretName } }, mount: { name, mountPath: path, readOnly: true } };
    },
    master: (job, attempt, port) => ({
      host: `${podName('FaceTrainJob', job, attempt, 0)}.${job.name}.${job.namespace}.svc`,
      port,
    }),
    progress: (port) => ({ host: PROGRESS_HOST, port }),
    configDirectory: () => '/etc/facetrain',
    memoryDirectory: `${SHARED_MEMORY}/facetrain`,
  };
}

function storage(name: string, reference: StorageRef, access: 'read' | 'write'): MountedStorage {
  const location = parseStorageUri(reference.uri);
  const mountPath = `${ROOT}/${name}`;
  const mount = { name, mountPath, ...(access === 'read' && { readOnly: true }) };
  switch (location.scheme) {
    case 'file':
      return { path: location.path };
    case 'hostpath':
      return {
        path: mountPath,
        volume: { name, hostPath: { path: location.path, ...(access === 'write' && { type: 'DirectoryOrCreate' }) } },
        mount,
      };
    case 'pvc':
      // The whole claim is mounted. With a subPath that does not exist the kubelet would create the folder as root, and
      // the trainer, which is not root, could not write there.
      return {
        path: location.path === '' ? mountPath : `${mountPath}/${location.path}`,
        volume: { name, persistentVolumeClaim: { claimName: location.claim } },
        mount,
      };
    case 's3': {
      const scratch = { volume: { name, emptyDir: {} }, mount: { name, mountPath } };
      if (access === 'write') return { path: mountPath, ...scratch };
      const cache = reference.s3?.cache;
      if (cache !== undefined) {
        // The cache is writable for the fetching container alone.
        const cacheStorage = storage(name, { uri: cache }, 'write');
        const path = `${cacheStorage.path}/${cachePath(reference)}`;
        return {
          ...cacheStorage,
          path,
          mount: { ...scratch.mount, readOnly: true },
          fetch: fetchContainer(name, reference, path, [scratch.mount]),
        };
      }
      // One level below the mount, as the URI may name a single file as well as a folder.
      const path = `${mountPath}/data`;
      return { path, ...scratch, fetch: fetchContainer(name, reference, path, [scratch.mount]) };
    }
  }
}
