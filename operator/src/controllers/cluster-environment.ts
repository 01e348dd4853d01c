/** A cluster as pods see it: claims and paths of the node are mounted, object stores are fetched from, ranks meet by name. */
import { parseStorageUri, type StorageRef } from '@facetrain/api';
import type { Environment, MountedStorage } from '@facetrain/planner/environment';
import { podName } from '@facetrain/planner/names';
import { cachePath, fetchContainer } from '@facetrain/planner/pod-storage';

const ROOT = '/mnt/facetrain';

/** @param defaultImage of pods whose job names none */
export function clusterEnvironment(defaultImage: string): Environment {
  return {
    defaultImage,
    storage,
    master: (job, attempt, port) => ({ host: `${podName(job, attempt, 0)}.${job.name}.${job.namespace}.svc`, port }),
    progress: (port) => ({ host: '0.0.0.0', port }),
    configDirectory: () => '/etc/facetrain',
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
      // The whole claim: a subPath that does not exist is made by the kubelet, as root, and then the trainer could not write there.
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
        // Of the pod, only what fetches may write there.
        const kept = storage(name, { uri: cache }, 'write');
        const path = `${kept.path}/${cachePath(reference)}`;
        return {
          ...kept,
          path,
          mount: { ...scratch.mount, readOnly: true },
          fetch: fetchContainer(name, reference, path, [scratch.mount]),
        };
      }
      // One level down: a single file is fetched as well as a folder.
      const path = `${mountPath}/data`;
      return { path, ...scratch, fetch: fetchContainer(name, reference, path, [scratch.mount]) };
    }
  }
}
