/** The configurations that the planner gives to the trainers and the quantizer of a job on this machine. */
import {
  type FaceTrainJob,
  type FaceTrainJobStatus,
  FacetrainError,
  parseDocument,
  QuantizeConfig,
  QuantizeJob,
  type QuantizeJobStatus,
  TrainerConfig,
} from '@facetrain/api';
import {
  type ChildObject,
  type Plan,
  type Pod,
  planFaceTrainJob,
  planQuantizeJob,
  type QuantizeJobObject,
} from '@facetrain/planner';
import { localEnvironment } from './local-environment.ts';

/** Ports do not matter where the configuration is only read. */
const ANY_PORTS = { rendezvous: 1, progress: 2 };

/**
 * @param stateFolder OUT/.facetrain
 * @throws FacetrainError InvalidManifest for a job that the planner does not start
 */
export function plannedTrainerConfig(job: FaceTrainJob, uid: string, stateFolder: string): TrainerConfig {
  return TrainerConfig.parse(configOf(createdBy(planOf(job, uid, {}, stateFolder), job.metadata.name)));
}

/** The pod of rank 0, as the operator would make it. @throws FacetrainError as plannedTrainerConfig */
export function plannedTrainerPod(job: FaceTrainJob, stateFolder: string): Pod {
  const objects = createdBy(planOf(job, 'unused', {}, stateFolder), job.metadata.name);
  const pod = objects.find((object) => object.kind === 'Pod');
  if (!pod) throw new Error(`the plan of ${job.metadata.name} makes no pod`);
  return pod;
}

/**
 * @param job with a quantization
 * @param stateFolder OUT/.facetrain
 * @throws FacetrainError InvalidManifest for a job that the planner does not start
 */
export function plannedQuantizeConfig(job: FaceTrainJob, uid: string, stateFolder: string): QuantizeConfig {
  const trained = { attempt: 0, trainingCompletionTime: new Date(0).toISOString() };
  const objects = createdBy(planOf(job, uid, trained, stateFolder), job.metadata.name);
  const child = objects.find((object) => object.kind === 'QuantizeJob');
  if (!child) throw new Error(`the plan of ${job.metadata.name} makes no QuantizeJob`);
  const { metadata, spec } = parseQuantizeJob(child);
  const identity = { name: metadata.name, namespace: 'default', uid, generation: 1 };
  const observed = { identity, spec, status: {}, pods: [], objects: [] };
  const plan = planQuantizeJob(observed, new Date(0), localEnvironment(stateFolder, ANY_PORTS));
  return QuantizeConfig.parse(configOf(createdBy(plan, metadata.name)));
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
): Plan<FaceTrainJobStatus> {
  const identity = { name: metadata.name, namespace: metadata.namespace ?? 'default', uid, generation: 1 };
  const observed = { identity, spec, status, pods: [], objects: [], podGroupApis: {} };
  return planFaceTrainJob(observed, new Date(0), localEnvironment(stateFolder, ANY_PORTS));
}

/** The objects that a plan creates first. @throws FacetrainError InvalidManifest when it creates none, and says why */
function createdBy({ actions, status }: Plan<FaceTrainJobStatus | QuantizeJobStatus>, name: string): ChildObject[] {
  const stalled = status.conditions?.find((condition) => condition.type === 'Stalled' && condition.status === 'True');
  if (stalled)
    throw new FacetrainError({
      code: 'InvalidManifest',
      subject: `job ${name}`,
      found: stalled.message,
      allowed: 'a manifest whose job can start on this machine',
    });
  return actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));
}

function configOf(objects: ChildObject[]): unknown {
  for (const object of objects) if (object.kind === 'ConfigMap') return JSON.parse(object.data['config.json']!);
  throw new Error('the plan makes no ConfigMap');
}
