/** FaceTrainJob and QuantizeJob as resources of a Pulumi program. */

import type { FaceTrainJobStatus, QuantizeJobStatus } from '@facetrain/api';
import {
  FaceTrainJob as FaceTrainJobSchema,
  FacetrainError,
  parseDocument,
  QuantizeJob as QuantizeJobSchema,
} from '@facetrain/api';
import { apiextensions, type types } from '@pulumi/kubernetes';
import { type CustomResourceOptions, log, type Output, output, runtime } from '@pulumi/pulumi';
import type { z } from 'zod';
import { checked, type Inputs } from './inputs.ts';

/**
 * How long `pulumi up` waits for a job. Ready: until all of its pods are ready, or it is suspended. End: until it has
 * succeeded or failed. The annotations are those of Pulumi's Kubernetes provider.
 */
export type WaitFor = 'Ready' | 'End' | 'Nothing';
const ANNOTATIONS: Record<WaitFor, Record<string, string>> = {
  Ready: { 'pulumi.com/waitFor': 'condition=Ready' },
  End: { 'pulumi.com/waitFor': 'jsonpath={.status.completionTime}' },
  Nothing: { 'pulumi.com/skipAwait': 'true' },
};

/** Pulumi appends 8 random characters to a resource's name where metadata has no name; the length counts. */
const SUFFIX = '-xxxxxxxx';

export interface JobArgs<Spec> {
  metadata?: types.input.meta.v1.ObjectMeta;
  spec: Inputs<Spec>;
  /** Default: Ready. End needs the option customTimeouts, and makes an update fail if the job does. */
  waitFor?: WaitFor;
}

type Schema = typeof FaceTrainJobSchema | typeof QuantizeJobSchema;
type SpecOf<S extends Schema> = z.input<S>['spec'];

abstract class Job<
  S extends Schema,
  Status extends FaceTrainJobStatus | QuantizeJobStatus,
> extends apiextensions.CustomResource {
  /** As it was when Pulumi stopped waiting, or at the last refresh. */
  declare readonly status: Output<Status | undefined>;

  constructor(
    schema: S,
    name: string,
    { metadata = {}, spec, waitFor = 'Ready' }: JobArgs<SpecOf<S>>,
    opts: CustomResourceOptions = {},
  ) {
    const apiVersion = schema.shape.apiVersion.value;
    const kind = schema.shape.kind.value;
    const where = `${kind} ${name}`;
    if (waitFor === 'End' && !opts.customTimeouts?.create) {
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: `${where}: customTimeouts`,
        found: 'missing',
        allowed: "with waitFor End, say how long that may take: { create: '72h', update: '72h' }",
      });
    }
    const manifest = checked(
      { metadata: { name: `${name}${SUFFIX}`, ...metadata }, spec } as Inputs<Pick<z.input<S>, 'metadata' | 'spec'>>,
      (document) => parseDocument(schema, { apiVersion, kind, ...document }, where, 'InvalidManifest'),
    );
    const annotations = output(metadata.annotations).apply((own) => ({ ...ANNOTATIONS[waitFor], ...own }));
    super(
      name,
      {
        apiVersion,
        kind,
        metadata: { ...metadata, annotations },
        spec: manifest.apply((known) => known.spec),
        status: undefined,
      },
      opts,
    );
    if (waitFor === 'End' && !runtime.isDryRun()) this.status.apply((status) => this.#report(where, status));
  }

  /** One word: Pending, Running, Succeeded, Failed, ... */
  get phase(): Output<Status['phase'] | undefined> {
    return this.status.apply((status) => status?.phase);
  }

  /** The published INT7 model; undefined if there was none when Pulumi stopped waiting: use it with waitFor End. */
  get artifact(): Output<Status['artifact'] | undefined> {
    return this.status.apply((status) => status?.artifact);
  }

  /** An error in Pulumi's log makes the update fail. */
  async #report(where: string, status: Status | undefined): Promise<void> {
    const failed = status?.conditions?.find(({ type, status }) => type === 'Failed' && status === 'True');
    if (failed)
      await log.error(
        `${where}: ${failed.reason}: ${failed.message}; to try again, replace it: pulumi up --replace URN`,
        this,
      );
  }
}

/** Trains a face model, and quantizes it if its spec has `quantize`. */
export class FaceTrainJob extends Job<typeof FaceTrainJobSchema, FaceTrainJobStatus> {
  /** @throws FacetrainError naming the field that is wrong, what was there, and what is allowed */
  constructor(name: string, args: JobArgs<SpecOf<typeof FaceTrainJobSchema>>, opts?: CustomResourceOptions) {
    super(FaceTrainJobSchema, name, args, opts);
  }
}

/** Quantizes an ONNX face model to INT7. */
export class QuantizeJob extends Job<typeof QuantizeJobSchema, QuantizeJobStatus> {
  /** @throws FacetrainError naming the field that is wrong, what was there, and what is allowed */
  constructor(name: string, args: JobArgs<SpecOf<typeof QuantizeJobSchema>>, opts?: CustomResourceOptions) {
    super(QuantizeJobSchema, name, args, opts);
  }
}
