/** The objects of an attempt of a QuantizeJob, in the order of creation. */
import {
  DEFAULT_PROGRESS_PORT,
  QUANTIZATION_FIELDS,
  QuantizeConfig,
  QuantizeJobSpec,
  withoutDefaults,
} from '@facetrain/api';
import { fieldsDigest } from '../attempt.ts';
import type { Blocker } from '../blocker.ts';
import type { Child } from '../children.ts';
import { makeConfigMap } from '../config-map.ts';
import type { Environment } from '../environment.ts';
import { attemptName, childMetadata, Label, podName } from '../names.ts';
import type { ConfigMap, Pod } from '../objects.ts';
import type { JobIdentity } from '../observed.ts';
import { makePod, type PodParts, progressServer, templateConflict } from '../pod.ts';
import { credentialEnv } from '../pod-storage.ts';
import { allStorage, type QuantizerStorage, quantizerStorage } from '../quantizer-storage.ts';
import { type PodPlacement, placed } from '../queue.ts';
import type { QueuedGang } from '../workload.ts';
import { quantizerPlaces } from '../written-places.ts';
import { quantizeConfig } from './make-quantize-config.ts';

/** All that the objects of an attempt depend on. */
export interface Attempt {
  job: JobIdentity;
  spec: QuantizeJobSpec;
  attempt: number;
  environment: Environment;
  /** Where Kueue wants the pod; absent without a queue. */
  placement?: PodPlacement;
}

/** The objects that must exist while the attempt runs. They are made only if they are missing. */
export function childrenOf(context: Attempt): Child[] {
  const { job, spec, attempt, environment } = context;
  const storage = quantizerStorage(spec, spec.quantizer, environment);
  return [
    { kind: 'ConfigMap', name: attemptName('QuantizeJob', job, attempt), make: () => configMap(context, storage) },
    {
      kind: 'Pod',
      name: podName('QuantizeJob', job, attempt, 0),
      rank: 0,
      make: () => placed(pod(context, storage), context.placement ?? {}),
    },
  ];
}

/** The pod for which a job with a queue asks quota; null: it has no queue. */
export function queuedGang(context: Attempt): QueuedGang | null {
  const { queue, quantizer } = context.spec;
  if (queue === undefined) return null;
  return {
    queue,
    count: 1,
    pod: pod(context, quantizerStorage(context.spec, context.spec.quantizer, context.environment)),
    tolerations: quantizer.podTemplate?.spec?.tolerations ?? [],
  };
}

/** Checks what the schema cannot check: whether all of the pod template has an effect. */
export function findConflict({ spec, environment }: Attempt): Blocker | null {
  const storage = allStorage(quantizerStorage(spec, spec.quantizer, environment));
  return templateConflict('spec.quantizer', spec.quantizer, storage, spec.output);
}

export const quantizationDigest = (spec: QuantizeJobSpec): string =>
  fieldsDigest(withoutDefaults(QuantizeJobSpec, spec), QUANTIZATION_FIELDS);

function configMap({ job, spec, attempt, environment }: Attempt, storage: QuantizerStorage): ConfigMap {
  const config = quantizeConfig(job, spec, attempt, storage, environment);
  return makeConfigMap('QuantizeJob', job, attempt, QuantizeConfig, config, quantizationDigest(spec));
}

function pod({ job, spec, attempt, environment }: Attempt, storage: QuantizerStorage): Pod {
  const name = attemptName('QuantizeJob', job, attempt);
  const parts: PodParts = {
    metadata: childMetadata('QuantizeJob', job, podName('QuantizeJob', job, attempt, 0), {
      [Label.attempt]: String(attempt),
      [Label.rank]: '0',
      [Label.specDigest]: quantizationDigest(spec),
    }),
    fields: spec.quantizer,
    nodeLostSeconds: spec.failurePolicy.nodeLostSeconds,
    args: ['quantize'],
    env: storage.credentials ? [] : credentialEnv(spec.output.s3),
    storage: allStorage(storage),
    config: { name, directory: environment.configDirectory(name) },
    writesTo: quantizerPlaces(spec),
    container: progressServer(DEFAULT_PROGRESS_PORT),
  };
  return makePod(parts, environment);
}
