/**
 * The QuantizeJob of a trained FaceTrainJob. It is created once, suspended with its parent, and decides the parent's
 * outcome.
 */
import { API_VERSION, type FaceTrainJobSpec, OUTPUT } from '@facetrain/api';
import type { JobView } from '../attempt.ts';
import { blockedBy, type Child, findBlocker, missingChildren } from '../children.ts';
import { conditionText } from '../conditions.ts';
import { childMetadata } from '../names.ts';
import type { QuantizeJobObject } from '../objects.ts';
import type { JobIdentity, ObservedFaceTrainJob } from '../observed.ts';
import { compact } from '../plain-data.ts';
import type { Action } from '../plan.ts';
import { ConditionType, Reason } from '../reasons.ts';
import type { Stage } from '../stage.ts';
import { below } from '../written-places.ts';

export const quantizeJobName = (job: Pick<JobIdentity, 'name'>): string => `${job.name}-quantize`;

/** The QuantizeJob as a list of children; empty if the spec has no `quantize`. */
export function quantizeJobChildren(job: JobIdentity, spec: FaceTrainJobSpec): Child[] {
  return spec.quantize
    ? [{ kind: 'QuantizeJob', name: quantizeJobName(job), make: () => quantizeJob(job, spec, spec.quantize!) }]
    : [];
}

/**
 * Where the data of the quantizer is. What the template leaves out comes from the training: its model, its dataset, its
 * verification sets.
 */
export function quantizerData(
  spec: FaceTrainJobSpec,
  { calibration, evaluation, output }: NonNullable<FaceTrainJobSpec['quantize']>,
) {
  return {
    model: { ...below(spec.output, OUTPUT.model), channelOrder: spec.model.channelOrder },
    calibration: { ...calibration, dataset: calibration.dataset ?? spec.dataset },
    evaluation: evaluation ?? { sets: spec.evaluation.sets },
    output: output ?? below(spec.output, OUTPUT.int7),
  };
}

function quantizeJob(
  job: JobIdentity,
  spec: FaceTrainJobSpec,
  template: NonNullable<FaceTrainJobSpec['quantize']>,
): QuantizeJobObject {
  return {
    apiVersion: API_VERSION,
    kind: 'QuantizeJob',
    metadata: childMetadata('FaceTrainJob', job, quantizeJobName(job)),
    spec: compact<Record<string, unknown>>({
      ...template,
      ...quantizerData(spec, template),
      queue: template.queue ?? spec.queue,
    }),
  };
}

/** The stage of a job whose training is done. */
export function stageAfterTraining(observed: ObservedFaceTrainJob, view: JobView): Stage {
  const { identity, spec, objects, refused, quantizeJob: child } = observed;
  if (!spec.quantize) return { name: 'Succeeded', message: 'training succeeded' };
  const label = `QuantizeJob ${quantizeJobName(identity)}`;
  const quantizing = (message: string, ...actions: Action[]): Stage => ({
    name: 'Quantizing',
    message,
    actions,
  });

  const children = quantizeJobChildren(identity, spec);
  const create = missingChildren(children, view, objects);
  if (create.length > 0) {
    if (spec.suspend) return { name: 'Suspended' };
    const blocker = findBlocker({ create, reserved: children, objects, refused });
    return blocker
      ? blockedBy(blocker)
      : quantizing(`${label} is being made`, ...create.map(({ make }): Action => ({ type: 'create', object: make() })));
  }
  switch (child?.status.phase) {
    case 'Succeeded':
      return { name: 'Succeeded', message: 'training and quantization succeeded' };
    case 'Failed':
      return {
        name: 'Failed',
        reason: Reason.quantizationFailed,
        message: `${label}: ${stateOf(child, ConditionType.failed)}`,
      };
  }
  if (child && child.spec.suspend !== spec.suspend) {
    const { name, uid } = objects.find(
      (object) => object.kind === 'QuantizeJob' && object.name === quantizeJobName(identity),
    )!;
    return quantizing(`${label} is being ${spec.suspend ? 'suspended' : 'resumed'}`, {
      type: 'patch',
      kind: 'QuantizeJob',
      name,
      uid,
      spec: { suspend: spec.suspend },
    });
  }
  return spec.suspend
    ? { name: 'Suspended' }
    : quantizing(`${label}: ${child ? stateOf(child, ConditionType.ready) : 'made'}`);
}

const stateOf = (child: NonNullable<ObservedFaceTrainJob['quantizeJob']>, type: ConditionType): string =>
  conditionText(child.status.conditions, type) ?? 'it has not begun';
