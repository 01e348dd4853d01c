/**
 * Refuses URIs relative to the manifest. Only `facetrain run` can resolve them: a pod does not have the manifest's
 * folder.
 */
import { FacetrainError } from '@facetrain/api';

const RELATIVE = /^file:\/\/(?!\/)/;

/**
 * @param name of the job, for the error
 * @returns the manifest
 * @throws FacetrainError with the path of the first field that holds a relative URI
 */
export function refuseRelativePaths<Manifest extends { spec: object }>(manifest: Manifest, name: string): Manifest {
  for (const { path, value } of stringFields(manifest.spec, 'spec')) {
    if (!RELATIVE.test(value)) continue;
    throw new FacetrainError({
      code: 'InvalidManifest',
      subject: `${name}: ${path}`,
      found: JSON.stringify(value),
      allowed:
        'relative to the manifest it means something to "facetrain run" alone; pods know s3://BUCKET/KEY, ' +
        'pvc://CLAIM/PATH, hostpath:///PATH, and file:///PATH for what podTemplate mounts',
    });
  }
  return manifest;
}

/**
 * Every string in a JSON value, with its path: `spec.evaluation.sets[1].uri`. Pod templates are left out: they have no
 * storage URIs, and may be nested more deeply than a recursion can follow.
 */
function* stringFields(value: unknown, path: string): Generator<{ path: string; value: string }> {
  if (typeof value === 'string') yield { path, value };
  else if (Array.isArray(value)) for (const [i, item] of value.entries()) yield* stringFields(item, `${path}[${i}]`);
  else if (typeof value === 'object' && value !== null)
    for (const [key, item] of Object.entries(value))
      if (key !== 'podTemplate') yield* stringFields(item, `${path}.${key}`);
}
