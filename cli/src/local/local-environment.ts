/**
 * The Environment (planner/src/environment.ts) of processes on this machine: folders in place of volumes, the loopback
 * address in place of the headless Service.
 */
import { join } from 'node:path';
import { parseStorageUri, type StorageRef } from '@facetrain/api';
import { cachePath, type Environment, fetchContainer, type MountedStorage } from '@facetrain/planner';

export interface LocalPorts {
  rendezvous: number;
  progress: number;
}

/**
 * @param folder the run's own folder: for configs, fetched inputs, and a folder for each PersistentVolumeClaim
 * @param ports free ports of this machine
 */
export function localEnvironment(folder: string, ports: LocalPorts): Environment {
  return {
    storage: (name, reference, access) => localStorage(folder, name, reference, access),
    // Those of whoever runs the command.
    credentials: () => null,
    master: () => ({ host: '127.0.0.1', port: ports.rendezvous }),
    progress: () => ({ host: '127.0.0.1', port: ports.progress }),
    configDirectory: (podOrGang: string) => join(folder, 'config', podOrGang),
    // A process is never started again in its attempt.
    memoryDirectory: null,
  };
}

/** Where a program finds the data of a storage address; parameters as those of `Environment.storage`. */
export function localStorage(
  folder: string,
  name: string,
  reference: StorageRef,
  access: 'read' | 'write',
): MountedStorage {
  const location = parseStorageUri(reference.uri);
  if (location.scheme === 'file' || location.scheme === 'hostpath') return { path: location.path };
  if (location.scheme === 'pvc') return { path: join(folder, 'volumes', location.claim, location.path) };
  // The program writes to a folder, and then publishes from there to the object store.
  if (access === 'write') return { path: join(folder, 'scratch', name) };
  const cache = reference.s3?.cache;
  const path =
    cache === undefined
      ? join(folder, 'inputs', name)
      : join(localStorage(folder, name, { uri: cache }, 'write').path, cachePath(reference));
  return { path, fetch: fetchContainer(name, reference, path, []) };
}
