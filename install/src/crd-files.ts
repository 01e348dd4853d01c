/** The CustomResourceDefinitions of both kinds: crds/, and as templates of the chart. */
import { customResourceDefinitions } from '@facetrain/api';
import { stringify } from 'yaml';
import { GENERATED, WIDTH } from './generated-yaml.ts';

const FORMAT = { lineWidth: WIDTH, aliasDuplicateObjects: false };

/** The files of crds/, for `kubectl apply --server-side` and for tests. */
export function crdFiles(): Record<string, string> {
  const files = Object.entries(customResourceDefinitions()).map(([name, definition]) => [
    `crds/${name}`,
    `# Generated from api/ by \`npm run generate\`; do not edit.\n${stringify(definition, FORMAT)}`,
  ]);
  return Object.fromEntries(files);
}

/**
 * The chart's templates of the definitions. They are templates, not files of the chart's crds/ folder, because Helm
 * never upgrades that folder.
 */
export function crdTemplates(): Record<string, string> {
  const files = Object.values(customResourceDefinitions()).map((definition) => [
    `charts/facetrain/templates/crds/${definition.spec.names.plural}.yaml`,
    crdTemplate(definition),
  ]);
  return Object.fromEntries(files);
}

function crdTemplate({
  apiVersion,
  kind,
  metadata,
  spec,
}: ReturnType<typeof customResourceDefinitions>[string]): string {
  const text = stringify({ spec }, FORMAT);
  if (text.includes('{{')) throw new Error(`${metadata.name}: "{{" in a description would be read as a template`);
  return `{{- /* ${GENERATED} */}}
{{- if .Values.crds.enabled }}
apiVersion: ${apiVersion}
kind: ${kind}
metadata:
  name: ${metadata.name}
  labels:
    {{- include "facetrain.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
${text}{{- end }}
`;
}
