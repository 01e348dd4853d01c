/** The operator in a cluster: a namespace, and a release of charts/facetrain in it. */
import { join } from 'node:path';
import { parseDocument } from '@facetrain/api';
import { Values } from '@facetrain/install/chart-values';
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
  /** The chart's, see charts/facetrain/README.md. */
  values?: Inputs<z.input<typeof Values>>;
}

/** Let jobs depend on it, so that they come after the operator and go before it. */
export class Facetrain extends ComponentResource {
  readonly namespace: Output<string>;

  /** @throws FacetrainError naming the value that is wrong, what was there, and what is allowed */
  constructor(
    name: string,
    { namespace = 'facetrain-system', createNamespace = true, values = {} }: FacetrainArgs = {},
    opts?: ComponentResourceOptions,
  ) {
    super('facetrain:index:Facetrain', name, {}, opts);
    const known = checked<z.input<typeof Values>>(values, (document) =>
      parseDocument(Values, document, `Facetrain ${name}: values`, 'InvalidArgument'),
    );
    const labels = { 'app.kubernetes.io/name': 'facetrain', 'pod-security.kubernetes.io/enforce': 'restricted' };
    const metadata = createNamespace
      ? new core.v1.Namespace(name, { metadata: { name: namespace, labels } }, { parent: this }).metadata
      : { name: namespace };
    this.namespace = output(metadata).name;
    // A release, not objects of Pulumi's: Helm keeps the CustomResourceDefinitions, and takes over those that are there, which Pulumi's provider would refuse to.
    new helm.v3.Release(
      name,
      { name, chart: CHART, namespace: this.namespace, values: known, takeOwnership: true },
      { parent: this },
    );
    this.registerOutputs({ namespace: this.namespace });
  }
}
