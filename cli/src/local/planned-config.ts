/** The configurations that the planner gives to the trainers and the quantizer of a job on this machine. */
import {
  type FaceTrainJob,
  type FaceTrainJobStatus,
  parseDocument,
  QuantizeConfig,
  QuantizeJob,
  TrainerConfig,
} from '@facetrain/api';
import {
  type Action,
  type ChildObject,
  planFaceTrainJob,
  planQuantizeJob,
  type QuantizeJobObject,
} from '@facetrain/planner';
import { localEnvironment } from './local-environment.ts';

/** Ports do not matter where the configuration is only read. */
const ANY_PORTS = { rendezvous: 1, progress: 2 };

/** @param stateFolder OUT/.facetrain */
export function plannedTrainerConfig(job: FaceTrainJob, uid: string, stateFolder: string): TrainerConfig {
  return TrainerConfig.parse(configIn(planOf(job, uid, {}, stateFolder)));
}

/**
 * @param job with a quantization
 * @param stateFolder OUT/.facetrain
 */
export function plannedQuantizeConfig(job: FaceTrainJob, uid: string, stateFolder: string): QuantizeConfig {
  const trained = { attempt: 0, trainingCompletionTime: new Date(0).toISOString() };
  const child = created(planOf(job, uid, trained, stateFolder)).find((object) => object.kind === 'QuantizeJob');
  if (!child) throw new Error(`the plan of ${job.metadata.name} makes no QuantizeJob`);
  const { metadata, spec } = parseQuantizeJob(child);
  const identity = { name: metadata.name, namespace: 'default', uid, generation: 1 };
  const observed = { identity, spec, status: {}, pods: [], objects: [] };
  const { actions } = planQuantizeJob(observed, new Date(0), localEnvironment(stateFolder, ANY_PORTS));
  return QuantizeConfig.parse(configIn(actions));
}

/** The object that a FaceTrainJob's plan creates, with defaults filled in, as the API server would. */
export function parseQuantizeJob({ apiVersion, kind, metadata: { name }, spec }: QuantizeJobObject): QuantizeJob {
  const object = { apiVersion, kind, metadata: { name }, spec };
  return parseDocument(QuantizeJob, object, `QuantizeJob ${name}`, 'InvalidManifest');
}

function planOf(
  { metadata, spec }: FaceTrainJob,
  uid: string,
  status: FaceTrainJobStatus,
  stateFolder: string,
): Action[] {
  const identity = { name: metadata.name, namespace: metadata.namespace ?? 'default', uid, generation: 1 };
  const observed = { identity, spec, status, pods: [], objects: [], podGroupApi: null };
  return planFaceTrainJob(observed, new Date(0), localEnvironment(stateFolder, ANY_PORTS)).actions;
}

const created = (actions: Action[]): ChildObject[] =>
  actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));

function configIn(actions: Action[]): unknown {
  for (const object of created(actions))
    if (object.kind === 'ConfigMap') return JSON.parse(object.data['config.json']!);
  throw new Error('the plan makes no ConfigMap');
}
