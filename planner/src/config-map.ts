/** The ConfigMap of an attempt: the `config.json` that its pods mount. */
import { withoutDefaults } from '@facetrain/api';
import { attemptName, childMetadata, type JobKind, Label } from './names.ts';
import type { ConfigMap } from './objects.ts';
import type { JobIdentity } from './observed.ts';

/**
 * Values that are the defaults of the schema are left out: the image of an earlier release refuses a field that it does
 * not know, and knows none that was added since, with a default, unless the job uses it.
 *
 * @param digest of the fields from which the attempt is made, for its label
 */
export function makeConfigMap(
  kind: JobKind,
  job: JobIdentity,
  attempt: number,
  schema: Parameters<typeof withoutDefaults>[0],
  config: object,
  digest: string,
): ConfigMap {
  const written = withoutDefaults(schema, config);
  return {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: childMetadata(kind, job, attemptName(kind, job, attempt), {
      [Label.attempt]: String(attempt),
      [Label.specDigest]: digest,
    }),
    immutable: true,
    data: { 'config.json': `${JSON.stringify(written, null, 2)}\n` },
  };
}
