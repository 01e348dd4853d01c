/**
 * Storage of the pods of a QuantizeJob. The planner of FaceTrainJobs reads it, too: it checks the template of the
 * quantizer before the training.
 */
import type { StorageRef } from '@facetrain/api';
import type { Environment, MountedStorage } from './environment.ts';
import { hasDefaultImage, type PodFields } from './pod.ts';
import { type MountedSet, mountedCredentials, mountSets, mountWithCredentials, storageOfSets } from './pod-storage.ts';

export interface QuantizerStorage {
  model: MountedStorage;
  dataset: MountedStorage;
  evaluations: MountedSet[];
  output: MountedStorage;
  /** The Secret of an output in an object store; null: the program finds its credentials in its environment. */
  credentials: MountedStorage | null;
}

/** The fields of a spec that say where the data of the quantizer is. */
export interface QuantizerData {
  model: StorageRef;
  calibration: { dataset: StorageRef };
  evaluation: { sets: (StorageRef & { groups?: StorageRef | undefined })[] };
  output: StorageRef;
}

/**
 * Where the quantizer finds its data. The names of volumes are part of the API: pod templates must not use them.
 *
 * Credentials are files, because those of a mounted Secret follow it: a search takes hours. An image of another release
 * may refuse a config.json that names their folder, so it has them in its environment.
 */
export function quantizerStorage(spec: QuantizerData, fields: PodFields, environment: Environment): QuantizerStorage {
  return {
    model: mountWithCredentials(environment, 'model', spec.model, 'read'),
    dataset: mountWithCredentials(environment, 'dataset', spec.calibration.dataset, 'read'),
    evaluations: mountSets(environment, spec.evaluation.sets),
    output: mountWithCredentials(environment, 'output', spec.output, 'write'),
    credentials: hasDefaultImage(fields, environment) ? mountedCredentials(environment, 'output', spec.output) : null,
  };
}

export const allStorage = ({
  model,
  dataset,
  evaluations,
  output,
  credentials,
}: QuantizerStorage): MountedStorage[] => [
  model,
  dataset,
  ...storageOfSets(evaluations),
  output,
  ...(credentials ? [credentials] : []),
];
