/**
 * deploy/kustomize/facetrain.yaml: which fields of the jobs name other objects, and which are images. Without it
 * Kustomize's generators and prefixes do not rename what a job refers to.
 */
import { customResourceDefinitions } from '@facetrain/api';
import { stringify } from 'yaml';
import { GENERATED, WIDTH } from './generated-yaml.ts';

interface Schema {
  properties?: Record<string, Schema>;
  items?: Schema;
}
interface FieldSpec {
  kind: string;
  path: string;
}

/** Fields of a pod template that name an object of a kind, as in Kustomize's own configuration for Deployments. */
const IN_POD_TEMPLATE: Record<string, string[]> = {
  Secret: [
    'spec/volumes/secret/secretName',
    'spec/volumes/projected/sources/secret/name',
    'spec/imagePullSecrets/name',
    ...inContainers('env/valueFrom/secretKeyRef/name', 'envFrom/secretRef/name'),
  ],
  ConfigMap: [
    'spec/volumes/configMap/name',
    'spec/volumes/projected/sources/configMap/name',
    ...inContainers('env/valueFrom/configMapKeyRef/name', 'envFrom/configMapRef/name'),
  ],
  PersistentVolumeClaim: ['spec/volumes/persistentVolumeClaim/claimName'],
  ServiceAccount: ['spec/serviceAccountName'],
  PriorityClass: ['spec/priorityClassName'],
};

function inContainers(...fields: string[]): string[] {
  return ['containers', 'initContainers'].flatMap((list) => fields.map((field) => `spec/${list}/${field}`));
}

/** Paths of the properties with this name, in Kustomize's form: lists are not marked. */
function pathsOf(name: string, { properties = {}, items }: Schema, path: string): string[] {
  return [
    ...(items ? pathsOf(name, items, path) : []),
    ...Object.entries(properties).flatMap(([key, schema]) => [
      ...(key === name ? [`${path}/${key}`] : []),
      ...pathsOf(name, schema, `${path}/${key}`),
    ]),
  ];
}

export function kustomizeFiles(): Record<string, string> {
  const jobs = Object.values(customResourceDefinitions()).map(({ spec }) => ({
    kind: spec.names.kind,
    spec: (spec.versions[0]!.schema.openAPIV3Schema as unknown as Schema).properties!.spec!,
  }));
  const fields = (name: string, suffixes: string[]): FieldSpec[] =>
    jobs.flatMap(({ kind, spec }) =>
      pathsOf(name, spec, 'spec').flatMap((path) => suffixes.map((suffix) => ({ kind, path: `${path}${suffix}` }))),
    );
  const nameReference = Object.entries(IN_POD_TEMPLATE).map(([kind, paths]) => ({
    kind,
    ...(kind === 'PriorityClass' && { group: 'scheduling.k8s.io' }),
    fieldSpecs: [
      ...(kind === 'Secret' ? fields('secretRef', ['/name']) : []),
      ...fields(
        'podTemplate',
        paths.map((path) => `/${path}`),
      ),
    ],
  }));
  const config = { nameReference, images: fields('image', ['']) };
  return { 'deploy/kustomize/facetrain.yaml': `# ${GENERATED}\n${stringify(config, { lineWidth: WIDTH })}` };
}
