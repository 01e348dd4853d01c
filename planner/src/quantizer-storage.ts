/**
 * Storage of the pods of a QuantizeJob. The planner of FaceTrainJobs reads it, too: it checks the template of the
 * quantizer before the training.
 */
import type { StorageRef } from '@facetrain/api';
import type { Environment, MountedStorage } from './environment.ts';
import { type MountedSet, mountSets, mountWithCredentials, storageOfSets } from './pod-storage.ts';

export interface QuantizerStorage {
  model: MountedStorage;
  dataset: MountedStorage;
  evaluations: MountedSet[];
  output: MountedStorage;
}

/** The fields of a spec that say where the data of the quantizer is. */
export interface QuantizerData {
  model: StorageRef;
  calibration: { dataset: StorageRef };
  evaluation: { sets: (StorageRef & { groups?: StorageRef | undefined })[] };
  output: StorageRef;
}

/** Where the quantizer finds its data. The names of volumes are part of the API: pod templates must not use them. */
export function quantizerStorage(spec: QuantizerData, environment: Environment): QuantizerStorage {
  return {
    model: mountWithCredentials(environment, 'model', spec.model, 'read'),
    dataset: mountWithCredentials(environment, 'dataset', spec.calibration.dataset, 'read'),
    evaluations: mountSets(environment, spec.evaluation.sets),
    output: mountWithCredentials(environment, 'output', spec.output, 'write'),
  };
}

export const allStorage = ({ model, dataset, evaluations, output }: QuantizerStorage): MountedStorage[] => [
  model,
  dataset,
  ...storageOfSets(evaluations),
  output,
];
