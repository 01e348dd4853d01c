/** The ConfigMap of an attempt: the `config.json` that its pods mount. */
import { attemptName, childMetadata, type JobKind, Label } from './names.ts';
import type { ConfigMap } from './objects.ts';
import type { JobIdentity } from './observed.ts';

/** @param digest of the fields from which the attempt is made, for its label */
export function makeConfigMap(
  kind: JobKind,
  job: JobIdentity,
  attempt: number,
  config: object,
  digest: string,
): ConfigMap {
  return {
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: childMetadata(kind, job, attemptName(kind, job, attempt), {
      [Label.attempt]: String(attempt),
      [Label.specDigest]: digest,
    }),
    immutable: true,
    data: { 'config.json': `${JSON.stringify(config, null, 2)}\n` },
  };
}
