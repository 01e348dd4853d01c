/** The operator in a cluster: namespace, CustomResourceDefinitions, and the rest of charts/facetrain. */
import { join } from 'node:path';
import { customResourceDefinitions, parseDocument } from '@facetrain/api';
import { Values } from '@facetrain/operator/install/values';
import { apiextensions, core, helm, type types } from '@pulumi/kubernetes';
import { ComponentResource, output, type ComponentResourceOptions, type Input, type Output } from '@pulumi/pulumi';
import type { z } from 'zod';
import { checked, type Inputs } from './inputs.ts';

const CHART = join(import.meta.dirname, '..', '..', '..', 'charts', 'facetrain');

type ChartValues = z.input<typeof Values>;

export interface FacetrainArgs {
  /** Default: facetrain-system. */
  namespace?: Input<string>;
  /** Default: true. */
  createNamespace?: boolean;
  /** The chart's, see charts/facetrain/README.md. What `crds` says must be known when the program runs. */
  values?: { [K in keyof ChartValues]: K extends 'crds' ? ChartValues[K] : Inputs<ChartValues[K]> };
}

/** Let jobs depend on it, so that they come after the operator and go before it. */
export class Facetrain extends ComponentResource {
  readonly namespace: Output<string>;

  /** @throws FacetrainError naming the value that is wrong, what was there, and what is allowed */
  constructor(name: string, { namespace = 'facetrain-system', createNamespace = true, values = {} }: FacetrainArgs = {}, opts?: ComponentResourceOptions) {
    super('facetrain:index:Facetrain', name, {}, opts);
    const known = checked<ChartValues>(values, (document) => parseDocument(Values, document, `Facetrain ${name}: values`, 'InvalidArgument'));
    const { enabled = true, keep = true } = values.crds ?? {};

    // Made here, not by the chart: a preview shows them, and Pulumi keeps what Helm would keep.
    const definitions = enabled ? Object.values(customResourceDefinitions()) : [];
    const crds = definitions.map(({ metadata, spec }) => {
      // Those that an earlier stack, the chart or kubectl left are taken over.
      const annotations = { 'pulumi.com/patchForce': 'true' };
      return new apiextensions.v1.CustomResourceDefinition(
        `${name}-${spec.names.plural}`,
        { metadata: { ...metadata, annotations }, spec: spec as types.input.apiextensions.v1.CustomResourceDefinitionSpec },
        { parent: this, retainOnDelete: keep },
      );
    });

    const labels = { 'app.kubernetes.io/name': 'facetrain', 'pod-security.kubernetes.io/enforce': 'restricted' };
    const metadata = createNamespace ? new core.v1.Namespace(name, { metadata: { name: namespace, labels } }, { parent: this }).metadata : { name: namespace };
    this.namespace = output(metadata).name;
    const operator = { chart: CHART, namespace: this.namespace, values: known.apply((all) => ({ ...all, crds: { enabled: false } })) };
    new helm.v4.Chart(name, operator, { parent: this, dependsOn: crds });
    this.registerOutputs({ namespace: this.namespace });
  }
}
