/** Identities of a checkpoint that are no longer trained: a file that its manifest names. */
import { join } from 'node:path';
import {
  type AnyCheckpointManifest,
  FacetrainError,
  parseDocument,
  type RetiredClass,
  RetiredClasses,
} from '@facetrain/api';
import { type Checkpoint, DamagedCheckpoint, readWhole } from './directory.ts';
import { type FolderLabels, labelsOf } from './folder-labels.ts';

export const RETIRED_FILE = 'retired.json';

/** What has changed about a head since its training began. */
export interface Identities {
  /** By ascending class. */
  retired: RetiredClass[];
  classesAdded: boolean;
  labels: FolderLabels | null;
}

export const retiredBytes = (retired: readonly RetiredClass[]): Uint8Array =>
  new TextEncoder().encode(`${JSON.stringify(retired)}\n`);

/** @throws DamagedCheckpoint; FacetrainError StorageFailed */
export async function readIdentities(checkpoint: Checkpoint): Promise<Identities> {
  const { manifest, directory } = checkpoint;
  const labels = labelsOf(manifest);
  const classesAdded = manifest.schemaVersion === 2 && manifest.classesAdded === true;
  const stored = storedRetired(manifest);
  if (!stored) return { retired: [], classesAdded, labels };
  const bytes = await readWhole(checkpoint, stored);
  const path = join(directory, stored.file);
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    return { retired: parseDocument(RetiredClasses, value, path, 'InvalidCheckpoint'), classesAdded, labels };
  } catch (error) {
    // Its digest is right, so it was written so.
    if (!(error instanceof FacetrainError || error instanceof SyntaxError)) throw error;
    throw new DamagedCheckpoint(path, '', error.message, 'a list of classes');
  }
}

const storedRetired = (manifest: AnyCheckpointManifest) =>
  manifest.schemaVersion === 2 ? manifest.retired : undefined;
