/** The configuration that the planner gives to the trainers of a job on this machine. */
import { type FaceTrainJob, TrainerConfig } from '@facetrain/api';
import { planFaceTrainJob } from '@facetrain/planner';
import { localEnvironment } from './local-environment.ts';

/** Ports do not matter where the configuration is only read. */
const ANY_PORTS = { rendezvous: 1, progress: 2 };

/** @param stateFolder OUT/.facetrain */
export function plannedTrainerConfig(
  { metadata, spec }: FaceTrainJob,
  uid: string,
  stateFolder: string,
): TrainerConfig {
  const identity = { name: metadata.name, namespace: metadata.namespace ?? 'default', uid, generation: 1 };
  const observed = { identity, spec, status: {}, pods: [], objects: [], podGroupApi: null };
  const { actions } = planFaceTrainJob(observed, new Date(0), localEnvironment(stateFolder, ANY_PORTS));
  for (const action of actions)
    if (action.type === 'create' && action.object.kind === 'ConfigMap')
      return TrainerConfig.parse(JSON.parse(action.object.data['config.json']!));
  throw new Error(`the plan of ${metadata.name} makes no ConfigMap`);
}
