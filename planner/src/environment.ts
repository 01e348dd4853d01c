/**
 * Where pods find their storage and each other. This is all that differs between a cluster and a single machine.
 *
 * The planner calls these functions and writes what they return into `config.json` and the pods. So the configuration
 * is right in both, and the executor that starts processes does not rewrite it.
 */
import type { StorageRef } from '@facetrain/api';
import type { Container, Volume, VolumeMount } from './objects.ts';

/** How a program in the pod reaches the data of a storage URI. */
export interface MountedStorage {
  /** Path in the container. */
  path: string;
  volume?: Volume;
  mount?: VolumeMount;
  /** An init container that copies the data to `path`. */
  fetch?: Container;
}

/** All functions are pure. */
export interface Environment {
  /**
   * @param name a DNS label, unique in the pod: dataset, checkpoints, output, evaluation-0, evaluation-0-groups, ...
   * @param access 'read': a file or folder that exists. 'write': a folder, which is created if it is missing.
   */
  storage(name: string, reference: StorageRef, access: 'read' | 'write'): MountedStorage;
  /**
   * A folder with a file for each key of a Secret, which changes when the Secret does; null: the program finds its
   * credentials in its environment.
   *
   * @param name as for storage()
   */
  credentials(name: string, secret: string): MountedStorage | null;
  /** The address of rank 0, at which all ranks connect to each other. */
  master(job: { name: string; namespace: string }, attempt: number, port: number): { host: string; port: number };
  /** The address at which a pod listens for requests of its progress. */
  progress(port: number): { host: string; port: number };
  /** Folder in the container in which config.json of the ConfigMap is mounted. */
  configDirectory(podOrGang: string): string;
  /** A folder in memory that outlives a restart of the container in its pod; null: there is none. */
  memoryDirectory: string | null;
  /** Image of pods whose job names none; absent if pods are processes. */
  defaultImage?: string;
}
