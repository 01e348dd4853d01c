/**
 * Where pods find things: what differs between a cluster and one machine, and nothing else does.
 *
 * The planner asks its environment where a rank finds a storage uri and its peers; the answer is data. So the config
 * that a trainer reads is right on both, and an executor of processes need not rewrite it.
 */
import type { StorageRef } from '@facetrain/api';
import type { Container, Volume, VolumeMount } from './objects.ts';

/** A storage uri as the program in the pod sees it. */
export interface MountedStorage {
  path: string;
  volume?: Volume;
  mount?: VolumeMount;
  /** Copies the data to `path` before the program starts. */
  fetch?: Container;
}

export interface Environment {
  /**
   * @param name unique in the pod, a DNS label: dataset, checkpoints, output, evaluation-0, ...
   * @param access 'read': a file or folder that exists. 'write': a folder, made when missing.
   */
  storage(name: string, reference: StorageRef, access: 'read' | 'write'): MountedStorage;
  /** Where ranks meet: the address of rank 0. */
  master(job: { name: string; namespace: string }, attempt: number, port: number): { host: string; port: number };
  /** Where a pod serves progress. */
  progress(port: number): { host: string; port: number };
  /** Folder in which the ConfigMap with config.json appears for the pod. */
  configDirectory(podOrGang: string): string;
  /** Image of pods whose job names none; absent where there are no images. */
  defaultImage?: string;
}
