/** What the command line reads in an artifact's manifest. A later version may have added fields to the rest of it. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ARTIFACT, ArtifactManifest } from '@facetrain/api';
import { digestFile } from '@facetrain/trainer/storage/digest';

const Summary = ArtifactManifest.pick({ kind: true, metrics: true, files: true }).loose();
export type ArtifactSummary = ReturnType<typeof Summary.parse>;

/** @returns undefined when the folder has no manifest, a damaged one, or one that is not of an artifact */
export function readArtifactManifest(folder: string): ArtifactSummary | undefined {
  const file = join(folder, ARTIFACT.manifest);
  if (!existsSync(file)) return undefined;
  try {
    return Summary.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    return undefined;
  }
}

/** Whether all files of the artifact are there as its manifest describes them. @throws FacetrainError StorageFailed */
export async function isArtifactWhole(folder: string): Promise<boolean> {
  const manifest = readArtifactManifest(folder);
  if (!manifest) return false;
  for (const [name, { sha256 }] of Object.entries(manifest.files)) {
    const file = join(folder, name);
    if (!existsSync(file) || (await digestFile(file)).sha256 !== sha256) return false;
  }
  return true;
}
