/** The patch of Argo CD's ConfigMap `argocd-cm` that adds the health check of both kinds. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { API_GROUP } from '@facetrain/api';
import { stringify } from 'yaml';
import { root } from '../../hack/lib/paths.mjs';
import { GENERATED } from './generated-yaml.ts';

/** The check itself, written by hand. */
const HEALTH = 'docs/gitops/health.lua';
const CONFIG_MAP_PATCH = 'docs/gitops/argocd-cm.yaml';

export function argoCdFiles(): Record<string, string> {
  const lua = readFileSync(join(root, HEALTH), 'utf8');
  const data = Object.fromEntries(
    ['FaceTrainJob', 'QuantizeJob'].map((kind) => [`resource.customizations.health.${API_GROUP}_${kind}`, lua]),
  );
  const yaml = stringify({ data }, { lineWidth: 0, blockQuote: 'literal', aliasDuplicateObjects: false });
  return { [CONFIG_MAP_PATCH]: `# ${GENERATED} From ${HEALTH}.\n${yaml}` };
}
