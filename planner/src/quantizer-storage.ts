/**
 * Storage of the pods of a QuantizeJob. The planner of FaceTrainJobs reads it, too: it checks the template of the
 * quantizer before the training.
 */
import type { StorageRef } from '@facetrain/api';
import type { Environment, MountedStorage } from './environment.ts';
import { mountWithCredentials } from './pod-storage.ts';

export interface QuantizerStorage {
  model: MountedStorage;
  dataset: MountedStorage;
  evaluations: MountedStorage[];
  output: MountedStorage;
}

/** The fields of a spec that say where the data of the quantizer is. */
export interface QuantizerData {
  model: StorageRef;
  calibration: { dataset: StorageRef };
  evaluation: { sets: StorageRef[] };
  output: StorageRef;
}

/** Where the quantizer finds its data. The names of volumes are part of the API: pod templates must not use them. */
export function quantizerStorage(spec: QuantizerData, environment: Environment): QuantizerStorage {
  return {
    model: mountWithCredentials(environment, 'model', spec.model, 'read'),
    dataset: mountWithCredentials(environment, 'dataset', spec.calibration.dataset, 'read'),
    evaluations: spec.evaluation.sets.map((set, index) =>
      mountWithCredentials(environment, `evaluation-${index}`, set, 'read'),
    ),
    output: mountWithCredentials(environment, 'output', spec.output, 'write'),
  };
}

export const allStorage = ({ model, dataset, evaluations, output }: QuantizerStorage): MountedStorage[] => [
  model,
  dataset,
  ...evaluations,
  output,
];
