/** The QuantizeJob of a trained job: made once, suspended with its parent, and its outcome is the parent's. */
import { API_VERSION, type FaceTrainJobSpec, joinStorageUri, OUTPUT } from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import { blockedBy, type Child, findBlocker, missingChildren } from '../children.ts';
import { findCondition } from '../conditions.ts';
import { childMetadata } from '../names.ts';
import type { QuantizeJobObject } from '../objects.ts';
import type { JobIdentity, ObservedFaceTrainJob } from '../observed.ts';
import { compact } from '../plain-data.ts';
import type { Action } from '../plan.ts';
import { ConditionType, Reason } from '../reasons.ts';
import type { Stage } from '../stage.ts';

export const quantizeJobName = (job: JobIdentity): string => `${job.name}-quantize`;

export function quantizeJobChildren(job: JobIdentity, spec: FaceTrainJobSpec): Child[] {
  return spec.quantize
    ? [{ kind: 'QuantizeJob', name: quantizeJobName(job), make: () => quantizeJob(job, spec, spec.quantize!) }]
    : [];
}

/** What the template leaves out is the training's own: its model, its faces, its verification sets. */
function quantizeJob(
  job: JobIdentity,
  spec: FaceTrainJobSpec,
  template: NonNullable<FaceTrainJobSpec['quantize']>,
): QuantizeJobObject {
  const { calibration, evaluation, output, ...same } = template;
  return {
    apiVersion: API_VERSION,
    kind: 'QuantizeJob',
    metadata: childMetadata('FaceTrainJob', job, quantizeJobName(job)),
    spec: compact<Record<string, unknown>>({
      model: { uri: joinStorageUri(spec.output.uri, OUTPUT.model), channelOrder: spec.model.channelOrder },
      calibration: { ...calibration, dataset: calibration.dataset ?? spec.dataset },
      evaluation: evaluation ?? { sets: spec.evaluation.sets },
      output: output ?? { uri: joinStorageUri(spec.output.uri, OUTPUT.int7) },
      ...same,
    }),
  };
}

/** The stage of a job whose training is done. */
export function stageAfterTraining(observed: ObservedFaceTrainJob, view: JobView): Stage {
  const { identity, spec, objects, refused, quantizeJob: child } = observed;
  if (!spec.quantize) return { name: 'Succeeded', message: 'training succeeded' };
  const called = `QuantizeJob ${quantizeJobName(identity)}`;
  const quantizing = (message: string, ...actions: Action[]): Stage => ({
    name: 'Quantizing',
    message,
    actions,
  });

  const children = quantizeJobChildren(identity, spec);
  const create = missingChildren(children, view, objects);
  if (create.length > 0) {
    if (spec.suspend) return { name: 'Suspended' };
    const refusal = findBlocker({ create, reserved: children, objects, refused });
    return refusal
      ? blockedBy(refusal)
      : quantizing(
          `${called} is being made`,
          ...create.map(({ make }): Action => ({ type: 'create', object: make() })),
        );
  }
  switch (child?.status.phase) {
    case 'Succeeded':
      return { name: 'Succeeded', message: 'training and quantization succeeded' };
    case 'Failed':
      return {
        name: 'Failed',
        reason: Reason.quantizationFailed,
        message: `${called}: ${saying(child, ConditionType.failed)}`,
      };
  }
  if (child && child.spec.suspend !== spec.suspend) {
    const { name, uid } = objects.find(
      (object) => object.kind === 'QuantizeJob' && object.name === quantizeJobName(identity),
    )!;
    return quantizing(`${called} is being ${spec.suspend ? 'suspended' : 'resumed'}`, {
      type: 'patch',
      kind: 'QuantizeJob',
      name,
      uid,
      spec: { suspend: spec.suspend },
    });
  }
  return spec.suspend
    ? { name: 'Suspended' }
    : quantizing(`${called}: ${child ? saying(child, ConditionType.ready) : 'made'}`);
}

function saying(
  { status: { conditions } }: NonNullable<ObservedFaceTrainJob['quantizeJob']>,
  type: ConditionType,
): string {
  const condition = findCondition(conditions, type);
  return condition ? `${condition.reason}: ${condition.message}` : 'it has not begun';
}
