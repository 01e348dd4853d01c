/** deploy/facetrain.yaml: the chart rendered with its defaults, for `kubectl apply -k` and Kustomize. */
import { parseAllDocuments, stringify } from 'yaml';
import { NAMESPACE, NAMESPACE_LABELS } from './default-namespace.ts';
import { GENERATED, WIDTH } from './generated-yaml.ts';
import { chart, helm } from './helm.ts';

interface KubernetesManifest {
  metadata: { labels?: Record<string, string>; annotations?: Record<string, string> };
}

/** Renders the chart as it is on disk, so its generated files must be written before. @throws HelmError */
export async function deployFiles(): Promise<Record<string, string>> {
  const objects = parseAllDocuments(await helm(['template', 'facetrain', chart, '--namespace', NAMESPACE])).map(
    (document) => document.toJS() as KubernetesManifest | null,
  );
  const namespace = { apiVersion: 'v1', kind: 'Namespace', metadata: { name: NAMESPACE, labels: NAMESPACE_LABELS } };
  const all = [namespace, ...objects.filter((object) => object !== null).map(withoutHelmMetadata)];
  const yaml = all.map((object) => stringify(object, { lineWidth: WIDTH })).join('---\n');
  return { 'deploy/facetrain.yaml': `# ${GENERATED} The chart with its defaults: charts/facetrain.\n${yaml}` };
}

/** Removes the labels and annotations that only Helm reads: it does not manage what kubectl applies. */
function withoutHelmMetadata(object: KubernetesManifest): KubernetesManifest {
  const { labels, annotations, ...metadata } = object.metadata;
  const withoutHelm = (map: Record<string, string> = {}) =>
    Object.fromEntries(
      Object.entries(map).filter(([name]) => !name.startsWith('helm.sh/') && name !== 'app.kubernetes.io/managed-by'),
    );
  const kept = { labels: withoutHelm(labels), annotations: withoutHelm(annotations) };
  return {
    ...object,
    metadata: {
      ...metadata,
      ...(Object.keys(kept.labels).length > 0 && { labels: kept.labels }),
      ...(Object.keys(kept.annotations).length > 0 && { annotations: kept.annotations }),
    },
  };
}
