/** The QuantizeJob of a trained job: made once, suspended with its parent, and its outcome is the parent's. */
import { API_VERSION, joinStorageUri, type FaceTrainJobSpec } from '@facetrain/api';
import type { Child } from '../children.ts';
import { childMetadata } from '../names.ts';
import type { QuantizeJobObject } from '../objects.ts';
import type { JobIdentity, ObservedFaceTrainJob } from '../observed.ts';
import type { Action } from '../plan.ts';
import { missing, nameTaken } from '../children.ts';
import type { JobView } from '../attempt.ts';
import { Reason } from '../reasons.ts';
import type { Stage } from '../stage.ts';
import { compact } from '../values.ts';

export const quantizeJobName = (job: JobIdentity): string => `${job.name}-quantize`;

export function quantizeChild(job: JobIdentity, spec: FaceTrainJobSpec): Child[] {
  return spec.quantize ? [{ kind: 'QuantizeJob', name: quantizeJobName(job), make: () => quantizeJob(job, spec, spec.quantize!) }] : [];
}

/** What the template leaves out is the training's own: its model, its faces, its verification sets. */
function quantizeJob(job: JobIdentity, spec: FaceTrainJobSpec, template: NonNullable<FaceTrainJobSpec['quantize']>): QuantizeJobObject {
  const { calibration, evaluation, output, ...same } = template;
  return {
    apiVersion: API_VERSION,
    kind: 'QuantizeJob',
    metadata: childMetadata('FaceTrainJob', job, quantizeJobName(job)),
    spec: compact<Record<string, unknown>>({
      model: { uri: joinStorageUri(spec.output.uri, 'model', 'backbone.onnx'), channelOrder: spec.model.channelOrder },
      calibration: { ...calibration, dataset: calibration.dataset ?? spec.dataset },
      evaluation: evaluation ?? { sets: spec.evaluation.sets },
      output: output ?? { uri: joinStorageUri(spec.output.uri, 'int7') },
      ...same,
    }),
  };
}

/** The stage of a job whose training is done. */
export function afterTraining(observed: ObservedFaceTrainJob, view: JobView): Stage {
  const { identity, spec, status, objects, quantizeJob: child } = observed;
  const quantizing = (...actions: Action[]): Stage => ({ name: 'Quantizing', actions, recorded: status.trainingCompletionTime !== undefined });
  if (!spec.quantize) return { name: 'Succeeded', message: 'training succeeded' };

  const children = quantizeChild(identity, spec);
  const taken = nameTaken(children, objects);
  if (taken) return { name: 'Refused', ...taken };
  const absent = missing(children, view, objects);
  if (absent.length > 0) return spec.suspend ? { name: 'Suspended' } : quantizing(...absent.map(({ make }): Action => ({ type: 'create', object: make() })));

  switch (child?.status.phase) {
    case 'Succeeded':
      return { name: 'Succeeded', message: 'training and quantization succeeded' };
    case 'Failed':
      return { name: 'Failed', reason: Reason.quantizationFailed, message: `QuantizeJob ${quantizeJobName(identity)}: ${failureOf(child.status)}` };
  }
  if (child && child.spec.suspend !== spec.suspend) {
    const { name, uid } = objects.find((object) => object.kind === 'QuantizeJob' && object.name === quantizeJobName(identity))!;
    return quantizing({ type: 'patch', kind: 'QuantizeJob', name, uid, spec: { suspend: spec.suspend } });
  }
  return spec.suspend ? { name: 'Suspended' } : quantizing();
}

function failureOf({ conditions }: NonNullable<ObservedFaceTrainJob['quantizeJob']>['status']): string {
  const failed = conditions?.find(({ type, status }) => type === 'Failed' && status === 'True');
  return failed ? `${failed.reason}: ${failed.message}` : 'failed';
}
