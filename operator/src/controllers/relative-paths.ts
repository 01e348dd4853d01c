/** Addresses that only `facetrain run` can resolve: a manifest's folder is not there in a pod. */
import { FacetrainError } from '@facetrain/api';

const RELATIVE = /^file:\/\/(?!\/)/;

/** @returns the manifest @throws FacetrainError with the path of the first field that is relative to where the manifest was */
export function refuseRelativePaths<Manifest extends { spec: object }>(manifest: Manifest, where: string): Manifest {
  for (const { path, value } of strings(manifest.spec, 'spec')) {
    if (!RELATIVE.test(value) || path.includes('.podTemplate.')) continue;
    throw new FacetrainError({
      code: 'InvalidManifest',
      subject: `${where}: ${path}`,
      found: JSON.stringify(value),
      allowed:
        'relative to the manifest it means something to "facetrain run" alone; pods know s3://BUCKET/KEY, pvc://CLAIM/PATH, hostpath:///PATH, and file:///PATH for what podTemplate mounts',
    });
  }
  return manifest;
}

function* strings(value: unknown, path: string): Generator<{ path: string; value: string }> {
  if (typeof value === 'string') yield { path, value };
  else if (Array.isArray(value)) for (const [i, item] of value.entries()) yield* strings(item, `${path}[${i}]`);
  else if (typeof value === 'object' && value !== null)
    for (const [key, item] of Object.entries(value)) yield* strings(item, `${path}.${key}`);
}
