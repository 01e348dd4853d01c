/** The operator in a cluster: a namespace, and a release of charts/facetrain in it. */
import { join } from 'node:path';
import { parseDocument } from '@facetrain/api';
import { Values } from '@facetrain/install/chart-values';
import { NAMESPACE, NAMESPACE_LABELS } from '@facetrain/install/default-namespace';
import { core, helm } from '@pulumi/kubernetes';
import { ComponentResource, type ComponentResourceOptions, type Input, type Output, output } from '@pulumi/pulumi';
import type { z } from 'zod';
import { checked, type Inputs } from './inputs.ts';

const CHART = join(import.meta.dirname, '..', '..', '..', 'charts', 'facetrain');

export interface FacetrainArgs {
  /** Default: facetrain-system. */
  namespace?: Input<string>;
  /** Default: true. */
  createNamespace?: boolean;
  /** Values of the chart: charts/facetrain/README.md. */
  values?: Inputs<z.input<typeof Values>>;
}

/** Jobs should depend on it (`dependsOn`): they are then created after the operator and deleted before it. */
export class Facetrain extends ComponentResource {
  readonly namespace: Output<string>;

  /** @throws FacetrainError naming the value that is wrong, what was there, and what is allowed */
  constructor(
    name: string,
    { namespace = NAMESPACE, createNamespace = true, values = {} }: FacetrainArgs = {},
    opts?: ComponentResourceOptions,
  ) {
    super('facetrain:index:Facetrain', name, {}, opts);
    const known = checked<z.input<typeof Values>>(values, (document) =>
      parseDocument(Values, document, `Facetrain ${name}: values`, 'InvalidArgument'),
    );
    const metadata = createNamespace
      ? new core.v1.Namespace(name, { metadata: { name: namespace, labels: NAMESPACE_LABELS } }, { parent: this })
          .metadata
      : { name: namespace };
    this.namespace = output(metadata).name;
    // A Helm release instead of Pulumi resources for each object: Helm keeps the CustomResourceDefinitions when the
    // release is deleted, and adopts existing ones. Pulumi's provider refuses to create objects that exist.
    new helm.v3.Release(
      name,
      { name, chart: CHART, namespace: this.namespace, values: known, takeOwnership: true },
      { parent: this },
    );
    this.registerOutputs({ namespace: this.namespace });
  }
}
